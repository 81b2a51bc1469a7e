//! A guard against messages that never end.
//!
//! libzmq hands out whole messages only, and counts a message against its high-water mark at its last frame: a peer
//! that sends frame after frame of one message fills memory that nobody sees. So the guard watches the connections
//! themselves: one that has received more than a request may have since its last whole message is cut.
//! Only TCP tells how much it has received; ipc is open to this machine's own users and is not guarded.

use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::time::Duration;

use zmq::{Context, Socket};

use crate::error::Result;
use crate::frames;

/// How often connections are looked at: a peer on this machine sends 100 MB in such a time.
const TICK: Duration = Duration::from_millis(50);
/// How often if there are many, each of which takes two calls of the kernel.
const LONG_TICK: Duration = Duration::from_millis(250);
const MANY: usize = 500;
/// How often while one of them is past half of what it may.
const SHORT_TICK: Duration = Duration::from_millis(20);
/// So many looks in a row must find a connection beyond its bound: a whole message may be just about to be read.
const STRIKES: u32 = 2;
/// What a connection may receive besides messages: heartbeats, 16 bytes every two seconds when both ends send them.
const IDLE_BYTES_PER_S: u64 = 16;

#[derive(Debug, Default)]
struct Connection {
    /// Bytes received when its last whole message was seen, heartbeats added.
    base: u64,
    strikes: u32,
}

/// Watches the connections of one socket.
pub(crate) struct Guard {
    endpoint: String,
    monitor: Socket,
    connections: HashMap<RawFd, Connection>,
    /// Connections that a whole message came from since the last look.
    seen: HashSet<RawFd>,
    max_bytes: u64,
    last_us: u64,
    pause: Duration,
}

impl Guard {
    /// Watches a socket, before it is bound. Each socket's monitor has a name of its own.
    pub(crate) fn watch(
        context: &Context,
        socket: &Socket,
        name: &str,
        max_bytes: u64,
    ) -> Result<Guard> {
        let endpoint = format!("inproc://mdm.monitor.{name}");
        let events = zmq::SocketEvent::ACCEPTED.to_raw()
            | zmq::SocketEvent::DISCONNECTED.to_raw()
            | zmq::SocketEvent::CLOSED.to_raw();
        socket.monitor(&endpoint, i32::from(events))?;
        let monitor = context.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        // libzmq's own thread sends the events, and would wait for room: a burst of connections would stop all.
        monitor.set_rcvhwm(0)?;
        monitor.connect(&endpoint)?;
        Ok(Guard {
            endpoint,
            monitor,
            connections: HashMap::new(),
            seen: HashSet::new(),
            max_bytes,
            last_us: 0,
            pause: TICK,
        })
    }

    /// Ends the watch, before the socket is closed. A closing socket still has events to tell, from libzmq's own
    /// thread, which would wait for ever for a listener that has gone, and the whole context with it. Asking for
    /// another monitor, of no events, ends the old one.
    pub(crate) fn end(&self, socket: &Socket) {
        // The old monitor has ended even where the new one could not be made.
        let _ = socket.monitor(&format!("{}.end", self.endpoint), 0);
    }

    /// A whole message came from a connection.
    pub(crate) fn saw(&mut self, source: Option<RawFd>) {
        self.seen.extend(source);
    }

    /// When to call [`Guard::look`].
    pub(crate) fn due_us(&self) -> u64 {
        self.last_us + self.pause.as_micros() as u64
    }

    /// Looks at the connections if it is time, and cuts those that have gone too far.
    pub(crate) fn look(&mut self, now_us: u64) -> Result<()> {
        if now_us < self.due_us() {
            return Ok(());
        }
        let idle_bytes = (now_us - self.last_us).div_ceil(1_000_000 / IDLE_BYTES_PER_S);
        self.last_us = now_us;
        let many = self.connections.len() > MANY;
        let mut pause = if many { LONG_TICK } else { TICK };
        while let Some(event) = frames::receive(&mut self.monitor, zmq::DONTWAIT)? {
            self.note(&event);
        }
        // Those that were accepted before the monitor was there.
        for fd in &self.seen {
            self.connections.entry(*fd).or_default();
        }
        let (seen, max_bytes) = (&self.seen, self.max_bytes);
        self.connections.retain(|fd, connection| {
            let Some(received) = frames::received_bytes(*fd) else {
                return false; // not TCP, or closed
            };
            // A number that fell back is another connection's under the same descriptor.
            if seen.contains(fd) || received < connection.base {
                (connection.base, connection.strikes) = (received, 0);
                return true;
            }
            connection.base = received.min(connection.base + idle_bytes);
            let open = received - connection.base;
            if open > max_bytes / 2 {
                pause = SHORT_TICK;
            }
            if open <= max_bytes {
                connection.strikes = 0;
                return true;
            }
            connection.strikes += 1;
            if connection.strikes >= STRIKES {
                tracing::warn!(
                    bytes = open,
                    "a connection sent more than a message may have without ending it; it was cut"
                );
                (connection.base, connection.strikes) = (received, 0);
                frames::hang_up(*fd);
            }
            true
        });
        self.pause = pause;
        self.seen.clear();
        Ok(())
    }

    /// The first frame of an event: its number (u16) and its value (u32), the descriptor.
    fn note(&mut self, event: &[bytes::Bytes]) {
        let Some([a, b, value @ ..]) = event.first().map(|frame| &frame[..]) else {
            return;
        };
        let Ok(value) = value.try_into() else {
            return;
        };
        let fd = RawFd::from_ne_bytes(value);
        if u16::from_ne_bytes([*a, *b]) == zmq::SocketEvent::ACCEPTED.to_raw() {
            self.connections.insert(fd, Connection::default());
        } else {
            self.connections.remove(&fd);
        }
    }
}
