//! `mdm-infer`: runs a file of rows through a model.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[path = "../shared/mod.rs"]
mod shared;

#[path = "../shared/array.rs"]
mod array;
#[path = "../shared/call.rs"]
mod call;
mod cast;
mod failure;
mod most;
mod numbering;
#[path = "../shared/pieces.rs"]
mod pieces;
mod progress;
#[path = "../shared/read.rs"]
mod read;
#[path = "../shared/rows.rs"]
mod rows;
mod run;
mod write;

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Parser};
use mdm::client::{CONNECT_TIMEOUT, Client};
use mdm::config::{switch, whole};
use mdm::message::OnBadRow;

use call::CallFlags;
use cast::Cast;
use progress::{Times, timed};
use read::{Format, Source};
use run::{Deadline, Job};
use write::{Results, Target};

const NAME: &str = "mdm-infer";
/// All was done, but for rows that failed.
const ROWS_FAILED: u8 = 4;

const AFTER_HELP: &str = "\
Input:  .npy   one input, whatever the model calls it
        .npz   inputs by name
        .jsonl one row a line: an object with the inputs' names as keys, or, for one input, its value alone: a number,
               true or false, a string, or nested lists of them, as the input's datatype and dimensions say. A model that
               takes JSON gets each line as it is. For a model without rows, one line holds its inputs whole
        .txt   one string a line
Output: .npy   one output
        .npz   all outputs by name
        .jsonl one object a row, with the outputs' names as keys (one object in all, for a model without rows); NaN and
               infinities are null
A large file is read and written as it goes, but for .npz, and for text in .npy.
Errors begin with their code, and name the file's row (from 0) or line (from 1).
Exit codes: 0 done, 1 failed, 2 wrong usage, 4 done but for rows that failed (--on-bad-row report).
Every flag is read from the environment too (MDM_MODEL=digits); what is typed wins, and an empty variable is not set.
The older spelling works too: -model=digits -input=images.npy -port=5555";

/// Runs a file of rows through a model, and writes or shows the results.
#[derive(Parser, Debug)]
#[command(name = "mdm-infer", version, after_help = AFTER_HELP)]
#[command(mut_arg("port", |port| port.display_order(100)))] // behind --ip
struct Args {
    /// The rows: .npy, .npz, .jsonl or .txt; - is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// What the input is, whatever its name: npy, npz, jsonl or txt
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    input_format: Option<Format>,

    /// Where the results go: .npy, .npz or .jsonl; - is standard output. Without it, the first rows are shown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// What the output is, whatever its name: npy, npz or jsonl
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    output_format: Option<Format>,

    /// Converts numbers to the datatype that the model takes, such as NumPy's float64 to FP32
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    cast: bool,

    /// What becomes of rows that fail: fail ends the work; report writes zeros, empty strings or nulls in their place, lists
    /// them on standard error and ends with exit code 4. Only for models whose rows are independent
    #[arg(long, value_name = "CHOICE", default_value = "fail", value_parser = on_bad_row)]
    #[arg(hide_default_value = true)]
    on_bad_row: OnBadRow,

    /// The longest that all of it may take, in milliseconds; 0 or not said: each request has the server's default
    #[arg(long, value_name = "MS")]
    #[arg(value_parser = whole::<u64>(0..=31_536_000_000))]
    timeout_ms: Option<u64>,

    #[command(flatten)]
    asked: CallFlags,
}

fn on_bad_row(text: &str) -> Result<OnBadRow, String> {
    OnBadRow::parse(text).ok_or_else(|| "expected fail or report".to_owned())
}

fn main() -> ExitCode {
    let args: Args = shared::parse(NAME);
    shared::run(NAME, || infer(&args).or_else(failed))
}

/// Says what went wrong, the code first.
fn failed(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    // Who reads the output has read enough, which is not an error.
    if failure::is_broken_pipe(&error) {
        return Ok(ExitCode::SUCCESS);
    }
    shared::complain(NAME, failure::line(&error));
    Ok(ExitCode::from(shared::FAILED))
}

fn infer(args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    // 0 leaves it to the server.
    let limit = args.timeout_ms.filter(|ms| *ms > 0);
    let deadline = Deadline::after(limit.map(Duration::from_millis));
    let call = match (args.asked.call()?, args.on_bad_row) {
        (call, OnBadRow::Report) => call.report_bad_rows(),
        (call, OnBadRow::Fail) => call,
    };
    let target = args.output.as_deref();
    let target = target.map(|path| Target::new(path, args.output_format, &args.input));
    let target = target.transpose()?;
    let mut times = Times::default();
    let source = timed(&mut times.reading, || {
        Source::open(&args.input, args.input_format)
    })?;
    let left = deadline.left()?.unwrap_or(CONNECT_TIMEOUT);
    let bound = deadline.bound(&call)?;
    let (client, model) = timed(&mut times.starting, || {
        let client = Client::builder()
            .connect_timeout(left.min(CONNECT_TIMEOUT))
            .connect(&args.asked.address())?;
        // Asked first: the model's inputs say what lines of JSON mean, and an output file that cannot hold its outputs is
        // an error before the work and not after it.
        let model = client.describe(bound)?;
        anyhow::Ok((client, model))
    })?;
    if let Some(target) = &target {
        target.check(&model)?;
    }
    // Standard output has the results alone.
    let mut told: Box<dyn Write> = match target.as_ref().is_some_and(Target::is_standard) {
        true => Box::new(stderr()),
        false => Box::new(stdout()),
    };
    let mut results = Results::begin(target, source.progress().rows)?;
    let job = Job {
        client: &client,
        call,
        deadline,
        model: &model,
        source,
        cast: match args.cast {
            true => Cast::Numbers,
            false => Cast::Never,
        },
        on_bad_row: args.on_bad_row,
        results: &mut results,
        times,
    };
    let mut done = job.run()?;
    let words = timed(&mut done.times.writing, || results.finish())?;
    writeln!(told, "{words}{}", done.totals(start.elapsed()))?;
    Ok(match done.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(ROWS_FAILED),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "input" => ("my_rows.npy", None),
            "output" => ("my_rows.npz", None),
            "input-format" => ("txt", Some("csv")),
            "output-format" => ("npz", Some("csv")),
            "cast" => ("true", Some("2")),
            "on-bad-row" => ("report", Some("skip")),
            "timeout-ms" => ("70", Some("abc")),
            other => call::sample(other),
        };
        let shown = |args: &Args| format!("{args:?}");
        shared::every_flag::reads(&[NAME, "--input", "x.npy"], sample, shown);
        let read = mdm::config::parse_flags::<Args>([NAME.into()], |name| {
            (name == "MDM_INPUT").then(|| "y.npy".into())
        });
        let Ok(mdm::config::Asked::Run(args)) = read else {
            panic!("{read:?}");
        };
        assert_eq!(args.input, PathBuf::from("y.npy"));
    }
}
