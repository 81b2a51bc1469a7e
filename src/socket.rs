//! Endpoints, binding, polling, high-water marks, linger: how our sockets are set up.

mod waiter;

use std::time::Duration;

use zmq::{Context, Socket, SocketType};

use crate::error::{Error, Result};
use crate::frames;

pub(crate) use waiter::{Vigil, Waiter};

/// Both ends ask for a sign of life this often on TCP.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A connection without a sign of life for so long is lost.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);
/// Header bytes that a request may have beyond its payload.
pub(crate) const HEADER_SLACK_BYTES: u64 = 64 * 1024;

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

/// The port at the end of a bound TCP endpoint.
pub(crate) fn port_of(socket: &Socket) -> Result<u16> {
    let endpoint = socket.get_last_endpoint()?.unwrap_or_default();
    endpoint
        .rsplit(':')
        .next()
        .and_then(|port| port.trim_end_matches('\0').parse().ok())
        .ok_or_else(|| Error::internal(format!("no port in bound endpoint {endpoint:?}")))
}

/// An inner socket: it keeps nothing when it closes, and its queue is bounded by credits, not by a mark.
pub(crate) fn inner(context: &Context, kind: SocketType) -> Result<Socket> {
    let socket = context.socket(kind)?;
    socket.set_linger(0)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    Ok(socket)
}

/// An inner socket at the binding end.
pub(crate) fn inner_bound(context: &Context, kind: SocketType, endpoint: &str) -> Result<Socket> {
    let socket = inner(context, kind)?;
    socket
        .bind(endpoint)
        .map_err(|e| Error::internal(format!("{endpoint}: {e}")))?;
    Ok(socket)
}

/// An inner socket at the connecting end.
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

/// A front: a ROUTER that clients connect to.
pub(crate) struct Front<'a> {
    pub context: &'a Context,
    /// The flag that chooses its port, for errors.
    pub flag: &'a str,
    pub host: &'a str,
    /// 0 for a free one.
    pub port: u16,
    /// Where doors in this process connect.
    pub door: &'a str,
    pub max_frame_bytes: i64,
    pub receive_mark: i32,
    pub send_mark: i32,
    /// Sending to a client that is gone is an error, and to one whose queue is full.
    pub mandatory: bool,
}

/// How long answers may take to leave when a front is closed.
const FRONT_LINGER: Duration = Duration::from_secs(1);

impl Front<'_> {
    /// Makes the socket and binds it to TCP.
    ///
    /// # Errors
    /// `UNAVAILABLE`, naming the address and what to do, if it is in use or not this machine's.
    pub(crate) fn bind(&self) -> Result<Socket> {
        let socket = self.context.socket(zmq::ROUTER)?;
        socket.set_linger(millis(FRONT_LINGER))?;
        socket.set_ipv6(is_ipv6(self.host))?;
        // Nobody answers for it, so it refuses only peers older than ZMTP 3, which give their id unchecked.
        socket.set_zap_domain("mdm")?;
        socket.set_maxmsgsize(self.max_frame_bytes)?;
        socket.set_rcvhwm(self.receive_mark)?;
        socket.set_sndhwm(self.send_mark)?;
        socket.set_router_mandatory(self.mandatory)?;
        socket.set_router_handover(false)?;
        set_heartbeat(&socket)?;
        let port = match self.port {
            0 => "*".to_owned(),
            port => port.to_string(),
        };
        let endpoint = tcp_endpoint(self.host, &port);
        socket.bind(&endpoint).map_err(|e| {
            let (flag, host, port) = (self.flag, self.host, self.port);
            Error::unavailable(match e {
                zmq::Error::EADDRINUSE => format!(
                    "{flag} {port}: the port is in use on {host}; choose another, or 0 for a free one"
                ),
                zmq::Error::EACCES => {
                    format!("{flag} {port}: this user may not bind it; ports above 1023 are free to all")
                }
                zmq::Error::EADDRNOTAVAIL | zmq::Error::ENODEV => {
                    format!("--host {host}: not an address of this machine")
                }
                other => format!("{flag}: {endpoint} cannot be bound: {other}"),
            })
        })?;
        Ok(socket)
    }
}

/// Binds a front's local endpoints as well: for this machine's users, and for doors in this process.
pub(crate) fn bind_local(socket: &Socket, ipc: &str, door: &str) -> Result<()> {
    for endpoint in [ipc, door] {
        socket
            .bind(endpoint)
            .map_err(|e| Error::precondition(format!("{endpoint} cannot be bound: {e}")))?;
    }
    Ok(())
}
