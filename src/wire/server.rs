//! The messages of servers: on `port` the answers to questions, on `port_out` results, parts and errors.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::answer::{self, read_header};
pub use super::load::LoadOutcome;
pub use super::status::{
    FailedModel, LatencyInfo, ModelCounts, ModelRecent, QueueInfo, RecentInfo, Status, TotalsInfo,
    WorkerInfo, WorkerRecent,
};
use super::{TensorHeader, VERSION, take_payload, write};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{FailedRows, RequestId, Stats};
#[cfg(feature = "server")]
use crate::metrics::{Health, Snapshot};
pub use crate::signature::{DimInfo, PortInfo};
use crate::tensor::{Batch, DataType, Tensor};

/// What a server says about itself at the start of a session.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's version.
    pub server_version: String,
    /// Where results leave.
    pub port_out: u16,
    /// Most rows in a chunk.
    pub max_batch_size: u64,
    /// Most bytes in one request, header and payload.
    pub max_request_bytes: u64,
    /// Most bytes gathered for or on their way to one client.
    pub max_client_bytes: u64,
}

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The name that requests give.
    pub name: String,
    /// The version, for models that have versions; else "1".
    pub version: String,
    /// How batches are formed: `batched`, `fixed:B` or `whole`.
    pub kind: String,
    /// What it takes.
    pub inputs: Vec<PortInfo>,
    /// What it gives.
    pub outputs: Vec<PortInfo>,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopState {
    /// So many requests are still to be answered.
    Draining(u64),
    /// The server has stopped: this is its last message.
    Stopped,
}

/// A whole result, or one part of a stream.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Outputs {
    /// For each part the outputs, in row order. One part for a model without a batch dimension.
    pub parts: Vec<Batch>,
    /// False for a model without a batch dimension: the outputs have no rows to join.
    pub batched: bool,
    /// The rows that have no result, in row order: they are blank in the parts. A part of a stream of which no row has a
    /// result has no tensors.
    pub failed: Vec<FailedRows>,
}

impl Outputs {
    /// How many rows these are. For a model without a batch dimension it is the first dimension of its first output.
    pub fn rows(&self) -> u64 {
        let mut firsts = self.parts.iter().filter_map(|part| part.tensors.first());
        let rows = |tensor: &Tensor| tensor.rows().unwrap_or(0) as u64;
        match firsts.next() {
            Some(first) => rows(first) + firsts.map(rows).sum::<u64>(),
            None => {
                let counts = self.failed.iter().map(|failed| failed.count);
                counts.fold(0, u64::saturating_add)
            }
        }
    }

    /// The bytes of their payload, and about those that failed rows take.
    #[cfg(feature = "server")]
    pub(crate) fn bytes(&self) -> u64 {
        let payload = self.parts.iter().map(|part| part.payload_bytes() as u64);
        let failed = self.failed.iter().map(FailedRows::bytes);
        payload.sum::<u64>() + failed.sum::<u64>()
    }

    /// Checks that the failed rows are among those from `offset` on.
    fn check_failed(&self, offset: u64) -> Result<()> {
        let has_rows = self.parts.iter().any(|part| !part.tensors.is_empty());
        let mut next = offset;
        for failed in &self.failed {
            // Without outputs they are all there is: one behind the other.
            if failed.first < next || (!has_rows && failed.first != next) {
                return Err(Error::invalid(format!(
                    "`failed`: row {} is out of place",
                    failed.first
                )));
            }
            next = failed.rows().end;
        }
        match offset.checked_add(self.rows()) {
            Some(end) if next <= end || self.failed.is_empty() => Ok(()),
            _ => Err(Error::invalid(format!(
                "`failed`: the answer has no row {}",
                next.saturating_sub(1)
            ))),
        }
    }
}

/// A server's message.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerMessage {
    /// On `port_out`, the answer to hello: results can reach the client from now on.
    Welcome,
    /// On `port`.
    HelloOk(Welcome),
    /// On `port`.
    StatusOk(Box<Status>),
    /// On `port`.
    ModelsOk(Vec<ModelInfo>),
    /// On `port`: once when the order is accepted, and once when the server has stopped.
    TerminateOk(StopState),
    /// On `port`: the model is loaded, and what that has changed; older servers do not say it.
    LoadOk(Box<ModelInfo>, Option<LoadOutcome>),
    /// On `port`: these models are forgotten; older servers do not say which.
    UnloadOk(Vec<ModelInfo>),
    /// The final answer, all rows.
    Result(Outputs, Stats),
    /// Rows `offset..` of a stream.
    Part(u64, Outputs),
    /// The end of a stream of so many rows.
    End(u64, Stats),
    /// The final answer of an infer on `port_out`, or what was wrong with a message on `port`.
    Error(Error),
    /// The counters. Only doors of the server's own process ask for them; it has no form on the wire.
    #[cfg(feature = "server")]
    MetricsOk(Box<Snapshot>),
    /// What probes ask. As for the counters.
    #[cfg(feature = "server")]
    HealthOk(Health),
}

impl ServerMessage {
    /// Which message it is, by the protocol's name: what a log or an error may say of it.
    pub fn kind(&self) -> &'static str {
        match self {
            ServerMessage::Welcome => "welcome",
            ServerMessage::HelloOk(_) => "hello_ok",
            ServerMessage::StatusOk(_) => "status_ok",
            ServerMessage::ModelsOk(_) => "models_ok",
            ServerMessage::TerminateOk(_) => "terminate_ok",
            ServerMessage::LoadOk(..) => "load_ok",
            ServerMessage::UnloadOk(_) => "unload_ok",
            ServerMessage::Result(..) => "result",
            ServerMessage::Part(..) => "part",
            ServerMessage::End(..) => "end",
            ServerMessage::Error(_) => "error",
            #[cfg(feature = "server")]
            ServerMessage::MetricsOk(_) => "metrics_ok",
            #[cfg(feature = "server")]
            ServerMessage::HealthOk(_) => "health_ok",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Message<T> {
    v: u64,
    #[serde(rename = "type")]
    kind: String,
    id: RequestId,
    #[serde(flatten)]
    body: T,
}

#[derive(Deserialize)]
struct ModelsBody {
    models: Vec<ModelInfo>,
}

#[derive(Deserialize)]
struct UnloadBody {
    #[serde(default)]
    models: Vec<ModelInfo>,
}

#[derive(Deserialize)]
struct ModelBody {
    model: ModelInfo,
}

/// Reads a message off its frames, the header first.
///
/// # Errors
/// `INVALID_ARGUMENT` for anything that is not a message of this protocol's version.
pub fn read(frames: Vec<Bytes>) -> Result<(RequestId, ServerMessage)> {
    let mut frames = frames.into_iter();
    let first = frames
        .next()
        .ok_or_else(|| Error::invalid("an answer without a header frame"))?;
    let header = read_header(&first)
        .map_err(|e| Error::invalid(format!("the answer is not of this protocol: {e}")))?;
    let missing = |name: &str| {
        Error::invalid(format!(
            "the answer is not of this protocol: missing field `{name}`"
        ))
    };
    let v = header.v.ok_or_else(|| missing("v"))?;
    if v != VERSION {
        return Err(Error::invalid(format!(
            "the server speaks protocol version {v}, this client speaks {VERSION}"
        )));
    }
    let id = RequestId(header.id.ok_or_else(|| missing("id"))?);
    let message = match header.kind.ok_or_else(|| missing("type"))? {
        "welcome" => ServerMessage::Welcome,
        "hello_ok" => ServerMessage::HelloOk(body(&first)?),
        "status_ok" => ServerMessage::StatusOk(Box::new(body(&first)?)),
        "models_ok" => ServerMessage::ModelsOk(body::<ModelsBody>(&first)?.models),
        "terminate_ok" => ServerMessage::TerminateOk(match header.state {
            Some("stopped") => StopState::Stopped,
            _ => StopState::Draining(header.pending.unwrap_or(0)),
        }),
        "load_ok" => ServerMessage::LoadOk(
            Box::new(body::<ModelBody>(&first)?.model),
            header.state.and_then(LoadOutcome::parse),
        ),
        "unload_ok" => ServerMessage::UnloadOk(body::<UnloadBody>(&first)?.models),
        "result" => {
            let headers = header.outputs.unwrap_or_default();
            let mut outputs = read_outputs(&headers, header.parts.as_deref(), frames)?;
            outputs.failed = header.failed.unwrap_or_default();
            outputs.check_failed(0)?;
            ServerMessage::Result(outputs, header.stats.unwrap_or_default())
        }
        "part" => {
            // Its shapes are exact: the outputs of a model without a batch dimension need not agree in the first.
            let headers = header.outputs.unwrap_or_default();
            let mut outputs = read_outputs(&headers, None, frames)?;
            outputs.batched = true;
            outputs.failed = header.failed.unwrap_or_default();
            let offset = header.offset.unwrap_or(0);
            outputs.check_failed(offset)?;
            ServerMessage::Part(offset, outputs)
        }
        "end" => {
            let rows = match header.rows {
                None => 0,
                Some(answer::Rows::Count(rows)) => rows,
                Some(_) => return Err(Error::invalid("the end of a stream: `rows` is no number")),
            };
            ServerMessage::End(rows, header.stats.unwrap_or_default())
        }
        "error" => {
            let error = Error::new(
                ErrorCode::parse(header.code.unwrap_or("INTERNAL")),
                header.message.unwrap_or("the server gave no message"),
            );
            // What is no pair of numbers here is nothing that the error needs.
            ServerMessage::Error(match header.rows {
                Some(answer::Rows::Blamed(rows)) => error.at_rows(rows),
                _ => error,
            })
        }
        other => {
            return Err(Error::invalid(format!(
                "the server sent {other:?}, which this client does not know"
            )));
        }
    };
    Ok((id, message))
}

fn body<T: serde::de::DeserializeOwned>(header: &[u8]) -> Result<T> {
    rmp_serde::from_slice::<Message<T>>(header)
        .map(|answer| answer.body)
        .map_err(|e| Error::invalid(format!("the answer is not of this protocol: {e}")))
}

/// The frames come output by output, and within an output part by part.
fn read_outputs(
    headers: &[TensorHeader<'_>],
    parts: Option<&[u64]>,
    mut frames: std::vec::IntoIter<Bytes>,
) -> Result<Outputs> {
    let count = parts.map_or(1, <[u64]>::len);
    let mut batches = vec![Batch::default(); count];
    for header in headers {
        let datatype = DataType::parse(&header.dtype)?;
        let name: std::sync::Arc<str> = (&*header.name).into();
        for (index, batch) in batches.iter_mut().enumerate() {
            let data = take_payload(&name, datatype, &mut frames)?;
            let mut shape = header.dims()?;
            if let (Some(parts), Some(first)) = (parts, shape.first_mut()) {
                *first = usize::try_from(parts[index])
                    .map_err(|_| Error::invalid("a part with too many rows"))?;
            }
            batch
                .tensors
                .push(Tensor::new(name.clone(), datatype, shape, data)?);
        }
    }
    if frames.len() > 0 {
        return Err(Error::invalid(format!(
            "{} payload frames more than the answer's outputs take",
            frames.len()
        )));
    }
    Ok(Outputs {
        parts: batches,
        batched: parts.is_some(),
        failed: Vec::new(),
    })
}

#[derive(Serialize)]
struct ResultHeader<'a> {
    v: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    outputs: Vec<TensorHeader<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<Vec<FailedHeader<'a>>>,
}

/// Rows that failed, as a header tells them.
#[derive(Serialize)]
struct FailedHeader<'a> {
    first: u64,
    count: u64,
    code: &'a str,
    message: std::borrow::Cow<'a, str>,
}

fn failed(failed: &[FailedRows]) -> Option<Vec<FailedHeader<'_>>> {
    if failed.is_empty() {
        return None;
    }
    let told = failed.iter().map(|rows| FailedHeader {
        first: rows.first,
        count: rows.count,
        code: rows.code.as_str(),
        message: shortened(&rows.message),
    });
    Some(told.collect())
}

/// Appends the payload of all parts, output by output.
fn push_parts(frames: &mut Vec<Bytes>, parts: &[Batch]) {
    let outputs = parts.first().map_or(0, |batch| batch.tensors.len());
    for output in 0..outputs {
        for part in parts {
            super::push_payload(frames, &part.tensors[output]);
        }
    }
}

fn describe(parts: &[Batch], rows: Option<u64>) -> Vec<TensorHeader<'_>> {
    let Some(first) = parts.first() else {
        return Vec::new();
    };
    let mut headers: Vec<_> = first.tensors.iter().map(TensorHeader::of).collect();
    if let Some(rows) = rows {
        for header in &mut headers {
            if let Some(first) = header.shape.first_mut() {
                *first = rows;
            }
        }
    }
    headers
}

/// Writes a result from its parts in row order. All parts have the same outputs, alike but for their rows.
pub fn write_result(id: RequestId, outputs: &Outputs, stats: Stats) -> Vec<Bytes> {
    let parts = &outputs.parts;
    let rows_of = |batch: &Batch| batch.row_count().unwrap_or(0) as u64;
    let rows: Option<Vec<u64>> = outputs.batched.then(|| parts.iter().map(rows_of).collect());
    let total = rows.as_ref().map(|rows| rows.iter().sum());
    let header = write(&ResultHeader {
        v: VERSION,
        kind: "result",
        id,
        offset: None,
        outputs: describe(parts, total),
        parts: rows,
        stats: Some(stats),
        failed: failed(&outputs.failed),
    });
    let mut frames = vec![header];
    push_parts(&mut frames, parts);
    frames
}

/// Writes one part of a stream: the rows from `offset` on.
pub fn write_part(id: RequestId, offset: u64, outputs: &Outputs) -> Vec<Bytes> {
    let empty = Batch::default();
    let part = outputs.parts.first().unwrap_or(&empty);
    let header = write(&ResultHeader {
        v: VERSION,
        kind: "part",
        id,
        offset: Some(offset),
        outputs: describe(std::slice::from_ref(part), None),
        parts: None,
        stats: None,
        failed: failed(&outputs.failed),
    });
    let mut frames = vec![header];
    push_parts(&mut frames, std::slice::from_ref(part));
    frames
}

#[derive(Serialize, Default)]
struct PlainHeader<'a> {
    v: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<RowsHeader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a [ModelInfo]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a ModelInfo>,
}

/// What a key `rows` says: how many at the end of a stream, the first and how many in an error.
#[derive(Serialize)]
#[serde(untagged)]
enum RowsHeader {
    Count(u64),
    Blamed([u64; 2]),
}

/// Writes any message's frames.
pub fn write_message(id: RequestId, message: &ServerMessage) -> Vec<Bytes> {
    let plain = PlainHeader {
        v: VERSION,
        id,
        ..PlainHeader::default()
    };
    let header = match message {
        ServerMessage::Result(outputs, stats) => return write_result(id, outputs, *stats),
        ServerMessage::Part(offset, outputs) => {
            return write_part(id, *offset, outputs);
        }
        ServerMessage::HelloOk(welcome) => return answer("hello_ok", id, welcome),
        ServerMessage::StatusOk(status) => return answer("status_ok", id, status),
        ServerMessage::Welcome => PlainHeader {
            kind: "welcome",
            ..plain
        },
        ServerMessage::ModelsOk(models) => PlainHeader {
            kind: "models_ok",
            models: Some(models),
            ..plain
        },
        ServerMessage::TerminateOk(StopState::Draining(pending)) => PlainHeader {
            kind: "terminate_ok",
            state: Some("draining"),
            pending: Some(*pending),
            ..plain
        },
        ServerMessage::TerminateOk(StopState::Stopped) => PlainHeader {
            kind: "terminate_ok",
            state: Some("stopped"),
            ..plain
        },
        ServerMessage::LoadOk(model, outcome) => PlainHeader {
            kind: "load_ok",
            state: outcome.map(LoadOutcome::as_str),
            model: Some(model),
            ..plain
        },
        ServerMessage::UnloadOk(models) => PlainHeader {
            kind: "unload_ok",
            models: Some(models.as_slice()).filter(|models| !models.is_empty()),
            ..plain
        },
        ServerMessage::End(rows, stats) => PlainHeader {
            kind: "end",
            rows: Some(RowsHeader::Count(*rows)),
            stats: Some(*stats),
            ..plain
        },
        ServerMessage::Error(error) => PlainHeader {
            kind: "error",
            code: Some(error.code().as_str()),
            message: Some(&*shortened(error.message())),
            rows: error
                .rows()
                .map(|rows| RowsHeader::Blamed([rows.start as u64, rows.len() as u64])),
            ..plain
        },
        // A session has no words to ask for these, so that nobody can be there to read this.
        #[cfg(feature = "server")]
        ServerMessage::MetricsOk(_) | ServerMessage::HealthOk(_) => PlainHeader {
            kind: "error",
            code: Some(ErrorCode::Internal.as_str()),
            message: Some("this is told at doors alone"),
            ..plain
        },
    };
    vec![write(&header)]
}

/// Most bytes of an error's message: some quote what a client sent, which may be long.
const MAX_MESSAGE_BYTES: usize = 1024;

fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    if message.len() <= MAX_MESSAGE_BYTES {
        return message.into();
    }
    format!(
        "{}…",
        &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)]
    )
    .into()
}

fn answer<T: Serialize>(kind: &str, id: RequestId, body: &T) -> Vec<Bytes> {
    vec![write(&Message {
        v: VERSION,
        kind: kind.to_owned(),
        id,
        body,
    })]
}
