//! The parser over token text: what it accepts, and every message.

use super::{Config, Flavor, NAMES, SIGNALS};
use crate::Mistakes;
use proc_macro2::TokenStream;
use quote::ToTokens;
use std::time::Duration;

fn parse(args: &str) -> (Config, Vec<String>) {
    let mut mistakes = Mistakes::default();
    let config = Config::parse(args.parse::<TokenStream>().unwrap(), &mut mistakes);
    let messages = mistakes.0.into_iter().flatten().map(|error| error.to_string()).collect();
    (config, messages)
}

fn accepted(args: &str) -> Config {
    let (config, mistakes) = parse(args);
    assert!(mistakes.is_empty(), "{args}: {mistakes:?}");
    config
}

fn refused(args: &str) -> String {
    let (_, mistakes) = parse(args);
    assert_eq!(mistakes.len(), 1, "{args}: {mistakes:?}");
    mistakes.into_iter().next().unwrap()
}

#[test]
fn no_arguments_leave_everything_to_the_facade() {
    let config = accepted("");
    assert!(config.name.is_none() && config.flavor.is_none() && config.control.is_none() && config.crate_path.is_none());
}

#[test]
fn arguments_of_tokio_are_read() {
    let config = accepted(r#"flavor = "multi_thread", worker_threads = 4, name = "orders", crate = "my_prelude::crac""#);
    assert_eq!(config.flavor, Some(Flavor::MultiThread));
    assert_eq!(config.worker_threads, Some(4));
    assert_eq!(config.name.as_deref(), Some("orders"));
    assert_eq!(config.crate_path.to_token_stream().to_string(), "my_prelude :: crac");
}

#[test]
fn arguments_of_crac_are_read() {
    let config = accepted(
        r#"image = "/var/lib/orders.crac", engine = "sim", policy = "crac.toml", control = false,
           checkpoint_signal = "SIGUSR2", clock = "proxy", downtime = "elapsed", image_form = "data-only", hook_deadline = "1s", drain_deadline = "2s", hold_deadline = "3ms",
           checkpoint_deadline = "4m", restore_deadline = "5h","#,
    );
    assert_eq!(config.image.as_deref(), Some("/var/lib/orders.crac"));
    assert_eq!(config.engine.as_deref(), Some("sim"));
    assert_eq!(config.policy.as_deref(), Some("crac.toml"));
    assert_eq!(config.control, Some(false));
    assert_eq!(config.checkpoint_signal.as_deref(), Some("SIGUSR2"));
    assert_eq!((config.clock.as_deref(), config.downtime.as_deref()), (Some("proxy"), Some("elapsed")));
    assert_eq!(config.image_form.as_deref(), Some("data-only"));
    assert_eq!(config.hook_deadline, Some(Duration::from_secs(1)));
    assert_eq!(config.drain_deadline, Some(Duration::from_secs(2)));
    assert_eq!(config.hold_deadline, Some(Duration::from_millis(3)));
    assert_eq!(config.checkpoint_deadline, Some(Duration::from_secs(4 * 60)));
    assert_eq!(config.restore_deadline, Some(Duration::from_secs(5 * 3600)));
}

#[test]
fn every_flavor_is_read() {
    let flavor = |text: &str| accepted(&format!("flavor = {text:?}")).flavor.unwrap();
    for wanted in [Flavor::MultiThread, Flavor::CurrentThread, Flavor::Local] {
        assert_eq!(flavor(wanted.as_str()), wanted);
    }
}

#[test]
fn every_name_on_the_list_is_read() {
    for name in NAMES {
        assert_eq!(refused(&format!("{name} = b'x'")).split('`').nth(1), Some(name));
    }
}

#[test]
fn every_mistake_is_reported_and_the_rest_is_kept() {
    let (config, mistakes) = parse(r#"flavour = "local", name = "orders", control = 1, worker_threads = 0"#);
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert_eq!(config.name.as_deref(), Some("orders"));
    assert!(config.control.is_none() && config.worker_threads.is_none());
}

#[test]
fn an_unknown_argument_lists_the_accepted_ones() {
    let list = NAMES.map(|name| format!("`{name}`")).join(", ");
    assert_eq!(refused("colour = 1"), format!("unknown argument `colour`\nhint: expected one of {list}"));
    assert_eq!(refused("colour"), refused("colour = 1"));
    assert_eq!(refused("colour(1)"), refused("colour = 1"));
    assert!(refused("a::name = 1").starts_with("unknown argument `a::name`"));
}

#[test]
fn a_misspelt_word_is_answered_with_the_one_meant() {
    assert!(refused(r#"flavour = "local""#).starts_with("unknown argument `flavour`, did you mean `flavor`?"));
    assert!(refused(r#"Image = "a""#).starts_with("unknown argument `Image`, did you mean `image`?"));
    assert!(
        refused(r#"flavor = "multithread""#).starts_with("unknown runtime flavor `multithread`, did you mean `multi_thread`?")
    );
    assert!(refused(r#"engine = "natve""#).starts_with("unknown engine `natve`, did you mean `native`?"));
    assert!(refused(r#"checkpoint_signal = "USR2""#).contains("expected one of `SIGUSR1`"));
    assert!(refused(r#"clock = "timenss""#).contains("did you mean `timens`"));
    assert!(refused(r#"image_form = "data""#).contains("`data-only`"));
    assert!(refused(r#"downtime = "passed""#).contains("expected one of `frozen`, `elapsed`"));
}

#[test]
fn renamed_things_of_tokio_are_told_their_new_names() {
    assert!(refused("core_threads = 4").ends_with("its name is `worker_threads` now"));
    assert!(refused("threaded_scheduler").ends_with("`flavor = \"multi_thread\"`"));
    assert!(refused("basic_scheduler").ends_with("`flavor = \"current_thread\"`"));
    assert!(refused(r#"flavor = "basic_scheduler""#).ends_with("its name is `current_thread` now"));
    assert!(refused(r#"flavor = "threaded_scheduler""#).ends_with("its name is `multi_thread` now"));
}

#[test]
fn what_crac_cannot_honour_is_refused_with_a_way_out() {
    assert!(refused("start_paused = true").contains("the clock is crac's"));
    assert!(refused(r#"unhandled_panic = "ignore""#).contains("`crac::attach`"));
}

#[test]
fn an_argument_counts_once() {
    assert_eq!(refused("control = true, control = true"), "`control` is given twice");
}

#[test]
fn a_value_must_be_a_literal_of_the_right_kind() {
    assert_eq!(refused("name = NAME"), "`name` takes a literal");
    assert_eq!(refused("name"), "`name` needs a value\nhint: write `name = ...`");
    assert_eq!(refused("name(\"a\")"), "`name` needs a value\nhint: write `name = ...`");
    assert_eq!(refused("name = 1"), "`name` takes a string");
    assert_eq!(refused("worker_threads = \"4\""), "`worker_threads` takes an integer");
    assert_eq!(refused("control = \"on\""), "`control` takes `true` or `false`");
    assert!(refused("hook_deadline = 10").starts_with("`hook_deadline` takes a duration in a string\nhint:"));
    assert!(refused("crate = \"1::2\"").starts_with("`crate` takes a path"));
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert_eq!(refused("worker_threads = 0"), "`worker_threads` must be at least 1");
    assert!(refused("worker_threads = 99999999999999999999").starts_with("`worker_threads` takes an integer: "));
}

#[test]
fn worker_threads_need_many_workers() {
    for flavor in ["current_thread", "local"] {
        let args = format!("worker_threads = 2, flavor = {flavor:?}");
        assert!(refused(&args).starts_with("`worker_threads` needs the `multi_thread` flavor"), "{flavor}");
        assert!(parse(&args).0.worker_threads.is_none(), "the refused value must not reach the expansion");
    }
}

#[test]
fn a_name_that_could_not_be_a_file_or_a_word_is_refused() {
    for (name, why) in [
        ("", "is empty"),
        ("4711", "has only digits"),
        ("-v", "starts like an option"),
        ("..", "starts like an option or a hidden file"),
        ("a/b", "cannot hold `/`"),
        ("a b", "cannot hold `/`, blanks"),
        ("a\0b", "control characters"),
    ] {
        assert!(refused(&format!("name = {name:?}")).contains(why), "{name:?}");
    }
    assert_eq!(accepted("name = \"orders-2.eu_west\"").name.as_deref(), Some("orders-2.eu_west"));
}

#[test]
fn an_impossible_path_is_refused() {
    assert_eq!(refused("image = \"\""), "`image` is an empty path");
    assert_eq!(refused(r#"policy = "a\0b""#), "`policy` holds a zero byte, which no path can");
}

#[test]
fn a_bad_duration_says_what_is_wrong_and_what_would_be_right() {
    assert_eq!(
        refused("drain_deadline = \"10\""),
        "`drain_deadline` is `10`, a number without a unit\n\
         hint: write a whole number and `ms`, `s`, `m` or `h`, such as \"500ms\" or \"10s\""
    );
    assert!(refused("drain_deadline = \"0s\"").starts_with("`drain_deadline` is zero"));
}

#[test]
fn every_signal_on_the_list_is_read_and_faults_are_not() {
    for signal in SIGNALS {
        assert_eq!(accepted(&format!("checkpoint_signal = {signal:?}")).checkpoint_signal.as_deref(), Some(signal));
    }
    for signal in ["SIGKILL", "SIGSTOP", "SIGSEGV", "SIGCHLD", "SIGPIPE"] {
        assert!(refused(&format!("checkpoint_signal = {signal:?}")).starts_with("unknown signal"), "{signal}");
    }
}

#[test]
fn broken_syntax_is_one_mistake() {
    assert_eq!(parse("name = ").1.len(), 1);
    assert_eq!(parse("= 1").1.len(), 1);
}
