//! `mdm-infer`: runs a file of rows through a model.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[path = "../shared/mod.rs"]
mod shared;

#[path = "../shared/call.rs"]
mod call;
#[path = "../shared/read.rs"]
mod read;
#[path = "../shared/rows.rs"]
mod rows;
mod run;
mod write;

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mdm::client::{CONNECT_TIMEOUT, Client};
use mdm::config::whole;

use call::CallFlags;
use read::Contents;
use run::{Deadline, Job};
use write::Target;

const NAME: &str = "mdm-infer";

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
Exit codes: 0 done, 1 failed, 2 wrong usage.
Every flag is read from the environment too (MDM_MODEL=digits); what is typed wins, and an empty variable is not set.
The older spelling works too: -model=digits -input=images.npy -port=5555";

/// Runs a file of rows through a model, and writes or shows the results.
#[derive(Parser, Debug)]
#[command(name = "mdm-infer", version, after_help = AFTER_HELP)]
#[command(mut_arg("port", |port| port.display_order(100)))] // behind --ip
struct Args {
    /// The rows: .npy, .npz, .jsonl or .txt
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Where the results go: .npy, .npz or .jsonl. Without it, the first rows are shown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The longest that all of it may take, in milliseconds; 0 or not said: each request has the server's default
    #[arg(long, value_name = "MS")]
    #[arg(value_parser = whole::<u64>(0..=31_536_000_000))]
    timeout_ms: Option<u64>,

    #[command(flatten)]
    asked: CallFlags,
}

fn main() -> ExitCode {
    let args: Args = shared::parse(NAME);
    shared::run(NAME, || infer(&args))
}

fn infer(args: &Args) -> anyhow::Result<ExitCode> {
    // 0 leaves it to the server.
    let limit = args.timeout_ms.filter(|ms| *ms > 0);
    let deadline = Deadline::after(limit.map(Duration::from_millis));
    let call = args.asked.call()?;
    let target = args.output.as_deref().map(Target::new).transpose()?;
    let contents = read::read(&args.input)?;
    let left = deadline.left()?.unwrap_or(CONNECT_TIMEOUT);
    let client = Client::builder()
        .connect_timeout(left.min(CONNECT_TIMEOUT))
        .connect(&args.asked.address())?;
    // Asked first: the model's inputs say what lines of JSON mean, and an output file that cannot hold its outputs is an
    // error before the work and not after it.
    let model = client.describe(deadline.bound(&call)?)?;
    if let Some(target) = &target {
        target.check(&model)?;
    }
    let inputs = match contents {
        Contents::Inputs(inputs) => inputs,
        Contents::Lines(lines) => lines.into_inputs(&model)?,
    };
    let job = Job {
        client: &client,
        call,
        deadline,
        model: &model,
        inputs,
    };
    let done = job.run()?;
    let mut out = stdout().lock();
    match (&target, &args.output) {
        (Some(target), Some(path)) => {
            target.write(&done.answer)?;
            let outputs = done.answer.outputs.iter().map(write::describe);
            let outputs: Vec<String> = outputs.collect();
            writeln!(out, "wrote {}: {}", path.display(), outputs.join(", "))?;
        }
        _ => write!(out, "{}", write::summary(&done.answer.outputs)?)?,
    }
    writeln!(out, "{}", done.totals())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "input" => ("my_rows.npy", None),
            "output" => ("my_rows.npz", None),
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
