//! The client's end of ZMTP: one connection to a ROUTER, from connecting to its end.
//!
//! The client has no thread of its own, so an idle session reads nothing and answers no PING. That is why this end
//! announces ZMTP 3.0, which has no PING: our server leaves such a peer to TCP keepalive, and a session may be idle for as
//! long as its owner likes. While a caller waits, this end sends the heartbeats: a server that announced 3.1 gets a PING
//! (time to live 0) after [`HEARTBEAT`](super::HEARTBEAT) without a byte, and is given up after
//! [`SILENCE`](super::SILENCE). Time in which no thread waited does not count, because nothing was read in it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::PollFlags;

use super::codec::{Limits, Violation};
use super::connection::{Announced, Connection, ConnectionSetup, End, PeerEvent};
use super::mechanism::{Null, SocketType};
use super::outgoing::Outgoing;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A server's answers are not bounded here: the client chose their size by its request, and the server bounds them.
const LIMITS: Limits = Limits {
    message_bytes: u64::MAX,
    frames: usize::MAX,
};

/// How long to wait before connecting again to a local listener whose backlog is full; the system does not notify.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// Where a ROUTER listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    /// The path of a local socket.
    Local(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp://{address}"),
            Endpoint::Local(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

/// Where a connection is between connecting and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// It is not accepted yet.
    Connecting,
    /// It is accepted; the handshake has not ended.
    Accepted,
    /// The handshake is done: messages may be sent.
    Open,
    /// It is over.
    Lost,
}

/// The messages that arrived on the connections of one session, and the buffer that all of them read into.
#[derive(Default)]
pub(crate) struct Inbox {
    pub messages: VecDeque<Vec<Bytes>>,
    /// Set whenever bytes were read. Who wants to know resets it before.
    pub has_read: bool,
    scratch: Vec<u8>,
}

/// One connection to one endpoint. It does not connect again after its end.
pub(crate) struct Dealer {
    endpoint: Endpoint,
    connection: Connection,
    state: ConnectionState,
    /// Why it was lost, for the error's message.
    loss: String,
}

impl Dealer {
    /// Begins to connect.
    ///
    /// # Errors
    /// What the system says at once: `UNAVAILABLE` if nobody listens, `RESOURCE_EXHAUSTED` if no descriptor is left.
    pub(crate) fn open(
        endpoint: Endpoint,
        routing_id: &[u8; 16],
        deadline: Instant,
    ) -> Result<Dealer> {
        let stream = match &endpoint {
            Endpoint::Tcp(address) => Stream::connect_tcp(*address),
            Endpoint::Local(path) => loop {
                match Stream::connect_local(path) {
                    Err(e) if is_full(&e) && Instant::now() < deadline => {
                        thread::sleep(RETRY_AFTER)
                    }
                    other => break other,
                }
            },
        };
        let state = match endpoint {
            Endpoint::Tcp(_) => ConnectionState::Connecting,
            Endpoint::Local(_) => ConnectionState::Accepted,
        };
        let stream = stream.map_err(|e| not_connected(&endpoint, &e))?;
        let identity = Bytes::copy_from_slice(routing_id);
        let mechanism = Box::new(Null::new(SocketType::Dealer, identity));
        let now = Instant::now();
        Ok(Dealer {
            endpoint,
            connection: Connection::new(ConnectionSetup {
                stream,
                mechanism,
                announced: Announced::V30,
                limits: LIMITS,
                now,
            }),
            state,
            loss: String::new(),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn state(&self) -> ConnectionState {
        self.state
    }

    /// What waits to be written, to append to; [`Dealer::write`] sends it.
    pub(crate) fn outgoing(&mut self) -> &mut Outgoing {
        self.connection.outgoing()
    }

    /// Whether something waits to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.connection.wants_room()
    }

    /// Which events to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.state == ConnectionState::Connecting || self.connection.wants_room() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    /// Handles the poll's events: ends connecting, writes as much as the connection takes, reads what has arrived.
    pub(crate) fn handle(&mut self, events: PollFlags, now: Instant, inbox: &mut Inbox) {
        if events.is_empty() || self.state == ConnectionState::Lost {
            return;
        }
        if self.state == ConnectionState::Connecting {
            if let Err(e) = self.connection.stream().error() {
                self.lose(no_server(&e));
                return;
            }
            self.state = ConnectionState::Accepted;
        }
        if events.contains(PollFlags::OUT) {
            self.write(now, inbox);
        }
        if events != PollFlags::OUT && self.state != ConnectionState::Lost {
            self.read(now, inbox);
        }
    }

    fn read(&mut self, now: Instant, inbox: &mut Inbox) {
        let had_something_to_write = self.connection.wants_room();
        let mut is_ready = false;
        let Inbox {
            messages, scratch, ..
        } = inbox;
        let read = self.connection.read(scratch, now, |event| match event {
            PeerEvent::Ready(_) => is_ready = true,
            PeerEvent::Message(frames) => messages.push_back(frames),
        });
        if is_ready {
            self.state = ConnectionState::Open;
        }
        inbox.has_read |= matches!(read, Ok(true));
        match read {
            // The answer to a PING leaves at once; what waited before is written when the poll says so.
            Ok(_) if !had_something_to_write => self.write(now, inbox),
            Ok(_) => {}
            Err(end) => self.end(end),
        }
    }

    /// Writes as much of what waits as the connection takes.
    pub(crate) fn write(&mut self, now: Instant, inbox: &mut Inbox) {
        if matches!(
            self.state,
            ConnectionState::Connecting | ConnectionState::Lost
        ) {
            return;
        }
        if let Err(end) = self.connection.write(now) {
            self.end_after_reading(end, now, inbox);
        }
    }

    /// As [`Connection::write_lent`]; true also at the connection's end, when nothing more can be written.
    pub(crate) fn write_lent(
        &mut self,
        rest: &mut &mut [IoSlice<'_>],
        now: Instant,
        inbox: &mut Inbox,
    ) -> bool {
        if self.state == ConnectionState::Lost {
            return true;
        }
        match self.connection.write_lent(rest, now) {
            Ok(done) => done,
            Err(end) => {
                self.end_after_reading(end, now, inbox);
                true
            }
        }
    }

    /// As [`Connection::give_up_lent`].
    pub(crate) fn give_up_lent(&mut self) -> bool {
        self.connection.give_up_lent()
    }

    /// Nobody read for so long.
    pub(crate) fn not_read_for(&mut self, time: Duration, now: Instant) {
        self.connection.not_read_for(time, now);
    }

    /// Sends a heartbeat if one is due; gives the server up if nothing has arrived for too long.
    pub(crate) fn check(&mut self, now: Instant, inbox: &mut Inbox) {
        if self.state != ConnectionState::Open {
            return;
        }
        if self.connection.is_silent(now) {
            let quiet = now.saturating_duration_since(self.connection.alive());
            self.lose(format!(
                "the connection to the server was lost: the server is silent, no byte arrived for {} s",
                quiet.as_secs()
            ));
        } else {
            self.write(now, inbox);
        }
    }

    /// Reads what has arrived before the connection ends: answers to earlier requests may be among it.
    fn end_after_reading(&mut self, end: End, now: Instant, inbox: &mut Inbox) {
        let Inbox {
            messages, scratch, ..
        } = inbox;
        loop {
            let read = self.connection.read(scratch, now, |event| {
                if let PeerEvent::Message(frames) = event {
                    messages.push_back(frames);
                }
            });
            if !matches!(read, Ok(true)) {
                break;
            }
        }
        self.end(end);
    }

    fn end(&mut self, end: End) {
        let loss = match (self.state, end) {
            (ConnectionState::Connecting, End::Io(e)) => no_server(&e),
            (
                ConnectionState::Connecting | ConnectionState::Accepted,
                End::Closed | End::Io(_) | End::Violation(Violation::NoZmtp),
            ) => "the peer ended the connection during ZeroMQ's handshake: it is not an MDM server, or it takes no more \
                  sessions (--max-sessions, or its limit of open files)"
                .to_owned(),
            (
                ConnectionState::Connecting | ConnectionState::Accepted,
                End::Violation(Violation::Refused),
            ) => "the server refused this client's authentication".to_owned(),
            (
                ConnectionState::Connecting | ConnectionState::Accepted,
                End::Violation(violation),
            ) => {
                format!("ZeroMQ's handshake failed: {violation}: it is not an MDM server")
            }
            (ConnectionState::Open | ConnectionState::Lost, End::Violation(violation)) => {
                format!("the connection to the server was lost: {violation}")
            }
            (ConnectionState::Open | ConnectionState::Lost, End::Closed | End::Io(_)) => {
                "the connection to the server was lost".to_owned()
            }
        };
        self.lose(loss);
    }

    fn lose(&mut self, loss: String) {
        if self.state != ConnectionState::Lost {
            (self.state, self.loss) = (ConnectionState::Lost, loss);
        }
    }

    /// The error for a connection that is lost.
    pub(crate) fn loss(&self) -> Error {
        Error::unavailable(format!("{}: {}", self.endpoint, self.loss))
    }

    /// The error for a connection on which hello was not answered in time.
    pub(crate) fn hello_timeout(&self, waited: Duration) -> Error {
        let why = match self.state {
            ConnectionState::Connecting => "no connection: is the host up and the port open?",
            ConnectionState::Accepted => {
                "something accepts connections there, but it does not speak ZeroMQ: it is not an MDM server, or it hangs"
            }
            ConnectionState::Open => {
                "a ZeroMQ peer is there, but it does not answer hello: it is not an MDM server, or it hangs"
            }
            ConnectionState::Lost => &self.loss,
        };
        Error::unavailable(format!(
            "{}: {why} (waited {} s)",
            self.endpoint,
            waited.as_millis() as f64 / 1000.0
        ))
    }
}

impl AsFd for Dealer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn no_server(error: &io::Error) -> String {
    format!("no server: nothing accepts connections there ({error})")
}

fn not_connected(endpoint: &Endpoint, error: &io::Error) -> Error {
    use rustix::io::Errno;

    let used_up = [Errno::MFILE, Errno::NFILE];
    if used_up
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
    {
        return Error::exhausted(
            "too many sessions are open in this process: the file descriptors are used up",
        );
    }
    if is_full(error) {
        return Error::unavailable(format!(
            "{endpoint}: no connection: something listens there, but accepts nobody"
        ));
    }
    Error::unavailable(format!("{endpoint}: {}", no_server(error)))
}
