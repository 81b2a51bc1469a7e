//! Reads the messages of a call: bounded, each in one piece, inflated where they are compressed.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::Incoming;
use tonic::Status;

use super::fields::PREFIX_BYTES;
use super::request;
use super::status::status;
use crate::door::incoming::{Growing, NEXT_BYTE, Reserved, Unread, Whole, next};
use crate::door::inflate::Coding;
use crate::door::local::Local;
use crate::door::submit::Caller;
use crate::error::Error;

/// Where the first tensor of a message begins that has to be put together: a multiple of this, as far as memory for so
/// many bytes begins at one. Numbers that lie so need no second copy.
const ALIGNMENT: usize = 16;
/// Most bytes of a message that holds no tensors.
const SMALL_BYTES: u64 = 1 << 20;
/// How messages may be compressed, as the answer says where it is anything else.
const CODINGS: &str = "identity,deflate,gzip";

/// The messages of a call, one after the other.
pub(super) struct Messages {
    local: Rc<Local>,
    caller: Caller,
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
        caller: &Caller,
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
            caller: caller.clone(),
            body,
            rest: Bytes::new(),
            coding,
        })
    }

    /// The message of a call that has one, which may hold tensors.
    ///
    /// # Errors
    /// As [`Messages::next`]; `INVALID_ARGUMENT` if there is none, or another one.
    pub(super) async fn only(&mut self) -> Result<Whole, Status> {
        self.only_of(self.local.shared.max_request_bytes).await
    }

    /// The same for a message without tensors.
    ///
    /// # Errors
    /// As [`Messages::only`].
    pub(super) async fn only_small(&mut self) -> Result<Whole, Status> {
        self.only_of(SMALL_BYTES).await
    }

    async fn only_of(&mut self, most: u64) -> Result<Whole, Status> {
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
    pub(super) async fn next(&mut self) -> Result<Option<Whole>, Status> {
        self.read(self.local.shared.max_request_bytes, None).await
    }

    async fn read(
        &mut self,
        most: u64,
        first_byte: Option<Duration>,
    ) -> Result<Option<Whole>, Status> {
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
            let bytes = Some(length as u64);
            return Err(refused(Unread::TooLong { bytes, most }));
        }
        let whole = self.collect(length).await?;
        match (compressed, self.coding) {
            (0, _) => Ok(Some(whole)),
            (1, Some(coding)) => {
                let inflated = coding.inflate(&self.local, &self.caller, whole, 0, most);
                let inflated = inflated.await;
                inflated.map(Some).map_err(refused)
            }
            (1, None) => Err(Status::invalid_argument(
                "a message that says that it is compressed, in a call without grpc-encoding",
            )),
            (other, _) => Err(Status::invalid_argument(format!(
                "a message begins with {other}, expected 0, or 1 if it is compressed"
            ))),
        }
    }

    /// So many bytes, in one piece of memory.
    async fn collect(&mut self, length: usize) -> Result<Whole, Status> {
        let local = self.local.clone();
        let shared = &local.shared;
        if self.rest.is_empty() && length > 0 {
            self.rest = self.piece(Some(NEXT_BYTE)).await?.ok_or_else(cut_off)?;
        }
        if self.rest.len() >= length {
            // It came in one frame.
            let bytes = self.rest.split_to(length);
            return Whole::of(bytes, Reserved::none(shared)).map_err(status);
        }
        let first_raw = request::first_raw(&self.rest);
        let before = first_raw.map_or(0, |at| at.wrapping_neg() % ALIGNMENT);
        let mut whole = Growing::announced(Reserved::coming(shared), before, length as u64);
        loop {
            let left = length - whole.len();
            let piece = self.rest.split_to(self.rest.len().min(left));
            whole.push(&piece).map_err(refused)?;
            if piece.len() == left {
                return Ok(whole.finish());
            }
            let next = whole.next(&mut self.body).await.map_err(refused)?;
            self.rest = next.ok_or_else(cut_off)?;
        }
    }

    async fn piece(&mut self, patience: Option<Duration>) -> Result<Option<Bytes>, Status> {
        next(&mut self.body, patience).await.map_err(refused)
    }
}

fn cut_off() -> Status {
    Status::invalid_argument("the call has ended in the midst of a message")
}

/// What a call is told whose message cannot be had.
fn refused(why: Unread) -> Status {
    status(match why {
        Unread::Refused(error) => error,
        Unread::Silent(time) => {
            return Status::deadline_exceeded(format!(
                "no byte of the message has come for {} s",
                time.as_secs()
            ));
        }
        Unread::Broken(error) => {
            return Status::cancelled(format!("the call cannot be read: {error}"));
        }
        Unread::TooLong {
            bytes: Some(bytes),
            most,
        } => Error::exhausted(format!(
            "the message has {bytes} bytes, and at most {most} are taken here (--max-request-bytes, if it has tensors)"
        )),
        // It was as long as it said: there are more once it is inflated.
        Unread::TooLong { bytes: None, most } => Error::exhausted(format!(
            "the message has more than {most} bytes when it is inflated (--max-request-bytes)"
        )),
    })
}
