//! `POST …/infer`: reads a request, sends it through the pipeline, and answers with what comes back.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, StatusCode};

use super::super::connections::Open;
use super::super::incoming::{HERE_BYTES, Reserved, Whole};
use super::super::inflate::Coding;
use super::super::local::Local;
use super::super::models::ModelName;
use super::super::ordered::Ordered;
use super::super::submit::{Caller, Held};
use super::super::translate::write::{AnswerNames, Written};
use super::super::translate::{Infer, read, write};
use super::body;
use super::events::{self, Events, Subject};
use super::raw;
use super::reply::{self, JSON_LENGTH, Pieces, Refusal, Reply};
use crate::error::Result;

/// Answers of at most so many bytes leave in one piece: a copy is cheaper than a second one.
const JOINED_BYTES: usize = 16 * 1024;

/// Answers a request.
///
/// # Errors
/// Why it is refused.
pub(super) async fn answer(
    local: &Rc<Local>,
    open: Open,
    model: ModelName,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let asked = Coding::of_request(&head.headers)
        .and_then(|coding| Ok((coding, json_length(&head.headers)?)));
    let (coding, json_bytes) = match asked {
        Ok(asked) => asked,
        Err(refusal) => {
            return Err(refusal.leaving(body));
        }
    };
    let ahead = json_bytes.filter(|_| coding.is_none());
    let whole = body::read(&local.shared, body, ahead).await?;
    let caller = open.connection().caller.clone();
    let (infer, reserved) = match json_bytes {
        Some(0) => {
            let whole = unpacked(local, &caller, whole, coding, json_bytes).await?;
            let Whole { bytes, reserved } = whole;
            let infer = raw::read(local, &caller, &model, bytes).await?;
            (infer, reserved)
        }
        _ => parse(local, &caller, whole, coding, json_bytes).await?,
    };
    let Infer {
        id,
        request,
        wanted,
    } = infer.for_model(&model);
    let request = local.readied(&caller, request, None).await?;
    drop(reserved); // what it holds counts as a request from here on
    if events::are_asked_for(&head.headers) {
        events::check(&wanted)?;
        let parts = local.pipeline.stream(&caller, request)?;
        let parts = Ordered::new(parts, wanted.in_order);
        let wanted = Arc::new(wanted);
        let subject = Subject { model, id, wanted };
        let events = Events::begin(local.threads.clone(), subject, parts, open).await?;
        return Ok(reply::of_events(events));
    }
    let (rows, _stats) = local.pipeline.infer(&caller, request).await?;
    let bytes = write::copied_bytes(&rows.outputs, &wanted);
    let write = move || {
        let answered = AnswerNames {
            model: &model.name,
            version: model.version.as_deref(),
            id: id.as_deref(),
        };
        let written = write::write(answered, &rows.outputs, &wanted);
        written.map(|written| (written, rows))
    };
    let (written, rows) = local.beside(&caller, bytes, write).await??;
    Ok(Answer::of(written).reply(rows.held))
}

/// The length of the JSON ahead of tensors, if there are any.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let mut all = headers.get_all(&JSON_LENGTH).iter();
    let Some(value) = all.next() else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let length = length.filter(|_| all.next().is_none());
    length.map(Some).ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("Inference-Header-Content-Length is {value:?}, expected one number of bytes"),
        )
    })
}

/// Inflates a body that comes packed.
async fn unpacked(
    local: &Local,
    caller: &Caller,
    whole: Whole,
    coding: Option<Coding>,
    json_bytes: Option<usize>,
) -> Result<Whole, Refusal> {
    let Some(coding) = coding else {
        return Ok(whole);
    };
    let before = body::padding(json_bytes);
    let most = local.shared.max_request_bytes;
    Ok(coding.inflate(local, caller, whole, before, most).await?)
}

/// Reads the request in its body; beside the runtime where that takes its time.
async fn parse(
    local: &Local,
    caller: &Caller,
    whole: Whole,
    coding: Option<Coding>,
    json_bytes: Option<usize>,
) -> Result<(Infer, Reserved), Refusal> {
    let whole = unpacked(local, caller, whole, coding, json_bytes).await?;
    let most = local.shared.max_request_bytes;
    let bytes = work_bytes(&whole.bytes, json_bytes);
    let parse = move || {
        let Whole { bytes, reserved } = whole;
        read_body(&bytes, json_bytes, most).map(|infer| (infer, reserved))
    };
    Ok(local.beside(caller, bytes, parse).await??)
}

/// How many bytes of a body take their time to be read: its JSON, and all of it if there may be texts behind that, whose
/// lengths are taken out. Other tensors are not looked at.
fn work_bytes(body: &Bytes, json_bytes: Option<usize>) -> usize {
    let json = json_bytes.and_then(|bytes| body.get(..bytes));
    let Some(json) = json.filter(|json| body.len() > HERE_BYTES && json.len() <= HERE_BYTES) else {
        return body.len();
    };
    // A datatype's name can be told without being read, unless it is written with escapes.
    let has = |word: &[u8]| json.windows(word.len()).any(|bytes| bytes == word);
    match has(b"BYTES") || has(b"JSON") || has(b"\\") {
        true => body.len(),
        false => json.len(),
    }
}

fn read_body(bytes: &Bytes, json_bytes: Option<usize>, most: u64) -> Result<Infer> {
    read::read(bytes, json_bytes.unwrap_or(bytes.len()), most)
}

/// An answer whose bytes are there.
struct Answer {
    pieces: Pieces,
    /// The length of its JSON, where tensors are behind it.
    json_bytes: Option<usize>,
    joined: bool,
}

impl Answer {
    fn of(written: Written) -> Answer {
        let Written { json, behind } = written;
        let json_bytes = (!behind.is_empty()).then_some(json.len());
        let bytes: usize = behind.iter().map(Bytes::len).sum();
        let joined = json.len() + bytes <= JOINED_BYTES;
        let pieces = if joined || behind.is_empty() {
            let mut joined = json;
            behind
                .iter()
                .for_each(|piece| joined.extend_from_slice(piece));
            vec![joined.into()]
        } else {
            let json = std::iter::once(Bytes::from(json));
            json.chain(behind).collect()
        };
        Answer {
            pieces: Pieces::new(pieces),
            json_bytes,
            joined,
        }
    }

    fn reply(self, held: Held) -> Reply {
        let pieces = match self.joined {
            // A copy: what is held was let go.
            true => self.pieces,
            false => self.pieces.counted(held),
        };
        let kind = match self.json_bytes {
            None => "application/json",
            Some(_) => "application/octet-stream",
        };
        let mut reply = reply::of_pieces(StatusCode::OK, kind, pieces);
        if let Some(bytes) = self.json_bytes {
            let headers = reply.headers_mut();
            headers.insert(JSON_LENGTH, HeaderValue::from(bytes));
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_large_body_only_json_and_texts_take_their_time() {
        let body = |json: &str| Bytes::from([json.as_bytes(), &vec![0; HERE_BYTES]].concat());
        for (json, takes) in [
            (r#"{"datatype": "FP32"}"#, false),
            (r#"{"datatype": "BYTES"}"#, true),
            (r#"{"datatype": "JSON"}"#, true),
            (r#"{"datatype": "B\u0059TES"}"#, true),
        ] {
            let whole = body(json);
            let bytes = work_bytes(&whole, Some(json.len()));
            assert_eq!(bytes, if takes { whole.len() } else { json.len() });
            assert_eq!(work_bytes(&whole, None), whole.len());
            assert_eq!(work_bytes(&whole, Some(whole.len() + 1)), whole.len());
        }
        assert_eq!(
            work_bytes(&body(&" ".repeat(HERE_BYTES + 1)), Some(HERE_BYTES + 1)),
            2 * HERE_BYTES + 1
        );
    }
}
