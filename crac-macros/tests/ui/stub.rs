// The part of the facade that the expansion names, just large enough to look at what arrived and to run the body.

use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct MainConfig {
    pub package: Option<&'static str>,
    pub version: Option<&'static str>,
    pub name: Option<&'static str>,
    pub flavor: Option<&'static str>,
    pub worker_threads: Option<usize>,
    pub image: Option<&'static str>,
    pub engine: Option<&'static str>,
    pub policy: Option<&'static str>,
    pub hook_deadline: Option<Duration>,
    pub drain_deadline: Option<Duration>,
    pub hold_deadline: Option<Duration>,
    pub checkpoint_deadline: Option<Duration>,
    pub restore_deadline: Option<Duration>,
    pub control: Option<bool>,
    pub checkpoint_signal: Option<&'static str>,
    pub clock: Option<&'static str>,
    pub downtime: Option<&'static str>,
    pub image_form: Option<&'static str>,
}

static ARRIVED: Mutex<Option<MainConfig>> = Mutex::new(None);

pub fn main<T>(config: MainConfig, body: impl Future<Output = T>) -> T {
    *ARRIVED.lock().unwrap() = Some(config);
    let mut body = std::pin::pin!(body);
    loop {
        if let Poll::Ready(output) = body.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

/// What the attribute of the running body said.
pub fn arrived() -> MainConfig {
    ARRIVED.lock().unwrap().clone().expect("no service has started")
}
