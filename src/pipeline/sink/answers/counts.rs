//! What was answered, counted for the status.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::error::{Error, ErrorCode, Result};
use crate::wire::inner::SinkReport;
use crate::wire::server::LatencyInfo;

/// The counters, and how long answers took.
pub(super) struct Counts {
    /// From arrival to result, in microseconds: up to an hour, to a hundredth.
    latency: Histogram<u64>,
    report: SinkReport,
}

impl Counts {
    pub(super) fn new() -> Result<Counts> {
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 2)
            .map_err(|e| Error::internal(format!("the latency histogram: {e}")))?;
        Ok(Counts {
            latency,
            report: SinkReport::default(),
        })
    }

    /// A result of so many rows leaves.
    pub(super) fn result(&mut self, arrived_us: u64, rows: u64, now_us: u64) {
        self.report.requests += 1;
        self.report.rows += rows;
        let us = now_us.saturating_sub(arrived_us);
        self.latency.saturating_record(us.max(1));
    }

    /// An error leaves.
    pub(super) fn error(&mut self, error: &Error) {
        self.report.requests += 1;
        let count = self.report.errors.entry(error.code().as_str().to_owned());
        *count.or_default() += 1;
    }

    pub(super) fn report(&self) -> SinkReport {
        let at = |q| self.latency.value_at_quantile(q);
        let mut report = self.report.clone();
        if !self.latency.is_empty() {
            report.latency = LatencyInfo {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
            };
        }
        // Every code, so that a reader need not know which have happened.
        let all: BTreeMap<_, _> = ErrorCode::ALL
            .iter()
            .map(|code| (code.as_str().to_owned(), 0))
            .collect();
        report.errors = all.into_iter().chain(report.errors).collect();
        report
    }
}
