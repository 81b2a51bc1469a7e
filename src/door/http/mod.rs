//! The door for HTTP/1.1 and HTTP/2: the Open Inference Protocol over REST.

mod body;
mod coding;
mod events;
mod guard;
mod infer;
mod models;
mod raw;
mod reply;
mod route;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::connections::{Connection, Watched};
use super::local::Local;

/// What a connection beyond the most that there may be is told.
pub(super) const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
      content-type: application/json\r\ncontent-length: 53\r\n\r\n\
      {\"error\":\"too many connections are open; try later\"}\n";

/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Most requests that are open on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Streams that a client may reset before they were looked at, and streams that we may have to reset, before the
/// connection is closed: a flood of resets would cost us more than the client.
const MAX_RESETS: usize = 64;
/// What an HTTP/2 client may send of one body before it has to wait for us to take it, and on one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// How an HTTP/2 connection begins.
const HTTP2_START: &[u8] = b"PRI";
/// How soon a connection is looked at again that has sent less than tells the protocol; then half as often each time.
const PEEK_AGAIN: Duration = Duration::from_millis(5);
/// It is closed instead of waiting longer than this once more: about ten seconds after its first byte.
const PEEK_AT_MOST: Duration = Duration::from_secs(6);

/// Spawns on the thread's own runtime.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future + 'static> Executor<F> for OnThisThread
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serves {
    /// The protocol, and metrics.
    All,
    /// The protocol: metrics are told elsewhere.
    Protocol,
    /// Metrics.
    Metrics,
}

/// Serves one connection until it closes.
pub(super) async fn serve(
    local: Rc<Local>,
    serves: Serves,
    stream: TcpStream,
    connection: Rc<Connection>,
) {
    let version = connection.unless_told(is_http2(&stream)).await;
    let Some(Ok(Some(is_http2))) = version else {
        return; // it closed before it has said anything
    };
    let service = {
        let connection = connection.clone();
        service_fn(move |request: Request<Incoming>| {
            let (local, open) = (local.clone(), connection.begin());
            async move { Ok::<_, Infallible>(route::answer(&local, serves, open, request).await) }
        })
    };
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    if is_http2 {
        connection.set_multiplexed();
        let served = http2::Builder::new(OnThisThread)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN)
            .serve_connection(io, service);
        let finish = |served: Pin<&mut http2::Connection<_, _, _>>| served.graceful_shutdown();
        connection.drive(served, finish).await;
    } else {
        let served = http1::Builder::new()
            // Our own clock looks at how long a head takes: hyper's would also end connections that lie idle.
            .header_read_timeout(None)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEADER_BYTES)
            .serve_connection(io, service);
        let finish = |served: Pin<&mut http1::Connection<_, _>>| served.graceful_shutdown();
        connection.drive(served, finish).await;
    }
}

/// Looks at how a connection begins, without taking anything; `None` if it closes first, or does not go on.
async fn is_http2(stream: &TcpStream) -> io::Result<Option<bool>> {
    let mut start = [0; HTTP2_START.len()];
    let mut again = PEEK_AGAIN;
    loop {
        let seen = stream.peek(&mut start).await?;
        if seen == 0 {
            return Ok(None);
        }
        if seen == start.len() || !HTTP2_START.starts_with(&start[..seen]) {
            return Ok(Some(start[..seen] == *HTTP2_START));
        }
        if again > PEEK_AT_MOST {
            return Ok(None);
        }
        // `P` begins POST too. The system would say at once, again and again, that there is something to read.
        tokio::time::sleep(again).await;
        again *= 2;
    }
}
