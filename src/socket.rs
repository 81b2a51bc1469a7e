//! Endpoints, binding, polling, high-water marks, linger: how our sockets are set up.

#[cfg(feature = "server")]
mod waiter;

use std::time::Duration;

use zmq::Socket;
#[cfg(feature = "server")]
use zmq::{Context, SocketType};

#[cfg(feature = "server")]
use crate::error::Error;
use crate::error::Result;
use crate::frames;

#[cfg(feature = "server")]
pub(crate) use waiter::{Vigil, Waiter};

/// Both ends ask for a sign of life this often on TCP.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A connection without a sign of life for so long is lost.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);
fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Heartbeats, both directions.
pub(crate) fn set_heartbeat(socket: &Socket) -> Result<()> {
    socket.set_heartbeat_ivl(millis(HEARTBEAT))?;
    socket.set_heartbeat_timeout(millis(HEARTBEAT_TIMEOUT))?;
    socket.set_heartbeat_ttl(millis(HEARTBEAT_TIMEOUT))?;
    Ok(())
}

/// Whether an address of the form `tcp://HOST:PORT` names an IPv6 host.
pub(crate) fn is_ipv6(host: &str) -> bool {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::Ipv6Addr>()
        .is_ok()
}

/// `tcp://HOST:PORT`, with the brackets that IPv6 wants.
pub(crate) fn tcp_endpoint(host: &str, port: &str) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if is_ipv6(bare) {
        format!("tcp://[{bare}]:{port}")
    } else {
        format!("tcp://{bare}:{port}")
    }
}

/// An inner socket: it keeps nothing when it closes, and its queue is bounded by credits, not by a mark.
#[cfg(feature = "server")]
pub(crate) fn inner(context: &Context, kind: SocketType) -> Result<Socket> {
    let socket = context.socket(kind)?;
    socket.set_linger(0)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    Ok(socket)
}

/// An inner socket at the binding end.
#[cfg(feature = "server")]
pub(crate) fn inner_bound(context: &Context, kind: SocketType, endpoint: &str) -> Result<Socket> {
    let socket = inner(context, kind)?;
    socket
        .bind(endpoint)
        .map_err(|e| Error::internal(format!("{endpoint}: {e}")))?;
    Ok(socket)
}

/// An inner socket at the connecting end.
#[cfg(feature = "server")]
pub(crate) fn inner_connected(
    context: &Context,
    kind: SocketType,
    endpoint: &str,
) -> Result<Socket> {
    let socket = inner(context, kind)?;
    socket
        .connect(endpoint)
        .map_err(|e| Error::internal(format!("{endpoint}: {e}")))?;
    Ok(socket)
}

/// The most sockets that [`wait`] waits for.
pub(crate) const MOST_WAITED: usize = 5;

/// Waits until there is news for one of the sockets, or the time is over; `None` waits for ever. A signal ends it early.
///
/// Each socket must have been received from until it had nothing, and not been used since: only then does its
/// descriptor tell of whatever comes next. (zmq_poll has no such rule, and asks every socket twice, at a system call
/// each: half the time of a loop that handles small requests.)
pub(crate) fn wait(sockets: &[&Socket], timeout: Option<Duration>) -> Result<[bool; MOST_WAITED]> {
    Ok(frames::wait_readable(
        descriptors(sockets)?,
        milliseconds(timeout),
    ))
}

fn descriptors(sockets: &[&Socket]) -> Result<[i32; MOST_WAITED]> {
    let mut descriptors = [-1; MOST_WAITED];
    for (descriptor, socket) in descriptors.iter_mut().zip(sockets) {
        *descriptor = socket.get_fd()?;
    }
    Ok(descriptors)
}

/// Rounded up: a wait that ends just before its time would be followed by another of 0. -1 is for ever.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |t| {
        t.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32
    })
}
