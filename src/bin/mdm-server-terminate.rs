//! `mdm-server-terminate`: stops a server, and waits until it confirms that it has stopped.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod shared;

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{ArgAction, Parser};
use mdm::client::{Client, StopMode, StopOutcome};
use mdm::config::switch;

const NAME: &str = "mdm-server-terminate";
const STILL_DRAINING: u8 = 3;
const TIMEOUT: &str =
    "The longest to wait for its word that it has stopped, in milliseconds, at least 1";

const AFTER_HELP: &str = "\
Exit codes: 0 stopped, 1 no server there or it refused, 2 wrong usage, 3 still answering requests when the time ended.
Every flag is read from the environment too (MDM_PORT=5555); what is typed wins, and an empty variable is not set.
The older spelling works too: -port=5555 -ip=localhost -timeout=5000";

/// Stops a server: it answers what it has accepted, refuses what comes, and says when it has stopped.
#[derive(Parser, Debug)]
#[command(name = "mdm-server-terminate", version, after_help = AFTER_HELP)]
// No default: nobody should stop a server by accident.
#[command(mut_arg("port", |port| port.required(true).default_value(Resettable::Reset)))]
#[command(mut_arg("timeout", |timeout| timeout.help(TIMEOUT)))]
struct Args {
    #[command(flatten)]
    ask: shared::AskFlags,

    /// End what waits with UNAVAILABLE instead of answering it
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    now: bool,
}

fn main() -> ExitCode {
    let args: Args = shared::parse(NAME);
    shared::run(NAME, || terminate(&args))
}

fn terminate(args: &Args) -> anyhow::Result<ExitCode> {
    let timeout = args.ask.timeout();
    let address = args.ask.address();
    // Only `port` is needed: a server whose results cannot be reached can still be stopped.
    let client = Client::builder()
        .connect_timeout(timeout)
        .connect_later(&address)?;
    let mode = if args.now {
        StopMode::Now
    } else {
        StopMode::Drain
    };
    let outcome = client.terminate(mode, timeout, |left| {
        if left > 0 {
            shared::complain(NAME, format_args!("draining: {} left", requests(left)));
        }
    })?;
    match outcome {
        StopOutcome::Stopped => writeln!(stdout(), "stopped {address}")?,
        StopOutcome::ConnectionEnded => writeln!(
            stdout(),
            "stopped {address} (it ended the connection without confirming that it has stopped)"
        )?,
        StopOutcome::StillDraining(left) => {
            shared::complain(
                NAME,
                format_args!(
                    "{address} is still draining after {} ms: {} left to answer; run this again to wait on, or with --now to end them",
                    timeout.as_millis(),
                    requests(left)
                ),
            );
            return Ok(ExitCode::from(STILL_DRAINING));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn requests(count: u64) -> String {
    match count {
        1 => "1 request".to_owned(),
        n => format!("{n} requests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "port" => ("7001", Some("70000")),
            "ip" => ("10.0.0.1", None),
            "timeout" => ("70", Some("0")),
            "now" => ("true", Some("perhaps")),
            other => panic!("no value for --{other}: add one"),
        };
        let shown = |args: &Args| format!("{args:?}");
        shared::every_flag::reads(&[NAME, "--port", "7000"], sample, shown);
        // The port, which has to be said, may be said by the environment.
        let start = [NAME, "--timeout", "9"];
        let read = mdm::config::parse_flags::<Args>(start.map(Into::into), |name| {
            (name == "MDM_PORT").then(|| "7001".into())
        });
        let Ok(mdm::config::Asked::Run(args)) = read else {
            panic!("{read:?}");
        };
        assert_eq!(args.ask.address(), "tcp://localhost:7001");
        assert_eq!(args.ask.timeout().as_millis(), 9);
        let read = mdm::config::parse_flags::<Args>(start.map(Into::into), |_| None);
        let e = read.expect_err("no port");
        assert!(e.message().contains("--port"), "{e}");
    }
}
