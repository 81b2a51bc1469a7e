//! `mdm-server-status`: shows a server's state, as a page or as JSON.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod shared;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Parser};
use mdm::client::{Client, Status};
use mdm::config::switch;
use mdm::wire::server::PortInfo;

const NAME: &str = "mdm-server-status";

const AFTER_HELP: &str = "\
Exit codes: 0 answered, 1 no server there, 2 wrong usage.
Every flag is read from the environment too (MDM_PORT=5555); what is typed wins, and an empty variable is not set.
The older spelling works too: -port=5555 -ip=localhost";

/// Shows a server's version, settings, models, workers, queue, counts and latency.
#[derive(Parser, Debug)]
#[command(name = "mdm-server-status", version, after_help = AFTER_HELP)]
#[command(mut_arg("timeout", |timeout| timeout.display_order(100)))] // last
struct Args {
    #[command(flatten)]
    ask: shared::AskFlags,

    /// One line of JSON instead of a page
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    json: bool,

    /// Again and again, every so many seconds (2 if not said), until it is interrupted
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
    show(&client.status()?, &address, args)?;
    while let Some(pause) = args.watch {
        std::thread::sleep(pause);
        match client.status() {
            Ok(status) => show(&status, &address, args)?,
            // The server may come back: the next question opens a new session.
            Err(e) => shared::complain(NAME, e.message()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status, address: &str, args: &Args) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(status)?)?;
        return Ok(());
    }
    if args.watch.is_some() && out.is_terminal() {
        // Cursor home, then clear: each page is drawn over the last.
        write!(out, "\x1b[H\x1b[2J")?;
    }
    out.write_all(page(status, address).as_bytes())?;
    Ok(out.flush()?)
}

fn page(status: &Status, address: &str) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, status, address);
    page
}

fn write_page(page: &mut String, status: &Status, address: &str) -> std::fmt::Result {
    let up = uptime(status.uptime_s);
    writeln!(page, "mdm {} at {address}, up {up}", status.version)?;

    writeln!(page, "\nsettings")?;
    let settings = status.settings.iter();
    table(
        page,
        settings.map(|(k, v)| vec![k.clone(), v.clone()]).collect(),
    )?;

    writeln!(page, "\nmodels")?;
    let mut rows = vec![row(["name", "version", "kind", "inputs", "outputs"])];
    for model in &status.models {
        rows.push(vec![
            model.name.clone(),
            model.version.clone(),
            model.kind.clone(),
            ports(&model.inputs),
            ports(&model.outputs),
        ]);
    }
    table(page, rows)?;

    writeln!(page, "\nworkers")?;
    let mut rows = vec![row([
        "id", "device", "state", "busy", "chunks", "rows", "model",
    ])];
    for worker in &status.workers {
        rows.push(vec![
            worker.id.to_string(),
            worker.device.clone(),
            worker.state.clone(),
            format!("{:.0} %", worker.busy * 100.0),
            worker.chunks.to_string(),
            worker.rows.to_string(),
            worker.model.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table(page, rows)?;

    let queue = status.queue;
    let totals = &status.totals;
    let latency = status.latency_us;
    let errors: u64 = totals.errors.values().sum();
    writeln!(
        page,
        "\nqueue    {} requests, {} rows, {:.1} MiB",
        queue.requests,
        queue.rows,
        queue.bytes as f64 / f64::from(1 << 20)
    )?;
    writeln!(
        page,
        "totals   {} requests, {} rows, {} chunks, {} coalesced, {} dropped, {errors} errors",
        totals.requests, totals.rows, totals.chunks, totals.coalesced, totals.dropped
    )?;
    for (code, count) in totals.errors.iter().filter(|(_, count)| **count > 0) {
        writeln!(page, "         {count} {code}")?;
    }
    let ms = |us: u64| us as f64 / 1000.0;
    writeln!(
        page,
        "latency  p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms",
        ms(latency.p50),
        ms(latency.p90),
        ms(latency.p99)
    )
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell.
fn table(page: &mut String, rows: Vec<Vec<String>>) -> std::fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width_of = |column: usize| {
        let cells = rows.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width_of).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("  {cell:width$}"))
            .collect();
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
}

/// `ids INT64 [N,64], mask BOOL [N]`
fn ports(ports: &[PortInfo]) -> String {
    let shown: Vec<String> = ports.iter().map(PortInfo::to_string).collect();
    shown.join(", ")
}

fn uptime(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {seconds} s"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "port" => ("7001", Some("0")),
            "ip" => ("10.0.0.1", None),
            "json" => ("true", Some("perhaps")),
            "watch" => ("0.5", Some("soon")),
            "timeout" => ("70", Some("-3")),
            other => panic!("no value for --{other}: add one"),
        };
        shared::every_flag::reads::<Args>(&[NAME], sample, |args| format!("{args:?}"));
    }
}
