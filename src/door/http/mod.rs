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

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::connections::Connection;
use super::local::Local;
use super::serving::{self, HttpVersion};

/// What a connection beyond the most that there may be is told.
pub(super) const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
      content-type: application/json\r\ncontent-length: 53\r\n\r\n\
      {\"error\":\"too many connections are open; try later\"}\n";

/// How an HTTP/2 connection begins.
const HTTP2_START: &[u8] = b"PRI";
/// How soon a connection is looked at again that has sent less than tells the protocol; then half as often each time.
const PEEK_AGAIN: Duration = Duration::from_millis(5);
/// It is closed instead of waiting longer than this once more: about ten seconds after its first byte.
const PEEK_AT_MOST: Duration = Duration::from_secs(6);

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
    let protocol = match is_http2 {
        true => HttpVersion::Http2(HttpVersion::http2()),
        false => HttpVersion::http1(),
    };
    let shared = local.shared.clone();
    let answer = move |open, request| {
        let local = local.clone();
        async move { route::answer(&local, serves, open, request).await }
    };
    serving::serve(protocol, stream, &connection, &shared, answer).await;
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
