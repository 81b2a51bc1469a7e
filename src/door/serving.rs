//! How hyper serves a connection of a door: its settings, on the thread's own runtime, and its answers, which count as owed
//! until the peer has taken them.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::connections::{Connection, Open, Owed};
use super::shared::Shared;
use super::watched::Watched;

/// Most headers of a request of HTTP/1.1.
const MAX_HEADERS: usize = 100;
/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Most requests that are open on one connection.
const MAX_STREAMS: u32 = 256;
/// Streams that a client may reset before they were looked at, and streams that we may have to reset, before the
/// connection is closed: a flood of resets would cost us more than the client.
const MAX_RESETS: usize = 64;
/// What a client may send of one body before it has to wait for us to take it, and on one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How often a silent client is asked whether it is there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Spawns on the thread's own runtime.
#[derive(Clone, Copy)]
pub(super) struct OnThisThread;

impl<F: Future + 'static> Executor<F> for OnThisThread
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// What a connection speaks, with its settings.
pub(super) enum HttpVersion {
    Http1(http1::Builder),
    Http2(http2::Builder<OnThisThread>),
}

impl HttpVersion {
    /// HTTP/1.1, as the doors speak it.
    pub(super) fn http1() -> HttpVersion {
        let mut settings = http1::Builder::new();
        settings
            // Our own clock looks at how long a head takes: hyper's would also end connections that lie idle.
            .header_read_timeout(None)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEADER_BYTES);
        HttpVersion::Http1(settings)
    }

    /// HTTP/2, as the doors speak it.
    pub(super) fn http2() -> http2::Builder<OnThisThread> {
        let mut settings = http2::Builder::new(OnThisThread);
        settings
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        settings
    }
}

/// Serves one connection until it closes.
pub(super) async fn serve<B, F>(
    protocol: HttpVersion,
    stream: TcpStream,
    connection: &Rc<Connection>,
    shared: &Arc<Shared>,
    answer: impl Fn(Open, Request<Incoming>) -> F + Clone + 'static,
) where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    F: Future<Output = Response<B>> + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let open = connection.begin();
        let (answer, connection, shared) = (answer.clone(), connection.clone(), shared.clone());
        async move {
            // Made here: what is made before is moved in here, and then has room set aside for it twice.
            let answered = answer(open, request).await;
            shared.responses.count(connection.kind, &answered);
            Ok::<_, Infallible>(answered.map(|body| Answer {
                body,
                connection,
                shared,
            }))
        }
    });
    if let HttpVersion::Http2(_) = protocol {
        connection.expect_preface();
    }
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    match protocol {
        HttpVersion::Http1(settings) => {
            let served = settings.serve_connection(io, service);
            let finish = |served: Pin<&mut http1::Connection<_, _>>| served.graceful_shutdown();
            connection.drive(served, finish).await;
        }
        HttpVersion::Http2(settings) => {
            let served = settings.serve_connection(io, service);
            let finish = |served: Pin<&mut http2::Connection<_, _, _>>| served.graceful_shutdown();
            connection.drive(served, finish).await;
        }
    }
}

/// An answer, each piece of which counts as owed from the time that it could leave.
struct Answer<B> {
    body: B,
    connection: Rc<Connection>,
    shared: Arc<Shared>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            let kind = self.connection.kind;
            self.shared.responses.count_end(kind, trailers);
        }
        frame.map_ok(|frame| {
            frame.map_data(|bytes| Piece {
                bytes,
                owed: Owed::new(&self.connection),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that leave.
struct Piece {
    bytes: Bytes,
    owed: Owed,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.owed.note_taken();
    }
}
