//! Which runs bulk has while small requests come: short ones, as far as they cost little.
//!
//! Small requests take their part of the workers' time, so what a size costs is kept apart from what it cost without them: a
//! size that was seen beside them is not to be held against one that was not.

use std::ops::RangeInclusive;

use super::{BELIEVED, SIZES, Seen, run_overhead};

/// A run is made shorter down to this, which a small request can well wait for ...
pub(super) const SHORT_US: f64 = 300.0;
/// ... as long as its rows cost no more than this many times what they cost at best.
const COSTS: f64 = 1.0 / 0.9;
/// Cuts until the next of the sizes is tried once more: what was measured beside something else may have looked too dear.
const RETRY_AFTER: u32 = 16;
/// Each round of them that changes nothing doubles the cuts between two, up to this: small requests wait for the longer ones.
const RETRY_AFTER_AT_MOST: u32 = 256;

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
    pub(super) fn observe(&mut self, size: usize, us_per_row: f64) {
        self.seen[size].add(us_per_row);
    }

    /// The size that is in use, but for tries.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// The next of the sizes that runs may have.
    pub(super) fn next(&mut self, sizes: RangeInclusive<usize>) -> usize {
        let shortest = self.shortest(sizes.clone());
        if shortest != self.in_use {
            (self.in_use, self.after, self.left) = (shortest, RETRY_AFTER, RETRY_AFTER);
        }
        if let Some(unknown) = sizes.clone().rev().find(|size| !self.is_known(*size)) {
            return unknown;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return self.retry(sizes);
        }
        shortest
    }

    /// The smallest that costs little more than the cheapest.
    fn shortest(&self, sizes: RangeInclusive<usize>) -> usize {
        let longest = *sizes.end();
        let known = sizes.filter(|size| self.is_known(*size));
        let cost = |size: usize| self.seen[size].usual_us_per_row + run_overhead(size);
        let best = known.clone().map(cost).fold(f64::MAX, f64::min);
        let cheap = |size: &usize| cost(*size) <= best * COSTS;
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
