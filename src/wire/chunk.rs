//! Chunks between ventilator and worker: shared bytes on the way, checked values where they are run.
//!
//! ```text
//! [header] [parameters, if there are any] [for each member its inputs, or those of all members joined]
//! ```
//! The ventilator has looked at lengths alone. What a worker receives is an [`UncheckedChunk`], and the only way to its
//! rows is [`UncheckedChunk::check`], which takes out the members whose values are not what they should be.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::inner::{Columns, columns, push_batches, row_counts, take_batches};
use super::params;
use crate::error::{Error, Result};
use crate::message::{Chunk, Member, Params, Rows};
use crate::tensor::{Batch, Tensor};

/// What a chunk's payload frames are.
#[derive(Serialize, Deserialize)]
pub(super) struct ChunkPayload<'a> {
    /// The frame behind the header is parameters.
    has_params: bool,
    /// Nobody has looked at the values of the inputs.
    unchecked: bool,
    /// The inputs are those of all members in one piece.
    joined: bool,
    #[serde(borrow)]
    columns: Columns<'a>,
}

impl ChunkPayload<'_> {
    pub(super) fn of(chunk: &Chunk<Bytes>) -> ChunkPayload<'_> {
        let batches = chunk.rows.batches();
        ChunkPayload {
            has_params: !chunk.params.is_empty(),
            unchecked: !batches.iter().all(Batch::is_checked),
            joined: matches!(chunk.rows, Rows::Joined(_)),
            columns: columns(batches.iter()),
        }
    }

    /// A chunk's frames, of which the header is given.
    pub(super) fn frames(&self, header: Bytes, chunk: &Chunk<Bytes>) -> Vec<Bytes> {
        let batches = chunk.rows.batches();
        let tensors = self.columns.first().map_or(0, Vec::len);
        let mut frames = Vec::with_capacity(2 + batches.len() * tensors);
        frames.push(header);
        if self.has_params {
            frames.push(chunk.params.clone());
        }
        push_batches(&mut frames, batches.iter());
        frames
    }
}

/// A chunk as a worker receives it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UncheckedChunk(Chunk<Bytes>);

impl UncheckedChunk {
    /// Takes the frames that came behind the header.
    pub(super) fn take_payload(
        &mut self,
        payload: &ChunkPayload<'_>,
        mut frames: std::vec::IntoIter<Bytes>,
    ) -> Result<()> {
        let chunk = &mut self.0;
        if payload.has_params {
            let missing = || Error::internal("a chunk without its parameters");
            chunk.params = frames.next().ok_or_else(missing)?;
        }
        let mut batches = if payload.joined {
            let rows = chunk.members.iter().map(|member| member.rows).sum();
            take_batches(std::iter::once((rows, false)), &payload.columns, frames)?
        } else {
            take_batches(row_counts(&chunk.members), &payload.columns, frames)?
        };
        if payload.unchecked {
            for batch in &mut batches {
                let tensors = std::mem::take(&mut batch.tensors).into_iter();
                batch.tensors = tensors.map(Tensor::distrusted).collect();
            }
        }
        chunk.rows = match batches.pop() {
            Some(batch) if payload.joined => Rows::Joined(batch),
            last => {
                batches.extend(last);
                Rows::Each(batches)
            }
        };
        Ok(())
    }

    /// What a worker would receive of a chunk.
    #[cfg(test)]
    pub(crate) fn of(chunk: Chunk<Bytes>) -> UncheckedChunk {
        UncheckedChunk(chunk)
    }

    /// Whose rows these are.
    pub(crate) fn members(&self) -> &[Member] {
        &self.0.members
    }

    pub(super) fn as_written(&self) -> &Chunk<Bytes> {
        &self.0
    }

    /// Looks at the values and reads the parameters. What is left can be run, and holds no member whose values are wrong:
    /// those come beside it, each with what is wrong.
    pub(crate) fn check(self) -> (Chunk, Vec<(Member, Error)>) {
        let mut chunk = self.0;
        let params = params::parse(&chunk.params);
        let mut refused = Vec::new();
        let members = std::mem::take(&mut chunk.members);
        let rows = match std::mem::take(&mut chunk.rows) {
            // Where all is well, a look at all is enough.
            Rows::Joined(batch) if params.is_ok() && !batch.is_checked() => {
                match batch.clone().check_values(0) {
                    Ok(checked) => Rows::Joined(checked),
                    Err(_) => Rows::Joined(batch),
                }
            }
            rows => rows,
        };
        let (members, rows) = if params.is_ok() && rows.batches().iter().all(Batch::is_checked) {
            (members, rows)
        } else {
            let mut good = (Vec::new(), Vec::new());
            let each = rows.into_each(&members);
            for (member, inputs) in std::iter::zip(members, each) {
                let first_row = if member.whole { 0 } else { member.offset };
                let checked = match &params {
                    Ok(_) => inputs.check_values(first_row as usize),
                    Err(error) => Err(error.clone()),
                };
                match checked {
                    Ok(inputs) => {
                        good.0.push(member);
                        good.1.push(inputs);
                    }
                    Err(error) => refused.push((member, error)),
                }
            }
            (good.0, Rows::Each(good.1))
        };
        let params = params.unwrap_or_default();
        (chunk.with(params, members, rows), refused)
    }

    /// The chunk without its rows, for one that is not run.
    pub(crate) fn discard(self) -> Chunk {
        let mut chunk = self.0;
        let members = std::mem::take(&mut chunk.members);
        chunk.with(Params::new(), members, Rows::default())
    }
}
