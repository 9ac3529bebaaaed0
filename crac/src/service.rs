//! A service from its settings: engine, runtime, context, triggers, then the body.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use crac_core::{Context, Engine, Policy, SimEngine};
use crac_tokio::{
    Threads, TokioHold, TokioSpawner, When, WithRuntimes, attach_hold, checkpoint_on_signal, checkpoint_when, control::Control,
    signal_named, sweep_generators,
};
use serde::Deserialize;
use tokio::{
    runtime::{Builder, LocalRuntime, Runtime},
    task::AbortHandle,
};

use crate::settings::{CheckpointOn, EngineChoice, Flavor, Settings};
#[cfg(feature = "native")]
use crate::settings::{Clock, Downtime, ImageForm};

/// Why a service did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot build the tokio runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot start the coordinator thread: {0}")]
    Coordinator(std::io::Error),
    #[error("cannot read the policy file {}: {source}", path.display())]
    PolicyFile { path: PathBuf, source: std::io::Error },
    #[error("the policy file {} is not understood: {what}; write policy = [\"KIND[:FILTER] = ACTION\", ...]", path.display())]
    Policy { path: PathBuf, what: String },
    #[error(
        "CRAC_CHECKPOINT_SIGNAL: `{0}` is no signal that can ask for checkpoints; use SIGUSR2 or another that the service does not handle"
    )]
    UnknownSignal(String),
    #[error("cannot listen to {name}: {source}")]
    Signal { name: String, source: std::io::Error },
    #[error("{0}")]
    Ambient(#[from] crac_core::AlreadyInstalled),
    #[cfg(feature = "native")]
    #[error("CRAC_CLOCK_CHAOS: cannot shift the clocks: {0}")]
    Chaos(String),
    #[cfg(not(feature = "native"))]
    #[error("this service was built without the native engine; enable crac's feature `native` or choose engine = \"sim\"")]
    NoNative,
    #[cfg(not(feature = "criu"))]
    #[error("this service was built without the criu engine; enable crac's feature `criu` or choose engine = \"native\"")]
    NoCriu,
}

impl StartError {
    pub(crate) fn exit_status(&self) -> i32 {
        match self {
            Self::PolicyFile { .. } | Self::Policy { .. } | Self::UnknownSignal(_) => 2,
            _ => 1,
        }
    }
}

/// A runtime of one of tokio's flavors.
enum AnyRuntime {
    Threads(Runtime),
    Local(LocalRuntime),
}

impl AnyRuntime {
    fn handle(&self) -> &tokio::runtime::Handle {
        match self {
            Self::Threads(runtime) => runtime.handle(),
            Self::Local(runtime) => runtime.handle(),
        }
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Threads(runtime) => runtime.block_on(future),
            Self::Local(runtime) => runtime.block_on(future),
        }
    }
}

/// Runs `body` as the root of a runtime that is attached to a new ambient context.
///
/// # Errors
///
/// [`StartError`]; the body has then not been polled.
pub(crate) fn run<T>(settings: Settings, body: impl Future<Output = T>) -> Result<T, StartError> {
    shift_clocks(&settings)?;
    let (runtime, threads) = build_runtime(&settings).map_err(StartError::Runtime)?;
    let context = build_context(&settings, &runtime)?;
    let ambient = context.install()?;
    let hold = TokioHold::new(runtime.handle().clone()).named(settings.name.clone()).with_threads(threads);
    let attached = attach_hold(&context, hold);
    sweep_generators(&context);
    let triggers = Triggers::start(&settings, &context, &runtime)?;
    let output = runtime.block_on(attached.root(body));
    drop(triggers);
    drop(attached);
    drop(ambient);
    Ok(output)
}

/// Who may ask for checkpoints beside the program itself, as long as the body runs.
struct Triggers {
    _control: Option<Control>,
    tasks: Vec<AbortHandle>,
}

impl Triggers {
    fn start(settings: &Settings, context: &Context, runtime: &AnyRuntime) -> Result<Self, StartError> {
        let control = settings.control.then(|| crac_tokio::control::serve(context, None)).and_then(|served| {
            // A service is worth running without it. Nobody listens to `tracing` before the body runs.
            served.inspect_err(|error| eprintln!("crac: the control socket is not served: {error}")).ok()
        });
        let mut tasks = Vec::new();
        if let Some(name) = &settings.checkpoint_signal {
            let kind = signal_named(name).ok_or_else(|| StartError::UnknownSignal(name.clone()))?;
            let listening = checkpoint_on_signal(context, runtime.handle(), kind, settings.checkpoint_mode);
            tasks.push(listening.map_err(|source| StartError::Signal { name: name.clone(), source })?);
        }
        let when = match settings.checkpoint_on {
            CheckpointOn::Never => None,
            CheckpointOn::Ready => Some(When::Ready),
            CheckpointOn::After(time) => Some(When::After(time)),
        };
        tasks.extend(when.map(|when| checkpoint_when(context, runtime.handle(), when, settings.checkpoint_mode)));
        Ok(Self { _control: control, tasks })
    }
}

impl Drop for Triggers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn build_runtime(settings: &Settings) -> std::io::Result<(AnyRuntime, Threads)> {
    let mut builder = match settings.flavor {
        Flavor::MultiThread => Builder::new_multi_thread(),
        Flavor::CurrentThread | Flavor::Local => Builder::new_current_thread(),
    };
    if let (Flavor::MultiThread, Some(threads)) = (settings.flavor, settings.worker_threads) {
        builder.worker_threads(threads);
    }
    builder.enable_all().name(settings.name.clone());
    let threads = Threads::watch(&mut builder);
    let runtime = match settings.flavor {
        Flavor::MultiThread | Flavor::CurrentThread => AnyRuntime::Threads(builder.build()?),
        Flavor::Local => AnyRuntime::Local(builder.build_local(Default::default())?),
    };
    Ok((runtime, threads))
}

fn build_context(settings: &Settings, runtime: &AnyRuntime) -> Result<Context, StartError> {
    let mut policy = settings.policy_file.as_deref().map(read_policy).transpose()?.unwrap_or_default();
    policy.extend(settings.policy.clone());
    let mut builder = Context::builder(settings.name.clone(), build_engine(settings)?)
        .spawner(Arc::new(TokioSpawner::new(runtime.handle().clone())))
        .audit(Arc::new(WithRuntimes::new(crac_audit::Auditor::new())))
        .host(Arc::new(crac_audit::ThisHost::new()))
        .deadlines(settings.deadlines)
        .policy(policy)
        .apply_env(settings.apply_env)
        .on_restore_failure(settings.on_restore_failure);
    if let Some(image) = &settings.image {
        builder = builder.image(image);
    }
    builder.build().map_err(StartError::Coordinator)
}

fn build_engine(settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    match settings.engine {
        EngineChoice::Sim => Ok(Arc::new(SimEngine::new())),
        #[cfg(feature = "native")]
        EngineChoice::Native => {
            let clock = match settings.clock {
                Clock::Auto => crac_native::Clock::Auto,
                Clock::Proxy => crac_native::Clock::Proxy,
                Clock::Timens => crac_native::Clock::Timens,
                Clock::None => crac_native::Clock::None,
            };
            let downtime = match settings.downtime {
                Downtime::Frozen => crac_native::Downtime::Frozen,
                Downtime::Elapsed => crac_native::Downtime::Elapsed,
            };
            let form = match settings.image_form {
                ImageForm::Auto => crac_native::ImageForm::Auto,
                ImageForm::Program => crac_native::ImageForm::Program,
                ImageForm::DataOnly => crac_native::ImageForm::DataOnly,
            };
            let engine = crac_native::NativeEngine::new().with_clock(clock).with_downtime(downtime);
            Ok(Arc::new(engine.with_image_form(form).with_prefetch(settings.prefetch)))
        }
        #[cfg(not(feature = "native"))]
        EngineChoice::Native => Err(StartError::NoNative),
        #[cfg(feature = "criu")]
        EngineChoice::Criu => {
            let engine = crac_criu::CriuEngine::new();
            let engine = settings.criu_path.iter().fold(engine, |engine, path| engine.with_program(path));
            Ok(Arc::new(settings.criu_deadline.into_iter().fold(engine, crac_criu::CriuEngine::with_deadline)))
        }
        #[cfg(not(feature = "criu"))]
        EngineChoice::Criu => Err(StartError::NoCriu),
    }
}

/// Before anything else runs in this process.
#[cfg(feature = "native")]
fn shift_clocks(settings: &Settings) -> Result<(), StartError> {
    settings.clock_chaos.map_or(Ok(()), crac_native::shift_clocks).map_err(StartError::Chaos)
}

#[cfg(not(feature = "native"))]
fn shift_clocks(settings: &Settings) -> Result<(), StartError> {
    settings.clock_chaos.map_or(Ok(()), |_| Err(StartError::NoNative))
}

/// The form of a policy file: `policy = ["KIND[:FILTER] = ACTION", ...]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    policy: Vec<String>,
}

fn read_policy(path: &Path) -> Result<Policy, StartError> {
    let text = std::fs::read_to_string(path).map_err(|source| StartError::PolicyFile { path: path.to_owned(), source })?;
    parse_policy(&text).map_err(|what| StartError::Policy { path: path.to_owned(), what })
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let file: PolicyFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    file.policy.join("\n").parse().map_err(|error: crac_core::PolicyError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crac_core::{Action, ObstacleKind};

    #[test]
    fn a_policy_file_holds_rules_of_the_one_grammar() {
        let policy = parse_policy("policy = [\"file-writable:/var/* = reopen\", \"tcp-established = sever\"]").unwrap();
        assert_eq!(policy.decide(ObstacleKind::FileWritable, "/var/x"), Action::Reopen);
        assert_eq!(policy.decide(ObstacleKind::TcpEstablished, "1.2.3.4:5"), Action::Sever);
    }

    #[test]
    fn a_policy_file_that_is_not_understood_says_what() {
        assert!(parse_policy("polcy = []").unwrap_err().contains("polcy"));
        assert!(parse_policy("policy = [\"memfd = bless\"]").unwrap_err().contains("bless"));
    }
}
