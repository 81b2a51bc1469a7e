//! What the commands that talk to a server have in common: the flags that say which one, their spelling, and errors.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use std::time::Duration;

use clap::{Args, Parser};
use mdm::config::{Asked, check_variables, parse_flags, whole};

/// The command failed.
pub const FAILED: u8 = 1;
/// What was typed, or a variable, is wrong.
const WRONG_USAGE: i32 = 2;

/// Reads the command line in either spelling, and the environment; help, or a wrong flag (exit code 2), ends the command
/// here.
pub fn parse<T: Parser>(name: &str) -> T {
    let read = parse_flags(std::env::args_os(), |name| std::env::var_os(name));
    let checked = read.and_then(|asked| match asked {
        Asked::Run(_) => Ok((asked, check_variables(std::env::vars_os())?)),
        // Help is given whatever the environment is.
        Asked::Print(_) => Ok((asked, None)),
    });
    match checked {
        Ok((Asked::Run(typed), warning)) => {
            if let Some(warning) = warning {
                complain(name, format_args!("warning: {warning}"));
            }
            typed
        }
        Ok((Asked::Print(text), _)) => {
            // A closed standard output is not an error, as in `mdm-infer --help | head -1`.
            let _ = io::stdout().write_all(text.as_bytes());
            std::process::exit(0);
        }
        Err(error) => {
            complain(name, format_args!("error: {}", error.message()));
            std::process::exit(WRONG_USAGE);
        }
    }
}

/// The flags that say which server a command talks to.
#[derive(Args, Debug)]
pub struct ServerFlags {
    /// The port where the server takes requests
    #[arg(long, visible_aliases = ["port-in", "port-data"], default_value_t = 5555)]
    #[arg(value_parser = whole::<u16>(1..=65535))]
    port: u16,

    /// The host that the server runs on, a name or a number
    #[arg(long, default_value = "localhost")]
    ip: String,
}

impl ServerFlags {
    /// `tcp://IP:PORT`, with the brackets that IPv6 needs.
    pub fn address(&self) -> String {
        let ServerFlags { port, ip } = self;
        if ip.contains(':') && !ip.starts_with('[') {
            format!("tcp://[{ip}]:{port}")
        } else {
            format!("tcp://{ip}:{port}")
        }
    }
}

/// The flags of a command that asks a server: which one, and how long to wait. Commands change the default and the help
/// of `timeout` by `mut_arg`.
#[derive(Args, Debug)]
#[allow(dead_code)] // mdm-infer has --timeout-ms instead, which goes with its requests
pub struct AskFlags {
    #[command(flatten)]
    server: ServerFlags,

    /// The longest to wait for an answer, in milliseconds, at least 1
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    #[arg(value_parser = whole::<u64>(1..=86_400_000))]
    timeout: u64,
}

#[allow(dead_code)] // as above
impl AskFlags {
    pub fn address(&self) -> String {
        self.server.address()
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }
}

/// Runs a command to its exit code. What went wrong is said on standard error.
pub fn run(name: &str, command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match command() {
        Ok(code) => code,
        // A closed standard output is not an error, as in `mdm-server-status | head -1`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(name, format_args!("error: {}", in_words(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// A line on standard error; nothing is to be done if that is closed.
pub fn complain(name: &str, line: impl Display) {
    let _ = writeln!(io::stderr(), "{name}: {line}");
}

/// The causes of an error, outermost first, in one line; a list that an error has, such as of places, stays one a line.
/// Our own errors' codes are left out: they are for programs.
fn in_words(error: &anyhow::Error) -> String {
    let said = error
        .chain()
        .map(|cause| match cause.downcast_ref::<mdm::Error>() {
            Some(error) => error.message().to_owned(),
            None => cause.to_string(),
        });
    let said = said.collect::<Vec<_>>().join(": ");
    let lines = said.split("\n  ").map(|line| line.replace('\n', " "));
    lines.collect::<Vec<_>>().join("\n  ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
pub mod every_flag;
