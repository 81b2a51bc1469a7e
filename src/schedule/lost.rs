//! Workers that are gone: their chunks stay out until it is known which of their parts have come all the same.

use super::{Losses, MAX_ATTEMPTS, Scheduler};
use crate::message::{ChunkId, Role, Serial, WorkerId};
use foldhash::HashSet;

impl<C: Clone> Scheduler<C> {
    /// A worker is gone: it gets nothing more until it is up again. Returns the chunks that it held. Each stays out until
    /// [`Scheduler::lost`] is told of it; a credit for it no longer counts.
    pub(crate) fn worker_down(&mut self, worker: WorkerId) -> Vec<ChunkId> {
        let mut held = self.pool(worker).down(worker);
        held.retain(|chunk| match self.out.get_mut(chunk) {
            Some(out) => {
                out.lost = true;
                true
            }
            None => false,
        });
        held
    }

    /// A chunk was lost with its worker, but for the parts of the requests in `arrived`: the rows of the others run
    /// again elsewhere.
    pub(crate) fn lost(&mut self, chunk: ChunkId, arrived: &[Serial]) -> Losses {
        let mut losses = Losses::default();
        let Some(out) = self.out.remove(&chunk) else {
            return losses;
        };
        let arrived: HashSet<Serial> = arrived.iter().copied().collect();
        let mut work = out.work;
        work.selection.pieces.retain(|piece| {
            if arrived.contains(&piece.serial) {
                if self.piece_ended(piece.serial) {
                    losses.finished.push(piece.serial);
                }
                return false;
            }
            let Some(entry) = self.entries.get_mut(&piece.serial) else {
                return false;
            };
            entry.out -= 1;
            if entry.closed {
                losses.lost.push((piece.serial, 1));
                if entry.out == 0 {
                    self.remove(piece.serial);
                }
                return false;
            }
            entry.returned += 1;
            if work.attempt >= MAX_ATTEMPTS {
                losses.abandoned.push(piece.serial);
            }
            true
        });
        if !work.selection.pieces.is_empty() {
            // Also what is given up goes through here: close() then knows that its part will not come.
            let role = match self.role_of(out.worker) {
                Role::Extra => Role::Extra,
                // What was an express worker's is as good a main one's.
                Role::Main | Role::Express => Role::Main,
            };
            work.attempt += 1;
            self.returned[role as usize].push_back(work);
        }
        losses
    }

    /// One chunk less is out of a request. True if the request is finished with it: all its rows were given out, and
    /// all its chunks have ended.
    pub(super) fn piece_ended(&mut self, serial: Serial) -> bool {
        let Some(entry) = self.entries.get_mut(&serial) else {
            return false;
        };
        entry.out -= 1;
        if entry.out > 0 {
            return false;
        }
        let all_given = entry.given == entry.job.rows && entry.returned == 0;
        let (closed, finished) = (entry.closed, !entry.closed && all_given);
        if closed || finished {
            self.remove(serial);
        }
        finished
    }
}
