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
const READY: &[u8] = b"\x05READY";
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
        // Step by step, as libzmq does: libzmq hangs up on a peer that says all of this at once.
        stream.write_all(&greeting())?;
        let mut theirs = [0; GREETING_BYTES];
        stream.read_exact(&mut theirs).context("no greeting")?;
        ensure!(
            theirs[0] == 0xff && theirs[9] == 0x7f && theirs[10] >= 3,
            "no greeting of ZMTP 3: {theirs:?}"
        );
        let unread = Vec::new();
        let mut peer = Peer { stream, unread };
        peer.stream.write_all(&frame(COMMAND, &ready(id)?)?)?;
        let (flags, said) = peer.receive().context("no READY")?;
        ensure!(
            flags & COMMAND != 0 && said.starts_with(READY),
            "the server refused the connection: {}",
            String::from_utf8_lossy(&said)
        );
        peer.stream.write_all(&frame(0, message)?)?;
        let (flags, answer) = peer.receive().context("no answer")?;
        ensure!(flags & (COMMAND | MORE) == 0, "an answer of several frames");
        peer.stream.set_nonblocking(true)?;
        Ok((peer, answer))
    }

    /// Waits for the next frame that is no PING: its flags and its body.
    fn receive(&mut self) -> Result<(u8, Bytes)> {
        loop {
            while let Some((frame, rest)) = first(&self.unread) {
                let is_ping = answer_ping(&frame, &mut self.stream)?;
                let received = (frame.flags, Bytes::copy_from_slice(frame.body));
                self.unread = rest.to_vec();
                if !is_ping {
                    return Ok(received);
                }
            }
            let mut buffer = [0; 1024];
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the server hung up");
            self.unread.extend_from_slice(&buffer[..count]);
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
    let mut body = READY.to_vec();
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

/// If it is a PING, answers with a PONG of the same context, and says so.
fn answer_ping(asked: &Frame<'_>, stream: &mut TcpStream) -> Result<bool> {
    let ping = match asked.flags & COMMAND {
        0 => None,
        _ => asked.body.strip_prefix(PING),
    };
    let Some(ping) = ping else {
        return Ok(false);
    };
    let context = ping.get(TTL_BYTES..).unwrap_or_default();
    // A few bytes to a peer that reads: if they do not fit, something is wrong.
    stream.write_all(&frame(COMMAND, &[PONG, context].concat())?)?;
    Ok(true)
}
