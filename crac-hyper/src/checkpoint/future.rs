use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, Version};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::ResponseBody;
use crate::door::{Door, Inside};

pin_project! {
    /// The response to come of a [`Checkpoint`](super::Checkpoint). Dropping it takes the request back: it is no longer in flight.
    pub struct ResponseFuture<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        door: Door,
        version: Version,
        #[pin]
        state: State<S, S::Future, ReqBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, ReqBody> {
        Refused,
        Waiting { opened: Pin<Box<dyn Future<Output = ()> + Send>>, call: Option<(S, Request<ReqBody>)> },
        Called { #[pin] response: F, inside: Option<Inside> },
    }
}

impl<S, ReqBody> ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn refused(door: Door, version: Version) -> Self {
        Self { door, version, state: State::Refused }
    }

    pub(super) fn waiting(door: Door, version: Version, service: S, request: Request<ReqBody>) -> Self {
        let state = State::Waiting { opened: opened(&door), call: Some((service, request)) };
        Self { door, version, state }
    }

    pub(super) fn called(door: Door, version: Version, response: S::Future, inside: Inside) -> Self {
        Self { door, version, state: State::Called { response, inside: Some(inside) } }
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Refused => {
                    let (head, text) = this.door.refusal(*this.version);
                    return Poll::Ready(Ok(head.map(|()| ResponseBody::text(text))));
                }
                StateProj::Waiting { opened: door_opened, call } => {
                    ready!(door_opened.as_mut().poll(cx));
                    match this.door.enter() {
                        Ok(inside) => {
                            let (mut service, request) = call.take().expect("the state changes with the call");
                            State::Called { response: service.call(request), inside: Some(inside) }
                        }
                        // The next round was faster.
                        Err(_) => {
                            *door_opened = opened(this.door);
                            continue;
                        }
                    }
                }
                StateProj::Called { response, inside } => {
                    let mut response = ready!(response.poll(cx))?;
                    this.door.leave(*this.version, &mut response);
                    let inside = inside.take();
                    return Poll::Ready(Ok(response.map(|body| ResponseBody::counted(body, inside))));
                }
            };
            this.state.set(next);
        }
    }
}

fn opened(door: &Door) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let gate = door.gate().clone();
    Box::pin(async move { gate.opened().await })
}

impl<S, ReqBody> fmt::Debug for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Refused => "refused",
            State::Waiting { .. } => "waiting",
            State::Called { .. } => "called",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
