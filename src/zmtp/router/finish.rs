//! The end of a router: what was written reaches the other ends before their connections close.

use std::time::{Duration, Instant};

use super::super::SILENCE;
use super::super::poller::{Interest, Poller};
use super::Router;
use crate::error::Result;

/// How often connections that are closing are looked at; the system does not tell when the last byte has arrived.
const LOOK: Duration = Duration::from_millis(5);

/// Reads of a connection at one look.
const MOST_READS: usize = 64;

/// A connection on its way out.
struct Leaving {
    token: u64,
    /// Bytes that had not arrived at the last look, ours and the system's.
    left: u64,
    /// When fewer of them were left than before.
    progress: Instant,
    /// All was handed to the system, and the other end was told that nothing follows.
    ended: bool,
}

impl Router {
    /// Writes what waits, and closes each connection when all of it has arrived. A connection that takes no byte for
    /// [`SILENCE`] is given up, and so is what is left after `most`. Returns the bytes that were given up.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn finish(&mut self, most: Option<Duration>) -> Result<u64> {
        self.finish_with(most, SILENCE)
    }

    /// [`Router::finish`] with another patience.
    pub(super) fn finish_with(&mut self, most: Option<Duration>, silence: Duration) -> Result<u64> {
        let begun = Instant::now();
        self.listeners.clear();
        self.forget_inner();
        let leaving = |token| Leaving {
            token,
            left: u64::MAX,
            progress: begun,
            ended: false,
        };
        let mut all: Vec<Leaving> = self.peers.tokens().into_iter().map(leaving).collect();
        let mut lost = 0;
        loop {
            let now = Instant::now();
            let over = most.is_some_and(|most| now - begun >= most);
            all.retain_mut(|leaving| match self.let_go(leaving, now, over, silence) {
                Progress::Goes => true,
                Progress::Gone => false,
                Progress::GivenUp(bytes) => {
                    lost += bytes;
                    false
                }
            });
            if all.is_empty() {
                return Ok(lost);
            }
            self.readable.clear();
            self.poller.wait(Some(LOOK), |_| {})?;
        }
    }

    /// Waits for connections alone from now on: nobody takes what comes at inner sockets, which would end each wait at once.
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
        leaving: &mut Leaving,
        now: Instant,
        over: bool,
        silence: Duration,
    ) -> Progress {
        let token = leaving.token;
        // What still comes is read, since closing over unread bytes would throw away what has not arrived. Nobody takes it.
        let mut reads = 0;
        while reads < MOST_READS && self.read(token, now) {
            self.inbox.clear();
            reads += 1;
        }
        self.inbox.clear();
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
        if over || now.saturating_duration_since(leaving.progress) >= silence {
            self.drop_peer(token);
            return Progress::GivenUp(left);
        }
        if waiting == 0 && !leaving.ended {
            leaving.ended = true;
            peer.connection.end_writing();
            // Only its last bytes are waited for, at which nothing wakes us.
            peer.interest = Interest::Nothing;
            if self
                .poller
                .change(&peer.connection, token, Interest::Nothing)
                .is_err()
            {
                self.drop_peer(token);
                return Progress::GivenUp(left);
            }
        }
        Progress::Goes
    }
}

enum Progress {
    Goes,
    Gone,
    GivenUp(u64),
}
