//! What can be served: tower services and hyper services alike.

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;

/// Marks the [`App`]s that are tower services: `axum::Router`, `tower::service_fn`, ...
#[derive(Debug)]
pub struct TowerService(Infallible);

/// Marks the [`App`]s that are hyper services: `hyper::service::service_fn`, ...
#[derive(Debug)]
pub struct HyperService(Infallible);

/// A service that [`serve`](crate::serve()) can serve; `Kind` says whose `Service` trait it implements and is inferred.
///
/// Implemented for every service, tower's or hyper's, from `Request<Incoming>` to a response whose body yields `Bytes`. It is
/// cloned for each request.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be served",
    note = "give an `axum::Router`, or another tower or hyper service from `Request<Incoming>` that is `Clone + Send + 'static`"
)]
pub trait App<Kind>: Send + 'static {
    /// The service as tower knows it.
    type Service: tower_service::Service<Request<Incoming>, Response = Response<Self::Body>, Error = Self::Error, Future: Send + 'static>
        + Clone
        + Send
        + 'static;
    /// The body of its responses.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;
    /// What it may fail with: the connection is then closed.
    type Error: Into<Box<dyn Error + Send + Sync>> + 'static;

    /// The service as tower knows it.
    fn into_service(self) -> Self::Service;
}

impl<S, B> App<TowerService> for S
where
    S: tower_service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Service = S;
    type Body = B;
    type Error = S::Error;

    fn into_service(self) -> S {
        self
    }
}

impl<S, B> App<HyperService> for S
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Service = ViaHyper<S>;
    type Body = B;
    type Error = S::Error;

    fn into_service(self) -> ViaHyper<S> {
        ViaHyper(self)
    }
}

/// A hyper service as a tower service: it is always ready.
#[derive(Debug, Clone)]
pub struct ViaHyper<S>(S);

impl<S, R> tower_service::Service<R> for ViaHyper<S>
where
    S: hyper::service::Service<R>,
    S::Future: Future<Output = Result<S::Response, S::Error>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}
