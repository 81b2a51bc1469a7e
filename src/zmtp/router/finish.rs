//! How a router stops: connections close once all that was written has arrived at their peers.

use std::time::{Duration, Instant};

use super::super::SILENCE;
use super::super::connection::Connection;
use super::super::poller::{Interest, Poller};
use super::Router;
use crate::error::Result;

/// How often to call [`Router::close_step`]: the system does not notify when the last byte has arrived.
pub(crate) const CLOSE_EVERY: Duration = Duration::from_millis(5);
/// Most reads of a closing connection in a row, before others get their turn.
const READS: usize = 64;

/// The connections that are still to be closed.
pub(crate) struct Closing {
    connections: Vec<ClosingPeer>,
    /// When the rest is given up.
    until: Option<Instant>,
    /// How long a peer may take no byte until its connection is given up.
    stall_limit: Duration,
    /// Bytes that were given up.
    lost: u64,
}

struct ClosingPeer {
    token: u64,
    /// Bytes that had not arrived at the last step, ours and the system's.
    left: u64,
    /// When that number last fell.
    progress: Instant,
    /// All was handed to the system, and this direction of the stream is closed.
    ended: bool,
}

/// What became of a connection in one step.
enum Step {
    Open,
    Closed,
    /// It was closed while so many bytes had not arrived.
    GivenUp(u64),
}

impl Closing {
    /// Sets when what is left is given up.
    pub(crate) fn give_up_at(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |before| before.min(until)));
    }
}

impl Router {
    /// Stops accepting connections; [`Router::close_step`] closes those that exist.
    pub(crate) fn begin_closing(&mut self, now: Instant) -> Closing {
        self.listeners.clear();
        self.accept_again = None;
        self.unwritten_bytes = 0;
        let tokens = self.peers.tokens().into_iter();
        Closing {
            connections: tokens
                .map(|token| ClosingPeer {
                    token,
                    left: u64::MAX,
                    progress: now,
                    ended: false,
                })
                .collect(),
            until: None,
            stall_limit: SILENCE,
            lost: 0,
        }
    }

    /// Writes what waits, and closes each connection when all of it has arrived; one whose peer takes no byte for
    /// [`SILENCE`] is given up. To be called every [`CLOSE_EVERY`]. Once no connection is left, it returns how many bytes
    /// were given up.
    pub(crate) fn close_step(&mut self, closing: &mut Closing, now: Instant) -> Option<u64> {
        let is_over = closing.until.is_some_and(|until| until <= now);
        let stall_limit = if is_over {
            Duration::ZERO
        } else {
            closing.stall_limit
        };
        let lost = &mut closing.lost;
        closing.connections.retain_mut(|connection| {
            match self.close_one(connection, now, stall_limit) {
                Step::Open => return true,
                Step::Closed => {}
                Step::GivenUp(bytes) => *lost += bytes,
            }
            false
        });
        // Of connections that ended from the other side, or by the system, before all was written.
        *lost += std::mem::take(&mut self.unwritten_bytes);
        closing.connections.is_empty().then_some(*lost)
    }

    /// Closes all connections, and returns when that is done, after `most` at the latest.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn finish(&mut self, most: Option<Duration>) -> Result<u64> {
        self.finish_with(most, SILENCE)
    }

    /// [`Router::finish`] with another limit for peers that take no byte.
    pub(super) fn finish_with(
        &mut self,
        most: Option<Duration>,
        stall_limit: Duration,
    ) -> Result<u64> {
        let begun = Instant::now();
        let mut closing = self.begin_closing(begun);
        closing.stall_limit = stall_limit;
        if let Some(most) = most {
            closing.give_up_at(begun + most);
        }
        self.forget_inner();
        loop {
            if let Some(lost) = self.close_step(&mut closing, Instant::now()) {
                return Ok(lost);
            }
            // What still arrives is dropped: the owner has stopped.
            self.inbox.clear();
            self.readable.clear();
            self.poller.wait(Some(CLOSE_EVERY), |_| {})?;
        }
    }

    /// Stops polling the owner's inner sockets: nobody reads them any more, so they would end each wait at once.
    fn forget_inner(&mut self) {
        // Without a descriptor for a new poller the old one is used on.
        let Ok(poller) = Poller::new() else {
            return;
        };
        for (token, peer) in self.peers.iter_mut() {
            // A connection that cannot be added is still handled at each step.
            let _ = poller.add(&peer.connection, token, peer.interest);
        }
        self.poller = poller;
    }

    fn close_one(
        &mut self,
        closing: &mut ClosingPeer,
        now: Instant,
        stall_limit: Duration,
    ) -> Step {
        let token = closing.token;
        // What still arrives is read: closing a TCP stream with unread bytes discards what the peer has not received.
        let mut reads = 0;
        while reads < READS && self.read(token, now) {
            reads += 1;
        }
        if !closing.ended {
            self.write(token, now);
        }
        let Some(peer) = self.peers.get_mut(token) else {
            return Step::Closed;
        };
        let waiting = peer.connection.waiting_bytes();
        let left = waiting + peer.connection.unsent_bytes();
        if left < closing.left {
            (closing.left, closing.progress) = (left, now);
        }
        if left == 0 || !peer.connection.is_ready() {
            self.drop_peer(token);
            return Step::Closed;
        }
        if now.saturating_duration_since(closing.progress) >= stall_limit {
            return self.give_up(token, left);
        }
        if waiting == 0 && !closing.ended {
            closing.ended = true;
            peer.connection.end_writing();
            // Only the arrival of its last bytes is waited for, which the poller does not report.
            peer.interest = Interest::Nothing;
            let changed = self
                .poller
                .change(&peer.connection, token, Interest::Nothing);
            if changed.is_err() {
                return self.give_up(token, left);
            }
        }
        Step::Open
    }

    /// Counts what this connection leaves unwritten: it ends.
    pub(super) fn note_unwritten(&mut self, connection: &Connection) {
        if connection.is_ready() {
            self.unwritten_bytes += connection.waiting_bytes();
        }
    }

    /// Closes a connection, of which so many bytes have not arrived: those that were not written are among them.
    fn give_up(&mut self, token: u64, left: u64) -> Step {
        let before = self.unwritten_bytes;
        self.drop_peer(token);
        self.unwritten_bytes = before;
        Step::GivenUp(left)
    }
}
