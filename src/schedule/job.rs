//! What goes into the policy and what comes out of it: numbers.

use std::ops::Range;
use std::sync::Arc;

use crate::message::{ChunkId, ModelId, Priority, ReplyTo, Role, Serial, WorkerId};

/// The bounds of the policy.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub workers: usize,
    /// Workers for plugin stages only; their numbers follow those of the others.
    pub extra_workers: usize,
    /// Workers for small chunks alone; theirs are the last numbers.
    pub express_workers: usize,
    pub max_batch_rows: usize,
    /// A request of up to so many rows is small.
    pub priority_rows: usize,
    /// Chunks that wait at a worker, in each lane.
    pub prefetch: usize,
    /// Expected time of a chunk; `None`: chunks are as even as `max_batch_rows` allows.
    pub max_chunk_us: Option<u64>,
    /// How long a small request waits for company.
    pub batch_delay_us: u64,
    pub max_requests: usize,
    pub max_bytes: u64,
}

impl Limits {
    /// Workers but for the express ones.
    pub(crate) fn regular_workers(&self) -> usize {
        self.workers + self.extra_workers
    }

    /// Workers of all roles.
    #[cfg(test)]
    pub(crate) fn all_workers(&self) -> usize {
        self.regular_workers() + self.express_workers
    }
}

/// A request, as the policy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub serial: Serial,
    /// Whose it is: clients take turns, and share the queue.
    pub client: ReplyTo,
    pub model: ModelId,
    /// Who runs the model's legs, one after another.
    pub legs: Arc<[Role]>,
    /// Whether express workers may run the model.
    pub express: bool,
    /// Requests of the same group may run in one batch.
    pub group: u64,
    pub rows: usize,
    /// Whether its rows are independent.
    pub splittable: bool,
    /// Chunks are multiples of this but for the last.
    pub step: usize,
    pub priority: Priority,
    pub bytes: u64,
    pub deadline_us: Option<u64>,
    pub arrived_us: u64,
}

/// Which of a worker's lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Small,
    Bulk,
}

/// Rows of one request in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub serial: Serial,
    pub offset: usize,
    pub rows: usize,
}

/// A chunk for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment<C = ()> {
    pub chunk: ChunkId,
    pub worker: WorkerId,
    pub lane: Lane,
    pub model: ModelId,
    /// The legs that it runs.
    pub legs: Range<u32>,
    pub pieces: Vec<Piece>,
    /// Rows that run at once; `None`: all of them.
    pub run: Option<usize>,
    /// What was handed back with the rows after an earlier leg.
    pub leg_outputs: Option<C>,
}

/// What a chunk leaves behind that was lost with its worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Closed requests, and how many of their parts will never come.
    pub lost: Vec<(Serial, u64)>,
    /// Requests whose chunk has now lost too many workers.
    pub abandoned: Vec<Serial>,
    /// Requests whose last part had come before.
    pub finished: Vec<Serial>,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub requests: usize,
    pub rows: usize,
    pub bytes: u64,
}
