//! The command line, read at the start and again at each restore.

use std::{ffi::OsString, net::SocketAddr};

use clap::{CommandFactory, Parser, parser::ValueSource};

/// The reference service of crac: a small shop that starts heavy.
#[derive(Debug, Clone, Parser)]
#[command(version, after_help = ROUTES)]
pub(crate) struct Args {
    /// Where to listen; given again at a restore, the restored life listens there.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,

    /// The database: an SQLite file, created if missing, or a PostgreSQL server; with TLS (`?sslmode=require`) if this program was
    /// built with the feature `tls`.
    #[arg(long, value_name = "URL", default_value = "sqlite:web-server.db")]
    pub(crate) database: String,

    /// How much state to warm up, in MiB.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) warm_mib: usize,

    /// The service's name for `crac`.
    #[arg(long, default_value = "web-server")]
    pub(crate) name: String,
}

/// What can be asked for.
const ROUTES: &str = "\
Answers to:
  GET /           200 at once
  GET /counter    how often this was asked, in all lives
  GET /orders     all orders; POST adds one
  GET /warm       reads every page of the warmed-up state: how many entries there are, and the sum of their digests
  GET /warm/N     entry N of it, 256 in a MiB
  GET /slow?ms=N  an answer in two halves, so many milliseconds apart
  GET /random     numbers from generators that are private to a thread
  GET /instance   which life this is
  GET /ticks      what an interval of 50 ms has seen of the clock";

/// Where a life that was restored with `args`, program name first, shall listen, if they say so.
///
/// The same arguments are understood as at the start, so that one line in a unit file serves for both; the others of them were
/// decided by the life that was saved.
pub(crate) fn listen_again(args: &[OsString]) -> Result<Option<SocketAddr>, clap::Error> {
    // `IMAGE -- ARGS` and `IMAGE ARGS` mean the same.
    let args = args.iter().enumerate().filter(|(at, arg)| !(*at == 1 && *arg == "--")).map(|(_, arg)| arg);
    let matches = Args::command().try_get_matches_from(args)?;
    let given = matches.value_source("listen") == Some(ValueSource::CommandLine);
    Ok(given.then(|| matches.get_one("listen").copied()).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(args: &[&str]) -> Option<SocketAddr> {
        listen_again(&args.iter().map(OsString::from).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
        let args = Args::parse_from(["web-server"]);
        assert_eq!((args.listen.port(), args.warm_mib, args.name.as_str()), (8080, 64, "web-server"));
    }

    #[test]
    fn the_help_names_every_route() {
        let help = Args::command().render_help().to_string();
        let routes = include_str!("routes.rs").split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let routes: Vec<String> = routes.map(|route| route.replace("{n}", "N")).collect();
        assert!(routes.len() > 5);
        for route in routes {
            assert!(help.contains(&format!("GET {route}")), "{route} is missing in\n{help}");
        }
    }

    #[test]
    fn a_restore_may_name_another_address() {
        let address = "127.0.0.1:9000".parse().ok();
        assert_eq!(listen(&["./web.crac", "--listen", "127.0.0.1:9000"]), address);
        assert_eq!(listen(&["./web.crac", "--", "--listen=127.0.0.1:9000"]), address);
    }

    #[test]
    fn an_address_that_is_none_is_an_error() {
        assert!(listen_again(&["./web.crac".into(), "--listen".into(), "nowhere".into()]).is_err());
    }

    #[test]
    fn other_arguments_of_a_restore_are_passed_over() {
        assert_eq!(listen(&[]), None);
        assert_eq!(listen(&["./web.crac"]), None);
        let args = ["./web.crac", "--warm-mib", "8", "--listen", "127.0.0.1:9000", "--name", "other"];
        assert_eq!(listen(&args), "127.0.0.1:9000".parse().ok());
    }
}
