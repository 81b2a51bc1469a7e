//! Bare servers of the libraries that doors are made with: they read a request of any kind and answer with so many bytes.
//! Each is a process of its own with one single-threaded runtime, as a door has.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::children::{self, Process, number};

/// The arguments that make this program one of them.
pub const HTTP: &str = "--http-server";
pub const GRPC: &str = "--grpc-server";

/// A bare server, in a process of its own.
pub struct Bare {
    pub process: Process,
    pub port: u16,
}

impl Bare {
    /// Its answers have so many bytes, the frame of gRPC not counted.
    pub fn start(mode: &str, answer: usize) -> Result<Bare> {
        let (process, ready) = children::baseline(mode, &[answer])?;
        let port = number(&ready, "port")?;
        Ok(Bare { process, port })
    }
}

/// Serves on one thread until whoever started it has gone. Argument: bytes of an answer.
fn serve<F: Future<Output = Result<()>>>(
    args: &[String],
    serving: impl FnOnce(Bytes) -> F,
) -> Result<()> {
    let bytes: usize = args.first().context("a size")?.parse()?;
    let answer = Bytes::from(vec![0; bytes]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(|| {
        children::until_abandoned();
        std::process::exit(0);
    });
    tokio::task::LocalSet::new().block_on(&runtime, serving(answer))
}

/// hyper, over HTTP/1.1.
pub fn serve_http(args: &[String]) -> Result<()> {
    serve(args, async |answer: Bytes| {
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
    })
}

/// A body of one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// tonic, whose messages are bytes that nobody reads.
pub fn serve_grpc(args: &[String]) -> Result<()> {
    serve(args, async |answer: Bytes| {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
        println!("ready port={}", incoming.local_addr()?.port());
        let served = Server::builder().serve_with_incoming(Answers(answer), incoming);
        Ok(served.await?)
    })
}

/// Calls of every method, and what they are answered.
#[derive(Clone)]
struct Answers(Bytes);

impl Service<Request<tonic::body::Body>> for Answers {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let answers = self.clone();
        Box::pin(async move { Ok(Grpc::new(Raw).unary(answers, request).await) })
    }
}

impl UnaryService<Bytes> for Answers {
    type Response = Bytes;
    type Future = Ready<Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, _request: tonic::Request<Bytes>) -> Self::Future {
        ready(Ok(tonic::Response::new(self.0.clone())))
    }
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
