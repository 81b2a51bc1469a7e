//! Where clients connect: the two fronts' listeners, and how many connections there may be.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::zmtp::stream::Listener;

/// Descriptors that are kept back for the server itself: models' files, logs, the engine, wakers, inner sockets.
const KEPT_DESCRIPTORS: u64 = 48;
/// What each worker takes of them: five inner sockets, each with a descriptor.
const WORKER_DESCRIPTORS: u64 = 8;
/// Where the system has no limit worth the name.
const MOST_SESSIONS: u64 = 1 << 20;

/// Listens on TCP; port 0 picks a free one.
///
/// # Errors
/// `UNAVAILABLE`, naming the address and what to do, if it is in use or not this machine's.
pub(super) fn listen(flag: &str, host: &str, port: u16) -> Result<Listener> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = name
        .parse()
        .map_err(|_| Error::invalid(format!("--host {host}: expected an IPv4 or IPv6 address")))?;
    Listener::tcp(&[SocketAddr::new(address, port)]).map_err(|e| {
        Error::unavailable(match e.kind() {
            io::ErrorKind::AddrInUse => format!(
                "{flag} {port}: the port is in use on {host}; choose another, or 0 for a free one"
            ),
            io::ErrorKind::PermissionDenied => {
                format!(
                    "{flag} {port}: this user may not bind it; ports above 1023 are free to all"
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("--host {host}: not an address of this machine")
            }
            _ => format!("{flag}: {host}:{port} cannot be bound: {e}"),
        })
    })
}

/// Listens on a local socket.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming the path.
pub(super) fn listen_local(path: &Path) -> Result<Listener> {
    Listener::local(path).map_err(|e| {
        Error::precondition(format!(
            "--zeromq-sock-tmp-dir: {} cannot be bound: {e}",
            path.display()
        ))
    })
}

/// How many connections each front takes: as many sessions as were asked for, as far as there are descriptors for them.
pub(super) fn max_connections(config: &Config) -> usize {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    let own = KEPT_DESCRIPTORS + WORKER_DESCRIPTORS * config.all_workers() as u64;
    // A session has a connection at each front.
    let possible = (limit.saturating_sub(own) / 2).clamp(1, MOST_SESSIONS) as usize;
    match config.max_sessions {
        Some(wanted) if wanted > possible => {
            tracing::warn!(
                wanted,
                possible,
                descriptors = limit,
                "--max-sessions is more than the limit on descriptors allows: raise it (ulimit -n)"
            );
            possible
        }
        Some(wanted) => wanted,
        None => possible,
    }
}
