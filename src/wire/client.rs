//! The messages of clients, on `port` and (hello only) on `port_out`: written and read.

use bytes::Bytes;
use serde::Serialize;

use super::header::{self, Header, read_header, read_loosely};
use super::params::RawParams;
use super::{TensorHeader, VERSION, bounded, push_payload, read_tensors, write};
use crate::error::{Error, Result};
use crate::message::{OnBadRow, Params, Priority, Request, RequestId};
use crate::tensor::Batch;

/// What a client asks of the server. The server itself reads it with parameters that are still bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage<P = Params> {
    /// Run rows through a model.
    Infer(RequestId, Box<Request<P>>),
    /// Cancel a request: it ends with its result or `CANCELLED`.
    Cancel(RequestId),
    /// Open a session: ask for the server's version and bounds.
    Hello(RequestId),
    /// Ask for the server's status.
    Status(RequestId),
    /// Ask which models are loaded.
    Models(RequestId),
    /// Describe the model that an infer with this name and these parameters would get. On the wire it is `models` with
    /// a `model` or `params`, and the answer is a `models_ok` of one model.
    Describe(RequestId, Option<String>, P),
    /// Stop the server.
    Terminate(RequestId, StopMode),
    /// Load a model before anyone asks for it.
    Load(RequestId, String),
    /// Forget a model.
    Unload(RequestId, String),
}

impl<P> ClientMessage<P> {
    /// The id, which the answer will carry.
    pub fn id(&self) -> RequestId {
        match self {
            ClientMessage::Infer(id, _)
            | ClientMessage::Cancel(id)
            | ClientMessage::Hello(id)
            | ClientMessage::Status(id)
            | ClientMessage::Models(id)
            | ClientMessage::Describe(id, ..)
            | ClientMessage::Terminate(id, _)
            | ClientMessage::Load(id, _)
            | ClientMessage::Unload(id, _) => *id,
        }
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Answer what was accepted, refuse new requests.
    Drain,
    /// Answer everything that was accepted with `UNAVAILABLE`.
    Now,
}

/// A message that could not be read, and what is needed to answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct Malformed {
    /// Its id, if that could be read; without it there can be no answer.
    pub id: Option<RequestId>,
    /// Its type was infer, so the answer goes to `port_out`.
    pub infer: bool,
    /// What was wrong.
    pub error: Error,
}

impl ClientMessage<RawParams> {
    /// Does the checks that were put off: reads the parameters, and checks the values of the tensors.
    fn complete(self) -> Result<ClientMessage> {
        Ok(match self {
            ClientMessage::Infer(id, request) => {
                let tensors = request.inputs.tensors.into_iter();
                let inputs = tensors
                    .map(|tensor| tensor.check_values(0))
                    .collect::<Result<Vec<_>>>()?;
                let request = Request {
                    params: request.params.parse()?,
                    inputs: inputs.into(),
                    model: request.model,
                    timeout_ms: request.timeout_ms,
                    priority: request.priority,
                    stream: request.stream,
                    on_bad_row: request.on_bad_row,
                };
                ClientMessage::Infer(id, Box::new(request))
            }
            ClientMessage::Describe(id, model, params) => {
                ClientMessage::Describe(id, model, params.parse()?)
            }
            ClientMessage::Cancel(id) => ClientMessage::Cancel(id),
            ClientMessage::Hello(id) => ClientMessage::Hello(id),
            ClientMessage::Status(id) => ClientMessage::Status(id),
            ClientMessage::Models(id) => ClientMessage::Models(id),
            ClientMessage::Terminate(id, mode) => ClientMessage::Terminate(id, mode),
            ClientMessage::Load(id, model) => ClientMessage::Load(id, model),
            ClientMessage::Unload(id, model) => ClientMessage::Unload(id, model),
        })
    }
}

/// Reads a message off its frames, the header first.
///
/// # Errors
/// [`Malformed`], with the id if it could be read.
pub fn read(frames: Vec<Bytes>) -> Result<ClientMessage, Malformed> {
    let message = read_unchecked(frames)?;
    let id = Some(message.id());
    let infer = matches!(message, ClientMessage::Infer(..));
    message
        .complete()
        .map_err(|error| Malformed { id, infer, error })
}

/// Reads a message off its frames in a time that depends on its header alone: the tensors' values are not checked yet,
/// and the parameters are bytes that are known to be readable.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_unchecked(frames: Vec<Bytes>) -> Result<ClientMessage<RawParams>, Malformed> {
    let mut frames = frames.into_iter();
    let Some(header) = frames.next() else {
        return Err(Malformed {
            id: None,
            infer: false,
            error: Error::invalid("a message without a header frame"),
        });
    };
    let strict = match read_header(&header) {
        Ok(strict) => strict,
        Err(cause) => return Err(read_loosely(&header, &cause)),
    };
    let (Some(id), Some(kind), Some(v)) = (strict.id, strict.kind, strict.v) else {
        return Err(read_loosely(&header, "a field is missing"));
    };
    let id = RequestId(id);
    let message = match v == VERSION {
        true => interpret(strict, kind, id, frames),
        false => Err(header::wrong_version(v)),
    };
    message.map_err(|error| Malformed {
        id: Some(id),
        infer: kind == "infer",
        error,
    })
}

fn interpret(
    header: Header<'_>,
    kind: &str,
    id: RequestId,
    frames: std::vec::IntoIter<Bytes>,
) -> Result<ClientMessage<RawParams>> {
    if kind != "infer" && frames.len() > 0 {
        return Err(Error::invalid(format!(
            "{kind} takes no payload, got {} frames",
            frames.len()
        )));
    }
    Ok(match kind {
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
            let on_bad_row = match header.on_bad_row {
                None => OnBadRow::Fail,
                Some(name) => OnBadRow::parse(name).ok_or_else(|| {
                    Error::invalid(format!(
                        "on_bad_row {name:?}; expected \"fail\" or \"report\""
                    ))
                })?,
            };
            let model = header.model.map(bounded::model_name).transpose()?;
            let params = header.params.unwrap_or_default();
            bounded::check_paths(params.paths())?;
            bounded::check_tensor_names(&inputs)?;
            let request = Request {
                model,
                params,
                inputs: read_tensors(&inputs, frames)?,
                timeout_ms: header.timeout_ms,
                priority,
                stream: header.stream.unwrap_or(false),
                on_bad_row,
            };
            ClientMessage::Infer(id, Box::new(request))
        }
        "cancel" => ClientMessage::Cancel(id),
        "hello" => ClientMessage::Hello(id),
        "status" => ClientMessage::Status(id),
        "models" => match (header.model, header.params) {
            (None, None) => ClientMessage::Models(id),
            (model, params) => {
                let model = model.map(bounded::model_name).transpose()?;
                let params = params.unwrap_or_default();
                bounded::check_paths(params.paths())?;
                ClientMessage::Describe(id, model, params)
            }
        },
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
                .ok_or_else(|| Error::invalid(format!("{kind} without `model`")))?;
            let model = bounded::model_name(model)?;
            if kind == "load" {
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

/// How the rows of a result are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// All in one result.
    Whole,
    /// In parts, as they finish.
    Parts,
}

/// The header of an infer.
#[derive(Serialize)]
pub(crate) struct InferHeader<'a> {
    pub v: u64,
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    #[serde(skip_serializing_if = "Params::is_empty")]
    pub params: &'a Params,
    pub inputs: Vec<TensorHeader<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_bad_row: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

impl<'a> InferHeader<'a> {
    pub(crate) fn new(id: RequestId, model: Option<&'a str>, params: &'a Params) -> Self {
        InferHeader {
            v: VERSION,
            kind: "infer",
            id,
            model,
            params,
            inputs: Vec::new(),
            timeout_ms: None,
            priority: None,
            on_bad_row: None,
            stream: None,
        }
    }

    /// Sets the optional fields. Defaults are not written.
    pub(crate) fn with(
        mut self,
        timeout_ms: Option<u64>,
        priority: Priority,
        delivery: Delivery,
    ) -> Self {
        self.timeout_ms = timeout_ms;
        self.priority = match priority {
            Priority::Normal => None,
            Priority::High => Some("high"),
        };
        self.stream = match delivery {
            Delivery::Whole => None,
            Delivery::Parts => Some(true),
        };
        self
    }

    /// Says what is to become of rows that fail, if that is not the default.
    pub(crate) fn on_bad_row(mut self, on_bad_row: OnBadRow) -> Self {
        self.on_bad_row = match on_bad_row {
            OnBadRow::Fail => None,
            OnBadRow::Report => Some(on_bad_row.as_str()),
        };
        self
    }
}

/// Most bytes of a header. Reading takes time, and the fields take more memory than their bytes.
pub const MAX_HEADER_BYTES: usize = 256 * 1024;
/// How deep parameters may be nested, the header itself included: they are read by recursion, which uses the stack.
pub(super) const MAX_DEPTH: usize = 64;

/// Parameters of at most so many bytes and levels surely fit into a header; only larger ones need an exact check.
const SURELY_FIT: (usize, usize) = (MAX_HEADER_BYTES / 2, MAX_DEPTH / 2);

/// Checks that a server can read a header with these parameters. It could not answer one that it cannot read.
///
/// # Errors
/// `INVALID_ARGUMENT`: they are too long, or nested too deep.
pub fn check_params(params: &Params) -> Result<()> {
    let (mut bytes, mut depth) = (0, 0);
    for (key, value) in params {
        let (of_value, levels) = weight(value);
        bytes += key.len() + of_value;
        depth = depth.max(levels);
    }
    if bytes <= SURELY_FIT.0 && depth <= SURELY_FIT.1 {
        return Ok(());
    }
    // Written and read back, so that exactly the server's own limits apply.
    let question = ClientMessage::Describe(RequestId(u64::MAX), None, params.clone());
    let header = &write_message(&question)[0];
    match read_header(header) {
        Ok(_) => Ok(()),
        Err(_) if header.len() > MAX_HEADER_BYTES => Err(Error::invalid(format!(
            "the parameters take {} bytes, and {MAX_HEADER_BYTES} is the most; send large ones as an input, or as a file that a *_path parameter names",
            header.len()
        ))),
        Err(_) => Err(Error::invalid(format!(
            "the parameters are nested too deep: {MAX_DEPTH} levels is the most"
        ))),
    }
}

/// About how many bytes a value takes, and how many levels it has.
fn weight(value: &serde_json::Value) -> (usize, usize) {
    use serde_json::Value;
    let all = |inner: &mut dyn Iterator<Item = (usize, usize)>| {
        inner.fold((1, 0), |(bytes, depth), (more, levels)| {
            (bytes + more, depth.max(levels))
        })
    };
    let (bytes, depth) = match value {
        Value::Null | Value::Bool(_) => return (1, 0),
        Value::Number(_) => return (9, 0),
        Value::String(text) => return (text.len() + 5, 0),
        Value::Array(values) => all(&mut values.iter().map(weight)),
        Value::Object(fields) => all(&mut fields.iter().map(|(key, value)| {
            let (bytes, depth) = weight(value);
            (key.len() + 5 + bytes, depth)
        })),
    };
    (bytes, depth + 1)
}

/// Writes an infer: the header, then the payload, which is shared and not copied.
pub fn write_infer(id: RequestId, request: &Request) -> Vec<Bytes> {
    let Batch { tensors } = &request.inputs;
    let mut header = InferHeader::new(id, request.model.as_deref(), &request.params).with(
        request.timeout_ms,
        request.priority,
        match request.stream {
            true => Delivery::Parts,
            false => Delivery::Whole,
        },
    );
    header = header.on_bad_row(request.on_bad_row);
    header.inputs = tensors.iter().map(TensorHeader::of).collect();
    let header = write(&header);
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
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a Params>,
}

/// Writes any message's frames.
pub fn write_message(message: &ClientMessage) -> Vec<Bytes> {
    let mut own_params = None;
    let (kind, mode, model) = match message {
        ClientMessage::Infer(id, request) => return write_infer(*id, request),
        ClientMessage::Cancel(_) => ("cancel", None, None),
        ClientMessage::Hello(_) => ("hello", None, None),
        ClientMessage::Status(_) => ("status", None, None),
        ClientMessage::Models(_) => ("models", None, None),
        ClientMessage::Describe(_, model, params) => {
            // Without a name the parameters are still written: else it would be the question for all models.
            own_params = (model.is_none() || !params.is_empty()).then_some(params);
            ("models", None, model.as_deref())
        }
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
        params: own_params,
    })]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What the client's check says of parameters is what the server's reading says.
    #[test]
    fn parameters_that_no_server_reads_are_refused_before_they_are_sent() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let long = |bytes: usize| json!("x".repeat(bytes));
        let mut refused = 0;
        for value in (20..80).map(nested).chain([
            long(MAX_HEADER_BYTES / 2),
            long(MAX_HEADER_BYTES - 100),
            long(MAX_HEADER_BYTES),
            Value::from(vec![0; MAX_HEADER_BYTES]),
            Value::from(vec![u64::MAX; MAX_HEADER_BYTES / 8]),
        ]) {
            let params = Params::from_iter([("p".to_owned(), value)]);
            let message = ClientMessage::Describe(RequestId(1), None, params.clone());
            let read = read(write_message(&message));
            let checked = check_params(&params);
            assert_eq!(read.is_ok(), checked.is_ok(), "{checked:?}");
            if let Err(e) = checked {
                assert!(e.message().starts_with("the parameters"), "{e}");
                refused += 1;
            }
        }
        assert!(refused > 10);
    }

    /// The bug: the ventilator looked at each BOOL byte and each offset, 198 ms for 400 MiB, while all others waited.
    #[test]
    fn a_large_request_is_taken_in_without_a_look_at_its_values() {
        let rows = 16 << 20;
        let mut flags = vec![0u8; rows];
        flags[rows - 1] = 2;
        let offsets: Vec<u64> = (0..=rows as u64 / 8).collect();
        let offsets: Vec<u8> = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
        let header = json!({
            "v": 1, "type": "infer", "id": 1, "model": "m",
            "inputs": [{"name": "b", "dtype": "BYTES", "shape": [rows / 8]},
                       {"name": "x", "dtype": "BOOL", "shape": [rows]}],
        });
        let header = crate::tensor::to_document(&header).unwrap();
        let frames = [header, offsets, vec![0; rows / 8], flags].map(Bytes::from);
        let fastest = |work: &dyn Fn()| {
            let times = (0..5).map(|_| {
                let start = std::time::Instant::now();
                work();
                start.elapsed()
            });
            times.min().unwrap_or_default()
        };
        let taken_in = fastest(&|| drop(read_unchecked(frames.to_vec()).unwrap()));
        let looked_at = fastest(&|| {
            let malformed = read(frames.to_vec()).unwrap_err();
            assert_eq!((malformed.id, malformed.infer), (Some(RequestId(1)), true));
            assert!(malformed.error.message().ends_with("element 16777215 is 2"));
        });
        println!("taken in after {taken_in:?}, looked at in {looked_at:?}");
        assert!(taken_in * 10 < looked_at, "{taken_in:?}, {looked_at:?}");
    }
}
