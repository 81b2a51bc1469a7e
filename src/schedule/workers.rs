//! The workers as the policy sees them: who has a place, and who will be free first.
//!
//! Small chunks that run fast stay with one worker while it keeps up ([`KEEPS_UP_US`]): they then meet more company, and
//! another worker is not woken for less than the waking costs.

use std::collections::{BTreeSet, VecDeque};

use super::Lane;
use crate::message::{ChunkId, WorkerId};

/// Fewest chunks first, then who lets small ones pass first, then who is free first; the number settles the rest.
type Key = (u32, u32, u64, u32);

/// A worker keeps up with small chunks while those that it holds take no longer than this together. Waking another and
/// changing to it takes about as long where cores are few; with more to do, several workers end sooner.
pub(super) const KEEPS_UP_US: u64 = 150;

/// Small chunks that a worker may hold while it keeps up with them, where `prefetch` says fewer. Else the ventilator would stop
/// for the end of each, on a core that has other work.
pub(super) const SHORT_PLACES: u32 = 5;

/// Small chunks wait for the end of runs of bulk up to so long: there a model's rows leave the core's cache anyway. An express
/// worker takes that core in the middle of longer ones.
pub(super) const LONG_RUN_US: u64 = 700;

/// Chunks that a worker may hold in both lanes, running and waiting, where `prefetch` wait in each.
pub(crate) fn most_held(prefetch: usize) -> usize {
    [Lane::Small, Lane::Bulk]
        .map(|lane| most_in(lane, prefetch))
        .iter()
        .sum()
}

/// Of these those in one lane.
pub(super) fn most_in(lane: Lane, prefetch: usize) -> usize {
    match lane {
        Lane::Small => (1 + prefetch).max(SHORT_PLACES as usize),
        Lane::Bulk => 1 + prefetch,
    }
}

/// A chunk that a worker has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) chunk: ChunkId,
    pub(super) rows: usize,
    /// If its model has run before.
    pub(super) expected: Option<Expected>,
}

/// How long a chunk is expected to take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) us: u64,
    /// One run of it. Small chunks pass between two.
    pub(super) run_us: u64,
}

impl Held {
    fn expected_us(&self) -> Option<u64> {
        self.expected.map(|expected| expected.us)
    }
}

#[derive(Debug, Default)]
struct Worker {
    up: bool,
    small: VecDeque<Held>,
    bulk: VecDeque<Held>,
    /// When what runs is expected to end; for an idle worker, when it became idle.
    free_us: u64,
    keys: [Option<Key>; 2],
}

/// Whether small rows wait for the worker that keeps up with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SmallWait {
    No,
    /// Until a chunk ends, or more rows have come.
    ForCredit,
    /// Until then at most, as another worker has a place.
    Until(u64),
}

impl SmallWait {
    pub(super) fn until_us(self) -> Option<u64> {
        match self {
            SmallWait::Until(us) => Some(us),
            SmallWait::No | SmallWait::ForCredit => None,
        }
    }
}

/// All workers, ordered for each lane by who should get the next chunk.
#[derive(Debug)]
pub(super) struct Workers {
    /// The first one's number.
    first: u32,
    workers: Vec<Worker>,
    places: u32,
    ready: [BTreeSet<Key>; 2],
    idle: usize,
    busy: usize,
    /// Who was given a small chunk last.
    last_small: Option<WorkerId>,
}

impl Worker {
    /// How long the small chunks that it holds are expected to run. `None` if that is not known, if they are late, or if
    /// bulk is in their way.
    fn small_us(&self, now_us: u64) -> Option<u64> {
        let is_late = !self.small.is_empty() && now_us >= self.free_us + KEEPS_UP_US;
        if is_late {
            return None;
        }
        self.small_in_time_us()
    }

    /// As [`Worker::small_us`], if none of them is late.
    fn small_in_time_us(&self) -> Option<u64> {
        if !self.bulk.is_empty() {
            return None;
        }
        self.small.iter().map(Held::expected_us).sum()
    }

    /// How long a small chunk may have to wait here for the end of a run, in binary digits: of two bulk chunks the one that ends
    /// first may be a single long run.
    fn wait_digits(&self) -> u32 {
        let run_us = self.bulk_run_us();
        run_us.map_or(0, |us| u64::BITS - us.leading_zeros())
    }

    /// How long a run of the bulk chunk that it holds is expected to take; the longest time if its model has not run before.
    fn bulk_run_us(&self) -> Option<u64> {
        let expected = self.bulk.front()?.expected;
        Some(expected.map_or(u64::MAX, |expected| expected.run_us))
    }

    /// Whether there is a place for one more chunk, where `places` are for each lane.
    fn has_place(&self, lane: Lane, places: u32) -> bool {
        let held = self.held(lane);
        let are_short = || self.small_in_time_us().is_some_and(|us| us <= KEEPS_UP_US);
        held < places || (lane == Lane::Small && held < SHORT_PLACES && are_short())
    }

    fn held(&self, lane: Lane) -> u32 {
        match lane {
            Lane::Small => self.small.len() as u32,
            Lane::Bulk => self.bulk.len() as u32,
        }
    }
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Small => 0,
        Lane::Bulk => 1,
    }
}

impl Workers {
    pub(super) fn new(first: u32, count: usize, places: u32) -> Workers {
        Workers {
            first,
            workers: (0..count).map(|_| Worker::default()).collect(),
            places,
            ready: [BTreeSet::new(), BTreeSet::new()],
            idle: 0,
            busy: 0,
            last_small: None,
        }
    }

    /// Workers that hold nothing.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// Workers that hold something.
    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    /// Workers in all.
    pub(super) fn count(&self) -> usize {
        self.workers.len()
    }

    /// Whether any of them takes chunks.
    pub(super) fn is_any_up(&self) -> bool {
        self.workers.iter().any(|worker| worker.up)
    }

    fn index(&self, worker: WorkerId) -> usize {
        // A number below the first one's is nobody's here.
        worker.0.checked_sub(self.first).unwrap_or(u32::MAX) as usize
    }

    pub(super) fn held(&self, worker: WorkerId) -> usize {
        let worker = self.workers.get(self.index(worker));
        worker.map_or(0, |w| w.small.len() + w.bulk.len())
    }

    /// The worker that should get the next chunk of a lane, if any has a place.
    pub(super) fn best(&self, lane: Lane) -> Option<WorkerId> {
        let (.., worker) = self.ready[index(lane)].first()?;
        Some(WorkerId(*worker))
    }

    /// Whether that one is here and inside bulk whose runs are too long for a small chunk to wait for the end of one.
    pub(super) fn is_in_long_runs(&self, worker: WorkerId) -> bool {
        let worker = self.workers.get(self.index(worker));
        let run_us = worker.and_then(Worker::bulk_run_us);
        run_us.is_some_and(|us| us > LONG_RUN_US)
    }

    /// As [`Workers::best`], if that one holds nothing.
    pub(super) fn best_idle(&self, lane: Lane) -> Option<WorkerId> {
        let (load, .., worker) = self.ready[index(lane)].first()?;
        (*load == 0).then_some(WorkerId(*worker))
    }

    /// Who was given a small chunk last, if it keeps up.
    fn keeping_up(&self, now_us: u64) -> Option<(WorkerId, &Worker, u64)> {
        let id = self.last_small?;
        let worker = self.workers.get(self.index(id)).filter(|w| w.up)?;
        let small_us = worker.small_us(now_us)?;
        (small_us <= KEEPS_UP_US).then_some((id, worker, small_us))
    }

    /// Who was given a small chunk last, if it has a place and keeps up with one more that takes so long.
    pub(super) fn takes_more(&self, expected_us: u64, now_us: u64) -> Option<WorkerId> {
        let (id, worker, small_us) = self.keeping_up(now_us)?;
        let has_place = worker.has_place(Lane::Small, self.places);
        (has_place && small_us + expected_us <= KEEPS_UP_US).then_some(id)
    }

    /// Whether the small rows that wait, so many, wait on for the worker that keeps up with them.
    pub(super) fn small_wait(&self, rows: usize, now_us: u64) -> SmallWait {
        let Some((_, worker, _)) = self.keeping_up(now_us) else {
            return self.usual_wait();
        };
        let has_place = worker.has_place(Lane::Small, self.places);
        // Not in ever smaller chunks.
        let has_enough = worker.held(Lane::Small) < self.places
            || worker.small.back().is_none_or(|newest| newest.rows <= rows);
        if has_place && has_enough {
            return SmallWait::No;
        }
        let others = self.ready[index(Lane::Small)].len() - usize::from(has_place);
        match others {
            0 => SmallWait::ForCredit,
            _ => SmallWait::Until(worker.free_us + KEEPS_UP_US),
        }
    }

    /// Nobody keeps up with small chunks: more of them than usual are for nobody.
    fn usual_wait(&self) -> SmallWait {
        let best = self.best(Lane::Small).map(|worker| self.index(worker));
        let best = best.and_then(|index| self.workers.get(index));
        match best.is_some_and(|worker| worker.held(Lane::Small) >= self.places) {
            true => SmallWait::ForCredit,
            false => SmallWait::No,
        }
    }

    /// Changes a worker, keeping the order and the count of the idle ones.
    fn change<T>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let number = self.index(id);
        let worker = self.workers.get_mut(number)?;
        let is_busy = |w: &Worker| !(w.small.is_empty() && w.bulk.is_empty());
        let is_idle = |w: &Worker| w.up && !is_busy(w);
        let was = (is_idle(worker), is_busy(worker));
        let result = change(worker);
        self.idle = self.idle + usize::from(is_idle(worker)) - usize::from(was.0);
        self.busy = self.busy + usize::from(is_busy(worker)) - usize::from(was.1);
        for lane in [Lane::Small, Lane::Bulk] {
            let has_place = worker.has_place(lane, self.places);
            // A small chunk runs after what runs now and before the bulk that waits: only its own lane counts,
            // and whether the worker is idle.
            let busy = u32::from(!is_idle(worker));
            let load = worker.held(lane) + busy;
            let wait = match lane {
                Lane::Small => worker.wait_digits(),
                Lane::Bulk => 0,
            };
            let key = (worker.up && has_place).then_some((load, wait, worker.free_us, id.0));
            let ready = &mut self.ready[index(lane)];
            if let Some(old) = std::mem::replace(&mut worker.keys[index(lane)], key) {
                ready.remove(&old);
            }
            if let Some(key) = key {
                ready.insert(key);
            }
        }
        Some(result)
    }

    pub(super) fn up(&mut self, id: WorkerId, now_us: u64) {
        self.change(id, |worker| {
            worker.up = true;
            worker.free_us = now_us;
        });
    }

    /// Takes a worker out, and returns the chunks that it held.
    pub(super) fn down(&mut self, id: WorkerId) -> Vec<ChunkId> {
        self.change(id, |worker| {
            worker.up = false;
            let held = worker.small.drain(..).chain(worker.bulk.drain(..));
            held.map(|held| held.chunk).collect()
        })
        .unwrap_or_default()
    }

    pub(super) fn give(&mut self, id: WorkerId, lane: Lane, held: Held, now_us: u64) {
        if lane == Lane::Small {
            self.last_small = Some(id);
        }
        self.change(id, |worker| {
            if worker.small.is_empty() && worker.bulk.is_empty() {
                worker.free_us = now_us + held.expected_us().unwrap_or(0);
            }
            match lane {
                Lane::Small => worker.small.push_back(held),
                Lane::Bulk => worker.bulk.push_back(held),
            }
        });
    }

    pub(super) fn credit(&mut self, id: WorkerId, lane: Lane, chunk: ChunkId, now_us: u64) {
        self.change(id, |worker| {
            let held = match lane {
                Lane::Small => &mut worker.small,
                Lane::Bulk => &mut worker.bulk,
            };
            held.retain(|held| held.chunk != chunk);
            let next = worker.small.front().or(worker.bulk.front());
            worker.free_us = now_us + next.and_then(Held::expected_us).unwrap_or(0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_000;

    fn bulk(chunk: u64, expected: Option<Expected>) -> Held {
        Held {
            chunk: ChunkId(chunk),
            rows: 16,
            expected,
        }
    }

    /// Who gets a small chunk where the two workers run these.
    fn who_gets_it(running: [Option<Expected>; 2]) -> WorkerId {
        let mut workers = Workers::new(0, 2, 2);
        for (id, expected) in running.into_iter().enumerate() {
            let worker = WorkerId(id as u32);
            workers.up(worker, NOW_US);
            workers.give(worker, Lane::Bulk, bulk(id as u64, expected), NOW_US);
        }
        workers.best(Lane::Small).unwrap()
    }

    /// The bug: the chunk that ends first was taken, and small requests waited for a run of 8 ms while the other worker's were
    /// of 2 ms.
    #[test]
    fn small_chunks_go_to_whose_runs_are_short() {
        let chunk = |us, run_us| Some(Expected { us, run_us });
        let one_long_run = chunk(8_000, 8_000);
        assert_eq!(
            who_gets_it([one_long_run, chunk(9_000, 2_000)]),
            WorkerId(1)
        );
        assert_eq!(who_gets_it([None, chunk(9_000, 2_000)]), WorkerId(1));
        // Of two that are alike it is who is free first.
        assert_eq!(
            who_gets_it([chunk(9_000, 2_000), chunk(7_000, 1_900)]),
            WorkerId(1)
        );
        assert_eq!(
            who_gets_it([chunk(7_000, 1_900), chunk(9_000, 1_800)]),
            WorkerId(0)
        );
    }
}
