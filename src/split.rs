//! Cuts requests into chunks, and puts parts back into row order: pure arithmetic.

use std::collections::HashSet;

use crate::tensor::Batch;

/// What bounds a cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Most rows in a chunk.
    pub most: usize,
    /// No chunk is made smaller than this only to have more of them.
    pub floor: usize,
    /// Chunks that can run at once.
    pub workers: usize,
    /// Rows come in multiples of this (a model of a fixed batch), but for the last chunk.
    pub step: usize,
}

impl Cut {
    /// Into how many chunks so many rows are cut: as many as the workers can use, in whole rounds.
    pub(crate) fn chunks(&self, rows: usize) -> usize {
        let most = self.most.max(1);
        let rounds = rows.div_ceil(most * self.workers.max(1));
        let wanted = rounds * self.workers.max(1);
        let useful = rows / self.floor.max(1);
        wanted.min(useful).max(rows.div_ceil(most)).max(1)
    }

    /// The next chunk's rows, if `rows` are left for `chunks` chunks: they end up alike but for one row
    /// (or one step).
    pub(crate) fn next(&self, rows: usize, chunks: usize) -> usize {
        let even = rows.div_ceil(chunks.max(1));
        even.next_multiple_of(self.step.max(1)).min(rows)
    }

    /// The next chunk's rows where chunks need not be alike: a part of what is left, so that the last ones are small
    /// and end together. Whole runs of `run` rows where that makes sense.
    pub(crate) fn guided(&self, rows: usize, run: usize) -> usize {
        let share = guided_share(rows, self.workers);
        let unit = if share >= run {
            run.max(1)
        } else {
            self.step.max(1)
        };
        share
            .clamp(self.floor.min(self.most), self.most.max(1))
            .next_multiple_of(unit)
            .min(self.most.max(1))
            .min(rows)
    }
}

/// The part of the rows that are left which is one chunk of [`Cut::guided`], but for its bounds.
pub(crate) fn guided_share(rows: usize, workers: usize) -> usize {
    rows.div_ceil(ROUNDS * workers.max(1))
}

/// Chunks that each worker has still to come, at the size of the next.
const ROUNDS: usize = 2;

/// The parts of one request, until they are all there.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    parts: Vec<(u64, Vec<Batch>)>,
    seen: HashSet<u64>,
    rows: u64,
}

impl Gather {
    /// Takes rows `offset..offset + rows`, in one piece or several. False if they were there already.
    pub(crate) fn add(&mut self, offset: u64, rows: u64, part: Vec<Batch>) -> bool {
        if !self.seen.insert(offset) {
            return false;
        }
        self.rows += rows;
        self.parts.push((offset, part));
        true
    }

    /// Rows that have come.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The parts in row order.
    pub(crate) fn into_parts(self) -> Vec<Batch> {
        let parts = self.into_placed();
        parts.into_iter().flat_map(|(_, part)| part).collect()
    }

    /// The parts in row order, each with its first row.
    pub(crate) fn into_placed(mut self) -> Vec<(u64, Vec<Batch>)> {
        self.parts.sort_unstable_by_key(|(offset, _)| *offset);
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;
    use proptest::prelude::*;

    fn cut_all(cut: Cut, rows: usize) -> Vec<usize> {
        let mut left = rows;
        let mut chunks = cut.chunks(rows);
        let mut sizes = Vec::new();
        while left > 0 {
            let size = cut.next(left, chunks);
            sizes.push(size);
            left -= size;
            chunks -= 1;
        }
        sizes
    }

    fn cut(most: usize, floor: usize, workers: usize) -> Cut {
        Cut {
            most,
            floor,
            workers,
            step: 1,
        }
    }

    #[test]
    fn four_hundred_rows_on_four_workers_are_four_times_a_hundred() {
        assert_eq!(cut_all(cut(1024, 16, 4), 400), [100; 4]);
    }

    #[test]
    fn chunks_are_never_small_for_the_sake_of_it() {
        assert_eq!(cut_all(cut(1024, 16, 8), 40), [20, 20]);
        assert_eq!(cut_all(cut(1024, 16, 8), 17), [17]);
    }

    #[test]
    fn a_fixed_batch_is_cut_at_its_multiples() {
        let cut = Cut {
            step: 8,
            ..cut(1024, 16, 4)
        };
        assert_eq!(cut_all(cut, 100), [32, 24, 24, 20]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_chunk_and_chunks_are_alike(
            rows in 1usize..100_000, most in 1usize..2000, floor in 1usize..64, workers in 1usize..100,
        ) {
            let sizes = cut_all(cut(most, floor, workers), rows);
            prop_assert_eq!(sizes.iter().sum::<usize>(), rows);
            let (min, max) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(max - min <= 1 && *max <= most, "{:?}", sizes);
            let all_used = sizes.len().is_multiple_of(workers) || sizes.len() < workers
                || rows / sizes.len() <= 2 * floor || sizes.len() == rows.div_ceil(most);
            prop_assert!(all_used);
        }
    }

    proptest! {
        #[test]
        fn guided_chunks_shrink_to_the_end_in_whole_runs(
            rows in 1usize..100_000, most in 1usize..2000, floor in 1usize..64, workers in 1usize..100,
            run in 1usize..300,
        ) {
            let cut = cut(most, floor, workers);
            let (mut left, mut last) = (rows, usize::MAX);
            while left > 0 {
                let rows = cut.guided(left, run);
                prop_assert!((1..=most).contains(&rows) && rows <= left);
                prop_assert!(rows <= last.max(floor), "{rows} after {last}");
                // Whole runs, but for what the floor, the bound or the end cut off.
                let odd = !rows.is_multiple_of(run) && rows > run;
                prop_assert!(!odd || rows == most || rows == left || rows <= floor.next_multiple_of(run));
                (left, last) = (left - rows, rows.next_multiple_of(run));
            }
        }
    }

    #[test]
    fn parts_come_back_in_row_order_and_once() {
        let part = |v: f32| Batch {
            tensors: vec![Tensor::from_slice("y", vec![1], &[v]).unwrap()],
        };
        let mut gather = Gather::default();
        assert!(gather.add(2, 1, vec![part(2.)]));
        assert!(gather.add(0, 2, vec![part(0.), part(1.)]));
        assert!(!gather.add(2, 1, vec![part(9.)]));
        assert_eq!(gather.rows(), 3);
        assert_eq!(gather.into_parts(), [part(0.), part(1.), part(2.)]);
    }
}
