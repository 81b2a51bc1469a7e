//! A door's thread: one runtime, one `server::Door` whose answers its reader hands out, and the connections it accepts.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::runtime::LocalOptions;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use super::beside::{self, Beside};
use super::connections::{Connection, Connections};
use super::local::Local;
use super::shared::Shared;
use super::submit::Pipeline;
use super::{grpc, http};
use crate::error::{Error, Result};
use crate::message::Protocol;
use crate::server::{Door, Offers};
use crate::thread_priority::{self, Slice};

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

/// A listener, and the way into the pipeline for who connects to it.
pub(super) struct Opened {
    pub(super) kind: Protocol,
    pub(super) door: Door,
    pub(super) listener: TcpListener,
}

/// What a door thread works with.
pub(super) struct Setup {
    pub(super) offers: Offers,
    pub(super) shared: Arc<Shared>,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) http: Option<Opened>,
    pub(super) grpc: Option<Opened>,
    pub(super) metrics: Option<Opened>,
    /// Told once whether the thread can serve.
    pub(super) serves: Sender<Result<()>>,
}

/// The body of a door thread. It returns when the server has stopped, or the order comes.
pub(super) fn run(setup: Setup) {
    let serves = setup.serves.clone();
    if let Err(error) = serve_on_a_runtime(setup) {
        let error = Error::unavailable(format!("a door's thread cannot serve: {error}"));
        // Whoever starts the doors tells what it hears; nobody listens any more once they have started.
        if let Err(TrySendError::Full(Err(error)) | TrySendError::Disconnected(Err(error))) =
            serves.try_send(Err(error))
        {
            tracing::error!(%error, "a door's thread has ended");
        }
    }
}

fn serve_on_a_runtime(setup: Setup) -> io::Result<()> {
    // As the loops that it talks to: small requests pass what keeps the cores busy.
    thread_priority::ask_for(Slice::Short);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(beside::THREADS)
        .thread_name("door-pool")
        // Its tasks share what is not `Send`. A `LocalSet` on a runtime would be a second queue, which every wake-up passes.
        .build_local(LocalOptions::default());
    let runtime = runtime?;
    let outcome = runtime.block_on(serve(setup));
    // A body that is still being inflated is nobody's any more.
    runtime.shutdown_background();
    outcome
}

async fn serve(mut setup: Setup) -> io::Result<()> {
    let connections = Connections::new(setup.shared.clone());
    let mut thread = Thread {
        offers: setup.offers,
        shared: setup.shared,
        connections: connections.clone(),
        pipelines: Vec::new(),
        readers: Vec::new(),
        beside: Vec::new(),
        threads: Rc::default(),
    };
    let separate = setup.metrics.is_some();
    if let Some(opened) = setup.http {
        let serves = match separate {
            true => http::Serves::Protocol,
            false => http::Serves::All,
        };
        thread.open(opened, move |local, stream, connection| {
            http::serve(local, serves, stream, connection)
        })?;
    }
    if let Some(opened) = setup.grpc {
        let reflection = Rc::new(grpc::Reflection::new().map_err(io::Error::other)?);
        thread.open(opened, move |local, stream, connection| {
            let reflection = reflection.clone();
            grpc::serve(grpc::Service { local, reflection }, stream, connection)
        })?;
    }
    if let Some(opened) = setup.metrics {
        thread.open(opened, |local, stream, connection| {
            http::serve(local, http::Serves::Metrics, stream, connection)
        })?;
    }
    thread
        .beside
        .push(spawn_local(watch_over(connections.clone())));
    let _ = setup.serves.send(Ok(())); // who starts the doors may have given up by now
    let ordered = async {
        // An error means that whoever could give an order is gone.
        let _ = setup.orders.wait_for(|order| *order == Order::Stop).await;
    };
    first_of(thread.readers, ordered).await;
    for task in thread.beside {
        task.abort();
    }
    let at_once = thread.pipelines.iter().any(Pipeline::has_ended_at_once);
    for pipeline in thread.pipelines {
        // Another door's reader may have been the first to see the end: these may still have answers.
        let _ = pipeline.hand_out();
        pipeline.end();
    }
    connections.finish(at_once).await;
    Ok(())
}

/// The tasks of a door thread besides those of its connections.
struct Thread {
    offers: Offers,
    shared: Arc<Shared>,
    connections: Rc<Connections>,
    pipelines: Vec<Pipeline>,
    /// Each ends when the server has stopped.
    readers: Vec<JoinHandle<()>>,
    beside: Vec<JoinHandle<()>>,
    /// What its doors have in common.
    threads: Rc<Beside>,
}

impl Thread {
    /// Begins to accept, and to hand out the answers of one door.
    fn open<F: Future<Output = ()> + 'static>(
        &mut self,
        opened: Opened,
        serve: impl Fn(Rc<Local>, TcpStream, Rc<Connection>) -> F + 'static,
    ) -> io::Result<()> {
        let Opened {
            kind,
            door,
            listener,
        } = opened;
        let descriptor = door.as_fd().try_clone_to_owned()?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe because a type may lie about its descriptor, which OwnedFd does not"
        )]
        let readable = AsyncFd::new(descriptor)?;
        let pipeline = Pipeline::new(door, self.shared.max_client_bytes);
        let local = Local::new(
            pipeline.clone(),
            self.offers.clone(),
            self.shared.clone(),
            self.threads.clone(),
        );
        let local = Rc::new(local);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let serve = move |stream, connection| serve(local.clone(), stream, connection);
        let accepting = accept(listener, kind, self.connections.clone(), serve);
        self.beside.push(spawn_local(accepting));
        self.beside
            .push(spawn_local(pipeline.clone().wake_server()));
        let reader = spawn_local(read_answers(readable, pipeline.clone()));
        self.readers.push(reader);
        self.pipelines.push(pipeline);
        Ok(())
    }
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
    kind: Protocol,
    connections: Rc<Connections>,
    serve: impl Fn(TcpStream, Rc<Connection>) -> F,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(connection) = connections.add(kind, peer) else {
                    turn_away(&stream, kind, peer);
                    continue;
                };
                // It fails only for a connection that is gone already.
                let _ = stream.set_nodelay(true);
                let task = serve(stream, connection.clone());
                let connections = connections.clone();
                spawn_local(async move {
                    task.await;
                    connection.linger().await;
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

/// Says that there are too many connections, in as few bytes as the system always takes. A client of gRPC is told nothing:
/// it understands no more than that the connection closes.
fn turn_away(stream: &TcpStream, kind: Protocol, peer: SocketAddr) {
    tracing::debug!(%peer, "turned away: too many connections");
    if kind != Protocol::Grpc {
        let _ = stream.try_write(http::TOO_MANY_CONNECTIONS); // it may be gone
    }
}

/// Ends connections whose peers crawl or stall.
async fn watch_over(connections: Rc<Connections>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        connections.look();
    }
}

/// Waits until any of the tasks has ended, or the other thing has happened.
async fn first_of(tasks: Vec<JoinHandle<()>>, other: impl Future<Output = ()>) {
    let (mut tasks, mut other) = (tasks, std::pin::pin!(other));
    std::future::poll_fn(|cx| {
        let mut tasks = tasks.iter_mut();
        if tasks.any(|task| Pin::new(task).poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        other.as_mut().poll(cx)
    })
    .await;
}
