//! Tests of the router over real sockets: raw peers that say what they like, and libzmq's. Time that a peer would spend
//! in silence is added to the clock that the router is told.

mod bounds;
mod finish;
mod life;
mod talk;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::peers::Peer;
use super::*;
use crate::zmtp::codec::{self, Decoder, Event};
use crate::zmtp::mechanism::Mechanism;
use crate::zmtp::outgoing::Outgoing;

const MIB: usize = 1024 * 1024;

const BOUNDS: Bounds = Bounds {
    message: Limits {
        message_bytes: 64 * MIB as u64,
        frames: 64,
    },
    unfinished_bytes: 256 * MIB as u64,
    connections: 100,
    unread_bytes: 256 * MIB as u64,
};

const ID: [u8; 16] = *b"0123456789abcdef";

/// What a test may take; it fails then, and does not hang.
const TEST_LIMIT: Duration = Duration::from_secs(30);

/// A router with what has come from it, in a test's thread.
struct Server {
    router: Router,
    address: SocketAddr,
    begun: Instant,
    /// What was added to the clock.
    added: Duration,
    seen: VecDeque<Incoming>,
}

impl Server {
    fn new(bounds: Bounds) -> Server {
        let listener = Listener::tcp(&[SocketAddr::from(([127, 0, 0, 1], 0))]).unwrap();
        let address = ([127, 0, 0, 1], listener.port().unwrap()).into();
        let mut router = Router::new("port", bounds).unwrap();
        router.listen(listener).unwrap();
        Server {
            router,
            address,
            begun: Instant::now(),
            added: Duration::ZERO,
            seen: VecDeque::new(),
        }
    }

    fn now(&self) -> Instant {
        Instant::now() + self.added
    }

    /// A turn of an owner's loop.
    fn turn(&mut self) {
        assert!(self.begun.elapsed() < TEST_LIMIT, "it takes too long");
        self.router.wait(Some(Duration::from_millis(5))).unwrap();
        let now = self.now();
        while let Some(incoming) = self.router.next(now) {
            self.seen.push_back(incoming);
        }
        self.router.tick(now);
        self.router.flush(now);
    }

    fn wait_for(&mut self, mut condition: impl FnMut(&mut Server) -> bool) {
        while !condition(self) {
            self.turn();
        }
    }

    /// Lets a second pass, and two turns in it.
    fn second(&mut self) {
        self.added += Duration::from_secs(1);
        self.turn();
        self.turn();
    }

    fn seconds(&mut self, count: u32) {
        for _ in 0..count {
            self.second();
        }
    }

    fn incoming(&mut self) -> Incoming {
        self.wait_for(|server| !server.seen.is_empty());
        self.seen.pop_front().unwrap()
    }

    fn message(&mut self) -> (ReplyTo, Vec<Bytes>) {
        match self.incoming() {
            Incoming::Message(reply, frames) => (reply, frames),
            Incoming::Closed(_) => panic!("a connection was closed"),
            Incoming::Silent(_) => panic!("a connection is silent"),
        }
    }

    fn closed(&mut self) -> ReplyTo {
        match self.incoming() {
            Incoming::Closed(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn silent(&mut self) -> ReplyTo {
        match self.incoming() {
            Incoming::Silent(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, to: ReplyTo, frames: &[&'static [u8]]) {
        let frames = frames.iter().map(|frame| Bytes::from_static(frame));
        self.router.send(to, frames).unwrap();
    }

    /// A turn after which each message goes back to where it came from.
    fn echo(&mut self) -> usize {
        self.turn();
        let mut count = 0;
        while let Some(Incoming::Message(reply, frames)) = self.seen.pop_front() {
            self.router.send(reply, frames).unwrap();
            count += 1;
        }
        assert!(self.seen.is_empty(), "a connection is over");
        let now = self.now();
        self.router.flush(now);
        count
    }

    fn peer(&self, reply: ReplyTo) -> &Peer {
        let token = self.router.peers.token(reply).unwrap();
        self.router.peers.get(token).unwrap()
    }

    /// A peer whose handshake is done, and its name.
    fn join(&mut self, minor: u8, identity: &[u8]) -> (Raw, ReplyTo) {
        let mut raw = Raw::connect(self.address);
        self.say(&mut raw, &hello(minor, identity));
        self.say(&mut raw, &message(&[b"here"]));
        let (reply, frames) = self.message();
        assert_eq!(frames, [&b"here"[..]]);
        (raw, reply)
    }

    /// A peer says all of it, while the server goes on.
    fn say(&mut self, raw: &mut Raw, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let said = raw.say(bytes);
            bytes = &bytes[said..];
            self.turn();
        }
    }

    /// What the peer hears next, while the server goes on.
    fn hear(&mut self, raw: &mut Raw) -> Event {
        self.wait_for(|_| {
            raw.read();
            !raw.heard.is_empty() || raw.is_closed
        });
        raw.heard.pop_front().expect("its connection was closed")
    }

    fn wait_until_closed(&mut self, raw: &mut Raw) {
        self.wait_for(|_| {
            raw.read();
            raw.is_closed
        });
    }
}

/// A peer that does only what it is told: it answers no PING.
struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    heard: VecDeque<Event>,
    is_closed: bool,
}

impl Raw {
    fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let mechanism = Null::new(SocketType::Dealer, Bytes::new());
        Raw {
            stream,
            decoder: Decoder::new(Box::new(mechanism), BOUNDS.message),
            heard: VecDeque::new(),
            is_closed: false,
        }
    }

    /// How much of it the connection takes.
    fn say(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => panic!("{e}"),
        }
    }

    /// Reads what is there, up to a MiB. The server's READY is not told.
    fn read(&mut self) {
        let mut buffer = vec![0; MIB];
        let count = match self.stream.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => 0,
        };
        self.is_closed |= count == 0;
        let mut input = &buffer[..count];
        while let Some(event) = self.decoder.feed(&mut input).unwrap() {
            if !matches!(event, Event::Ready { .. }) {
                self.heard.push_back(event);
            }
        }
    }
}

fn hello(minor: u8, identity: &[u8]) -> Vec<u8> {
    let mut hello = codec::greeting(minor, "NULL").to_vec();
    let mut null = Null::new(SocketType::Dealer, Bytes::copy_from_slice(identity));
    codec::push_command(&mut hello, &null.first());
    hello
}

fn message(frames: &[&[u8]]) -> Vec<u8> {
    let (mut outgoing, mut bytes) = (Outgoing::default(), Vec::new());
    outgoing.push_message(frames.iter().map(|frame| Bytes::copy_from_slice(frame)));
    while !outgoing.write_to(&mut bytes).unwrap() {}
    bytes
}

/// The head of a frame of so many bytes, all of them and the last of a message.
fn promise(bytes: usize) -> Vec<u8> {
    let mut head = Vec::new();
    codec::push_head(&mut head, bytes, false);
    head
}

fn heard(frames: &[&'static [u8]]) -> Event {
    Event::Message(
        frames
            .iter()
            .map(|frame| Bytes::from_static(frame))
            .collect(),
    )
}
