//! What travels between the loops: chunks to workers, their parts to the sink, and credits back.

use serde::{Deserialize, Serialize};

use super::{ChunkId, FailedRows, Member, ModelId, ModelLabel, Params, Serial, WorkerId};
use crate::error::Error;
use crate::tensor::Batch;

/// Rows on their way to a worker, with parameters that are bytes until they are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "P: Default")]
pub(crate) struct Chunk<P = Params> {
    /// The chunk's number.
    pub id: ChunkId,
    /// Which leg of the model's stages runs next; 0 is the first. A leg is stages in a row that run in the same kind of
    /// worker; the inputs are what the leg before it gave.
    pub leg: u32,
    /// The first leg that is not this worker's.
    pub until: u32,
    /// There are legs after those: what they need goes back with the credit.
    pub goes_on: bool,
    /// Inside the model in earlier legs, in microseconds.
    pub spent_us: u64,
    /// The model.
    pub model: ModelId,
    /// Under which name it is counted.
    pub label: ModelLabel,
    /// Rows that run at once; `None`: all of the chunk's.
    pub run: Option<u64>,
    /// The request's parameters; empty for most.
    #[serde(skip)]
    pub params: P,
    /// Whose rows these are, in row order.
    #[serde(with = "super::members")]
    pub members: Vec<Member>,
    /// Their inputs.
    #[serde(skip)]
    pub rows: Rows,
    /// Rows that failed in an earlier leg. Others run in their place, and what these give is not used.
    pub failed: Vec<(Serial, FailedRows)>,
}

impl<P> Chunk<P> {
    /// The same chunk with these parameters, members and rows in place of its own.
    pub(crate) fn with<Q>(self, params: Q, members: Vec<Member>, rows: Rows) -> Chunk<Q> {
        Chunk {
            id: self.id,
            leg: self.leg,
            until: self.until,
            goes_on: self.goes_on,
            spent_us: self.spent_us,
            model: self.model,
            label: self.label,
            run: self.run,
            params,
            members,
            rows,
            failed: self.failed,
        }
    }
}

/// The inputs of a chunk's members, in the model's order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rows {
    /// Of each member by itself.
    Each(Vec<Batch>),
    /// Of all members, one after the other in one piece of memory: small requests that share a chunk.
    Joined(Batch),
}

impl Default for Rows {
    fn default() -> Rows {
        Rows::Each(Vec::new())
    }
}

impl Rows {
    /// As they lie in memory.
    pub(crate) fn batches(&self) -> &[Batch] {
        match self {
            Rows::Each(batches) => batches,
            Rows::Joined(batch) => std::slice::from_ref(batch),
        }
    }

    /// Of some of the members, shared and not copied.
    pub(crate) fn of(&self, members: &[Member], some: std::ops::Range<usize>) -> Rows {
        match self {
            Rows::Each(batches) => Rows::Each(batches[some].to_vec()),
            Rows::Joined(batch) => {
                let rows = |members: &[Member]| members.iter().map(|m| m.rows as usize).sum();
                let start: usize = rows(&members[..some.start]);
                Rows::Joined(batch.slice_rows(start, rows(&members[some])))
            }
        }
    }

    /// Of each member by itself; what is joined is shared and not copied.
    pub(crate) fn into_each(self, members: &[Member]) -> Vec<Batch> {
        match self {
            Rows::Each(batches) => batches,
            Rows::Joined(batch) => {
                let mut start = 0;
                let each = members.iter().map(|member| {
                    let rows = member.rows as usize;
                    start += rows;
                    batch.slice_rows(start - rows, rows)
                });
                each.collect()
            }
        }
    }
}

/// How a chunk ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Outcome {
    /// What the runs gave, for the members in their order.
    Done(Vec<Ran>),
    /// Every member had been cancelled before it ran.
    #[default]
    Skipped,
    /// The model failed; the credit says how.
    Failed,
}

/// What running the rows of some members gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ran {
    /// The number of members, which follow each other.
    pub members: usize,
    /// The outputs of each run, in the model's order. The rows of several members are one run. Of a member whose rows
    /// all failed there is none.
    pub runs: Vec<Batch>,
    /// The rows that failed, of one member that reports them: they are blank in its one run.
    pub failed: Vec<FailedRows>,
}

/// A chunk's results on their way to the sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The chunk's number.
    pub chunk: ChunkId,
    /// Who ran it.
    pub worker: WorkerId,
    /// As in the chunk.
    pub label: ModelLabel,
    /// Inside the model, in microseconds.
    pub compute_us: u64,
    /// As in the chunk.
    #[serde(with = "super::members")]
    pub members: Vec<Member>,
    /// The results.
    #[serde(skip)]
    pub outcome: Outcome,
}

/// "I am free": what a worker tells the ventilator after each chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Credit {
    /// Who.
    pub worker: WorkerId,
    /// The chunk that ended.
    pub chunk: ChunkId,
    /// Its model.
    pub model: ModelId,
    /// As in the chunk.
    pub label: ModelLabel,
    /// Rows that ran; 0 if it was skipped or failed.
    pub rows: u64,
    /// Runs that these rows took.
    pub runs: u64,
    /// Inside the model, in microseconds.
    pub compute_us: u64,
    /// Inside the model in earlier legs, in microseconds.
    pub spent_us: u64,
    /// The members that failed, and why.
    pub failed: Vec<(Serial, Error)>,
    /// What the next leg goes on with; empty if the model has run to its end.
    pub handed: Vec<Handed>,
}

/// What a leg of a model gave for the rows of one member, for the next leg to go on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handed {
    /// Whose rows.
    pub serial: Serial,
    /// How many.
    pub rows: u64,
    /// What the leg gave, in its order.
    #[serde(skip)]
    pub batch: Batch,
    /// Rows that failed in it or before. What is in the batch for them are other rows, so that the next leg can run.
    pub failed: Vec<FailedRows>,
}
