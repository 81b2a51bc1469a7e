//! What came of the requests, counted: latencies, errors, where the time went. Pure: times are handed in.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use mdm::Stats;

use super::Case;
use super::load::{Arrival, Window};
use super::report::{Failures, Latency, Report, Shares};

/// Three digits of a latency are right, whatever its size.
const DIGITS: u8 = 3;

/// An error: what it is counted under, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

/// What a request ended with: what the server said of its time, if it did, or an error.
pub type Outcome = Result<Option<Stats>, Failure>;

/// When a request was sent and when its answer was there.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub sent: Duration,
    pub done: Duration,
}

/// What the generator itself took while all of a case ran, warm-up and backlog included.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    pub processor: Duration,
    pub elapsed: Duration,
}

/// What one connection, or all of them, counted.
#[derive(Clone)]
pub struct Tally {
    window: Window,
    /// From when a request was due until its answer was there, in nanoseconds; of those that succeeded, and as far as it
    /// is known of those that were never sent.
    latency: Histogram<u32>,
    succeeded: u64,
    /// Answers that came while it was measured, those to requests of the warm-up too: what the server gave in that time.
    answered: u64,
    warm_up: u64,
    failures: BTreeMap<String, Failures>,
    /// Sums over those that succeeded.
    late: Duration,
    asked: Duration,
    queue: Duration,
    run: Duration,
    /// How many answers said where their time went.
    with_stats: u64,
    /// Requests that were due while it was measured, and sent after that.
    backlog: u64,
    unsent: u64,
    last: Duration,
}

impl Tally {
    pub fn new(window: Window) -> Tally {
        Tally {
            window,
            latency: histogram(),
            succeeded: 0,
            answered: 0,
            warm_up: 0,
            failures: BTreeMap::new(),
            late: Duration::ZERO,
            asked: Duration::ZERO,
            queue: Duration::ZERO,
            run: Duration::ZERO,
            with_stats: 0,
            backlog: 0,
            unsent: 0,
            last: Duration::ZERO,
        }
    }

    /// A request that ended.
    pub fn ended(&mut self, arrival: Arrival, times: Times, outcome: Outcome) {
        let Times { sent, done } = times;
        let end = match self.window.requests {
            Some(_) => Duration::MAX,
            None => self.window.start + self.window.length,
        };
        if outcome.is_ok() && (self.window.start..end).contains(&done) {
            self.answered += 1;
            self.last = self.last.max(done);
        }
        if !arrival.counted {
            self.warm_up += 1;
            return;
        }
        self.backlog += u64::from(sent >= end);
        match outcome {
            Ok(stats) => {
                self.succeeded += 1;
                self.late += sent.saturating_sub(arrival.due);
                let asked = done.saturating_sub(sent);
                self.asked += asked;
                self.record(done.saturating_sub(arrival.due));
                if let Some(stats) = stats {
                    self.with_stats += 1;
                    self.queue += Duration::from_micros(stats.queue_us);
                    self.run += Duration::from_micros(stats.compute_us);
                }
            }
            Err(failure) => {
                let of_code = self.failures.entry(failure.code);
                let of_code = of_code.or_insert_with(|| Failures {
                    count: 0,
                    message: failure.message,
                });
                of_code.count += 1;
            }
        }
    }

    /// A request that was due, and that nobody was free to send until `now`: it would have taken longer than that.
    pub fn unsent(&mut self, arrival: Arrival, now: Duration) {
        if arrival.counted {
            self.unsent += 1;
            self.record(now.saturating_sub(arrival.due));
        }
    }

    fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // It grows as it must, so it cannot fail short of a time that no clock has.
        let _ = self.latency.record(nanoseconds.min(u64::MAX >> 1));
    }

    /// Adds what another connection counted.
    pub fn add(&mut self, other: Tally) {
        // It fails only where a histogram may not grow, and this one may.
        let _ = self.latency.add(&other.latency);
        self.succeeded += other.succeeded;
        self.answered += other.answered;
        self.warm_up += other.warm_up;
        self.late += other.late;
        self.asked += other.asked;
        self.queue += other.queue;
        self.run += other.run;
        self.with_stats += other.with_stats;
        self.backlog += other.backlog;
        self.unsent += other.unsent;
        self.last = self.last.max(other.last);
        for (code, failures) in other.failures {
            match self.failures.get_mut(&code) {
                Some(own) => own.count += failures.count,
                None => {
                    self.failures.insert(code, failures);
                }
            }
        }
    }

    /// What is told of a case.
    pub fn report(&self, case: Case, spent: Spent) -> Report {
        let failed: u64 = self.failures.values().map(|f| f.count).sum();
        let ended = self.succeeded + failed;
        let length = match self.window.requests {
            Some(_) => self.last.saturating_sub(self.window.start),
            None => self.window.length,
        };
        let seconds = length.as_secs_f64().max(1e-9);
        let per_s = self.answered as f64 / seconds;
        let mean = |sum: Duration, of: u64| sum.as_secs_f64() * 1e6 / of.max(1) as f64;
        let asked_us = mean(self.asked, self.succeeded);
        let shares = (self.with_stats > 0).then(|| {
            let queue_us = mean(self.queue, self.with_stats);
            let run_us = mean(self.run, self.with_stats);
            Shares::of(asked_us, queue_us, run_us)
        });
        let quantile = |q| self.latency.value_at_quantile(q) as f64 / 1e3;
        let due = ended + self.unsent;
        Report {
            case,
            requests: ended,
            warm_up: self.warm_up,
            failures: self.failures.clone(),
            failed,
            requests_per_s: per_s,
            rows_per_s: per_s * case.rows as f64,
            latency_us: Latency {
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                p999: quantile(0.999),
                most: self.latency.max() as f64 / 1e3,
            },
            late_us: mean(self.late, self.succeeded),
            asked_us,
            shares,
            processor_us: mean(spent.processor, ended + self.warm_up),
            processor_cores: spent.processor.as_secs_f64() / spent.elapsed.as_secs_f64().max(1e-9),
            backlog: self.backlog + self.unsent,
            unsent: self.unsent,
            saturated: case.rate.is_some()
                && self.backlog + self.unsent > (due / 100).max(case.concurrency as u64),
        }
    }
}

fn histogram() -> Histogram<u32> {
    match Histogram::new(DIGITS) {
        Ok(histogram) => histogram,
        Err(e) => unreachable!("three digits are within what a histogram takes: {e}"),
    }
}
