//! `mdm-server-status`: shows a server's state, as a page, as one screen that is drawn again and again, or as JSON.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod json;
mod page;
mod screen;
#[path = "../shared/mod.rs"]
mod shared;
mod table;

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Parser};
use mdm::client::{Client, Status};
use mdm::config::switch;

use page::Part;
use screen::Screen;

const NAME: &str = "mdm-server-status";

const AFTER_HELP: &str = "\
Exit codes: 0 answered, 1 no server there, 2 wrong usage.
Every flag is read from the environment too (MDM_PORT=5555); what is typed wins, and an empty variable is not set.
The older spelling works too: -port=5555 -ip=localhost";

/// Shows what a server has done in the last 1, 10 and 60 seconds and since its start, its models, workers and queue.
#[derive(Parser, Debug)]
#[command(name = "mdm-server-status", version, after_help = AFTER_HELP)]
#[command(mut_arg("timeout", |timeout| timeout.display_order(100)))] // last
struct Args {
    #[command(flatten)]
    ask: shared::AskFlags,

    /// One line of JSON instead of a page: all that there is, the settings too
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    json: bool,

    /// The settings in force too
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    settings: bool,

    /// Again and again, every so many seconds (2 if not said), until it is interrupted; on a terminal it is one screen
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0.05..=86400.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds, from 0.05 to 86400".to_owned()),
    }
}

fn main() -> ExitCode {
    let args: Args = shared::parse(NAME);
    shared::run(NAME, || status(&args))
}

fn status(args: &Args) -> anyhow::Result<ExitCode> {
    let address = args.ask.address();
    // Only `port` is needed: a server whose results cannot be reached can still be asked.
    let client = Client::builder()
        .connect_timeout(args.ask.timeout())
        .connect_later(&address)?;
    let status = client.status()?;
    let Some(pause) = args.watch else {
        show(&status, &address, args)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut screen = (!args.json).then(Screen::of_stdout).flatten();
    let mut answer = Ok(status);
    loop {
        match (&answer, &mut screen) {
            (Ok(status), Some(screen)) => {
                let lines = Some(screen::size().0);
                screen.draw(&page(status, &address, args, lines))?;
            }
            (Ok(status), None) => show(status, &address, args)?,
            // The server may come back: the next question opens a new session.
            (Err(error), Some(screen)) => screen.complain(error)?,
            (Err(error), None) => shared::complain(NAME, error.message()),
        }
        std::thread::sleep(pause);
        answer = client.status();
    }
}

fn show(status: &Status, address: &str, args: &Args) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", json::document(status)?)?;
    } else {
        out.write_all(page(status, address, args, None).as_bytes())?;
    }
    Ok(out.flush()?)
}

fn page(status: &Status, address: &str, args: &Args, lines: Option<usize>) -> String {
    let mut parts = vec![Part::Models, Part::Workers, Part::Recent, Part::Totals];
    if args.watch.is_none() {
        parts.push(Part::Signatures); // they do not change, and would fill the screen
    }
    if args.settings {
        parts.push(Part::Settings);
    }
    page::page(status, address, &parts, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "port" => ("7001", Some("0")),
            "ip" => ("10.0.0.1", None),
            "json" | "settings" => ("true", Some("perhaps")),
            "watch" => ("0.5", Some("soon")),
            "timeout" => ("70", Some("-3")),
            other => panic!("no value for --{other}: add one"),
        };
        shared::every_flag::reads::<Args>(&[NAME], sample, |args| format!("{args:?}"));
    }
}
