//! A server in this process: starts its threads, says when it is ready, and stops them in order.
//!
//! ```text
//! start: engine, store of models ▸ ports, files ▸ sink and ventilator open their sockets ▸ workers connect ▸ preload ▸ ready
//! stop:  ventilator drains ▸ marker through each worker to the sink ▸ sink ends ▸ ventilator answers terminate ▸ join
//! ```

mod door;
mod folder;
mod local;
#[cfg(feature = "gateway")]
mod offers;
mod ports;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use zmq::Context;

pub use self::door::{Door, DoorAnswer};
pub use self::folder::ModelFolder;
use self::local::LocalFiles;
#[cfg(feature = "gateway")]
pub use self::offers::Offers;
use self::ports::{BoundPort, BoundPorts};
use self::settings::{info, store_config};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::message::{Protocol, Role, WorkerId};
use crate::model::loader::Loader;
use crate::model::{Engine, EngineLog, Store};
use crate::pipeline::beside_bulk::BesideBulk;
use crate::pipeline::control::StopOrder;
use crate::pipeline::door_queues::Doors;
use crate::pipeline::ventilator::{Lanes, Links};
use crate::pipeline::{
    CancelBoard, Clock, TO_SINK, TO_VENTILATOR, lane_endpoint, report_opened, sink, tell,
    ventilator, worker,
};
use crate::schedule::{Lane, most_held};
use crate::socket::{self, BusyPoll};
use crate::thread_priority::{self, Slice};
use crate::wire::client::StopMode;
use crate::wire::inner::{self, ToVentilator};

/// How long an immediate stop waits for each worker that is inside a model.
const WORKER_EXIT_WAIT: Duration = Duration::from_secs(1);

/// A running server.
pub struct Server {
    port: u16,
    port_out: u16,
    stopper: Stopper,
    stop_sink: Arc<StopOrder>,
    doors: Arc<Doors>,
    #[cfg(feature = "gateway")]
    store: Arc<Store>,
    /// Of the inner sockets. It is kept until the threads have ended.
    _context: Context,
    ventilator: JoinHandle<Result<()>>,
    sink: JoinHandle<Result<()>>,
    workers: Vec<JoinHandle<()>>,
    worker_ended: Receiver<()>,
}

/// Asks a server to stop, from any thread.
#[derive(Clone)]
pub struct Stopper {
    order: Arc<StopOrder>,
    files: Arc<LocalFiles>,
}

impl Stopper {
    /// Asks for a stop; [`Server::wait`] returns when it is done. This needs no file descriptor, so it works when none is
    /// left.
    pub fn stop(&self, mode: StopMode) {
        self.order.give(mode);
    }

    /// Removes the server's files now: for a process that is about to end without waiting.
    pub fn remove_files(&self) {
        self.files.remove();
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(|e| Error::exhausted(format!("a thread could not be started: {e}")))
}

/// A server whose workers are coming up and whose models are being opened.
pub struct Starting {
    server: Server,
    ready: Receiver<Result<()>>,
    config: Config,
}

impl Starting {
    /// The port where requests arrive.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// The port where results leave.
    pub fn port_out(&self) -> u16 {
        self.server.port_out
    }

    /// The settings in force, with the ports that were bound and the engine's library that was found.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The server itself, to which doors may be opened already.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Asks this server to stop, before or after it is ready.
    pub fn stopper(&self) -> Stopper {
        self.server.stopper()
    }

    /// Returns when the server can serve: every worker is up and every preloaded model is open.
    ///
    /// # Errors
    /// Which model could not be opened; `CANCELLED` if it was asked to stop before. Nothing is left behind then.
    pub fn ready(self) -> Result<Server> {
        let server = self.server;
        match self.ready.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                server.abandon();
                return Err(error);
            }
            Err(_) => {
                let silent = Error::internal("the ventilator ended before it was ready");
                return Err(server.wait().err().unwrap_or(silent));
            }
        }
        tracing::info!(
            port = server.port,
            port_out = server.port_out,
            workers = self.config.num_worker,
            "ready"
        );
        Ok(server)
    }
}

impl Server {
    /// Starts a server, and returns when it can serve: every worker is up and every preloaded model is open.
    ///
    /// # Errors
    /// As [`Server::begin`] and [`Starting::ready`].
    pub fn start(config: Config) -> Result<Server> {
        Server::begin(config)?.ready()
    }

    /// Begins to start a server. When this returns its ports are bound; its workers and models may still be opening.
    ///
    /// # Errors
    /// What is missing: the engine's library, a device, a free port, a folder that can be written. Nothing is left
    /// behind then.
    pub fn begin(config: Config) -> Result<Starting> {
        Server::begin_with(config, |_| None)
    }

    /// As [`Server::begin`]. `log_of` is called with the port once it is bound; it says which file the log is where no
    /// setting does, for status.
    ///
    /// # Errors
    /// As there.
    pub fn begin_with(
        mut config: Config,
        log_of: impl FnOnce(u16) -> Option<PathBuf>,
    ) -> Result<Starting> {
        let engine = Engine::load(
            config.onnxruntime.as_deref(),
            if config.verbose {
                EngineLog::Everything
            } else {
                EngineLog::Problems
            },
        )?;
        // A bare name was left to the system's loader: it is not a path that could be shown or given again.
        if engine.library().is_absolute() {
            config.onnxruntime = Some(engine.library().to_owned());
        }
        for device in &config.devices {
            engine.check_device(*device)?;
        }
        let store = Arc::new(Store::new(engine, store_config(&config))?);
        let context = Context::new();
        let ports = BoundPorts::open(&config)?;
        let (port, port_out) = (ports.port, ports.port_out);
        let files = ports.files.clone();
        let log = log_of(port);
        let busy_poll = BusyPoll::new(config.busy_poll);
        let shared = Shared {
            context: context.clone(),
            config: Arc::new(Config {
                logger: log.or_else(|| config.logger.clone()),
                ..config.clone()
            }),
            store,
            board: CancelBoard::new(),
            beside_bulk: Arc::new(BesideBulk::new(busy_poll.cores())),
            doors: Arc::new(Doors::new()?),
            clock: Clock::start(),
            busy_poll,
            stop: Arc::new(StopOrder::new()?),
            stop_sink: Arc::new(StopOrder::new()?),
        };
        let (ready_sender, ready) = bounded(1);
        let (opened_sender, opened) = bounded(2);
        let sink = start_sink(&shared, ports.out, opened_sender.clone())?;
        let own = VentilatorOnly {
            bound: ports.requests,
            port,
            port_out,
            ready: ready_sender,
        };
        let ventilator = match start_ventilator(&shared, own, opened_sender) {
            Ok(ventilator) => ventilator,
            Err(error) => {
                shared.stop_sink.give(StopMode::Now);
                // The error that stopped the start is reported, here and below, not what follows from stopping.
                let _ = join("sink", sink);
                return Err(error);
            }
        };
        let (ended, worker_ended) = bounded(config.all_workers());
        let mut server = Server {
            port,
            port_out,
            stopper: Stopper {
                order: shared.stop.clone(),
                files,
            },
            stop_sink: shared.stop_sink.clone(),
            doors: shared.doors.clone(),
            #[cfg(feature = "gateway")]
            store: shared.store.clone(),
            _context: context,
            ventilator,
            sink,
            workers: Vec::new(),
            worker_ended,
        };
        if let Err(error) = all_opened(&opened, 2) {
            server.stop_sink.give(StopMode::Now);
            server.abandon();
            return Err(error);
        }
        let (opened_sender, opened) = bounded(config.all_workers());
        let started = (0..config.all_workers()).try_for_each(|number| {
            let worker = start_worker(&shared, number, opened_sender.clone(), ended.clone())?;
            server.workers.push(worker);
            Ok(())
        });
        drop(opened_sender);
        if let Err(error) = started.and_then(|()| all_opened(&opened, config.all_workers())) {
            server.abandon();
            return Err(error);
        }
        Ok(Starting {
            server,
            ready,
            config: Config {
                port,
                port_out,
                ..config
            },
        })
    }

    /// Stops what was started of a server that cannot be started whole.
    fn abandon(self) {
        self.stopper.stop(StopMode::Now);
        let _ = self.wait();
    }

    /// The port where requests arrive.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port where results leave.
    pub fn port_out(&self) -> u16 {
        self.port_out
    }

    /// Opens a door: a client of the pipeline inside this process.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the server has stopped, or no descriptor is left.
    pub fn door(&self) -> Result<Door> {
        self.door_for(Protocol::Inside)
    }

    /// Opens a door for the clients of a protocol, under whose name its requests are counted.
    ///
    /// # Errors
    /// As [`Server::door`].
    pub fn door_for(&self, kind: Protocol) -> Result<Door> {
        Door::open(self.doors.clone(), kind)
    }

    /// What the server's folder offers, loaded or not.
    #[cfg(feature = "gateway")]
    pub fn offers(&self) -> Offers {
        Offers(self.store.clone())
    }

    /// Asks this server to stop.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Waits until the server has stopped, by a client's terminate or by a [`Stopper`].
    ///
    /// # Errors
    /// What went wrong inside.
    pub fn wait(self) -> Result<()> {
        let ventilator = join("ventilator", self.ventilator);
        if ventilator.is_err() {
            // It ended without sending the marker that stops the sink, which would wait for ever.
            self.stop_sink.give(StopMode::Now);
        }
        let sink = join("sink", self.sink);
        // After an immediate stop a worker may be inside a model for minutes: such a thread is left to the process's end.
        let all_ended = self
            .workers
            .iter()
            .all(|_| self.worker_ended.recv_timeout(WORKER_EXIT_WAIT).is_ok());
        if all_ended {
            for worker in self.workers {
                // It has ended; a panic after that was logged by the panic hook.
                let _ = worker.join();
            }
        }
        self.stopper.files.remove();
        ventilator.and(sink)
    }
}

fn join(name: &str, thread: JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::internal(format!("the {name} panicked"))))
}

/// What the threads of a server share.
#[derive(Clone)]
struct Shared {
    context: Context,
    config: Arc<Config>,
    store: Arc<Store>,
    board: Arc<CancelBoard>,
    beside_bulk: Arc<BesideBulk>,
    doors: Arc<Doors>,
    clock: Clock,
    busy_poll: BusyPoll,
    stop: Arc<StopOrder>,
    stop_sink: Arc<StopOrder>,
}

/// What only the ventilator has.
struct VentilatorOnly {
    bound: BoundPort,
    port: u16,
    port_out: u16,
    ready: Sender<Result<()>>,
}

/// Waits until this many `threads` have opened their sockets.
fn all_opened(opened: &Receiver<Result<()>>, threads: usize) -> Result<()> {
    for _ in 0..threads {
        opened.recv().unwrap_or_else(|_| {
            Err(Error::internal(
                "a thread ended before it had opened its sockets",
            ))
        })?;
    }
    Ok(())
}

fn start_sink(
    shared: &Shared,
    port: BoundPort,
    opened: Sender<Result<()>>,
) -> Result<JoinHandle<Result<()>>> {
    let shared = shared.clone();
    spawn("sink".to_owned(), move || {
        come_first(&shared, thread_priority::SINK_FIRST);
        thread_priority::ask_for(Slice::Short);
        run_sink(shared, port, opened)
    })
}

fn start_ventilator(
    shared: &Shared,
    own: VentilatorOnly,
    opened: Sender<Result<()>>,
) -> Result<JoinHandle<Result<()>>> {
    let shared = shared.clone();
    spawn("ventilator".to_owned(), move || {
        come_first(&shared, thread_priority::VENTILATOR_FIRST);
        thread_priority::ask_for(Slice::Short);
        run_ventilator(shared, own, opened)
    })
}

/// Not on the only core: there the ventilator would keep the workers from what it has read.
fn come_first(shared: &Shared, by: u8) {
    if shared.busy_poll.cores() > 1 {
        thread_priority::come_first(by);
    }
}

/// Starts one worker, which tells `opened` whether it has its sockets, and `ended` when it has ended.
fn start_worker(
    shared: &Shared,
    number: usize,
    opened: Sender<Result<()>>,
    ended: Sender<()>,
) -> Result<JoinHandle<()>> {
    let config = &shared.config;
    let role = config.role(number);
    let setup = worker::Setup {
        id: WorkerId(number as u32),
        role,
        source: shared.store.clone(),
        board: shared.board.clone(),
        beside_bulk: shared.beside_bulk.clone(),
        clock: shared.clock,
        busy_poll: shared.busy_poll.clone(),
    };
    let shared = shared.clone();
    spawn(format!("worker-{number}"), move || {
        match role {
            Role::Main | Role::Extra => thread_priority::be_nice(shared.config.worker_nice),
            Role::Express => {
                come_first(&shared, thread_priority::EXPRESS_FIRST);
                thread_priority::ask_for(Slice::Short);
            }
        }
        let context = &shared.context;
        if let Err(error) = worker::run(context, setup, opened) {
            tracing::debug!(worker_id = number, %error, "a worker ended");
        }
        let _ = ended.send(()); // nobody may be waiting for it any more
    })
}

fn run_sink(shared: Shared, port: BoundPort, opened: Sender<Result<()>>) -> Result<()> {
    let (context, config) = (&shared.context, &shared.config);
    let sockets = socket::inner_bound(context, zmq::PULL, TO_SINK).and_then(|inbox| {
        let ventilator = socket::inner_connected(context, zmq::PUSH, TO_VENTILATOR)?;
        Ok((inbox, ventilator, port.open()?))
    });
    let (inbox, ventilator, router) = report_opened(opened, sockets)?;
    sink::run(sink::Setup {
        router,
        inbox,
        ventilator,
        doors: shared.doors,
        stop: shared.stop_sink,
        clock: shared.clock,
        waiter: shared.busy_poll.waiter(),
        workers: config.all_workers(),
        worker_chunks: most_held(config.prefetch_size),
        max_client_bytes: config.max_client_bytes,
    })
}

/// The ventilator's own sockets.
struct Sockets {
    inbox: zmq::Socket,
    lanes: Vec<Lanes>,
    sink: zmq::Socket,
    loader: Loader,
}

impl Sockets {
    fn open(context: &Context, config: &Config, store: Arc<Store>) -> Result<Sockets> {
        let lanes = (0..config.all_workers()).map(|number| {
            let push = |lane| {
                let endpoint = lane_endpoint(WorkerId(number as u32), lane);
                socket::inner_bound(context, zmq::PUSH, &endpoint)
            };
            Ok(Lanes {
                small: push(Lane::Small)?,
                bulk: push(Lane::Bulk)?,
            })
        });
        let loader_context = context.clone();
        let loader = Loader::start(store, move || {
            let mut ventilator =
                socket::inner_connected(&loader_context, zmq::PUSH, TO_VENTILATOR)?;
            Ok(move |ticket| {
                let loaded = inner::write_to_ventilator(&ToVentilator::Loaded(ticket));
                if let Err(error) = tell(&mut ventilator, loaded) {
                    tracing::debug!(%error, "the loader could not report to the ventilator");
                }
            })
        })?;
        Ok(Sockets {
            inbox: socket::inner_bound(context, zmq::PULL, TO_VENTILATOR)?,
            lanes: lanes.collect::<Result<Vec<_>>>()?,
            sink: socket::inner_connected(context, zmq::PUSH, TO_SINK)?,
            loader,
        })
    }
}

fn run_ventilator(shared: Shared, own: VentilatorOnly, opened: Sender<Result<()>>) -> Result<()> {
    let config = &shared.config;
    let sockets = Sockets::open(&shared.context, config, shared.store.clone());
    let sockets = sockets.and_then(|sockets| Ok((sockets, own.bound.open()?)));
    let (sockets, router) = report_opened(opened, sockets)?;
    let links = Links {
        router,
        inbox: sockets.inbox,
        lanes: sockets.lanes,
        sink: sockets.sink,
        doors: shared.doors,
        stop: shared.stop,
        loader: sockets.loader,
        store: shared.store,
        board: shared.board,
        beside_bulk: shared.beside_bulk,
        clock: shared.clock,
        waiter: shared.busy_poll.waiter(),
    };
    ventilator::run(ventilator::Setup {
        links,
        info: info(config, own.port, own.port_out),
        ready: own.ready,
    })
}
