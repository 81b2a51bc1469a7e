//! The ZeroMQ sockets between the loops: how they are set up and waited for.

mod waiter;

use zmq::{Context, Socket, SocketType};

use crate::error::{Error, Result};

pub(crate) use waiter::{BusyPoll, Waiter, wait_for};

/// A socket between loops. It drops what is unsent when it closes. Its queue has no limit of its own (high-water mark):
/// credits bound it.
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
