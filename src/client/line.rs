//! One connection: a DEALER, and the monitor that tells when it is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use zmq::{Context, Socket, SocketEvent, SocketType};

use crate::error::{Error, Result};
use crate::{frames, socket};

/// Long enough to be never, and libzmq adds up to as much again without overflowing.
///
/// A session's connections are not to come back by themselves. The option's own word for that, -1, makes libzmq
/// drop what it had received and the program had not read yet when the connection ends: the server's last words.
const RECONNECT_NEVER_MS: i32 = 1_000_000_000;

/// How far a connection is, as its monitor saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody has accepted it.
    Connecting,
    /// Somebody has, and has not spoken ZeroMQ yet.
    Accepted,
    /// The peer speaks ZeroMQ.
    Open,
    /// It is over.
    Lost,
}

/// A DEALER to one endpoint, and its monitor.
pub(super) struct Line {
    pub(super) socket: Socket,
    pub(super) monitor: Socket,
    pub(super) endpoint: String,
    phase: Phase,
    /// Why it was lost, for a person.
    loss: &'static str,
}

impl Line {
    /// Starts to connect; the monitor tells what comes of it.
    pub(super) fn open(context: &Context, endpoint: String, routing_id: &[u8]) -> Result<Line> {
        let socket = make(context, SocketType::DEALER)?;
        socket.set_identity(routing_id)?;
        socket.set_reconnect_ivl(RECONNECT_NEVER_MS)?;
        socket::set_heartbeat(&socket)?;
        socket.set_ipv6(endpoint.starts_with("tcp://["))?;
        let name = monitor_name();
        let events = SocketEvent::CONNECTED as i32
            | SocketEvent::CONNECT_RETRIED as i32
            | SocketEvent::CLOSED as i32
            | SocketEvent::DISCONNECTED as i32
            | SocketEvent::HANDSHAKE_SUCCEEDED as i32
            | SocketEvent::HANDSHAKE_FAILED_NO_DETAIL as i32
            | SocketEvent::HANDSHAKE_FAILED_PROTOCOL as i32
            | SocketEvent::HANDSHAKE_FAILED_AUTH as i32;
        socket.monitor(&name, events)?;
        let monitor = make(context, SocketType::PAIR)?;
        monitor.connect(&name)?;
        let mut line = Line {
            socket,
            monitor,
            endpoint,
            phase: Phase::Connecting,
            loss: "",
        };
        // Its descriptor tells of news only from the first look on that found none.
        line.observe()?;
        match line.socket.connect(&line.endpoint) {
            Ok(()) => Ok(line),
            Err(e) => Err(Error::invalid(format!(
                "{}: cannot connect: {e}",
                line.endpoint
            ))),
        }
    }

    /// Reads what the monitor has to tell, to the end.
    pub(super) fn observe(&mut self) -> Result<Phase> {
        while let Some(event) = frames::receive(&mut self.monitor, zmq::DONTWAIT)? {
            let Some(&[low, high]) = event.first().and_then(|e| e.get(..2)) else {
                continue;
            };
            self.note(SocketEvent::from_raw(u16::from_ne_bytes([low, high])));
        }
        Ok(self.phase)
    }

    fn note(&mut self, event: SocketEvent) {
        use SocketEvent as E;
        // What comes after the end (the descriptor is closed, a retry is planned) tells nothing new.
        if self.phase == Phase::Lost {
            return;
        }
        let loss = match event {
            E::CONNECTED => {
                self.phase = Phase::Accepted;
                return;
            }
            E::HANDSHAKE_SUCCEEDED => {
                self.phase = Phase::Open;
                return;
            }
            E::CLOSED | E::CONNECT_RETRIED if self.phase == Phase::Connecting => {
                "no server: nothing accepts connections there"
            }
            E::HANDSHAKE_FAILED_AUTH => "the server refused this client's authentication",
            E::HANDSHAKE_FAILED_NO_DETAIL | E::HANDSHAKE_FAILED_PROTOCOL => NO_MDM,
            E::CLOSED | E::CONNECT_RETRIED | E::DISCONNECTED if self.phase == Phase::Accepted => {
                NO_MDM
            }
            E::CLOSED | E::CONNECT_RETRIED | E::DISCONNECTED => {
                "the connection to the server was lost"
            }
            _ => return,
        };
        self.phase = Phase::Lost;
        self.loss = loss;
    }

    /// What to tell of a line that is lost.
    pub(super) fn loss(&self) -> Error {
        Error::unavailable(format!("{}: {}", self.endpoint, self.loss))
    }

    /// What to tell of a line that did not answer hello in time.
    pub(super) fn silence(&self, waited: std::time::Duration) -> Error {
        let why = match self.phase {
            Phase::Connecting if self.endpoint.starts_with("inproc:") => {
                "no answer: does a server bind it in this process, with the same context?"
            }
            Phase::Connecting => "no connection: is the host up and the port open?",
            Phase::Accepted => {
                "something accepts connections there, but it does not speak ZeroMQ: it is not an MDM server, or it hangs"
            }
            Phase::Open => {
                "a ZeroMQ peer is there, but it does not answer hello: it is not an MDM server, or it hangs"
            }
            Phase::Lost => self.loss,
        };
        Error::unavailable(format!(
            "{}: {why} (waited {} s)",
            self.endpoint,
            waited.as_millis() as f64 / 1000.0
        ))
    }
}

const NO_MDM: &str =
    "the peer ended the connection during ZeroMQ's handshake: it is not an MDM server";

impl Drop for Line {
    /// A closing socket still has events to tell, from libzmq's own thread, which waits for ever if nobody is left to
    /// hear them, and the whole context with it. So the monitor is ended first: asking for another one, of no events,
    /// does that.
    fn drop(&mut self) {
        // The old monitor has ended even where the new one could not be made.
        let _ = self.socket.monitor(&monitor_name(), 0);
    }
}

/// An endpoint that no other monitor of this process has.
fn monitor_name() -> String {
    static MONITORS: AtomicU64 = AtomicU64::new(0);

    let number = MONITORS.fetch_add(1, Ordering::Relaxed);
    format!("inproc://mdm-client-monitor-{number}")
}

/// A socket that keeps nothing when it closes. Its queues have no marks: what waits in them is what the caller asked
/// to send, and results that the server bounds.
pub(super) fn make(context: &Context, kind: SocketType) -> Result<Socket> {
    let socket = context.socket(kind).map_err(|e| match e {
        zmq::Error::EMFILE => Error::exhausted(
            "too many sessions are open in this process: libzmq's sockets or the file descriptors are used up",
        ),
        e => Error::unavailable(format!("cannot make a socket: {e}")),
    })?;
    socket.set_linger(0)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    Ok(socket)
}
