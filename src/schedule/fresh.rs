//! Rows that nobody has run yet: which request's are next, and how many of them.
//!
//! A model whose first leg is the extra workers' is theirs to begin, as long as the device's workers keep up with what
//! comes of it. A worker with a device that has nothing else to do takes such rows too, and runs every leg itself: so
//! does a lone small request, which then has the fewest hops.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::groups::{Groups, MOST_CLOSED, compact};
use super::pace::{Pace, Target};
use super::{Assignment, Chosen, Entry, Lane, Limits, PaceKey, Piece, Scheduler, whole_run};
use crate::message::{Priority, Role, Serial, WorkerId};
use crate::split::Cut;

/// After so many chunks of high priority in a row, normal bulk gets one.
const HIGH_IN_A_ROW: u32 = 7;
/// Chunks that may wait for each worker with a device before the extra workers begin no more.
const WAITING_PER_WORKER: usize = 2;

/// The requests that wait for workers of one role.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) groups: Groups,
    high: VecDeque<Serial>,
    normal: VecDeque<Serial>,
    high_in_a_row: u32,
    /// Of those in the rings, the closed.
    closed: usize,
}

impl Fresh {
    pub(super) fn push_bulk(&mut self, priority: Priority, serial: Serial) {
        match priority {
            Priority::High => self.high.push_back(serial),
            Priority::Normal => self.normal.push_back(serial),
        }
    }

    /// A bulk request that waited here was closed: it goes when its turn comes, or many others were closed too.
    pub(super) fn close_bulk(&mut self, is_open: impl Fn(Serial) -> bool) {
        self.closed += 1;
        if self.closed > MOST_CLOSED.max((self.high.len() + self.normal.len()) / 2) {
            compact(&mut self.high, &is_open);
            compact(&mut self.normal, &is_open);
            self.closed = 0;
        }
    }

    /// Numbers that are kept, of open and of closed requests.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.groups.kept() + self.high.len() + self.normal.len()
    }

    /// The bulk request whose turn it is, and the ring that it came from.
    fn pop_bulk(&mut self) -> Option<(Serial, Priority)> {
        let normal_turn = self.high_in_a_row >= HIGH_IN_A_ROW && !self.normal.is_empty();
        if !self.high.is_empty() && !normal_turn {
            return Some((self.high.pop_front()?, Priority::High));
        }
        Some((self.normal.pop_front()?, Priority::Normal))
    }
}

impl<C: Clone> Scheduler<C> {
    pub(super) fn next_fresh(&mut self, now_us: u64) -> Option<Assignment<C>> {
        for lane in [Lane::Small, Lane::Bulk] {
            for role in [Role::Main, Role::Extra] {
                let Some((worker, alone)) = self.taker(role, lane) else {
                    continue;
                };
                let chosen = match lane {
                    Lane::Small => self.next_small(role, alone, now_us),
                    Lane::Bulk => self.next_bulk(role, alone),
                };
                if let Some((chosen, legs)) = chosen {
                    return Some(self.give(worker, lane, legs, 0, chosen, now_us));
                }
            }
        }
        None
    }

    /// Who takes new rows that are for workers of this role, and whether it runs every leg of them.
    pub(super) fn taker(&self, role: Role, lane: Lane) -> Option<(WorkerId, bool)> {
        let [main, extra] = &self.crews;
        if role == Role::Main {
            return Some((main.best(lane)?, true));
        }
        let waiting = self.returned[Role::Main as usize].len();
        let all_idle = extra.idle() == extra.count() && waiting == 0;
        if lane == Lane::Small
            && all_idle
            && let Some(worker) = main.best_idle(lane)
        {
            return Some((worker, true));
        }
        extra
            .best(lane)
            .filter(|_| waiting < WAITING_PER_WORKER * main.count())
            .map(|worker| (worker, false))
            .or_else(|| Some((main.best_idle(lane)?, true)))
    }

    fn next_small(&mut self, role: Role, alone: bool, now_us: u64) -> Option<(Chosen, Range<u32>)> {
        // Groups behind the oldest are younger, but may be full.
        let (head, group, waiting) = self.fresh[role as usize]
            .groups
            .oldest()
            .find(|(head, _, rows)| self.is_ripe(*head, *rows, now_us))?;
        let first = &self.entries.get(&head)?.job;
        let (model, splittable, step) = (first.model, first.splittable, first.step.max(1));
        let legs = if alone { first.legs.len() as u32 } else { 1 };
        let target = if splittable {
            let crew = if alone { Role::Main } else { role };
            self.batch_rows(crew, PaceKey::of(model, &(0..legs)), waiting)
        } else {
            ONE_BY_ONE
        };
        let groups = &mut self.fresh[role as usize].groups;
        let taken = groups.take(group, target.rows, super::open_rows(&self.entries));
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
        // A small request runs at once.
        let run = match target.run {
            0 => 0,
            run => pieces.iter().fold(run, |run, piece| run.max(piece.rows)),
        };
        let chosen = Chosen {
            model,
            pieces,
            run: run.next_multiple_of(step),
        };
        Some((chosen, 0..legs))
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
    fn batch_rows(&mut self, crew: Role, pace: PaceKey, waiting: usize) -> Target {
        let idle = self.crews[crew as usize].idle().max(1);
        let share = waiting.div_ceil(idle).max(self.limits.priority_rows);
        let paced = target(&self.limits, &mut self.paces, pace);
        Target {
            rows: share.min(paced.rows),
            ..paced
        }
    }

    fn next_bulk(&mut self, role: Role, alone: bool) -> Option<(Chosen, Range<u32>)> {
        loop {
            let (serial, ring) = self.fresh[role as usize].pop_bulk()?;
            let Some(entry) = self.entries.get_mut(&serial).filter(|e| !e.closed) else {
                let fresh = &mut self.fresh[role as usize];
                fresh.closed = fresh.closed.saturating_sub(1);
                continue; // closed while it waited
            };
            let model = entry.job.model;
            let legs = if alone { whole_run(&entry.job) } else { 0..1 };
            let left = entry.job.rows - entry.given;
            let Target { rows, run } = if entry.job.splittable {
                cut(&self.limits, &mut self.paces, entry, &legs, left)
            } else {
                Target { rows: left, run: 0 }
            };
            let piece = Piece {
                serial,
                offset: entry.given,
                rows,
            };
            entry.given += rows;
            entry.chunks += 1;
            entry.out += 1;
            let more = entry.given < entry.job.rows;
            self.waiting.rows -= rows;
            let fresh = &mut self.fresh[role as usize];
            fresh.high_in_a_row = match ring {
                Priority::High => fresh.high_in_a_row + 1,
                Priority::Normal => 0,
            };
            if more {
                fresh.push_bulk(ring, serial);
            }
            let pieces = vec![piece];
            return Some((Chosen { model, pieces, run }, legs));
        }
    }
}

/// What cannot be split is not put together either, and runs as it is.
const ONE_BY_ONE: Target = Target { rows: 0, run: 0 };

/// What a model's pace says of its next chunk.
pub(super) fn target(limits: &Limits, paces: &mut HashMap<PaceKey, Pace>, key: PaceKey) -> Target {
    let most_rows = limits.max_batch_rows;
    match limits.max_chunk_us {
        Some(most_us) => paces.entry(key).or_default().target(most_us, most_rows),
        None => Target {
            rows: most_rows,
            run: 0,
        },
    }
}

/// The rows of a bulk request's next chunk.
fn cut(
    limits: &Limits,
    paces: &mut HashMap<PaceKey, Pace>,
    entry: &mut Entry,
    legs: &Range<u32>,
    left: usize,
) -> Target {
    let job = &entry.job;
    let mut of = |legs: &Range<u32>| {
        let key = PaceKey::of(job.model, legs);
        target(limits, paces, key)
    };
    let Target { mut rows, run } = of(legs);
    // A chunk keeps its rows through all its legs: the slowest of them decides.
    for leg in legs.end..job.legs.len() as u32 {
        rows = rows.min(of(&(leg..leg + 1)).rows);
    }
    let extra = if job.legs.len() > 1 {
        limits.extra_workers
    } else {
        0
    };
    let step = job.step.max(1);
    let cut = Cut {
        most: rows.next_multiple_of(step),
        floor: limits.priority_rows.max(step),
        workers: limits.workers + extra,
        step,
    };
    if limits.max_chunk_us.is_some() {
        // Runs of a model of a fixed batch are whole batches.
        let run = run.next_multiple_of(step);
        let rows = cut.guided(left, run);
        return Target { rows, run };
    }
    if entry.planned == 0 || left.div_ceil(entry.planned) > cut.most {
        entry.planned = cut.chunks(left);
    }
    let rows = cut.next(left, entry.planned);
    entry.planned -= 1;
    Target { rows, run }
}
