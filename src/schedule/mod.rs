//! The queue and the policy as a pure state machine: events and the time go in, assignments come out.
//!
//! It does no input or output and reads no clock, so that it can be simulated (`simulation.rs`).
//!
//! ```text
//! submit    ─▶ small: groups that may run together, oldest first ─┐
//!           ─▶ high:  bulk requests in turn                       ├─ next() ─▶ worker's small or bulk lane
//!           ─▶ normal: bulk requests in turn                      │
//! lost      ─▶ returned: chunks of a worker that is gone,         │
//! hand_back ─▶           and those that have legs left: first ────┘
//! ```
//! What is new waits in `fresh.rs`, once for each role of worker.
//!
//! Each worker has two lanes of one running and `prefetch` waiting chunks. The small lane has places of its own, so
//! that a small request reaches a worker whose bulk places are full; the worker reads it first (`lane.rs`).
//! What is absent: rows, frames, sockets, names. A request is a [`Job`] here: numbers.

mod fresh;
mod groups;
mod job;
pub(crate) mod lane;
mod lost;
mod pace;
#[cfg(test)]
mod simulation;
mod workers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::Range;

use crate::error::{Error, Result};
use crate::message::{ChunkId, ModelId, Role, Serial, WorkerId};
use fresh::Fresh;
pub(crate) use job::{Assignment, Job, Lane, Limits, Losses, Piece, Waiting};
use pace::Pace;
use workers::Workers;

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
struct Out<C> {
    worker: WorkerId,
    lane: Lane,
    legs: Range<u32>,
    attempt: u32,
    chosen: Chosen,
    carry: Option<C>,
    /// Its worker is gone.
    lost: bool,
}

/// A chunk that waits once more: its worker was lost, or it has legs left.
#[derive(Debug)]
struct Returned<C> {
    lane: Lane,
    legs: Range<u32>,
    attempt: u32,
    chosen: Chosen,
    carry: Option<C>,
}

/// The rows of a chunk.
#[derive(Clone, Debug)]
struct Chosen {
    model: ModelId,
    pieces: Vec<Piece>,
    /// Rows that run at once; 0: all.
    run: usize,
}

/// Speeds are kept apart by what runs: one leg, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PaceKey(ModelId, Option<u32>);

impl PaceKey {
    fn of(model: ModelId, legs: &Range<u32>) -> PaceKey {
        PaceKey(model, (legs.len() == 1).then_some(legs.start))
    }
}

/// Every leg of a model.
fn whole_run(job: &Job) -> Range<u32> {
    0..job.legs.len() as u32
}

/// The queue and its policy. `C` is what is handed back with rows that have legs left, and given out with them again.
#[derive(Debug)]
pub(crate) struct Scheduler<C = ()> {
    limits: Limits,
    entries: HashMap<Serial, Entry>,
    out: HashMap<ChunkId, Out<C>>,
    /// By role, as are the two below.
    fresh: [Fresh; 2],
    returned: [VecDeque<Returned<C>>; 2],
    crews: [Workers; 2],
    deadlines: BinaryHeap<Reverse<(u64, Serial)>>,
    paces: HashMap<PaceKey, Pace>,
    next_chunk: u64,
    waiting: Waiting,
    coalesced: u64,
}

impl<C: Clone> Scheduler<C> {
    pub(crate) fn new(limits: Limits) -> Scheduler<C> {
        let places = 1 + limits.prefetch as u32;
        Scheduler {
            crews: [
                Workers::new(0, limits.workers, places),
                Workers::new(limits.workers as u32, limits.extra_workers, places),
            ],
            limits,
            entries: HashMap::new(),
            out: HashMap::new(),
            fresh: Default::default(),
            returned: Default::default(),
            deadlines: BinaryHeap::new(),
            paces: HashMap::new(),
            next_chunk: 0,
            waiting: Waiting::default(),
            coalesced: 0,
        }
    }

    fn crew(&mut self, worker: WorkerId) -> &mut Workers {
        let extra = worker.0 as usize >= self.limits.workers;
        &mut self.crews[usize::from(extra)]
    }

    /// A worker is ready, for the first time or again.
    pub(crate) fn worker_up(&mut self, worker: WorkerId, now_us: u64) {
        self.crew(worker).up(worker, now_us);
    }

    /// Whether a request of so many bytes may wait here, beside so many others with so many bytes that wait elsewhere.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the queue's bounds are reached.
    pub(crate) fn check_room(&self, bytes: u64, others: usize, their_bytes: u64) -> Result<()> {
        let requests = self.waiting.requests + others;
        if requests >= self.limits.max_requests {
            return Err(Error::exhausted(format!(
                "{requests} requests are queued, the most that this server takes; try later"
            )));
        }
        // A lone request is taken whatever its size: max_request_bytes bounds it.
        let waiting = self.waiting.bytes + their_bytes;
        if waiting > 0 && waiting + bytes > self.limits.max_bytes {
            return Err(Error::exhausted(format!(
                "{waiting} bytes are queued and the request has {bytes} more; the server holds at most {} (--max-queue-bytes); try later",
                self.limits.max_bytes
            )));
        }
        Ok(())
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// As [`Scheduler::check_room`].
    pub(crate) fn submit(&mut self, job: Job) -> Result<()> {
        self.check_room(job.bytes, 0, 0)?;
        self.waiting.requests += 1;
        self.waiting.rows += job.rows;
        self.waiting.bytes += job.bytes;
        if let Some(deadline) = job.deadline_us {
            self.deadlines.push(Reverse((deadline, job.serial)));
        }
        let serial = job.serial;
        let small = job.rows <= self.limits.priority_rows;
        let fresh = &mut self.fresh[first_role(&job) as usize];
        if small {
            fresh.groups.push(job.group, serial, job.rows);
        } else {
            fresh.push_bulk(job.priority, serial);
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
    pub(crate) fn next(&mut self, now_us: u64) -> Option<Assignment<C>> {
        self.next_returned(Role::Main, now_us)
            .or_else(|| self.next_returned(Role::Extra, now_us))
            .or_else(|| self.next_fresh(now_us))
    }

    fn next_returned(&mut self, role: Role, now_us: u64) -> Option<Assignment<C>> {
        loop {
            // The first that somebody has a place for: small ones do not wait behind bulk.
            let crew = &self.crews[role as usize];
            let mut waiting = self.returned[role as usize].iter().enumerate();
            let (place, worker) =
                waiting.find_map(|(place, returned)| Some((place, crew.best(returned.lane)?)))?;
            let Returned {
                lane,
                mut legs,
                attempt,
                mut chosen,
                carry,
            } = self.returned[role as usize].remove(place)?;
            chosen
                .pieces
                .retain(|piece| self.entries.get(&piece.serial).is_some_and(|e| !e.closed));
            let Some(first) = chosen.pieces.first() else {
                continue;
            };
            // Nobody else waits for the device: a small request is spared the hops to the end.
            if lane == Lane::Small
                && role == Role::Main
                && self.returned[role as usize].is_empty()
                && let Some(entry) = self.entries.get(&first.serial)
            {
                legs.end = entry.job.legs.len() as u32;
            }
            for piece in &chosen.pieces {
                if let Some(entry) = self.entries.get_mut(&piece.serial) {
                    entry.out += 1;
                }
            }
            let mut assignment = self.give(worker, lane, legs, attempt, chosen, now_us);
            assignment.carry.clone_from(&carry);
            if let Some(out) = self.out.get_mut(&assignment.chunk) {
                out.carry = carry;
            }
            return Some(assignment);
        }
    }

    fn give(
        &mut self,
        worker: WorkerId,
        lane: Lane,
        legs: Range<u32>,
        attempt: u32,
        chosen: Chosen,
        now_us: u64,
    ) -> Assignment<C> {
        self.next_chunk += 1;
        let chunk = ChunkId(self.next_chunk);
        let rows = chosen.pieces.iter().map(|p| p.rows).sum();
        let pace = self.paces.get(&PaceKey::of(chosen.model, &legs));
        let run = if chosen.run == 0 { rows } else { chosen.run };
        let expected = pace.map_or(0, |p| p.expect_us(run, rows));
        self.crew(worker)
            .give(worker, lane, chunk, expected, now_us);
        self.out.insert(
            chunk,
            Out {
                worker,
                lane,
                legs: legs.clone(),
                attempt,
                chosen: chosen.clone(),
                carry: None,
                lost: false,
            },
        );
        Assignment {
            chunk,
            worker,
            lane,
            attempt,
            model: chosen.model,
            legs,
            pieces: chosen.pieces,
            run: chosen.run,
            carry: None,
        }
    }

    /// Books a chunk that has ended.
    fn take_back(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        now_us: u64,
    ) -> Option<Out<C>> {
        let out = self.out.remove(&chunk)?;
        self.crew(out.worker)
            .credit(out.worker, out.lane, chunk, now_us);
        if let Some((rows, us)) = ran {
            let pace = PaceKey::of(out.chosen.model, &out.legs);
            let run = if out.chosen.run == 0 {
                rows
            } else {
                out.chosen.run
            };
            self.paces.entry(pace).or_default().observe(run, rows, us);
        }
        Some(out)
    }

    /// A chunk has run its legs and others are left: it waits for a worker of the next leg's role, with what was
    /// handed back. Returns the requests that were closed meanwhile: their parts will never come.
    pub(crate) fn hand_back(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        carry: C,
        now_us: u64,
    ) -> Vec<Serial> {
        let Some(mut out) = self.take_back(chunk, ran, now_us) else {
            return Vec::new();
        };
        let mut dropped = Vec::new();
        let mut role = Role::Main;
        out.chosen.pieces.retain(|piece| {
            let Some(entry) = self.entries.get_mut(&piece.serial) else {
                return false;
            };
            entry.out -= 1;
            if let Some(next) = entry.job.legs.get(out.legs.end as usize) {
                role = *next;
            }
            if entry.closed {
                dropped.push(piece.serial);
            }
            !entry.closed
        });
        for serial in &dropped {
            if self.entries.get(serial).is_some_and(|e| e.out == 0) {
                self.remove(*serial);
            }
        }
        if !out.chosen.pieces.is_empty() {
            let next = out.legs.end..out.legs.end + 1;
            if out.chosen.run > 0 {
                let pace = PaceKey::of(out.chosen.model, &next);
                out.chosen.run = fresh::target(&self.limits, &mut self.paces, pace).run;
            }
            self.returned[role as usize].push_back(Returned {
                lane: out.lane,
                legs: next,
                attempt: 0,
                chosen: out.chosen,
                carry: Some(carry),
            });
        }
        dropped
    }

    /// A chunk has ended; `ran` is its rows and microseconds if the model ran. Returns the requests that are
    /// finished with it: all their rows were given out, and all their chunks have ended.
    pub(crate) fn credit(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        now_us: u64,
    ) -> Vec<Serial> {
        let Some(out) = self.take_back(chunk, ran, now_us) else {
            return Vec::new();
        };
        let mut finished = Vec::with_capacity(out.chosen.pieces.len());
        for piece in &out.chosen.pieces {
            if self.piece_ended(piece.serial) {
                finished.push(piece.serial);
            }
        }
        finished
    }

    fn waits_again(&self, serial: Serial) -> bool {
        self.pieces_again(serial) > 0
    }

    fn pieces_again(&self, serial: Serial) -> u64 {
        let returned = self.returned.iter().flatten();
        let pieces = returned.flat_map(|returned| &returned.chosen.pieces);
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
        let role = first_role(&entry.job);
        let queued = (entry.small && entry.given == 0).then_some((entry.job.group, entry.job.rows));
        entry.closed = true;
        if let Some((group, rows)) = queued {
            let rows_of = open_rows(&self.entries);
            let groups = &mut self.fresh[role as usize].groups;
            groups.close(group, serial, rows, rows_of);
        } else if left > 0 {
            let rows_of = open_rows(&self.entries);
            self.fresh[role as usize].close_bulk(|serial| rows_of(serial).is_some());
        }
        let entry = self.entries.get_mut(&serial)?;
        self.waiting.requests -= 1;
        if entry.out == 0 {
            self.remove(serial);
        }
        Some(chunks)
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
        let company = self
            .fresh
            .iter()
            .zip([Role::Main, Role::Extra])
            .filter(|_| self.limits.batch_delay_us > 0)
            // Where nobody could take it, an end of waiting is no event.
            .filter(|(_, role)| self.taker(*role, Lane::Small).is_some())
            .filter_map(|(fresh, _)| fresh.groups.oldest().next())
            .filter_map(|(head, _, _)| self.entries.get(&head))
            .map(|entry| entry.job.arrived_us + self.limits.batch_delay_us);
        deadline.into_iter().chain(company).min()
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

    /// The chunks that workers hold.
    pub(crate) fn chunks_out(&self) -> usize {
        self.out.len()
    }

    /// The chunks that a worker holds.
    pub(crate) fn held(&self, worker: WorkerId) -> usize {
        self.crews.iter().map(|crew| crew.held(worker)).sum()
    }

    /// Whether that chunk is out, on a worker that is not lost.
    pub(crate) fn is_out(&self, chunk: ChunkId) -> bool {
        self.out.get(&chunk).is_some_and(|out| !out.lost)
    }

    /// The chunks that are out, on lost workers too.
    pub(crate) fn out(&self) -> Vec<ChunkId> {
        self.out.keys().copied().collect()
    }

    /// The last chunk that was given out.
    pub(crate) fn last_chunk(&self) -> ChunkId {
        ChunkId(self.next_chunk)
    }

    /// A model is forgotten: so is its pace.
    pub(crate) fn forget(&mut self, model: ModelId) {
        self.paces.retain(|PaceKey(of, _), _| *of != model);
    }
}

/// Who runs a request's first leg.
fn first_role(job: &Job) -> Role {
    job.legs.first().copied().unwrap_or(Role::Main)
}

/// The rows of a request, if it is not closed.
fn open_rows(entries: &HashMap<Serial, Entry>) -> impl Fn(Serial) -> Option<usize> + '_ {
    |serial| {
        let entry = entries.get(&serial).filter(|entry| !entry.closed)?;
        Some(entry.job.rows)
    }
}
