//! A guard against messages that never end.
//!
//! libzmq hands out whole messages only, and counts a message against its high-water mark at its last frame: a peer
//! that sends frame after frame of one message fills memory that nobody sees. So the guard watches the connections
//! themselves: one that has received more than a request may have since its last whole message is cut.
//! Only TCP tells how much it has received; ipc is open to this machine's own users and is not guarded.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::time::Duration;

use zmq::{Context, Socket};

use crate::error::Result;
use crate::frames;

/// How often connections are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(250);
const MONITOR: &str = "inproc://mdm.monitor";

#[derive(Debug, Default)]
struct Connection {
    /// Bytes received when its last whole message was seen.
    base: u64,
    /// A whole message was seen since the last look.
    alive: bool,
}

/// Watches the connections of one socket.
pub(crate) struct Guard {
    monitor: Socket,
    connections: HashMap<RawFd, Connection>,
    max_bytes: u64,
    last_us: u64,
}

impl Guard {
    /// Watches a socket, before it is bound.
    pub(crate) fn watch(context: &Context, socket: &Socket, max_bytes: u64) -> Result<Guard> {
        let events = zmq::SocketEvent::ACCEPTED.to_raw()
            | zmq::SocketEvent::DISCONNECTED.to_raw()
            | zmq::SocketEvent::CLOSED.to_raw();
        socket.monitor(MONITOR, i32::from(events))?;
        let monitor = context.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        monitor.connect(MONITOR)?;
        Ok(Guard {
            monitor,
            connections: HashMap::new(),
            max_bytes,
            last_us: 0,
        })
    }

    /// A whole message came from a connection.
    pub(crate) fn saw(&mut self, source: Option<RawFd>) {
        if let Some(fd) = source {
            self.connections.entry(fd).or_default().alive = true;
        }
    }

    /// When to call [`Guard::look`] at the latest; `None` while nobody is connected and nothing needs it.
    pub(crate) fn due_us(&self) -> u64 {
        self.last_us + TICK.as_micros() as u64
    }

    /// Looks at the connections if it is time, and cuts those that have gone too far.
    pub(crate) fn look(&mut self, now_us: u64) -> Result<()> {
        if now_us < self.due_us() {
            return Ok(());
        }
        self.last_us = now_us;
        while let Some(event) = frames::receive(&mut self.monitor, zmq::DONTWAIT)? {
            self.note(&event);
        }
        for (fd, connection) in &mut self.connections {
            let Some(received) = frames::received_bytes(*fd) else {
                continue;
            };
            // A number that fell back is another connection's under the same descriptor.
            if std::mem::take(&mut connection.alive) || received < connection.base {
                connection.base = received;
            } else if received - connection.base > self.max_bytes {
                tracing::warn!(
                    bytes = received - connection.base,
                    "a connection sent more than a request may have without ending it; it was cut"
                );
                connection.base = received;
                frames::hang_up(*fd);
            }
        }
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
