//! A door's thread: one runtime, one `server::Door` whose answers its reader hands out, and the connections it accepts.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use super::connections::{Connection, Connections};
use super::local::Local;
use super::pipeline::Pipeline;
use super::shared::Shared;
use super::{grpc, http};
use crate::server::{Door, Offers};

/// Threads that parse and inflate large bodies beside the runtime, so that small requests and health checks go on.
const POOL_THREADS: usize = 2;
/// How long the last answers may take to leave once the server has stopped.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// How often connections are looked at for peers that crawl or stall.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long nothing is accepted after no descriptor was left for a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a door thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Serve,
    Stop,
}

/// What a door thread works with.
pub(super) struct Setup {
    pub(super) door: Door,
    pub(super) offers: Offers,
    pub(super) shared: Arc<Shared>,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) http: Option<TcpListener>,
    pub(super) grpc: Option<TcpListener>,
}

/// The body of a door thread. It returns when the server has stopped, or the order comes.
pub(super) fn run(setup: Setup) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(POOL_THREADS)
        .thread_name("door-pool")
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a door's thread cannot serve");
            return;
        }
    };
    let tasks = LocalSet::new();
    if let Err(error) = tasks.block_on(&runtime, serve(setup)) {
        tracing::error!(%error, "a door's thread has ended");
    }
    drop(tasks);
    // A body that is still being inflated is nobody's any more.
    runtime.shutdown_background();
}

async fn serve(mut setup: Setup) -> io::Result<()> {
    let descriptor = setup.door.as_fd().try_clone_to_owned()?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe because a type may lie about its descriptor, which OwnedFd does not"
    )]
    let readable = AsyncFd::new(descriptor)?;
    let pipeline = Pipeline::new(setup.door, setup.shared.max_client_bytes);
    let connections = Connections::new(setup.shared.clone());
    let local = Rc::new(Local::new(pipeline.clone(), setup.offers, setup.shared));
    let mut beside = Vec::new();
    if let Some(listener) = setup.http {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let local = local.clone();
        let serve = move |stream, connection| http::serve(local.clone(), stream, connection);
        let all = connections.clone();
        let accept = accept(listener, all, http::TOO_MANY_CONNECTIONS, serve);
        beside.push(spawn_local(accept));
    }
    if let Some(listener) = setup.grpc {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let service = grpc::Service::new(local).map_err(io::Error::other)?;
        let serve = move |stream, connection| service.clone().serve(stream, connection);
        // A connection that closes at once is all that gRPC's clients understand.
        beside.push(spawn_local(accept(
            listener,
            connections.clone(),
            b"",
            serve,
        )));
    }
    beside.push(spawn_local(watch_over(connections.clone())));
    let reader = spawn_local(read_answers(readable, pipeline.clone()));
    let ordered = async {
        // An error means that whoever could give an order is gone.
        let _ = setup.orders.wait_for(|order| *order == Order::Stop).await;
    };
    first_of(reader, ordered).await;
    for task in beside {
        task.abort();
    }
    pipeline.end();
    connections.finish(LAST_WRITES).await;
    Ok(())
}

/// Hands out answers whenever the door's descriptor can be read, until the server has stopped.
async fn read_answers(readable: AsyncFd<OwnedFd>, pipeline: Pipeline) {
    loop {
        match readable.readable().await {
            // Cleared before the answers are taken: one that comes meanwhile sets it again.
            Ok(mut guard) => guard.clear_ready(),
            Err(error) => {
                tracing::error!(%error, "a door's answers cannot be waited for");
                return;
            }
        }
        if pipeline.hand_out().is_err() {
            return;
        }
    }
}

/// Accepts connections and serves each in a task of its own.
async fn accept<F: Future<Output = ()> + 'static>(
    listener: tokio::net::TcpListener,
    connections: Rc<Connections>,
    too_many: &'static [u8],
    serve: impl Fn(TcpStream, Rc<Connection>) -> F,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(connection) = connections.add(peer) else {
                    turn_away(&stream, peer, too_many);
                    continue;
                };
                // It fails only for a connection that is gone already.
                let _ = stream.set_nodelay(true);
                let task = serve(stream, connection.clone());
                let connections = connections.clone();
                spawn_local(async move {
                    task.await;
                    connections.remove(&connection);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                if !is_of_one_connection(&error) {
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// Whether it says nothing of the next connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Says that there are too many connections, where the protocol has words for it, in as few bytes as the system always takes.
fn turn_away(stream: &TcpStream, peer: SocketAddr, too_many: &[u8]) {
    tracing::debug!(%peer, "turned away: too many connections");
    let _ = stream.try_write(too_many); // it may be gone
}

/// Ends connections whose peers crawl or stall.
async fn watch_over(connections: Rc<Connections>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        connections.look();
    }
}

/// Waits for either.
async fn first_of<A>(one: impl Future<Output = A>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|cx| {
        if one.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        other.as_mut().poll(cx)
    })
    .await;
}
