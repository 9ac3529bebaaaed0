use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{ResponseBody, ResponseFuture};
use crate::door::Door;

/// The service that [`CheckpointLayer`](crate::CheckpointLayer) makes.
///
/// Readiness is the inner service's: a shut door answers at once and reserves nothing, so that one caller behind a buffer cannot
/// hold up the others. The door is looked at in `call`. A clone is as ready as the clone of the inner service, which by tower's
/// rules is not at all.
#[derive(Debug, Clone)]
pub struct Checkpoint<S> {
    door: Door,
    inner: S,
}

impl<S> Checkpoint<S> {
    pub(crate) fn new(door: Door, inner: S) -> Self {
        Self { door, inner }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Takes the door away.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Checkpoint<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let version = request.version();
        match self.door.enter() {
            Ok(inside) => ResponseFuture::called(self.door.clone(), version, self.inner.call(request), inside),
            Err(_) if self.door.waits() => {
                // The ready one goes with the request; what stays has to become ready again.
                let clone = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, clone);
                ResponseFuture::waiting(self.door.clone(), version, ready, request)
            }
            Err(_) => ResponseFuture::refused(self.door.clone(), version),
        }
    }
}
