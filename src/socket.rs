//! Binding, polling, high-water marks, linger: how inner sockets are set up.

mod waiter;

use std::time::Duration;

use zmq::{Context, Socket, SocketType};

use crate::error::{Error, Result};

pub(crate) use waiter::{Vigil, Waiter};

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

/// The most sockets that a [`Waiter`] waits for.
pub(crate) const MOST_WAITED: usize = 5;

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
