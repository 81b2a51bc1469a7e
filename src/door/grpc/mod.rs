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

use std::rc::Rc;

use tokio::net::TcpStream;

pub(super) use self::reflection::Reflection;
use super::connections::Connection;
use super::local::Local;
use super::serving::{self, HttpVersion};

/// The longest frame that a client may send: each costs both sides a little.
const FRAME_BYTES: u32 = 256 * 1024;

/// What a connection is served.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) local: Rc<Local>,
    pub(super) reflection: Rc<Reflection>,
}

/// Serves one connection until it closes.
pub(super) async fn serve(service: Service, stream: TcpStream, connection: Rc<Connection>) {
    let mut settings = HttpVersion::http2();
    settings.auto_date_header(false).max_frame_size(FRAME_BYTES);
    let shared = service.local.shared.clone();
    let answer = move |open, request| {
        let service = service.clone();
        async move { route::answer(&service, open, request).await }
    };
    let protocol = HttpVersion::Http2(settings);
    serving::serve(protocol, stream, &connection, &shared, answer).await;
}
