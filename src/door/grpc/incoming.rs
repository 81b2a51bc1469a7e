//! Reads the messages of a call: bounded, each in one piece, inflated where they are compressed.

use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::{GzDecoder, ZlibDecoder};
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use tonic::Status;

use super::fields::PREFIX_BYTES;
use super::request;
use super::status::status;
use crate::door::local::Local;
use crate::door::shared::Shared;
use crate::error::{Error, Result};

/// How long the next byte of a message may take.
const NEXT_BYTE: Duration = Duration::from_secs(15);
/// Where the first tensor of a message begins that has to be put together: a multiple of this, as far as memory for so
/// many bytes begins at one. Numbers that lie so need no second copy.
const ALIGNMENT: usize = 16;
/// What is set aside for a message ahead of its bytes: a length costs its client nothing.
const AHEAD_BYTES: usize = 64 << 20;
/// Messages of more bytes are inflated beside the runtime.
const INFLATE_HERE_BYTES: usize = 256;
/// Most bytes of a message that holds no tensors.
const SMALL_BYTES: u64 = 1 << 20;
/// How messages may be compressed, as the answer says where it is anything else.
const CODINGS: &str = "identity,deflate,gzip";

/// Bytes of messages that are being read; they count as long as this lives.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reserved {
    fn add(&mut self, bytes: usize) -> Result<()> {
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

/// A message, and the count of its bytes.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) reserved: Reserved,
}

/// How a call's messages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
}

/// The messages of a call, one after the other.
pub(super) struct Messages {
    local: Rc<Local>,
    body: Incoming,
    /// What has come of the next message.
    rest: Bytes,
    coding: Option<Coding>,
}

impl Messages {
    /// # Errors
    /// `UNIMPLEMENTED` for a compression that is not here.
    pub(super) fn of(
        local: Rc<Local>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Messages, Status> {
        let coding = match headers.get("grpc-encoding").map(|value| value.as_bytes()) {
            None | Some(b"identity") => None,
            Some(b"gzip") => Some(Coding::Gzip),
            Some(b"deflate") => Some(Coding::Deflate),
            Some(other) => {
                let mut status = Status::unimplemented(format!(
                    "messages compressed with {:?} are not taken; send them with one of {CODINGS}",
                    String::from_utf8_lossy(other)
                ));
                if let Ok(codings) = CODINGS.parse() {
                    status
                        .metadata_mut()
                        .insert("grpc-accept-encoding", codings);
                }
                return Err(status);
            }
        };
        Ok(Messages {
            local,
            body,
            rest: Bytes::new(),
            coding,
        })
    }

    /// The message of a call that has one, which may hold tensors.
    ///
    /// # Errors
    /// As [`Messages::next`]; `INVALID_ARGUMENT` if there is none, or another one.
    pub(super) async fn only(&mut self) -> Result<Message, Status> {
        self.only_of(self.local.shared.max_request_bytes).await
    }

    /// The same for a message without tensors.
    ///
    /// # Errors
    /// As [`Messages::only`].
    pub(super) async fn only_small(&mut self) -> Result<Message, Status> {
        self.only_of(SMALL_BYTES).await
    }

    async fn only_of(&mut self, most: u64) -> Result<Message, Status> {
        let none = || Status::invalid_argument("the call has ended without a message");
        let message = self.read(most, Some(NEXT_BYTE)).await?.ok_or_else(none)?;
        if !self.rest.is_empty() || self.piece(Some(NEXT_BYTE)).await?.is_some() {
            return Err(Status::invalid_argument(
                "a second message, and this call takes one; ModelStreamInfer takes many",
            ));
        }
        Ok(message)
    }

    /// The next message of a call that has many; it may let us wait as long as it likes, but not in its midst.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for one that is too long, before it is read, and if too much is being read for others;
    /// `DEADLINE_EXCEEDED` for one that stops coming.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Status> {
        self.read(self.local.shared.max_request_bytes, None).await
    }

    async fn read(
        &mut self,
        most: u64,
        first_byte: Option<Duration>,
    ) -> Result<Option<Message>, Status> {
        let mut prefix = [0; PREFIX_BYTES];
        let mut have = 0;
        while have < PREFIX_BYTES {
            if self.rest.is_empty() {
                let patience = if have == 0 {
                    first_byte
                } else {
                    Some(NEXT_BYTE)
                };
                match self.piece(patience).await? {
                    Some(piece) => self.rest = piece,
                    None if have == 0 => return Ok(None),
                    None => return Err(cut_off()),
                }
            }
            let some = self.rest.split_to(self.rest.len().min(PREFIX_BYTES - have));
            prefix[have..have + some.len()].copy_from_slice(&some);
            have += some.len();
        }
        let [compressed, length @ ..] = prefix;
        let length = u32::from_be_bytes(length) as usize;
        if length as u64 > most {
            return Err(status(too_long(length, most)));
        }
        let shared = self.local.shared.clone();
        let mut reserved = Reserved { shared, bytes: 0 };
        let bytes = self.collect(length, &mut reserved).await?;
        let bytes = match (compressed, self.coding) {
            (0, _) => bytes,
            (1, Some(coding)) => {
                let takes_its_time = bytes.len() > INFLATE_HERE_BYTES;
                // The count goes along: a call that is cancelled meanwhile leaves the bytes in the pool's queue.
                let inflate = move || -> Result<_> {
                    let inflated = inflate(coding, &bytes, most)?;
                    reserved.add(inflated.len())?;
                    Ok((inflated, reserved))
                };
                let inflated = self.local.beside(takes_its_time, inflate).await;
                let (inflated, counted) = inflated.map_err(status)?.map_err(status)?;
                reserved = counted;
                inflated
            }
            (1, None) => {
                return Err(Status::invalid_argument(
                    "a message that says that it is compressed, in a call without grpc-encoding",
                ));
            }
            (other, _) => {
                return Err(Status::invalid_argument(format!(
                    "a message begins with {other}, expected 0, or 1 if it is compressed"
                )));
            }
        };
        Ok(Some(Message { bytes, reserved }))
    }

    /// So many bytes, in one piece of memory.
    async fn collect(&mut self, length: usize, reserved: &mut Reserved) -> Result<Bytes, Status> {
        if self.rest.is_empty() && length > 0 {
            self.rest = self.piece(Some(NEXT_BYTE)).await?.ok_or_else(cut_off)?;
        }
        if self.rest.len() >= length {
            // It came in one frame: nothing is copied.
            reserved.add(length).map_err(status)?;
            return Ok(self.rest.split_to(length));
        }
        let first_raw = request::first_raw(&self.rest);
        let before = first_raw.map_or(0, |at| at.wrapping_neg() % ALIGNMENT);
        let mut whole = Vec::new();
        // Where the memory is not there it grows piece by piece.
        let _ = whole.try_reserve_exact(before + length.min(AHEAD_BYTES));
        whole.resize(before, 0);
        loop {
            let left = length - (whole.len() - before);
            let piece = self.rest.split_to(self.rest.len().min(left));
            reserved.add(piece.len()).map_err(status)?;
            whole.extend_from_slice(&piece);
            if piece.len() == left {
                return Ok(Bytes::from(whole).slice(before..));
            }
            self.rest = self.piece(Some(NEXT_BYTE)).await?.ok_or_else(cut_off)?;
        }
    }

    /// The next piece of the body, as it comes; trailers are passed over.
    async fn piece(&mut self, patience: Option<Duration>) -> Result<Option<Bytes>, Status> {
        loop {
            if self.body.is_end_stream() {
                return Ok(None);
            }
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            let frame = match patience {
                None => frame.await,
                Some(patience) => tokio::time::timeout(patience, frame).await.map_err(|_| {
                    Status::deadline_exceeded(format!(
                        "no byte of the message has come for {} s",
                        patience.as_secs()
                    ))
                })?,
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => {}
                },
                Some(Err(error)) => {
                    return Err(Status::cancelled(format!(
                        "the call cannot be read: {error}"
                    )));
                }
            }
        }
    }
}

fn cut_off() -> Status {
    Status::invalid_argument("the call has ended in the midst of a message")
}

fn too_long(bytes: usize, most: u64) -> Error {
    Error::exhausted(format!(
        "the message has {bytes} bytes, and at most {most} are taken here (--max-request-bytes, if it has tensors)"
    ))
}

/// Inflates a message.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` if it becomes too long; `INVALID_ARGUMENT` for what is not compressed so.
fn inflate(coding: Coding, bytes: &[u8], most: u64) -> Result<Bytes> {
    let mut inflated = Vec::new();
    let read = match coding {
        Coding::Gzip => GzDecoder::new(bytes)
            .take(most + 1)
            .read_to_end(&mut inflated),
        Coding::Deflate => ZlibDecoder::new(bytes)
            .take(most + 1)
            .read_to_end(&mut inflated),
    };
    read.map_err(|e| Error::invalid(format!("the message is not {coding:?}: {e}")))?;
    if inflated.len() as u64 > most {
        return Err(Error::exhausted(format!(
            "the message has more than {most} bytes when it is inflated (--max-request-bytes)"
        )));
    }
    Ok(inflated.into())
}
