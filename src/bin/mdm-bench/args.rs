//! The flags of `mdm-bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use mdm::config::{switch, whole};

use crate::call::CallFlags;
use crate::generator::load::Window;
use crate::plan::Numbers;

const AFTER_HELP: &str = "\
Lists and ranges: 1,16,1024 or 1:64:x2 (each twice the one before) or 10:50:+10, or several of these. Every combination of
--rows-per-request, --concurrency and --rate is measured, one after the other.
Columns: rows of a request; requests in flight; with --rate, requests due a second; results a second; latency from when a
request was due, and with --rate how late they were sent on average; which part of the time between sending and the answer
was waiting in the server, running the model (summed over a request's chunks) and all else; mdm-bench's own processor time
for each request; errors.
Exit codes: 0 done, 1 failed, or no request of a case succeeded, 2 wrong usage.
Every flag is read from the environment too (MDM_MODEL=digits); what is typed wins, and an empty variable is not set.
The older spelling works too: -model=digits -port=5555";

/// Measures how fast a server answers: throughput, latency, errors, and where the time goes.
#[derive(Parser, Debug)]
#[command(name = "mdm-bench", version, after_help = AFTER_HELP)]
#[command(mut_arg("port", |port| port.display_order(100)))] // behind --ip
pub struct Args {
    #[command(flatten)]
    pub asked: CallFlags,

    /// The protocol: zmq, which is MDM's own, or http or grpc, which are the Open Inference Protocol over REST and over gRPC,
    /// at --url or else at --ip and --port. By default what --url begins with, and without it zmq
    #[arg(long, value_enum, hide_possible_values = true)]
    pub door: Option<DoorKind>,

    /// A server that speaks the Open Inference Protocol, MDM or another: http://HOST:PORT or grpc://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// Over http, send tensors as JSON instead of binary data
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub json: bool,

    /// The rows that are sent: .npy, .npz, .jsonl or .txt, as mdm-infer reads them. Without it they are made up from what
    /// the model says that it takes
    #[arg(long, value_name = "FILE", conflicts_with = "rows")]
    pub input: Option<PathBuf>,

    /// How many different rows are made up; by default up to 1024
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<usize>(1..=100_000_000))]
    pub rows: Option<usize>,

    /// The rows of a request; by default 1
    #[arg(long, value_name = "LIST")]
    pub rows_per_request: Option<Numbers>,

    /// Requests in flight, each on a connection of its own; with --rate, at most so many. By default 1, and with --rate 64
    #[arg(long, value_name = "LIST")]
    pub concurrency: Option<Numbers>,

    /// Over grpc, spread the requests in flight over so many connections instead
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<usize>(1..=1024))]
    pub connections: Option<usize>,

    /// Requests due a second, at random times, instead of one as soon as another has ended
    #[arg(long, value_name = "LIST")]
    pub rate: Option<Numbers>,

    /// How long each case is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = whole::<u64>(1..=86_400))]
    duration: u64,

    /// Measure so many requests of each case instead, however long that takes
    #[arg(long, value_name = "N")]
    #[arg(value_parser = whole::<u64>(1..=1_000_000_000_000))]
    requests: Option<u64>,

    /// How long requests are sent before that, which do not count, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    #[arg(value_parser = whole::<u64>(0..=86_400))]
    warm_up: u64,

    /// The longest that a request may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    #[arg(value_parser = whole::<u64>(1..=31_536_000_000))]
    timeout_ms: u64,

    /// Write the table to a file too, for programs
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Draw throughput against latency, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoorKind {
    /// MDM's own, over ZeroMQ's
    Zmq,
    /// The Open Inference Protocol over REST
    Http,
    /// The same over gRPC
    Grpc,
}

impl Args {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How many of so many requests in flight each connection has.
    pub fn in_flight(&self, concurrency: usize) -> impl Iterator<Item = usize> + use<> {
        let connections = self.connections.unwrap_or(concurrency).min(concurrency);
        (0..connections).map(move |connection| {
            // The first ones have what is left over.
            concurrency / connections + usize::from(connection < concurrency % connections)
        })
    }

    pub fn window(&self) -> Window {
        Window {
            start: Duration::from_secs(self.warm_up),
            length: Duration::from_secs(self.duration),
            requests: self.requests,
        }
    }
}

/// What a test types.
#[cfg(test)]
pub fn typed(flags: &[&str]) -> Args {
    let words = [&["mdm-bench"], flags].concat();
    match mdm::config::parse_flags::<Args>(words.iter().map(Into::into), |_| None) {
        Ok(mdm::config::Asked::Run(args)) => args,
        other => panic!("{other:?}"),
    }
}
