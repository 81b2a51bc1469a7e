//! Wiring: threads and sockets, being ready, and the order of stopping.
//!
//! ```text
//! start: engine, registry ▸ sink binds ▸ ventilator binds ▸ files ▸ workers connect ▸ preload ▸ ready
//! stop:  ventilator drains ▸ marker through each worker to the sink ▸ sink ends ▸ ventilator's last word ▸ join
//! ```

mod local;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use zmq::Context;

use self::local::LocalFiles;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::message::{Role, WorkerId};
use crate::model::Engine;
use crate::model::loader::Loader;
use crate::model::{Registry, RegistryConfig};
use crate::pipeline::guard::Guard;
use crate::pipeline::ventilator::{Facts, Lanes};
use crate::pipeline::worker::Seat;
use crate::pipeline::{
    CancelBoard, Clock, DOOR_IN, DOOR_OUT, TO_SINK, TO_VENTILATOR, lane_endpoint, sink, tell,
    ventilator, worker,
};
use crate::schedule::{Lane, Limits};
use crate::socket::{self, Front, Vigil, Waiter};
use crate::wire::client::StopMode;
use crate::wire::inner::{self, ToSink, ToVentilator};
use crate::wire::server::Welcome;

/// Headers and payload of a request that the socket itself lets through; the exact check comes later.
const RECEIVE_MARK: i32 = 16;
/// Answers that may wait for one client in the socket.
const SEND_MARK: i32 = 4096;
/// What `port_out` takes in one frame: a hello.
const HELLO_BYTES: i64 = 4096;
/// What `port_out` takes in one message, all frames and their framing.
const HELLO_MESSAGE_BYTES: u64 = 64 * 1024;
/// How long a stop at once waits for workers that are inside a model.
const WORKER_PATIENCE: Duration = Duration::from_secs(1);

/// A running server.
pub struct Server {
    port: u16,
    port_out: u16,
    stopper: Stopper,
    ventilator: JoinHandle<Result<()>>,
    sink: JoinHandle<Result<()>>,
    workers: Vec<JoinHandle<()>>,
    worker_ended: Receiver<()>,
}

/// Asks a server to stop, from any thread.
#[derive(Clone)]
pub struct Stopper {
    context: Context,
    files: Arc<LocalFiles>,
}

impl Stopper {
    /// Asks for a stop; [`Server::wait`] tells when it is over.
    pub fn stop(&self, mode: StopMode) {
        let stop = ToVentilator::Stop(mode == StopMode::Now);
        let sent = socket::inner_connected(&self.context, zmq::PUSH, TO_VENTILATOR)
            .and_then(|mut socket| tell(&mut socket, inner::write_to_ventilator(stop)));
        if let Err(error) = sent {
            tracing::debug!(%error, "asked to stop, but it has stopped");
        }
    }

    /// Removes the server's files now: for a process that is about to end without waiting.
    pub fn remove_files(&self) {
        self.files.remove();
    }
}

/// What a thread that binds reports, and what it is told then.
struct Binding {
    bound: Receiver<Result<u16>>,
    go: Sender<String>,
}

/// The other side of a [`Binding`].
struct Binder {
    bound: Sender<Result<u16>>,
    go: Receiver<String>,
}

fn binding() -> (Binding, Binder) {
    let (bound_sender, bound) = bounded(1);
    let (go, go_receiver) = bounded(1);
    let binder = Binder {
        bound: bound_sender,
        go: go_receiver,
    };
    (Binding { bound, go }, binder)
}

impl Binding {
    fn port(&self) -> Result<u16> {
        self.bound.recv().unwrap_or_else(|_| {
            Err(Error::internal(
                "a thread ended before it had bound its port",
            ))
        })
    }

    /// Has the thread bind its local endpoint. Ready means that it can be reached there, too.
    fn local(&self, endpoint: String) -> Result<()> {
        // A thread that is gone reports itself.
        let _ = self.go.send(endpoint);
        let bound = self.port().map(|_| ());
        bound.map_err(|e| e.context("--zeromq-sock-tmp-dir"))
    }
}

impl Binder {
    /// Binds TCP, reports the port, binds the local endpoint once it is known to be free, and reports that.
    fn bind(&self, front: &Front<'_>) -> Result<(zmq::Socket, u16)> {
        let bound = front.bind().and_then(|socket| {
            let port = socket::port_of(&socket)?;
            Ok((socket, port))
        });
        let report = bound.as_ref().map(|(_, port)| *port).map_err(Error::clone);
        // If nobody listens, the start was given up: then no local endpoint comes either.
        let _ = self.bound.send(report);
        let (socket, port) = bound?;
        let local = self
            .go
            .recv()
            .map_err(|_| Error::unavailable("the start was given up"))?;
        let bound = socket::bind_local(&socket, &local, front.door);
        let _ = self.bound.send(bound.clone().map(|()| port)); // as above
        bound?;
        Ok((socket, port))
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
    /// Where requests arrive.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Where results leave.
    pub fn port_out(&self) -> u16 {
        self.server.port_out
    }

    /// The settings in force: the ports that were bound and the engine's library that was found are in them.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Asks this server to stop, whether it is ready by then or not.
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
                server.stopper.stop(StopMode::Now);
                // The reason for the stop is the one to report.
                let _ = server.wait();
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

    /// Begins to start a server: what it needs is there, and its ports are bound.
    ///
    /// # Errors
    /// What is missing: the engine's library, a device, a free port, a folder that can be written. Nothing is left
    /// behind then.
    pub fn begin(mut config: Config) -> Result<Starting> {
        let engine = Engine::load(config.onnxruntime.as_deref(), config.verbose)?;
        // A bare name is what the system's loader was asked for, and no path to give it again.
        if engine.library().is_absolute() {
            config.onnxruntime = Some(engine.library().to_owned());
        }
        for device in &config.devices {
            engine.check_device(*device)?;
        }
        let registry = Arc::new(Registry::new(engine, registry_config(&config))?);
        let context = Context::new();
        let clock = Clock::start();
        let vigil = Vigil::new(config.busy_poll);

        let (sink_binding, binder) = binding();
        let sink = {
            let (context, config) = (context.clone(), config.clone());
            let waiter = Waiter::new(vigil.clone());
            spawn("sink".to_owned(), move || {
                run_sink(&context, &config, clock, waiter, &binder)
            })?
        };
        let port_out = sink_binding.port()?;

        let (ventilator_binding, binder) = binding();
        let (ready_sender, ready) = bounded(1);
        let board = CancelBoard::new();
        let ventilator = {
            let (context, config) = (context.clone(), config.clone());
            let (registry, board) = (registry.clone(), board.clone());
            let waiter = Waiter::new(vigil.clone());
            spawn("ventilator".to_owned(), move || {
                let inside = Inside {
                    registry,
                    board,
                    clock,
                    waiter,
                    port_out,
                    ready: ready_sender,
                };
                run_ventilator(&context, &config, inside, &binder)
            })?
        };
        let port = ventilator_binding.port()?;

        let files = Arc::new(LocalFiles::claim(&config.sock_tmp_dir, port)?);
        sink_binding.local(files.endpoint_out())?;
        if let Err(error) = ventilator_binding.local(files.endpoint_in()) {
            finish_sink(&context);
            return Err(error);
        }

        let (ended, worker_ended) = bounded(config.all_workers());
        let mut workers = Vec::with_capacity(config.all_workers());
        for number in 0..config.all_workers() {
            let seat = Seat {
                id: WorkerId(number as u32),
                role: if number < config.num_worker {
                    Role::Main
                } else {
                    Role::Extra
                },
                source: registry.clone(),
                board: board.clone(),
                clock,
                vigil: vigil.clone(),
            };
            let (context, ended) = (context.clone(), ended.clone());
            workers.push(spawn(format!("worker-{number}"), move || {
                if let Err(error) = worker::run(&context, seat) {
                    tracing::debug!(worker_id = number, %error, "a worker ended");
                }
                let _ = ended.send(()); // the server may not wait any more
            })?);
        }
        let server = Server {
            port,
            port_out,
            stopper: Stopper { context, files },
            ventilator,
            sink,
            workers,
            worker_ended,
        };
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

    /// Where requests arrive.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where results leave.
    pub fn port_out(&self) -> u16 {
        self.port_out
    }

    /// The context that front doors in this process share with the server.
    pub fn context(&self) -> Context {
        self.stopper.context.clone()
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
            // It ended out of turn, and told nobody: the sink would wait for ever.
            finish_sink(&self.stopper.context);
        }
        let sink = join("sink", self.sink);
        // After a stop at once a worker may be inside a model for minutes: such a thread ends with the process.
        let all_ended = self
            .workers
            .iter()
            .all(|_| self.worker_ended.recv_timeout(WORKER_PATIENCE).is_ok());
        if all_ended {
            for worker in self.workers {
                // It has said that it ended; a panic on the way out was logged by the hook.
                let _ = worker.join();
            }
        }
        self.stopper.files.remove();
        ventilator.and(sink)
    }
}

fn finish_sink(context: &Context) {
    let told = socket::inner_connected(context, zmq::PUSH, TO_SINK)
        .and_then(|mut sink| tell(&mut sink, inner::write_to_sink(&ToSink::Finish)));
    if let Err(error) = told {
        tracing::debug!(%error, "the sink has ended as well");
    }
}

fn join(name: &str, thread: JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::internal(format!("the {name} panicked"))))
}

fn registry_config(config: &Config) -> RegistryConfig {
    RegistryConfig {
        run_script_dir: config.run_script_dir.clone(),
        allow_paths: config.allow_paths.clone(),
        devices: (0..config.all_workers())
            .map(|worker| config.device(worker))
            .collect(),
        intra_op_threads: config.intra_op_threads,
        gpu_memory_fraction: config.gpu_memory_fraction,
        extra_workers: config.num_parallel_workers > 0,
        max_model_bytes: config.max_model_bytes,
    }
}

fn run_sink(
    context: &Context,
    config: &Config,
    clock: Clock,
    waiter: Waiter,
    binder: &Binder,
) -> Result<()> {
    let inbox = socket::inner_bound(context, zmq::PULL, TO_SINK)?;
    let (router, _) = binder.bind(&Front {
        context,
        flag: "--port-out",
        host: &config.host,
        port: config.port_out,
        door: DOOR_OUT,
        max_frame_bytes: HELLO_BYTES,
        receive_mark: RECEIVE_MARK,
        send_mark: SEND_MARK,
        mandatory: true,
    })?;
    sink::run(sink::Setup {
        guard: Guard::watch(context, &router, "out", HELLO_MESSAGE_BYTES)?,
        router,
        inbox,
        ventilator: socket::inner_connected(context, zmq::PUSH, TO_VENTILATOR)?,
        clock,
        waiter,
        workers: config.all_workers(),
        // One runs and so many wait, in each of two lanes.
        worker_chunks: 2 * (1 + config.prefetch_size),
        max_client_bytes: config.max_client_bytes,
    })
}

/// What the ventilator shares with others.
struct Inside {
    registry: Arc<Registry>,
    board: Arc<CancelBoard>,
    clock: Clock,
    waiter: Waiter,
    port_out: u16,
    ready: Sender<Result<()>>,
}

fn run_ventilator(
    context: &Context,
    config: &Config,
    inside: Inside,
    binder: &Binder,
) -> Result<()> {
    let inbox = socket::inner_bound(context, zmq::PULL, TO_VENTILATOR)?;
    let lanes = (0..config.all_workers())
        .map(|number| {
            let push = |lane| {
                let endpoint = lane_endpoint(WorkerId(number as u32), lane);
                socket::inner_bound(context, zmq::PUSH, &endpoint)
            };
            Ok(Lanes {
                small: push(Lane::Small)?,
                bulk: push(Lane::Bulk)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let max_frame_bytes = config.max_request_bytes + socket::HEADER_SLACK_BYTES;
    let (router, port) = binder.bind(&Front {
        context,
        flag: "--port",
        host: &config.host,
        port: config.port,
        door: DOOR_IN,
        max_frame_bytes: i64::try_from(max_frame_bytes).unwrap_or(i64::MAX),
        receive_mark: RECEIVE_MARK,
        send_mark: SEND_MARK,
        mandatory: false,
    })?;
    let guard = Guard::watch(context, &router, "in", max_frame_bytes)?;
    let loader_context = context.clone();
    let loader = Loader::start(inside.registry.clone(), move || {
        let mut ventilator = socket::inner_connected(&loader_context, zmq::PUSH, TO_VENTILATOR)?;
        Ok(move |ticket| {
            let loaded = inner::write_to_ventilator(ToVentilator::Loaded(ticket));
            if let Err(error) = tell(&mut ventilator, loaded) {
                tracing::debug!(%error, "the loader has nobody to tell");
            }
        })
    })?;
    ventilator::run(ventilator::Setup {
        inbox,
        lanes,
        sink: socket::inner_connected(context, zmq::PUSH, TO_SINK)?,
        guard,
        loader,
        registry: inside.registry,
        board: inside.board,
        clock: inside.clock,
        waiter: inside.waiter,
        facts: facts(config, port, inside.port_out),
        ready: inside.ready,
        router,
    })
}

fn facts(config: &Config, port: u16, port_out: u16) -> Facts {
    let mut settings = config.settings();
    settings.insert("port".to_owned(), port.to_string());
    settings.insert("port_out".to_owned(), port_out.to_string());
    Facts {
        welcome: Welcome {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            port_out,
            max_batch_size: config.max_batch_size as u64,
            max_request_bytes: config.max_request_bytes,
            max_client_bytes: config.max_client_bytes,
        },
        settings,
        devices: (0..config.all_workers())
            .map(|worker| config.device(worker).to_string())
            .collect(),
        default_timeout: config.default_timeout,
        limits: Limits {
            workers: config.num_worker,
            extra_workers: config.num_parallel_workers,
            max_batch_rows: config.max_batch_size,
            priority_rows: config.priority_batch_size,
            prefetch: config.prefetch_size,
            max_chunk_us: config.max_chunk.map(|t| t.as_micros() as u64),
            batch_delay_us: config.max_batch_delay.as_micros() as u64,
            max_requests: config.max_queue_requests,
            max_bytes: config.max_queue_bytes,
        },
        preload: config.preload.clone(),
        max_models: config.max_models,
        max_model_bytes: config.max_model_bytes,
    }
}
