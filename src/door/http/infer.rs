//! `POST …/infer`: reads a request, sends it through the pipeline, and answers with what comes back.

use std::rc::Rc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, StatusCode};
use serde_json::Value;

use super::super::connections::Open;
use super::super::local::Local;
use super::super::pipeline::Rows;
use super::super::translate::write::{Answered, Written};
use super::super::translate::{Infer, read, write};
use super::body;
use super::reply::{self, JSON_LENGTH, Pieces, Refusal, Reply};
use super::route::ModelName;
use crate::error::Result;
use crate::message::MODEL_VERSION;

/// Bodies of more bytes are parsed beside the runtime, which serves others meanwhile.
const PARSE_HERE_BYTES: usize = 256 * 1024;
/// Answers of at most so many bytes leave in one piece: a copy is cheaper than a second one.
const JOINED_BYTES: usize = 16 * 1024;

/// Answers a request.
///
/// # Errors
/// Why it is refused.
pub(super) async fn answer(
    local: &Rc<Local>,
    open: &Open,
    model: ModelName,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let json_bytes = json_length(&head.headers)?;
    let whole = body::read(&local.shared, body, json_bytes).await?;
    let infer = parse(local, whole, json_bytes).await?;
    let Infer {
        id,
        request,
        wanted,
    } = infer.with_model(&model);
    let caller = &open.connection().caller;
    let (rows, _stats) = local.pipeline.infer(caller, request).await?;
    let answered = Answered {
        model: &model.name,
        version: model.version.as_deref(),
        id: id.as_deref(),
    };
    let written = write::write(answered, &rows.outputs, &wanted)?;
    Ok(reply(written, rows))
}

/// The length of the JSON ahead of tensors, if there are any.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(&JSON_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("Inference-Header-Content-Length is {value:?}, expected a number of bytes"),
        )
    })
}

/// Reads the request in its body; a large one beside the runtime.
async fn parse(
    local: &Local,
    whole: body::Whole,
    json_bytes: Option<usize>,
) -> Result<Infer, Refusal> {
    let most = local.shared.max_request_bytes;
    let takes_its_time = whole.bytes.len() > PARSE_HERE_BYTES;
    let parse = move || {
        let body::Whole { bytes, reserved } = whole;
        let parsed = read_body(&bytes, json_bytes, most);
        drop(reserved); // what it holds now counts as a request
        parsed
    };
    Ok(local.beside(takes_its_time, parse).await??)
}

fn read_body(bytes: &Bytes, json_bytes: Option<usize>, most: u64) -> Result<Infer> {
    read::read(bytes, json_bytes.unwrap_or(bytes.len()), most)
}

impl Infer {
    /// For the model that the path names.
    fn with_model(mut self, model: &ModelName) -> Infer {
        self.request.model = Some(model.name.clone());
        if let Some(version) = &model.version {
            let version = Value::String(version.clone());
            self.request
                .params
                .insert(MODEL_VERSION.to_owned(), version);
        }
        self
    }
}

fn reply(written: Written, rows: Rows) -> Reply {
    let Written { json, behind } = written;
    let kind = match behind.is_empty() {
        true => "application/json",
        false => "application/octet-stream",
    };
    let json_bytes = json.len();
    let bytes: usize = behind.iter().map(Bytes::len).sum();
    let has_tensors = !behind.is_empty();
    let pieces = if bytes <= JOINED_BYTES {
        let mut joined = json;
        behind
            .iter()
            .for_each(|piece| joined.extend_from_slice(piece));
        Pieces::new(vec![joined.into()])
    } else {
        let json = std::iter::once(Bytes::from(json));
        Pieces::new(json.chain(behind).collect()).counted(rows.held)
    };
    let mut reply = reply::of_pieces(StatusCode::OK, kind, pieces);
    if has_tensors {
        let length = HeaderValue::from(json_bytes);
        reply.headers_mut().insert(JSON_LENGTH, length);
    }
    reply
}
