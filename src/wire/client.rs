//! What clients say, on `port` and (hello only) on `port_out`.

use std::fmt;

use bytes::Bytes;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::bounded::{self, BoundedInputs, BoundedParams};
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
    /// What is the model that an infer with this name and these parameters would get? On the wire it is `models` with
    /// a `model` or `params`, and the answer is the `models_ok` of one model.
    Describe(RequestId, Option<String>, Params),
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

/// Most bytes of a header. Its fields take up to 70 times as much memory once they are read, and time to read.
pub const MAX_HEADER_BYTES: usize = 256 * 1024;
/// How deep parameters may be nested. They are read again inside, and by recursion everywhere.
const MAX_DEPTH: usize = 64;

/// The header, as it is read: every field that any kind may have.
///
/// Read by hand and not derived, because a derived reader takes arrays for maps and numbers for keys, and does not
/// say which field it stumbled over.
#[derive(Default)]
struct Header<'a> {
    v: Option<u64>,
    kind: Option<&'a str>,
    id: Option<u64>,
    model: Option<&'a str>,
    params: Option<BoundedParams>,
    inputs: Option<BoundedInputs<'a>>,
    timeout_ms: Option<u64>,
    priority: Option<&'a str>,
    stream: Option<bool>,
    mode: Option<&'a str>,
}

/// Reads one field's value, names it in the error, and refuses a second one.
fn field<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    place: &mut Option<T>,
    name: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    let value = map
        .next_value::<Option<T>>()
        .map_err(|e| A::Error::custom(format_args!("`{name}`: {e}")))?;
    if place.is_some() {
        return Err(A::Error::custom(format_args!("`{name}` is given twice")));
    }
    *place = value;
    Ok(())
}

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with string keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header<'de>, A::Error> {
        let mut header = Header::default();
        while let Some(key) = map.next_key::<&str>()? {
            match key {
                "v" => field(&mut header.v, key, &mut map)?,
                "type" => field(&mut header.kind, key, &mut map)?,
                "id" => field(&mut header.id, key, &mut map)?,
                "model" => field(&mut header.model, key, &mut map)?,
                "params" => field(&mut header.params, key, &mut map)?,
                "inputs" => field(&mut header.inputs, key, &mut map)?,
                "timeout_ms" => field(&mut header.timeout_ms, key, &mut map)?,
                "priority" => field(&mut header.priority, key, &mut map)?,
                "stream" => field(&mut header.stream, key, &mut map)?,
                "mode" => field(&mut header.mode, key, &mut map)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(header)
    }
}

/// The header as it is read when the strict reading fails: what is needed to answer, as far as it can be read.
#[derive(Default)]
struct Loose<'a> {
    v: Option<Scalar<'a>>,
    kind: Option<Scalar<'a>>,
    id: Option<Scalar<'a>>,
}

impl<'de> Visitor<'de> for &mut Loose<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while self.v.is_none() || self.kind.is_none() || self.id.is_none() {
            let Some(key) = map.next_key::<Scalar<'de>>()? else {
                break;
            };
            let place = match key {
                Scalar::Text("v") => &mut self.v,
                Scalar::Text("type") => &mut self.kind,
                Scalar::Text("id") => &mut self.id,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = Some(map.next_value()?);
        }
        Ok(())
    }
}

/// A value of which only numbers and strings are of interest.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Number(u64),
    Text(&'a str),
    Other,
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar<'de>, E> {
        Ok(u64::try_from(number).map_or(Scalar::Other, Scalar::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(text))
    }

    fn visit_f32<E>(self, _: f32) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
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
    let strict = match read_header(&header) {
        Ok(strict) => strict,
        Err(cause) => return Err(read_loosely(&header, &cause)),
    };
    let (Some(id), Some(kind), Some(v)) = (strict.id, strict.kind, strict.v) else {
        return Err(read_loosely(&header, "a field is missing"));
    };
    let id = RequestId(id);
    interpret(strict, (v, kind, id), frames).map_err(|error| Malformed {
        id: Some(id),
        infer: kind == "infer",
        error,
    })
}

/// The whole header and nothing but the header, or what is wrong with it.
fn read_header(header: &[u8]) -> Result<Header<'_>, String> {
    if header.len() > MAX_HEADER_BYTES {
        return Err(format!(
            "it has {} bytes, and {MAX_HEADER_BYTES} is the most",
            header.len()
        ));
    }
    let mut source = rmp_serde::Deserializer::from_read_ref(header);
    source.set_max_depth(MAX_DEPTH);
    let strict = Header::deserialize(&mut source).map_err(|e| e.to_string())?;
    // The end of the header is where nothing more can be read.
    match IgnoredAny::deserialize(&mut source) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(strict),
        _ => Err("something follows behind its end".to_owned()),
    }
}

fn read_loosely(header: &[u8], cause: &str) -> Malformed {
    let mut loose = Loose::default();
    let start = &header[..header.len().min(MAX_HEADER_BYTES)];
    // What was read before an error is what counts.
    let complete = rmp_serde::Deserializer::from_read_ref(start)
        .deserialize_map(&mut loose)
        .is_ok();
    let Some(Scalar::Number(id)) = loose.id else {
        return Malformed {
            id: None,
            infer: false,
            error: Error::invalid(format!(
                "the header is not a message of this protocol: {cause}"
            )),
        };
    };
    let infer = matches!(loose.kind, Some(Scalar::Text("infer")));
    let error = match (loose.v, loose.kind) {
        (Some(Scalar::Number(v)), _) if v != VERSION => wrong_version(v),
        (Some(Scalar::Number(_)), Some(Scalar::Text(_))) => {
            Error::invalid(format!("the header cannot be read: {cause}"))
        }
        (Some(Scalar::Number(_)), kind) if complete || kind.is_some() => {
            Error::invalid("the header's `type` is missing or not a string")
        }
        (v, _) if complete || v.is_some_and(|v| !matches!(v, Scalar::Number(_))) => {
            Error::invalid("the header's `v` (protocol version) is missing or not a number")
        }
        _ => Error::invalid(format!("the header cannot be read: {cause}")),
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

fn interpret(
    header: Header<'_>,
    (v, kind, id): (u64, &str, RequestId),
    frames: std::vec::IntoIter<Bytes>,
) -> Result<ClientMessage> {
    if v != VERSION {
        return Err(wrong_version(v));
    }
    if kind != "infer" && frames.len() > 0 {
        return Err(Error::invalid(format!(
            "{kind} takes no payload, got {} frames",
            frames.len()
        )));
    }
    Ok(match kind {
        "infer" => {
            let BoundedInputs(inputs) = header
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
            let model = header.model.map(bounded::model_name).transpose()?;
            let params = header.params.map_or_else(Params::new, |params| params.0);
            bounded::check_paths(&params)?;
            bounded::check_tensor_names(&inputs)?;
            let request = Request {
                model,
                params,
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
        "models" => match (header.model, header.params) {
            (None, None) => ClientMessage::Models(id),
            (model, params) => {
                let model = model.map(bounded::model_name).transpose()?;
                let params = params.map_or_else(Params::new, |params| params.0);
                bounded::check_paths(&params)?;
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
            stream: None,
        }
    }

    /// What else a request says of itself; nothing is written of what is the rule.
    pub(crate) fn with(
        mut self,
        timeout_ms: Option<u64>,
        priority: Priority,
        stream: bool,
    ) -> Self {
        self.timeout_ms = timeout_ms;
        self.priority = match priority {
            Priority::Normal => None,
            Priority::High => Some("high"),
        };
        self.stream = stream.then_some(true);
        self
    }
}

/// Parameters of at most so many bytes and levels fit into a header, whatever else is in it.
const SURELY_FIT: (usize, usize) = (MAX_HEADER_BYTES / 2, MAX_DEPTH / 2);

/// Checks that a server can read a header with these parameters: it could not say what was wrong with them.
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
    // Written and read as the server would: its limits are what they are.
    let question = ClientMessage::Describe(RequestId(u64::MAX), None, params.clone());
    let header = &write_message(&question)[0];
    match read_header(header) {
        Ok(_) => Ok(()),
        Err(_) if header.len() > MAX_HEADER_BYTES => Err(Error::invalid(format!(
            "the parameters take {} bytes, and {MAX_HEADER_BYTES} is the most; what is large is better sent as an input, or named by a *_path parameter",
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
        request.stream,
    );
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
            // Without a name it is still this question, and not the one for all models.
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
}
