//! One connection: a stream, the reader of its bytes, what waits to be written, and when it last gave a sign of life.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::codec::{self, Decoder, Event, Limits, Violation};
use super::mechanism::Mechanism;
use super::outgoing::{MOST_SLICES, Outgoing};
use super::stream::Stream;
use super::unsent::unsent;
use super::{HEARTBEAT, SILENCE};

/// Bytes that are read at once, where they are not part of a large frame.
pub(crate) const READ_BYTES: usize = 32 * 1024;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("it was closed by the other end")]
    Closed,
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What of the events of a connection its owner has to know.
#[derive(Debug)]
pub(crate) enum News {
    /// The handshake is done; the routing id that the peer asks for.
    Ready(Bytes),
    Message(Vec<Bytes>),
}

/// Which version of the protocol this end announces.
///
/// Version 3.1 promises to answer PING at any time, which only an end that always reads can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    V30,
    V31,
}

/// How far a message is whose memory its owner lends for one call after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LentMessage {
    None,
    /// There was no room for its first byte.
    Waits,
    /// Some of it is out: nothing else may be written before its end.
    Begun,
}

pub(crate) struct Connection {
    stream: Stream,
    decoder: Decoder,
    outgoing: Outgoing,
    /// When bytes came, or arrived at the other end, for the last time.
    alive: Instant,
    /// Bytes that were handed to the system. PINGs do not count: that they arrive says nothing of who should answer.
    written: i64,
    /// How many those were at the last look at what the system still holds.
    looked_at: i64,
    /// Most of those that had arrived at the other end at any look.
    arrived: i64,
    /// The system took only a part of what was to be written.
    is_full: bool,
    /// The peer answers PINGs, or wants to be counted as lost when it is silent.
    answers_pings: bool,
    /// A PING or PONG waits to be written: there need not be a second one.
    ping_waits: bool,
    pong_waits: bool,
    /// The owner has stopped reading: what comes then is not heard, and silence says nothing.
    paused: bool,
    lent: LentMessage,
}

impl Connection {
    /// The greeting and the first command wait to be written.
    pub(crate) fn new(
        stream: Stream,
        mut mechanism: Box<dyn Mechanism>,
        announce: Announce,
        limits: Limits,
        now: Instant,
    ) -> Connection {
        let minor = match announce {
            Announce::V30 => 0,
            Announce::V31 => 1,
        };
        let mut outgoing = Outgoing::default();
        let greeting = codec::greeting(minor, mechanism.name(), false);
        let first = mechanism.first();
        outgoing.push_small(|piece| {
            piece.extend_from_slice(&greeting);
            codec::push_command(piece, &first);
        });
        Connection {
            stream,
            decoder: Decoder::new(mechanism, limits),
            outgoing,
            alive: now,
            written: 0,
            looked_at: 0,
            arrived: 0,
            is_full: false,
            answers_pings: false,
            ping_waits: false,
            pong_waits: false,
            paused: false,
            lent: LentMessage::None,
        }
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Whether the handshake is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.decoder.is_ready()
    }

    /// Bytes of messages and commands that have not been handed to the system.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.outgoing.bytes()
    }

    /// What is held of a message that has not come to its end.
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        self.decoder.unfinished_bytes()
    }

    /// Memory that is held elsewhere while nothing comes and nothing waits.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.outgoing.kept_bytes() + self.decoder.kept_bytes()
    }

    /// When bytes came, or arrived at the other end, for the last time.
    pub(crate) fn alive(&self) -> Instant {
        self.alive
    }

    /// What waits to be written, to append to; [`Connection::write`] sends it.
    pub(crate) fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Whether it is to be told when the system takes more.
    pub(crate) fn wants_room(&self) -> bool {
        self.lent != LentMessage::None || !self.outgoing.is_empty()
    }

    /// Reads what is there, at most a large frame's share or [`READ_BYTES`] at once. `false`: nothing was there.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn read(
        &mut self,
        scratch: &mut Vec<u8>,
        now: Instant,
        mut news: impl FnMut(News),
    ) -> Result<bool, End> {
        scratch.clear();
        let (buffer, is_direct) = match self.decoder.direct()? {
            Some(frame) => (frame, true),
            None => {
                scratch.reserve(READ_BYTES);
                (&mut *scratch, false)
            }
        };
        match self.stream.read_into(buffer) {
            Ok(0) => return Err(End::Closed),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e.into()),
        }
        self.alive = now;
        let behind = if is_direct {
            let (event, behind) = self.decoder.filled()?;
            if let Some(event) = event {
                self.take(event, &mut news);
            }
            behind
        } else {
            Vec::new()
        };
        let mut input = if is_direct { &behind[..] } else { &scratch[..] };
        while let Some(event) = self.decoder.feed(&mut input)? {
            self.take(event, &mut news);
        }
        Ok(true)
    }

    fn take(&mut self, event: Event, news: &mut impl FnMut(News)) {
        match event {
            Event::Message(frames) => news(News::Message(frames)),
            Event::Ready { minor, identity } => {
                self.answers_pings |= minor >= 1;
                news(News::Ready(identity));
            }
            Event::Say(command) => self
                .outgoing
                .push_small(|piece| codec::push_command(piece, &command)),
            Event::Ping { ttl, context } => {
                // A time to live of 0 asks for nothing but the answer.
                self.answers_pings |= ttl > 0;
                if !std::mem::replace(&mut self.pong_waits, true) {
                    self.outgoing
                        .push_small(|piece| codec::push_pong(piece, &context));
                }
            }
            Event::Other => {}
        }
    }

    /// Writes what waits. `true` if nothing is left.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn write(&mut self, now: Instant) -> Result<bool, End> {
        if self.lent == LentMessage::Begun {
            return Ok(false);
        }
        let before = self.outgoing.bytes();
        let done = self.outgoing.write_to(&mut self.stream)?;
        let taken = before - self.outgoing.bytes();
        self.written += taken as i64;
        // Only where there was no room before does it mean that others have arrived.
        if std::mem::replace(&mut self.is_full, !done) && taken > 0 {
            self.alive = now;
        }
        if done {
            (self.ping_waits, self.pong_waits) = (false, false);
        }
        Ok(done)
    }

    /// Its owner did not listen for a while, so that silence says nothing.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.alive = now;
    }

    /// Writes what waits, and then a message from memory that is lent for this call only. What was written is taken off
    /// the front of `rest`. `true` if nothing is left; otherwise the next call has to bring the rest, or
    /// [`Connection::give_up_lent`] to follow.
    ///
    /// # Errors
    /// The connection is over.
    #[cfg(feature = "client")]
    pub(crate) fn write_lent(
        &mut self,
        rest: &mut &mut [IoSlice<'_>],
        now: Instant,
    ) -> Result<bool, End> {
        if self.lent != LentMessage::Begun && !self.write(now)? {
            self.lent = LentMessage::Waits;
            return Ok(false);
        }
        while !rest.is_empty() {
            let count = rest.len().min(MOST_SLICES);
            match self.stream.write_vectored(&rest[..count]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(bytes) => {
                    self.written += bytes as i64;
                    if std::mem::take(&mut self.is_full) {
                        self.alive = now;
                    }
                    self.lent = LentMessage::Begun;
                    IoSlice::advance_slices(rest, bytes);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = true;
                    if self.lent == LentMessage::None {
                        self.lent = LentMessage::Waits;
                    }
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.lent = LentMessage::None;
        Ok(true)
    }

    /// The rest of a lent message will not come. `true` if some of it is out: then the connection is of no more use.
    #[cfg(feature = "client")]
    pub(crate) fn give_up_lent(&mut self) -> bool {
        if self.lent == LentMessage::Waits {
            self.lent = LentMessage::None;
        }
        self.lent == LentMessage::Begun
    }

    /// For so long nobody read: that does not count as the peer's silence.
    #[cfg(feature = "client")]
    pub(crate) fn not_heard(&mut self, time: Duration, now: Instant) {
        self.alive = (self.alive + time).min(now);
    }

    /// Whether its owner reads from it. While it does not, nothing can be heard.
    pub(crate) fn pause(&mut self, paused: bool, now: Instant) {
        if self.paused && !paused {
            self.alive = now;
        }
        self.paused = paused;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Looks for a sign of life, and asks for one after [`HEARTBEAT`]. `true` if the peer should have given one long ago.
    ///
    /// Bytes that arrive at the other end are one, however slowly they do. So is an end that has no room for more: it is
    /// there, and does not read. Peers that do not answer PINGs are left to the system, which asks for the host.
    pub(crate) fn is_silent(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.alive);
        let nothing_new = quiet < HEARTBEAT && self.looked_at == self.written;
        if nothing_new || self.paused || !self.is_ready() {
            return false;
        }
        let unsent = unsent(&self.stream);
        let arrived = self.written - unsent.bytes as i64;
        let waits_for_room = unsent.bytes > 0 && unsent.on_the_way == 0;
        self.looked_at = self.written;
        if arrived > self.arrived || waits_for_room {
            self.arrived = self.arrived.max(arrived);
            self.alive = now;
            return false;
        }
        if quiet < HEARTBEAT || !self.answers_pings {
            return false;
        }
        if !std::mem::replace(&mut self.ping_waits, true) {
            let before = self.outgoing.bytes();
            self.outgoing.push_small(codec::push_ping);
            // Taken off in advance, since it is added when it is written.
            self.written -= (self.outgoing.bytes() - before) as i64;
        }
        quiet >= SILENCE
    }

    /// Nothing more is to be written: once all has left, the other end sees the end of the stream.
    pub(crate) fn end_writing(&mut self) {
        self.outgoing.clear();
        // Where that fails the connection is over already.
        let _ = self.stream.end_writing();
    }

    /// What the system has not yet brought to the other end.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        unsent(&self.stream).bytes
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
