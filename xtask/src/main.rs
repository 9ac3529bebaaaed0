//! Development tasks. `cargo xtask` without a task lists them.

mod bench;
mod built;
mod ci;
mod container;
mod criu;
mod debian;
mod demo;
mod deny;
mod fapolicyd;
mod fuzz;
mod kernels;
mod linked;
mod measure;
mod msrv;
mod setup;
mod shell;
mod skips;
mod soak;
mod test;
mod tidy;
mod workspace;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <task>

  demo             build everything and show the whole way: start, warm, traffic, checkpoint, restore, clones
  tidy [--write]   check what a program can check: arrows between crates, the unsafe list, manifests, what the
                   documentation shows of the code, the changelog, paths, lengths; --write redraws
  test             set everything up and run all tests, the end-to-end ones as this user and as nobody
  kernels          boot Debian's oldest tested kernel and a newer one in QEMU, and take images through both
  container        save and restore a service in containers of Debian's Docker, fetched beside the build
  criu             find a CRIU that works here, or fetch one beside the build, and say where it is
  linked           the part of `test` that runs the programs of its suite in executables that are linked in other ways
  bench            measure all of the next, up to 20 minutes, and write docs/benchmarks.md
  bench PART...    measure only these and print them:
        restore    start to first answer, to the hundredth, to the last page read: each engine, cold start, floor; checkpoints
        continue   the pause of a service that goes on against a bare fork of it, and its requests meanwhile
        clones     200 lives of one image until all answer, and what each takes
        threads    restores with up to 800 threads
        postgres   restores that reconnect to PostgreSQL with TLS and SCRAM
        layer      what CheckpointLayer costs a request and a server
  bench --quick    try out whether all of it works, in less than a minute; the page goes to target/bench
  soak [ROUNDS]    the end-to-end load test for many rounds (default 1000)
  fuzz [SECONDS]   fuzz everything that reads what others wrote, each target for so long (default 60), one per processor
  deny             check licences, duplicate bans and sources of all dependencies with cargo-deny
  ci [STEP]...     what the continuous integration runs, or only the named steps of it";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> Result<()> {
    match args {
        ["demo"] => demo::run(),
        ["bench", arguments @ ..] => bench::run(arguments),
        ["criu"] => criu::tell(),
        ["kernels"] => kernels::run(),
        ["container"] => container::run(),
        ["soak"] => soak::run(1000),
        ["soak", rounds] => soak::run(rounds.parse()?),
        ["tidy"] => tidy::run(tidy::Drawn::Check),
        ["tidy", "--write"] => tidy::run(tidy::Drawn::Write),
        ["test"] => test::run(),
        ["linked"] => linked::tell(),
        ["fuzz"] => fuzz::run(60),
        ["fuzz", seconds] => fuzz::run(seconds.parse()?),
        ["deny"] => deny::run(),
        ["ci", steps @ ..] => ci::run(steps),
        [] => bail!("no task given\n{USAGE}"),
        other => bail!("unknown task `{}`\n{USAGE}", other.join(" ")),
    }
}
