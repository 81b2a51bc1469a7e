//! ZMTP by hand over a plain connection, for what no library would do: fall silent, never read, or say a message in
//! pieces.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Server};
use crate::raw::{Answer, hello, routing_id};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Which version a peer announces: 3.1 promises to answer PINGs.
#[derive(Clone, Copy)]
pub enum Version {
    V30,
    V31,
}

/// One connection, as a DEALER's.
pub struct Peer {
    pub stream: TcpStream,
    answers_pings: bool,
}

impl Peer {
    /// A connection that has shaken hands.
    ///
    /// # Errors
    /// It was turned away.
    pub fn connect(port: u16, id: &[u8], version: Version) -> io::Result<Peer> {
        let mut stream = plain(port);
        let mut ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity".to_vec();
        ready.extend((id.len() as u32).to_be_bytes());
        ready.extend(id);
        let mut hands = greeting(version).to_vec();
        hands.extend([COMMAND, ready.len() as u8]);
        hands.extend(ready);
        stream.write_all(&hands)?;
        let mut theirs = [0; 66];
        stream.read_exact(&mut theirs)?;
        let mut theirs = vec![0; theirs[65] as usize];
        stream.read_exact(&mut theirs)?;
        assert!(theirs.starts_with(b"\x05READY"), "{theirs:?}");
        Ok(Peer {
            stream,
            answers_pings: true,
        })
    }

    /// From now on PINGs are not answered.
    pub fn ignore_pings(&mut self) {
        self.answers_pings = false;
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        self.stream.write_all(&message(frames))
    }

    /// Says hello, and has the answer.
    pub fn greet(&mut self, id: u64) {
        self.send(&[hello(id)]).expect("a hello");
        let answer = self.receive().expect("an answer to hello");
        assert_eq!(answer.id(), id);
        assert!(["welcome", "hello_ok"].contains(&answer.kind()));
    }

    /// The next message.
    ///
    /// # Errors
    /// The connection ended, or nothing came in time.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.read_frame()?;
            if flags & COMMAND != 0 {
                if self.answers_pings && body.starts_with(b"\x04PING") {
                    let pong = [b"\x04PONG", &body[7..]].concat();
                    self.stream.write_all(&[COMMAND, pong.len() as u8])?;
                    self.stream.write_all(&pong)?;
                }
                continue;
            }
            frames.push(body);
            if flags & MORE == 0 {
                let header = rmp_serde::from_slice(&frames.remove(0)).expect("msgpack");
                return Ok(Answer {
                    header,
                    payload: frames,
                });
            }
        }
    }

    fn read_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut length = u64::from(head[1]);
        if head[0] & LONG != 0 {
            let mut rest = [0; 7];
            self.stream.read_exact(&mut rest)?;
            let all = [&head[1..], &rest].concat();
            length = u64::from_be_bytes(all.try_into().expect("8 bytes"));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// Waits until the server has ended this connection, whatever it says before; how long that took.
    pub fn ended(&mut self, limit: Duration) -> Duration {
        ended(&mut self.stream, limit)
    }
}

/// As [`Peer::ended`], of any connection.
pub fn ended(stream: &mut TcpStream, limit: Duration) -> Duration {
    let begun = Instant::now();
    let step = Duration::from_millis(200);
    stream.set_read_timeout(Some(step)).expect("a timeout");
    let mut buffer = vec![0; 64 * 1024];
    while begun.elapsed() < limit {
        match stream.read(&mut buffer) {
            Ok(0) => return begun.elapsed(),
            Ok(_) => {}
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&e.kind()) => {}
            Err(_) => return begun.elapsed(),
        }
    }
    panic!("it is still open after {limit:?}");
}

/// A session of two such connections, both hellos answered.
pub struct Pair {
    pub id: [u8; 16],
    pub port: Peer,
    pub out: Peer,
}

impl Pair {
    pub fn open(server: &Server) -> Pair {
        Pair::at(server.port, server.port_out, Version::V30).expect("a session")
    }

    /// A session at these ports.
    ///
    /// # Errors
    /// One of its connections was turned away.
    pub fn at(port: u16, port_out: u16, version: Version) -> io::Result<Pair> {
        let id = routing_id();
        let mut out = Peer::connect(port_out, &id, version)?;
        let mut port = Peer::connect(port, &id, version)?;
        out.greet(1);
        port.greet(1);
        Ok(Pair { id, port, out })
    }
}

/// What a peer says first.
pub fn greeting(version: Version) -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9]) = (0xff, 0x7f);
    greeting[10] = 3;
    greeting[11] = match version {
        Version::V30 => 0,
        Version::V31 => 1,
    };
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// A plain connection that gives up in the end.
pub fn plain(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// The start of a frame of so many bytes.
pub fn head(bytes: usize, last: bool) -> Vec<u8> {
    let mut head = vec![LONG | if last { 0 } else { MORE }];
    head.extend((bytes as u64).to_be_bytes());
    head
}

/// A message as it travels.
pub fn message(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, body) in frames.iter().enumerate() {
        bytes.extend(head(body.len(), index + 1 == frames.len()));
        bytes.extend(body);
    }
    bytes
}
