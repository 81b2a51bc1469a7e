//! What tests tell the sink, and read of what it answers.

use crate::error::{Error, ErrorCode};
use crate::message::{
    ChunkId, Member, ModelLabel, OnBadRow, Outcome, Part, Ran, ReplyTo, RequestId, Serial, WorkerId,
};
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::{Close, CloseEnd, ToSink};
use crate::wire::server::ServerMessage;

/// The client that all of it is for.
pub(in crate::pipeline::sink) const REPLY: ReplyTo = ReplyTo([7; 16]);
/// The model that it is counted for.
pub(in crate::pipeline::sink) const LABEL: ModelLabel = ModelLabel(3);

pub(in crate::pipeline::sink) fn member(serial: u64, offset: u64, rows: u64, total: u64) -> Member {
    Member {
        serial: Serial(serial),
        reply: REPLY,
        request: RequestId(serial + 100),
        offset,
        rows,
        total,
        stream: false,
        on_bad_row: OnBadRow::Fail,
        whole: false,
        arrived_us: 0,
        queue_us: 5,
    }
}

/// What a run gave for the rows of one member.
pub(in crate::pipeline::sink) fn alone(batch: Batch) -> Outcome {
    Outcome::Done(vec![Ran {
        members: 1,
        runs: vec![batch],
        failed: Vec::new(),
    }])
}

/// Rows that say where they belong.
pub(in crate::pipeline::sink) fn rows(member: &Member) -> Batch {
    let values: Vec<f32> = (member.offset..member.offset + member.rows)
        .map(|row| row as f32)
        .collect();
    let shape = vec![values.len()];
    Batch {
        tensors: vec![Tensor::from_vec("y", shape, values).unwrap()],
    }
}

/// A part of the chunk that the member's offset names: with this outcome, or its rows.
pub(in crate::pipeline::sink) fn part(member: &Member, outcome: Option<Outcome>) -> ToSink {
    part_of(member.offset + 1, member, outcome)
}

pub(in crate::pipeline::sink) fn part_of(
    chunk: u64,
    member: &Member,
    outcome: Option<Outcome>,
) -> ToSink {
    ToSink::Part(Box::new(Part {
        chunk: ChunkId(chunk),
        worker: WorkerId(0),
        label: LABEL,
        compute_us: 10,
        members: vec![member.clone()],
        outcome: outcome.unwrap_or_else(|| alone(rows(member))),
    }))
}

/// The request was cancelled after so many chunks of it were given out.
pub(in crate::pipeline::sink) fn close(member: &Member, chunks: u64) -> ToSink {
    ToSink::Close(Close {
        serial: member.serial,
        reply: member.reply,
        request: member.request,
        label: LABEL,
        chunks,
        arrived_us: 0,
        end: CloseEnd::Error(Error::new(ErrorCode::Cancelled, "taken back")),
    })
}

/// The rows of a result.
pub(in crate::pipeline::sink) fn values(answer: ServerMessage) -> Vec<f32> {
    let ServerMessage::Result(outputs, _) = answer else {
        panic!("{answer:?}")
    };
    let parts = outputs.parts.iter();
    parts
        .flat_map(|part| part.tensors[0].to_vec::<f32>().unwrap())
        .collect()
}

/// The code of an error.
pub(in crate::pipeline::sink) fn code(answer: ServerMessage) -> ErrorCode {
    match answer {
        ServerMessage::Error(error) => error.code(),
        other => panic!("{other:?}"),
    }
}
