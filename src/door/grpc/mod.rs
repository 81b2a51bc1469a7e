//! The door for gRPC: the Open Inference Protocol's `GRPCInferenceService`, health checks and reflection.
//!
//! tonic gives the statuses and the service of reflection. Messages are framed, and those of inference read and written,
//! here: a tensor that comes as bytes stays a slice of its message, and one that leaves is the parts that the sink has.
//! Copied is a message that comes in several frames of HTTP/2 (its tensors are one piece of memory), and BYTES, whose
//! lengths the protocol has between them.

mod fields;
mod health;
mod incoming;
mod infer;
mod lists;
mod messages;
mod models;
mod reflection;
mod reply;
mod request;
mod response;
mod route;
mod status;
mod stream;

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

pub(super) use self::reflection::Reflection;
use super::connections::{Connection, Watched};
use super::local::Local;

/// Most bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// Most calls that are open on one connection.
const MAX_CALLS: u32 = 256;
/// Calls that a client may reset before they were looked at, and that we may have to reset, before the connection is
/// closed: a flood of resets would cost us more than the client.
const MAX_RESETS: usize = 64;
/// What a client may send of one call before it has to wait for us to take it, and on one connection.
const CALL_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// The longest frame that a client may send: each costs both sides a little.
const FRAME_BYTES: u32 = 256 * 1024;
/// How often a silent client is asked whether it is there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(20);

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

/// What a connection is served.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) local: Rc<Local>,
    pub(super) reflection: Rc<Reflection>,
}

/// Serves one connection until it closes.
pub(super) async fn serve(service: Service, stream: TcpStream, connection: Rc<Connection>) {
    let served = {
        let connection = connection.clone();
        service_fn(move |request: Request<Incoming>| {
            let (service, open) = (service.clone(), connection.begin());
            async move { Ok::<_, Infallible>(route::answer(&service, open, request).await) }
        })
    };
    connection.set_multiplexed();
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    let served = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_CALLS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN)
        .serve_connection(io, served);
    let finish = |served: Pin<&mut http2::Connection<_, _, _>>| served.graceful_shutdown();
    connection.drive(served, finish).await;
}
