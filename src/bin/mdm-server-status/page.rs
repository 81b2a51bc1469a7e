//! The page that people read.

use std::collections::HashSet;
use std::fmt::{self, Write};

use mdm::client::Status;
use mdm::wire::server::{LatencyInfo, ModelCounts, PortInfo, WorkerInfo};

use crate::table::{percent, rate, row, table, time, uptime};

/// What a page has below its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The last seconds.
    Recent,
    /// The queue, and what was counted since the start.
    Totals,
    Models,
    Workers,
    /// What models take and give.
    Signatures,
    Settings,
}

pub fn page(status: &Status, address: &str, parts: &[Part]) -> String {
    let mut page = format!(
        "mdm {} at {address}, up {}\n",
        status.version,
        uptime(status.uptime_s)
    );
    for part in parts {
        // Writing to a string cannot fail.
        let _ = write_part(&mut page, status, *part);
    }
    page
}

fn write_part(page: &mut String, status: &Status, part: Part) -> fmt::Result {
    match part {
        Part::Recent => recent(page, status),
        Part::Totals => totals(page, status),
        Part::Models => models(page, status),
        Part::Workers => workers(page, status),
        Part::Signatures => signatures(page, status),
        Part::Settings => settings(page, status),
    }
}

/// The window's name: how much of it there is, where that is less.
fn window(seconds: u32, over_ms: u64) -> String {
    match over_ms + 500 < u64::from(seconds) * 1000 {
        true => format!("{} s of {seconds} s", over_ms.div_ceil(1000)),
        false => format!("{seconds} s"),
    }
}

fn recent(page: &mut String, status: &Status) -> fmt::Result {
    let recent = &status.recent;
    if recent.is_empty() {
        return Ok(()); // an older server
    }
    let line = |name: &str, cells: Vec<String>| [vec![name.to_owned()], cells].concat();
    let names = recent.iter().map(|of| window(of.seconds, of.over_ms));
    let cells = |of: fn(&mdm::wire::server::RecentInfo) -> String| recent.iter().map(of).collect();
    let rows = [
        line("in the last", names.collect()),
        line("requests/s", cells(|of| rate(of.requests_per_s))),
        line("rows/s", cells(|of| rate(of.rows_per_s))),
        line("errors/s", cells(|of| rate(of.errors_per_s))),
        line("chunks/s", cells(|of| rate(of.chunks_per_s))),
        line("workers busy", cells(|of| percent(of.busy))),
        line("latency p50", cells(|of| time(of.latency_us.p50))),
        line("        p90", cells(|of| time(of.latency_us.p90))),
        line("        p99", cells(|of| time(of.latency_us.p99))),
    ];
    writeln!(page)?;
    table(page, &rows)
}

fn totals(page: &mut String, status: &Status) -> fmt::Result {
    let (queue, totals) = (status.queue, &status.totals);
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
    if totals.failed_rows > 0 {
        let (failed, rows) = (totals.failed_rows, totals.rows);
        writeln!(page, "         {failed} of {rows} rows failed")?;
    }
    for (code, count) in totals.errors.iter().filter(|(_, count)| **count > 0) {
        writeln!(page, "         {count} {code}")?;
    }
    let LatencyInfo { p50, p90, p99 } = status.latency_us;
    let ms = |us: u64| us as f64 / 1000.0;
    writeln!(
        page,
        "latency  p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, since the start",
        ms(p50),
        ms(p90),
        ms(p99)
    )
}

fn models(page: &mut String, status: &Status) -> fmt::Result {
    let windows = status
        .recent
        .iter()
        .map(|of| format!("rows/s {} s", of.seconds));
    let windows: Vec<String> = windows.collect();
    let heading = row(["name", "version", "kind", "requests", "rows", "errors"]);
    let heading = [heading, windows.clone(), row(["p50", "p99"])].concat();
    let counts = |of: Option<&ModelCounts>| match of {
        Some(of) => {
            let errors: u64 = of.errors.values().sum();
            let totals = [of.requests, of.rows, errors].map(|count| count.to_string());
            let rates = of.recent.iter().map(|of| rate(of.rows_per_s));
            let latency = [of.latency_us.p50, of.latency_us.p99].map(time);
            totals.into_iter().chain(rates).chain(latency).collect()
        }
        None => vec![String::new(); 3 + windows.len() + 2],
    };
    let by_name = |name: &str| status.by_model.iter().find(|of| of.name == name);
    let mut rows = vec![heading];
    let mut seen = HashSet::new();
    for model in &status.models {
        // What was counted is of all versions together: it stands beside the first.
        let own = by_name(&model.name).filter(|_| seen.insert(&*model.name));
        let cells = [&model.name, &model.version, &model.kind].map(String::clone);
        rows.push([cells.to_vec(), counts(own)].concat());
    }
    for of in status
        .by_model
        .iter()
        .filter(|of| !seen.contains(&*of.name))
    {
        let cells = row([&of.name, "", "not served"]);
        rows.push([cells, counts(Some(of))].concat());
    }
    writeln!(page, "\nmodels")?;
    table(page, &rows)?;
    for of in status.by_model.iter().filter(|of| of.failed_rows > 0) {
        let (name, failed, rows) = (&of.name, of.failed_rows, of.rows);
        writeln!(page, "  {name}: {failed} of {rows} rows failed")?;
    }
    for broken in &status.broken {
        let message = broken.message.replace('\n', " ");
        let on = match seen.contains(&*broken.name) {
            true => " (what was loaded before it is served on)",
            false => "",
        };
        let (name, code) = (&broken.name, &broken.code);
        writeln!(page, "  ! {name} does not open{on}: {code}: {message}")?;
    }
    Ok(())
}

fn workers(page: &mut String, status: &Status) -> fmt::Result {
    // An older server tells of the time since its start alone.
    let windows = status
        .workers
        .iter()
        .map(|of| &of.recent)
        .max_by_key(|of| of.len());
    let windows = windows.filter(|windows| !windows.is_empty());
    let busy = match windows {
        Some(windows) => {
            let windows = windows.iter().map(|of| format!("busy {} s", of.seconds));
            windows.chain(["rows/s 10 s".to_owned()]).collect()
        }
        None => row(["busy"]),
    };
    let heading = row(["id", "kind", "device", "state"]);
    let heading = [heading, busy, row(["chunks", "rows", "model"])].concat();
    let line = |worker: &WorkerInfo| {
        let kind = if worker.extra { "extra" } else { "main" };
        let mut cells = vec![worker.id.to_string(), kind.to_owned()];
        cells.extend([worker.device.clone(), worker.state.clone()]);
        match windows {
            Some(_) => {
                cells.extend(worker.recent.iter().map(|of| percent(of.busy)));
                let of_ten = worker.recent.iter().find(|of| of.seconds == 10);
                cells.push(of_ten.map_or_else(String::new, |of| rate(of.rows_per_s)));
            }
            None => cells.push(percent(worker.busy)),
        }
        cells.extend([worker.chunks, worker.rows].map(|count| count.to_string()));
        cells.push(worker.model.clone().unwrap_or_default());
        cells
    };
    let mut rows = vec![heading];
    rows.extend(status.workers.iter().map(line));
    writeln!(page, "\nworkers")?;
    table(page, &rows)
}

fn signatures(page: &mut String, status: &Status) -> fmt::Result {
    writeln!(page, "\ninputs and outputs")?;
    let mut rows = vec![row(["name", "version", "inputs", "outputs"])];
    for model in &status.models {
        let cells = [&model.name, &model.version].map(String::clone).to_vec();
        let both = [ports(&model.inputs), ports(&model.outputs)];
        rows.push([cells, both.to_vec()].concat());
    }
    table(page, &rows)
}

/// `ids INT64 [N,64], mask BOOL [N]`
fn ports(ports: &[PortInfo]) -> String {
    let shown: Vec<String> = ports.iter().map(PortInfo::to_string).collect();
    shown.join(", ")
}

fn settings(page: &mut String, status: &Status) -> fmt::Result {
    writeln!(page, "\nsettings")?;
    let settings = status.settings.iter();
    let rows: Vec<_> = settings.map(|(k, v)| vec![k.clone(), v.clone()]).collect();
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    for row in rows {
        let line = format!("  {:width$}  {}", row[0], row[1]);
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm::wire::server::{BrokenModel, ModelInfo, ModelRecent, RecentInfo, WorkerRecent};

    fn status() -> Status {
        let windows = [1, 10, 60];
        let model = |name: &str, version: &str| ModelInfo {
            name: name.to_owned(),
            version: version.to_owned(),
            kind: "batched".to_owned(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let counts = |name: &str, rows| ModelCounts {
            name: name.to_owned(),
            requests: 3,
            rows,
            failed_rows: rows / 10,
            errors: [("INTERNAL".to_owned(), 1)].into(),
            latency_us: LatencyInfo {
                p50: 500,
                p90: 600,
                p99: 1500,
            },
            recent: windows
                .map(|seconds| ModelRecent {
                    seconds,
                    rows_per_s: f64::from(seconds) * 1000.0,
                    ..ModelRecent::default()
                })
                .to_vec(),
        };
        Status {
            uptime_s: 12,
            models: vec![model("m", "1"), model("m", "2")],
            by_model: vec![counts("m", 77), counts("gone", 5)],
            broken: vec![BrokenModel {
                name: "bad".to_owned(),
                code: "FAILED_PRECONDITION".to_owned(),
                message: "no\nmodel".to_owned(),
            }],
            workers: vec![WorkerInfo {
                id: 2,
                extra: true,
                recent: windows
                    .map(|seconds| WorkerRecent {
                        seconds,
                        busy: 0.25,
                        ..WorkerRecent::default()
                    })
                    .to_vec(),
                ..WorkerInfo::default()
            }],
            recent: windows
                .map(|seconds| RecentInfo {
                    seconds,
                    over_ms: 12_000.min(u64::from(seconds) * 1000),
                    rows_per_s: 12_345.0,
                    ..RecentInfo::default()
                })
                .to_vec(),
            settings: [("host".to_owned(), "h".to_owned())].into(),
            ..Status::default()
        }
    }

    fn line<'a>(page: &'a str, begin: &str) -> Vec<&'a str> {
        let found = page
            .lines()
            .find(|line| line.trim_start().starts_with(begin));
        let found = found.unwrap_or_else(|| panic!("{begin:?} begins no line of: {page}"));
        found
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect()
    }

    #[test]
    fn a_page_has_rates_models_that_do_not_open_and_extra_workers() {
        let parts = [Part::Recent, Part::Totals, Part::Models, Part::Workers];
        let page = page(&status(), "a", &parts);
        assert_eq!(
            line(&page, "in the last"),
            ["in the last", "1 s", "10 s", "12 s of 60 s"]
        );
        assert_eq!(line(&page, "rows/s")[1], "12.3 k");
        let model = line(&page, "m ");
        assert_eq!(model[..6], ["m", "1", "batched", "3", "77", "1"], "{page}");
        assert_eq!(
            model[6..],
            ["1.0 k", "10.0 k", "60.0 k", "500 us", "1.5 ms"],
            "{page}"
        );
        assert_eq!(line(&page, "gone")[1], "not served");
        assert!(page.contains("  m: 7 of 77 rows failed\n"), "{page}");
        assert_eq!(page.matches("rows failed").count(), 1, "{page}");
        let broken = "! bad does not open: FAILED_PRECONDITION: no model";
        assert!(page.contains(broken), "{page}");
        assert_eq!(line(&page, "2  extra")[..2], ["2", "extra"]);
        assert!(!page.contains("host"), "settings: {page}");
    }

    #[test]
    fn an_older_server_has_a_page_too() {
        let old = Status {
            workers: vec![WorkerInfo {
                busy: 0.5,
                ..WorkerInfo::default()
            }],
            ..Status::default()
        };
        let all = [
            Part::Recent,
            Part::Totals,
            Part::Models,
            Part::Workers,
            Part::Settings,
        ];
        let page = page(&old, "a", &all);
        assert!(
            page.contains("50 %") && !page.contains("in the last"),
            "{page}"
        );
    }
}
