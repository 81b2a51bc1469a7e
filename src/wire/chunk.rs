//! Chunks between ventilator and worker: shared bytes on the way, checked values where they are run.
//!
//! ```text
//! [header] [parameters, if there are any] [for each member its inputs, or those of all members joined]
//! ```
//! The ventilator has looked at lengths alone. What a worker receives is an [`UncheckedChunk`], and the only way to its
//! rows is [`UncheckedChunk::check`], which takes out the members whose values are not what they should be.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::inner::{Columns, columns, push_batches, rows_of, take_batches};
use super::{members, params};
use crate::error::{Error, Result};
use crate::message::{Chunk, ChunkId, Member, ModelId, Params, Rows};
use crate::tensor::{Batch, Tensor};

#[derive(Serialize, Deserialize)]
pub(super) struct ChunkHeader<'a> {
    id: ChunkId,
    leg: u32,
    until: u32,
    goes_on: bool,
    spent_us: u64,
    attempt: u32,
    model: ModelId,
    run: Option<u64>,
    /// The frame behind this one is parameters.
    has_params: bool,
    /// Nobody has looked at the values of the inputs.
    unchecked: bool,
    /// The inputs are those of all members in one piece.
    joined: bool,
    #[serde(with = "members")]
    members: Cow<'a, [Member]>,
    #[serde(borrow)]
    columns: Columns<'a>,
}

/// Writes a chunk's frames, of which the caller writes the header.
pub(super) fn write_chunk_with(
    chunk: &Chunk<Bytes>,
    header: impl FnOnce(ChunkHeader<'_>) -> Bytes,
) -> Vec<Bytes> {
    let batches = chunk.rows.batches();
    let columns = columns(batches.iter());
    let tensors = columns.first().map_or(0, Vec::len);
    let mut frames = Vec::with_capacity(2 + batches.len() * tensors);
    frames.push(header(ChunkHeader {
        id: chunk.id,
        leg: chunk.leg,
        until: chunk.until,
        goes_on: chunk.goes_on,
        spent_us: chunk.spent_us,
        attempt: chunk.attempt,
        model: chunk.model,
        run: chunk.run,
        has_params: !chunk.params.is_empty(),
        unchecked: !batches.iter().all(Batch::is_checked),
        joined: matches!(chunk.rows, Rows::Joined(_)),
        members: Cow::Borrowed(&chunk.members),
        columns,
    }));
    if !chunk.params.is_empty() {
        frames.push(chunk.params.clone());
    }
    push_batches(&mut frames, batches.iter());
    frames
}

/// A chunk as a worker receives it.
#[derive(Debug)]
pub(crate) struct UncheckedChunk(Chunk<Bytes>);

impl UncheckedChunk {
    pub(super) fn read(
        header: ChunkHeader<'_>,
        mut frames: std::vec::IntoIter<Bytes>,
    ) -> Result<UncheckedChunk> {
        let params = if header.has_params {
            let missing = || Error::internal("a chunk without its parameters");
            frames.next().ok_or_else(missing)?
        } else {
            Bytes::new()
        };
        let mut batches = if header.joined {
            let rows = header.members.iter().map(|member| member.rows).sum();
            take_batches(std::iter::once((rows, false)), &header.columns, frames)?
        } else {
            take_batches(rows_of(&header.members), &header.columns, frames)?
        };
        if header.unchecked {
            for batch in &mut batches {
                let tensors = std::mem::take(&mut batch.tensors).into_iter();
                batch.tensors = tensors.map(Tensor::distrusted).collect();
            }
        }
        Ok(UncheckedChunk(Chunk {
            id: header.id,
            leg: header.leg,
            until: header.until,
            goes_on: header.goes_on,
            spent_us: header.spent_us,
            attempt: header.attempt,
            model: header.model,
            run: header.run,
            params,
            members: header.members.into_owned(),
            rows: match batches.pop() {
                Some(batch) if header.joined => Rows::Joined(batch),
                last => {
                    batches.extend(last);
                    Rows::Each(batches)
                }
            },
        }))
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
        let chunk = self.0;
        let params = params::parse(&chunk.params);
        let mut refused = Vec::new();
        let rows = match chunk.rows {
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
            (chunk.members, rows)
        } else {
            let mut good = (Vec::new(), Vec::new());
            let each = rows.into_each(&chunk.members);
            for (member, inputs) in std::iter::zip(chunk.members, each) {
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
        (
            Chunk {
                id: chunk.id,
                leg: chunk.leg,
                until: chunk.until,
                goes_on: chunk.goes_on,
                spent_us: chunk.spent_us,
                attempt: chunk.attempt,
                model: chunk.model,
                run: chunk.run,
                params,
                members,
                rows,
            },
            refused,
        )
    }

    /// The chunk without its rows, for one that is not run.
    pub(crate) fn discard(self) -> Chunk {
        let chunk = self.0;
        Chunk {
            id: chunk.id,
            leg: chunk.leg,
            until: chunk.until,
            goes_on: chunk.goes_on,
            spent_us: chunk.spent_us,
            attempt: chunk.attempt,
            model: chunk.model,
            run: chunk.run,
            params: Params::new(),
            members: chunk.members,
            rows: Rows::Each(Vec::new()),
        }
    }
}
