//! Doors: clients of other protocols, served by threads of this process that submit through [`crate::server::Door`].
//!
//! ```text
//! connection ─▶ task: read, translate ─▶ Pipeline ─▶ server::Door ─▶ ventilator … sink ─▶ server::Door
//!     ▲                                                                                       │ its descriptor
//!     └──────────── answer: the parts as the sink has them ◀── slot ◀── the thread's reader ◀─┘
//! ```
//! Each door thread (`runtime.rs`) has a single-threaded runtime, one `server::Door` and the connections that it has
//! accepted. A task submits straight into that door, and the thread's reader hands it its answers: there is no thread
//! between the runtime and the ventilator, and no lock that many connections wait for: those there are guard a list between
//! two threads for as long as an entry takes. What the tasks of a thread share is in `local.rs`, what the threads share in
//! `shared.rs`. What takes its time runs on threads beside it
//! (`beside.rs`).
//!
//! A connection is a caller (`connections.rs`, its bytes in `watched.rs` and `frames.rs`, hyper over them in `serving.rs`): the pipeline's
//! turns and bounds count it as they count a session. When the future that waits for an answer is dropped, as hyper does when
//! the peer has gone, the request is cancelled. What was answered is counted by status in `responses.rs`.
//!
//! What both doors do is done once: `incoming.rs` and `inflate.rs` make one piece of memory of a body and count it
//! (`uploads.rs` has slow ones make room), `documents.rs` readies a request for its model, `ordered.rs` gives parts in row
//! order, `turn.rs` whole answers in that of their requests, `counted.rs` counts answers until they were written, `models.rs`
//! tells of models and loads them. A door renders what comes of that.
//!
//! `translate/` is pure: the Open Inference Protocol's JSON and bytes on one side, requests and outputs on the other. `http/`
//! and `grpc/` are the doors; each has a way into the pipeline of its own, so that requests are counted by door.

mod beside;
mod connections;
mod counted;
mod documents;
mod errors;
mod frames;
mod grpc;
mod http;
mod incoming;
mod inflate;
mod local;
mod models;
mod ordered;
mod responses;
mod runtime;
mod serving;
mod shared;
mod submit;
mod translate;
mod turn;
mod uploads;
mod watched;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use self::runtime::{Opened, Order};
use self::shared::Shared;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::message::Protocol;
use crate::server::Server;

/// The doors of a server. They end by themselves once the server has stopped; dropping them ends them at once.
pub struct Doors {
    http: Option<SocketAddr>,
    grpc: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    order: watch::Sender<Order>,
    threads: Vec<JoinHandle<()>>,
}

impl Doors {
    /// Opens the doors that the settings ask for; with none asked for no thread is started. The server may still be
    /// starting: health checks say so.
    ///
    /// # Errors
    /// `UNAVAILABLE` if a port is in use, naming the flag, or no descriptor is left; `RESOURCE_EXHAUSTED` if no thread can be
    /// started.
    pub fn start(server: &Server, config: &Config) -> Result<Doors> {
        let open = |flag: &str, port: Option<u16>| {
            port.map(|port| listen(flag, &config.host, port))
                .transpose()
        };
        let http = open("--http-port", config.http_port)?;
        let grpc = open("--grpc-port", config.grpc_port)?;
        let mut metrics = open("--metrics-port", config.metrics_port)?;
        let (order, orders) = watch::channel(Order::Serve);
        let mut doors = Doors {
            http: address(http.as_ref())?,
            grpc: address(grpc.as_ref())?,
            metrics: address(metrics.as_ref())?,
            order,
            threads: Vec::new(),
        };
        if http.is_none() && grpc.is_none() && metrics.is_none() {
            return Ok(doors);
        }
        let shared = Arc::new(Shared::new(config));
        for number in 0..config.door_threads {
            let opened = |kind: Protocol, listener: TcpListener| -> Result<Opened> {
                Ok(Opened {
                    kind,
                    door: server.door_for(kind)?,
                    listener,
                })
            };
            let (serves, can_serve) = crossbeam_channel::bounded(1);
            let setup = runtime::Setup {
                offers: server.offers(),
                shared: shared.clone(),
                orders: orders.clone(),
                http: again(http.as_ref())?
                    .map(|listener| opened(Protocol::Http, listener))
                    .transpose()?,
                grpc: again(grpc.as_ref())?
                    .map(|listener| opened(Protocol::Grpc, listener))
                    .transpose()?,
                // Who scrapes comes rarely: one thread is enough.
                metrics: metrics
                    .take()
                    .map(|listener| opened(Protocol::Http, listener))
                    .transpose()?,
                serves,
            };
            let thread = std::thread::Builder::new()
                .name(format!("door-{number}"))
                .spawn(move || runtime::run(setup))
                .map_err(|e| Error::exhausted(format!("a door's thread cannot be started: {e}")))?;
            doors.threads.push(thread);
            can_serve.recv().unwrap_or_else(|_| {
                Err(Error::internal("a door's thread ended as it was started"))
            })?;
        }
        Ok(doors)
    }

    /// Where HTTP is served, if it is.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where gRPC is served, if it is.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc
    }

    /// Where metrics are told, if it is not where HTTP is served.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The ports as the line says them that tells that the server is ready: ` http_port=8000`, nothing without doors.
    pub fn ports(&self) -> String {
        let all = [
            ("http_port", self.http),
            ("grpc_port", self.grpc),
            ("metrics_port", self.metrics),
        ];
        let open = all
            .iter()
            .filter_map(|(name, address)| Some((name, (*address)?)));
        open.map(|(name, address)| format!(" {name}={}", address.port()))
            .collect()
    }

    /// Waits until the doors have ended: to be called when the server has stopped, which ends them once the last answers
    /// were written, or could not be for a few seconds.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It fails only if all threads have ended by themselves.
        let _ = self.order.send(Order::Stop);
        for thread in self.threads.drain(..) {
            // A panic was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where it listens.
fn address(listener: Option<&TcpListener>) -> Result<Option<SocketAddr>> {
    let address = listener.map(TcpListener::local_addr).transpose();
    address.map_err(|e| Error::internal(format!("no address of a bound socket: {e}")))
}

/// The same listener for another thread: each accepts what it gets to first.
fn again(listener: Option<&TcpListener>) -> Result<Option<TcpListener>> {
    let again = listener.map(TcpListener::try_clone).transpose();
    again.map_err(|e| Error::unavailable(format!("no descriptor is left for a door: {e}")))
}

/// Listens on TCP; port 0 picks a free one.
///
/// # Errors
/// `UNAVAILABLE`, naming the address and what to do.
fn listen(flag: &str, host: &str, port: u16) -> Result<TcpListener> {
    let address: IpAddr = host
        .parse()
        .map_err(|_| Error::invalid(format!("--host {host}: expected an IPv4 or IPv6 address")))?;
    let listener = TcpListener::bind(SocketAddr::new(address, port)).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|e| {
        Error::unavailable(match e.kind() {
            io::ErrorKind::AddrInUse => format!(
                "{flag} {port}: the port is in use on {host}; choose another, or 0 for a free one"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "{flag} {port}: this user may not bind it; ports above 1023 are free to all"
            ),
            _ => format!("{flag}: {host}:{port} cannot be bound: {e}"),
        })
    })
}
