//! What the commands that talk to a server have in common: their spelling, and how they say what went wrong.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use mdm::config::{Asked, parse_flags};

/// The command failed.
pub const FAILED: u8 = 1;
/// What was typed, or a variable, is wrong.
const WRONG_USAGE: i32 = 2;

/// Reads the command line in either spelling, and the environment; help, or a wrong flag (exit code 2), ends the command
/// here.
pub fn parse<T: Parser>(name: &str) -> T {
    match parse_flags(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(Asked::Run(typed)) => typed,
        Ok(Asked::Print(text)) => {
            // Whoever closed standard output has seen enough, as in `mdm-infer --help | head -1`.
            let _ = io::stdout().write_all(text.as_bytes());
            std::process::exit(0);
        }
        Err(error) => {
            complain(name, format_args!("error: {}", error.message()));
            std::process::exit(WRONG_USAGE);
        }
    }
}

/// `tcp://IP:PORT`, with the brackets that IPv6 wants.
pub fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') && !ip.starts_with('[') {
        format!("tcp://[{ip}]:{port}")
    } else {
        format!("tcp://{ip}:{port}")
    }
}

/// Runs a command to its exit code. What went wrong is one line on standard error.
pub fn run(name: &str, command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match command() {
        Ok(code) => code,
        // Whoever reads standard output has seen enough, as in `mdm-server-status | head -1`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(name, format_args!("error: {}", one_line(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// A line on standard error; nothing is to be done if that is closed.
pub fn complain(name: &str, line: impl Display) {
    let _ = writeln!(io::stderr(), "{name}: {line}");
}

/// The causes of an error, outermost first. Our own errors' codes are for programs.
fn one_line(error: &anyhow::Error) -> String {
    let said = error
        .chain()
        .map(|cause| match cause.downcast_ref::<mdm::Error>() {
            Some(error) => error.message().to_owned(),
            None => cause.to_string(),
        });
    said.collect::<Vec<_>>().join(": ").replace('\n', " ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
pub mod every_flag;
