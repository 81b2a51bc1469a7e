//! What a member's rows gave, in runs of its own or in one with others'.

use std::ops::Range;

use crate::message::{FailedRows, Member};
use crate::tensor::Batch;

/// What a member's rows gave.
pub(super) enum Given<'a> {
    /// In runs of this member alone.
    Runs(Vec<Batch>),
    /// In a run together with other members: the run, and which of its rows.
    Some(&'a Batch, Range<usize>),
    /// In one run of this member alone, of which these rows failed; in none if all did.
    Bad(Option<Batch>, Vec<FailedRows>),
}

impl Given<'_> {
    /// Where they are in one piece, the outputs and which of their rows.
    pub(super) fn as_rows(&self, member: &Member) -> Option<(&Batch, Range<usize>)> {
        match self {
            Given::Runs(runs) => match &runs[..] {
                [run] if !member.whole => Some((run, 0..member.rows as usize)),
                _ => None,
            },
            Given::Some(run, rows) => Some((run, rows.clone())),
            Given::Bad(..) => None,
        }
    }

    /// What the rows gave, and those of them that failed.
    pub(super) fn into_runs(self) -> (Vec<Batch>, Vec<FailedRows>) {
        match self {
            Given::Runs(runs) => (runs, Vec::new()),
            // Copied: otherwise a client that does not read its answer would keep the memory of the whole run.
            Given::Some(run, rows) => {
                let own = run.slice_rows(rows.start, rows.len()).detached();
                (vec![own], Vec::new())
            }
            Given::Bad(run, failed) => (run.into_iter().collect(), failed),
        }
    }
}
