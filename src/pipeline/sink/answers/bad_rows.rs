//! Requests of which rows failed, and that report them: what is known of these rows until all have come, and the answer.

use crate::error::{Error, Result};
use crate::message::FailedRows;
use crate::split::Gather;
use crate::tensor::{Batch, Tensor};

/// The rows of a request that have failed so far.
#[derive(Default)]
pub(super) struct BadRows {
    /// As they came; of a stream, which has told them already, the first alone.
    entries: Vec<FailedRows>,
    rows: u64,
}

impl BadRows {
    /// Takes those of a part.
    pub(super) fn add(&mut self, failed: Vec<FailedRows>) {
        self.rows += count(&failed);
        self.entries.extend(failed);
    }

    /// Takes those of a part that a stream was told.
    pub(super) fn add_told(&mut self, failed: &[FailedRows]) {
        self.rows += count(failed);
        let known = self.entries.first().map(|known| known.first);
        match failed.first() {
            Some(first) if known.is_none_or(|known| first.first < known) => {
                self.entries = vec![first.clone()];
            }
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What a request of so many rows ends with, if all of them failed.
    pub(super) fn error_of_all(&self, total: u64) -> Option<Error> {
        if self.rows < total {
            return None;
        }
        let first = self.entries.iter().min_by_key(|failed| failed.first)?;
        let message = match total {
            1 => format!("row 0: {}", first.message),
            _ => format!(
                "all {total} rows failed; row {}: {}",
                first.first, first.message
            ),
        };
        Some(
            Error::new(first.code, message)
                .at_rows(0..usize::try_from(total).unwrap_or(usize::MAX)),
        )
    }

    /// In row order; neighbours of different parts that say the same are one entry.
    pub(super) fn into_entries(self) -> Vec<FailedRows> {
        let mut entries = self.entries;
        entries.sort_unstable_by_key(|failed| failed.first);
        let mut merged = Vec::with_capacity(entries.len());
        for failed in entries {
            failed.push_to(&mut merged);
        }
        merged
    }
}

fn count(failed: &[FailedRows]) -> u64 {
    failed.iter().map(|failed| failed.count).sum()
}

/// The bytes that are held for entries.
pub(super) fn bytes_of(failed: &[FailedRows]) -> u64 {
    failed.iter().map(FailedRows::bytes).sum()
}

/// The parts of a request of so many rows, of which some may have no outputs since all of their rows failed.
pub(super) struct Filled {
    /// The number of rows of each, and what they gave.
    parts: Vec<(u64, Vec<Batch>)>,
}

impl Filled {
    pub(super) fn of(gather: Gather, total: u64) -> Filled {
        let parts = gather.into_placed();
        let ends = parts
            .iter()
            .skip(1)
            .map(|(offset, _)| *offset)
            .chain([total]);
        let rows: Vec<u64> = std::iter::zip(&parts, ends)
            .map(|((offset, _), end)| end.saturating_sub(*offset))
            .collect();
        let runs = parts.into_iter().map(|(_, runs)| runs);
        Filled {
            parts: std::iter::zip(rows, runs).collect(),
        }
    }

    /// About how many bytes the blank rows take that are missing.
    pub(super) fn missing_bytes(&self) -> u64 {
        let Some(like) = self.like() else {
            return 0;
        };
        let of_row = |tensor: &Tensor| {
            // An offset and a null, where elements are not of one size.
            let size = tensor.datatype().size().unwrap_or(9);
            (tensor.row_elements() * size) as u64
        };
        let row: u64 = like.tensors.iter().map(of_row).sum();
        let missing = self.parts.iter().filter(|(_, runs)| runs.is_empty());
        missing.map(|(rows, _)| rows.saturating_mul(row)).sum()
    }

    fn like(&self) -> Option<&Batch> {
        self.parts.iter().find_map(|(_, runs)| runs.first())
    }

    /// All parts, blank where there was nothing: these are like the others.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no memory for them.
    pub(super) fn into_parts(self) -> Result<Vec<Batch>> {
        let like = self.like().cloned().unwrap_or_default();
        let mut parts = Vec::with_capacity(self.parts.len());
        for (rows, runs) in self.parts {
            match runs.is_empty() {
                true => parts.push(like.blank_rows(rows as usize)?),
                false => parts.extend(runs),
            }
        }
        Ok(parts)
    }
}
