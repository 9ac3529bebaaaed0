//! The layer alone, called as a tower service.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use crac_core::{CheckpointContext, CheckpointRequest, Completed, Context, Mode, Phase, Resource, ResourceOptions, SimEngine};
use crac_hyper::CheckpointLayer;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Channel, Full};
use tokio::sync::{mpsc, oneshot};
use tower::{Layer, Service, ServiceExt, service_fn};

fn context() -> Context {
    Context::builder("layer", Arc::new(SimEngine::new())).build().unwrap()
}

/// Stops a round in its last phase, so that a test can look at the shut door.
struct Pause {
    reached: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[crac_core::async_trait]
impl Resource for Pause {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), crac_core::BoxError> {
        let (go_on, gone_on) = oneshot::channel();
        self.reached.send(go_on)?;
        Ok(gone_on.await?)
    }
}

fn pause(context: &Context, phase: Phase) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
    let (reached, pauses) = mpsc::unbounded_channel();
    context.register(ResourceOptions::new("pause").phase(phase), Pause { reached }).forever();
    pauses
}

async fn hello(_request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

fn request(version: Version) -> Request<Full<Bytes>> {
    Request::builder().version(version).body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_shut_door_answers_503_and_opens_again() {
    let context = context();
    let service = CheckpointLayer::in_context(&context).retry_after(Duration::from_millis(2500)).layer(service_fn(hello));
    let mut pauses = pause(&context, Phase::Egress);
    let round = context.request(CheckpointRequest::new(Mode::Continue));
    let go_on = pauses.recv().await.unwrap();

    let refused = service.clone().oneshot(request(Version::HTTP_11)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "3");
    assert_eq!(refused.headers()[header::CONNECTION], "close");
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"the service is being checkpointed"), "{text:?}");
    let refused = service.clone().oneshot(request(Version::HTTP_2)).await.unwrap();
    assert!(!refused.headers().contains_key(header::CONNECTION));

    go_on.send(()).unwrap();
    assert!(matches!(round.await, Ok(Completed::Continued(_))));
    let served = service.oneshot(request(Version::HTTP_11)).await.unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    assert!(!served.headers().contains_key(header::CONNECTION));
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_body_has_ended() {
    let context = context();
    let (bodies, mut made) = mpsc::unbounded_channel();
    let service = CheckpointLayer::in_context(&context).layer(service_fn(move |_request: Request<Full<Bytes>>| {
        let (sender, body) = Channel::<Bytes, Infallible>::new(4);
        bodies.send(sender).unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    }));
    let mut pauses = pause(&context, Phase::Ingress);

    let response = service.oneshot(request(Version::HTTP_11)).await.unwrap();
    let mut sender = made.recv().await.unwrap();
    let mut round = Box::pin(context.checkpoint(CheckpointRequest::new(Mode::Continue)));
    let go_on = tokio::select! {
        go_on = pauses.recv() => go_on.unwrap(),
        _ = &mut round => panic!("the round ended before its first phase"),
    };
    sender.send_data(Bytes::from_static(b"first ")).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first ");
    go_on.send(()).unwrap();
    // The round stands in `Work` now and cannot end by itself: the body is not over.
    assert!((&mut round).now_or_never().is_none());
    sender.send_data(Bytes::from_static(b"last")).await.unwrap();
    drop(sender);
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
    assert!((&mut round).now_or_never().is_none());
    assert!(body.frame().await.is_none());
    // The body is still there, but over.
    assert!(matches!(round.await, Ok(Completed::Continued(_))));
    drop(body);
}

#[tokio::test]
async fn a_dropped_body_and_a_dropped_future_leave() {
    let context = context();
    let layer = CheckpointLayer::in_context(&context);
    let response = layer.layer(service_fn(hello)).oneshot(request(Version::HTTP_11)).await.unwrap();
    let never = service_fn(|_request: Request<Full<Bytes>>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let mut never = layer.layer(never);
    let pending = never.ready().await.unwrap().call(request(Version::HTTP_11));
    drop(response);
    drop(pending);
    assert!(matches!(context.checkpoint(CheckpointRequest::new(Mode::Continue)).await, Ok(Completed::Continued(_))));
}

#[tokio::test]
async fn what_never_ends_aborts_the_round_by_name_and_the_door_opens() {
    let mut deadlines = crac_core::Deadlines::default();
    deadlines.drain = Duration::from_millis(50);
    let context = Context::builder("layer", Arc::new(SimEngine::new())).deadlines(deadlines).build().unwrap();
    let service = CheckpointLayer::in_context(&context).layer(service_fn(hello));
    let held = service.clone().oneshot(request(Version::HTTP_11)).await.unwrap();
    let error = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await.unwrap_err().to_string();
    assert!(error.contains("1 http requests still in flight"), "{error}");
    assert_eq!(service.oneshot(request(Version::HTTP_11)).await.unwrap().status(), StatusCode::OK);
    drop(held);
}

#[tokio::test]
async fn readiness_is_the_inner_services_and_is_not_inherited_by_clones() {
    #[derive(Debug)]
    struct Reserving(bool);
    impl Clone for Reserving {
        fn clone(&self) -> Self {
            Reserving(false)
        }
    }
    impl Service<Request<Full<Bytes>>> for Reserving {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
            self.0 = true;
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<Full<Bytes>>) -> Self::Future {
            assert!(std::mem::take(&mut self.0), "called without being ready");
            std::future::ready(Ok(Response::new(Full::default())))
        }
    }
    let mut service = CheckpointLayer::in_context(&context()).layer(Reserving(false));
    service.ready().await.unwrap();
    assert!(service.get_ref().0 && !service.clone().get_ref().0);
    assert_eq!(service.call(request(Version::HTTP_11)).await.unwrap().status(), StatusCode::OK);
}

/// An engine like a VM's: sockets live on.
struct KeepsSockets(SimEngine);

impl crac_core::Engine for KeepsSockets {
    fn needs(&self) -> crac_core::Needs {
        self.0.needs().with_keeps_sockets(true)
    }

    fn capture(&self, request: crac_core::CaptureRequest<'_>) -> Result<crac_core::Captured, crac_core::EngineError> {
        self.0.capture(request)
    }
}

#[tokio::test]
async fn requests_wait_where_the_engine_keeps_sockets_and_are_refused_elsewhere() {
    for keeps in [true, false] {
        let engine: Arc<dyn crac_core::Engine> =
            if keeps { Arc::new(KeepsSockets(SimEngine::new())) } else { Arc::new(SimEngine::new()) };
        let context = Context::builder("layer", engine).build().unwrap();
        let service = CheckpointLayer::in_context(&context).wait(true).layer(service_fn(hello));
        let mut pauses = pause(&context, Phase::Egress);
        let round = context.request(CheckpointRequest::new(Mode::Exit));
        let go_on = pauses.recv().await.unwrap();
        let mut response = Box::pin(service.oneshot(request(Version::HTTP_11)));
        if keeps {
            assert!((&mut response).now_or_never().is_none());
            go_on.send(()).unwrap();
            assert!(matches!(round.await, Ok(Completed::Restored(..))));
            assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        } else {
            assert_eq!(response.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
            go_on.send(()).unwrap();
            assert!(matches!(round.await, Ok(Completed::Restored(..))));
        }
    }
}

#[tokio::test]
async fn without_a_context_it_is_inert_and_fits_an_axum_router() {
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(async || "hello")).layer(CheckpointLayer::new());
    let response = app.oneshot(Request::new(axum::body::Body::empty())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}
