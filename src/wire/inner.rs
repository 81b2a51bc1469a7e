//! What the three loops tell each other. The same rules as outside, header and payload frames, but headers are
//! msgpack arrays in the order of the fields here: nobody but our own version reads them, and they are on the
//! path of every row.
//!
//! ```text
//! ventilator -> worker      chunk (with payload; chunk.rs) | open | forget | resume | stop
//! worker     -> sink        part (with payload) | stopped
//! worker     -> ventilator  up | credit | opened | down
//! ventilator -> sink        close | lost | worker lost | out | report | gone | finish
//! sink       -> ventilator  gone | silent | abort | arrived | what is out | report | stopped
//! loader     -> ventilator  loaded
//! ```

mod settle;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use settle::{Arrived, LostWorker, Out};

use super::chunk::{ChunkPayload, UncheckedChunk};
use super::{push_payload, take_payload};
use crate::error::{Error, Result};
use crate::message::{
    Chunk, Credit, FailedRows, Member, ModelId, ModelLabel, Outcome, Part, Ran, ReplyTo, RequestId,
    Serial, WorkerId,
};
use crate::metrics::history::Covered;
use crate::metrics::{Answered, Histogram};
use crate::tensor::{Batch, DataType, Tensor};
use crate::wire::server::LatencyInfo;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Run this, once its values are checked.
    Chunk(Box<UncheckedChunk>),
    /// Open a model before its first chunk, and say when.
    Open(ModelId),
    /// Forget a model: it was unloaded.
    Forget(ModelId),
    /// All that came before this is given to others: the answer to a worker that is down.
    Resume,
    /// Nothing more will come: pass it on to the sink and end.
    Stop,
}

/// What the sink is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSink {
    /// Results of a chunk.
    Part(Box<Part>),
    /// A worker has ended: nothing more will come from it.
    Stopped(WorkerId),
    /// End a request.
    Close(Close),
    /// So many chunks of a closed request were on a worker that is gone.
    Lost(Serial, u64),
    /// A worker is gone. Say what has arrived of the chunks that it held; what comes of them after this does not count,
    /// for they run again.
    WorkerLost(LostWorker),
    /// What is out: the answer to [`ToVentilator::WhatIsOut`].
    Out(Out),
    /// Say what has been answered; the number comes back with the report.
    Report(u64),
    /// A client's session is over: nothing more is for it.
    Gone(ReplyTo),
    /// The server stops at once: send out what is there, wait for nobody.
    Finish,
}

/// An order to end a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Close {
    /// Which request.
    pub serial: Serial,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// Its number there.
    pub request: RequestId,
    /// Under which model's name it is counted.
    pub label: ModelLabel,
    /// Chunks that were given out and whose parts may still come.
    pub chunks: u64,
    /// When it arrived, in microseconds of the server's clock.
    pub arrived_us: u64,
    /// Who answers it, and with what.
    pub end: CloseEnd,
}

/// What the sink does about the answer of a request that is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CloseEnd {
    /// It answers with this.
    Error(Error),
    /// It has answered, with an error of its own, and only wants to know the number of chunks.
    AnsweredBySink,
}

/// What the ventilator is told from inside.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToVentilator {
    /// A worker is ready, for the first time or again.
    Up(WorkerId),
    /// A chunk has ended.
    Credit(Credit),
    /// A credit that is waited for was left beside this: see `pipeline/beside_bulk.rs`.
    CreditsLeft,
    /// A model was opened ahead of its first chunk, or could not be.
    Opened(WorkerId, ModelId, Option<Error>),
    /// A worker is lost, with whatever it held.
    Down(WorkerId, String),
    /// The loader has an answer.
    Loaded(u64),
    /// A client is gone: end its work.
    Gone(ReplyTo),
    /// Nothing comes from a client over `port_out`: if nothing comes over `port` either, it is gone.
    Silent(ReplyTo),
    /// The sink has answered a request with an error of its own: give out no more of it.
    Abort(Serial),
    /// What had arrived of a lost worker's chunks: the answer to [`ToSink::WorkerLost`].
    Arrived(Arrived),
    /// Say which chunks are out, so that the sink may forget what it answered: see [`Out`].
    WhatIsOut,
    /// What the sink has answered so far.
    Report(u64, Box<SinkReport>),
    /// The sink has given out everything and is about to end.
    SinkStopped,
}

/// The sink's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkReport {
    /// By the label of their models.
    pub answered: Vec<Answered>,
    /// Answers that nobody was there to read.
    pub undelivered: u64,
    /// Connections to its port.
    pub connections: u64,
    /// From arrival to answer.
    pub latency: LatencyInfo,
    /// What was answered in each window that ends now.
    pub recent: Vec<AnsweredRecently>,
}

/// What the sink answered in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnsweredRecently {
    pub covered: Covered,
    /// By the label of their models.
    pub answers: Vec<AnswerCounts>,
}

/// How many requests were answered, and how long the results took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswerCounts {
    pub results: u64,
    pub rows: u64,
    pub errors: u64,
    pub total: Histogram,
}

impl AnswerCounts {
    pub fn of(answered: &Answered) -> AnswerCounts {
        AnswerCounts {
            results: answered.results(),
            rows: answered.rows(),
            errors: answered.errors(),
            total: answered.total.clone(),
        }
    }

    /// Those that came since there were these.
    pub fn since(&self, earlier: &AnswerCounts) -> AnswerCounts {
        AnswerCounts {
            results: self.results - earlier.results,
            rows: self.rows - earlier.rows,
            errors: self.errors - earlier.errors,
            total: self.total.since(&earlier.total),
        }
    }
}

/// A tensor of a member: its name, datatype and every dimension; the first is the member's rows unless whole.
#[derive(Serialize, Deserialize)]
pub(super) struct Column<'a>(
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    Vec<u64>,
);

/// The tensors of one member for all of them if they are alike, else of each.
pub(super) type Columns<'a> = Vec<Vec<Column<'a>>>;

impl<'a> Column<'a> {
    fn of(tensor: &'a Tensor) -> Column<'a> {
        Column(
            tensor.name().into(),
            tensor.datatype().name().into(),
            tensor.shape().iter().map(|&d| d as u64).collect(),
        )
    }
}

/// A chunk as [`ToWorker::Chunk`], without being one.
#[derive(Serialize)]
enum ToWorkerRef<'a> {
    Chunk(&'a Chunk<Bytes>),
}

/// What a part's payload frames are.
#[derive(Serialize, Deserialize)]
struct PartPayload<'a> {
    outcome: Ending,
    /// For some members at a time how many they are, and the rows of each of their runs.
    runs: Vec<(u32, Vec<u64>)>,
    /// Rows that failed, each with its place among the runs.
    failed: Vec<(u32, Cow<'a, FailedRows>)>,
    #[serde(borrow)]
    columns: Columns<'a>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Ending {
    Done,
    Skipped,
    Failed,
}

impl PartPayload<'_> {
    fn of(part: &Part) -> PartPayload<'_> {
        let (outcome, done): (_, &[Ran]) = match &part.outcome {
            Outcome::Done(done) => (Ending::Done, done),
            Outcome::Skipped => (Ending::Skipped, &[]),
            Outcome::Failed => (Ending::Failed, &[]),
        };
        let of = |ran: &Ran| (ran.members as u32, rows_of_runs(&ran.runs));
        let failed = done.iter().enumerate().flat_map(|(place, ran)| {
            let failed = ran.failed.iter();
            failed.map(move |rows| (place as u32, Cow::Borrowed(rows)))
        });
        PartPayload {
            outcome,
            runs: done.iter().map(of).collect(),
            failed: failed.collect(),
            columns: columns(done.iter().flat_map(|ran| &ran.runs)),
        }
    }

    fn outcome(&self, members: &[Member], frames: std::vec::IntoIter<Bytes>) -> Result<Outcome> {
        Ok(match self.outcome {
            Ending::Done => {
                // What is run whole is one run of one member.
                let is_whole = members.iter().any(|member| member.whole);
                let rows = self.runs.iter().flat_map(|(_, rows)| rows);
                let rows = rows.map(|rows| (*rows, is_whole));
                let mut done = take_batches(rows, &self.columns, frames)?.into_iter();
                let of = |(members, rows): &(u32, Vec<u64>)| Ran {
                    members: *members as usize,
                    runs: done.by_ref().take(rows.len()).collect(),
                    failed: Vec::new(),
                };
                let mut all: Vec<Ran> = self.runs.iter().map(of).collect();
                for (place, rows) in &self.failed {
                    let ran = all.get_mut(*place as usize).ok_or_else(|| {
                        Error::internal("an inner header has failed rows of no run")
                    })?;
                    ran.failed.push(rows.clone().into_owned());
                }
                Outcome::Done(all)
            }
            Ending::Skipped => Outcome::Skipped,
            Ending::Failed => Outcome::Failed,
        })
    }
}

/// A header: what is told, and what the frames behind it are, if there are any.
#[expect(
    clippy::expect_used,
    reason = "what is written is our own, and of kinds that cannot fail"
)]
fn header<T: Serialize, P: Serialize>(told: &T, payload: Option<&P>) -> Bytes {
    rmp_serde::to_vec(&(told, payload))
        .expect("inner headers hold numbers, strings and maps of them, which msgpack always takes")
        .into()
}

fn parse<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T> {
    rmp_serde::from_slice(frame).map_err(|e| Error::internal(format!("an inner header: {e}")))
}

fn without_payload() -> Error {
    Error::internal("an inner header does not say what is behind it")
}

fn split(frames: Vec<Bytes>) -> Result<(Bytes, std::vec::IntoIter<Bytes>)> {
    let mut frames = frames.into_iter();
    let first = frames
        .next()
        .ok_or_else(|| Error::internal("an inner message without frames"))?;
    Ok((first, frames))
}

pub(super) fn columns<'a>(batches: impl Iterator<Item = &'a Batch> + Clone) -> Columns<'a> {
    let Some(first) = batches.clone().next() else {
        return Vec::new();
    };
    let differ = !batches.clone().skip(1).all(|batch| batch.is_like(first));
    batches
        .take(if differ { usize::MAX } else { 1 })
        .map(|batch| batch.tensors.iter().map(Column::of).collect())
        .collect()
}

pub(super) fn push_batches<'a>(frames: &mut Vec<Bytes>, batches: impl Iterator<Item = &'a Batch>) {
    for tensor in batches.flat_map(|b| &b.tensors) {
        push_payload(frames, tensor);
    }
}

/// The batches of members, each of which says its rows, and whether its tensors are whole.
pub(super) fn take_batches(
    members: impl Iterator<Item = (u64, bool)>,
    columns: &Columns<'_>,
    mut frames: std::vec::IntoIter<Bytes>,
) -> Result<Vec<Batch>> {
    let mut kinds = Vec::with_capacity(columns.len());
    for columns in columns {
        let mut kind = Vec::with_capacity(columns.len());
        for Column(name, dtype, shape) in columns {
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            kind.push((Arc::<str>::from(&**name), DataType::parse(dtype)?, shape));
        }
        kinds.push(kind);
    }
    members
        .enumerate()
        .map(|(index, (rows, whole))| {
            let kind = match &kinds[..] {
                [] => &[][..],
                [all] => all,
                each => each
                    .get(index)
                    .ok_or_else(|| Error::internal("an inner header has too few members"))?,
            };
            let mut tensors = Vec::with_capacity(kind.len());
            for (name, datatype, shape) in kind {
                let mut shape = shape.clone();
                if let (false, Some(first)) = (whole, shape.first_mut()) {
                    *first = rows as usize;
                }
                let data = take_payload(name, *datatype, &mut frames)?;
                tensors.push(Tensor::trusted(name.clone(), *datatype, shape, data));
            }
            Ok(Batch { tensors })
        })
        .collect()
}

/// Of each member its rows, and whether its tensors are whole: for [`take_batches`].
pub(super) fn row_counts(members: &[Member]) -> impl Iterator<Item = (u64, bool)> {
    members.iter().map(|member| (member.rows, member.whole))
}

/// Runs are of rows: what is run whole is run once.
fn rows_of_runs(runs: &[Batch]) -> Vec<u64> {
    let rows = |batch: &Batch| batch.row_count().unwrap_or(0) as u64;
    runs.iter().map(rows).collect()
}

/// Writes a chunk: the header, the parameters if there are any, then for each member its inputs. All but the header is
/// shared, not copied.
pub(crate) fn write_chunk(chunk: &Chunk<Bytes>) -> Vec<Bytes> {
    let payload = ChunkPayload::of(chunk);
    let header = header(&ToWorkerRef::Chunk(chunk), Some(&payload));
    payload.frames(header, chunk)
}

pub(crate) fn write_to_worker(message: &ToWorker) -> Vec<Bytes> {
    match message {
        ToWorker::Chunk(chunk) => write_chunk(chunk.as_written()),
        other => vec![header(other, None::<&()>)],
    }
}

pub(crate) fn read_to_worker(frames: Vec<Bytes>) -> Result<ToWorker> {
    let (first, rest) = split(frames)?;
    let (mut message, payload): (_, Option<ChunkPayload<'_>>) = parse(&first)?;
    if let ToWorker::Chunk(chunk) = &mut message {
        chunk.take_payload(&payload.ok_or_else(without_payload)?, rest)?;
    }
    Ok(message)
}

pub(crate) fn write_to_sink(message: &ToSink) -> Vec<Bytes> {
    let ToSink::Part(part) = message else {
        return vec![header(message, None::<&()>)];
    };
    let mut frames = vec![header(message, Some(&PartPayload::of(part)))];
    if let Outcome::Done(done) = &part.outcome {
        push_batches(&mut frames, done.iter().flat_map(|ran| &ran.runs));
    }
    frames
}

pub(crate) fn read_to_sink(frames: Vec<Bytes>) -> Result<ToSink> {
    let (first, rest) = split(frames)?;
    let (mut message, payload): (_, Option<PartPayload<'_>>) = parse(&first)?;
    if let ToSink::Part(part) = &mut message {
        let payload = payload.ok_or_else(without_payload)?;
        part.outcome = payload.outcome(&part.members, rest)?;
    }
    Ok(message)
}

pub(crate) fn write_to_ventilator(message: &ToVentilator) -> Vec<Bytes> {
    let ToVentilator::Credit(credit) = message else {
        return vec![header(message, None::<&()>)];
    };
    let batches = credit.handed.iter().map(|handed| &handed.batch);
    let mut frames = vec![header(message, Some(&columns(batches.clone())))];
    push_batches(&mut frames, batches);
    frames
}

pub(crate) fn read_to_ventilator(frames: Vec<Bytes>) -> Result<ToVentilator> {
    let (first, rest) = split(frames)?;
    let (mut message, payload): (_, Option<Columns<'_>>) = parse(&first)?;
    if let ToVentilator::Credit(credit) = &mut message {
        // Rows that are handed back are rows: a model that is run whole has one leg.
        let counts = credit.handed.iter().map(|handed| (handed.rows, false));
        let batches = take_batches(counts, &payload.ok_or_else(without_payload)?, rest)?;
        for (handed, batch) in std::iter::zip(&mut credit.handed, batches) {
            handed.batch = batch;
        }
    }
    Ok(message)
}
