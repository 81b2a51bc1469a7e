//! HTTP/1.1 as a benchmark needs it: one kept connection that sends the same request again and again, and a bare server
//! of the same library as ours that reads a request and answers with as many bytes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::children::{self, Process, number};

/// The argument that makes this program the bare server.
pub const SERVE: &str = "--http-server";

/// A request as it is sent, and its answer's length.
#[derive(Clone, Debug)]
pub struct Asked {
    bytes: Vec<u8>,
}

impl Asked {
    /// `POST` with a body, in part of JSON.
    pub fn post(path: &str, json: &str, tensors: &[u8]) -> Asked {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n\
             inference-header-content-length: {}\r\ncontent-length: {}\r\n\r\n",
            json.len(),
            json.len() + tensors.len()
        );
        Asked {
            bytes: [head.as_bytes(), json.as_bytes(), tensors].concat(),
        }
    }

    /// The same of JSON alone.
    pub fn post_json(path: &str, json: &str) -> Asked {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            json.len()
        );
        Asked {
            bytes: [head.as_bytes(), json.as_bytes()].concat(),
        }
    }
}

/// A connection.
pub struct Http {
    stream: BufReader<TcpStream>,
    line: String,
    body: Vec<u8>,
}

impl Http {
    pub fn connect(port: u16) -> Result<Http> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Http {
            stream: BufReader::new(stream),
            line: String::new(),
            body: Vec::new(),
        })
    }

    /// Sends a request, and gives the answer's body.
    pub fn round_trip(&mut self, asked: &Asked) -> Result<&[u8]> {
        self.stream.get_mut().write_all(&asked.bytes)?;
        let mut length = None;
        let mut is_first = true;
        loop {
            self.line.clear();
            self.stream.read_line(&mut self.line)?;
            let line = self.line.trim_end();
            ensure!(!is_first || line.starts_with("HTTP/1.1 200"), "{line:?}");
            is_first = false;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.parse::<usize>()?);
            }
        }
        self.body
            .resize(length.context("an answer without a length")?, 0);
        self.stream.read_exact(&mut self.body)?;
        Ok(&self.body)
    }
}

/// The bare server, in a process of its own.
pub struct Bare {
    pub process: Process,
    pub port: u16,
}

impl Bare {
    /// Its answers have so many bytes.
    pub fn start(answer: usize) -> Result<Bare> {
        let (process, ready) = children::baseline(SERVE, &[answer])?;
        let port = number(&ready, "port")?;
        Ok(Bare { process, port })
    }
}

/// The far end. Argument: bytes of an answer's body.
pub fn serve(args: &[String]) -> Result<()> {
    let bytes: usize = args.first().context("a size")?.parse()?;
    let answer = Bytes::from(vec![0; bytes]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    let serving = async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("ready port={}", listener.local_addr()?.port());
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let mut body = request.into_body();
                    while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
                        .await
                        .is_some()
                    {}
                    Ok::<_, Infallible>(Response::new(Whole(Some(answer))))
                }
            });
            tokio::task::spawn_local(async move {
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                let _ = connection.await; // it ends when the client hangs up
            });
        }
    };
    std::thread::spawn(|| {
        children::until_abandoned();
        std::process::exit(0);
    });
    tasks.block_on(&runtime, serving)
}

/// A body of one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
