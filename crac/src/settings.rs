//! What a service runs with: the arguments of `#[crac::main]`, overridden by the environment. Pure.

use std::{path::PathBuf, time::Duration};

use crac_core::{Deadlines, Mode, Policy, PolicyError, RestoreFailure};

use crate::{__private::MainConfig, env};

/// Everything decided before anything is started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) image: Option<PathBuf>,
    pub(crate) engine: EngineChoice,
    pub(crate) criu_path: Option<PathBuf>,
    pub(crate) criu_deadline: Option<Duration>,
    pub(crate) policy_file: Option<PathBuf>,
    pub(crate) policy: Policy,
    pub(crate) flavor: Flavor,
    pub(crate) worker_threads: Option<usize>,
    pub(crate) deadlines: Deadlines,
    pub(crate) control: bool,
    pub(crate) checkpoint_signal: Option<String>,
    pub(crate) checkpoint_on: CheckpointOn,
    pub(crate) checkpoint_mode: Mode,
    pub(crate) on_restore_failure: RestoreFailure,
    pub(crate) apply_env: bool,
    pub(crate) clock: Clock,
    pub(crate) downtime: Downtime,
    pub(crate) image_form: ImageForm,
    pub(crate) prefetch: bool,
    /// Seconds by which the clocks are shifted from the start.
    pub(crate) clock_chaos: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EngineChoice {
    Native,
    Criu,
    Sim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    MultiThread,
    CurrentThread,
    Local,
}

/// How the native engine's restored lives see the monotonic clocks; documented there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Auto,
    Proxy,
    Timens,
    None,
}

/// What the time until a restore is to these clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Downtime {
    Frozen,
    Elapsed,
}

/// Whether the native engine's images are programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageForm {
    Auto,
    Program,
    DataOnly,
}

const CLOCKS: [(&str, Clock); 4] =
    [("auto", Clock::Auto), ("proxy", Clock::Proxy), ("timens", Clock::Timens), ("none", Clock::None)];
const DOWNTIMES: [(&str, Downtime); 2] = [("frozen", Downtime::Frozen), ("elapsed", Downtime::Elapsed)];
const IMAGE_FORMS: [(&str, ImageForm); 3] =
    [("auto", ImageForm::Auto), ("program", ImageForm::Program), ("data-only", ImageForm::DataOnly)];

/// When a service takes an image by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckpointOn {
    Never,
    Ready,
    After(Duration),
}

/// A setting that cannot be understood.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("{variable}: `{value}` is not {expected}")]
    Value { variable: &'static str, value: String, expected: &'static str },
    #[error("{}: {source}", env::POLICY)]
    Policy { source: PolicyError },
}

impl Settings {
    /// The settings of `config` under the environment `var`.
    ///
    /// # Errors
    ///
    /// The first variable that cannot be understood.
    pub(crate) fn resolve(config: &MainConfig, var: impl Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let read = Reader { var: &var };
        // Read by the image that this service may become; a wish that cannot be understood is not to end that life.
        read.one_of(env::EAGER, "`on`, `populate` or `off`", &["on", "populate", "off"].map(|word| (word, ())))?;
        let default = Deadlines::default();
        let mut deadlines = default;
        deadlines.hook = read.duration(env::HOOK_DEADLINE, config.hook_deadline)?.unwrap_or(default.hook);
        deadlines.drain = read.duration(env::DRAIN_DEADLINE, config.drain_deadline)?.unwrap_or(default.drain);
        deadlines.hold = read.duration(env::HOLD_DEADLINE, config.hold_deadline)?.unwrap_or(default.hold);
        deadlines.down = read.duration(env::CHECKPOINT_DEADLINE, config.checkpoint_deadline)?.unwrap_or(default.down);
        deadlines.up = read.duration(env::RESTORE_DEADLINE, config.restore_deadline)?.unwrap_or(default.up);
        let engine = read.one_of(
            env::ENGINE,
            "`native`, `criu` or `sim`",
            &[("native", EngineChoice::Native), ("criu", EngineChoice::Criu), ("sim", EngineChoice::Sim)],
        )?;
        let engine = engine.unwrap_or(match config.engine {
            Some("sim") => EngineChoice::Sim,
            Some("criu") => EngineChoice::Criu,
            _ => EngineChoice::Native,
        });
        Ok(Self {
            name: read
                .parse(env::NAME, "a name: a file name, not all digits, without a leading `-` or `.`", is_name)?
                .or(config.name.map(str::to_owned))
                .or(config.package.map(str::to_owned))
                .unwrap_or_else(|| "service".to_owned()),
            image: read.text(env::IMAGE).map(PathBuf::from).or(config.image.map(PathBuf::from)),
            engine,
            criu_path: read.text(env::CRIU_PATH).map(PathBuf::from),
            criu_deadline: read.duration(env::CRIU_DEADLINE, None)?,
            policy_file: read.text(env::POLICY_FILE).map(PathBuf::from).or(config.policy.map(PathBuf::from)),
            policy: read.text(env::POLICY).unwrap_or_default().parse().map_err(|source| SettingError::Policy { source })?,
            flavor: match config.flavor {
                Some("current_thread") => Flavor::CurrentThread,
                Some("local") => Flavor::Local,
                _ => Flavor::MultiThread,
            },
            worker_threads: read
                .parse(env::WORKER_THREADS, "a number of threads, at least 1", |text| {
                    text.parse().ok().filter(|threads| *threads > 0)
                })?
                .or(config.worker_threads),
            deadlines,
            control: read.switch(env::CONTROL)?.or(config.control).unwrap_or(true),
            checkpoint_signal: match read.text(env::CHECKPOINT_SIGNAL) {
                Some(signal) if signal == "none" => None,
                Some(signal) => Some(signal),
                None => config.checkpoint_signal.map(str::to_owned),
            },
            checkpoint_on: read
                .parse(env::CHECKPOINT_ON, "`ready`, `after=DURATION` or `never`", checkpoint_on)?
                .unwrap_or(CheckpointOn::Never),
            checkpoint_mode: read
                .one_of(
                    env::CHECKPOINT_MODE,
                    "`become`, `exit` or `continue`",
                    &[("become", Mode::Become), ("exit", Mode::Exit), ("continue", Mode::Continue)],
                )?
                // CRIU cannot restore into a living process.
                .unwrap_or(if engine == EngineChoice::Criu { Mode::Continue } else { Mode::Become }),
            on_restore_failure: read
                .one_of(
                    env::ON_RESTORE_FAILURE,
                    "`exit` or `stay-shut`",
                    &[("exit", RestoreFailure::Exit), ("stay-shut", RestoreFailure::StayShut)],
                )?
                .unwrap_or_default(),
            apply_env: read.switch(env::APPLY_ENV)?.unwrap_or(false),
            clock: read
                .one_of(env::CLOCK, "`auto`, `proxy`, `timens` or `none`", &CLOCKS)?
                .or(config.clock.and_then(|clock| named(clock, &CLOCKS)))
                .unwrap_or(Clock::Auto),
            downtime: read
                .one_of(env::DOWNTIME, "`frozen` or `elapsed`", &DOWNTIMES)?
                .or(config.downtime.and_then(|downtime| named(downtime, &DOWNTIMES)))
                .unwrap_or(Downtime::Frozen),
            image_form: read
                .one_of(env::IMAGE_FORM, "`auto`, `program` or `data-only`", &IMAGE_FORMS)?
                .or(config.image_form.and_then(|form| named(form, &IMAGE_FORMS)))
                .unwrap_or(ImageForm::Auto),
            prefetch: read.switch(env::PREFETCH)?.unwrap_or(true),
            clock_chaos: read.parse(env::CLOCK_CHAOS, "a shift such as `+10d` or `-5s`", shift)?,
        })
    }
}

/// Reads variables; an empty one counts as absent.
struct Reader<'a> {
    var: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn text(&self, variable: &str) -> Option<String> {
        (self.var)(variable).filter(|text| !text.is_empty())
    }

    fn parse<T>(
        &self,
        variable: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingError> {
        let Some(value) = self.text(variable) else { return Ok(None) };
        parse(&value).map(Some).ok_or(SettingError::Value { variable, value, expected })
    }

    fn one_of<T: Copy>(
        &self,
        variable: &'static str,
        expected: &'static str,
        all: &[(&str, T)],
    ) -> Result<Option<T>, SettingError> {
        self.parse(variable, expected, |text| named(text, all))
    }

    fn switch(&self, variable: &'static str) -> Result<Option<bool>, SettingError> {
        self.one_of(variable, "`on` or `off`", &[("on", true), ("off", false)])
    }

    fn duration(&self, variable: &'static str, given: Option<Duration>) -> Result<Option<Duration>, SettingError> {
        Ok(self.parse(variable, "a duration such as `500ms`, `10s` or `2m`, longer than zero", duration)?.or(given))
    }
}

fn named<T: Copy>(text: &str, all: &[(&str, T)]) -> Option<T> {
    all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

/// A sign, a whole number, and `s`, `m`, `h` or `d`: seconds.
fn shift(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (number, unit) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
    let unit_s = named(unit, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])?;
    // A century is more than any host has been up.
    number.parse::<i64>().ok()?.checked_mul(unit_s).filter(|shift| *shift <= 36_500 * 86_400).map(|shift| sign * shift)
}

/// A whole number followed by `ms`, `s`, `m` or `h`; longer than zero.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (ms > 0).then(|| Duration::from_millis(ms))
}

fn checkpoint_on(text: &str) -> Option<CheckpointOn> {
    match text {
        "ready" => Some(CheckpointOn::Ready),
        "never" => Some(CheckpointOn::Never),
        other => other.strip_prefix("after=").and_then(duration).map(CheckpointOn::After),
    }
}

fn is_name(text: &str) -> Option<String> {
    let good = !text.contains('/') && !text.starts_with(['-', '.']) && !text.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: &MainConfig, vars: &[(&str, &str)]) -> Result<Settings, SettingError> {
        Settings::resolve(config, |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn arguments_are_taken_and_the_environment_wins() {
        let config = MainConfig {
            name: Some("orders"),
            worker_threads: Some(3),
            hook_deadline: Some(Duration::from_secs(1)),
            control: Some(false),
            ..MainConfig::default()
        };
        let settings = resolve(&config, &[]).unwrap();
        assert_eq!((settings.name.as_str(), settings.worker_threads, settings.control), ("orders", Some(3), false));
        assert_eq!(settings.deadlines.hook, Duration::from_secs(1));
        let vars =
            [("CRAC_NAME", "other"), ("CRAC_HOOK_DEADLINE", "500ms"), ("CRAC_CONTROL", "on"), ("CRAC_CHECKPOINT_ON", "after=2m")];
        let settings = resolve(&config, &vars).unwrap();
        assert_eq!((settings.name.as_str(), settings.control), ("other", true));
        assert_eq!(settings.deadlines.hook, Duration::from_millis(500));
        assert_eq!(settings.checkpoint_on, CheckpointOn::After(Duration::from_secs(120)));
    }

    #[test]
    fn the_package_names_a_service_without_a_name() {
        let config = MainConfig { package: Some("web-server"), ..MainConfig::default() };
        assert_eq!(resolve(&config, &[("CRAC_NAME", "")]).unwrap().name, "web-server");
    }

    #[test]
    fn a_service_under_criu_goes_on_when_it_takes_an_image_by_itself() {
        let mode = |engine| {
            let settings = resolve(&MainConfig { engine, ..MainConfig::default() }, &[]).unwrap();
            (settings.engine, settings.checkpoint_mode)
        };
        assert_eq!(mode(Some("criu")), (EngineChoice::Criu, Mode::Continue));
        assert_eq!(mode(None), (EngineChoice::Native, Mode::Become));
    }

    #[test]
    fn a_value_that_cannot_be_understood_is_named_with_its_variable() {
        for (variable, value) in [
            ("CRAC_NAME", "1234"),
            ("CRAC_NAME", "a/b"),
            ("CRAC_ENGINE", "criu2"),
            ("CRAC_HOOK_DEADLINE", "10"),
            ("CRAC_DRAIN_DEADLINE", "0s"),
            ("CRAC_HOLD_DEADLINE", "99999999999999999999h"),
            ("CRAC_WORKER_THREADS", "0"),
            ("CRAC_CONTROL", "yes"),
            ("CRAC_CHECKPOINT_ON", "after=soon"),
            ("CRAC_CHECKPOINT_MODE", "rehearse"),
            ("CRAC_CLOCK", "host"),
            ("CRAC_DOWNTIME", "10s"),
            ("CRAC_EAGER", "1"),
            ("CRAC_PREFETCH", "auto"),
            ("CRAC_CLOCK_CHAOS", "10d"),
            ("CRAC_CLOCK_CHAOS", "+10"),
            ("CRAC_CLOCK_CHAOS", "-99999999999999999999s"),
            ("CRAC_POLICY", "memfd = bless"),
        ] {
            let error = resolve(&MainConfig::default(), &[(variable, value)]).unwrap_err().to_string();
            assert!(error.starts_with(variable) && error.contains(value.split(' ').next_back().unwrap()), "{error}");
        }
    }
}
