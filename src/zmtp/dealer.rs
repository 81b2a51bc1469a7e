//! The client's end of ZMTP: one connection to a ROUTER, from connecting to its end.
//!
//! The client has no thread of its own, so a session that lies idle reads nothing and answers no PING. That is why this
//! end announces ZMTP 3.0, which knows no PING: our server leaves such a peer to TCP keepalive, and a session may be idle
//! for as long as its owner likes. While a caller waits it is this end that asks: a server that announced 3.1 gets a PING
//! (time to live 0) after [`HEARTBEAT`](super::HEARTBEAT) without a byte, and is given up after
//! [`SILENCE`](super::SILENCE). Time in which nobody waited does not count, because nobody would have heard anything.

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
use super::connection::{Announce, Connection, End, News};
use super::mechanism::{Null, SocketType};
use super::outgoing::Outgoing;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A server's answers are not bounded here: their size is the client's own choice, and the server bounds them.
const LIMITS: Limits = Limits {
    message_bytes: u64::MAX,
    frames: usize::MAX,
};

/// A local listener whose backlog is full is asked again after so long; the system has no other way to tell.
const RETRY: Duration = Duration::from_millis(5);

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

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody has accepted it.
    Connecting,
    /// Somebody has, and has not ended the handshake yet.
    Accepted,
    /// The peer speaks ZMTP.
    Open,
    /// It is over.
    Lost,
}

/// What came on the connections of one session, and the memory that it is read with.
#[derive(Default)]
pub(crate) struct Inbox {
    pub messages: VecDeque<Vec<Bytes>>,
    /// Bytes have come since somebody set this to false.
    pub came: bool,
    scratch: Vec<u8>,
}

/// One connection to one endpoint. After its end it is of no more use.
pub(crate) struct Dealer {
    endpoint: Endpoint,
    connection: Connection,
    phase: Phase,
    /// Why it was lost, for a person.
    loss: String,
}

impl Dealer {
    /// Begins to connect.
    ///
    /// # Errors
    /// What shows at once: `UNAVAILABLE` if nobody listens, `RESOURCE_EXHAUSTED` if no descriptor is left.
    pub(crate) fn open(
        endpoint: Endpoint,
        routing_id: &[u8; 16],
        deadline: Instant,
    ) -> Result<Dealer> {
        let stream = match &endpoint {
            Endpoint::Tcp(address) => Stream::connect_tcp(*address),
            Endpoint::Local(path) => loop {
                match Stream::connect_local(path) {
                    Err(e) if is_full(&e) && Instant::now() < deadline => thread::sleep(RETRY),
                    other => break other,
                }
            },
        };
        let phase = match endpoint {
            Endpoint::Tcp(_) => Phase::Connecting,
            Endpoint::Local(_) => Phase::Accepted,
        };
        let stream = stream.map_err(|e| not_connected(&endpoint, &e))?;
        let identity = Bytes::copy_from_slice(routing_id);
        let mechanism = Box::new(Null::new(SocketType::Dealer, identity));
        let now = Instant::now();
        Ok(Dealer {
            endpoint,
            connection: Connection::new(stream, mechanism, Announce::V30, LIMITS, now),
            phase,
            loss: String::new(),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// What waits to be written, to append to; [`Dealer::write`] sends it.
    pub(crate) fn outgoing(&mut self) -> &mut Outgoing {
        self.connection.outgoing()
    }

    /// Whether something waits to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.connection.wants_room()
    }

    /// What it is to be polled for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.phase == Phase::Connecting || self.connection.wants_room() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    /// The poll saw these: connects, writes what there is room for, reads what is there.
    pub(crate) fn go_on(&mut self, seen: PollFlags, now: Instant, inbox: &mut Inbox) {
        if seen.is_empty() || self.phase == Phase::Lost {
            return;
        }
        if self.phase == Phase::Connecting {
            if let Err(e) = self.connection.stream().error() {
                self.lose(no_server(&e));
                return;
            }
            self.phase = Phase::Accepted;
        }
        if seen.contains(PollFlags::OUT) {
            self.write(now, inbox);
        }
        if seen != PollFlags::OUT && self.phase != Phase::Lost {
            self.read(now, inbox);
        }
    }

    fn read(&mut self, now: Instant, inbox: &mut Inbox) {
        let had_something_to_write = self.connection.wants_room();
        let mut is_ready = false;
        let Inbox {
            messages, scratch, ..
        } = inbox;
        let read = self.connection.read(scratch, now, |news| match news {
            News::Ready(_) => is_ready = true,
            News::Message(frames) => messages.push_back(frames),
        });
        if is_ready {
            self.phase = Phase::Open;
        }
        inbox.came |= matches!(read, Ok(true));
        match read {
            // The answer to a PING; what waited before is written when there is room.
            Ok(_) if !had_something_to_write => self.write(now, inbox),
            Ok(_) => {}
            Err(end) => self.end(end),
        }
    }

    /// Writes what waits, as far as there is room.
    pub(crate) fn write(&mut self, now: Instant, inbox: &mut Inbox) {
        if matches!(self.phase, Phase::Connecting | Phase::Lost) {
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
        if self.phase == Phase::Lost {
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

    /// For so long nobody waited.
    pub(crate) fn not_heard(&mut self, time: Duration, now: Instant) {
        self.connection.not_heard(time, now);
    }

    /// Asks for a sign of life where it is time for that; gives the server up if it has given none for too long.
    pub(crate) fn check(&mut self, now: Instant, inbox: &mut Inbox) {
        if self.phase != Phase::Open {
            return;
        }
        if self.connection.is_silent(now) {
            let quiet = now.saturating_duration_since(self.connection.alive());
            self.lose(format!(
                "the connection to the server was lost: the server is silent, not a byte came for {} s",
                quiet.as_secs()
            ));
        } else {
            self.write(now, inbox);
        }
    }

    /// What was written before this end of the connection was noticed may have an answer that is there already.
    fn end_after_reading(&mut self, end: End, now: Instant, inbox: &mut Inbox) {
        let Inbox {
            messages, scratch, ..
        } = inbox;
        loop {
            let read = self.connection.read(scratch, now, |news| {
                if let News::Message(frames) = news {
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
        let loss = match (self.phase, end) {
            (Phase::Connecting, End::Io(e)) => no_server(&e),
            (
                Phase::Connecting | Phase::Accepted,
                End::Closed | End::Io(_) | End::Violation(Violation::NoZmtp),
            ) => "the peer ended the connection during ZeroMQ's handshake: it is not an MDM server"
                .to_owned(),
            (Phase::Connecting | Phase::Accepted, End::Violation(Violation::Refused)) => {
                "the server refused this client's authentication".to_owned()
            }
            (Phase::Connecting | Phase::Accepted, End::Violation(violation)) => {
                format!("ZeroMQ's handshake failed: {violation}: it is not an MDM server")
            }
            (Phase::Open | Phase::Lost, End::Violation(violation)) => {
                format!("the connection to the server was lost: {violation}")
            }
            (Phase::Open | Phase::Lost, End::Closed | End::Io(_)) => {
                "the connection to the server was lost".to_owned()
            }
        };
        self.lose(loss);
    }

    fn lose(&mut self, loss: String) {
        if self.phase != Phase::Lost {
            (self.phase, self.loss) = (Phase::Lost, loss);
        }
    }

    /// What to tell of a connection that is lost.
    pub(crate) fn loss(&self) -> Error {
        Error::unavailable(format!("{}: {}", self.endpoint, self.loss))
    }

    /// What to tell of a connection on which hello was not answered in time.
    pub(crate) fn silence(&self, waited: Duration) -> Error {
        let why = match self.phase {
            Phase::Connecting => "no connection: is the host up and the port open?",
            Phase::Accepted => {
                "something accepts connections there, but it does not speak ZeroMQ: it is not an MDM server, or it hangs"
            }
            Phase::Open => {
                "a ZeroMQ peer is there, but it does not answer hello: it is not an MDM server, or it hangs"
            }
            Phase::Lost => &self.loss,
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
