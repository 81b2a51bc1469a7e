//! Sessions, as far as requests need them: ids ascend, and what is open can be found.

use crate::error::{Error, Result};
use crate::message::{ReplyTo, RequestId, Serial};
use crate::metrics::ByProtocol;
use foldhash::HashMap;

/// Sessions that are remembered before those are looked for that have nothing open. There are
/// never more than connections, so that this is for the unforeseen; all that is lost is the check that ids ascend.
const MIN_SWEEP: usize = 65_536;

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
    /// Sessions that were busy when idle ones were looked for last: it is done anew when there are twice as many.
    busy: usize,
}

impl Clients {
    /// A request arrives.
    pub(super) fn begin(&mut self, reply: ReplyTo, request: RequestId) -> Result<()> {
        if self.sessions.len() >= MIN_SWEEP.max(2 * self.busy) {
            self.sessions.retain(|_, session| !session.open.is_empty());
            self.busy = self.sessions.len();
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
            if session.open.is_empty() && reply.caller().is_some() {
                // A door's ids ascend by themselves, and it does not say when a caller is gone.
                self.sessions.remove(&reply);
                return;
            }
            if session.open.is_empty() && session.open.capacity() > KEPT_PLACES {
                session.open = HashMap::default();
            }
        }
    }

    /// The serial of an open request.
    pub(super) fn serial(&self, reply: ReplyTo, request: RequestId) -> Option<Serial> {
        self.sessions.get(&reply)?.open.get(&request).copied()
    }

    /// The callers of a door that have something open.
    pub(super) fn of_door(&self, door: u32) -> Vec<ReplyTo> {
        let all = self.sessions.keys().copied();
        let of_door = |reply: &ReplyTo| reply.caller().is_some_and(|(of, _)| of == door);
        all.filter(of_door).collect()
    }

    /// How many callers of doors have something open, by the kind of door.
    pub(super) fn callers(&self) -> ByProtocol<u64> {
        let mut counts = ByProtocol::default();
        for reply in self.sessions.keys().filter(|of| of.caller().is_some()) {
            *counts.of_mut(reply.protocol()) += 1;
        }
        counts
    }

    /// The session is over: what was open in it.
    pub(super) fn forget(&mut self, reply: ReplyTo) -> Vec<Serial> {
        let session = self.sessions.remove(&reply);
        session.map_or_else(Vec::new, |s| s.open.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64) -> ReplyTo {
        let mut id = [1; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        ReplyTo(id)
    }

    #[test]
    fn sessions_that_came_and_went_are_not_kept_for_ever() {
        let mut clients = Clients::default();
        for number in 0..100 {
            clients.begin(session(number), RequestId(7)).unwrap();
            clients.open(session(number), RequestId(7), Serial(number));
        }
        for number in 100..3 * MIN_SWEEP as u64 {
            clients.begin(session(number), RequestId(7)).unwrap();
        }
        assert!(clients.sessions.len() <= MIN_SWEEP);
        for number in 0..100 {
            assert!(clients.begin(session(number), RequestId(7)).is_err());
            assert_eq!(clients.forget(session(number)), [Serial(number)]);
        }
    }

    #[test]
    fn many_busy_sessions_are_not_looked_through_at_every_request() {
        let mut clients = Clients::default();
        let started = std::time::Instant::now();
        for number in 0..2 * MIN_SWEEP as u64 {
            clients.begin(session(number), RequestId(7)).unwrap();
            clients.open(session(number), RequestId(7), Serial(number));
        }
        // One look for each of the later ones would be 4 billion sessions.
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
        assert_eq!(clients.sessions.len(), 2 * MIN_SWEEP);
    }
}
