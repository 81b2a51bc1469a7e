//! Reads a request's body: bounded, in one piece, and not for ever.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use super::super::shared::Shared;
use super::reply::Refusal;
use crate::error::Error;

/// How long a body may let us wait for its next byte.
const NEXT_BYTE: Duration = Duration::from_secs(15);
/// A refused body is read on for so long and so far, so that its client gets to read why.
const LEFTOVER: Duration = Duration::from_secs(2);
const LEFTOVER_BYTES: u64 = 16 << 20;
/// Tensors behind the JSON begin at a multiple of this, where the JSON's length is known before the body is read.
const ALIGNMENT: usize = 64;
/// What is set aside for a body ahead of its bytes: a length costs its client nothing.
const AHEAD_BYTES: usize = 64 << 20;

/// Bytes of bodies that are being read or parsed; they count as long as this lives.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reserved {
    /// Counts more bytes.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there are too many over all connections.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.shared.reserve(bytes as u64)?;
        self.bytes += bytes as u64;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.release(self.bytes);
    }
}

/// A body, and the count of its bytes.
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    pub(super) reserved: Reserved,
}

#[cfg(test)]
impl Whole {
    /// A body that has come.
    pub(super) fn of(bytes: Bytes) -> Whole {
        let config = crate::config::Config::from_command_line(["p".into()], |_| None).unwrap();
        let crate::config::Asked::Run(config) = config else {
            panic!("no flags were given")
        };
        let shared = Arc::new(Shared::new(&config));
        let reserved = Reserved { shared, bytes: 0 };
        Whole { bytes, reserved }
    }
}

/// Reads a body. `json_bytes` is the length of the JSON ahead of tensors, where it is known.
///
/// # Errors
/// 413 before anything is read, if it says that it is too long, else as soon as it is; 408 if it lets us wait; 429 if too
/// much is being read for others; 400 if the connection breaks.
pub(super) async fn read(
    shared: &Arc<Shared>,
    mut body: Incoming,
    json_bytes: Option<usize>,
) -> Result<Whole, Refusal> {
    let most = shared.max_request_bytes;
    let said = body.size_hint();
    if said.lower() > most {
        let refusal = too_long(most, Some(said.lower()));
        leave(body);
        return Err(refusal);
    }
    let mut reserved = Reserved {
        shared: shared.clone(),
        bytes: 0,
    };
    let Some(first) = next(&mut body).await? else {
        return Ok(Whole {
            bytes: Bytes::new(),
            reserved,
        });
    };
    if first.len() as u64 > most {
        leave(body);
        return Err(too_long(most, None));
    }
    if let Err(error) = reserved.add(first.len()) {
        leave(body);
        return Err(error.into());
    }
    if body.is_end_stream() || said.exact() == Some(first.len() as u64) {
        // One piece: nothing is copied.
        return Ok(Whole {
            bytes: first,
            reserved,
        });
    }
    // The pieces of a longer body are copied into one: a tensor is one piece of memory.
    let before = padding(json_bytes);
    let expected = said.exact().unwrap_or(0).min(AHEAD_BYTES as u64) as usize;
    let mut whole = Vec::new();
    // Where the memory is not there it grows piece by piece.
    let _ = whole.try_reserve_exact(before + expected.max(first.len()));
    whole.resize(before, 0);
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(piece) = next(&mut body).await? {
        let bytes = (whole.len() - before + piece.len()) as u64;
        if bytes > most {
            leave(body);
            return Err(too_long(most, None));
        }
        if let Err(error) = reserved.add(piece.len()) {
            leave(body);
            return Err(error.into());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Whole {
        bytes: Bytes::from(whole).slice(before..),
        reserved,
    })
}

/// How many bytes stand ahead of a body in memory, so that the tensors behind its JSON begin where numbers may.
pub(super) fn padding(json_bytes: Option<usize>) -> usize {
    json_bytes.map_or(0, |bytes| bytes.wrapping_neg() % ALIGNMENT)
}

/// The next piece of a body; trailers are passed over.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        let frame = tokio::time::timeout(NEXT_BYTE, frame).await.map_err(|_| {
            Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("no byte of the body has come for {} s", NEXT_BYTE.as_secs()),
            )
        })?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                let message = format!("the body cannot be read: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
            }
        }
    }
}

/// Why a body is too long.
pub(super) fn too_long(most: u64, bytes: Option<u64>) -> Refusal {
    let bytes = bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!(
            "the request has {bytes}, and the server takes at most {most} bytes (--max-request-bytes)"
        ),
    )
}

/// Reads on beside the answer: a connection that is closed with bytes unread loses what was answered.
pub(super) fn leave(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::task::spawn_local(async move {
        let mut left = LEFTOVER_BYTES;
        let rest = async {
            while let Ok(Some(piece)) = next(&mut body).await {
                left = left.saturating_sub(piece.len() as u64);
                if left == 0 {
                    return;
                }
            }
        };
        // Whichever comes first: the rest is nobody's.
        let _ = tokio::time::timeout(LEFTOVER, rest).await;
    });
}
