//! A connection that speaks just enough ZMTP 3.1 (<https://rfc.zeromq.org/spec/37/>) to be one of a session that sits
//! idle: it says hello, and answers PINGs. No thread and no library behind it, so that one thread can hold thousands.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;

const GREETING_BYTES: usize = 64;
/// Flags of a frame.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a command's body begins with: the length of its name, and the name.
const PING: &[u8] = b"\x04PING";
const PONG: &[u8] = b"\x04PONG";
const ERROR: &[u8] = b"\x05ERROR";
const TTL_BYTES: usize = 2;

/// An answer that is not there after so long is missing.
const ANSWER: Duration = Duration::from_secs(20);

pub struct Peer {
    stream: TcpStream,
    /// The beginning of a frame.
    unread: Vec<u8>,
}

struct Frame<'a> {
    flags: u8,
    body: &'a [u8],
}

impl Peer {
    /// Connects with this routing id, sends a message of one frame and waits for the one frame of the answer.
    pub fn connect(port: u16, id: &[u8], message: &[u8]) -> Result<(Peer, Bytes)> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut said = greeting();
        said.extend(frame(COMMAND, &ready(id)?)?);
        said.extend(frame(0, message)?);
        stream.write_all(&said)?;

        let (mut received, mut buffer) = (Vec::new(), [0; 1024]);
        loop {
            let count = stream.read(&mut buffer).context("no answer")?;
            ensure!(count > 0, "the server hung up before it answered");
            received.extend_from_slice(&buffer[..count]);
            let Some((answer, rest)) = answer(&received, &mut stream)? else {
                continue;
            };
            let (answer, unread) = (Bytes::copy_from_slice(answer), rest.to_vec());
            stream.set_nonblocking(true)?;
            return Ok((Peer { stream, unread }, answer));
        }
    }

    /// Reads what has come and answers PINGs; does not wait.
    ///
    /// # Errors
    /// If the server has hung up.
    pub fn tend(&mut self) -> Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server hung up on an idle connection"),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            let mut rest = &self.unread[..];
            while let Some((frame, behind)) = first(rest) {
                answer_ping(&frame, &mut self.stream)?;
                rest = behind;
            }
            self.unread = rest.to_vec();
        }
    }
}

/// The signature, version 3.1, the mechanism NULL, not as a server, and zeros.
fn greeting() -> Vec<u8> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    greeting.extend(b"NULL");
    greeting.resize(GREETING_BYTES, 0);
    greeting
}

fn ready(id: &[u8]) -> Result<Vec<u8>> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", &b"DEALER"[..]), ("Identity", id)] {
        body.push(u8::try_from(name.len())?);
        body.extend(name.as_bytes());
        body.extend(u32::try_from(value.len())?.to_be_bytes());
        body.extend(value);
    }
    Ok(body)
}

fn frame(flags: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = u8::try_from(body.len()).context("only short frames are sent here")?;
    Ok([&[flags, length], body].concat())
}

/// The first frame, and what is behind it, if it is all there.
fn first(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (&flags, rest) = bytes.split_first()?;
    let (length, rest) = if flags & LONG == 0 {
        let (&length, rest) = rest.split_first()?;
        (u64::from(length), rest)
    } else {
        let (length, rest) = rest.split_first_chunk()?;
        (u64::from_be_bytes(*length), rest)
    };
    let (body, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((Frame { flags, body }, rest))
}

/// The one frame of the first message in what a server sent from the beginning on, and what is behind it.
fn answer<'a>(received: &'a [u8], stream: &mut TcpStream) -> Result<Option<(&'a [u8], &'a [u8])>> {
    let Some((greeting, mut rest)) = received.split_at_checked(GREETING_BYTES) else {
        return Ok(None);
    };
    ensure!(
        greeting[0] == 0xff && greeting[9] == 0x7f && greeting[10] >= 3,
        "no greeting of ZMTP 3: {greeting:?}"
    );
    while let Some((frame, behind)) = first(rest) {
        if frame.flags & COMMAND == 0 {
            ensure!(frame.flags & MORE == 0, "an answer of several frames");
            return Ok(Some((frame.body, behind)));
        }
        if frame.body.starts_with(ERROR) {
            let text = String::from_utf8_lossy(&frame.body[ERROR.len()..]);
            bail!("the server refused the connection: {text}");
        }
        answer_ping(&frame, stream)?;
        rest = behind;
    }
    Ok(None)
}

/// A PONG with the PING's context, if it is one.
fn answer_ping(asked: &Frame<'_>, stream: &mut TcpStream) -> Result<()> {
    if asked.flags & COMMAND == 0 {
        return Ok(());
    }
    let Some(context) = asked.body.strip_prefix(PING) else {
        return Ok(());
    };
    let context = context.get(TTL_BYTES..).unwrap_or_default();
    // A few bytes to a peer that reads: if they do not fit, something is wrong.
    Ok(stream.write_all(&frame(COMMAND, &[PONG, context].concat())?)?)
}
