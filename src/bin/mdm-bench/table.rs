//! The table on the terminal: a line for each case, and below it what a reader should know of them.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::generator::report::{Failures, Report, Shares};

/// The generator is part of what is measured if it keeps more of the machine's cores busy than this.
const MOST_OF_CORES: f64 = 0.5;

/// The columns: their names, widths, and whether only an open loop has them.
const COLUMNS: [(&str, usize, Loop); 13] = [
    ("rows", 6, Loop::Any),
    ("flight", 7, Loop::Any),
    ("due/s", 8, Loop::Open),
    ("requests/s", 11, Loop::Any),
    ("rows/s", 11, Loop::Any),
    ("p50 ms", 10, Loop::Any),
    ("p90", 10, Loop::Any),
    ("p99", 10, Loop::Any),
    ("p99.9", 10, Loop::Any),
    ("late", 9, Loop::Open),
    ("queue/run/rest %", 17, Loop::Any),
    ("bench us", 9, Loop::Any),
    ("errors", 7, Loop::Any),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Loop {
    Any,
    Open,
}

/// The names of the columns.
pub fn head(is_open: bool) -> String {
    joined(COLUMNS.map(|(name, ..)| name.to_owned()), is_open)
}

/// One case's line.
pub fn line(report: &Report) -> String {
    let Report {
        case, latency_us, ..
    } = report;
    // What was never sent has waited for at least so long.
    let at_least = if report.unsent > 0 { ">" } else { "" };
    let latency = |us| format!("{at_least}{}", milliseconds(us));
    let shares = report.shares.map(|shares| {
        let share = |us: f64| us / report.asked_us.max(1e-3) * 100.0;
        let Shares {
            queue_us,
            run_us,
            rest_us,
        } = shares;
        format!(
            "{:.0}/{:.0}/{:.0}",
            share(queue_us),
            share(run_us),
            share(rest_us)
        )
    });
    let fields = [
        case.rows.to_string(),
        case.concurrency.to_string(),
        case.rate.map(|rate| rate.to_string()).unwrap_or_default(),
        rounded(report.requests_per_s),
        rounded(report.rows_per_s),
        latency(latency_us.p50),
        latency(latency_us.p90),
        latency(latency_us.p99),
        latency(latency_us.p999),
        milliseconds(report.late_us),
        shares.unwrap_or_else(|| "-".to_owned()),
        format!("{:.1}", report.processor_us),
        report.failed.to_string(),
    ];
    let mut line = joined(fields, case.rate.is_some());
    if report.saturated {
        line += "  saturated";
    }
    line
}

fn joined(fields: [String; COLUMNS.len()], is_open: bool) -> String {
    let mut line = String::new();
    for ((_, width, of), field) in COLUMNS.iter().zip(fields) {
        if is_open || *of == Loop::Any {
            let _ = write!(line, "{field:>width$}");
        }
    }
    line
}

/// A number with as many digits as tell something.
fn rounded(number: f64) -> String {
    match number {
        0.0..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

fn milliseconds(us: f64) -> String {
    match us {
        0.0..100_000.0 => format!("{:.3}", us / 1e3),
        _ => format!("{:.0}", us / 1e3),
    }
}

/// What is to be said below the table: errors, saturation, a generator that is in the way.
pub fn notes(reports: &[Report], cores: usize) -> String {
    let mut notes = String::new();
    let mut failures: BTreeMap<&str, Failures> = BTreeMap::new();
    for (code, of_case) in reports.iter().flat_map(|report| &report.failures) {
        let all = failures.entry(code).or_insert_with(|| Failures {
            count: 0,
            message: of_case.message.clone(),
        });
        all.count += of_case.count;
    }
    for (code, failures) in failures {
        let Failures { count, message } = failures;
        let _ = writeln!(
            notes,
            "{count} times {code}, first: {}",
            message.replace('\n', " ")
        );
    }
    for report in reports.iter().filter(|report| report.saturated) {
        let _ = writeln!(
            notes,
            "saturated at {} requests/s: {} were due and not sent when the time was over{}",
            report.case.rate.unwrap_or(0),
            report.backlog,
            match report.unsent {
                0 => String::new(),
                unsent => format!(
                    "; {unsent} of them never were, and count with the time that they waited"
                ),
            }
        );
    }
    let busiest = reports.iter().map(|report| report.processor_cores);
    let busiest = busiest.fold(0.0, f64::max);
    if busiest > MOST_OF_CORES * cores as f64 {
        let _ = writeln!(
            notes,
            "mdm-bench itself kept {busiest:.1} of {cores} cores busy: run it on another machine to measure the server alone"
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation;

    #[test]
    fn a_line_has_what_its_head_names() {
        for report in simulation::samples() {
            let head = head(report.case.rate.is_some());
            let line = line(&report);
            let line = line.trim_end_matches("  saturated");
            assert_eq!(
                head.chars().count(),
                line.chars().count(),
                "\n{head}\n{line}"
            );
        }
        let [failing, saturated] = simulation::samples();
        let words: Vec<String> = line(&failing)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(
            words[..4],
            ["10", "2", "300", "2998"].map(str::to_owned),
            "{words:?}"
        );
        assert_eq!(
            words[8..],
            ["0/100/0", "500.0", "500"].map(str::to_owned),
            "{words:?}"
        );
        let line = line(&saturated);
        assert!(line.contains('>') && line.ends_with("saturated"), "{line}");
    }

    #[test]
    fn errors_saturation_and_a_busy_generator_are_told() {
        let [mut failing, saturated] = simulation::samples();
        let told = notes(&[failing.clone(), failing.clone(), saturated], 2);
        assert!(
            told.contains("1000 times INTERNAL, first: request 3"),
            "{told}"
        );
        assert!(told.contains("saturated at 1000 requests/s"), "{told}");
        assert!(!told.contains("kept"), "{told}");
        failing.processor_cores = 1.5;
        let told = notes(&[failing], 2);
        assert!(told.contains("1.5 of 2 cores"), "{told}");
    }
}
