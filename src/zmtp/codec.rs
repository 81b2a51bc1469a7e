//! ZMTP 3 as bytes, written and decoded: greeting, handshake, frames, PING and PONG. No I/O, and no clock.
//!
//! ```text
//! greeting   FF 00×8 7F | major minor | mechanism, 20 bytes | as-server | 00×31          64 bytes each way
//! frame      flags | length, 1 or 8 bytes | body         flags: 1 more follow, 2 the length has 8 bytes, 4 command
//! command    name's length | name | data                 READY, ERROR in the handshake; PING, PONG, others at any time
//! ```
//! A message's bytes are counted as they arrive, and memory is taken as they do: a frame's head may promise more than comes.

#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::mechanism::{Mechanism, named};

/// What ends a connection: the peer does not keep to the protocol, or to our bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("it does not speak ZMTP")]
    NoZmtp,
    #[error("it speaks a version of ZMTP before 3.0, which is not served: use libzmq 4 or later")]
    OldVersion,
    #[error("it wants another security mechanism than this end has")]
    Mechanism,
    #[error("its handshake cannot be read")]
    Handshake,
    #[error("it refused the handshake")]
    Refused,
    #[error("its socket's type cannot speak with this one; expected a DEALER at a server")]
    SocketType,
    #[error("its routing id begins with 0 or is longer than 255 bytes")]
    Identity,
    #[error("a frame's flags are not of this protocol")]
    Flags,
    #[error("a command is longer than any that is known")]
    LongCommand,
    #[error("a message is larger than this end takes")]
    TooLarge,
    #[error("a message has more frames than this end takes")]
    TooManyFrames,
    #[error("there is no memory for its frame")]
    NoMemory,
}

/// What a peer's bytes amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The handshake is done.
    Ready {
        /// Minor version that the peer announced: 1 and later know PING.
        minor: u8,
        /// The routing id that it asks for; empty: any.
        identity: Bytes,
    },
    /// A whole message.
    Message(Vec<Bytes>),
    /// The peer sent a PING. `ttl`: after that many tenths of a second of silence it may be given up; 0: never.
    Ping { ttl: u16, context: Bytes },
    /// A PONG, or a command that this end does not know.
    Other,
}

/// The bounds of one message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most bytes of its frames together.
    pub message_bytes: u64,
    pub frames: usize,
}

pub(crate) const GREETING_BYTES: usize = 64;
const MECHANISM_AT: usize = 12;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Longest command that is taken: those of the handshake have a socket type and an id, a PING has some bytes.
const MAX_COMMAND_BYTES: u64 = 4096;
/// The memory of a large frame is taken in full only once this much of it has arrived: its head costs a peer nothing.
const FIRST_BYTES: usize = 64 * 1024;
/// Frames up to this get their memory at once. Growing would copy them, and the system gives no memory to pages that
/// were not written.
const AT_ONCE_BYTES: usize = 1024 * 1024;
/// The most that a frame's head takes.
pub(crate) const HEAD_BYTES: usize = 9;
/// Memory that a frame takes besides its bytes.
const FRAME_COST: u64 = 64;
/// Frames that lack more than this are read into their own memory.
const DIRECT_BYTES: usize = 8 * 1024;
/// Most frames of a message that is copied as one piece.
const MOST_AT_ONCE: usize = 8;

/// The greeting that this end sends, of version 3.`minor`. Its as-server byte is 0, as NULL wants it.
pub(crate) fn greeting(minor: u8, mechanism: &str) -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9]) = (0xff, 0x7f);
    (greeting[10], greeting[11]) = (3, minor);
    greeting[MECHANISM_AT..MECHANISM_AT + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    greeting
}

/// Appends the head of a message's frame; `more`: another frame of the message follows.
pub(crate) fn push_head(out: &mut Vec<u8>, bytes: usize, more: bool) {
    let more = if more { MORE } else { 0 };
    match u8::try_from(bytes) {
        Ok(bytes) => out.extend_from_slice(&[more, bytes]),
        Err(_) => {
            out.push(more | LONG);
            out.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
}

/// Appends a command, its name and data being `body`.
pub(crate) fn push_command(out: &mut Vec<u8>, body: &[u8]) {
    let at = out.len();
    push_head(out, body.len(), false);
    out[at] |= COMMAND;
    out.extend_from_slice(body);
}

/// A PING that asks for an answer and for nothing else: its time to live is 0.
pub(crate) fn push_ping(out: &mut Vec<u8>) {
    push_command(out, b"\x04PING\0\0");
}

/// The answer to a PING.
pub(crate) fn push_pong(out: &mut Vec<u8>, context: &[u8]) {
    push_command(out, &[b"\x04PONG", context].concat());
}

/// How far the connection is.
enum State {
    /// The greeting, as far as it has arrived.
    Greeting(Vec<u8>),
    /// Commands, until the mechanism says that it is done.
    Handshake {
        minor: u8,
    },
    Traffic,
}

/// A frame whose head has arrived.
struct Body {
    flags: u8,
    bytes: usize,
    /// As far as it has arrived.
    data: Vec<u8>,
}

/// Decodes one connection's bytes, however they are cut.
pub(crate) struct Decoder {
    state: State,
    mechanism: Option<Box<dyn Mechanism>>,
    limits: Limits,
    /// The start of a frame's head.
    head: [u8; HEAD_BYTES],
    head_bytes: u8,
    body: Option<Body>,
    /// Frames of a message that has not ended.
    frames: Vec<Bytes>,
    /// Their bytes, each with [`FRAME_COST`].
    frames_cost: u64,
    frames_bytes: u64,
}

impl Decoder {
    pub(crate) fn new(mechanism: Box<dyn Mechanism>, limits: Limits) -> Decoder {
        Decoder {
            state: State::Greeting(Vec::new()),
            mechanism: Some(mechanism),
            limits,
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            body: None,
            frames: Vec::new(),
            frames_cost: 0,
            frames_bytes: 0,
        }
    }

    /// Whether messages can come.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, State::Traffic)
    }

    /// Bytes held of a message that has not arrived in full.
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        let body = self.body.as_ref().map_or(0, |body| body.data.len() as u64);
        self.frames_cost + body
    }

    /// Memory that is held besides what has come of a message.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        let greeting = match &self.state {
            State::Greeting(greeting) => greeting.capacity(),
            State::Handshake { .. } | State::Traffic => 0,
        };
        greeting + self.frames.capacity() * size_of::<Bytes>()
    }

    /// Takes bytes off the front of `input` until an event is complete, or none are left.
    ///
    /// # Errors
    /// What the peer did wrong; the connection has to be closed then.
    pub(crate) fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Violation> {
        if let State::Greeting(_) = self.state
            && !self.take_greeting(input)?
        {
            return Ok(None);
        }
        if self.body.is_none()
            && self.head_bytes == 0
            && self.frames.is_empty()
            && self.is_ready()
            && let Some(message) = self.take_at_once(input)?
        {
            return Ok(Some(Event::Message(message)));
        }
        loop {
            if self.body.is_none() && !self.take_head(input)? {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                return Ok(None);
            };
            while body.data.len() < body.bytes {
                if input.is_empty() {
                    return Ok(None);
                }
                let room = reserve(body)?;
                let (now, rest) = input.split_at(input.len().min(room));
                body.data.extend_from_slice(now);
                *input = rest;
            }
            if let Some(event) = self.finish_frame()? {
                return Ok(Some(event));
            }
        }
    }

    /// The memory of a frame that lacks many bytes. Read into it, and then call [`Decoder::filled`].
    pub(crate) fn direct(&mut self) -> Result<Option<&mut Vec<u8>>, Violation> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        if body.bytes - body.data.len() < DIRECT_BYTES {
            return Ok(None);
        }
        reserve(body)?;
        Ok(Some(&mut body.data))
    }

    /// Bytes were read into [`Decoder::direct`]'s memory. Those behind the frame's end are returned, to be fed.
    pub(crate) fn filled(&mut self) -> Result<(Option<Event>, Vec<u8>), Violation> {
        let Some(body) = &mut self.body else {
            return Ok((None, Vec::new()));
        };
        let behind = if body.data.len() > body.bytes {
            body.data.split_off(body.bytes)
        } else {
            Vec::new()
        };
        if body.data.len() < body.bytes {
            return Ok((None, behind));
        }
        Ok((self.finish_frame()?, behind))
    }

    /// Returns whether the greeting is complete.
    fn take_greeting(&mut self, input: &mut &[u8]) -> Result<bool, Violation> {
        let State::Greeting(greeting) = &mut self.state else {
            return Ok(true);
        };
        let count = input.len().min(GREETING_BYTES - greeting.len());
        let (now, rest) = input.split_at(count);
        greeting.extend_from_slice(now);
        *input = rest;
        // Checked before all of it is there: a peer of another protocol waits for an answer and never sends the rest.
        if greeting.first().is_some_and(|first| *first != 0xff)
            || greeting.get(9).is_some_and(|last| last & 1 == 0)
        {
            return Err(Violation::NoZmtp);
        }
        let Some([major, minor]) = greeting.get(10..12) else {
            return match greeting.get(10) {
                Some(major) if *major < 3 => Err(Violation::OldVersion),
                _ => Ok(false),
            };
        };
        if *major < 3 {
            return Err(Violation::OldVersion);
        }
        // A peer of a later major version has to fall back to ours.
        let minor = if *major == 3 { *minor } else { 0 };
        if greeting.len() < GREETING_BYTES {
            return Ok(false);
        }
        let name = self
            .mechanism
            .as_ref()
            .map_or("", |mechanism| mechanism.name());
        let theirs = &greeting[MECHANISM_AT..MECHANISM_AT + 20];
        let (start, padding) = theirs.split_at(name.len());
        if start != name.as_bytes() || padding.iter().any(|byte| *byte != 0) {
            return Err(Violation::Mechanism);
        }
        self.state = State::Handshake { minor };
        Ok(true)
    }

    /// A message whose frames are all in `input`, as most are: it is copied as one piece. Each frame begins at a multiple of
    /// 16, so that its numbers are aligned and need no further copy.
    fn take_at_once(&mut self, input: &mut &[u8]) -> Result<Option<Vec<Bytes>>, Violation> {
        let mut places = [(0, 0); MOST_AT_ONCE];
        let (mut count, mut at, mut total) = (0, 0, 0);
        loop {
            let Some((flags, bytes, head)) = read_head(&input[at..])? else {
                return Ok(None);
            };
            let start = at + head;
            if flags & COMMAND != 0 || bytes > (input.len() - start) as u64 || count == MOST_AT_ONCE
            {
                return Ok(None);
            }
            places[count] = (start, bytes as usize);
            count += 1;
            total += (bytes as usize).next_multiple_of(16);
            at = start + bytes as usize;
            if flags & MORE == 0 {
                break;
            }
        }
        let places = &places[..count];
        let bytes: u64 = places.iter().map(|(_, bytes)| *bytes as u64).sum();
        self.check(bytes, count)?;
        let mut copy = Vec::with_capacity(total);
        for (start, bytes) in places {
            copy.resize(copy.len().next_multiple_of(16), 0);
            copy.extend_from_slice(&input[*start..start + bytes]);
        }
        let copy = Bytes::from(copy);
        let mut offset = 0;
        let frame = |(_, bytes): &(usize, usize)| {
            let frame = copy.slice(offset..offset + bytes);
            offset += bytes.next_multiple_of(16);
            frame
        };
        let message = places.iter().map(frame).collect();
        *input = &input[at..];
        Ok(Some(message))
    }

    /// Returns whether a frame's head is complete, and its body begun.
    fn take_head(&mut self, input: &mut &[u8]) -> Result<bool, Violation> {
        loop {
            let have = usize::from(self.head_bytes);
            if let Some((flags, bytes, _)) = read_head(&self.head[..have])? {
                self.head_bytes = 0;
                if flags & COMMAND != 0 {
                    if bytes > MAX_COMMAND_BYTES {
                        return Err(Violation::LongCommand);
                    }
                } else {
                    if !self.is_ready() {
                        return Err(Violation::Handshake);
                    }
                    self.check(
                        self.frames_bytes.saturating_add(bytes),
                        self.frames.len() + 1,
                    )?;
                }
                self.body = Some(Body {
                    flags,
                    bytes: usize::try_from(bytes).map_err(|_| Violation::TooLarge)?,
                    data: Vec::new(),
                });
                return Ok(true);
            }
            let Some((byte, rest)) = input.split_first() else {
                return Ok(false);
            };
            self.head[have] = *byte;
            self.head_bytes += 1;
            *input = rest;
        }
    }

    fn check(&self, bytes: u64, frames: usize) -> Result<(), Violation> {
        if bytes > self.limits.message_bytes {
            return Err(Violation::TooLarge);
        }
        if frames > self.limits.frames {
            return Err(Violation::TooManyFrames);
        }
        Ok(())
    }

    fn finish_frame(&mut self) -> Result<Option<Event>, Violation> {
        let Some(body) = self.body.take() else {
            return Ok(None);
        };
        if body.flags & COMMAND != 0 {
            return self.command(&body.data).map(Some);
        }
        self.frames_bytes += body.bytes as u64;
        self.frames_cost += body.bytes as u64 + FRAME_COST;
        self.frames.push(body.data.into());
        if body.flags & MORE != 0 {
            return Ok(None);
        }
        (self.frames_bytes, self.frames_cost) = (0, 0);
        Ok(Some(Event::Message(std::mem::take(&mut self.frames))))
    }

    fn command(&mut self, command: &[u8]) -> Result<Event, Violation> {
        if let (State::Handshake { minor }, Some(mechanism)) = (&self.state, &mut self.mechanism) {
            let minor = *minor;
            let identity = mechanism.handle(command)?;
            self.state = State::Traffic;
            self.mechanism = None;
            return Ok(Event::Ready { minor, identity });
        }
        Ok(match named(command) {
            Some((b"PING", [high, low, context @ ..])) => Event::Ping {
                ttl: u16::from_be_bytes([*high, *low]),
                // The protocol allows 16 bytes; no more are sent back.
                context: Bytes::copy_from_slice(&context[..context.len().min(16)]),
            },
            Some(_) => Event::Other,
            None => return Err(Violation::Flags),
        })
    }
}

/// A frame's flags, the length of its body and of its head; `None` if the head is not there in full.
fn read_head(input: &[u8]) -> Result<Option<(u8, u64, usize)>, Violation> {
    let Some((&flags, rest)) = input.split_first() else {
        return Ok(None);
    };
    // A command is one frame.
    if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
        return Err(Violation::Flags);
    }
    if flags & LONG == 0 {
        return Ok(rest.first().map(|bytes| (flags, u64::from(*bytes), 2)));
    }
    let bytes = rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    Ok(bytes.map(|bytes| (flags, bytes, HEAD_BYTES)))
}

/// Takes memory for a frame if there is none left, and returns how many of its bytes there is room for: little at first,
/// all of it once the first bytes have arrived. If another frame follows there is room for its head too: that comes with
/// the same read, and the next read goes straight into the next frame's memory.
fn reserve(body: &mut Body) -> Result<usize, Violation> {
    let have = body.data.len();
    if body.data.capacity() == have {
        let first = have < FIRST_BYTES && body.bytes > AT_ONCE_BYTES;
        let more = body.flags & MORE != 0 && body.bytes >= DIRECT_BYTES;
        let wanted = match (first, more) {
            (true, _) => FIRST_BYTES,
            (false, true) => body.bytes.saturating_add(HEAD_BYTES),
            (false, false) => body.bytes,
        };
        body.data
            .try_reserve_exact(wanted - have)
            .map_err(|_| Violation::NoMemory)?;
    }
    // An allocator may give more than was asked for.
    Ok((body.data.capacity() - have).min(body.bytes - have))
}
