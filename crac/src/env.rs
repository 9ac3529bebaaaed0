//! Every environment variable that a service reads, in one place.
//!
//! | variable | value | overrides |
//! |---|---|---|
//! | `CRAC_NAME` | a name, not all digits | `name` |
//! | `CRAC_IMAGE` | path | `image`: where images go when a request does not say |
//! | `CRAC_ENGINE` | `native`, `criu`, `sim` | `engine` |
//! | `CRAC_CRIU_PATH` | path | which CRIU the `criu` engine takes, rather than the one on `PATH` |
//! | `CRAC_CRIU_DEADLINE` | duration | how long CRIU may take for a checkpoint; default `5m` |
//! | `CRAC_POLICY_FILE` | path | `policy` |
//! | `CRAC_POLICY` | rules, as in [`Policy`](crate::Policy) | added behind the file's rules: they win |
//! | `CRAC_WORKER_THREADS` | number, at least 1 | `worker_threads` |
//! | `CRAC_HOOK_DEADLINE`, `CRAC_DRAIN_DEADLINE`, `CRAC_HOLD_DEADLINE`, `CRAC_CHECKPOINT_DEADLINE`, `CRAC_RESTORE_DEADLINE` | duration: `500ms`, `10s`, `2m` | the argument of that name |
//! | `CRAC_CONTROL` | `on`, `off` | `control` |
//! | `CRAC_RUN_DIR` | path | where the control socket is |
//! | `CRAC_CHECKPOINT_SIGNAL` | `SIGUSR2`, ... or `none` | `checkpoint_signal` |
//! | `CRAC_CHECKPOINT_ON` | `ready`, `after=DURATION`, `never` | set by `crac run`: when the service takes an image by itself |
//! | `CRAC_CHECKPOINT_MODE` | `become`, `exit`, `continue` | what it becomes then, and upon the signal; default `become`, with the `criu` engine `continue` |
//! | `CRAC_ON_RESTORE_FAILURE` | `exit`, `stay-shut` | what becomes of a restored life that did not come back whole |
//! | `CRAC_CLOCK` | `auto`, `proxy`, `timens`, `none` | `clock`: how the monotonic clocks go on in a restored life |
//! | `CRAC_DOWNTIME` | `frozen`, `elapsed` | `downtime`: what the time between checkpoint and restore is to them |
//! | `CRAC_IMAGE_FORM` | `auto`, `program`, `data-only` | `image_form`: whether images are programs |
//! | `CRAC_CLOCK_CHAOS` | `+10d`, `-5s`, ...: a sign, a whole number, `s`, `m`, `h` or `d` | for tests: shifts the monotonic clocks from the start, as a restore on another host does |
//! | `CRAC_EAGER` | `on`, `populate`, `off` | whether an image that is executed is read and checked rather than mapped (`on`), or mapped and fetched whole (`populate`), before the service runs; default `off` |
//! | `CRAC_PREFETCH` | `on`, `off` | whether a restored life reads its image ahead once it serves, where that is not in the page cache; default `on`. What held at the cold start holds for all lives |
//! | `CRAC_APPLY_ENV` | `on`, `off` | whether `std::env` shows the environment of the restore; default `off` |
//!
//! A value that cannot be understood ends the service with exit status 2 before anything is started.

pub(crate) const NAME: &str = "CRAC_NAME";
pub(crate) const IMAGE: &str = "CRAC_IMAGE";
pub(crate) const ENGINE: &str = "CRAC_ENGINE";
pub(crate) const CRIU_PATH: &str = "CRAC_CRIU_PATH";
pub(crate) const CRIU_DEADLINE: &str = "CRAC_CRIU_DEADLINE";
pub(crate) const POLICY_FILE: &str = "CRAC_POLICY_FILE";
pub(crate) const POLICY: &str = "CRAC_POLICY";
pub(crate) const WORKER_THREADS: &str = "CRAC_WORKER_THREADS";
pub(crate) const HOOK_DEADLINE: &str = "CRAC_HOOK_DEADLINE";
pub(crate) const DRAIN_DEADLINE: &str = "CRAC_DRAIN_DEADLINE";
pub(crate) const HOLD_DEADLINE: &str = "CRAC_HOLD_DEADLINE";
pub(crate) const CHECKPOINT_DEADLINE: &str = "CRAC_CHECKPOINT_DEADLINE";
pub(crate) const RESTORE_DEADLINE: &str = "CRAC_RESTORE_DEADLINE";
pub(crate) const CONTROL: &str = "CRAC_CONTROL";
pub(crate) const CHECKPOINT_SIGNAL: &str = "CRAC_CHECKPOINT_SIGNAL";
pub(crate) const CHECKPOINT_ON: &str = "CRAC_CHECKPOINT_ON";
pub(crate) const CHECKPOINT_MODE: &str = "CRAC_CHECKPOINT_MODE";
pub(crate) const ON_RESTORE_FAILURE: &str = "CRAC_ON_RESTORE_FAILURE";
pub(crate) const CLOCK: &str = "CRAC_CLOCK";
pub(crate) const DOWNTIME: &str = "CRAC_DOWNTIME";
pub(crate) const IMAGE_FORM: &str = "CRAC_IMAGE_FORM";
pub(crate) const CLOCK_CHAOS: &str = "CRAC_CLOCK_CHAOS";
pub(crate) const EAGER: &str = "CRAC_EAGER";
pub(crate) const PREFETCH: &str = "CRAC_PREFETCH";
pub(crate) const APPLY_ENV: &str = "CRAC_APPLY_ENV";
