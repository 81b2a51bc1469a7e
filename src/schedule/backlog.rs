//! Rows that nobody has run yet: which request's are next, and how many of them.
//!
//! A model whose first leg is the extra workers' is theirs to begin, as long as the device's workers keep up with what
//! comes of it. A worker with a device that has nothing else to do takes such rows too, and runs every leg itself: so
//! does a lone small request, which then has the fewest hops.

use std::ops::Range;

use super::groups::Groups;
use super::pace::{Pace, Runs, Target};
use super::turns::{Rest, Turns};
use super::workers::{Expected, KEEPS_UP_US, SmallWait};
use super::{Assignment, Entry, Job, Lane, Limits, PaceKey, Piece, Scheduler, Selection, Work};
use crate::message::{Priority, Role, Serial, WorkerId};
use crate::split::{Cut, guided_share};
use foldhash::HashMap;

/// After so many chunks of high priority in a row, normal bulk gets one.
const HIGH_IN_A_ROW: u32 = 7;
/// What a row is taken to cost before its model has run: the turns are then by rows.
const UNKNOWN_ROW_US: f64 = 100.0;
/// After a small request others are expected for so long.
pub(super) const SMALL_COME_US: u64 = 1_000_000;
/// Where none has come for so long none is waited for: one a minute at most finds a worker in a run of a heavy model that is
/// longer than a chunk may be.
const NONE_COME_US: u64 = 60_000_000;
/// Chunks that may wait for each worker with a device before the extra workers begin no more.
const WAITING_PER_WORKER: usize = 2;

/// Which legs of new rows their first worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LegsToRun {
    First,
    All,
}

impl LegsToRun {
    fn of(self, job: &Job) -> Range<u32> {
        match self {
            LegsToRun::First => 0..1,
            LegsToRun::All => 0..job.legs.len() as u32,
        }
    }
}

/// The requests that wait for workers of one role.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) groups: Groups,
    high: Turns,
    normal: Turns,
    high_in_a_row: u32,
}

impl Backlog {
    pub(super) fn new(limits: &Limits) -> Backlog {
        Backlog {
            groups: Groups::new(limits.batch_delay_us, limits.max_batch_rows),
            high: Turns::default(),
            normal: Turns::default(),
            high_in_a_row: 0,
        }
    }

    fn bulk(&mut self, priority: Priority) -> &mut Turns {
        match priority {
            Priority::High => &mut self.high,
            Priority::Normal => &mut self.normal,
        }
    }

    pub(super) fn push(&mut self, job: &Job, lane: Lane) {
        match lane {
            Lane::Small => {
                let request = (job.serial, job.rows);
                self.groups
                    .push(job.group, job.client, request, job.arrived_us);
            }
            Lane::Bulk => self.bulk(job.priority).add(job.client, job.serial.0),
        }
    }

    /// A request that waited here was closed.
    pub(super) fn close(&mut self, job: &Job, lane: Lane) {
        match lane {
            Lane::Small => self.groups.close(job.group, job.client, job.serial),
            Lane::Bulk => self.bulk(job.priority).remove(job.client, job.serial.0),
        }
    }

    /// The bulk request whose turn it is.
    fn next_bulk(&mut self) -> Option<Serial> {
        let normal_turn = self.high_in_a_row >= HIGH_IN_A_ROW && !self.normal.is_empty();
        let (_, serial) = if self.high.is_empty() || normal_turn {
            self.high_in_a_row = 0;
            self.normal.next()?
        } else {
            self.high_in_a_row += 1;
            self.high.next()?
        };
        Some(Serial(serial))
    }

    /// Numbers that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.groups.kept() + self.high.kept() + self.normal.kept()
    }
}

impl<C: Clone> Scheduler<C> {
    pub(super) fn next_new(&mut self, now_us: u64) -> Option<Assignment<C>> {
        for lane in [Lane::Small, Lane::Bulk] {
            for role in [Role::Main, Role::Extra] {
                if lane == Lane::Small {
                    let groups = &mut self.backlogs[role as usize].groups;
                    groups.end_waiting(now_us);
                    let wait = self.pools[role as usize].small_wait(groups.rows(), now_us);
                    self.waits_until_us[role as usize] = wait.until_us();
                    if wait != SmallWait::No {
                        continue;
                    }
                }
                let Some((worker, runs)) = self.worker_for(role, lane) else {
                    continue;
                };
                let selection = match lane {
                    Lane::Small => self.next_small(role, runs),
                    Lane::Bulk => self.next_bulk(role, runs, now_us),
                };
                if let Some((selection, legs)) = selection {
                    let work = Work {
                        lane,
                        legs,
                        attempt: 0,
                        selection,
                        leg_outputs: None,
                    };
                    let expected = self.expect(&work);
                    let worker = match lane {
                        Lane::Small => self.small_worker(worker, &work, expected, now_us),
                        Lane::Bulk => worker,
                    };
                    return Some(self.give(worker, work, expected, now_us));
                }
            }
        }
        None
    }

    /// Who takes new rows that are for workers of this role, and which of their legs it runs.
    pub(super) fn worker_for(&self, role: Role, lane: Lane) -> Option<(WorkerId, LegsToRun)> {
        let [main, extra, _] = &self.pools;
        if role == Role::Main {
            return Some((main.best(lane)?, LegsToRun::All));
        }
        let waiting = self.returned[Role::Main as usize].len();
        let all_idle = extra.idle() == extra.count() && waiting == 0;
        if lane == Lane::Small
            && all_idle
            && let Some(worker) = main.best_idle(lane)
        {
            return Some((worker, LegsToRun::All));
        }
        extra
            .best(lane)
            .filter(|_| waiting < WAITING_PER_WORKER * main.count())
            .map(|worker| (worker, LegsToRun::First))
            .or_else(|| Some((main.best_idle(lane)?, LegsToRun::All)))
    }

    /// Who runs this small chunk, where `best` is the first of those that may.
    fn small_worker(
        &self,
        best: WorkerId,
        work: &Work<C>,
        expected: Option<Expected>,
        now_us: u64,
    ) -> WorkerId {
        let pool = &self.pools[self.role_of(best) as usize];
        // The one that was given a small chunk last, if it keeps up with this one too.
        if let Some(expected) = expected
            && let Some(last) = pool.takes_more(expected.us, now_us)
        {
            return last;
        }
        let [main, _, express] = &self.pools;
        let piece = work.selection.pieces.first();
        let entry = piece.and_then(|piece| self.entries.get(&piece.serial));
        let may_overtake = entry.is_some_and(|entry| entry.job.express);
        if may_overtake && main.is_in_long_runs(best) {
            return express.best(Lane::Small).unwrap_or(best);
        }
        best
    }

    /// Whether express workers may run all small requests that have come lately.
    fn small_may_overtake(&self, now_us: u64) -> bool {
        let [_, _, express] = &self.pools;
        let waited_us = self.waiting_small_us.map(|at| now_us.saturating_sub(at));
        express.is_any_up() && waited_us.is_none_or(|us| us >= SMALL_COME_US)
    }

    fn next_small(&mut self, role: Role, runs: LegsToRun) -> Option<(Selection, Range<u32>)> {
        let turn = self.backlogs[role as usize].groups.next()?;
        let first = &self.entries.get(&turn.oldest)?.job;
        let (model, splittable, step) = (first.model, first.splittable, first.step.max(1));
        let legs = runs.of(first);
        let pace = PaceKey::of(model, &legs);
        let target = if splittable {
            let pool = match runs {
                LegsToRun::All => Role::Main,
                LegsToRun::First => role,
            };
            self.batch_rows(pool, pace, turn.rows)
        } else {
            ONE_BY_ONE
        };
        let row_us = self.row_us(pace, target.run.unwrap_or(1));
        let groups = &mut self.backlogs[role as usize].groups;
        let taken = groups.take(turn, target.rows, row_us);
        let mut pieces = Vec::with_capacity(taken.requests.len());
        for (serial, rows) in taken.requests {
            if let Some(entry) = self.entries.get_mut(&serial) {
                (entry.given, entry.chunks, entry.out) = (rows, 1, 1);
            }
            self.waiting_rows -= rows;
            pieces.push(Piece {
                serial,
                offset: 0,
                rows,
            });
        }
        if pieces.len() > 1 {
            self.coalesced += pieces.len() as u64;
        }
        // A small request runs at once.
        let run = target.run.map(|run| {
            let most = pieces.iter().fold(run, |run, piece| run.max(piece.rows));
            most.next_multiple_of(step)
        });
        Some((Selection { model, pieces, run }, legs))
    }

    /// What a client is charged for a row.
    fn row_us(&self, pace: PaceKey, run: usize) -> f64 {
        let pace = self.paces.get(&pace);
        pace.and_then(|pace| pace.us_per_row(run))
            .unwrap_or(UNKNOWN_ROW_US)
    }

    /// How many of a group's waiting rows run as one batch: its share of the workers that are free and worth waking for
    /// it, within the model's pace.
    fn batch_rows(&mut self, pool: Role, pace: PaceKey, waiting: usize) -> Target {
        let expected_us = self
            .paces
            .get(&pace)
            .and_then(|pace| pace.expect_us(waiting, waiting));
        let worth_waking = expected_us.map_or(usize::MAX, |us| us.div_ceil(KEEPS_UP_US) as usize);
        let idle = self.pools[pool as usize].idle().min(worth_waking).max(1);
        let share = waiting.div_ceil(idle).max(self.limits.priority_rows);
        let there = share.min(waiting);
        let paced = target(&self.limits, &mut self.paces, pace, there, Runs::Cheapest);
        Target {
            rows: share.min(paced.rows),
            ..paced
        }
    }

    fn next_bulk(
        &mut self,
        role: Role,
        runs: LegsToRun,
        now_us: u64,
    ) -> Option<(Selection, Range<u32>)> {
        let size = if self.small_came_within(SMALL_COME_US, now_us) {
            match self.small_may_overtake(now_us) {
                true => Runs::Overtaken,
                false => Runs::Short,
            }
        } else if self.small_came_within(NONE_COME_US, now_us) {
            Runs::Cheapest
        } else {
            Runs::Long
        };
        let serial = self.backlogs[role as usize].next_bulk()?;
        // Only open requests with rows left are in the turns.
        let entry = self.entries.get_mut(&serial)?;
        let (model, client, priority) = (entry.job.model, entry.job.client, entry.job.priority);
        let legs = runs.of(&entry.job);
        let left = entry.job.rows - entry.given;
        let Target { rows, run, .. } = if entry.job.splittable {
            let of = |legs: &Range<u32>, there| {
                let key = PaceKey::of(model, legs);
                target(&self.limits, &mut self.paces, key, there, size)
            };
            cut(&self.limits, entry, &legs, of)
        } else {
            Target {
                rows: left,
                ..ONE_BY_ONE
            }
        };
        let piece = Piece {
            serial,
            offset: entry.given,
            rows,
        };
        entry.given += rows;
        entry.chunks += 1;
        entry.out += 1;
        self.waiting_rows -= rows;
        let row_us = self.row_us(PaceKey::of(model, &legs), run.unwrap_or(rows));
        let us = rows as f64 * row_us;
        let turns = self.backlogs[role as usize].bulk(priority);
        let rest = if rows < left {
            Rest::Waits
        } else {
            Rest::Nothing
        };
        turns.charge(client, serial.0, us as u64, rest);
        let pieces = vec![piece];
        Some((Selection { model, pieces, run }, legs))
    }
}

/// What cannot be split is not put together either, and runs as it is.
const ONE_BY_ONE: Target = Target {
    rows: 0,
    run: None,
    worth: 1,
    ample: usize::MAX,
};

/// What a model's pace says of its next chunk, where there are so many rows for it.
pub(super) fn target(
    limits: &Limits,
    paces: &mut HashMap<PaceKey, Pace>,
    key: PaceKey,
    there: usize,
    runs: Runs,
) -> Target {
    let most_rows = limits.max_batch_rows;
    match limits.max_chunk_us {
        Some(most_us) => paces
            .entry(key)
            .or_default()
            .target(most_us, most_rows, there, runs),
        None => Target {
            rows: most_rows,
            ..ONE_BY_ONE
        },
    }
}

/// The rows of a bulk request's next chunk; `paced` is what the model's pace says of legs.
fn cut(
    limits: &Limits,
    entry: &mut Entry,
    legs: &Range<u32>,
    mut paced: impl FnMut(&Range<u32>, usize) -> Target,
) -> Target {
    let job = &entry.job;
    let left = job.rows - entry.given;
    let extra = if job.legs.len() > 1 {
        limits.extra_workers
    } else {
        0
    };
    let workers = limits.workers + extra;
    // A chunk keeps its rows through all its legs: the slowest of them decides. What a later leg would rather try is not
    // asked now.
    let later = legs.end..job.legs.len() as u32;
    let most = later.map(|leg| paced(&(leg..leg + 1), 0).rows).min();
    let most = most.unwrap_or(usize::MAX);
    let target = paced(legs, guided_share(left, workers).min(most));
    let Target {
        run, worth, ample, ..
    } = target;
    let rows = target.rows.min(most);
    let step = job.step.max(1);
    let cut = Cut {
        most: rows.next_multiple_of(step),
        floor: limits.priority_rows.min(ample).max(step).max(worth),
        workers,
        step,
    };
    if let Some(run) = run {
        // Runs of a model of a fixed batch are whole batches.
        let run = run.next_multiple_of(step);
        let rows = cut.guided(left, run);
        let run = Some(run);
        return Target {
            rows,
            run,
            ..target
        };
    }
    if entry.planned == 0 || left.div_ceil(entry.planned) > cut.most {
        entry.planned = cut.chunks(left);
    }
    let rows = cut.next(left, entry.planned);
    entry.planned -= 1;
    Target { rows, ..target }
}
