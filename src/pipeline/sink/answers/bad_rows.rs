//! Requests of which rows failed, and that report them: what is known of these rows until all have come, and the answer.

use crate::error::{Error, ErrorCode, Result};
use crate::message::FailedRows;
use crate::split::Gather;
use crate::tensor::{Batch, Tensor};

/// The rows of a request that have failed so far.
#[derive(Default)]
pub(super) struct BadRows {
    /// As they came; none of a stream, which has told them already.
    entries: Vec<FailedRows>,
    /// Rows that may be good: they were left, or there was too much of something.
    left: Counted,
    /// All others.
    bad: Counted,
}

/// Some of the rows that failed.
#[derive(Default)]
struct Counted {
    rows: u64,
    first: Option<FailedRows>,
}

impl Counted {
    fn add(&mut self, failed: &FailedRows) {
        self.rows += failed.count;
        let is_first = |known: &FailedRows| failed.first < known.first;
        if self.first.as_ref().is_none_or(is_first) {
            self.first = Some(failed.clone());
        }
    }
}

impl BadRows {
    /// Takes those of a part.
    pub(super) fn add(&mut self, failed: Vec<FailedRows>) {
        self.add_told(&failed);
        self.entries.extend(failed);
    }

    /// Takes those of a part that a stream was told.
    pub(super) fn add_told(&mut self, failed: &[FailedRows]) {
        for failed in failed {
            match failed.code {
                ErrorCode::ResourceExhausted => self.left.add(failed),
                _ => self.bad.add(failed),
            }
        }
    }

    /// How many they are.
    pub(super) fn rows(&self) -> u64 {
        self.left.rows + self.bad.rows
    }

    /// What a request of so many rows ends with, if none of them has a result.
    pub(super) fn error_of_all(&self, total: u64) -> Option<Error> {
        if self.rows() < total {
            return None;
        }
        let first = [&self.bad.first, &self.left.first];
        let first = first.into_iter().find_map(Option::as_ref)?;
        let (row, said) = (first.first, &first.message);
        let (code, message) = match &self.left.first {
            _ if total == 1 => (first.code, format!("row 0: {said}")),
            None => (
                first.code,
                format!("all {total} rows failed; row {row}: {said}"),
            ),
            // Sent again, in smaller requests, they may be answered.
            Some(left) => {
                let message = match self.bad.rows {
                    0 => format!("none of {total} rows has a result; row {row}: {said}"),
                    bad => format!(
                        "none of {total} rows has a result; row {row}: {}: {said}; {bad} failed and {} may be good: {}",
                        first.code, self.left.rows, left.message
                    ),
                };
                (left.code, message)
            }
        };
        Some(Error::new(code, message).at_rows(0..usize::try_from(total).unwrap_or(usize::MAX)))
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
