//! How fast a model is, and so how many rows a chunk of it should have.
//!
//! Engines are often fastest at a batch size that nobody knows beforehand (a BiLSTM was seen at 5.5 k rows/s with
//! 16 rows at a time and 4.2 k with 128). So the time per row is kept by size, in powers of two, and the size in
//! use climbs to a neighbour that turned out cheaper.

/// Rows in a chunk before anything is known.
const FIRST_ROWS: usize = 64;
/// What a chunk costs beyond the model: cutting, two hops, gathering.
const CHUNK_OVERHEAD_US: f64 = 40.0;
/// A neighbour must be cheaper by this to be moved to: machines are noisy.
const BETTER: f64 = 0.98;
/// Runs at a size before it is believed.
const BELIEVED: u32 = 3;
/// After so many cuts a neighbour is tried once more.
const RETRY_CUTS: u32 = 64;
const SIZES: usize = 24;

/// The time per row at one size.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    runs: u32,
    us_per_row: f64,
}

/// What is known about one model's speed.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    seen: [Seen; SIZES],
    /// The size in use, as a power of two.
    current: usize,
    cuts: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            seen: [Seen::default(); SIZES],
            current: FIRST_ROWS.ilog2() as usize,
            cuts: 0,
        }
    }
}

fn size_of(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(SIZES - 1)
}

impl Pace {
    /// A chunk of so many rows took so long.
    pub(crate) fn observe(&mut self, rows: usize, us: u64) {
        if rows == 0 {
            return;
        }
        let seen = &mut self.seen[size_of(rows)];
        let us_per_row = us as f64 / rows as f64;
        seen.runs = seen.runs.saturating_add(1);
        // The first run at a size also pays for the engine's planning: it counts only until there is another.
        seen.us_per_row = if seen.runs <= 2 {
            us_per_row
        } else {
            0.75 * seen.us_per_row + 0.25 * us_per_row
        };
    }

    /// What a row costs at a size, the chunk's own overhead included.
    fn cost(&self, size: usize) -> Option<f64> {
        let seen = self.seen.get(size)?;
        (seen.runs >= BELIEVED).then(|| seen.us_per_row + CHUNK_OVERHEAD_US / (1u64 << size) as f64)
    }

    /// Microseconds per row at about so many rows, from the nearest size that was seen.
    fn us_per_row(&self, rows: usize) -> Option<f64> {
        let size = size_of(rows);
        (0..SIZES)
            .flat_map(|d| [size.checked_sub(d), Some(size + d)])
            .flatten()
            .filter_map(|size| self.seen.get(size))
            .find(|seen| seen.runs > 0)
            .map(|seen| seen.us_per_row)
    }

    /// How long so many rows are expected to run; 0 before anything is known.
    pub(crate) fn expect_us(&self, rows: usize) -> u64 {
        self.us_per_row(rows)
            .map_or(0, |us| (us * rows as f64) as u64)
    }

    /// The most rows that are expected to run in that time.
    fn most_rows(&self, max_us: u64) -> usize {
        let mut rows = FIRST_ROWS;
        // The time per row depends on the number of rows: two rounds settle it within a size.
        for _ in 0..2 {
            match self.us_per_row(rows) {
                None => return FIRST_ROWS,
                Some(us) => rows = ((max_us as f64 / us.max(0.001)) as usize).clamp(1, 1 << 22),
            }
        }
        rows
    }

    /// The rows of the next bulk chunk: the cheapest size known, within the time and `most`.
    pub(crate) fn target_rows(&mut self, max_us: u64, most: usize) -> usize {
        let limit = self.most_rows(max_us).min(most).max(1);
        self.cuts = self.cuts.wrapping_add(1);
        self.climb();
        let mut size = self.current;
        if self.cost(size).is_some() {
            let (up, down) = (size + 1, size.saturating_sub(1));
            let retry = self.cuts.is_multiple_of(RETRY_CUTS);
            let up_first = (self.cuts / RETRY_CUTS).is_multiple_of(2);
            if (1usize << up) <= limit && (self.cost(up).is_none() || retry && up_first) {
                size = up;
            } else if self.cost(down).is_none() || retry {
                size = down;
            }
        }
        (1usize << size).min(limit)
    }

    fn climb(&mut self) {
        let Some(here) = self.cost(self.current) else {
            return;
        };
        let better = [self.current + 1, self.current.saturating_sub(1)]
            .into_iter()
            .filter_map(|size| self.cost(size).map(|cost| (size, cost)))
            .filter(|(_, cost)| *cost < here * BETTER)
            .min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((size, _)) = better {
            self.current = size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(us_per_row: impl Fn(usize) -> f64, max_us: u64) -> usize {
        let mut pace = Pace::default();
        for _ in 0..60 {
            let rows = pace.target_rows(max_us, 1024);
            pace.observe(rows, (us_per_row(rows) * rows as f64) as u64);
        }
        1 << pace.current.min(pace.most_rows(max_us).ilog2() as usize)
    }

    #[test]
    fn nothing_known_means_64_rows() {
        assert_eq!(Pace::default().target_rows(20_000, 1024), 64);
        assert_eq!(Pace::default().target_rows(20_000, 10), 10);
    }

    #[test]
    fn an_engine_that_is_fastest_at_16_rows_gets_16_rows() {
        let bilstm = |rows: usize| 180.0 + 12.0 * (rows as f64 / 16.0).log2().abs();
        assert_eq!(settle(bilstm, 20_000), 16);
    }

    #[test]
    fn a_cheap_model_gets_large_chunks_within_the_time() {
        assert!(settle(|_| 3.0, 1_000_000) >= 512);
        let most = settle(|_| 100.0, 20_000);
        assert!(most as f64 * 100.0 <= 20_000.0, "{most}");
    }

    #[test]
    fn a_slow_row_is_a_chunk_of_its_own() {
        let mut pace = Pace::default();
        pace.observe(64, 64 * 50_000);
        assert_eq!(pace.target_rows(20_000, 1024), 1);
        assert_eq!(pace.expect_us(2), 100_000);
    }
}
