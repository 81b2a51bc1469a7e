//! What clients say, on `port` and (hello only) on `port_out`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{TensorHeader, VERSION, push_payload, read_tensors, write};
use crate::error::{Error, Result};
use crate::message::{Params, Priority, Request, RequestId};
use crate::tensor::Batch;

/// What a client asks of the server.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Run rows through a model.
    Infer(RequestId, Box<Request>),
    /// Take a request back: it ends with its result or `CANCELLED`.
    Cancel(RequestId),
    /// Who are you?
    Hello(RequestId),
    /// How are you?
    Status(RequestId),
    /// What do you serve?
    Models(RequestId),
    /// Stop.
    Terminate(RequestId, StopMode),
    /// Load a model before anyone asks for it.
    Load(RequestId, String),
    /// Forget a model.
    Unload(RequestId, String),
}

impl ClientMessage {
    /// The number that the answer will carry.
    pub fn id(&self) -> RequestId {
        match self {
            ClientMessage::Infer(id, _)
            | ClientMessage::Cancel(id)
            | ClientMessage::Hello(id)
            | ClientMessage::Status(id)
            | ClientMessage::Models(id)
            | ClientMessage::Terminate(id, _)
            | ClientMessage::Load(id, _)
            | ClientMessage::Unload(id, _) => *id,
        }
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Answer what was accepted, refuse what comes.
    Drain,
    /// Answer everything that waits with `UNAVAILABLE`.
    Now,
}

/// A message that could not be read, and what can still be said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Malformed {
    /// The number to answer to; without it nothing can be answered.
    pub id: Option<RequestId>,
    /// It said that it was an infer: the answer goes to `port_out`.
    pub infer: bool,
    /// What was wrong.
    pub error: Error,
}

/// The header, as it is read: every field that any kind may have.
#[derive(Deserialize)]
struct Header<'a> {
    v: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    id: u64,
    #[serde(default)]
    model: Option<&'a str>,
    #[serde(default)]
    params: Option<Params>,
    #[serde(default, borrow)]
    inputs: Option<Vec<TensorHeader<'a>>>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    priority: Option<&'a str>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    mode: Option<&'a str>,
}

/// The header as it is read when the strict reading fails: what is needed to answer.
#[derive(Deserialize)]
struct Loose<'a> {
    #[serde(default, borrow)]
    v: Option<Scalar<'a>>,
    #[serde(default, borrow, rename = "type")]
    kind: Option<Scalar<'a>>,
    #[serde(default, borrow)]
    id: Option<Scalar<'a>>,
}

/// A value of which only numbers and strings are of interest.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar<'a> {
    Number(u64),
    Text(&'a str),
    Other(serde::de::IgnoredAny),
}

/// Reads a message off its frames, the header first.
///
/// # Errors
/// [`Malformed`], with the number to answer to where one could be read.
pub fn read(frames: Vec<Bytes>) -> Result<ClientMessage, Malformed> {
    let mut frames = frames.into_iter();
    let Some(header) = frames.next() else {
        return Err(Malformed {
            id: None,
            infer: false,
            error: Error::invalid("a message without a header frame"),
        });
    };
    let strict: Header<'_> = match rmp_serde::from_slice(&header) {
        Ok(strict) => strict,
        Err(e) => return Err(read_loosely(&header, e)),
    };
    let id = RequestId(strict.id);
    let infer = strict.kind == "infer";
    interpret(strict, frames).map_err(|error| Malformed {
        id: Some(id),
        infer,
        error,
    })
}

fn read_loosely(header: &[u8], cause: rmp_serde::decode::Error) -> Malformed {
    let unreadable = Malformed {
        id: None,
        infer: false,
        error: Error::invalid(format!(
            "the header is not a message of this protocol: {cause}"
        )),
    };
    let Ok(loose) = rmp_serde::from_slice::<Loose<'_>>(header) else {
        return unreadable;
    };
    let Some(Scalar::Number(id)) = loose.id else {
        return unreadable;
    };
    let infer = matches!(loose.kind, Some(Scalar::Text("infer")));
    let error = match (loose.v, loose.kind) {
        (Some(Scalar::Number(VERSION)), Some(Scalar::Text(_))) => {
            Error::invalid(format!("a field of the header has a wrong type: {cause}"))
        }
        (Some(Scalar::Number(VERSION)), _) => {
            Error::invalid("the header's `type` is missing or not a string")
        }
        (Some(Scalar::Number(v)), _) => wrong_version(v),
        _ => Error::invalid("the header's `v` (protocol version) is missing or not a number"),
    };
    Malformed {
        id: Some(RequestId(id)),
        infer,
        error,
    }
}

fn wrong_version(v: u64) -> Error {
    Error::invalid(format!(
        "protocol version {v} is not spoken here; this server speaks {VERSION}"
    ))
}

fn interpret(header: Header<'_>, frames: std::vec::IntoIter<Bytes>) -> Result<ClientMessage> {
    if header.v != VERSION {
        return Err(wrong_version(header.v));
    }
    let id = RequestId(header.id);
    if header.kind != "infer" && frames.len() > 0 {
        return Err(Error::invalid(format!(
            "{} takes no payload, got {} frames",
            header.kind,
            frames.len()
        )));
    }
    Ok(match header.kind {
        "infer" => {
            let inputs = header
                .inputs
                .ok_or_else(|| Error::invalid("infer without `inputs`"))?;
            if inputs.is_empty() {
                return Err(Error::invalid("infer with no inputs"));
            }
            let priority = match header.priority {
                None | Some("normal") => Priority::Normal,
                Some("high") => Priority::High,
                Some(other) => {
                    return Err(Error::invalid(format!(
                        "priority {other:?}; expected \"high\" or \"normal\""
                    )));
                }
            };
            let request = Request {
                model: header.model.map(str::to_owned),
                params: header.params.unwrap_or_default(),
                inputs: read_tensors(&inputs, frames)?,
                timeout_ms: header.timeout_ms,
                priority,
                stream: header.stream.unwrap_or(false),
            };
            ClientMessage::Infer(id, Box::new(request))
        }
        "cancel" => ClientMessage::Cancel(id),
        "hello" => ClientMessage::Hello(id),
        "status" => ClientMessage::Status(id),
        "models" => ClientMessage::Models(id),
        "terminate" => match header.mode {
            None | Some("drain") => ClientMessage::Terminate(id, StopMode::Drain),
            Some("now") => ClientMessage::Terminate(id, StopMode::Now),
            Some(other) => {
                return Err(Error::invalid(format!(
                    "terminate mode {other:?}; expected \"drain\" or \"now\""
                )));
            }
        },
        "load" | "unload" => {
            let model = header
                .model
                .ok_or_else(|| Error::invalid(format!("{} without `model`", header.kind)))?
                .to_owned();
            if header.kind == "load" {
                ClientMessage::Load(id, model)
            } else {
                ClientMessage::Unload(id, model)
            }
        }
        other => {
            return Err(Error::invalid(format!(
                "message type {other:?} is not known; expected infer, cancel, hello, status, models, terminate, load or unload"
            )));
        }
    })
}

#[derive(Serialize)]
struct InferHeader<'a> {
    v: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Params::is_empty")]
    params: &'a Params,
    inputs: Vec<TensorHeader<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
}

/// Writes an infer: the header, then the payload, which is shared and not copied.
pub fn write_infer(id: RequestId, request: &Request) -> Vec<Bytes> {
    let Batch { tensors } = &request.inputs;
    let header = write(&InferHeader {
        v: VERSION,
        kind: "infer",
        id,
        model: request.model.as_deref(),
        params: &request.params,
        inputs: tensors.iter().map(TensorHeader::of).collect(),
        timeout_ms: request.timeout_ms,
        priority: match request.priority {
            Priority::Normal => None,
            Priority::High => Some("high"),
        },
        stream: request.stream.then_some(true),
    });
    let mut frames = Vec::with_capacity(1 + tensors.len());
    frames.push(header);
    for tensor in tensors {
        push_payload(&mut frames, tensor);
    }
    frames
}

#[derive(Serialize)]
struct PlainHeader<'a> {
    v: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
}

/// Writes any message's frames.
pub fn write_message(message: &ClientMessage) -> Vec<Bytes> {
    let (kind, mode, model) = match message {
        ClientMessage::Infer(id, request) => return write_infer(*id, request),
        ClientMessage::Cancel(_) => ("cancel", None, None),
        ClientMessage::Hello(_) => ("hello", None, None),
        ClientMessage::Status(_) => ("status", None, None),
        ClientMessage::Models(_) => ("models", None, None),
        ClientMessage::Terminate(_, StopMode::Drain) => ("terminate", Some("drain"), None),
        ClientMessage::Terminate(_, StopMode::Now) => ("terminate", Some("now"), None),
        ClientMessage::Load(_, model) => ("load", None, Some(model.as_str())),
        ClientMessage::Unload(_, model) => ("unload", None, Some(model.as_str())),
    };
    vec![write(&PlainHeader {
        v: VERSION,
        kind,
        id: message.id(),
        mode,
        model,
    })]
}
