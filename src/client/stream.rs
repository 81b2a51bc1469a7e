//! The parts of a streamed result, as they finish.

use std::time::Instant;

use super::Client;
use super::call::gave_up;
use super::response::Part;
use super::session::{Next, Session};
use crate::error::{Error, Result};
use crate::message::{RequestId, Stats};
use crate::tensor::Batch;
use crate::wire::server::ServerMessage;

/// The parts of one answer, in the order in which they finish. Dropping it early takes the request back.
///
/// A model without a batch dimension gives its outputs whole: one part.
pub struct Parts<'a> {
    client: &'a Client,
    /// `None` once it is back in the client's pool.
    session: Option<Session>,
    id: RequestId,
    deadline: Option<Instant>,
    /// The parts of a result that came whole.
    rest: std::vec::IntoIter<Batch>,
    next_row: u64,
    end: Option<(Option<u64>, Stats)>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(
        client: &'a Client,
        session: Session,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Parts<'a> {
        Parts {
            client,
            session: Some(session),
            id,
            deadline,
            rest: Vec::new().into_iter(),
            next_row: 0,
            end: None,
        }
    }

    /// How long the request took, and in how many chunks; known once the last part has come.
    pub fn stats(&self) -> Option<Stats> {
        self.end.map(|(_, stats)| stats)
    }

    /// The number of rows of the whole answer; known once the last part has come. `None` for a model without a batch
    /// dimension, whose one part is all of the answer.
    pub fn rows(&self) -> Option<u64> {
        self.end.and_then(|(rows, _)| rows)
    }

    fn finish(&mut self) {
        if let Some(session) = self.session.take() {
            self.client.pool.give_back(session);
        }
    }

    fn next_of_rest(&mut self) -> Option<Part> {
        let outputs = self.rest.next()?;
        let offset = self.next_row;
        self.next_row += outputs.row_count().unwrap_or(0) as u64;
        Some(Part {
            offset,
            outputs,
            // What comes whole are the outputs of a model that no row of can fail by itself.
            failed: Vec::new(),
        })
    }
}

impl Iterator for Parts<'_> {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Result<Part>> {
        if let Some(part) = self.next_of_rest() {
            return Some(Ok(part));
        }
        loop {
            let message = match self.session.as_mut()?.next(self.deadline) {
                Ok(Next::Message(id, message)) if id == self.id => message,
                Ok(Next::Message(..)) => continue,
                Ok(Next::TimedOut) => {
                    self.take_back();
                    return Some(Err(gave_up()));
                }
                Err(e) => {
                    self.finish();
                    return Some(Err(e));
                }
            };
            match message {
                ServerMessage::Part(offset, outputs) => {
                    return Some(Ok(Part {
                        offset,
                        failed: outputs.failed,
                        outputs: outputs.parts.into_iter().next().unwrap_or_default(),
                    }));
                }
                ServerMessage::End(rows, stats) => {
                    self.end = Some((Some(rows), stats));
                    self.finish();
                    return None;
                }
                ServerMessage::Result(outputs, stats) => {
                    let rows: usize = outputs.parts.iter().filter_map(Batch::row_count).sum();
                    self.end = Some((outputs.batched.then_some(rows as u64), stats));
                    self.rest = outputs.parts.into_iter();
                    self.finish();
                    return self.next_of_rest().map(Ok);
                }
                ServerMessage::Error(e) => {
                    self.finish();
                    return Some(Err(e));
                }
                _ => {
                    self.take_back();
                    return Some(Err(Error::internal(
                        "the server answered an infer with a message that is neither a part, a result nor an error",
                    )));
                }
            }
        }
    }
}

impl Parts<'_> {
    fn take_back(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_cancel(self.id);
        }
        // Parts that still arrive are dropped when the session is next used.
        self.finish();
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        self.take_back();
    }
}
