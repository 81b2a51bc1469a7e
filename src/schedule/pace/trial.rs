//! A trial: chunks of two sizes of a run by turns, so that whatever else the machine does meets both of them.
//!
//! A size that was hardly used was seen at other times than the one in use, and its first run in each worker paid for the
//! engine's planning. So what is remembered of it does not tell whether it is worth changing to.

/// Chunks of each size. More than half of them are without anything that got in the way.
const CHUNKS: usize = 7;
/// Chunks that are cut for a trial at most: some run shorter, as small requests come, and tell nothing of it.
const MOST_CHUNKS: u32 = 2 * CHUNKS as u32;
/// Cuts after which a trial is given up: what it waits for does not come.
const MOST_CUTS: u32 = 256;
/// As a rule it must be cheaper by this: machines are noisy. At its best it must be cheaper at all.
const BETTER: f64 = 0.985;
/// Cuts before the first trial, and after one that changed the size.
const FIRST_AFTER: u32 = 32;
/// Each round of trials that changes nothing doubles the cuts between them, up to this.
const AFTER_AT_MOST: u32 = 512;
/// Sizes that look dearer than the one in use by this are tried in the first of so many rounds.
const DEAR: f64 = 1.15;
const DEAR_ROUNDS: u32 = 4;
/// A size may lie between two that are cheaper, so the one behind it is tried too.
const STEPS: [isize; 4] = [1, 2, -1, -2];

#[derive(Clone, Debug)]
struct Trial {
    size: usize,
    /// Microseconds per row at that size, and at the one in use.
    there: Vec<f64>,
    here: Vec<f64>,
    /// Chunks cut for it.
    given: u32,
    /// Cuts since it began.
    cuts: u32,
}

impl Trial {
    fn new(size: usize) -> Trial {
        Trial {
            size,
            there: Vec::with_capacity(CHUNKS),
            here: Vec::with_capacity(CHUNKS),
            given: 0,
            cuts: 0,
        }
    }

    /// Whether it may have one more chunk.
    fn wants_more(&self) -> bool {
        self.there.len() < CHUNKS && self.given < MOST_CHUNKS
    }

    /// Whether the size tried is better than the one in use, once that is known: as a rule, and at its best.
    fn is_better(&self, cost: impl Fn(usize, f64) -> f64, current: usize) -> Option<bool> {
        if self.there.len() < CHUNKS || self.here.len() < CHUNKS {
            return None;
        }
        let sorted = |size: usize, seen: &[f64]| {
            let mut costs: Vec<f64> = seen.iter().map(|us| cost(size, *us)).collect();
            costs.sort_by(f64::total_cmp);
            costs
        };
        let (there, here) = (sorted(self.size, &self.there), sorted(current, &self.here));
        let usual = CHUNKS / 2;
        Some(there[usual] < here[usual] * BETTER && there[0] < here[0])
    }
}

/// The trials of one model, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Trials {
    now: Option<Trial>,
    /// Trials begun.
    begun: u32,
    /// Cuts until the next.
    left: u32,
    /// Cuts between the last and the next.
    after: u32,
}

impl Default for Trials {
    fn default() -> Trials {
        Trials {
            now: None,
            begun: 0,
            left: FIRST_AFTER,
            after: FIRST_AFTER,
        }
    }
}

impl Trials {
    /// The size of the next run, if it is not the one in use. `cost` is what a size was seen to cost, if it may be tried.
    pub(super) fn size(
        &mut self,
        current: usize,
        fits: impl Fn(usize) -> bool,
        cost: impl Fn(usize) -> Option<f64>,
    ) -> Option<usize> {
        if self.now.is_none() {
            self.left = self.left.saturating_sub(1);
            if self.left > 0 {
                return None;
            }
            self.begin(current, &fits, cost);
        }
        let trial = self.now.as_mut()?;
        trial.cuts += 1;
        if trial.cuts > MOST_CUTS {
            self.ended(false);
            return None;
        }
        // Not every other cut, which might always be the same worker's.
        let is_turn = trial.cuts.wrapping_mul(0x9e37_79b1) >> 31 == 1;
        if !is_turn || !trial.wants_more() || !fits(trial.size) {
            return None;
        }
        trial.given += 1;
        Some(trial.size)
    }

    fn begin(
        &mut self,
        current: usize,
        fits: impl Fn(usize) -> bool,
        cost: impl Fn(usize) -> Option<f64>,
    ) {
        let here = cost(current);
        for _ in STEPS {
            let (step, round) = (
                STEPS[self.begun as usize % STEPS.len()],
                self.begun / STEPS.len() as u32,
            );
            self.begun = self.begun.wrapping_add(1);
            let is_dear = |size| matches!((cost(size), here), (Some(there), Some(here)) if there > here * DEAR);
            let size = current.checked_add_signed(step).filter(|size| fits(*size));
            if let Some(size) =
                size.filter(|size| round.is_multiple_of(DEAR_ROUNDS) || !is_dear(*size))
            {
                self.now = Some(Trial::new(size));
                return;
            }
        }
        self.ended(false);
    }

    fn ended(&mut self, changed: bool) {
        self.now = None;
        if changed {
            (self.begun, self.after) = (0, FIRST_AFTER);
        } else if (self.begun as usize).is_multiple_of(STEPS.len()) {
            self.after = (2 * self.after).min(AFTER_AT_MOST);
        }
        self.left = self.after;
    }

    /// A chunk of a size took so long per row. Gives the size to change to, if the trial has ended with that; `cost` is what
    /// a row costs in all in runs of a size.
    pub(super) fn observe(
        &mut self,
        current: usize,
        size: usize,
        us_per_row: f64,
        cost: impl Fn(usize, f64) -> f64,
    ) -> Option<usize> {
        let trial = self.now.as_mut()?;
        let seen = match size {
            size if size == trial.size => &mut trial.there,
            size if size == current => &mut trial.here,
            _ => return None,
        };
        if seen.len() < CHUNKS {
            seen.push(us_per_row);
        }
        let (better, tried) = (trial.is_better(cost, current)?, trial.size);
        self.ended(better);
        better.then_some(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pace, Runs, Target};

    const MOST_US: u64 = 20_000;

    /// As a BiLSTM was measured.
    fn bilstm(run: usize) -> f64 {
        match run {
            1 => 254.0,
            2 => 178.3,
            3 | 4 => 138.6,
            8 => 143.2,
            16 => 133.9,
            32 => 139.4,
            _ => 147.8,
        }
    }

    /// A pace that has settled at 4 rows, as 8 are dearer than both 4 and 16: the first runs of 16 paid for the engine's
    /// planning, and something got in the way of the first of 8.
    fn behind_a_dear_size() -> Pace {
        let mut pace = Pace::default();
        for _ in 0..20 {
            let Target { rows, run, .. } = pace.target(MOST_US, 1024, 1024, Runs::Cheapest);
            let run = run.unwrap();
            let slow = match run {
                8 => 1.1,
                16 => 1.3,
                _ => 1.0,
            };
            pace.observe(run, rows, (slow * bilstm(run) * rows as f64) as u64, false);
        }
        assert_eq!((pace.current, pace.settled), (2, true));
        pace
    }

    /// Chunks of so many rows at most.
    fn observe_bilstm(pace: &mut Pace, chunks: usize, runs: Runs, there: impl Fn(usize) -> usize) {
        for chunk in 0..chunks {
            let there = there(chunk);
            let Target { rows, run, .. } = pace.target(MOST_US, 1024, there, runs);
            let (rows, run) = (rows.min(there), run.unwrap().min(there));
            let us = (bilstm(run) * rows as f64) as u64;
            pace.observe(run, rows, us, runs == Runs::Short);
        }
    }

    /// The bug: it stayed there.
    #[test]
    fn a_size_that_is_dearer_than_both_sides_is_passed() {
        let mut pace = behind_a_dear_size();
        observe_bilstm(&mut pace, 1000, Runs::Cheapest, |_| 1024);
        assert_eq!(pace.current, 4);
    }

    /// They have not the rows for what is tried.
    #[test]
    fn groups_of_small_requests_use_up_no_trials() {
        let mut pace = behind_a_dear_size();
        let there = |chunk: usize| if chunk.is_multiple_of(5) { 1024 } else { 3 };
        observe_bilstm(&mut pace, 5000, Runs::Cheapest, there);
        assert_eq!(pace.current, 4);
    }

    /// What is tried is not run while small requests come.
    #[test]
    fn a_trial_that_small_requests_came_into_does_not_keep_others_from_beginning() {
        let mut pace = behind_a_dear_size();
        observe_bilstm(&mut pace, 2000, Runs::Short, |_| 1024);
        assert_eq!(pace.current, 2);
        observe_bilstm(&mut pace, 3000, Runs::Cheapest, |_| 1024);
        assert_eq!(pace.current, 4);
    }
}
