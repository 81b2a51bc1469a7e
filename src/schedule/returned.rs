//! Chunks that wait once more: their worker was lost (`lost.rs`), or they have legs left. They go ahead of all that is
//! new.

use super::pace::Runs;
use super::{Assignment, Lane, PaceKey, Scheduler, Work, backlog};
use crate::message::{ChunkId, Role, Serial};

impl<C: Clone> Scheduler<C> {
    pub(super) fn next_returned(&mut self, role: Role, now_us: u64) -> Option<Assignment<C>> {
        loop {
            // The first that somebody has a place for: small ones do not wait behind bulk.
            let pool = &self.pools[role as usize];
            let mut waiting = self.returned[role as usize].iter().enumerate();
            let (place, worker) =
                waiting.find_map(|(place, returned)| Some((place, pool.best(returned.lane)?)))?;
            let mut work = self.returned[role as usize].remove(place)?;
            let pieces = &mut work.selection.pieces;
            pieces.retain(|piece| self.entries.get(&piece.serial).is_some_and(|e| !e.closed));
            let Some(first) = pieces.first() else {
                continue;
            };
            // Nobody else waits for the device: a small request is spared the hops to the end.
            if work.lane == Lane::Small
                && role == Role::Main
                && self.returned[role as usize].is_empty()
                && let Some(entry) = self.entries.get(&first.serial)
            {
                work.legs.end = entry.job.legs.len() as u32;
            }
            for piece in pieces {
                if let Some(entry) = self.entries.get_mut(&piece.serial) {
                    entry.out += 1;
                    entry.returned -= 1;
                }
            }
            let expected = self.expect(&work);
            return Some(self.give(worker, work, expected, now_us));
        }
    }

    /// A chunk has run its legs and others are left: it waits for a worker of the next leg's role, with what was
    /// handed back. Returns the requests that were closed meanwhile: their parts will never come.
    pub(crate) fn hand_back(
        &mut self,
        chunk: ChunkId,
        ran: Option<(usize, u64)>,
        leg_outputs: C,
        now_us: u64,
    ) -> Vec<Serial> {
        let Some(out) = self.take_back(chunk, ran, now_us) else {
            return Vec::new();
        };
        let mut work = out.work;
        let mut dropped = Vec::new();
        let mut role = Role::Main;
        work.selection.pieces.retain(|piece| {
            let Some(entry) = self.entries.get_mut(&piece.serial) else {
                return false;
            };
            entry.out -= 1;
            if let Some(next) = entry.job.legs.get(work.legs.end as usize) {
                role = *next;
            }
            if entry.closed {
                dropped.push(piece.serial);
            } else {
                entry.returned += 1;
            }
            !entry.closed
        });
        for serial in &dropped {
            if self.entries.get(serial).is_some_and(|e| e.out == 0) {
                self.remove(*serial);
            }
        }
        if !work.selection.pieces.is_empty() {
            let next = work.legs.end..work.legs.end + 1;
            if work.selection.run.is_some() {
                let pace = PaceKey::of(work.selection.model, &next);
                let rows = work.selection.pieces.iter().map(|piece| piece.rows).sum();
                work.selection.run =
                    backlog::target(&self.limits, &mut self.paces, pace, rows, Runs::Cheapest).run;
            }
            self.returned[role as usize].push_back(Work {
                legs: next,
                attempt: 0,
                leg_outputs: Some(leg_outputs),
                ..work
            });
        }
        dropped
    }
}
