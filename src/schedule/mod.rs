//! The queue and the policy as a pure state machine: events and the time go in, assignments come out.
//!
//! It does no input or output and reads no clock, so that it can be simulated (`simulation.rs`).
//!
//! ```text
//! submit ─▶ small: groups that may run together, oldest first ─┐
//!        ─▶ high:  bulk requests in turn                       ├─ next() ─▶ worker's small or bulk lane
//!        ─▶ normal: bulk requests in turn                      │
//! lost   ─▶ again: chunks of a worker that is gone, first ─────┘
//! ```
//! Each worker has two lanes of one running and `prefetch` waiting chunks. The small lane has places of its own, so
//! that a small request reaches a worker whose bulk places are full; the worker reads it first (`lane.rs`).
//! What is absent: rows, frames, sockets, names. A request is a [`Job`] here: numbers.

mod groups;
mod job;
pub(crate) mod lane;
mod pace;
#[cfg(test)]
mod simulation;
mod workers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use crate::error::{Error, Result};
use crate::message::{ChunkId, ModelId, Priority, Serial, WorkerId};
use crate::split::Cut;
use groups::Groups;
pub(crate) use job::{Assignment, Job, Lane, Limits, Losses, Piece, Waiting};
use pace::Pace;
use workers::Workers;

/// After so many chunks of high priority in a row, normal bulk gets one.
const HIGH_IN_A_ROW: u32 = 7;
/// A chunk that lost its worker is run again so many times: what kills workers must not kill them all for ever.
const MAX_ATTEMPTS: u32 = 2;

#[derive(Debug)]
struct Entry {
    job: Job,
    small: bool,
    /// Rows that have been given out.
    given: usize,
    /// Chunks that have been given out, each counted once however often it ran.
    chunks: u64,
    /// Chunks that are out now.
    out: u32,
    /// Chunks that the rest will be cut into, once that is fixed.
    planned: usize,
    closed: bool,
}

#[derive(Debug)]
struct Out {
    worker: WorkerId,
    lane: Lane,
    attempt: u32,
    model: ModelId,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Again {
    lane: Lane,
    attempt: u32,
    model: ModelId,
    pieces: Vec<Piece>,
}

/// The queue and its policy.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    entries: HashMap<Serial, Entry>,
    out: HashMap<ChunkId, Out>,
    groups: Groups,
    high: VecDeque<Serial>,
    normal: VecDeque<Serial>,
    again: VecDeque<Again>,
    high_in_a_row: u32,
    deadlines: BinaryHeap<Reverse<(u64, Serial)>>,
    paces: HashMap<ModelId, Pace>,
    workers: Workers,
    next_chunk: u64,
    waiting: Waiting,
    coalesced: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Scheduler {
        Scheduler {
            workers: Workers::new(limits.workers, 1 + limits.prefetch as u32),
            limits,
            entries: HashMap::new(),
            out: HashMap::new(),
            groups: Groups::default(),
            high: VecDeque::new(),
            normal: VecDeque::new(),
            again: VecDeque::new(),
            high_in_a_row: 0,
            deadlines: BinaryHeap::new(),
            paces: HashMap::new(),
            next_chunk: 0,
            waiting: Waiting::default(),
            coalesced: 0,
        }
    }

    /// A worker is ready, for the first time or again.
    pub(crate) fn worker_up(&mut self, worker: WorkerId, now_us: u64) {
        self.workers.up(worker, now_us);
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the queue's bounds are reached.
    pub(crate) fn submit(&mut self, job: Job) -> Result<()> {
        if self.waiting.requests >= self.limits.max_requests {
            return Err(Error::exhausted(format!(
                "{} requests are queued, the most that this server takes; try later",
                self.waiting.requests
            )));
        }
        // A lone request is taken whatever its size: max_request_bytes bounds it.
        if self.waiting.bytes > 0 && self.waiting.bytes + job.bytes > self.limits.max_bytes {
            return Err(Error::exhausted(format!(
                "{} bytes are queued and the request has {} more; the server holds at most {} (--max-queue-bytes); try later",
                self.waiting.bytes, job.bytes, self.limits.max_bytes
            )));
        }
        self.waiting.requests += 1;
        self.waiting.rows += job.rows;
        self.waiting.bytes += job.bytes;
        if let Some(deadline) = job.deadline_us {
            self.deadlines.push(Reverse((deadline, job.serial)));
        }
        let serial = job.serial;
        let small = job.rows <= self.limits.priority_rows;
        if small {
            self.groups.push(job.group, serial, job.rows);
        } else {
            match job.priority {
                Priority::High => self.high.push_back(serial),
                Priority::Normal => self.normal.push_back(serial),
            }
        }
        self.entries.insert(
            serial,
            Entry {
                job,
                small,
                given: 0,
                chunks: 0,
                out: 0,
                planned: 0,
                closed: false,
            },
        );
        Ok(())
    }

    /// The next chunk for a worker that has a place for it; `None` when nothing can be given out now.
    pub(crate) fn next(&mut self, now_us: u64) -> Option<Assignment> {
        self.next_again(now_us)
            .or_else(|| self.next_small(now_us))
            .or_else(|| self.next_bulk(now_us))
    }

    fn next_again(&mut self, now_us: u64) -> Option<Assignment> {
        loop {
            let lane = self.again.front()?.lane;
            let worker = self.workers.best(lane)?;
            let Again {
                lane,
                attempt,
                model,
                mut pieces,
            } = self.again.pop_front()?;
            pieces.retain(|piece| self.entries.get(&piece.serial).is_some_and(|e| !e.closed));
            if pieces.is_empty() {
                continue;
            }
            for piece in &pieces {
                if let Some(entry) = self.entries.get_mut(&piece.serial) {
                    entry.out += 1;
                }
            }
            return Some(self.give(worker, lane, attempt, model, pieces, now_us));
        }
    }

    fn next_small(&mut self, now_us: u64) -> Option<Assignment> {
        let worker = self.workers.best(Lane::Small)?;
        // Groups behind the oldest are younger, but may be full.
        let (head, group, waiting) = self
            .groups
            .oldest()
            .find(|(head, _, rows)| self.is_ripe(*head, *rows, now_us))?;
        let first = &self.entries.get(&head)?.job;
        let (model, splittable) = (first.model, first.splittable);
        let most = if splittable {
            self.batch_rows(model, waiting)
        } else {
            0 // one by one
        };
        let taken = self.groups.take(group, most, open_rows(&self.entries));
        let mut pieces = Vec::with_capacity(taken.len());
        for (serial, rows) in taken {
            if let Some(entry) = self.entries.get_mut(&serial) {
                (entry.given, entry.chunks, entry.out) = (rows, 1, 1);
            }
            self.waiting.rows -= rows;
            pieces.push(Piece {
                serial,
                offset: 0,
                rows,
            });
        }
        if pieces.len() > 1 {
            self.coalesced += pieces.len() as u64;
        }
        Some(self.give(worker, Lane::Small, 0, model, pieces, now_us))
    }

    /// Whether a group has waited for company as long as it should, or has all the company it can take.
    fn is_ripe(&self, head: Serial, rows: usize, now_us: u64) -> bool {
        let delay_us = self.limits.batch_delay_us;
        delay_us == 0
            || rows >= self.limits.max_batch_rows
            || self
                .entries
                .get(&head)
                .is_none_or(|entry| entry.job.arrived_us + delay_us <= now_us)
    }

    /// How many of a group's waiting rows run as one batch: its share of the workers that are free, within the
    /// model's pace.
    fn batch_rows(&mut self, model: ModelId, waiting: usize) -> usize {
        let idle = self.workers.idle().max(1);
        let share = waiting.div_ceil(idle).max(self.limits.priority_rows);
        let paced = match self.limits.max_chunk_us {
            Some(max_us) => {
                let pace = self.paces.entry(model).or_default();
                pace.target_rows(max_us, self.limits.max_batch_rows)
            }
            None => self.limits.max_batch_rows,
        };
        share.min(paced)
    }

    fn next_bulk(&mut self, now_us: u64) -> Option<Assignment> {
        let worker = self.workers.best(Lane::Bulk)?;
        loop {
            let normal_turn = self.high_in_a_row >= HIGH_IN_A_ROW && !self.normal.is_empty();
            let high = !self.high.is_empty() && !normal_turn;
            let ring = if high {
                &mut self.high
            } else {
                &mut self.normal
            };
            let serial = ring.pop_front()?;
            let Some(entry) = self.entries.get_mut(&serial).filter(|e| !e.closed) else {
                continue; // closed while it waited
            };
            self.high_in_a_row = if high { self.high_in_a_row + 1 } else { 0 };
            let left = entry.job.rows - entry.given;
            let rows = if entry.job.splittable {
                let pace = self.paces.entry(entry.job.model).or_default();
                cut(&self.limits, pace, entry, left)
            } else {
                left
            };
            let piece = Piece {
                serial,
                offset: entry.given,
                rows,
            };
            entry.given += rows;
            entry.chunks += 1;
            entry.out += 1;
            let (model, more) = (entry.job.model, entry.given < entry.job.rows);
            self.waiting.rows -= rows;
            if more {
                let ring = if high {
                    &mut self.high
                } else {
                    &mut self.normal
                };
                ring.push_back(serial);
            }
            return Some(self.give(worker, Lane::Bulk, 0, model, vec![piece], now_us));
        }
    }

    fn give(
        &mut self,
        worker: WorkerId,
        lane: Lane,
        attempt: u32,
        model: ModelId,
        pieces: Vec<Piece>,
        now_us: u64,
    ) -> Assignment {
        self.next_chunk += 1;
        let chunk = ChunkId(self.next_chunk);
        let rows = pieces.iter().map(|p| p.rows).sum();
        let expected = self.paces.get(&model).map_or(0, |p| p.expect_us(rows));
        self.workers.give(worker, lane, chunk, expected, now_us);
        self.out.insert(
            chunk,
            Out {
                worker,
                lane,
                attempt,
                model,
                pieces: pieces.clone(),
            },
        );
        Assignment {
            chunk,
            worker,
            lane,
            attempt,
            model,
            pieces,
        }
    }

    /// A chunk has ended; `ran` is its rows and microseconds if the model ran. Returns the requests that are
    /// finished with it: all their rows were given out, and all their chunks have ended.
    pub(crate) fn credit(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        now_us: u64,
    ) -> Vec<Serial> {
        let Some(out) = self.out.remove(&chunk) else {
            return Vec::new();
        };
        self.workers.credit(out.worker, out.lane, chunk, now_us);
        if let Some((rows, us)) = ran {
            self.paces.entry(out.model).or_default().observe(rows, us);
        }
        let mut finished = Vec::with_capacity(out.pieces.len());
        for piece in &out.pieces {
            let Some(entry) = self.entries.get_mut(&piece.serial) else {
                continue;
            };
            entry.out -= 1;
            if entry.out > 0 {
                continue;
            }
            if entry.closed {
                self.remove(piece.serial);
            } else if entry.given == entry.job.rows && !self.waits_again(piece.serial) {
                self.remove(piece.serial);
                finished.push(piece.serial);
            }
        }
        finished
    }

    fn waits_again(&self, serial: Serial) -> bool {
        self.pieces_again(serial) > 0
    }

    fn pieces_again(&self, serial: Serial) -> u64 {
        let pieces = self.again.iter().flat_map(|again| &again.pieces);
        pieces.filter(|piece| piece.serial == serial).count() as u64
    }

    fn remove(&mut self, serial: Serial) {
        if let Some(entry) = self.entries.remove(&serial) {
            self.waiting.requests -= usize::from(!entry.closed);
            self.waiting.bytes -= entry.job.bytes;
        }
    }

    /// Ends a request: none of its rows is given out any more. Returns the number of its chunks whose parts have
    /// come or may still come; `None` if it is not known (any more).
    pub(crate) fn close(&mut self, serial: Serial) -> Option<u64> {
        let again = self.pieces_again(serial);
        let entry = self.entries.get_mut(&serial).filter(|e| !e.closed)?;
        let chunks = entry.chunks - again;
        let left = entry.job.rows - entry.given;
        self.waiting.rows -= left;
        let queued = (entry.small && entry.given == 0).then_some((entry.job.group, entry.job.rows));
        entry.closed = true;
        if let Some((group, rows)) = queued {
            let rows_of = open_rows(&self.entries);
            self.groups.close(group, serial, rows, rows_of);
        }
        let entry = self.entries.get_mut(&serial)?;
        self.waiting.requests -= 1;
        if entry.out == 0 {
            self.remove(serial);
        }
        Some(chunks)
    }

    /// A worker is gone with all that it held: its chunks run again elsewhere.
    pub(crate) fn worker_down(&mut self, worker: WorkerId) -> Losses {
        let mut losses = Losses::default();
        for chunk in self.workers.down(worker) {
            let Some(out) = self.out.remove(&chunk) else {
                continue;
            };
            let mut pieces = Vec::with_capacity(out.pieces.len());
            for piece in out.pieces {
                let Some(entry) = self.entries.get_mut(&piece.serial) else {
                    continue;
                };
                entry.out -= 1;
                if entry.closed {
                    losses.lost.push((piece.serial, 1));
                    if entry.out == 0 {
                        self.remove(piece.serial);
                    }
                    continue;
                }
                if out.attempt >= MAX_ATTEMPTS {
                    losses.abandoned.push(piece.serial);
                }
                pieces.push(piece);
            }
            // Also what is given up goes through here: close() then knows that its part will not come.
            self.again.push_back(Again {
                lane: out.lane,
                attempt: out.attempt + 1,
                model: out.model,
                pieces,
            });
        }
        losses
    }

    /// The requests whose deadline has passed. The caller closes them.
    pub(crate) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        if self.deadlines.len() > 2 * self.entries.len() + 1024 {
            // Behind one that runs long, the deadlines of those that have ended would stay.
            let entries = &self.entries;
            self.deadlines
                .retain(|Reverse((_, serial))| entries.contains_key(serial));
        }
        let mut expired = Vec::new();
        while let Some(Reverse((deadline, serial))) = self.deadlines.peek().copied() {
            let open = self.entries.get(&serial).is_some_and(|e| !e.closed);
            if open && deadline > now_us {
                break;
            }
            self.deadlines.pop();
            if open {
                expired.push(serial);
            }
        }
        expired
    }

    /// When something will be due without any event: a deadline, or the end of waiting for company.
    pub(crate) fn due_us(&self) -> Option<u64> {
        let deadline = self.deadlines.peek().map(|Reverse((us, _))| *us);
        let company = (self.limits.batch_delay_us > 0)
            .then(|| self.groups.oldest().next())
            .flatten()
            .and_then(|(head, _, _)| self.entries.get(&head))
            .filter(|_| self.workers.best(Lane::Small).is_some())
            .map(|entry| entry.job.arrived_us + self.limits.batch_delay_us);
        [deadline, company].into_iter().flatten().min()
    }

    /// What waits and what is held for it.
    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Small requests that shared a chunk so far.
    pub(crate) fn coalesced(&self) -> u64 {
        self.coalesced
    }

    /// No request is open and no chunk is out.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.out.is_empty()
    }

    /// Every request that is not closed.
    pub(crate) fn open(&self) -> Vec<Serial> {
        let open = self.entries.iter().filter(|(_, e)| !e.closed);
        open.map(|(serial, _)| *serial).collect()
    }

    /// The chunks that a worker holds.
    pub(crate) fn held(&self, worker: WorkerId) -> usize {
        self.workers.held(worker)
    }

    /// Whether that chunk is out.
    pub(crate) fn is_out(&self, chunk: ChunkId) -> bool {
        self.out.contains_key(&chunk)
    }

    /// A model is forgotten: so is its pace.
    pub(crate) fn forget(&mut self, model: ModelId) {
        self.paces.remove(&model);
    }
}

/// The rows of a request, if it is not closed.
fn open_rows(entries: &HashMap<Serial, Entry>) -> impl Fn(Serial) -> Option<usize> + '_ {
    |serial| {
        let entry = entries.get(&serial).filter(|entry| !entry.closed)?;
        Some(entry.job.rows)
    }
}

/// The rows of a bulk request's next chunk.
fn cut(limits: &Limits, pace: &mut Pace, entry: &mut Entry, left: usize) -> usize {
    let most = match limits.max_chunk_us {
        Some(max_us) => pace.target_rows(max_us, limits.max_batch_rows),
        None => limits.max_batch_rows,
    };
    let step = entry.job.step.max(1);
    let cut = Cut {
        most: most.next_multiple_of(step),
        floor: limits.priority_rows.max(step),
        workers: limits.workers,
        step,
    };
    if limits.max_chunk_us.is_some() && left > 2 * limits.workers * cut.most {
        // In the middle of a long request the pace decides; what is left at the end is shared out evenly.
        entry.planned = 0;
        return cut.most.min(left);
    }
    if entry.planned == 0 || left.div_ceil(entry.planned) > cut.most {
        entry.planned = cut.chunks(left);
    }
    let rows = cut.next(left, entry.planned);
    entry.planned -= 1;
    rows
}
