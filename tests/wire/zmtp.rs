//! ZMTP 3.0 by hand over a plain connection: for peers that libzmq would not be.

use std::io::{Read, Result, Write};
use std::net::TcpStream;

use crate::common::PATIENCE;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What either side says first: a signature, version 3.0, the NULL mechanism.
pub fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// A plain connection that gives up in the end.
pub fn plain(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A connection that has shaken hands as a DEALER.
pub fn dealer(port: u16, id: &[u8]) -> TcpStream {
    let mut stream = plain(port);
    let mut ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity".to_vec();
    ready.extend_from_slice(&(id.len() as u32).to_be_bytes());
    ready.extend_from_slice(id);
    let mut hands = greeting();
    hands.extend([COMMAND, ready.len() as u8]);
    hands.extend(ready);
    stream.write_all(&hands).expect("a handshake");
    let mut theirs = [0; 66];
    stream.read_exact(&mut theirs).expect("a greeting");
    assert_eq!(theirs[64], COMMAND);
    let mut theirs = vec![0; theirs[65] as usize];
    stream.read_exact(&mut theirs).expect("a READY");
    assert!(theirs.starts_with(b"\x05READY"), "{theirs:?}");
    stream
}

/// A frame as it travels.
pub fn frame(body: &[u8], last: bool) -> Vec<u8> {
    let more = if last { 0 } else { MORE };
    let mut frame = match u8::try_from(body.len()) {
        Ok(length) => vec![more, length],
        Err(_) => {
            let mut frame = vec![more | LONG];
            frame.extend((body.len() as u64).to_be_bytes());
            frame
        }
    };
    frame.extend_from_slice(body);
    frame
}

/// Sends all frames of a message.
pub fn send(stream: &mut TcpStream, frames: &[Vec<u8>]) -> Result<()> {
    for (index, body) in frames.iter().enumerate() {
        stream.write_all(&frame(body, index + 1 == frames.len()))?;
    }
    Ok(())
}
