//! What stands in a member's outputs for rows that failed: blank rows at the end, and copies of other rows where a further
//! leg is to run, which takes rows of the model's own making and not zeros.

use super::run::{Done, join};
use crate::error::Result;
use crate::message::{Chunk, FailedRows, Member};
use crate::tensor::Batch;

/// What rows that failed are replaced by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Fill {
    Blank,
    OtherRows,
}

impl Fill {
    /// For what a chunk gives.
    pub(in crate::pipeline) fn of(chunk: &Chunk) -> Fill {
        match chunk.goes_on {
            true => Fill::OtherRows,
            false => Fill::Blank,
        }
    }
}

/// All rows of a member in one piece, from the outputs of those that did not fail; none if all failed.
///
/// # Errors
/// `INTERNAL` if the outputs are not alike.
pub(in crate::pipeline) fn filled(
    member: &Member,
    runs: &[Batch],
    failed: &[FailedRows],
    fill: Fill,
) -> Result<Option<Batch>> {
    let Some(like) = runs.iter().find(|run| run.row_count().unwrap_or(0) > 0) else {
        return Ok(None);
    };
    let gap = |failed: &FailedRows| match fill {
        Fill::Blank => like.blank_rows(failed.count as usize),
        Fill::OtherRows => repeated(like, failed.count),
    };
    // A copy of the rows that did not fail: an answer has each part in one piece.
    let mut pieces = Vec::with_capacity(runs.len() + failed.len());
    let mut gaps = failed.iter().peekable();
    let mut row = member.offset;
    for run in runs {
        while let Some(failed) = gaps.next_if(|failed| failed.first == row) {
            pieces.push(gap(failed)?);
            row += failed.count;
        }
        row += run.row_count().unwrap_or(0) as u64;
        pieces.push(run.clone());
    }
    for failed in gaps {
        pieces.push(gap(failed)?);
    }
    join(&pieces).map(Some)
}

/// The first row of a batch so many times.
pub(super) fn repeated(batch: &Batch, rows: u64) -> Result<Batch> {
    let row = batch.slice_rows(0, 1);
    join(&vec![row; rows as usize])
}

/// Where an entry lies, to see whether two rows have the same.
fn entry(row: &Option<&FailedRows>) -> *const FailedRows {
    row.map_or(std::ptr::null(), std::ptr::from_ref)
}

/// What a member has got, of whose rows some failed in earlier legs: these count as failed, whatever came of the rows that
/// ran in their place.
///
/// # Errors
/// As [`filled`].
pub(super) fn with_earlier(
    chunk: &Chunk,
    member: Member,
    given: (Option<Batch>, Vec<FailedRows>),
) -> Result<Done> {
    let (batch, failed) = given;
    let mut known: Vec<Option<&FailedRows>> = vec![None; member.rows as usize];
    let earlier = chunk.failed.iter();
    let earlier = earlier
        .filter(|(serial, _)| *serial == member.serial)
        .map(|(_, failed)| failed);
    // What failed first is told.
    for entry in failed.iter().chain(earlier) {
        let within = |row: u64| row.saturating_sub(member.offset).min(member.rows) as usize;
        let rows = entry.rows();
        known[within(rows.start)..within(rows.end)].fill(Some(entry));
    }
    let (mut all, mut good) = (Vec::new(), Vec::new());
    let mut start = 0;
    for same in known.chunk_by(|one, next| std::ptr::eq(entry(one), entry(next))) {
        let rows = same.len();
        match (same[0], &batch) {
            (Some(entry), _) => FailedRows {
                first: member.offset + start as u64,
                count: rows as u64,
                ..entry.clone()
            }
            .push_to(&mut all),
            (None, Some(batch)) => good.push(batch.slice_rows(start, rows)),
            (None, None) => {} // cannot happen: without outputs all failed
        }
        start += rows;
    }
    let runs = filled(&member, &good, &all, Fill::of(chunk))?;
    Ok(Done {
        members: vec![member],
        runs: runs.into_iter().collect(),
        failed: all,
    })
}
