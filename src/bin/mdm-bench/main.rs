//! `mdm-bench`: measures how fast a server answers.
//!
//! ```text
//! args ─▶ plan: cases ──────▶ for each: generator ─▶ report ─▶ table, csv, plot
//!         inputs: requests ─▶ doors ◀──────┘
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[path = "../shared/mod.rs"]
mod shared;

mod args;
#[path = "../shared/array.rs"]
mod array;
#[path = "../shared/call.rs"]
mod call;
mod csv;
mod generator;
mod inputs;
mod open;
#[path = "../shared/pieces.rs"]
mod pieces;
mod plan;
mod plot;
#[path = "../shared/read.rs"]
mod read;
#[path = "../shared/rows.rs"]
mod rows;
#[cfg(test)]
mod simulation;
mod table;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use args::Args;
use csv::Csv;
use generator::Case;
use generator::doors::Door;
use generator::drive::Drive;
use generator::load::Window;
use generator::report::Report;
use inputs::Source;
use plan::Numbers;
use read::Contents;

const NAME: &str = "mdm-bench";

/// A request in flight has a thread and a connection here, and a session or a connection at the server, unless it shares
/// them with others.
const MAX_CONCURRENCY: u64 = 1024;
/// Most requests due a second: beyond that a thread of this program is what is measured.
const MAX_RATE: u64 = 1_000_000;

/// Requests in flight of an open loop, unless somebody says otherwise: enough that none waits here before a server waits.
const OPEN_CONCURRENCY: u64 = 64;

fn main() -> ExitCode {
    let args: Args = shared::parse(NAME);
    shared::run(NAME, || bench(&args))
}

fn bench(args: &Args) -> Result<ExitCode> {
    let cases = cases(args)?;
    if let Some(path) = &args.plot {
        plot::check(path)?;
    }
    let mut door = open::door(args)?;
    let source = source(args, &*door)?;
    let mut csv = args.csv.as_deref().map(Csv::create).transpose()?;
    let mut out = stdout().lock();
    writeln!(
        out,
        "{}\n{}",
        heading(args),
        table::head(args.rate.is_some())
    )?;
    let bar = bar(&cases, args.window());
    let mut reports: Vec<Report> = Vec::new();
    let mut prepared: Option<(usize, usize)> = None;
    for &case in &cases {
        let requests = match prepared {
            Some((rows, requests)) if rows == case.rows => requests,
            _ => prepare(args, &mut *door, &source, case.rows)?,
        };
        prepared = Some((case.rows, requests));
        let connections = args
            .in_flight(case.concurrency)
            .map(|each| door.connect(each));
        let drive = Drive {
            case,
            window: args.window(),
            connections: connections.collect::<Result<_>>()?,
            requests,
        };
        let before = bar.position();
        let times = door.server_times();
        let mut report = drive.run(|passed| bar.set_position(before + millis(passed)))?;
        if let (Some(before), Some(after)) = (times, door.server_times()) {
            report.share_by(before, after);
        }
        bar.suspend(|| writeln!(out, "{}", table::line(&report)))?;
        if let Some(csv) = &mut csv {
            csv.add(&report)?;
        }
        let none_succeeded = report.failed > 0 && report.failed == report.requests;
        reports.push(report);
        if none_succeeded {
            // Neither would those of the cases that follow.
            break;
        }
    }
    bar.finish_and_clear();
    let cores = available_parallelism().map_or(1, usize::from);
    write!(out, "{}", table::notes(&reports, cores))?;
    if let Some(path) = &args.plot {
        plot::draw(path, &reports).with_context(|| path.display().to_string())?;
    }
    let last = reports.last();
    if last.is_some_and(|last| last.failed > 0 && last.failed == last.requests) {
        bail!("no request succeeded");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be measured.
fn cases(args: &Args) -> Result<Vec<Case>> {
    let usual = |number| Numbers(vec![number]);
    let rows = args.rows_per_request.clone().unwrap_or(usual(1));
    let in_flight = match (&args.concurrency, &args.rate) {
        (Some(typed), _) => typed.clone(),
        (None, Some(_)) => usual(OPEN_CONCURRENCY),
        (None, None) => usual(1),
    };
    for &number in &in_flight.0 {
        ensure!(
            number <= MAX_CONCURRENCY,
            "--concurrency {number}: at most {MAX_CONCURRENCY} requests are in flight; run several of these for more"
        );
    }
    for &rate in args.rate.iter().flat_map(|rates| &rates.0) {
        ensure!(
            rate <= MAX_RATE,
            "--rate {rate}: at most {MAX_RATE} requests a second; run several of these for more"
        );
    }
    plan::cases(&rows, &in_flight, args.rate.as_ref()).map_err(anyhow::Error::msg)
}

/// The rows: the file is read before the server is asked, so that a wrong one is told at once.
fn source(args: &Args, door: &dyn Door) -> Result<Source> {
    let contents = args.input.as_deref().map(read::read).transpose()?;
    let model = door.describe()?;
    let given = match contents {
        None => return Source::made_up(&model, args.rows),
        Some(Contents::Inputs(inputs)) => inputs,
        Some(Contents::Lines(lines)) => lines.into_inputs(&model, &mut rows::Shapes::default())?,
    };
    Ok(Source::given(&model, given))
}

/// Makes the requests of so many rows ready, and sends one of them, so that what is wrong with all of them is told before
/// anything is measured. Gives how many there are.
fn prepare(args: &Args, door: &mut dyn Door, source: &Source, rows: usize) -> Result<usize> {
    let typed = args.rows_per_request.as_ref().map(|_| rows);
    let requests = source.requests(typed)?;
    let count = requests.len();
    door.prepare(requests)?;
    let tried = door.try_one();
    tried.with_context(|| format!("a first request, of {rows} rows"))?;
    Ok(count)
}

/// What is measured, in a line.
fn heading(args: &Args) -> String {
    let window = args.window();
    let kind = match args.rate {
        Some(_) => "open loop",
        None => "closed loop",
    };
    let extent = match window.requests {
        Some(requests) => format!("{requests} requests"),
        None => seconds(window.length),
    };
    format!(
        "{kind}; {extent} each, after {} that do not count",
        seconds(window.start)
    )
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A bar on a terminal, nothing elsewhere. It runs with the time; how long a number of requests takes nobody knows.
fn bar(cases: &[Case], window: Window) -> ProgressBar {
    if !stderr().is_terminal() || window.requests.is_some() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(millis(window.start + window.length) * cases.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "input" => ("my_rows.npy", None),
            "rows" => ("7", Some("0")),
            "rows-per-request" => ("1,16", Some("1:2")),
            "concurrency" => ("1:64:x2", Some("none")),
            "rate" => ("100", Some("0")),
            "duration" => ("7", Some("0")),
            "requests" => ("70", Some("0")),
            "warm-up" => ("0", Some("-1")),
            "csv" => ("my_table.csv", None),
            "plot" => ("my_table.svg", None),
            "door" => ("http", None),
            "url" => ("http://a_b:1", None),
            "connections" => ("3", Some("0")),
            "json" => ("true", Some("perhaps")),
            "timeout-ms" => ("70", Some("0")),
            other => call::sample(other),
        };
        let shown = |args: &Args| format!("{args:?}");
        shared::every_flag::reads(&[NAME], sample, shown);
    }

    #[test]
    fn more_requests_in_flight_than_threads_are_refused() {
        let e = cases(&args::typed(&["--concurrency", "1,2000"])).unwrap_err();
        assert!(e.to_string().contains("--concurrency 2000"), "{e}");
        let open = cases(&args::typed(&["--rate", "10"])).unwrap();
        assert_eq!(
            (open.len(), open[0].concurrency, open[0].rate),
            (1, 64, Some(10))
        );
    }
}
