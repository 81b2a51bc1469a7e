//! Which runs bulk has while small requests come: short ones, as far as they cost little.
//!
//! Small requests take their part of the workers' time, so what a size costs is kept apart from what it cost without them: a
//! size that was seen beside them is not to be held against one that was not.

use std::ops::RangeInclusive;

use super::{BELIEVED, SIZES, Seen, run_overhead};

/// A run is made shorter down to this, which a small request can well wait for ...
pub(super) const SHORT_US: f64 = 300.0;
/// ... as long as its rows cost no more than this many times what they cost at best ...
const COSTS: f64 = 1.0 / 0.9;
/// ... and until they cost more than this: between the two a size would come and go with what else the machine does, and each
/// time small requests would wait several times as long.
const COSTS_TOO_MUCH: f64 = 1.0 / 0.85;
/// Cuts until the next of the sizes is tried once more: what was measured beside something else may have looked too dear.
const RETRY_AFTER: u32 = 16;
/// Each round of them that changes nothing doubles the cuts between two, up to this: small requests wait for the longer ones.
const RETRY_AFTER_AT_MOST: u32 = 64;

/// What is known of one model's runs while small requests came.
#[derive(Clone, Debug)]
pub(super) struct ShortRuns {
    seen: [Seen; SIZES],
    in_use: usize,
    /// Cuts until the next size is tried once more.
    left: u32,
    /// Cuts between two.
    after: u32,
    tried: usize,
}

impl Default for ShortRuns {
    fn default() -> ShortRuns {
        ShortRuns {
            seen: [Seen::default(); SIZES],
            in_use: 0,
            left: RETRY_AFTER,
            after: RETRY_AFTER,
            tried: 0,
        }
    }
}

impl ShortRuns {
    /// What slows down the size in use slows down all: the others are hardly seen meanwhile, and what they cost in better
    /// times must not be held against it.
    pub(super) fn observe(&mut self, size: usize, us_per_row: f64) {
        let is_believed = self.is_known(size);
        let before = self.seen[size].usual_us_per_row;
        self.seen[size].add(us_per_row);
        if size == self.in_use && is_believed && before > 0.0 {
            let change = self.seen[size].usual_us_per_row / before;
            let others = self.seen.iter_mut().enumerate();
            for (_, other) in others.filter(|(other, _)| *other != size) {
                other.usual_us_per_row *= change;
            }
        }
    }

    /// The size that is in use, but for tries.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether the size in use is to be run although a longer one is better now: between two tries of others, so that it is known
    /// what it costs as the machine is now.
    pub(super) fn is_due(&self) -> bool {
        self.left == self.after / 2
    }

    /// The next of the sizes that runs may have.
    pub(super) fn next(&mut self, sizes: RangeInclusive<usize>) -> usize {
        let shortest = self.shortest(sizes.clone());
        if shortest != self.in_use {
            (self.in_use, self.after, self.left) = (shortest, RETRY_AFTER, RETRY_AFTER);
        }
        // A longer one than those in use is not tried several times in a row: small requests wait for its end.
        let in_use_is_known = self.is_known(self.in_use);
        let is_new =
            |size: &usize| !self.is_known(*size) && (*size <= self.in_use || !in_use_is_known);
        if let Some(unknown) = sizes.clone().rev().find(is_new) {
            return unknown;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return self.retry(sizes);
        }
        shortest
    }

    /// The smallest that costs little more than the cheapest, or the one in use.
    fn shortest(&self, sizes: RangeInclusive<usize>) -> usize {
        let longest = *sizes.end();
        let known = sizes.filter(|size| self.is_known(*size));
        let cost = |size: usize| self.seen[size].usual_us_per_row + run_overhead(size);
        let best = known.clone().map(cost).fold(f64::MAX, f64::min);
        let cheap = |size: &usize| {
            let most = match *size == self.in_use {
                true => COSTS_TOO_MUCH,
                false => COSTS,
            };
            cost(*size) <= best * most
        };
        known.into_iter().find(cheap).unwrap_or(longest)
    }

    fn is_known(&self, size: usize) -> bool {
        self.seen[size].chunks >= BELIEVED
    }

    /// The next of those that are not in use.
    fn retry(&mut self, sizes: RangeInclusive<usize>) -> usize {
        let others: Vec<usize> = sizes.filter(|size| *size != self.in_use).collect();
        self.tried += 1;
        if others.is_empty() || self.tried.is_multiple_of(others.len()) {
            self.after = (2 * self.after).min(RETRY_AFTER_AT_MOST);
        }
        self.left = self.after;
        let turn = self.tried.checked_rem(others.len());
        turn.map_or(self.in_use, |turn| others[turn])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: a size seen without small requests beside it was held against one that was seen with them, and so runs became
    /// longer and shorter by turns.
    #[test]
    fn what_was_seen_before_small_requests_came_does_not_count() {
        use super::super::{Pace, Runs};
        let mut pace = Pace::default();
        let mut runs = Vec::new();
        for turn in 0..2000 {
            let small_come = turn >= 200;
            let how = if small_come {
                Runs::Short
            } else {
                Runs::Cheapest
            };
            let target = pace.target(20_000, 1024, 1024, how);
            let run = target.run.unwrap();
            // Small requests take a fifth of the time.
            let us_per_row = (130.0 + 60.0 / run as f64) * if small_come { 1.2 } else { 1.0 };
            pace.observe(
                run,
                target.rows,
                (us_per_row * target.rows as f64) as u64,
                small_come,
            );
            if turn >= 400 {
                runs.push(run);
            }
        }
        // A tenth dearer than 64 rows are about 8.
        let usual = 8;
        let others = runs.iter().filter(|run| **run != usual).count();
        assert!(others * 50 < runs.len(), "{others} of {}", runs.len());
    }

    /// The sizes in use, chunk by chunk, where a row costs that much at a size.
    fn in_use(chunks: usize, us_per_row: impl Fn(usize, usize) -> f64) -> Vec<usize> {
        let mut short = ShortRuns::default();
        let one_by_one = |chunk| {
            let size = short.next(2..=4);
            short.observe(size, us_per_row(chunk, size));
            short.in_use()
        };
        (0..chunks).map(one_by_one).collect()
    }

    /// The bug: sizes that are hardly seen kept what they cost in better times, and runs became four times as long.
    #[test]
    fn what_slows_all_sizes_down_moves_nothing() {
        let used = in_use(4000, |chunk, size| {
            let others_run = chunk / 400 % 2 == 1;
            let slow = if others_run { 1.6 } else { 1.0 };
            slow * (100.0 + 8.0 / (size - 1) as f64)
        });
        let others = used[100..].iter().filter(|size| **size != 2).count();
        assert_eq!(others, 0);
    }

    /// The bug: a size that became known as the cheapest was tried three times at once, by both workers.
    #[test]
    fn a_longer_size_that_is_new_is_tried_a_few_chunks_apart() {
        let mut short = ShortRuns::default();
        let mut tried = Vec::new();
        for chunk in 0..600 {
            let longest = if chunk < 100 { 3 } else { 4 };
            let size = short.next(2..=longest);
            short.observe(size, 100.0);
            if size == 4 {
                tried.push(chunk);
            }
        }
        assert!(tried.len() >= 3, "{tried:?}");
        let apart = tried.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(apart >= Some(RETRY_AFTER as usize), "{tried:?}");
        assert!(tried[0] >= 100 && short.in_use() == 2);
    }

    /// The runs of bulk, chunk by chunk, after some time with small requests that express workers run.
    fn overtaken(us_per_row: impl Fn(usize, usize) -> f64) -> Vec<usize> {
        use super::super::{Pace, Runs};
        let mut pace = Pace::default();
        let one_by_one = |chunk| {
            let target = pace.target(20_000, 1024, 1024, Runs::Overtaken);
            let run = target.run.unwrap();
            let us = us_per_row(chunk, run) * target.rows as f64;
            pace.observe(run, target.rows, us as u64, true);
            run
        };
        (0..3000).map(one_by_one).skip(300).collect()
    }

    fn part_of(runs: &[usize], which: impl Fn(usize) -> bool) -> f64 {
        let found = runs.iter().filter(|run| which(**run)).count();
        found as f64 / runs.len() as f64
    }

    #[test]
    fn runs_that_small_requests_overtake_are_short_only_where_that_is_short_enough_to_wait_for() {
        // 8 rows are the cheapest; 2 cost little more, and take 1,060 us.
        let heavy = |run: usize| 500.0 + 15.0 * (run as f64 / 8.0).log2().abs();
        let long = overtaken(|_, run| heavy(run));
        assert!(part_of(&long, |run| run == 8) > 0.9);
        // The short one is run now and then, so that it is known what it takes.
        assert!(part_of(&long, |run| run == 2) > 0.01);
        // The more the cheaper; 128 rows cost little more than the most and take 550 us.
        let short = overtaken(|_, run| 4.0 + 40.0 / run as f64);
        assert!(part_of(&short, |run| run == 128) > 0.9);
    }

    /// What was measured in bad times is measured again in better ones.
    #[test]
    fn runs_that_were_too_long_to_wait_for_become_short_when_they_are_no_more() {
        // The more the cheaper; 128 rows cost little more than the most and take 550 us.
        let usual = |run: usize| 4.0 + 40.0 / run as f64;
        let runs = overtaken(|chunk, run| {
            let slow = if chunk < 600 { 4.0 } else { 1.0 };
            slow * usual(run)
        });
        let (bad, good) = (&runs[..200], &runs[1700..]);
        assert!(part_of(bad, |run| run >= 512) > 0.8, "{bad:?}");
        assert!(part_of(good, |run| run == 128) > 0.9, "{good:?}");
    }

    #[test]
    fn a_size_stays_in_use_until_it_costs_clearly_more() {
        for (later, then) in [(1.06, 2), (1.14, 2), (1.3, 4)] {
            let used = in_use(4000, |chunk, size| match size {
                2 if chunk < 1000 => 106.0,
                2 | 3 => 100.0 * later,
                _ => 100.0,
            });
            assert_eq!((used[999], used[3999]), (2, then), "{later}");
        }
        // One that is not in use has to be cheaper to become it.
        let used = in_use(4000, |_, size| 100.0 + 7.0 * (4 - size) as f64);
        assert_eq!(used[3999], 3);
    }

    #[test]
    fn each_size_that_is_not_in_use_is_tried_once_more_and_ever_less_often() {
        let mut short = ShortRuns::default();
        let mut tried = Vec::new();
        for cut in 0..2000 {
            let size = short.next(2..=4);
            short.observe(size, 100.0);
            if cut > 20 && size != short.in_use() {
                tried.push((cut, size));
            }
        }
        assert_eq!(short.in_use(), 2);
        let sizes: Vec<_> = tried.iter().map(|(_, size)| *size).collect();
        assert!(sizes.contains(&3) && sizes.contains(&4), "{tried:?}");
        let (first, last) = (&tried[..2], &tried[tried.len() - 2..]);
        assert_eq!(first[1].0 - first[0].0, RETRY_AFTER);
        assert_eq!(last[1].0 - last[0].0, RETRY_AFTER_AT_MOST);
    }
}
