//! A bare TCP ping-pong: a connection and a thread on either side for each client, blocking reads, nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

use super::children::{self, Process};

/// The argument that makes this program the far end.
pub const SERVE: &str = "--tcp-server";

/// The far end. Arguments: bytes of a request, bytes of an answer.
pub fn serve(args: &[String]) -> Result<()> {
    let sizes: Vec<usize> = args
        .iter()
        .map(|arg| arg.parse().context("a size"))
        .collect::<Result<_>>()?;
    let &[request, answer] = sizes.as_slice() else {
        bail!("expected two sizes");
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("ready port={}", listener.local_addr()?.port());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // It ends with an error when the client hangs up.
                let _ = answer_all(stream, request, answer);
            });
        }
    });
    children::until_abandoned();
    Ok(())
}

fn answer_all(mut stream: TcpStream, request: usize, answer: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut request, answer) = (vec![0; request], vec![0; answer]);
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&answer)?;
    }
}

/// The far end's process.
pub struct Tcp {
    pub process: Process,
    port: u16,
    request: usize,
    answer: usize,
}

impl Tcp {
    /// Starts it for messages of these sizes in bytes.
    pub fn start(request: usize, answer: usize) -> Result<Tcp> {
        let (process, ready) = children::baseline(SERVE, &[request, answer])?;
        Ok(Tcp {
            process,
            port: children::number(&ready, "port")?,
            request,
            answer,
        })
    }

    /// One more connection.
    pub fn connect(&self) -> Result<Ping> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(Ping {
            stream,
            request: vec![0; self.request],
            answer: vec![0; self.answer],
        })
    }
}

/// A connection.
pub struct Ping {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Ping {
    /// There and back.
    pub fn round_trip(&mut self) -> Result<()> {
        self.stream.write_all(&self.request)?;
        self.stream.read_exact(&mut self.answer)?;
        Ok(())
    }
}
