//! The end of a router: what was written reaches the other ends before their connections close.

use std::time::{Duration, Instant};

use super::super::SILENCE;
use super::super::poller::{Interest, Poller};
use super::Router;
use crate::error::Result;

/// How often connections that are closing are looked at; the system does not tell when the last byte has arrived.
pub(crate) const LOOK: Duration = Duration::from_millis(5);
/// Reads of a connection on its way out before others get their turn.
const READS: usize = 64;

/// Every connection on its way out.
pub(crate) struct Leaving {
    connections: Vec<Connection>,
    /// When the rest is given up.
    until: Option<Instant>,
    /// How long a connection may take no byte.
    patience: Duration,
    /// Bytes that were given up.
    lost: u64,
}

struct Connection {
    token: u64,
    /// Bytes that had not arrived at the last look, ours and the system's.
    left: u64,
    /// When fewer of them were left than before.
    progress: Instant,
    /// All was handed to the system, and the other end was told that nothing follows.
    ended: bool,
}

enum Progress {
    Goes,
    Gone,
    GivenUp(u64),
}

impl Leaving {
    /// Whatever is left then is given up.
    pub(crate) fn give_up_at(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |before| before.min(until)));
    }
}

impl Router {
    /// Accepts nobody any more; from now on [`Router::leave`] closes the connections.
    pub(crate) fn begin_leaving(&mut self, now: Instant) -> Leaving {
        self.listeners.clear();
        self.accept_again = None;
        let tokens = self.peers.tokens().into_iter();
        Leaving {
            connections: tokens
                .map(|token| Connection {
                    token,
                    left: u64::MAX,
                    progress: now,
                    ended: false,
                })
                .collect(),
            until: None,
            patience: SILENCE,
            lost: 0,
        }
    }

    /// Writes what waits, and closes each connection when all of it has arrived; one that takes no byte for [`SILENCE`]
    /// is given up. To be called every [`LOOK`]; gives the bytes that were given up once no connection is left.
    pub(crate) fn leave(&mut self, leaving: &mut Leaving, now: Instant) -> Option<u64> {
        let over = leaving.until.is_some_and(|until| until <= now);
        let (lost, patience) = (&mut leaving.lost, leaving.patience);
        leaving.connections.retain_mut(|connection| {
            match self.let_go(connection, now, over, patience) {
                Progress::Goes => return true,
                Progress::Gone => {}
                Progress::GivenUp(bytes) => *lost += bytes,
            }
            false
        });
        leaving.connections.is_empty().then_some(*lost)
    }

    /// All of that, waiting for it.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn finish(&mut self, most: Option<Duration>) -> Result<u64> {
        self.finish_with(most, SILENCE)
    }

    /// [`Router::finish`] with another patience.
    pub(super) fn finish_with(
        &mut self,
        most: Option<Duration>,
        patience: Duration,
    ) -> Result<u64> {
        let begun = Instant::now();
        let mut leaving = self.begin_leaving(begun);
        leaving.patience = patience;
        if let Some(most) = most {
            leaving.give_up_at(begun + most);
        }
        self.forget_inner();
        loop {
            if let Some(lost) = self.leave(&mut leaving, Instant::now()) {
                return Ok(lost);
            }
            // Nobody takes what still comes.
            self.inbox.clear();
            self.readable.clear();
            self.poller.wait(Some(LOOK), |_| {})?;
        }
    }

    /// Waits for connections alone from now on: nobody takes what comes at inner sockets, which would end each wait at
    /// once.
    fn forget_inner(&mut self) {
        // Without a descriptor for another poller the one that is there has to do.
        let Ok(poller) = Poller::new() else {
            return;
        };
        for (token, peer) in self.peers.iter_mut() {
            // One that cannot be waited for is looked at like the others.
            let _ = poller.add(&peer.connection, token, peer.interest);
        }
        self.poller = poller;
    }

    fn let_go(
        &mut self,
        leaving: &mut Connection,
        now: Instant,
        over: bool,
        patience: Duration,
    ) -> Progress {
        let token = leaving.token;
        // What still comes is read, since closing over unread bytes would throw away what has not arrived.
        let mut reads = 0;
        while reads < READS && self.read(token, now) {
            reads += 1;
        }
        if !leaving.ended {
            self.write(token, now);
        }
        let Some(peer) = self.peers.get_mut(token) else {
            return Progress::Gone;
        };
        // Behind the end of the stream nothing is written any more, a PONG neither.
        let waiting = match leaving.ended {
            true => 0,
            false => peer.connection.waiting_bytes(),
        };
        let left = waiting + peer.connection.unsent_bytes();
        if left < leaving.left {
            (leaving.left, leaving.progress) = (left, now);
        }
        if left == 0 || !peer.connection.is_ready() {
            self.drop_peer(token);
            return Progress::Gone;
        }
        if over || now.saturating_duration_since(leaving.progress) >= patience {
            self.drop_peer(token);
            return Progress::GivenUp(left);
        }
        if waiting == 0 && !leaving.ended {
            leaving.ended = true;
            peer.connection.end_writing();
            // Only its last bytes are waited for, at which nothing wakes us.
            peer.interest = Interest::Nothing;
            let changed = self
                .poller
                .change(&peer.connection, token, Interest::Nothing);
            if changed.is_err() {
                self.drop_peer(token);
                return Progress::GivenUp(left);
            }
        }
        Progress::Goes
    }
}
