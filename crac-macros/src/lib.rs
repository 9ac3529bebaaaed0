//! The `#[crac::main]` attribute. Use it through the `crac` facade, which re-exports it.
//!
//! ```text
//! tokens ─► config.rs: arguments ─► Config ─┐
//!                                           ├─► expand.rs: one call into crac::__private
//! tokens ─► entry.rs: function ────► Entry ─┘
//! ```
//!
//! Parsing decides everything that can be decided without running: names, ranges, combinations. Each mistake is reported on
//! its own token, all of them at once. The expansion holds no logic; the facade does the work.
//!
//! # What the facade provides
//!
//! The expansion names three things, under `::crac` or under the path given by `crate = "..."`. Both crates are pinned to one
//! version, so this is not public API. Texts arrive checked: the facade may rely on the ranges below.
//!
//! ```text
//! pub mod __private {
//!     #[derive(Debug, Clone, Default)]
//!     pub struct MainConfig {
//!         /// `CARGO_PKG_NAME` and `CARGO_PKG_VERSION` of the annotated crate; `None` where cargo is not the build system.
//!         pub package: Option<&'static str>,
//!         pub version: Option<&'static str>,
//!         /// Service and runtime name: a file name, not empty, not all digits (that would be a pid), no leading `-` or `.`.
//!         pub name: Option<&'static str>,
//!         /// "multi_thread" (also when absent), "current_thread" or "local".
//!         pub flavor: Option<&'static str>,
//!         /// At least 1; only with "multi_thread".
//!         pub worker_threads: Option<usize>,
//!         /// Path of the image; not empty.
//!         pub image: Option<&'static str>,
//!         /// "native", "criu" or "sim".
//!         pub engine: Option<&'static str>,
//!         /// Path of the policy file; not empty, not read by the macro.
//!         pub policy: Option<&'static str>,
//!         /// Deadlines, longer than zero, whole milliseconds.
//!         pub hook_deadline: Option<Duration>,
//!         pub drain_deadline: Option<Duration>,
//!         pub hold_deadline: Option<Duration>,
//!         /// The whole way down, and the whole way up.
//!         pub checkpoint_deadline: Option<Duration>,
//!         pub restore_deadline: Option<Duration>,
//!         /// Whether the control socket is served.
//!         pub control: Option<bool>,
//!         /// One of SIGHUP, SIGINT, SIGPWR, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH; absent: no signal asks.
//!         pub checkpoint_signal: Option<&'static str>,
//!         /// "auto", "proxy", "timens" or "none".
//!         pub clock: Option<&'static str>,
//!         /// "frozen" or "elapsed".
//!         pub downtime: Option<&'static str>,
//!         /// "auto", "program" or "data-only".
//!         pub image_form: Option<&'static str>,
//!     }
//!
//!     /// Builds the runtime, attaches it, runs `body` as its root and gives back what it returned.
//!     pub fn main<T>(config: MainConfig, body: impl Future<Output = T>) -> T;
//! }
//! ```
//!
//! The expansion fills the fields that were given and takes the rest from `Default`.

mod config;
mod duration;
mod entry;
mod expand;

use config::Config;
use entry::Entry;
use proc_macro2::TokenStream;

/// Runs an async function as a checkpointable tokio service.
///
/// A superset of `#[tokio::main]`: the function becomes synchronous, a runtime with all drivers is built, and the body runs on
/// it as the root future. Return values, panics and exit codes are those of `#[tokio::main]`, and the body need not be `Send`.
/// Beyond that the runtime is attached to the ambient coordinator, so the process can be checkpointed and restored.
///
/// ```standalone_crate
/// # extern crate self as crac;
/// # pub mod __private { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ui/stub.rs")); }
/// # use crac_macros::main;
/// # async fn serve(_address: &str) -> std::io::Result<()> { Ok(()) }
/// #[crac::main(name = "orders", drain_deadline = "20s")]
/// async fn main() -> std::io::Result<()> {
///     serve("0.0.0.0:8080").await
/// }
/// ```
///
/// # Arguments
///
/// All are optional, all values are literals. Those marked ✱ can be overridden by `CRAC_*` in the environment.
///
/// | argument | value | meaning |
/// |---|---|---|
/// | `flavor` | `"multi_thread"` (default), `"current_thread"`, `"local"` | as in tokio |
/// | `worker_threads` | integer, at least 1 | as in tokio; only with `multi_thread` |
/// | `name` ✱ | text | name of the service (`crac checkpoint NAME`) and of the runtime; default: the package name |
/// | `crate` | path in a string | where `crac` is re-exported, such as `"my_prelude::crac"` |
/// | `image` ✱ | path | where the image is written when the asker names no file |
/// | `engine` ✱ | `"native"`, `"criu"`, `"sim"` | what captures the process |
/// | `policy` ✱ | path | policy file, read when the service starts |
/// | `hook_deadline` ✱ | duration | for each `before_checkpoint` and `after_restore` |
/// | `drain_deadline` ✱ | duration | for requests in flight |
/// | `hold_deadline` ✱ | duration | for stopping the runtime's threads |
/// | `checkpoint_deadline` ✱ | duration | the whole way down |
/// | `restore_deadline` ✱ | duration | the whole way up |
/// | `control` ✱ | `true`, `false` | whether the control socket is served |
/// | `checkpoint_signal` ✱ | `"SIGUSR2"` and the like | a signal that asks for a checkpoint; default: none |
/// | `clock` ✱ | `"auto"` (default), `"proxy"`, `"timens"`, `"none"` | how the monotonic clocks go on in a restored life |
/// | `downtime` ✱ | `"frozen"` (default), `"elapsed"` | what the time until the restore is to them |
/// | `image_form` ✱ | `"auto"` (default), `"program"`, `"data-only"` | whether images are programs; `auto`: unless they go to a `noexec` mount |
///
/// A duration is a whole number followed by `ms`, `s`, `m` or `h`: `"500ms"`, `"10s"`, `"2m"`.
///
/// tokio's `start_paused` and `unhandled_panic` are refused: the clock belongs to `crac` while it holds the runtime, and the
/// second needs `--cfg tokio_unstable`. Build the runtime by hand and use `crac::attach` where they are needed.
///
/// # Functions
///
/// The function is a free `async fn` without generics. It may have another name than `main`, and then arguments; it must not
/// be called from inside a runtime.
#[proc_macro_attribute]
pub fn main(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    service(args.into(), item.into()).into()
}

/// The attribute on plain `proc_macro2` streams, which also exist outside of the compiler.
///
/// After a mistake the function is still there, as close to the wanted one as possible, so that an editor keeps completing in
/// its body and the compiler does not complain about a missing `main` as well.
fn service(args: TokenStream, item: TokenStream) -> TokenStream {
    let entry: Entry = match syn::parse2(item.clone()) {
        Ok(entry) => entry,
        Err(error) => return [item, error.into_compile_error()].into_iter().collect(),
    };
    let mut mistakes = Mistakes::default();
    let config = Config::parse(args, &mut mistakes);
    entry.check(&mut mistakes);

    let mut tokens = expand::function(&entry, &config);
    tokens.extend(mistakes.into_tokens());
    tokens
}

/// The mistakes found so far, so that a person sees all of them in one build.
#[derive(Default)]
struct Mistakes(Option<syn::Error>);

impl Mistakes {
    fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }

    fn into_tokens(self) -> TokenStream {
        self.0.map(syn::Error::into_compile_error).unwrap_or_default()
    }
}
