//! What is answered: bodies of several pieces, JSON, and errors with their status.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::super::counted::count_until_written;
use super::super::errors::{RowNumbers, http_status, retry_after, row_numbers, told};
use super::super::submit::Held;
use super::body;
use super::events::{EVENTS, Events};
use crate::error::Error;

/// Most bytes of an error's message.
const MAX_MESSAGE_BYTES: usize = 8192;

/// The length of the JSON ahead of binary tensors.
pub(super) const JSON_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// A body of pieces that leave as they lie in memory.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
    held: Vec<Arc<Held>>,
}

impl Pieces {
    pub(super) fn new(pieces: Vec<Bytes>) -> Pieces {
        Pieces {
            left: pieces.iter().map(|piece| piece.len() as u64).sum(),
            pieces: pieces.into(),
            held: Vec::new(),
        }
    }

    /// The same, which counts for its caller until it was written.
    pub(super) fn counted(self, held: Held) -> Pieces {
        self.counted_with(vec![Arc::new(held)])
    }

    /// The same with what other pieces, which these were made of, were counted with.
    pub(super) fn counted_with(mut self, held: Vec<Arc<Held>>) -> Pieces {
        for held in &held {
            count_until_written(self.pieces.make_contiguous(), held);
        }
        self.held.extend(held);
        self
    }

    /// The number of bytes that are still to leave.
    pub(super) fn bytes(&self) -> u64 {
        self.left
    }

    /// The pieces themselves, and what they are counted with.
    pub(super) fn into_parts(self) -> (VecDeque<Bytes>, Vec<Arc<Held>>) {
        (self.pieces, self.held)
    }
}

/// The body of an answer.
pub(super) enum ReplyBody {
    /// All of it is there.
    Pieces(Pieces),
    /// It comes as parts finish.
    Events(Box<Events>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            ReplyBody::Events(events) => events
                .poll_piece(cx)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
            ReplyBody::Pieces(pieces) => {
                let next = pieces.pieces.pop_front();
                if let Some(piece) = &next {
                    pieces.left -= piece.len() as u64;
                }
                Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Pieces(pieces) => pieces.pieces.is_empty(),
            ReplyBody::Events(events) => events.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Pieces(pieces) => SizeHint::with_exact(pieces.left),
            ReplyBody::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer.
pub(super) type Reply = Response<ReplyBody>;

/// An answer of pieces.
pub(super) fn of_pieces(status: StatusCode, kind: &'static str, pieces: Pieces) -> Reply {
    let mut reply = Response::new(ReplyBody::Pieces(pieces));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// An answer of JSON.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    // Names, numbers and lists of them: there is nothing in an answer that JSON does not take.
    let text = serde_json::to_vec(value).unwrap_or_default();
    of_pieces(status, "application/json", Pieces::new(vec![text.into()]))
}

/// Leaves the length of a body, as the answer to HEAD has it.
pub(super) fn leave_out_body(reply: &mut Reply) {
    if let ReplyBody::Pieces(pieces) = reply.body_mut() {
        let bytes = std::mem::take(pieces).bytes();
        reply.headers_mut().insert(CONTENT_LENGTH, bytes.into());
    }
}

/// An answer of events.
pub(super) fn of_events(events: Events) -> Reply {
    let mut reply = Response::new(ReplyBody::Events(Box::new(events)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    rows: Option<RowNumbers>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    /// The connection cannot go on behind the answer.
    closes: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal {
            status,
            message: message.into(),
            rows: None,
            retry_after: None,
            allow: None,
            closes: false,
        }
    }

    /// One of a request whose body is not taken: what comes of it is read beside the answer. One that is too long even
    /// for that ends its connection, and the answer says so.
    pub(super) fn leaving(self, body: Incoming) -> Refusal {
        let closes = body::is_too_long_to_leave(&body);
        body::leave(body);
        Refusal { closes, ..self }
    }

    /// A method that a path does not have; it has these.
    pub(super) fn method(method: &hyper::Method, path: &str, allowed: &'static str) -> Refusal {
        let message = format!("{method} {path}: this path takes {allowed}");
        Refusal {
            allow: Some(allowed),
            ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message)
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let error = told(error);
        let status = StatusCode::from_u16(http_status(error.code()));
        Refusal {
            rows: row_numbers(&error),
            retry_after: retry_after(error.code()),
            ..Refusal::new(
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                error.message(),
            )
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        #[derive(Serialize)]
        struct Text<'a> {
            error: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            rows: Option<RowNumbers>,
        }
        let text = Text {
            // It may repeat what the client has sent.
            error: &refusal.message[..refusal.message.floor_char_boundary(MAX_MESSAGE_BYTES)],
            rows: refusal.rows,
        };
        let mut reply = json(refusal.status, &text);
        if let Some(seconds) = refusal.retry_after {
            reply.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allowed) = refusal.allow {
            let allowed = HeaderValue::from_static(allowed);
            reply.headers_mut().insert(ALLOW, allowed);
        }
        if refusal.closes {
            let close = HeaderValue::from_static("close");
            reply.headers_mut().insert(CONNECTION, close);
        }
        reply
    }
}
