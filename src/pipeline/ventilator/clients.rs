//! Sessions, as far as requests need them: ids ascend, and what is open can be found.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::message::{ReplyTo, RequestId, Serial};

/// Idle sessions that are remembered. Sessions that end say nothing, so what is idle has to go at some point; all
/// that is lost is the check that the next id ascends.
const MAX_IDLE: usize = 65_536;

/// Places for open requests that an idle session keeps.
const KEPT_PLACES: usize = 64;

#[derive(Default)]
struct Session {
    last: Option<RequestId>,
    open: HashMap<RequestId, Serial>,
}

/// The sessions that have sent an infer.
#[derive(Default)]
pub(super) struct Clients {
    sessions: HashMap<ReplyTo, Session>,
}

impl Clients {
    /// A request arrives.
    pub(super) fn begin(&mut self, reply: ReplyTo, request: RequestId) -> Result<()> {
        if self.sessions.len() > MAX_IDLE {
            self.sessions.retain(|_, session| !session.open.is_empty());
        }
        let session = self.sessions.entry(reply).or_default();
        if let Some(last) = session.last.filter(|last| *last >= request) {
            return Err(Error::invalid(format!(
                "request id {request} does not ascend: {last} was used in this session"
            )));
        }
        session.last = Some(request);
        Ok(())
    }

    /// It was accepted under this serial.
    pub(super) fn open(&mut self, reply: ReplyTo, request: RequestId, serial: Serial) {
        self.sessions
            .entry(reply)
            .or_default()
            .open
            .insert(request, serial);
    }

    /// It has ended.
    pub(super) fn end(&mut self, reply: ReplyTo, request: RequestId) {
        if let Some(session) = self.sessions.get_mut(&reply) {
            session.open.remove(&request);
            if session.open.is_empty() && session.open.capacity() > KEPT_PLACES {
                session.open = HashMap::new();
            }
        }
    }

    /// The serial of an open request.
    pub(super) fn serial(&self, reply: ReplyTo, request: RequestId) -> Option<Serial> {
        self.sessions.get(&reply)?.open.get(&request).copied()
    }

    /// The session is over: what was open in it.
    pub(super) fn forget(&mut self, reply: ReplyTo) -> Vec<Serial> {
        let session = self.sessions.remove(&reply);
        session.map_or_else(Vec::new, |s| s.open.into_values().collect())
    }
}
