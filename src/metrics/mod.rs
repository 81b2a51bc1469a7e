//! What is counted of a server: the counters, which the loops that see it happen own, and the [`Snapshot`] of all of
//! them that a door is given ([`crate::server::Door::metrics`]).
//!
//! ```text
//! sink        Answered, by model: results, rows and errors by door; how long results waited, ran and took
//! ventilator  Ran, by model: chunks and runs; what workers did, the queue, models, sessions
//!             └▶ status (in words of the protocol) and Snapshot (below) are made of the same counters
//! ```
//! Counters are plain integers, added to by one thread. What they are kept under is a
//! [`ModelLabel`](crate::message::ModelLabel): a number that the ventilator gives to each name of a served model
//! (`labels.rs`), so that a client can make no more of them than there are models.
//!
//! `history.rs` keeps copies of counters, for what status says of the last seconds.
//!
//! `text.rs` writes a snapshot for Prometheus; what the names and units are, the guide's page about metrics tells.

mod histogram;
pub(crate) mod history;
mod labels;
mod process;
#[cfg(feature = "gateway")]
mod text;

use serde::{Deserialize, Serialize};

pub use self::histogram::{BOUNDS, Bounds, DURATIONS_US, Histogram, ROWS};
pub(crate) use self::labels::Labels;
pub use self::labels::{MAX_NAMES, OTHER, UNKNOWN};
pub use self::process::Process;
#[cfg(feature = "gateway")]
pub use self::text::{CONTENT_TYPE, Outside, text};
use crate::error::ErrorCode;
use crate::message::Protocol;

/// Errors by code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCounts([u64; ErrorCode::ALL.len()]);

impl ErrorCounts {
    pub(crate) fn add(&mut self, code: ErrorCode) {
        self.0[code as usize] += 1;
    }

    /// How many there were of each code, in the order of [`ErrorCode::ALL`].
    pub fn by_code(&self) -> impl Iterator<Item = (ErrorCode, u64)> + '_ {
        std::iter::zip(ErrorCode::ALL, self.0)
    }

    /// Of all codes.
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Something for each protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByProtocol<T>([T; Protocol::ALL.len()]);

impl<T> ByProtocol<T> {
    /// What there is for one protocol.
    pub fn of(&self, protocol: Protocol) -> &T {
        &self.0[protocol as usize]
    }

    /// What there is for one protocol, to be changed.
    pub fn of_mut(&mut self, protocol: Protocol) -> &mut T {
        &mut self.0[protocol as usize]
    }

    /// Each protocol with what there is for it.
    pub fn each(&self) -> impl Iterator<Item = (Protocol, &T)> {
        std::iter::zip(Protocol::ALL, &self.0)
    }
}

/// Requests for rows that were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Requests answered with a result, some of whose rows may have failed.
    pub results: u64,
    /// Rows of those requests, failed rows included.
    pub rows: u64,
    /// Rows of those requests that failed and were reported.
    pub failed_rows: u64,
    /// Requests answered with an error.
    pub errors: ErrorCounts,
}

/// What the sink counts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// By where they came from.
    pub requests: ByProtocol<Requests>,
    /// Of each result, in microseconds: from its arrival until a worker was given its first chunk.
    pub queue: Histogram,
    /// Of each result, in microseconds: inside the model, summed over its chunks. A run that several requests share
    /// counts for each of them.
    pub compute: Histogram,
    /// Of each result, in microseconds: from its arrival until its answer left.
    pub total: Histogram,
    /// From the arrival of requests to the errors that they ended with, in microseconds.
    pub failed_us: u64,
    /// When the last result left, in microseconds of the server's clock; 0 if none did.
    pub last_us: u64,
}

impl Answered {
    /// Requests answered with a result, some of whose rows may have failed.
    pub fn results(&self) -> u64 {
        self.sum(|requests| requests.results)
    }

    /// Rows of those requests, failed rows included.
    pub fn rows(&self) -> u64 {
        self.sum(|requests| requests.rows)
    }

    /// Rows of those requests that failed and were reported.
    pub fn failed_rows(&self) -> u64 {
        self.sum(|requests| requests.failed_rows)
    }

    /// Requests that ended with an error.
    pub fn errors(&self) -> u64 {
        self.sum(|requests| requests.errors.all())
    }

    fn sum(&self, of: impl Fn(&Requests) -> u64) -> u64 {
        self.requests.each().map(|(_, requests)| of(requests)).sum()
    }
}

/// What the ventilator counts of a model, as its workers say that chunks have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Chunks that ended, those that failed or were not run any more too.
    pub chunks: u64,
    /// Rows of each run. The runs of one chunk count with their mean.
    pub runs: Histogram,
    /// Time that workers spent inside the model, in microseconds.
    pub compute_us: u64,
}

/// All that is counted under one model's name, since the start of the server: reloading and unloading a model does not
/// begin anew. What bounds the names is said at [`MAX_NAMES`].
///
/// In the words of Triton's statistics extension: `success` is `answered.total`, `fail` [`Answered::errors`] in
/// `answered.failed_us`, `queue` `answered.queue`, `compute_infer` `answered.compute` (each a count and a sum),
/// `inference_count` [`Answered::rows`], `execution_count` the count of `ran.runs`. Runs are counted by powers of two, so
/// there is no `batch_stats` by exact sizes; reading inputs and writing outputs is not told from the rest of the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// The name that requests give, of all its versions; or [`UNKNOWN`], or [`OTHER`].
    pub name: String,
    /// Whether requests find it now.
    pub is_served: bool,
    /// Requests.
    pub answered: Answered,
    /// Chunks and runs.
    pub ran: Ran,
    /// Microseconds since its last result left, if it ever gave one.
    pub last_result_us_ago: Option<u64>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStats {
    /// Its number.
    pub id: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Whether it runs small chunks only, while all others are inside bulk.
    pub is_express: bool,
    /// Whether it takes work.
    pub is_up: bool,
    /// Time that it spent inside models, in microseconds. A chunk counts once it has ended.
    pub busy_us: u64,
    /// Chunks that ended there.
    pub chunks: u64,
    /// Rows that ran there.
    pub rows: u64,
    /// Runs of models there.
    pub runs: u64,
}

/// What probes ask. That it is answered at all shows that the loops turn: the question goes through both of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Every worker was up once, and every model of `--preload` was opened on all of them.
    pub is_started: bool,
    /// It was told to stop: nothing new is taken.
    pub is_draining: bool,
    /// Workers that take work, without express ones.
    pub workers_up: u64,
    /// All workers but express ones.
    pub workers: u64,
}

impl Health {
    /// Whether a request that comes now is taken, and finds what the server was started with.
    pub fn is_ready(&self) -> bool {
        self.is_started && !self.is_draining && self.workers_up > 0
    }
}

/// Of one kind of door.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoorStats {
    /// Doors that are open in this process; for ZeroMQ always one.
    pub open: u64,
    /// Sessions that are connected; behind other doors, callers that have requests open.
    pub sessions: u64,
    /// Connections of ZeroMQ's two ports; other doors count their own.
    pub connections: u64,
    /// Questions and orders, and requests that could not even be numbered, that were answered with an error.
    pub refused: ErrorCounts,
}

/// The counters of a server, all from the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The server's version.
    pub version: String,
    /// Microseconds since it was started.
    pub up_us: u64,
    /// What probes ask.
    pub health: Health,
    /// By name: the served ones, and those of which something was counted.
    pub models: Vec<ModelStats>,
    /// How many models requests find now, each version by itself.
    pub models_loaded: u64,
    /// The workers.
    pub workers: Vec<WorkerStats>,
    /// By kind.
    pub doors: ByProtocol<DoorStats>,
    /// Requests that were accepted and are not finished.
    pub queue_requests: u64,
    /// Their rows that no worker has yet.
    pub queue_rows: u64,
    /// The bytes of payload held for them.
    pub queue_bytes: u64,
    /// Small requests that shared a chunk with others.
    pub coalesced: u64,
    /// Messages that could not be answered and were dropped.
    pub dropped: u64,
}

impl Snapshot {
    /// What is counted under a name.
    pub fn model(&self, name: &str) -> Option<&ModelStats> {
        self.models.iter().find(|model| model.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_while_it_has_started_and_a_worker_takes_work() {
        let ready = Health {
            is_started: true,
            is_draining: false,
            workers_up: 1,
            workers: 2,
        };
        assert!(ready.is_ready());
        for not in [
            Health {
                is_started: false,
                ..ready
            },
            Health {
                is_draining: true,
                ..ready
            },
            Health {
                workers_up: 0,
                ..ready
            },
        ] {
            assert!(!not.is_ready(), "{not:?}");
        }
    }
}
