//! One call of gRPC: its message in a frame, its answer's frame, and the status that it ends with.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::ResponseFuture;
use hyper::header::HeaderMap;
use prost::Message;

use super::super::super::measure::Failure;
use super::super::inference::shortened;

/// In front of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The names of the statuses, by their number.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A message as it is sent.
///
/// # Errors
/// If it is too long for gRPC.
pub fn framed(message: &impl Message) -> Result<Bytes> {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).context("a request of 4 GiB or more")?);
    message.encode(&mut framed)?;
    Ok(framed.freeze())
}

/// An answer's message, in the pieces that it came in.
#[derive(Debug)]
pub struct Answer(Vec<Bytes>);

impl Answer {
    /// The message in one piece.
    pub fn joined(self) -> Bytes {
        let all: Vec<u8> = self.0.concat();
        Bytes::from(all).slice(PREFIX_BYTES..)
    }

    /// Whether it is one message, as long as it says, and not compressed.
    fn is_whole(&self) -> bool {
        let bytes: usize = self.0.iter().map(Bytes::len).sum();
        let prefix: Vec<u8> = self
            .0
            .iter()
            .flatten()
            .take(PREFIX_BYTES)
            .copied()
            .collect();
        match prefix[..] {
            [0, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize == bytes - PREFIX_BYTES,
            _ => false,
        }
    }
}

enum State {
    Asked(ResponseFuture),
    Body(RecvStream),
}

/// A call that was sent.
pub struct Exchange {
    state: State,
    pieces: Vec<Bytes>,
    /// When it has taken too long.
    pub until: Duration,
    /// The connection that it was sent on, by its number.
    pub connection: u64,
}

impl Exchange {
    pub fn new(response: ResponseFuture, until: Duration, connection: u64) -> Exchange {
        Exchange {
            state: State::Asked(response),
            pieces: Vec::new(),
            until,
            connection,
        }
    }

    /// How it ended, if it has.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Failure>> {
        if let State::Asked(response) = &mut self.state {
            let response = match ready!(Pin::new(response).poll(cx)) {
                Ok(response) => response,
                Err(e) => return Poll::Ready(Err(broken(&e))),
            };
            let (head, body) = response.into_parts();
            if head.status != 200 {
                let message = "an answer of HTTP, and not of gRPC";
                let code = format!("HTTP-{}", head.status.as_u16());
                return Poll::Ready(Err(failure(code, message)));
            }
            // An error without a message stands in the first headers.
            if let Some(failure) = status(&head.headers) {
                return Poll::Ready(Err(failure));
            }
            self.state = State::Body(body);
        }
        let State::Body(body) = &mut self.state else {
            return Poll::Pending;
        };
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // It fails only where more is given back than came.
                    let _ = body.flow_control().release_capacity(bytes.len());
                    self.pieces.push(bytes);
                }
                Some(Err(e)) => return Poll::Ready(Err(broken(&e))),
                None => break,
            }
        }
        let trailers = match ready!(body.poll_trailers(cx)) {
            Ok(trailers) => trailers.unwrap_or_default(),
            Err(e) => return Poll::Ready(Err(broken(&e))),
        };
        let answer = Answer(std::mem::take(&mut self.pieces));
        Poll::Ready(match status(&trailers) {
            Some(failure) => Err(failure),
            None if !trailers.contains_key("grpc-status") => {
                Err(bad("the answer ends without a status"))
            }
            None if !answer.is_whole() => Err(bad("the answer is not one message")),
            None => Ok(answer),
        })
    }
}

/// The error that these headers tell, if they do.
fn status(headers: &HeaderMap) -> Option<Failure> {
    let status = headers.get("grpc-status")?.to_str().unwrap_or("?");
    let code = match status.parse().ok().and_then(|at: usize| STATUSES.get(at)) {
        Some(&"OK") => return None,
        Some(&name) => name.to_owned(),
        None => "UNKNOWN".to_owned(),
    };
    let message = headers.get("grpc-message").map(|text| text.as_bytes());
    Some(failure(code, &unescaped(message.unwrap_or_default())))
}

/// A message as it was before bytes became `%41`.
fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        let escaped = match (first, behind) {
            (b'%', [high, low, ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).ok();
                digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() {
            &behind[2..]
        } else {
            behind
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a connection's error is counted as.
pub fn broken(error: &h2::Error) -> Failure {
    let code = if error.is_reset() {
        "RESET"
    } else {
        "CONNECTION"
    };
    failure(code.to_owned(), &error.to_string())
}

/// A call that ended otherwise than with a status.
pub fn failure(code: String, message: &str) -> Failure {
    Failure {
        code,
        message: shortened(message),
    }
}

fn bad(what: &str) -> Failure {
    failure("BAD-ANSWER".to_owned(), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_names_and_messages_are_read() {
        let told = |code: &'static str, message: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            let message = hyper::header::HeaderValue::from_bytes(message).unwrap();
            headers.insert("grpc-message", message);
            status(&headers).map(|f| (f.code, f.message))
        };
        let expected = |code: &str, message: &str| Some((code.to_owned(), message.to_owned()));
        assert_eq!(told("0", b""), None);
        assert_eq!(
            told("5", b"none: %C3%BC%25"),
            expected("NOT_FOUND", "none: ü%")
        );
        assert_eq!(
            told("14", b"100%, %zz"),
            expected("UNAVAILABLE", "100%, %zz")
        );
        for odd in ["17", "-1", "x", ""] {
            assert_eq!(told(odd, b"%"), expected("UNKNOWN", "%"), "{odd}");
        }
        assert!(status(&HeaderMap::new()).is_none());
    }

    #[test]
    fn an_answer_is_one_message() {
        let answer = |pieces: &[&'static [u8]]| {
            let pieces = pieces.iter().map(|piece| Bytes::from_static(piece));
            Answer(pieces.collect())
        };
        assert!(answer(&[b"\0\0\0\0\0"]).is_whole());
        let good = answer(&[b"\0\0\0", b"\0\x02a", b"b"]);
        assert!(good.is_whole());
        assert_eq!(good.joined(), "ab");
        for wrong in [
            &[&b""[..]][..],
            &[],
            &[b"\0\0\0\0"],
            &[b"\0\0\0\0\x01ab"],
            &[b"\0\0\0\0\x03ab"],
            &[b"\x01\0\0\0\x02ab"],
        ] {
            assert!(!answer(wrong).is_whole(), "{wrong:?}");
        }
    }
}
