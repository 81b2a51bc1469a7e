//! What a call is answered: messages as pieces of memory, and a status behind them.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::status;
use crate::door::counted::{COUNTED_PIECE_BYTES, count_until_written};
use crate::door::submit::Held;

/// The kind of all answers.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// The header of the status, and that of what went well.
const STATUS: &str = "grpc-status";
const OK: HeaderValue = HeaderValue::from_static("0");

/// An answer.
pub(super) type Reply = Response<ReplyBody>;

/// What a call of many answers is told next.
pub(super) enum Said {
    /// A message, and the count of its bytes.
    Message(Vec<Bytes>, Option<Held>),
    /// How it ends, if not well.
    End(Status),
}

/// The body of an answer.
#[derive(Default)]
pub(super) enum ReplyBody {
    /// Nothing: the status is among the headers.
    #[default]
    Empty,
    /// One message.
    Whole(Pieces),
    /// Messages as they come.
    Stream(Stream),
    /// Another service's, until the server has stopped.
    Tonic(tonic::body::Body, Pin<Box<dyn Future<Output = ()>>>),
}

/// A message as it leaves, piece by piece; its bytes count for its caller until they were written.
#[derive(Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    held: Option<Arc<Held>>,
    ended: bool,
}

impl Pieces {
    fn new(mut pieces: Vec<Bytes>, held: Option<Held>) -> Pieces {
        let held = held.map(Arc::new);
        if let Some(held) = &held {
            count_until_written(&mut pieces, held);
        }
        Pieces {
            pieces: pieces.into(),
            held,
            ended: false,
        }
    }
}

/// Messages that a task gives, which ends when this is dropped: the call was cancelled then, or is over.
pub(super) struct Stream {
    said: mpsc::Receiver<Said>,
    task: JoinHandle<()>,
    now: Pieces,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            if let Some(piece) = self.now.pieces.pop_front() {
                if self.now.pieces.is_empty() {
                    // The next message may be long in coming; a large piece has a count of its own.
                    self.now.held = None;
                }
                return Poll::Ready(Some(Frame::data(piece)));
            }
            if self.now.ended {
                return Poll::Ready(None);
            }
            match ready!(self.said.poll_recv(cx)) {
                Some(Said::Message(pieces, held)) => {
                    self.now = Pieces::new(pieces, held);
                }
                Some(Said::End(status)) => {
                    self.now.ended = true;
                    return Poll::Ready(Some(end(status)));
                }
                None => {
                    self.now.ended = true;
                    return Poll::Ready(Some(well()));
                }
            }
        }
    }
}

/// The status of what went well.
fn well() -> Frame<Bytes> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, OK);
    Frame::trailers(trailers)
}

/// The status of what did not.
fn end(status: Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(STATUS, HeaderValue::from(i32::from(status.code())));
    }
    Frame::trailers(trailers)
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            ReplyBody::Empty => Poll::Ready(None),
            ReplyBody::Whole(message) => Poll::Ready(match message.pieces.pop_front() {
                Some(piece) => Some(Ok(Frame::data(piece))),
                None if message.ended => None,
                None => {
                    message.ended = true;
                    Some(Ok(well()))
                }
            }),
            ReplyBody::Stream(stream) => stream.poll_frame(cx).map(|frame| frame.map(Ok)),
            ReplyBody::Tonic(body, stopped) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
                Poll::Pending => stopped
                    .as_mut()
                    .poll(cx)
                    .map(|()| Some(Ok(end(status::stopped())))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Empty => true,
            ReplyBody::Whole(message) => message.ended,
            ReplyBody::Stream(stream) => stream.now.ended && stream.now.pieces.is_empty(),
            ReplyBody::Tonic(body, _) => body.is_end_stream(),
        }
    }
}

fn of(body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, GRPC);
    reply
}

/// One message, whose bytes count for its caller where they are not copies.
pub(super) fn of_pieces(pieces: Vec<Bytes>, held: Option<Held>) -> Reply {
    let is_large = |piece: &Bytes| piece.len() >= COUNTED_PIECE_BYTES;
    let held = held.filter(|_| pieces.len() > 1 || pieces.iter().any(is_large));
    of(ReplyBody::Whole(Pieces::new(pieces, held)))
}

/// A message with its prefix.
pub(super) fn framed<M: prost::Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(super::fields::PREFIX_BYTES + length);
    framed.push(0);
    // Names and numbers of models: far below what a length can say.
    framed.extend_from_slice(&(length as u32).to_be_bytes());
    // It fails only for memory that does not grow.
    let _ = message.encode(&mut framed);
    framed.into()
}

/// One message without tensors.
pub(super) fn of_message<M: prost::Message>(message: &M) -> Reply {
    of_pieces(vec![framed(message)], None)
}

/// Messages as a task gives them.
pub(super) fn of_stream(said: mpsc::Receiver<Said>, task: JoinHandle<()>) -> Reply {
    of(ReplyBody::Stream(Stream {
        said,
        task,
        now: Pieces::default(),
    }))
}

/// A status in place of an answer.
pub(super) fn refused(status: Status) -> Reply {
    status.into_http()
}

/// What is no gRPC.
pub(super) fn unsupported() -> Reply {
    let mut reply = Response::new(ReplyBody::Empty);
    *reply.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    reply
}
