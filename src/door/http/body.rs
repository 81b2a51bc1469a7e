//! Reads a request's body: bounded, in one piece, and not for ever.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use super::super::incoming::{Growing, NEXT_BYTE, Reserved, Unread, Whole, next};
use super::super::shared::Shared;
use super::reply::Refusal;

/// A refused body is read on for so long and so far, so that its client gets to read why.
const LEFTOVER: Duration = Duration::from_secs(2);
const LEFTOVER_BYTES: u64 = 16 << 20;
/// Tensors behind the JSON begin at a multiple of this, where the JSON's length is known before the body is read.
const ALIGNMENT: usize = 64;

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
    gather(shared, &mut body, json_bytes).await.map_err(|why| {
        let leaves = matches!(why, Unread::TooLong { .. } | Unread::Refused(_));
        let refusal = Refusal::from(why);
        match leaves {
            true => refusal.leaving(body),
            false => refusal,
        }
    })
}

async fn gather(
    shared: &Arc<Shared>,
    body: &mut Incoming,
    json_bytes: Option<usize>,
) -> Result<Whole, Unread> {
    let most = shared.max_request_bytes;
    let said = body.size_hint();
    let too_long = |bytes: u64| {
        let bytes = Some(bytes);
        Unread::TooLong { bytes, most }
    };
    if said.lower() > most {
        return Err(too_long(said.lower()));
    }
    let first = next(body, Some(NEXT_BYTE)).await?.unwrap_or_default();
    if body.is_end_stream() || said.exact() == Some(first.len() as u64) {
        return match first.len() as u64 {
            bytes if bytes > most => Err(too_long(bytes)),
            _ => Ok(Whole::of(first, Reserved::none(shared))?),
        };
    }
    let (before, reserved) = (padding(json_bytes), Reserved::coming(shared));
    let mut whole = match said.exact() {
        Some(bytes) => Growing::announced(reserved, before, bytes),
        None => Growing::new(reserved, before, most),
    };
    whole.push(&first)?;
    drop(first);
    while let Some(piece) = whole.next(body).await? {
        whole.push(&piece)?;
    }
    Ok(whole.finish())
}

/// How many bytes stand ahead of a body in memory, so that the tensors behind its JSON begin where numbers may.
pub(super) fn padding(json_bytes: Option<usize>) -> usize {
    json_bytes.map_or(0, |bytes| bytes.wrapping_neg() % ALIGNMENT)
}

impl From<Unread> for Refusal {
    fn from(why: Unread) -> Refusal {
        let (status, message) = match why {
            Unread::Refused(error) => return error.into(),
            Unread::Silent(time) => (
                StatusCode::REQUEST_TIMEOUT,
                format!("no byte of the body has come for {} s", time.as_secs()),
            ),
            Unread::Broken(error) => (
                StatusCode::BAD_REQUEST,
                format!("the body cannot be read: {error}"),
            ),
            Unread::TooLong { bytes, most } => {
                let bytes =
                    bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
                (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!(
                        "the request has {bytes}, and the server takes at most {most} bytes (--max-request-bytes)"
                    ),
                )
            }
        };
        Refusal::new(status, message)
    }
}

/// Whether [`leave`] would not come to a body's end, as far as the body says how long it is.
pub(super) fn is_too_long_to_leave(body: &Incoming) -> bool {
    body.size_hint().lower() > LEFTOVER_BYTES
}

/// Reads on beside the answer: a connection that is closed with bytes unread loses what was answered.
pub(super) fn leave(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::task::spawn_local(async move {
        let mut left = LEFTOVER_BYTES;
        let rest = async {
            while let Ok(Some(piece)) = next(&mut body, Some(NEXT_BYTE)).await {
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
