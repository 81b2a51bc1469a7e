//! The server's end of ZMTP: many connections by routing id, polled in one epoll with the owner's inner sockets.
//!
//! ```text
//! wait ─▶ which connections can be read, written, accepted      next ─▶ a message, or the end of a connection
//! send ─▶ gathered per connection ─▶ flush: one write a turn    tick ─▶ once a second: heartbeats, deadlines, bounds
//! ```
//! It belongs to one thread, which calls these in turn and blocks only in [`Router::wait`]. Each connection has a
//! [`ReplyTo`]: its own routing id where that has the 16 bytes of this protocol's, else a unique number.

mod finish;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub(crate) use self::finish::{CLOSE_EVERY, Closing};
use self::peers::{Peer, Peers};
use super::codec::Limits;
use super::connection::{
    Announced, Connection, ConnectionSetup, End, PeerEvent, READ_BYTES, Reading,
};
use super::mechanism::{Null, SocketType};
use super::outgoing::Outgoing;
use super::poller::{Interest, Poller, Ready};
use super::stream::{Listener, Stream, is_connection_error};
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
    /// A peer that leaves more bytes of answers unread than this is not read from.
    pub unread_bytes: u64,
}

/// What came from a peer.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ReplyTo, Vec<Bytes>),
    /// Its connection is over: nothing more comes from it.
    Closed(ReplyTo),
    /// It has shown no sign of life for [`SILENCE`]. It stays connected until the owner closes it.
    Silent(ReplyTo),
}

/// The peer is not connected, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotConnected;

/// Most connections that are accepted in a row, before those that exist get their turn.
const ACCEPT_TURN: usize = 64;
/// How long accepting pauses after the system had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often [`Router::tick`] checks all connections.
const TICK: Duration = Duration::from_secs(1);
/// If the owner did not call for so long, what peers sent lies unread, and their silence does not count.
const OWNER_AWAY: Duration = Duration::from_secs(3);
/// Unfinished messages of fewer bytes are given up only if there are no larger ones.
const LARGE_UNFINISHED_BYTES: u64 = 64 * 1024;
/// Most reads of a connection before it is closed: messages that have arrived in full still count.
const READS_BEFORE_CLOSE: usize = 64;

/// Bits of a poller's token that mark what is not a connection.
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
    /// Connections that can be read, in the order in which they are.
    readable: VecDeque<u64>,
    /// Connections with something to write.
    unwritten: Vec<u64>,
    /// What was read and not yet returned by [`Router::next`].
    inbox: VecDeque<Incoming>,
    /// The buffer of all reads.
    scratch: Vec<u8>,
    /// One of the owner's descriptors could be read.
    inner_readable: bool,
    unfinished_bytes: u64,
    /// Bytes that waited on connections which have ended.
    unwritten_bytes: u64,
    accept_again: Option<Instant>,
    last_tick: Instant,
    /// Connections that were rejected since this was last logged.
    rejected: u64,
    logged_at: Option<Instant>,
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
            inner_readable: true,
            unfinished_bytes: 0,
            unwritten_bytes: 0,
            accept_again: None,
            last_tick: Instant::now(),
            rejected: 0,
            logged_at: None,
        })
    }

    /// Accepts connections from this listener from now on.
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

    /// Whether one of the owner's descriptors could be read since the last call; true at the first call. Asking a libzmq
    /// socket costs a system call, which is saved when nothing can have arrived.
    pub(crate) fn take_inner_readable(&mut self) -> bool {
        std::mem::take(&mut self.inner_readable)
    }

    /// Whether there is something to do without waiting.
    pub(crate) fn has_work(&self) -> bool {
        self.inner_readable || self.has_input()
    }

    /// The owner has left something unread: the next [`Router::take_inner_readable`] is true again.
    pub(crate) fn keep_inner_readable(&mut self) {
        self.inner_readable = true;
    }

    /// Whether something was read, or can be read, that [`Router::next`] has not returned.
    pub(crate) fn has_input(&self) -> bool {
        !self.inbox.is_empty() || !self.readable.is_empty()
    }

    /// Waits until there is something to do, or for the timeout; not at all while [`Router::has_input`]. Returns whether
    /// there is something to do.
    ///
    /// # Errors
    /// The poller's.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let (mut ready_any, mut accepts) = (self.has_input(), 0u64);
        let timeout = if ready_any {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        let (peers, readable, unwritten) =
            (&mut self.peers, &mut self.readable, &mut self.unwritten);
        let inner_readable = &mut self.inner_readable;
        self.poller.wait(timeout, |ready: Ready| {
            ready_any = true;
            if ready.token & INNER != 0 {
                *inner_readable = true;
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
        Ok(ready_any)
    }

    fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPT_TURN {
            match self.listeners[index].accept() {
                Ok(Some(stream)) if self.peers.len() < self.bounds.connections => {
                    self.add(stream, now);
                }
                // Dropped, which closes it: the peer learns at once that there is no room.
                Ok(Some(_)) => self.reject(now),
                Ok(None) => return,
                Err(e) if is_connection_error(&e) => {}
                Err(e) => {
                    if self.may_log(now) {
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

    fn reject(&mut self, now: Instant) {
        self.rejected += 1;
        if self.may_log(now) {
            tracing::warn!(
                port = self.name,
                connections = self.peers.len(),
                turned_away = self.rejected,
                "connections were turned away: --max-sessions is reached"
            );
            self.rejected = 0;
        }
    }

    /// Whether a rejected or failed connection may be logged now: at most one line a second.
    fn may_log(&mut self, now: Instant) -> bool {
        let is_due = |at| now.saturating_duration_since(at) >= Duration::from_secs(1);
        let may = self.logged_at.is_none_or(is_due);
        if may {
            self.logged_at = Some(now);
        }
        may
    }

    fn add(&mut self, stream: Stream, now: Instant) {
        let mechanism = Box::new(Null::new(SocketType::Router, Bytes::new()));
        let connection = Connection::new(ConnectionSetup {
            stream,
            mechanism,
            announced: Announced::V31,
            limits: self.bounds.message,
            now,
        });
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

    /// The next message, or the end of a connection. Connections that can be read are read once each, in turn.
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

    /// Reads a connection once. Returns whether there may be more to read.
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
            .read(&mut self.scratch, now, |event| match (event, reply) {
                (PeerEvent::Message(frames), Some(reply)) => {
                    inbox.push_back(Incoming::Message(reply, frames))
                }
                // It arrived in the same bytes as the end of the handshake.
                (PeerEvent::Message(frames), None) => early.push(frames),
                (PeerEvent::Ready(identity), _) => asked_for = Some(identity),
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
                    self.close_slowest();
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
            // A scan of ports makes many of these: one a second is logged.
            End::Violation(violation) if self.may_log(Instant::now()) => {
                tracing::warn!(port = self.name, %violation, "a connection was closed");
            }
            End::Violation(_) | End::Closed | End::Io(_) => {
                tracing::debug!(port = self.name, %end, "a connection ended")
            }
        }
        self.drop_peer(token);
    }

    /// Closes a connection, and reports that to the owner if its handshake was done.
    fn drop_peer(&mut self, token: u64) {
        if let Some(peer) = self.peers.remove(token) {
            self.poller.remove(token);
            self.unfinished_bytes -= peer.connection.unfinished_bytes();
            self.note_unwritten(&peer.connection);
            if let Some(reply) = peer.reply {
                self.inbox.push_back(Incoming::Closed(reply));
            }
        }
    }

    /// Closes connections until the unfinished messages of the others are within the bound: those that received least
    /// lately go first. A large message that is the only one stays: the bound of one message holds for it.
    fn close_slowest(&mut self) {
        while self.unfinished_bytes > self.bounds.unfinished_bytes {
            let Some((token, bytes)) = self
                .peers
                .slowest(LARGE_UNFINISHED_BYTES, self.bounds.unfinished_bytes)
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

    /// Connections that are open.
    pub(crate) fn connections(&self) -> usize {
        self.peers.len()
    }

    /// Peers that have said who they are.
    pub(crate) fn connected(&self) -> usize {
        self.peers.named()
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
    ) -> Result<(), NotConnected> {
        self.send_with(to, |outgoing| outgoing.push_message(frames))
    }

    /// As [`Router::send`], of a message that the caller encodes itself.
    ///
    /// # Errors
    /// The peer is not connected.
    pub(crate) fn send_with(
        &mut self,
        to: ReplyTo,
        push: impl FnOnce(&mut Outgoing),
    ) -> Result<(), NotConnected> {
        let token = self.peers.token(to).ok_or(NotConnected)?;
        let peer = self.peers.get_mut(token).ok_or(NotConnected)?;
        push(peer.connection.outgoing());
        if !std::mem::replace(&mut peer.is_unwritten, true) {
            self.unwritten.push(token);
        }
        Ok(())
    }

    /// Bytes that wait to be written to a peer.
    pub(crate) fn waiting_bytes(&self, to: ReplyTo) -> u64 {
        let peer = self.peers.token(to).and_then(|token| self.peers.get(token));
        peer.map_or(0, |peer| peer.connection.waiting_bytes())
    }

    /// Whether a peer has shown a sign of life in the last [`SILENCE`].
    pub(crate) fn is_alive(&self, of: ReplyTo, now: Instant) -> bool {
        let peer = self.peers.token(of).and_then(|token| self.peers.get(token));
        let alive = |peer: &Peer| now.saturating_duration_since(peer.connection.alive()) < SILENCE;
        peer.is_some_and(|peer| peer.is_readable || alive(peer))
    }

    /// Writes what was queued, as much as the connections take; the rest when they can be written again.
    pub(crate) fn flush(&mut self, now: Instant) {
        let mut unwritten = std::mem::take(&mut self.unwritten);
        for token in unwritten.drain(..) {
            self.write(token, now);
        }
        // The vector's memory is kept for the next turn.
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
                let reading = if paused { Reading::Paused } else { Reading::On };
                peer.connection.set_reading(reading, now);
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
                // The peer has closed; what it sent before still counts.
                self.read_rest(token, now);
                self.end(token, &end);
            }
        }
    }

    /// Closes a peer's connection. Messages that have arrived in full are still returned by [`Router::next`]; what waits
    /// to be written is dropped.
    pub(crate) fn close(&mut self, of: ReplyTo, now: Instant) {
        let Some(token) = self.peers.token(of) else {
            return;
        };
        self.read_rest(token, now);
        self.drop_peer(token);
    }

    /// Reads the messages that have arrived on a connection which is about to be closed.
    fn read_rest(&mut self, token: u64, now: Instant) {
        for _ in 0..READS_BEFORE_CLOSE {
            if !self.read(token, now) {
                break;
            }
        }
    }

    /// When [`Router::tick`] is to be called next.
    pub(crate) fn due(&self) -> Option<Instant> {
        let tick = (!self.peers.is_empty()).then(|| self.last_tick + TICK);
        tick.into_iter().chain(self.accept_again).min()
    }

    /// Once a second: closes connections whose handshake takes too long, sends heartbeats, reports silent peers.
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
        let owner_was_away = since >= OWNER_AWAY;
        let mut late = Vec::new();
        let mut pinged = Vec::new();
        for (token, peer) in self.peers.iter_mut() {
            peer.shift_gains();
            // What it has sent lies unread, perhaps behind all that another one has sent.
            if owner_was_away || peer.is_readable {
                peer.connection.reset_silence(now);
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
                pinged.push(token);
            }
        }
        for token in late {
            tracing::debug!(
                port = self.name,
                "a connection did not end its handshake in time; it was closed"
            );
            self.drop_peer(token);
        }
        for token in pinged {
            self.mark_unwritten(token);
        }
    }
}
