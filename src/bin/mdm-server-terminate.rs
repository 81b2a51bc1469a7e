//! `mdm-server-terminate`: stops a server, and waits for its own word that it has stopped.

mod shared;

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mdm::client::{Client, StopMode, StopOutcome};

const NAME: &str = "mdm-server-terminate";
const STILL_DRAINING: u8 = 3;

const AFTER_HELP: &str = "\
Exit codes: 0 stopped, 1 no server there or it refused, 2 wrong usage, 3 still answering requests when the time ended.
The older spelling works too: -port=5555 -ip=localhost -timeout=5000";

/// Stops a server: it answers what it has accepted, refuses what comes, and says when it has stopped.
#[derive(Parser)]
#[command(name = "mdm-server-terminate", version, after_help = AFTER_HELP)]
struct Args {
    /// The port where the server takes requests
    #[arg(long, visible_aliases = ["port-in", "port-data"], env = "MDM_PORT")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// The host that the server runs on, a name or a number
    #[arg(long, default_value = "localhost", env = "MDM_IP")]
    ip: String,

    /// The longest to wait for its word that it has stopped, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000, env = "MDM_TIMEOUT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: u64,

    /// End what waits with UNAVAILABLE instead of answering it
    #[arg(long)]
    now: bool,
}

fn main() -> ExitCode {
    let args: Args = shared::parse();
    shared::run(NAME, || terminate(&args))
}

fn terminate(args: &Args) -> anyhow::Result<ExitCode> {
    let timeout = Duration::from_millis(args.timeout);
    let address = shared::address(&args.ip, args.port);
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
            "stopped {address} (it ended the connection without a last word)"
        )?,
        StopOutcome::StillDraining(left) => {
            shared::complain(
                NAME,
                format_args!(
                    "{address} is still draining after {} ms: {} left to answer; run this again to wait on, or with --now to end them",
                    args.timeout,
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
