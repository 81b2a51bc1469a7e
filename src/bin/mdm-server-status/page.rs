//! The page that people read.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use mdm::client::Status;
use mdm::wire::server::{LatencyInfo, ModelCounts, ModelInfo, PortInfo, WorkerInfo};

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

/// How many lines models and workers have, so that both are seen on a screen.
#[derive(Clone, Copy, Debug)]
struct Most {
    models: usize,
    broken: usize,
    workers: usize,
}

impl Most {
    /// All, unless they are to fit into so many lines with their headings.
    fn of(status: &Status, lines: Option<usize>) -> Most {
        let (models, broken, workers) = (
            status.models.len() + status.by_model.len(), // at most
            status.broken.len(),
            count_workers(status),
        );
        let Some(lines) = lines else {
            return Most {
                models,
                broken,
                workers,
            };
        };
        // The first line, two headings of three lines, three lines that say what is left out, and the screen's own.
        let room = lines.saturating_sub(11).max(3);
        let of_workers = workers.min((room / 3).max(1));
        let of_broken = broken.min(((room - of_workers) / 3).max(1));
        let of_models = models.min((room - of_workers).saturating_sub(of_broken).max(1));
        Most {
            models: of_models,
            broken: of_broken,
            // What the others leave.
            workers: workers.min(room.saturating_sub(of_models + of_broken).max(of_workers)),
        }
    }
}

/// `lines` is how many a screen has that shows the page's beginning.
pub fn page(status: &Status, address: &str, parts: &[Part], lines: Option<usize>) -> String {
    let most = Most::of(status, lines);
    let mut page = format!(
        "mdm {} at {address}, up {}\n",
        status.version,
        uptime(status.uptime_s)
    );
    for part in parts {
        // Writing to a string cannot fail.
        let _ = write_part(&mut page, status, *part, most);
    }
    page
}

fn write_part(page: &mut String, status: &Status, part: Part, most: Most) -> fmt::Result {
    match part {
        Part::Recent => recent(page, status),
        Part::Totals => totals(page, status),
        Part::Models => models(page, status, most),
        Part::Workers => workers(page, status, most),
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
    if p99 == 0 {
        return Ok(()); // nothing was answered
    }
    let ms = |us: u64| us as f64 / 1000.0;
    writeln!(
        page,
        "latency  p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, since the start",
        ms(p50),
        ms(p90),
        ms(p99)
    )
}

/// Lines of a part, and what is said of those that are left out.
fn shortened(page: &mut String, left_out: usize, what: &str) -> fmt::Result {
    match left_out {
        0 => Ok(()),
        _ => writeln!(page, "  … and {left_out} more {what}"),
    }
}

/// Rows a second in the last 10 s, which say how busy a model is.
fn rows_per_s(of: Option<&ModelCounts>) -> f64 {
    let mut windows = of.into_iter().flat_map(|of| &of.recent);
    let ten = windows.find(|window| window.seconds == 10);
    ten.map_or(0.0, |window| window.rows_per_s)
}

/// The loaded versions of a model, which are counted together, and their kinds.
fn versions(models: &[&ModelInfo]) -> [String; 2] {
    let mut versions: Vec<&str> = models.iter().map(|model| &*model.version).collect();
    // 10 comes behind 2.
    versions.sort_by_key(|version| (version.len(), *version));
    let mut kinds: Vec<&str> = Vec::new();
    for model in models {
        if !kinds.contains(&&*model.kind) {
            kinds.push(&model.kind);
        }
    }
    [versions.join(", "), kinds.join(", ")]
}

/// A line for each name, the busiest first.
fn models(page: &mut String, status: &Status, most: Most) -> fmt::Result {
    let windows = status
        .recent
        .iter()
        .map(|of| format!("rows/s {} s", of.seconds));
    let windows: Vec<String> = windows.collect();
    // A column that is there where it says something.
    let some_failed = status.by_model.iter().any(|of| of.failed_rows > 0);
    let mut totals = row(["requests", "rows", "errors"]);
    if some_failed {
        totals.insert(2, "rows failed".to_owned());
    }
    let columns = [totals, windows, row(["p50", "p99"])].concat();
    let heading = [row(["name", "version", "kind"]), columns.clone()].concat();
    let counts = |of: Option<&ModelCounts>| match of {
        Some(of) => {
            let errors: u64 = of.errors.values().sum();
            let failed = some_failed.then_some(of.failed_rows);
            let totals = [of.requests, of.rows].into_iter().chain(failed);
            let totals = totals.chain([errors]).map(|count| count.to_string());
            let rates = of.recent.iter().map(|of| rate(of.rows_per_s));
            let latency = [of.latency_us.p50, of.latency_us.p99].map(time);
            totals.chain(rates).chain(latency).collect()
        }
        None => vec![String::new(); columns.len()],
    };
    let mut served: BTreeMap<&str, Vec<&ModelInfo>> = BTreeMap::new();
    for model in &status.models {
        served.entry(&model.name).or_default().push(model);
    }
    let by_name = |name: &str| status.by_model.iter().find(|of| of.name == name);
    let lines = served.iter().map(|(name, models)| {
        let [versions, kinds] = versions(models);
        (by_name(name), vec![(*name).to_owned(), versions, kinds])
    });
    let gone = status.by_model.iter();
    let gone = gone.filter(|of| !served.contains_key(&*of.name));
    let gone = gone.map(|of| (Some(of), row([&*of.name, "", "not served"])));
    let mut lines: Vec<_> = lines.chain(gone).collect();
    let busy = |of: Option<&ModelCounts>| (rows_per_s(of), of.map_or(0, |of| of.rows));
    lines.sort_by(|(one, _), (other, _)| {
        let ((one, before), (other, after)) = (busy(*one), busy(*other));
        other.total_cmp(&one).then(after.cmp(&before))
    });
    let left_out = lines.len().saturating_sub(most.models);
    lines.truncate(most.models);
    let lines = lines
        .into_iter()
        .map(|(of, cells)| [cells, counts(of)].concat());
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(lines).collect();
    writeln!(page, "\nmodels")?;
    table(page, &rows)?;
    shortened(page, left_out, "models")?;
    // The last one is the newest.
    for broken in status.broken.iter().rev().take(most.broken) {
        let message = broken.message.replace('\n', " ");
        let version = broken.version.as_ref();
        let of = version.map_or_else(String::new, |of| format!(", version {of},"));
        let on = match (version, &broken.served_on) {
            (_, None) => String::new(),
            (Some(version), Some(on)) if on != version => format!(" (version {on} is served on)"),
            _ => " (what was loaded before it is served on)".to_owned(),
        };
        let (name, code) = (&broken.name, &broken.code);
        writeln!(page, "  ! {name}{of} does not open{on}: {code}: {message}")?;
    }
    let left_out = status.broken.len().saturating_sub(most.broken);
    shortened(page, left_out, "that do not open")
}

fn count_workers(status: &Status) -> usize {
    status.workers.len() + status.express_workers.len()
}

fn workers(page: &mut String, status: &Status, most: Most) -> fmt::Result {
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
    let regular = status.workers.iter().map(|worker| match worker.extra {
        true => ("extra", worker),
        false => ("main", worker),
    });
    let express = status.express_workers.iter();
    let all = regular.chain(express.map(|worker| ("express", worker)));
    let line = |(kind, worker): (&str, &WorkerInfo)| {
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
    rows.extend(all.take(most.workers).map(line));
    writeln!(page, "\nworkers")?;
    table(page, &rows)?;
    let left_out = count_workers(status).saturating_sub(most.workers);
    shortened(page, left_out, "workers")
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
    use mdm::wire::server::{FailedModel, ModelInfo, ModelRecent, RecentInfo, WorkerRecent};

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
        let worker = |id, extra| WorkerInfo {
            id,
            extra,
            recent: windows
                .map(|seconds| WorkerRecent {
                    seconds,
                    busy: 0.25,
                    ..WorkerRecent::default()
                })
                .to_vec(),
            ..WorkerInfo::default()
        };
        Status {
            uptime_s: 12,
            models: vec![model("m", "1"), model("m", "10"), model("m", "2")],
            by_model: vec![counts("m", 77), counts("gone", 5)],
            broken: vec![FailedModel {
                name: "bad".to_owned(),
                code: "FAILED_PRECONDITION".to_owned(),
                message: "no\nmodel".to_owned(),
                ..FailedModel::default()
            }],
            workers: vec![worker(2, true)],
            express_workers: vec![worker(3, false)],
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
    fn a_page_has_rates_models_that_do_not_open_and_workers_of_each_kind() {
        let parts = [Part::Recent, Part::Totals, Part::Models, Part::Workers];
        let page = page(&status(), "a", &parts, None);
        assert_eq!(
            line(&page, "in the last"),
            ["in the last", "1 s", "10 s", "12 s of 60 s"]
        );
        assert_eq!(line(&page, "rows/s")[1], "12.3 k");
        let model = line(&page, "m ");
        assert_eq!(
            model[..7],
            ["m", "1, 2, 10", "batched", "3", "77", "7", "1"],
            "{page}"
        );
        assert_eq!(
            model[7..],
            ["1.0 k", "10.0 k", "60.0 k", "500 us", "1.5 ms"],
            "{page}"
        );
        assert_eq!(line(&page, "gone")[1], "not served");
        assert!(page.contains("rows  rows failed  errors"), "{page}");
        let broken = "! bad does not open: FAILED_PRECONDITION: no model";
        assert!(page.contains(broken), "{page}");
        assert_eq!(line(&page, "2  extra")[..2], ["2", "extra"]);
        assert_eq!(line(&page, "3  express")[4], "25 %");
        assert!(!page.contains("host"), "settings: {page}");
    }

    #[test]
    fn a_small_screen_has_the_busiest_models_and_the_workers() {
        let mut status = status();
        let of = |status: &Status| (status.models[0].clone(), status.by_model[0].clone());
        let (model, counts) = of(&status);
        for number in 1..=30 {
            let name = format!("m{number:02}");
            let mut counts = counts.clone();
            let ten = counts.recent.iter_mut().find(|of| of.seconds == 10);
            ten.expect("a window").rows_per_s = f64::from(number);
            counts.name = name.clone();
            status.by_model.push(counts);
            status.models.push(ModelInfo {
                name,
                ..model.clone()
            });
        }
        status.workers = vec![status.workers[0].clone(); 16];
        status.broken = vec![status.broken[0].clone(); 9];
        let parts = [Part::Models, Part::Workers, Part::Recent, Part::Totals];
        for lines in [1, 10, 16, 20, 24, 50] {
            let page = page(&status, "a", &parts, Some(lines));
            let screen: Vec<&str> = page.lines().take(lines.saturating_sub(1)).collect();
            if lines < 16 {
                continue; // as much as there is
            }
            let at = |begin: &str| {
                let begins = |line: &&str| line.trim_start().starts_with(begin);
                screen.iter().position(begins)
            };
            assert!(at("2  extra").is_some(), "no worker: {page}");
            assert!(at("! bad").is_some(), "none that does not open: {page}");
            let (first, second) = (at("m "), at("m30 "));
            assert!(first.is_some() && (lines < 24 || first < second), "{page}");
            assert!(at("m01 ").is_none(), "{page}");
        }
        let all = page(&status, "a", &parts, None);
        assert!(all.contains("m01 ") && !all.contains("more"), "{all}");
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
        let page = page(&old, "a", &all, None);
        assert!(
            page.contains("50 %") && !page.contains("in the last"),
            "{page}"
        );
    }
}
