//! The queue and the policy as a pure state machine: events and the time go in, assignments come out.
//!
//! It does no input or output and reads no clock, so that it can be simulated (`simulation.rs`).
//!
//! ```text
//! submit    ─▶ small: clients in turn, from groups that may run together ─┐
//!           ─▶ high:  bulk, clients in turn                               ├─ next() ─▶ worker's small or bulk lane
//!           ─▶ normal: bulk, clients in turn                              │
//! lost      ─▶ returned: chunks of a worker that is gone,                 │
//! hand_back ─▶           and those that have legs left: first ────────────┘
//! ```
//! What is new waits in `backlog.rs`, once for each role of worker. Clients take turns by time (`turns.rs`), and each has
//! a share of the queue (`shares.rs`).
//!
//! Each worker has two lanes of one running and `prefetch` waiting chunks. The small lane has places of its own, so
//! that a small request reaches a worker whose bulk places are full; the worker reads it first (`lane.rs`). It has some more for
//! a worker that keeps up with them (`workers.rs`).
//! What comes back with more to do is not a stage but a *leg*: stages in a row that run in the same kind of worker. Without
//! extra workers a model has one leg, and its stages cost no hop.
//! Express workers have no backlog: a small chunk for a main worker goes to one of them while each main one is inside long runs
//! of bulk (`small_worker` in `backlog.rs`).
//!
//! What is absent: rows, frames, sockets, names. A request is a [`Job`] here: numbers.

mod backlog;
mod groups;
mod job;
pub(crate) mod lane;
mod lost;
mod pace;
mod returned;
mod shares;
#[cfg(test)]
mod simulation;
mod turns;
mod workers;

use std::collections::VecDeque;
use std::ops::Range;

use crate::deadlines::Deadlines;
use crate::error::Result;
use crate::message::{ChunkId, ModelId, ReplyTo, Role, Serial, WorkerId};
use crate::shares::{Amount, Shares};
use backlog::{Backlog, SMALL_COME_US};
use foldhash::HashMap;
pub(crate) use job::{Assignment, Job, Lane, Limits, Losses, Piece, Waiting};
use pace::Pace;
pub(crate) use workers::most_held;
use workers::{Expected, Held, SmallWait, Workers};

/// A chunk that lost its worker is run again so many times: what kills workers must not kill them all for ever.
const MAX_ATTEMPTS: u32 = 2;

#[derive(Debug)]
struct Entry {
    job: Job,
    /// Small ones wait in groups, others in turns.
    lane: Lane,
    /// Rows that have been given out.
    given: usize,
    /// Chunks that have been given out, each counted once however often it ran.
    chunks: u64,
    /// Chunks that are out now.
    out: u32,
    /// Of those given out, the chunks that wait once more.
    returned: u64,
    /// Chunks that the rest will be cut into, once that is fixed.
    planned: usize,
    closed: bool,
}

/// A chunk that a worker has.
#[derive(Debug)]
struct Out<C> {
    worker: WorkerId,
    work: Work<C>,
    /// Its worker is gone.
    lost: bool,
}

/// What a worker is to do in one chunk.
#[derive(Debug)]
struct Work<C> {
    lane: Lane,
    legs: Range<u32>,
    /// 0 for the first run, more after a worker was lost.
    attempt: u32,
    selection: Selection,
    /// What was handed back with the rows after an earlier leg.
    leg_outputs: Option<C>,
}

/// The rows of a chunk.
#[derive(Clone, Debug)]
struct Selection {
    model: ModelId,
    pieces: Vec<Piece>,
    /// Rows that run at once; `None`: all of them.
    run: Option<usize>,
}

/// Speeds are kept apart by what runs: one leg, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PaceKey(ModelId, Option<u32>);

impl PaceKey {
    fn of(model: ModelId, legs: &Range<u32>) -> PaceKey {
        PaceKey(model, (legs.len() == 1).then_some(legs.start))
    }
}

/// The queue and its policy. `C` is what is handed back with rows that have legs left, and given out with them again.
#[derive(Debug)]
pub(crate) struct Scheduler<C = ()> {
    limits: Limits,
    entries: HashMap<Serial, Entry>,
    out: HashMap<ChunkId, Out<C>>,
    /// By the role of a request's first leg.
    backlogs: [Backlog; 2],
    /// By the role of the next leg.
    returned: [VecDeque<Work<C>>; 2],
    /// By role.
    pools: [Workers; 3],
    deadlines: Deadlines,
    paces: HashMap<PaceKey, Pace>,
    next_chunk: u64,
    shares: Shares,
    /// Rows that were not given out yet.
    waiting_rows: usize,
    coalesced: u64,
    /// When a small request came last.
    small_us: Option<u64>,
    /// When one came last that express workers may not run, so that it waits for the end of a run.
    waiting_small_us: Option<u64>,
    /// By role: until when small requests wait for the worker that keeps up with them.
    waits_until_us: [Option<u64>; 2],
}

impl<C: Clone> Scheduler<C> {
    pub(crate) fn new(limits: Limits) -> Scheduler<C> {
        let places = 1 + limits.prefetch as u32;
        let mut first = 0;
        let counts = [limits.workers, limits.extra_workers, limits.express_workers];
        let pools = counts.map(|count| {
            let pool = Workers::new(first, count, places);
            first += count as u32;
            pool
        });
        Scheduler {
            pools,
            backlogs: [Backlog::new(&limits), Backlog::new(&limits)],
            limits,
            entries: HashMap::default(),
            out: HashMap::default(),
            returned: Default::default(),
            deadlines: Deadlines::default(),
            paces: HashMap::default(),
            next_chunk: 0,
            shares: Shares::default(),
            waiting_rows: 0,
            coalesced: 0,
            small_us: None,
            waiting_small_us: None,
            waits_until_us: [None; 2],
        }
    }

    fn role_of(&self, worker: WorkerId) -> Role {
        let number = worker.0 as usize;
        match number.checked_sub(self.limits.workers) {
            None => Role::Main,
            Some(number) if number < self.limits.extra_workers => Role::Extra,
            Some(_) => Role::Express,
        }
    }

    fn pool(&mut self, worker: WorkerId) -> &mut Workers {
        let role = self.role_of(worker);
        &mut self.pools[role as usize]
    }

    /// A worker is ready, for the first time or again.
    pub(crate) fn worker_up(&mut self, worker: WorkerId, now_us: u64) {
        self.pool(worker).up(worker, now_us);
    }

    /// Whether a client may add a request of so many bytes to what waits here, beside what is parked elsewhere, and what
    /// else counts in the queue's bounds.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the queue's bounds are reached, or the client's share of them.
    pub(crate) fn check_room(
        &self,
        client: ReplyTo,
        bytes: u64,
        parked: &Shares,
        beside: Amount,
    ) -> Result<()> {
        let held = [&self.shares, parked];
        shares::check_room(&self.limits, client, bytes, held, beside)
    }

    /// Takes a request into the queue. Its client's share was checked when it came ([`Scheduler::check_room`]): what
    /// was parked since is not refused because others came meanwhile.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the queue's bounds are reached.
    pub(crate) fn submit(&mut self, job: Job) -> Result<()> {
        shares::check_bounds(&self.limits, self.shares.all(), job.bytes)?;
        self.shares.add(job.client, job.bytes);
        self.waiting_rows += job.rows;
        if let Some(deadline_us) = job.deadline_us {
            self.deadlines.push(deadline_us, job.serial);
        }
        let serial = job.serial;
        let lane = match job.rows <= self.limits.priority_rows {
            true => Lane::Small,
            false => Lane::Bulk,
        };
        if lane == Lane::Small {
            self.small_us = Some(job.arrived_us);
            if !job.express {
                self.waiting_small_us = Some(job.arrived_us);
            }
        }
        self.backlogs[first_role(&job) as usize].push(&job, lane);
        self.entries.insert(
            serial,
            Entry {
                job,
                lane,
                given: 0,
                chunks: 0,
                out: 0,
                returned: 0,
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
            .or_else(|| self.next_new(now_us))
    }

    fn give(
        &mut self,
        worker: WorkerId,
        work: Work<C>,
        expected: Option<Expected>,
        now_us: u64,
    ) -> Assignment<C> {
        let Work {
            lane, selection, ..
        } = &work;
        self.next_chunk += 1;
        let chunk = ChunkId(self.next_chunk);
        // Made here and not when the chunk comes back: by then its model may be forgotten.
        let key = PaceKey::of(selection.model, &work.legs);
        self.paces.entry(key).or_default();
        let held = Held {
            chunk,
            rows: selection.pieces.iter().map(|piece| piece.rows).sum(),
            expected,
        };
        self.pool(worker).give(worker, *lane, held, now_us);
        let assignment = Assignment {
            chunk,
            worker,
            lane: *lane,
            model: selection.model,
            legs: work.legs.clone(),
            pieces: selection.pieces.clone(),
            run: selection.run,
            leg_outputs: work.leg_outputs.clone(),
        };
        let lost = false;
        self.out.insert(chunk, Out { worker, work, lost });
        assignment
    }

    /// What is expected of a chunk, if its model has run before.
    fn expect(&self, work: &Work<C>) -> Option<Expected> {
        let Work {
            legs, selection, ..
        } = work;
        let rows = selection.pieces.iter().map(|p| p.rows).sum();
        let run = selection.run.unwrap_or(rows).min(rows);
        let pace = self.paces.get(&PaceKey::of(selection.model, legs))?;
        let us = pace.expect_us(run, rows)?;
        let run_us = us.saturating_mul(run as u64) / rows.max(1) as u64;
        Some(Expected { us, run_us })
    }

    fn small_came_within(&self, us: u64, now_us: u64) -> bool {
        self.small_us
            .is_some_and(|at| now_us.saturating_sub(at) < us)
    }

    /// Books a chunk that has ended.
    fn take_back(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        now_us: u64,
    ) -> Option<Out<C>> {
        let out = self.out.remove(&chunk)?;
        self.pool(out.worker)
            .credit(out.worker, out.work.lane, chunk, now_us);
        let Work {
            legs, selection, ..
        } = &out.work;
        let small_came = self.small_came_within(SMALL_COME_US, now_us);
        let pace = self.paces.get_mut(&PaceKey::of(selection.model, legs));
        if let (Some((rows, us)), Some(pace)) = (ran, pace) {
            pace.observe(selection.run.unwrap_or(rows), rows, us, small_came);
        }
        Some(out)
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
        let pieces = out.work.selection.pieces;
        let mut finished = Vec::with_capacity(pieces.len());
        for piece in pieces {
            if self.piece_ended(piece.serial) {
                finished.push(piece.serial);
            }
        }
        finished
    }

    fn remove(&mut self, serial: Serial) {
        if let Some(entry) = self.entries.remove(&serial) {
            let (client, bytes) = (entry.job.client, entry.job.bytes);
            match entry.closed {
                true => self.shares.free(client, bytes),
                false => self.shares.remove(client, bytes),
            }
        }
    }

    /// Ends a request: none of its rows is given out any more. Returns the number of its chunks whose parts have
    /// come or may still come; `None` if it is not known (any more).
    pub(crate) fn close(&mut self, serial: Serial) -> Option<u64> {
        let entry = self.entries.get_mut(&serial).filter(|e| !e.closed)?;
        let chunks = entry.chunks - entry.returned;
        let left = entry.job.rows - entry.given;
        entry.closed = true;
        self.waiting_rows -= left;
        self.shares.end(entry.job.client);
        if left > 0 {
            self.backlogs[first_role(&entry.job) as usize].close(&entry.job, entry.lane);
        }
        if entry.out == 0 {
            self.remove(serial);
        }
        Some(chunks)
    }

    /// The requests whose deadline has passed. The caller closes them.
    pub(crate) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        let entries = &self.entries;
        let is_open = |serial| entries.get(&serial).is_some_and(|e| !e.closed);
        self.deadlines.expired(now_us, entries.len(), is_open)
    }

    /// When something will be due without any event: a deadline, the end of waiting for company, or for a worker that
    /// did not keep up after all.
    pub(crate) fn due_us(&self) -> Option<u64> {
        let roles = [Role::Main, Role::Extra];
        let small = roles.into_iter().flat_map(|role| self.small_due_us(role));
        let small = small.flatten();
        self.deadlines.due_us().into_iter().chain(small).min()
    }

    fn small_due_us(&self, role: Role) -> [Option<u64>; 2] {
        let groups = &self.backlogs[role as usize].groups;
        let for_worker = self.waits_until_us[role as usize];
        let company = groups
            .due_us()
            // Where nobody could take it, an end of waiting is no event.
            .filter(|_| self.worker_for(role, Lane::Small).is_some())
            .map(|due_us| due_us.max(for_worker.unwrap_or(0)));
        [company, for_worker.filter(|_| groups.has_turn())]
    }

    /// What waits and what is held for it.
    pub(crate) fn waiting(&self) -> Waiting {
        let held = self.shares.all();
        Waiting {
            requests: held.count,
            rows: self.waiting_rows,
            bytes: held.bytes,
        }
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

    /// Workers that hold chunks.
    pub(crate) fn busy_workers(&self) -> usize {
        self.pools.iter().map(Workers::busy).sum()
    }

    /// Whether express workers hold chunks and no other does, whose credit would come soon.
    pub(crate) fn only_express_are_busy(&self) -> bool {
        let [main, extra, express] = &self.pools;
        express.busy() > 0 && main.busy() + extra.busy() == 0
    }

    /// Whether small requests wait for a worker.
    pub(crate) fn small_ones_wait(&self) -> bool {
        self.backlogs
            .iter()
            .any(|backlog| backlog.groups.has_turn())
    }

    /// No worker has a place for another small chunk: what is small waits until a chunk ends.
    pub(crate) fn is_full_of_small(&self, now_us: u64) -> bool {
        // An express worker is given what a main one has a place for too.
        let [main, extra, _] = &self.pools;
        [main, extra].iter().all(|pool| {
            let wait = pool.small_wait(usize::MAX, now_us);
            pool.best(Lane::Small).is_none() || wait != SmallWait::No
        })
    }

    /// The chunks that a worker holds.
    pub(crate) fn held(&self, worker: WorkerId) -> usize {
        self.pools.iter().map(|pool| pool.held(worker)).sum()
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
