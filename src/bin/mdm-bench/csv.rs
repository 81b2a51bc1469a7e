//! The table as a file for programs: a line for each case, under a line of names.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::generator::report::{Report, Shares};

const NAMES: &str = "rows_per_request,concurrency,rate_per_s,requests,errors,warm_up_requests,requests_per_s,rows_per_s,\
p50_us,p90_us,p99_us,p99_9_us,max_us,late_us,asked_us,queue_us,run_us,rest_us,bench_cpu_us,bench_cores,backlog,unsent,\
saturated,error_codes";

/// A file that has a line as soon as a case was measured.
pub struct Csv {
    file: BufWriter<File>,
    place: String,
}

impl Csv {
    /// Begins a file, in place of what was there.
    pub fn create(path: &Path) -> Result<Csv> {
        let place = path.display().to_string();
        let file = File::create(path).with_context(|| place.clone())?;
        let mut csv = Csv {
            file: BufWriter::new(file),
            place,
        };
        csv.write(NAMES)?;
        Ok(csv)
    }

    pub fn add(&mut self, report: &Report) -> Result<()> {
        self.write(&line(report))
    }

    fn write(&mut self, line: &str) -> Result<()> {
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.flush());
        // A broken pipe here is an error, unlike that of standard output.
        written
            .map_err(|e| io::Error::other(e.to_string()))
            .with_context(|| self.place.clone())
    }
}

fn line(report: &Report) -> String {
    let number = |value: f64| format!("{value:.3}");
    let share = |of: fn(&Shares) -> f64| {
        report
            .shares
            .as_ref()
            .map(|s| number(of(s)))
            .unwrap_or_default()
    };
    let latency = &report.latency_us;
    let codes = report.failures.iter();
    let codes: Vec<String> = codes
        .map(|(code, f)| format!("{code}={}", f.count))
        .collect();
    let fields = [
        report.case.rows.to_string(),
        report.case.concurrency.to_string(),
        report
            .case
            .rate
            .map(|rate| rate.to_string())
            .unwrap_or_default(),
        report.requests.to_string(),
        report.failed.to_string(),
        report.warm_up.to_string(),
        number(report.requests_per_s),
        number(report.rows_per_s),
        number(latency.p50),
        number(latency.p90),
        number(latency.p99),
        number(latency.p999),
        number(latency.most),
        number(report.late_us),
        number(report.asked_us),
        share(|shares| shares.queue_us),
        share(|shares| shares.run_us),
        share(|shares| shares.rest_us),
        number(report.processor_us),
        number(report.processor_cores),
        report.backlog.to_string(),
        report.unsent.to_string(),
        report.saturated.to_string(),
        // Codes have neither commas nor quotes in them.
        codes.join(" "),
    ];
    fields.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation;

    #[test]
    fn every_name_has_its_field() {
        for report in simulation::samples() {
            assert_eq!(line(&report).split(',').count(), NAMES.split(',').count());
        }
        let [closed, open] = simulation::samples();
        assert!(
            line(&closed).starts_with("10,2,,2000,500,0,"),
            "{}",
            line(&closed)
        );
        assert!(
            line(&closed).ends_with(",false,INTERNAL=500"),
            "{}",
            line(&closed)
        );
        assert!(line(&open).starts_with("10,8,1000,"), "{}", line(&open));
        assert!(line(&open).ends_with(",true,"), "{}", line(&open));
    }
}
