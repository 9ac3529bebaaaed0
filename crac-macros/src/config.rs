//! The arguments of `#[crac::main]`, from tokens to a plain struct.

use crate::{Mistakes, duration};
use proc_macro2::TokenStream;
use std::time::Duration;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Error, Expr, ExprLit, Lit, LitStr, Meta, MetaNameValue, Path, Token};

/// What was asked for, checked; `None` leaves it to the facade and the environment.
#[derive(Default)]
pub(crate) struct Config {
    pub(crate) crate_path: Option<Path>,
    pub(crate) name: Option<String>,
    pub(crate) flavor: Option<Flavor>,
    pub(crate) worker_threads: Option<usize>,
    pub(crate) image: Option<String>,
    pub(crate) engine: Option<String>,
    pub(crate) policy: Option<String>,
    pub(crate) hook_deadline: Option<Duration>,
    pub(crate) drain_deadline: Option<Duration>,
    pub(crate) hold_deadline: Option<Duration>,
    pub(crate) checkpoint_deadline: Option<Duration>,
    pub(crate) restore_deadline: Option<Duration>,
    pub(crate) control: Option<bool>,
    pub(crate) checkpoint_signal: Option<String>,
    pub(crate) clock: Option<String>,
    pub(crate) downtime: Option<String>,
    pub(crate) image_form: Option<String>,
}

/// tokio's runtime flavors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Flavor {
    MultiThread,
    CurrentThread,
    Local,
}

impl Config {
    /// Reads all arguments. Those with a mistake are left out of the result and reported, each on its own token.
    pub(crate) fn parse(args: TokenStream, mistakes: &mut Mistakes) -> Self {
        let mut config = Self::default();
        let arguments = match Punctuated::<Meta, Token![,]>::parse_terminated.parse2(args) {
            Ok(arguments) => arguments,
            Err(error) => {
                mistakes.push(error);
                return config;
            }
        };
        let mut seen = Vec::new();
        for argument in &arguments {
            if let Err(error) = config.read(argument, &mut seen) {
                mistakes.push(error);
            }
        }
        if let Err(error) = config.check_combinations(&arguments) {
            mistakes.push(error);
        }
        config
    }

    fn read(&mut self, argument: &Meta, seen: &mut Vec<String>) -> syn::Result<()> {
        let path = argument.path();
        let key = path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>().join("::");
        if let Some(advice) = advice_on_other_names(&key) {
            return Err(Error::new_spanned(path, advice));
        }
        if !NAMES.contains(&key.as_str()) {
            return Err(Error::new_spanned(path, unknown("argument", &key, &NAMES)));
        }
        if seen.contains(&key) {
            return Err(Error::new_spanned(path, format!("`{key}` is given twice")));
        }
        let value = Value::of(argument, &key)?;
        seen.push(key.clone());
        match key.as_str() {
            "crate" => self.crate_path = Some(value.path()?),
            "name" => self.name = Some(value.text(check_name)?),
            "flavor" => self.flavor = Some(value.flavor()?),
            "worker_threads" => self.worker_threads = Some(value.count()?),
            "image" => self.image = Some(value.text(check_file)?),
            "engine" => self.engine = Some(value.one_of("engine", &ENGINES)?),
            "policy" => self.policy = Some(value.text(check_file)?),
            "hook_deadline" => self.hook_deadline = Some(value.duration()?),
            "drain_deadline" => self.drain_deadline = Some(value.duration()?),
            "hold_deadline" => self.hold_deadline = Some(value.duration()?),
            "checkpoint_deadline" => self.checkpoint_deadline = Some(value.duration()?),
            "restore_deadline" => self.restore_deadline = Some(value.duration()?),
            "control" => self.control = Some(value.switch()?),
            "checkpoint_signal" => self.checkpoint_signal = Some(value.one_of("signal", &SIGNALS)?),
            "clock" => self.clock = Some(value.one_of("clock", &CLOCKS)?),
            "downtime" => self.downtime = Some(value.one_of("downtime", &DOWNTIMES)?),
            "image_form" => self.image_form = Some(value.one_of("image form", &IMAGE_FORMS)?),
            other => unreachable!("`{other}` is in NAMES but not read"),
        }
        Ok(())
    }

    /// Reports what is right alone and wrong together.
    fn check_combinations(&mut self, arguments: &Punctuated<Meta, Token![,]>) -> syn::Result<()> {
        let single = matches!(self.flavor, Some(Flavor::CurrentThread | Flavor::Local));
        if !single || self.worker_threads.take().is_none() {
            return Ok(());
        }
        let argument = arguments.iter().find(|argument| argument.path().is_ident("worker_threads"));
        Err(Error::new_spanned(
            argument,
            "`worker_threads` needs the `multi_thread` flavor\nhint: leave it out, or set `flavor = \"multi_thread\"`",
        ))
    }
}

impl Flavor {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MultiThread => "multi_thread",
            Self::CurrentThread => "current_thread",
            Self::Local => "local",
        }
    }
}

/// The literal behind one argument, and the name to blame.
struct Value<'a> {
    key: &'a str,
    lit: &'a Lit,
}

impl<'a> Value<'a> {
    fn of(argument: &'a Meta, key: &'a str) -> syn::Result<Self> {
        match argument {
            Meta::NameValue(MetaNameValue { value: Expr::Lit(ExprLit { lit, .. }), .. }) => Ok(Self { key, lit }),
            Meta::NameValue(pair) => Err(Error::new_spanned(&pair.value, format!("`{key}` takes a literal"))),
            Meta::Path(_) | Meta::List(_) => {
                Err(Error::new_spanned(argument, format!("`{key}` needs a value\nhint: write `{key} = ...`")))
            }
        }
    }

    fn string(&self) -> syn::Result<&'a LitStr> {
        match self.lit {
            Lit::Str(text) => Ok(text),
            _ => Err(self.mistake(format!("`{}` takes a string", self.key))),
        }
    }

    /// A string that `check` finds nothing wrong with; its words follow "`name` ".
    fn text(&self, check: impl Fn(&str) -> Result<(), &'static str>) -> syn::Result<String> {
        let text = self.string()?.value();
        check(&text).map_err(|problem| self.mistake(format!("`{}` {problem}", self.key)))?;
        Ok(text)
    }

    fn one_of(&self, what: &str, accepted: &[&str]) -> syn::Result<String> {
        let text = self.string()?.value();
        if accepted.contains(&text.as_str()) { Ok(text) } else { Err(self.mistake(unknown(what, &text, accepted))) }
    }

    fn flavor(&self) -> syn::Result<Flavor> {
        let text = self.string()?.value();
        if let Some(renamed) = advice_on_other_flavors(&text) {
            return Err(self.mistake(format!("there is no runtime flavor `{text}`\nhint: its name is `{renamed}` now")));
        }
        let flavors = [Flavor::MultiThread, Flavor::CurrentThread, Flavor::Local];
        let found = flavors.into_iter().find(|flavor| flavor.as_str() == text);
        found.ok_or_else(|| self.mistake(unknown("runtime flavor", &text, &flavors.map(Flavor::as_str))))
    }

    fn path(&self) -> syn::Result<Path> {
        let text = self.string()?;
        text.parse_with(Path::parse_mod_style)
            .map_err(|_| self.mistake(format!("`{}` takes a path such as \"my_prelude::crac\"", self.key)))
    }

    fn count(&self) -> syn::Result<usize> {
        let Lit::Int(number) = self.lit else {
            return Err(self.mistake(format!("`{}` takes an integer", self.key)));
        };
        match number.base10_parse() {
            Ok(0) => Err(self.mistake(format!("`{}` must be at least 1", self.key))),
            Ok(count) => Ok(count),
            Err(error) => Err(self.mistake(format!("`{}` takes an integer: {error}", self.key))),
        }
    }

    fn switch(&self) -> syn::Result<bool> {
        match self.lit {
            Lit::Bool(switch) => Ok(switch.value),
            _ => Err(self.mistake(format!("`{}` takes `true` or `false`", self.key))),
        }
    }

    fn duration(&self) -> syn::Result<Duration> {
        let hint = "hint: write a whole number and `ms`, `s`, `m` or `h`, such as \"500ms\" or \"10s\"";
        let Lit::Str(text) = self.lit else {
            return Err(self.mistake(format!("`{}` takes a duration in a string\n{hint}", self.key)));
        };
        duration::parse(&text.value()).map_err(|problem| self.mistake(format!("`{}` is {problem}\n{hint}", self.key)))
    }

    fn mistake(&self, message: String) -> Error {
        Error::new_spanned(self.lit, message)
    }
}

/// A service name is also a file name (`NAME.crac`, `NAME.sock`) and a word on a command line where a pid may stand.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("has only digits, so it would be taken for a process id");
    }
    if name.starts_with(['-', '.']) {
        return Err("starts like an option or a hidden file; begin with a letter or a digit");
    }
    if name.chars().any(|c| c == '/' || c.is_control() || c.is_whitespace()) {
        return Err("names files too, so it cannot hold `/`, blanks or control characters");
    }
    Ok(())
}

fn check_file(path: &str) -> Result<(), &'static str> {
    match path {
        "" => Err("is an empty path"),
        path if path.contains('\0') => Err("holds a zero byte, which no path can"),
        _ => Ok(()),
    }
}

/// What to do about names that tokio has, had, or that are values.
fn advice_on_other_names(key: &str) -> Option<&'static str> {
    Some(match key {
        "core_threads" => "there is no argument `core_threads`\nhint: its name is `worker_threads` now",
        "threaded_scheduler" | "multi_thread" => "set the runtime flavor with `flavor = \"multi_thread\"`",
        "basic_scheduler" | "single_threaded" | "current_thread" => "set the runtime flavor with `flavor = \"current_thread\"`",
        "local" => "set the runtime flavor with `flavor = \"local\"`",
        "start_paused" => {
            "`start_paused` is not supported: the clock is crac's while it holds the runtime\n\
             hint: pause the clock in tests with `#[tokio::test(start_paused = true)]`"
        }
        "unhandled_panic" => {
            "`unhandled_panic` is not supported: it needs `--cfg tokio_unstable`\n\
             hint: build the runtime by hand and use `crac::attach`"
        }
        _ => return None,
    })
}

/// Today's name of a flavor that was renamed, or that people expect.
fn advice_on_other_flavors(flavor: &str) -> Option<&'static str> {
    match flavor {
        "threaded_scheduler" => Some("multi_thread"),
        "basic_scheduler" | "single_thread" | "single_threaded" => Some("current_thread"),
        _ => None,
    }
}

/// The message for `found`, where only the `accepted` words are known. Names the one that was probably meant.
fn unknown(what: &str, found: &str, accepted: &[&str]) -> String {
    let meant = accepted.iter().min_by_key(|word| distance(found, word)).filter(|word| distance(found, word) <= 2);
    let list = accepted.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    match meant {
        Some(meant) => format!("unknown {what} `{found}`, did you mean `{meant}`?\nhint: expected one of {list}"),
        None => format!("unknown {what} `{found}`\nhint: expected one of {list}"),
    }
}

/// Levenshtein distance without regard to case: how many letters to change, drop or add.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

const NAMES: [&str; 17] = [
    "flavor",
    "worker_threads",
    "name",
    "crate",
    "image",
    "engine",
    "policy",
    "hook_deadline",
    "drain_deadline",
    "hold_deadline",
    "checkpoint_deadline",
    "restore_deadline",
    "control",
    "checkpoint_signal",
    "clock",
    "downtime",
    "image_form",
];

const ENGINES: [&str; 3] = ["native", "criu", "sim"];
const CLOCKS: [&str; 4] = ["auto", "proxy", "timens", "none"];
const DOWNTIMES: [&str; 2] = ["frozen", "elapsed"];
const IMAGE_FORMS: [&str; 3] = ["auto", "program", "data-only"];

/// Signals a service can afford to give away. Those with a meaning of their own - faults, job control, the uncatchable - are
/// left alone.
const SIGNALS: [&str; 8] = ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT", "SIGPWR", "SIGWINCH"];

#[cfg(test)]
mod tests;
