//! What is told of a case, in the units in which it is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Case;

/// Requests that failed in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    pub count: u64,
    /// What the first of them said.
    pub message: String,
}

/// What a server has counted of a model's requests so far, where answers do not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerTimes {
    pub requests: u64,
    pub queue: Duration,
    pub run: Duration,
}

/// Latency in microseconds, from when a request was due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub most: f64,
}

/// Where the time went from sending to the answer, in microseconds of the mean request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Waiting in the server for a worker.
    pub queue_us: f64,
    /// Inside the model, summed over a request's chunks.
    pub run_us: f64,
    /// All else: the network, reading and writing.
    pub rest_us: f64,
}

impl Shares {
    pub fn of(asked_us: f64, queue_us: f64, run_us: f64) -> Shares {
        Shares {
            queue_us,
            run_us,
            // Chunks of a request that ran at the same time have more time in the model than the request took.
            rest_us: (asked_us - queue_us - run_us).max(0.0),
        }
    }
}

/// What is told of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub case: Case,
    /// Requests that were counted and ended, with a result or an error.
    pub requests: u64,
    /// Requests before that.
    pub warm_up: u64,
    pub failures: BTreeMap<String, Failures>,
    pub failed: u64,
    /// Results that came in the time that was measured.
    pub requests_per_s: f64,
    pub rows_per_s: f64,
    pub latency_us: Latency,
    /// Between being due and being sent, on average.
    pub late_us: f64,
    /// Between being sent and the answer, on average.
    pub asked_us: f64,
    /// `None` if the server does not say.
    pub shares: Option<Shares>,
    /// The generator's own processor time, for each request.
    pub processor_us: f64,
    /// The same as a number of cores that it kept busy.
    pub processor_cores: f64,
    /// Requests that were due, and had not been sent when the time was over.
    pub backlog: u64,
    /// Those of them that were never sent. Their latency counts as what they had waited by then.
    pub unsent: u64,
    /// More became due than the server, over these connections, could take.
    pub saturated: bool,
}

impl Report {
    /// Fills in the shares from what the server counted before and after, warm-up included, if answers did not say it.
    pub fn share_by(&mut self, before: ServerTimes, after: ServerTimes) {
        let requests = after.requests.saturating_sub(before.requests);
        if self.shares.is_none() && requests > 0 {
            let mean = |time: Duration| time.as_secs_f64() * 1e6 / requests as f64;
            self.shares = Some(Shares::of(
                self.asked_us,
                mean(after.queue.saturating_sub(before.queue)),
                mean(after.run.saturating_sub(before.run)),
            ));
        }
    }
}
