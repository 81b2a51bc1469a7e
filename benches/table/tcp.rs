//! Bare TCP: a ping-pong with a connection and a thread on either side for each client, and an echo of large messages.
//! Blocking reads and writes, nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::children::{self, Process};

/// The argument that makes this program the far end.
pub const SERVE: &str = "--tcp-server";

/// The argument that makes this program the far end of an echo.
pub const ECHO: &str = "--tcp-echo";

/// The far end. Arguments: bytes of a request, bytes of an answer.
pub fn serve(args: &[String]) -> Result<()> {
    let [request, answer] = sizes(args)?;
    for_each_client(move |stream| answer_all(stream, request, answer))
}

/// The far end of an echo. Argument: bytes of a message.
pub fn echo(args: &[String]) -> Result<()> {
    let [size] = sizes(args)?;
    for_each_client(move |stream| echo_all(stream, size))
}

fn sizes<const N: usize>(args: &[String]) -> Result<[usize; N]> {
    let sizes: Vec<usize> = args
        .iter()
        .map(|arg| arg.parse().context("a size"))
        .collect::<Result<_>>()?;
    sizes
        .try_into()
        .map_err(|sizes| anyhow!("expected {N} sizes, got {sizes:?}"))
}

/// Serves each client in a thread of its own, until whoever started this process has gone.
fn for_each_client(serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("ready port={}", listener.local_addr()?.port());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || {
                // It ends with an error when the client hangs up.
                let _ = serve(stream);
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

fn echo_all(mut stream: TcpStream, size: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let message = read_fresh(&mut stream, size)?;
        stream.write_all(&message)?;
    }
}

/// Reads a message into memory that was allocated for it, as whoever keeps messages must. Zeroed memory of such a size
/// comes from the system as it is, so this does not write every page a second time.
fn read_fresh(stream: &mut TcpStream, size: usize) -> Result<Vec<u8>> {
    let mut message = vec![0; size];
    stream.read_exact(&mut message)?;
    Ok(message)
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

/// The near end of an echo of large messages, with the process of the far end.
pub struct Echo {
    _process: Process,
    stream: TcpStream,
}

impl Echo {
    /// Starts the far end for messages of so many bytes, and connects.
    pub fn start(size: usize) -> Result<Echo> {
        let (process, ready) = children::baseline(ECHO, &[size])?;
        let stream = TcpStream::connect(("127.0.0.1", children::number(&ready, "port")?))?;
        stream.set_nodelay(true)?;
        Ok(Echo {
            _process: process,
            stream,
        })
    }

    /// There and back.
    pub fn round_trip(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(message)?;
        read_fresh(&mut self.stream, message.len())
    }
}
