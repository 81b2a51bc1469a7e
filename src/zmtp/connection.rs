//! One connection: a stream, the decoder of its bytes, what waits to be written, and when its peer was last known to be alive.

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

/// Most bytes of one read, but for a large frame, which is read into its own memory.
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

/// What a peer did that the connection's owner has to know.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// It has ended the handshake, and asks for this routing id.
    Ready(Bytes),
    Message(Vec<Bytes>),
}

/// Which version of the protocol this end announces.
///
/// Version 3.1 promises to answer PING at any time, which only an end that always reads can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announced {
    V30,
    V31,
}

/// Whether a connection's owner reads from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    On,
    /// What arrives is left unread, so silence does not say that the peer is gone.
    Paused,
}

/// How far a message is written whose memory is borrowed for each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LentMessage {
    None,
    /// Nothing of it is written: the system's buffer was full.
    Waits,
    /// Some of it is written: nothing else may be before its end.
    Begun,
}

/// What a connection is made of.
pub(crate) struct ConnectionSetup {
    pub stream: Stream,
    pub mechanism: Box<dyn Mechanism>,
    pub announced: Announced,
    /// What is taken of the peer.
    pub limits: Limits,
    pub now: Instant,
}

/// One connection, from the first byte of its handshake.
pub(crate) struct Connection {
    stream: Stream,
    decoder: Decoder,
    outgoing: Outgoing,
    /// When bytes last arrived from the peer, or at it.
    alive: Instant,
    /// Bytes that were handed to the system. PINGs do not count: the peer's system confirms them even if the peer hangs.
    written: i64,
    /// What `written` was when the system was last asked how much it still holds.
    checked_written: i64,
    /// The most of `written` that was ever known to have arrived at the peer.
    arrived: i64,
    /// The system took only a part of what was to be written.
    is_full: bool,
    /// The peer answers PINGs, or asked to be given up when it is silent.
    answers_pings: bool,
    /// A PING waits to be written, and no second one is needed.
    ping_waits: bool,
    /// A PONG waits to be written, and no second one is needed.
    pong_waits: bool,
    /// The peer was told that nothing more follows.
    writing_ended: bool,
    reading: Reading,
    lent: LentMessage,
}

impl Connection {
    /// A connection whose greeting and first command wait to be written.
    pub(crate) fn new(setup: ConnectionSetup) -> Connection {
        let ConnectionSetup {
            stream,
            mut mechanism,
            announced,
            limits,
            now,
        } = setup;
        let minor = match announced {
            Announced::V30 => 0,
            Announced::V31 => 1,
        };
        let mut outgoing = Outgoing::default();
        let greeting = codec::greeting(minor, mechanism.name());
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
            checked_written: 0,
            arrived: 0,
            is_full: false,
            answers_pings: false,
            ping_waits: false,
            pong_waits: false,
            writing_ended: false,
            reading: Reading::On,
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

    /// Bytes held of a message that has not arrived in full.
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        self.decoder.unfinished_bytes()
    }

    /// Memory that is held besides this value while nothing arrives and nothing waits.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.outgoing.kept_bytes() + self.decoder.kept_bytes()
    }

    /// When bytes last arrived from the peer, or at it.
    pub(crate) fn alive(&self) -> Instant {
        self.alive
    }

    /// What waits to be written, to append to; [`Connection::write`] sends it.
    pub(crate) fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Whether the poll should report when the system takes more bytes.
    pub(crate) fn wants_room(&self) -> bool {
        self.lent != LentMessage::None || !self.outgoing.is_empty()
    }

    /// Reads once: into a large frame's own memory, or at most [`READ_BYTES`]. Returns whether there were bytes.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) fn read(
        &mut self,
        scratch: &mut Vec<u8>,
        now: Instant,
        mut on_event: impl FnMut(PeerEvent),
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
                self.take(event, &mut on_event);
            }
            behind
        } else {
            Vec::new()
        };
        let mut input = if is_direct { &behind[..] } else { &scratch[..] };
        while let Some(event) = self.decoder.feed(&mut input)? {
            self.take(event, &mut on_event);
        }
        Ok(true)
    }

    fn take(&mut self, event: Event, on_event: &mut impl FnMut(PeerEvent)) {
        match event {
            Event::Message(frames) => on_event(PeerEvent::Message(frames)),
            Event::Ready { minor, identity } => {
                self.answers_pings |= minor >= 1;
                on_event(PeerEvent::Ready(identity));
            }
            Event::Ping { ttl, context } => {
                // A time to live of 0 asks for nothing but the answer.
                self.answers_pings |= ttl > 0;
                if !self.writing_ended && !std::mem::replace(&mut self.pong_waits, true) {
                    self.outgoing
                        .push_small(|piece| codec::push_pong(piece, &context));
                }
            }
            Event::Other => {}
        }
    }

    /// Writes as much of what waits as the system takes. Returns whether nothing is left.
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
        // The system's buffer was full and takes bytes again: earlier ones have arrived at the peer.
        if std::mem::replace(&mut self.is_full, !done) && taken > 0 {
            self.alive = now;
        }
        if done {
            (self.ping_waits, self.pong_waits) = (false, false);
        }
        Ok(done)
    }

    /// Counts the peer's silence from now on: its owner has not read for a while.
    pub(crate) fn reset_silence(&mut self, now: Instant) {
        self.alive = now;
    }

    /// Writes what waits, and then a message from memory that is borrowed for this call. What was written is taken off the
    /// front of `rest`. Returns whether nothing is left; otherwise call it again with the rest, or call
    /// [`Connection::give_up_lent`].
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

    /// Gives up the rest of a borrowed message. Returns whether some of it was written: then the connection must be closed.
    #[cfg(feature = "client")]
    pub(crate) fn give_up_lent(&mut self) -> bool {
        if self.lent == LentMessage::Waits {
            self.lent = LentMessage::None;
        }
        self.lent == LentMessage::Begun
    }

    /// Leaves time in which nobody read out of the peer's silence.
    #[cfg(feature = "client")]
    pub(crate) fn not_read_for(&mut self, time: Duration, now: Instant) {
        self.alive = (self.alive + time).min(now);
    }

    /// Notes whether the owner reads from it. The peer's silence counts from when it does again.
    pub(crate) fn set_reading(&mut self, reading: Reading, now: Instant) {
        if self.is_paused() && reading == Reading::On {
            self.alive = now;
        }
        self.reading = reading;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.reading == Reading::Paused
    }

    /// Whether the peer has shown no sign of life for [`SILENCE`]. Sends a PING after [`HEARTBEAT`].
    ///
    /// Bytes that arrive at the peer are a sign of life, however slowly they do; so is a full buffer at its end: it is
    /// there and does not read. Peers that do not answer PINGs are left to TCP keepalive.
    pub(crate) fn is_silent(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.alive);
        let nothing_new = quiet < HEARTBEAT && self.checked_written == self.written;
        if nothing_new || self.is_paused() || self.writing_ended || !self.is_ready() {
            return false;
        }
        let unsent = unsent(&self.stream);
        let arrived = self.written - unsent.bytes as i64;
        let waits_for_room = unsent.bytes > 0 && unsent.on_the_way == 0;
        self.checked_written = self.written;
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
            // `write` will add it to `written`, where PINGs do not count.
            self.written -= (self.outgoing.bytes() - before) as i64;
        }
        quiet >= SILENCE
    }

    /// Drops what waits and closes this direction: the peer sees the end of the stream.
    pub(crate) fn end_writing(&mut self) {
        self.outgoing.clear();
        self.writing_ended = true;
        // It fails only if the connection is over already.
        let _ = self.stream.end_writing();
    }

    /// Written bytes that have not arrived at the peer.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        unsent(&self.stream).bytes
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
