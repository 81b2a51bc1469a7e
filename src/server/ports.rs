//! The two ports that clients connect to: their listeners, and the bounds on what their connections may send.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::zmtp::codec::Limits;
use crate::zmtp::router::{Bounds, Router};
use crate::zmtp::stream::Listener;

use super::local::LocalFiles;

/// What a request's message may have beyond `--max-request-bytes`, for its header.
const HEADER_SLACK_BYTES: u64 = 64 * 1024;
/// Most frames of a request: more than the most tensors take, so that a request of too many tensors gets an error.
const REQUEST_FRAMES: usize = 16 * 1024;
/// Most bytes of one message on `port_out`, which takes only hello.
const HELLO_BYTES: u64 = 4096;
const HELLO_FRAMES: usize = 8;
/// A client that leaves more bytes of answers unread on `port` than this is not read from until it has read some.
const UNREAD_BYTES: u64 = 256 * 1024;
/// Descriptors that are reserved for the server itself: models' files, logs, the engine, wakers, inner sockets.
const RESERVED_DESCRIPTORS: u64 = 48;
/// Descriptors of each worker: those of its five inner sockets, and some to spare.
const WORKER_DESCRIPTORS: u64 = 8;
/// Most sessions where the system's limit on descriptors is higher, or absent.
const MOST_SESSIONS: u64 = 1 << 20;

/// One of the two ports: its listeners, TCP and local, and what it takes of its peers.
pub(super) struct BoundPort {
    flag: &'static str,
    bounds: Bounds,
    listeners: [Listener; 2],
}

impl BoundPort {
    /// The port's router, to be made in the thread that uses it.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no descriptor is left.
    pub(super) fn open(self) -> Result<Router> {
        let mut router = Router::new(self.flag, self.bounds)?;
        for listener in self.listeners {
            router.listen(listener)?;
        }
        Ok(router)
    }
}

/// Both ports, bound.
pub(super) struct BoundPorts {
    /// `port`.
    pub(super) requests: BoundPort,
    /// `port_out`.
    pub(super) out: BoundPort,
    pub(super) port: u16,
    pub(super) port_out: u16,
    pub(super) files: Arc<LocalFiles>,
}

impl BoundPorts {
    /// Binds both ports, and beside each a local socket.
    ///
    /// # Errors
    /// What is in use, or cannot be made; nothing is left behind then.
    pub(super) fn open(config: &Config) -> Result<BoundPorts> {
        let connections = max_connections(config);
        let tcp_out = listen("--port-out", &config.host, config.port_out)?;
        let tcp = listen("--port", &config.host, config.port)?;
        let bound = |listener: &Listener| {
            let port = listener.port();
            port.map_err(|e| Error::internal(format!("no port of a bound socket: {e}")))
        };
        let (port, port_out) = (bound(&tcp)?, bound(&tcp_out)?);
        // TCP first: the local sockets are named after the port, so binding it keeps two servers from using the same files.
        let files = Arc::new(LocalFiles::claim(&config.sock_tmp_dir, port)?);
        let local_out = listen_local(&files.path_out())?;
        let local = listen_local(&files.path_in())?;
        let requests = Bounds {
            message: Limits {
                message_bytes: config.max_request_bytes + HEADER_SLACK_BYTES,
                frames: REQUEST_FRAMES,
            },
            unfinished_bytes: config.max_unfinished_bytes,
            connections,
            unread_bytes: UNREAD_BYTES,
        };
        let out = Bounds {
            message: Limits {
                message_bytes: HELLO_BYTES,
                frames: HELLO_FRAMES,
            },
            // Results are bounded for each client; this bounds the answers to a client that says hello and never reads.
            unread_bytes: config.max_client_bytes,
            ..requests
        };
        Ok(BoundPorts {
            requests: BoundPort {
                flag: "port",
                bounds: requests,
                listeners: [tcp, local],
            },
            out: BoundPort {
                flag: "port_out",
                bounds: out,
                listeners: [tcp_out, local_out],
            },
            port,
            port_out,
            files,
        })
    }
}

/// Listens on TCP; port 0 picks a free one.
///
/// # Errors
/// `UNAVAILABLE`, naming the address and what to do, if it is in use or not this machine's.
fn listen(flag: &str, host: &str, port: u16) -> Result<Listener> {
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
fn listen_local(path: &Path) -> Result<Listener> {
    Listener::local(path).map_err(|e| {
        Error::precondition(format!(
            "--zeromq-sock-tmp-dir: {} cannot be bound: {e}",
            path.display()
        ))
    })
}

/// How many connections each port takes: `--max-sessions`, as far as there are descriptors for them.
fn max_connections(config: &Config) -> usize {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    let own = RESERVED_DESCRIPTORS + WORKER_DESCRIPTORS * config.all_workers() as u64;
    // A session has a connection on each port.
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
