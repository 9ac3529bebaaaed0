//! What taking part in checkpoints costs each request while no checkpoint runs.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use crac_core::{Context, Gate, SimEngine};
use crac_hyper::CheckpointLayer;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{ServiceExt, layer::Layer, service_fn};

fn main() {
    divan::main();
}

/// In and out of a gate, one thread and several at the same gate.
#[divan::bench(threads = [1, 2])]
fn gate(bencher: divan::Bencher<'_, '_>) {
    let gate = Gate::new("requests");
    bencher.bench(|| gate.enter().is_ok());
}

async fn answer(_: Request<Empty<Bytes>>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(Response::new(Empty::new()))
}

/// A service that does nothing: the floor of the next.
#[divan::bench]
fn service_alone(bencher: divan::Bencher<'_, '_>) {
    bencher.bench(|| service_fn(answer).oneshot(Request::new(Empty::new())).now_or_never().is_some());
}

/// The same behind the layer.
#[divan::bench]
fn service_behind_the_layer(bencher: divan::Bencher<'_, '_>) {
    let context = Context::builder("bench", Arc::new(SimEngine::new())).build().expect("a thread can be started");
    let service = CheckpointLayer::in_context(&context).layer(service_fn(answer));
    bencher.bench(|| service.clone().oneshot(Request::new(Empty::new())).now_or_never().is_some());
}
