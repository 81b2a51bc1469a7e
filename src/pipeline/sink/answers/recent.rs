//! What has come of a worker's last chunks, in case the worker is lost before their credits are read: then the rows
//! whose parts have come must not run again, and the parts of those that do must not count twice.

use std::collections::VecDeque;

use crate::message::{ChunkId, Outcome, Part, Serial};
use crate::wire::inner::LostWorker;

/// Most chunks of a worker whose late parts are refused. It can be lost a few hundred times before the sink has read
/// what it sent the first time; a part that came later than that would only cost the check.
const MOST_REFUSED: usize = 1024;

/// What has come of a chunk.
#[derive(Debug, Default)]
struct Arrival {
    chunk: ChunkId,
    /// Requests whose rows have come.
    good: Vec<Serial>,
    /// Requests whose part says that it failed, or was skipped.
    bad: Vec<Serial>,
}

/// Whether a part counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Counts,
    /// Its chunk was lost with its worker before it came, and runs again.
    Refused,
}

/// What has come of one worker's last chunks.
#[derive(Debug)]
pub(super) struct Recent {
    /// A worker sends the credit of a chunk before the parts of the next: the chunks that the ventilator counts as out
    /// although parts of them have come are among the last, and no more than it can hold.
    arrivals: VecDeque<Arrival>,
    most: usize,
    refused: VecDeque<ChunkId>,
    /// The last chunk that it was given before it was lost. Once a part of a later one comes, no older one will.
    refused_until: ChunkId,
}

/// What had come of a chunk when its worker was lost.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) chunk: ChunkId,
    pub(super) good: Vec<Serial>,
    pub(super) bad: Vec<Serial>,
}

impl Recent {
    /// Of a worker that can hold so many chunks.
    pub(super) fn new(most: usize) -> Recent {
        Recent {
            arrivals: VecDeque::new(),
            most: most.max(1),
            refused: VecDeque::new(),
            refused_until: ChunkId::default(),
        }
    }

    pub(super) fn take(&mut self, part: &Part) -> Standing {
        if !self.refused.is_empty() {
            if part.chunk > self.refused_until {
                self.refused = VecDeque::new();
            } else if self.refused.contains(&part.chunk) {
                return Standing::Refused;
            }
        }
        if self
            .arrivals
            .back()
            .is_none_or(|last| last.chunk != part.chunk)
        {
            let mut arrival = if self.arrivals.len() < self.most {
                Arrival::default()
            } else {
                // The oldest one's memory is used again, since this happens for every chunk.
                self.arrivals.pop_front().unwrap_or_default()
            };
            arrival.chunk = part.chunk;
            arrival.good.clear();
            arrival.bad.clear();
            self.arrivals.push_back(arrival);
        }
        if let Some(arrival) = self.arrivals.back_mut() {
            let serials = match part.outcome {
                Outcome::Done(_) => &mut arrival.good,
                Outcome::Skipped | Outcome::Failed => &mut arrival.bad,
            };
            serials.extend(part.members.iter().map(|member| member.serial));
        }
        Standing::Counts
    }

    /// The worker is gone: what has come of each chunk that it held is settled now.
    pub(super) fn lose(&mut self, lost: &LostWorker) -> Vec<Settled> {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let mut settle = |chunk: &ChunkId| {
            let place = arrivals.iter().position(|arrival| arrival.chunk == *chunk);
            let arrival = place.and_then(|place| arrivals.remove(place));
            let Arrival { good, bad, .. } = arrival.unwrap_or_default();
            Settled {
                chunk: *chunk,
                good,
                bad,
            }
        };
        let settled = lost.chunks.iter().map(&mut settle).collect();
        self.refused.extend(&lost.chunks);
        while self.refused.len() > MOST_REFUSED {
            self.refused.pop_front();
        }
        self.refused_until = self.refused_until.max(lost.last);
        settled
    }
}
