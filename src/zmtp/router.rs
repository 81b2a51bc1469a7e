//! A ROUTER's end: many connections by routing id, polled in one epoll with the owner's inner sockets.
//!
//! ```text
//! wait ─▶ which connections can be read, written, accepted      next ─▶ a message, or the end of a session
//! send ─▶ gathered per connection ─▶ flush: one write a turn    tick ─▶ once a second: heartbeats, deadlines, bounds
//! ```
//! It belongs to one thread, which calls these in turn and never waits but in [`Router::wait`]. Each connection has a
//! [`ReplyTo`]: its own routing id where that is one of this protocol's, else a number that nobody else has.

mod finish;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub(crate) use self::finish::{LOOK, Leaving};
use self::peers::Peers;
use super::codec::Limits;
use super::connection::{Announce, Connection, End, News, READ_BYTES};
use super::mechanism::{Null, SocketType};
use super::outgoing::Outgoing;
use super::poller::{Interest, Poller, Ready};
use super::stream::{Listener, Stream};
use super::{HANDSHAKE, SILENCE};
use crate::error::Result;
use crate::message::ReplyTo;

/// What a router takes of its peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of one message.
    pub message: Limits,
    /// Bytes of all messages that have not come to their end.
    pub unfinished_bytes: u64,
    /// Connections at once.
    pub connections: usize,
    /// A peer with so many bytes that it does not read is not read from.
    pub unread_bytes: u64,
}

/// What came from a peer.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ReplyTo, Vec<Bytes>),
    /// Its connection is over; nothing more comes of it.
    Closed(ReplyTo),
    /// It should have given a sign of life long ago. It stays until the owner closes it.
    Silent(ReplyTo),
}

/// The peer is not connected (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Connections that are accepted before others get their turn.
const ACCEPT_TURN: usize = 64;
/// How long nobody is accepted after the system had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often [`Router::tick`] looks at all connections.
const TICK: Duration = Duration::from_secs(1);
/// The owner did not listen for so long: what has come lies unread, and nobody is judged by what was heard.
const ABSENCE: Duration = Duration::from_secs(3);
/// Messages of fewer bytes are given up only if there are no larger ones.
const WORTH_BYTES: u64 = 64 * 1024;
/// Reads of a connection that is about to be forgotten: complete messages that have come still count.
const LAST_READS: usize = 64;

/// What a token of the poller stands for besides connections.
const LISTENER: u64 = 1 << 62;
const INNER: u64 = 1 << 63;

/// The server's end of many connections.
pub(crate) struct Router {
    /// The flag of its port, for the log.
    name: &'static str,
    bounds: Bounds,
    poller: Poller,
    listeners: Vec<Listener>,
    peers: Peers,
    /// Connections that can be read.
    readable: VecDeque<u64>,
    /// Connections with something to write.
    unwritten: Vec<u64>,
    /// What was read and not taken yet.
    inbox: VecDeque<Incoming>,
    scratch: Vec<u8>,
    /// One of the owner's descriptors could be read.
    inner_news: bool,
    unfinished_bytes: u64,
    accept_again: Option<Instant>,
    last_tick: Instant,
    /// Connections that were turned away since the last word about it.
    turned_away: u64,
    said_at: Option<Instant>,
}

impl Router {
    /// A router that listens nowhere yet.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no descriptor is left.
    pub(crate) fn new(name: &'static str, bounds: Bounds) -> Result<Router> {
        Ok(Router {
            name,
            bounds,
            poller: Poller::new()?,
            listeners: Vec::new(),
            peers: Peers::default(),
            readable: VecDeque::new(),
            unwritten: Vec::new(),
            inbox: VecDeque::new(),
            scratch: Vec::with_capacity(READ_BYTES),
            inner_news: true,
            unfinished_bytes: 0,
            accept_again: None,
            last_tick: Instant::now(),
            turned_away: 0,
            said_at: None,
        })
    }

    /// Accepts connections there from now on.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn listen(&mut self, listener: Listener) -> Result<()> {
        let token = LISTENER | self.listeners.len() as u64;
        self.poller.add(&listener, token, Interest::Read)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Ends [`Router::wait`] when that descriptor can be read. It must stay open for as long as the router is used.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn watch(&mut self, source: impl AsFd) -> Result<()> {
        self.poller.add(source, INNER, Interest::Read)
    }

    /// Whether one of the owner's descriptors could be read since the last question, or at the start. A look at a socket
    /// of libzmq's is a system call, which is saved where nothing can have come.
    pub(crate) fn take_inner_news(&mut self) -> bool {
        std::mem::take(&mut self.inner_news)
    }

    /// Whether there is something to do without waiting.
    pub(crate) fn has_news(&self) -> bool {
        self.inner_news || self.has_input()
    }

    /// The owner has left something unread.
    pub(crate) fn keep_inner_news(&mut self) {
        self.inner_news = true;
    }

    /// Whether something was read, or can be read, that nobody has taken yet.
    pub(crate) fn has_input(&self) -> bool {
        !self.inbox.is_empty() || !self.readable.is_empty()
    }

    /// Waits until there is something to do, or the time is over; not at all while [`Router::has_input`]. `false`:
    /// nothing came.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let (mut news, mut accepts) = (self.has_input(), 0u64);
        let timeout = if news { Some(Duration::ZERO) } else { timeout };
        let (peers, readable, unwritten) =
            (&mut self.peers, &mut self.readable, &mut self.unwritten);
        let inner_news = &mut self.inner_news;
        self.poller.wait(timeout, |ready: Ready| {
            news = true;
            if ready.token & INNER != 0 {
                *inner_news = true;
                return;
            }
            if ready.token & LISTENER != 0 {
                accepts |= 1 << (ready.token & 63);
                return;
            }
            let Some(peer) = peers.get_mut(ready.token) else {
                return;
            };
            if ready.read && !std::mem::replace(&mut peer.is_readable, true) {
                readable.push_back(ready.token);
            }
            if ready.write && !std::mem::replace(&mut peer.is_unwritten, true) {
                unwritten.push(ready.token);
            }
        })?;
        if accepts > 0 {
            let now = Instant::now();
            for index in 0..self.listeners.len() {
                if accepts & 1 << index != 0 {
                    self.accept(index, now);
                }
            }
        }
        Ok(news)
    }

    fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPT_TURN {
            match self.listeners[index].accept() {
                Ok(Some(stream)) if self.peers.len() < self.bounds.connections => {
                    self.begin(stream, now);
                }
                // It learns at once that there is no room.
                Ok(Some(_)) => self.turn_away(now),
                Ok(None) => return,
                Err(e) if is_connection_error(&e) => {}
                Err(e) => {
                    if self.may_say(now) {
                        tracing::warn!(port = self.name, %e, "no connection can be accepted; tried again in a moment");
                    }
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    self.set_accepting(Interest::Nothing);
                    return;
                }
            }
        }
    }

    fn set_accepting(&mut self, interest: Interest) {
        for (index, listener) in self.listeners.iter().enumerate() {
            let token = LISTENER | index as u64;
            if let Err(error) = self.poller.change(listener, token, interest) {
                tracing::error!(port = self.name, %error, "connections cannot be accepted");
            }
        }
    }

    fn turn_away(&mut self, now: Instant) {
        self.turned_away += 1;
        if self.may_say(now) {
            tracing::warn!(
                port = self.name,
                connections = self.peers.len(),
                turned_away = self.turned_away,
                "connections were turned away: --max-sessions is reached"
            );
            self.turned_away = 0;
        }
    }

    /// Whether a word about connections that cannot be had is due: one a second is enough.
    fn may_say(&mut self, now: Instant) -> bool {
        let is_due = |at| now.saturating_duration_since(at) >= Duration::from_secs(1);
        let may = self.said_at.is_none_or(is_due);
        if may {
            self.said_at = Some(now);
        }
        may
    }

    fn begin(&mut self, stream: Stream, now: Instant) {
        let mechanism = Box::new(Null::new(SocketType::Router, Bytes::new()));
        let connection =
            Connection::new(stream, mechanism, Announce::V31, self.bounds.message, now);
        let token = self.peers.insert(connection, now);
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        if let Err(error) = self.poller.add(&peer.connection, token, Interest::Read) {
            tracing::warn!(port = self.name, %error, "a connection cannot be waited for; it was closed");
            self.peers.remove(token);
            return;
        }
        self.mark_unwritten(token);
    }

    fn mark_unwritten(&mut self, token: u64) {
        if let Some(peer) = self.peers.get_mut(token)
            && !std::mem::replace(&mut peer.is_unwritten, true)
        {
            self.unwritten.push(token);
        }
    }

    /// The next message, or end of a session, of what can be read. Each connection is read once, in turn.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Incoming> {
        loop {
            if let Some(incoming) = self.inbox.pop_front() {
                return Some(incoming);
            }
            let token = self.readable.pop_front()?;
            if let Some(peer) = self.peers.get_mut(token) {
                peer.is_readable = false;
                if !peer.connection.is_paused() {
                    self.read(token, now);
                }
            }
        }
    }

    /// Reads once. `false` if nothing was there, or the connection is over.
    fn read(&mut self, token: u64, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(token) else {
            return false;
        };
        let before = peer.connection.unfinished_bytes();
        let (inbox, reply) = (&mut self.inbox, peer.reply);
        let mut asked_for = None;
        let mut early = Vec::new();
        let result = peer
            .connection
            .read(&mut self.scratch, now, |news| match (news, reply) {
                (News::Message(frames), Some(reply)) => {
                    inbox.push_back(Incoming::Message(reply, frames))
                }
                // Behind the handshake in the same bytes.
                (News::Message(frames), None) => early.push(frames),
                (News::Ready(identity), _) => asked_for = Some(identity),
            });
        let after = peer.connection.unfinished_bytes();
        peer.note_gain(before, after);
        let has_answers = peer.connection.waiting_bytes() > 0;
        self.unfinished_bytes = self.unfinished_bytes + after - before;
        if let Some(identity) = asked_for {
            match self.peers.name(token, &identity) {
                Some(reply) => {
                    let early = early.into_iter();
                    self.inbox
                        .extend(early.map(|frames| Incoming::Message(reply, frames)));
                }
                None => {
                    tracing::warn!(
                        port = self.name,
                        "a connection claimed a routing id that is in use; it was closed"
                    );
                    self.drop_peer(token);
                    return false;
                }
            }
        }
        match result {
            Ok(more) => {
                if has_answers {
                    self.mark_unwritten(token);
                }
                if self.unfinished_bytes > self.bounds.unfinished_bytes {
                    self.shed();
                }
                more
            }
            Err(end) => {
                self.end(token, &end);
                false
            }
        }
    }

    fn end(&mut self, token: u64, end: &End) {
        match end {
            // Whoever scans ports makes many of these: one a second is enough.
            End::Violation(violation) if self.may_say(Instant::now()) => {
                tracing::warn!(port = self.name, %violation, "a connection was closed");
            }
            End::Violation(_) | End::Closed | End::Io(_) => {
                tracing::debug!(port = self.name, %end, "a connection ended")
            }
        }
        self.drop_peer(token);
    }

    /// Forgets a connection, and tells its owner if it had a name.
    fn drop_peer(&mut self, token: u64) {
        if let Some(peer) = self.peers.remove(token) {
            self.poller.remove(token);
            self.unfinished_bytes -= peer.connection.unfinished_bytes();
            if let Some(reply) = peer.reply {
                self.inbox.push_back(Incoming::Closed(reply));
            }
        }
    }

    /// Gives up unfinished messages until the rest are within the bound: those that gained least of late go first. A
    /// large message that is the only one stays; its own bound holds for it.
    fn shed(&mut self) {
        while self.unfinished_bytes > self.bounds.unfinished_bytes {
            let Some((token, bytes)) = self
                .peers
                .slowest(WORTH_BYTES, self.bounds.unfinished_bytes)
            else {
                return;
            };
            tracing::warn!(
                port = self.name,
                bytes,
                "too much is unfinished on all connections (--max-unfinished-bytes): the one that came slowest was closed"
            );
            self.drop_peer(token);
        }
    }

    /// Whether a peer is connected.
    pub(crate) fn is_connected(&self, to: ReplyTo) -> bool {
        self.peers.token(to).is_some()
    }

    /// Queues a message for a peer; [`Router::flush`] writes it.
    ///
    /// # Errors
    /// The peer is not connected.
    pub(crate) fn send(
        &mut self,
        to: ReplyTo,
        frames: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), Gone> {
        self.send_with(to, |outgoing| outgoing.push_message(frames))
    }

    /// As [`Router::send`], of a message that the caller lays out by itself.
    ///
    /// # Errors
    /// The peer is not connected.
    pub(crate) fn send_with(
        &mut self,
        to: ReplyTo,
        push: impl FnOnce(&mut Outgoing),
    ) -> Result<(), Gone> {
        let token = self.peers.token(to).ok_or(Gone)?;
        let peer = self.peers.get_mut(token).ok_or(Gone)?;
        push(peer.connection.outgoing());
        if !std::mem::replace(&mut peer.is_unwritten, true) {
            self.unwritten.push(token);
        }
        Ok(())
    }

    /// Bytes that a peer has still to be sent.
    pub(crate) fn waiting_bytes(&self, to: ReplyTo) -> u64 {
        let peer = self.peers.token(to).and_then(|token| self.peers.get(token));
        peer.map_or(0, |peer| peer.connection.waiting_bytes())
    }

    /// Whether a sign of life came from a peer in the last [`SILENCE`].
    pub(crate) fn is_alive(&self, of: ReplyTo, now: Instant) -> bool {
        let peer = self.peers.token(of).and_then(|token| self.peers.get(token));
        peer.is_some_and(|peer| now.saturating_duration_since(peer.connection.alive()) < SILENCE)
    }

    /// Writes what was queued, as far as connections take it; the rest leaves when they do.
    pub(crate) fn flush(&mut self, now: Instant) {
        let mut unwritten = std::mem::take(&mut self.unwritten);
        for token in unwritten.drain(..) {
            self.write(token, now);
        }
        // Ends of connections may have queued nothing here: the memory is for the next turn.
        if self.unwritten.is_empty() {
            self.unwritten = unwritten;
        }
    }

    fn write(&mut self, token: u64, now: Instant) {
        let Some(peer) = self.peers.get_mut(token) else {
            return;
        };
        peer.is_unwritten = false;
        match peer.connection.write(now) {
            Ok(done) => {
                let paused = peer.connection.waiting_bytes() > self.bounds.unread_bytes;
                peer.connection.pause(paused, now);
                let interest = match (paused, done) {
                    (false, true) => Interest::Read,
                    (false, false) => Interest::Both,
                    (true, true) => Interest::Nothing,
                    (true, false) => Interest::Write,
                };
                if std::mem::replace(&mut peer.interest, interest) != interest
                    && let Err(error) = self.poller.change(&peer.connection, token, interest)
                {
                    tracing::warn!(port = self.name, %error, "a connection cannot be waited for; it was closed");
                    self.drop_peer(token);
                }
            }
            Err(end) => {
                // The other end has left; what it said before counts.
                self.read_rest(token, now);
                self.end(token, &end);
            }
        }
    }

    /// Ends a session's connection from this side. Complete messages that have come are still given; what waits to be
    /// written is dropped.
    pub(crate) fn close(&mut self, of: ReplyTo, now: Instant) {
        let Some(token) = self.peers.token(of) else {
            return;
        };
        self.read_rest(token, now);
        self.drop_peer(token);
    }

    /// Takes the messages that have come to a connection which is about to be forgotten.
    fn read_rest(&mut self, token: u64, now: Instant) {
        for _ in 0..LAST_READS {
            if !self.read(token, now) {
                break;
            }
        }
    }

    /// When [`Router::tick`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        let tick = (!self.peers.is_empty()).then(|| self.last_tick + TICK);
        tick.into_iter().chain(self.accept_again).min()
    }

    /// Looks, once a second, for handshakes that take too long and for silence.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.set_accepting(Interest::Read);
        }
        let since = now.saturating_duration_since(self.last_tick);
        if since < TICK {
            return;
        }
        self.last_tick = now;
        let was_absent = since >= ABSENCE;
        let mut late = Vec::new();
        let mut asked = Vec::new();
        for (token, peer) in self.peers.iter_mut() {
            peer.shift_gains();
            if was_absent {
                peer.connection.excuse(now);
                continue;
            }
            if !peer.connection.is_ready() {
                if now.saturating_duration_since(peer.since) >= HANDSHAKE {
                    late.push(token);
                }
                continue;
            }
            let waited = peer.connection.waiting_bytes();
            if peer.connection.is_silent(now)
                && let Some(reply) = peer.reply
            {
                self.inbox.push_back(Incoming::Silent(reply));
            }
            if peer.connection.waiting_bytes() > waited {
                asked.push(token);
            }
        }
        for token in late {
            tracing::debug!(
                port = self.name,
                "a connection did not end its handshake in time; it was closed"
            );
            self.drop_peer(token);
        }
        for token in asked {
            self.mark_unwritten(token);
        }
    }
}

/// Whether it is the one connection that failed, and not accepting itself.
fn is_connection_error(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::InvalidInput
    )
}
