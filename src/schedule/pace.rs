//! How fast a model is: how many rows a chunk of it should have, and how many of those it should run at once.
//!
//! Engines are often fastest at a batch size that nobody knows beforehand (a BiLSTM was seen at 5.6 k rows/s with 2 to
//! 8 rows at a time and 3.0 k with 16). So the time per row is kept by the size of a run, in powers of two, and the
//! size in use climbs to a neighbour that turned out cheaper, and once it has none, trials (`trial.rs`) tell from time to time
//! whether another is. A chunk is as many such runs as its time allows: what a chunk costs on its way is then shared by
//! many runs. Small chunks pass between two runs of a bulk chunk, and a cancel counts there; so while small requests come,
//! bulk runs are made as short as costs little, unless the shortest of those are longer than a small request should wait for.
//!
//! Bulk chunks become smaller towards the end of a request, so that the workers end together.

mod short;
mod trial;

use self::short::{SHORT_US, ShortRuns};
use self::trial::Trials;
use super::workers::{KEEPS_UP_US, LONG_RUN_US};

/// Rows in a chunk before anything is known.
const FIRST_ROWS: usize = 64;
/// Rows in a run before anything is known. A large model may need much memory for each.
const FIRST_RUN: usize = 8;
/// Where nobody waits, so many rows may run at once for so many times as long as a chunk may: engines run several rows of the
/// heaviest models faster than one.
const LONG_RUN: usize = 8;
const LONG_TIMES: u64 = 25;
/// A chunk of several runs should take this part of what a chunk may: much longer than it takes to hand on, and short
/// beside the longest.
const GOAL_PART: u64 = 2;
/// What a run costs beyond the time inside the model: its part of the answer.
const RUN_OVERHEAD_US: f64 = 20.0;
/// A neighbour must be cheaper by this to be moved to: machines are noisy.
const BETTER: f64 = 0.98;
/// Chunks of a size before it is believed.
const BELIEVED: u32 = 3;
/// A neighbour that is cheaper by this is believed at once: a cheap model is soon run many rows at a time.
const CLEARLY_BETTER: f64 = 0.8;
const SIZES: usize = 24;

/// The time per row at one size.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    chunks: u32,
    /// What it takes lately, to tell when something will end.
    us_per_row: f64,
    /// What it takes when nothing gets in its way, to tell sizes apart: down quickly, up slowly.
    best_us_per_row: f64,
    /// What it takes as a rule: slow to move, and one bad chunk hardly counts. Unlike the best it does not depend on how
    /// often a size was seen, so that sizes that are hardly used can be held against the one in use.
    usual_us_per_row: f64,
}

impl Seen {
    fn add(&mut self, us_per_row: f64) {
        self.chunks = self.chunks.saturating_add(1);
        let towards = |old: f64, share: f64| old + share * (us_per_row - old);
        // The first at a size also pays for the engine's planning: it counts only until there is another.
        self.us_per_row = match self.chunks {
            1 | 2 => us_per_row,
            _ => towards(self.us_per_row, 0.25),
        };
        self.usual_us_per_row = match self.chunks {
            1 | 2 => us_per_row,
            _ => {
                let usual = self.usual_us_per_row;
                let share = if us_per_row < usual { 0.3 } else { 0.1 };
                usual + share * (us_per_row.min(1.5 * usual) - usual)
            }
        };
        self.best_us_per_row = match (self.chunks, us_per_row < self.best_us_per_row) {
            (1, _) => us_per_row,
            (2..=BELIEVED, faster) if faster => us_per_row,
            (2..=BELIEVED, _) => self.best_us_per_row,
            (_, true) => towards(self.best_us_per_row, 0.5),
            (_, false) => towards(self.best_us_per_row, 0.02),
        };
    }
}

/// How to cut and run the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Rows in the chunk, at most.
    pub rows: usize,
    /// Rows that run at once; `None`: all of the chunk's.
    pub run: Option<usize>,
    /// Fewer rows are not worth a chunk of their own, where the request has more: another worker would take as long to wake.
    pub worth: usize,
    /// A chunk of so many rows is no short one, however few they are.
    pub ample: usize,
}

/// How long runs should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// As long as is cheapest, even if that is longer than a chunk may take: nobody waits for its end.
    Long,
    /// As long as is cheapest.
    Cheapest,
    /// Short, for small requests that pass between two of them, as far as that costs little.
    Short,
    /// Short if that is at most [`LONG_RUN_US`], else as long as is cheapest: express workers run small requests in the middle of
    /// longer ones.
    Overtaken,
}

/// What is known about one model's speed.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    seen: [Seen; SIZES],
    /// The size in use, as a power of two.
    current: usize,
    /// It had no cheaper neighbour: only a trial changes the size from now on.
    settled: bool,
    trials: Trials,
    short: ShortRuns,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            seen: [Seen::default(); SIZES],
            current: FIRST_RUN.ilog2() as usize,
            settled: false,
            trials: Trials::default(),
            short: ShortRuns::default(),
        }
    }
}

fn size_of(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(SIZES - 1)
}

impl Pace {
    /// A chunk of so many rows, `run` at a time, took so long, while small requests came or not.
    pub(crate) fn observe(&mut self, run: usize, rows: usize, us: u64, small_came: bool) {
        if rows == 0 {
            return;
        }
        let (size, us_per_row) = (size_of(run.min(rows)), us as f64 / rows as f64);
        self.seen[size].add(us_per_row);
        if small_came {
            self.short.observe(size, us_per_row);
        }
        let cost = |size, us_per_row| us_per_row + run_overhead(size);
        if let Some(better) = self.trials.observe(self.current, size, us_per_row, cost) {
            self.current = better;
        }
    }

    /// What a row costs at a size of which so many chunks were seen.
    fn cost(&self, size: usize, chunks: u32) -> Option<f64> {
        let seen = self.seen.get(size)?;
        (seen.chunks >= chunks).then_some(seen.best_us_per_row + run_overhead(size))
    }

    /// Microseconds per row in runs of about so many rows, from the nearest size that was seen.
    pub(crate) fn us_per_row(&self, run: usize) -> Option<f64> {
        let size = size_of(run);
        (0..SIZES)
            .flat_map(|d| [size.checked_sub(d), Some(size + d)])
            .flatten()
            .filter_map(|size| self.seen.get(size))
            .find(|seen| seen.chunks > 0)
            .map(|seen| seen.us_per_row)
    }

    /// How long a run of a size is expected to take; 0 if nothing is known.
    fn run_us(&self, size: usize) -> f64 {
        let rows = 1usize << size;
        self.us_per_row(rows).unwrap_or(0.0) * rows as f64
    }

    /// How long so many rows are expected to run, `run` at a time, if anything is known.
    pub(crate) fn expect_us(&self, run: usize, rows: usize) -> Option<u64> {
        let us = self.us_per_row(run.min(rows))?;
        Some((us * rows as f64) as u64)
    }

    /// The most rows of one run that are expected to take no longer.
    fn most_rows(&self, max_us: u64) -> usize {
        let mut rows = FIRST_ROWS;
        // The time per row depends on the number of rows: two rounds settle it within a size.
        for _ in 0..2 {
            match self.us_per_row(rows) {
                None => return FIRST_ROWS,
                Some(us) => rows = rows_in(max_us, us),
            }
        }
        rows
    }

    /// The most rows of one run where nobody waits for its end.
    fn long_rows(&self, most_us: u64) -> usize {
        let long = self.most_rows(LONG_TIMES * most_us).min(LONG_RUN);
        self.most_rows(most_us).max(long)
    }

    /// The rows of the next chunk, and of its runs: the cheapest size known that takes no longer than `most_us`, or a
    /// shorter one, and as many runs as make a chunk worth its way. `there` is how many rows there are for it: a size that
    /// takes more is not tried with them.
    pub(crate) fn target(
        &mut self,
        most_us: u64,
        most_rows: usize,
        there: usize,
        runs: Runs,
    ) -> Target {
        let limit = match runs {
            Runs::Long => self.long_rows(most_us),
            Runs::Cheapest | Runs::Short | Runs::Overtaken => self.most_rows(most_us),
        };
        let limit = limit.min(most_rows).max(1);
        let (mut size, mut is_try) = (self.size(limit, there), false);
        let small_come = matches!(runs, Runs::Short | Runs::Overtaken);
        if small_come && !self.settled && size > self.current {
            // Else a model that has small requests from its first moment would never get to the sizes that suit it.
            is_try = self.run_us(size) > SHORT_US;
        } else if small_come && self.run_us(size) > SHORT_US {
            let next = self.short.next(self.short_sizes());
            // Small requests wait for such a run, so there is one of it and not a chunk full.
            is_try = next > self.short.in_use();
            let is_long = next == self.short.in_use() && self.run_us(next) > LONG_RUN_US as f64;
            if runs == Runs::Short || !is_long || self.short.is_due() {
                size = size.min(next);
            }
        }
        let run = (1usize << size).min(limit);
        let us_per_row = self.us_per_row(run);
        let ample = us_per_row.map_or(FIRST_ROWS, |us| rows_in(most_us / GOAL_PART, us));
        let rows = if is_try { run } else { ample };
        // Whole runs, one at least.
        let rows = (rows / run).max(1) * run;
        Target {
            rows: rows.min(most_rows.max(1)),
            run: Some(run),
            worth: us_per_row.map_or(1, |us| rows_in(KEEPS_UP_US, us)),
            ample,
        }
    }

    /// The size of the next run of up to `limit` rows, for which so many are there.
    fn size(&mut self, limit: usize, there: usize) -> usize {
        let within = |rows: usize, size: usize| size < SIZES && (1usize << size) <= rows;
        let fits = |size: usize| within(limit.min(there), size);
        if !self.settled {
            self.climb();
            let new = self.new_neighbour(fits);
            let around = self.current.saturating_sub(1)..=self.current + 1;
            self.settled = around
                .filter(|size| within(limit, *size))
                .all(|size| self.cost(size, BELIEVED).is_some());
            return new.unwrap_or(self.current);
        }
        let (current, seen) = (self.current, &self.seen);
        if !fits(current) {
            return current;
        }
        let cost = |size: usize| {
            let seen = seen.get(size).filter(|seen| seen.chunks > 0)?;
            Some(seen.usual_us_per_row + run_overhead(size))
        };
        self.trials.size(current, fits, cost).unwrap_or(current)
    }

    /// A neighbour of the size in use that is not known well yet.
    fn new_neighbour(&self, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.current;
        let (up, down) = (size + 1, size.saturating_sub(1));
        let unknown = |size| self.cost(size, BELIEVED).is_none();
        // Before the size in use was seen there is nothing to compare with.
        let up_is_new = self.cost(size, 1).is_some() && self.cost(up, 1).is_none();
        if fits(up) && (up_is_new || (!unknown(size) && unknown(up))) {
            return Some(up);
        }
        (!unknown(size) && unknown(down) && fits(down)).then_some(down)
    }

    /// The sizes that runs may have while small requests come.
    fn short_sizes(&self) -> std::ops::RangeInclusive<usize> {
        let least = (0..self.current)
            .rev()
            .take_while(|size| self.run_us(*size) >= SHORT_US);
        least.last().unwrap_or(self.current)..=self.current
    }

    fn climb(&mut self) {
        for (chunks, better) in [(BELIEVED, BETTER), (1, CLEARLY_BETTER)] {
            let Some(here) = self.cost(self.current, chunks) else {
                continue;
            };
            let found = [self.current + 1, self.current.saturating_sub(1)]
                .into_iter()
                .filter_map(|size| self.cost(size, chunks).map(|cost| (size, cost)))
                .filter(|(_, cost)| *cost < here * better)
                .min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((size, _)) = found {
                self.current = size;
                return;
            }
        }
    }
}

/// What a run costs beyond the model, for each of its rows.
fn run_overhead(size: usize) -> f64 {
    RUN_OVERHEAD_US / (1u64 << size) as f64
}

fn rows_in(us: u64, us_per_row: f64) -> usize {
    ((us as f64 / us_per_row.max(0.001)) as usize).clamp(1, 1 << 22)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_US: u64 = 20_000;

    /// A [`Target`] as a pace gives it: with a size for its runs.
    #[derive(Debug, PartialEq)]
    struct Cut {
        rows: usize,
        run: usize,
    }

    fn cut(pace: &mut Pace, most_us: u64, runs: Runs) -> Cut {
        let Target { rows, run, .. } = pace.target(most_us, 1024, 1024, runs);
        let run = run.unwrap();
        Cut { rows, run }
    }

    fn settle(us_per_row: impl Fn(usize) -> f64, most_us: u64) -> Cut {
        let mut pace = Pace::default();
        for _ in 0..60 {
            let Cut { rows, run } = cut(&mut pace, most_us, Runs::Cheapest);
            pace.observe(run, rows, (us_per_row(run) * rows as f64) as u64, false);
        }
        cut(&mut pace, most_us, Runs::Cheapest)
    }

    #[test]
    fn nothing_known_means_64_rows_and_few_at_once() {
        let target = cut(&mut Pace::default(), MOST_US, Runs::Cheapest);
        assert_eq!(target, Cut { rows: 64, run: 8 });
        let target = Pace::default().target(MOST_US, 5, 5, Runs::Cheapest);
        assert_eq!((target.rows, target.run, target.worth), (5, Some(5), 1));
    }

    #[test]
    fn an_engine_that_is_fastest_at_4_rows_gets_4_rows_many_times() {
        let bilstm = |run: usize| 180.0 + 12.0 * (run as f64 / 4.0).log2().abs();
        let target = settle(bilstm, MOST_US);
        assert_eq!((target.run, target.rows % 4), (4, 0));
        assert!((48..=56).contains(&target.rows), "{target:?}");
    }

    #[test]
    fn trying_other_sizes_costs_little_and_busy_times_move_nothing() {
        let cost = |run: usize| 180.0 + 40.0 * (run as f64 / 4.0).log2().abs();
        let (mut pace, mut took, mut best) = (Pace::default(), 0.0, 0.0);
        for turn in 0..10_000 {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Cheapest);
            // Others want the machine half of the time, for as long as a trial takes.
            let slow = if turn / 10 % 2 == 0 { 2.0 } else { 1.0 };
            pace.observe(run, rows, (slow * cost(run) * rows as f64) as u64, false);
            if turn > 100 {
                assert_eq!(pace.current, 2, "turn {turn}");
                took += cost(run) * rows as f64;
                best += cost(4) * rows as f64;
            }
        }
        assert!(took < 1.01 * best, "{}", took / best);
    }

    /// The bug: a size that no chunk had the rows for was tried for ever, and all chunks ran whole.
    #[test]
    fn a_size_that_a_chunk_has_not_the_rows_for_is_not_tried_with_it() {
        let mut pace = Pace::default();
        for turn in 0..1000 {
            let run = pace.target(MOST_US, 1024, 12, Runs::Cheapest).run.unwrap();
            assert!(run <= 8, "turn {turn}");
            pace.observe(run, 12, 180 * 12 + 500 * u64::from(run != 4), false);
        }
        assert_eq!(pace.current, 2);
    }

    /// What takes longer than a chunk may is not waited for.
    #[test]
    fn a_slow_model_whose_runs_are_bounded_by_time_gets_its_trials() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Cheapest);
            pace.observe(
                run,
                rows,
                (2000.0 + 800.0 / run as f64) as u64 * rows as u64,
                false,
            );
        }
        assert!(pace.settled && pace.current == 3, "{pace:?}");
    }

    #[test]
    fn chunks_of_several_runs_are_as_long_as_the_flag_allows() {
        let rows = |most_us| settle(|run| 180.0 + run as f64, most_us).rows;
        let [short, usual, long] = [4_000, MOST_US, 100_000].map(rows);
        assert!(
            short < usual / 3 && long > usual * 3,
            "{short} {usual} {long}"
        );
    }

    #[test]
    fn what_gets_in_the_way_now_and_then_does_not_move_it() {
        let mut pace = Pace::default();
        for turn in 0..2000 {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Cheapest);
            // Every seventh chunk, which is one of the size in use, takes three times as long.
            let slow = if turn % 7 == 0 { 3.0 } else { 1.0 };
            let us_per_row = 180.0 + 12.0 * (run as f64 / 4.0).log2().abs();
            pace.observe(run, rows, (slow * us_per_row * rows as f64) as u64, false);
            if turn > 100 {
                assert_eq!(pace.current, 2, "turn {turn}");
            }
        }
    }

    #[test]
    fn a_cheap_model_runs_many_rows_at_once_within_the_time() {
        assert!(settle(|run| 3.0 + 40.0 / run as f64, 1_000_000).run >= 256);
        let most = settle(|run| 100.0 + 400.0 / run as f64, MOST_US);
        assert!(most.run >= 64 && most.rows * 100 <= 20_000, "{most:?}");
    }

    #[test]
    fn a_chunk_is_worth_its_way_from_a_time_on_and_not_a_number_of_rows() {
        for (us_per_row, worth) in [(1, KEEPS_UP_US as usize), (30, 5), (10_000, 1)] {
            let mut pace = Pace::default();
            pace.observe(8, 64, 64 * us_per_row, false);
            let target = pace.target(MOST_US, 1024, 1024, Runs::Cheapest);
            assert_eq!(target.worth, worth, "{us_per_row} us a row");
        }
    }

    #[test]
    fn a_cheap_model_soon_runs_many_rows_at_once() {
        let (mut pace, mut rows_before) = (Pace::default(), 0);
        loop {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Cheapest);
            if run == 128 {
                break;
            }
            rows_before += rows;
            let us_per_row = 1.0 + 20.0 / run as f64;
            pace.observe(run, rows, (us_per_row * rows as f64) as u64, false);
        }
        assert!(rows_before < 6000, "{rows_before}");
    }

    /// What a model that takes so long per row settles at while small requests come.
    fn settle_short(us_per_row: impl Fn(usize) -> f64) -> Cut {
        let mut pace = Pace::default();
        let mut settled = None;
        for turn in 0..600 {
            let runs = if turn < 100 {
                Runs::Cheapest
            } else {
                Runs::Short
            };
            let Cut { rows, run } = cut(&mut pace, MOST_US, runs);
            let us = (us_per_row(run) * rows as f64) as u64;
            pace.observe(run, rows, us, runs == Runs::Short);
            // But for tries.
            if runs != Runs::Short
                || size_of(run) == pace.short.in_use()
                || pace.short.in_use() == 0
            {
                settled = Some(Cut { rows, run });
            }
        }
        settled.unwrap()
    }

    #[test]
    fn runs_are_as_short_as_costs_little_while_small_requests_come() {
        // Hardly dearer at 4 rows than at 16, but at 2.
        let heavy = |run: usize| 500.0 + 400.0 / (run * run) as f64;
        assert_eq!(settle_short(heavy).run, 4);
        // A dear size between two cheap ones keeps nobody from the shorter.
        let uneven = |run: usize| if run == 8 { 700.0 } else { heavy(run) };
        assert_eq!(settle_short(uneven).run, 4);
        // 300 us are short enough.
        let light = |run: usize| 1.0 + 2.0 / run as f64;
        assert_eq!(settle_short(light).run, 512);
        // One row at a time cannot be made shorter.
        assert_eq!(settle_short(|_| 50_000.0).run, 1);
    }

    /// The bug: no longer run was tried while small requests came, so a model that had them from the first moment stayed at
    /// runs of 8 rows, at a third of its rate.
    #[test]
    fn a_cheap_model_gets_to_long_runs_while_small_requests_come() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Short);
            let us_per_row = 0.7 + 10.0 / run as f64;
            pace.observe(run, rows, (us_per_row * rows as f64) as u64, true);
        }
        assert!(cut(&mut pace, MOST_US, Runs::Short).run >= 256, "{pace:?}");
    }

    #[test]
    fn what_looked_dear_once_is_tried_again_while_small_requests_come() {
        let mut pace = Pace::default();
        for turn in 0..3000 {
            let Cut { rows, run } = cut(&mut pace, MOST_US, Runs::Short);
            // Something else ran at first.
            let slow = if turn < 20 && run < 8 { 3.0 } else { 1.0 };
            pace.observe(run, rows, (slow * 500.0 * rows as f64) as u64, true);
        }
        assert!(pace.short.in_use() <= 1, "{pace:?}");
    }

    #[test]
    fn a_slow_row_is_a_chunk_of_its_own() {
        let mut pace = Pace::default();
        pace.observe(8, 64, 64 * 50_000, false);
        assert_eq!(
            cut(&mut pace, MOST_US, Runs::Cheapest),
            Cut { rows: 1, run: 1 }
        );
        assert_eq!(pace.expect_us(1, 2), Some(100_000));
    }
}
