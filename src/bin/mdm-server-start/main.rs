//! `mdm-server-start`: starts a server, says on standard output when it is ready, and waits until it has stopped.
//!
//! Standard output carries that one line, for programs to read; the settings in force and what goes wrong are on
//! standard error. Exit codes: 0 stopped as asked, be it before it was ready; 1 failed while running, 2 could not start;
//! 128 + the signal when a second signal cut the draining short.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod allocator;

use std::fmt::Display;
use std::io::{self, Write};
#[cfg(feature = "gateway")]
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use mdm::config::{Asked, Config};
#[cfg(feature = "gateway")]
use mdm::door::Doors;
use mdm::error::{Error, ErrorCode};
use mdm::logging::{self, Log};
use mdm::server::{Server, Stopper};
use mdm::wire::client::StopMode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

const FAILED: i32 = 1;
const NOT_STARTED: i32 = 2;
/// How long a full pipe that nobody reads may hold up the start or the exit.
const OUTPUT_WAIT: Duration = Duration::from_millis(500);

fn main() {
    mdm::model::without_telemetry();
    // As many descriptors as the system allows: each session takes two. Where that fails, the old limit holds.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let code = match run() {
        Ok(()) => 0,
        Err((code, error)) => {
            let message = error.message();
            let help = match message.contains("Too many open files") {
                true => "; allow it more of them (ulimit -Hn), or start fewer workers",
                false => "",
            };
            say(format_args!("error: {message}{help}"));
            code
        }
    };
    // Without the hooks of an ordinary exit: after an immediate stop a worker may still be inside the engine, whose
    // hooks would wait for it, or free the memory that it uses.
    signal_hook::low_level::exit(code);
}

/// Writes a line to standard error.
fn say(line: impl Display) {
    // A closed one is no error.
    let _ = write_out(io::stderr(), format!("mdm-server-start: {line}\n"));
}

/// Writes text from a thread of its own, and waits for that a moment: a full pipe that nobody reads must not stop the
/// server, neither its start nor its end.
///
/// # Errors
/// The system's, or that nobody reads.
fn write_out(mut to: impl Write + Send + 'static, text: String) -> io::Result<()> {
    let (sender, written) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let outcome = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        let _ = sender.send(outcome); // the wait may be over
    })?;
    written
        .recv_timeout(OUTPUT_WAIT)
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it")))
}

fn run() -> Result<(), (i32, Error)> {
    let not_started = |error| (NOT_STARTED, error);
    let config = match Config::from_command_line(std::env::args_os(), |name| std::env::var_os(name))
        .map_err(not_started)?
    {
        Asked::Run(config) => config,
        Asked::Print(text) => {
            // As above: `mdm-server-start --help | head -1` is fine.
            let mut stdout = io::stdout();
            let _ = stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush());
            return Ok(());
        }
    };
    if let Some(warning) = mdm::config::check_variables(std::env::vars_os()).map_err(not_started)? {
        say(format_args!("warning: {warning}"));
    }
    let made = config.make_sock_tmp_dir().map_err(not_started)?;
    let Started {
        server,
        doors,
        signals,
        log,
    } = match start(&config) {
        Ok(started) => started,
        Err(error) => {
            made.remove();
            if error.code() == ErrorCode::Cancelled {
                return Ok(()); // a signal, or terminate, before it was ready
            }
            return Err(not_started(error));
        }
    };
    let outcome = server.wait();
    // Behind the server, whose last answers they write.
    doors.stop();
    signals.end();
    match &outcome {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::error!(target: logging::PRINTED, %error, "failed"),
    }
    drop(log);
    outcome.map_err(|error| (FAILED, error))
}

/// A server that has said that it is ready, and what belongs to it.
struct Started {
    server: Server,
    doors: Doors,
    signals: SignalThread,
    log: Log,
}

/// The doors of this build.
#[cfg(not(feature = "gateway"))]
struct Doors;

#[cfg(not(feature = "gateway"))]
impl Doors {
    fn stop(self) {}

    fn ports(&self) -> &'static str {
        ""
    }
}

/// The settings with the ports that the doors have bound, where 0 has asked for any.
#[cfg(feature = "gateway")]
fn with_ports(mut config: Config, doors: &Doors) -> Config {
    let port = |address: Option<SocketAddr>| address.map(|address| address.port());
    config.http_port = port(doors.http_addr());
    config.grpc_port = port(doors.grpc_addr());
    config.metrics_port = port(doors.metrics_addr());
    config
}

#[cfg(not(feature = "gateway"))]
fn with_ports(config: Config, _doors: &Doors) -> Config {
    config
}

/// From the settings to a server that has said that it is ready. A failure leaves nothing behind.
fn start(config: &Config) -> Result<Started, Error> {
    let mut log = logging::init(config)?;
    mdm::faults::log_panics();
    // Before the server starts: a signal then is remembered, and not the end of a process with files to remove.
    let started = SignalThread::start().and_then(|signals| {
        let settings = config.settings();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            ?settings,
            "starting"
        );
        let mut own_log = None;
        let starting = Server::begin_with(config.clone(), |port| {
            own_log = log.port_bound(port);
            own_log.clone()
        })?;
        signals.serve(starting.stopper());
        #[cfg(feature = "gateway")]
        let doors = match Doors::start(starting.server(), starting.config()) {
            Ok(doors) => doors,
            Err(error) => {
                starting.stopper().stop(StopMode::Now);
                // It ends as it was asked to, which is no news; it may have been ready before.
                let _ = starting.ready().and_then(Server::wait);
                return Err(error);
            }
        };
        #[cfg(not(feature = "gateway"))]
        let doors = Doors;
        // Not `say`: these lines are made to be copied into a settings file.
        let mut settings = with_ports(starting.config().clone(), &doors).to_toml();
        if let Some(file) = own_log {
            settings += &format!("# the log is {}\n", log.written(&file));
        }
        let _ = write_out(io::stderr(), settings);
        let server = starting.ready()?;
        Ok((server, doors, signals))
    });
    let (server, doors, signals) = match started {
        Ok(started) => started,
        Err(error) if error.code() == ErrorCode::Cancelled => {
            tracing::info!("stopped before it was ready");
            return Err(error);
        }
        Err(error) => {
            tracing::error!(target: logging::PRINTED, %error, "could not start");
            log.discard();
            return Err(error);
        }
    };
    let ready = format!(
        "ready port={} port_out={} workers={} pid={}{}",
        server.port(),
        server.port_out(),
        config.num_worker,
        std::process::id(),
        doors.ports()
    );
    if let Err(error) = write_out(io::stdout(), format!("{ready}\n")) {
        tracing::warn!(%error, "the ready line could not be written to standard output");
    }
    tracing::info!("{ready}");
    Ok(Started {
        server,
        doors,
        signals,
        log,
    })
}

/// Signals that ask for a stop. A closed terminal is one, and the server is to answer what it has accepted then too.
const STOPS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];
/// Signals that would end the process on the spot, and mean nothing here; a log that has reached the limit of a file's size
/// (SIGXFSZ) is one that cannot be written, which is no reason to end.
const PASSED_OVER: [i32; 3] = [SIGUSR1, SIGUSR2, SIGXFSZ];

/// The thread that waits for signals: the first that asks for a stop drains, the second one stops at once.
struct SignalThread {
    state: Arc<Mutex<State>>,
    handle: signal_hook::iterator::Handle,
    thread: thread::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Set once the server's ports are bound.
    stopper: Option<Stopper>,
    /// The first signal has come.
    asked: bool,
}

impl SignalThread {
    fn start() -> Result<SignalThread, Error> {
        let fail = |e: io::Error| Error::internal(format!("signals cannot be waited for: {e}"));
        let wanted = STOPS.iter().chain(&PASSED_OVER);
        let wanted = wanted.filter(|signal| !is_ignored(**signal));
        let mut signals = Signals::new(wanted).map_err(fail)?;
        let handle = signals.handle();
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let thread = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever().filter(|signal| STOPS.contains(signal)) {
                    on_signal(signal, &mut lock(&shared));
                }
            })
            .map_err(fail)?;
        Ok(SignalThread {
            state,
            handle,
            thread,
        })
    }

    /// Sets the server that signals stop. A signal that came before stops it now.
    fn serve(&self, stopper: Stopper) {
        let mut state = lock(&self.state);
        if state.asked {
            stopper.stop(StopMode::Drain);
        }
        state.stopper = Some(stopper);
    }

    fn end(self) {
        self.handle.close();
        // It fails only if the thread panicked, and its work is over.
        let _ = self.thread.join();
    }
}

/// Whether whoever started this process wants it to ignore a signal, as `nohup` does.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// A poisoned lock is used on: the state is consistent between any two statements.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_signal(signal: i32, state: &mut State) {
    if state.asked {
        if let Some(stopper) = &state.stopper {
            stopper.remove_files();
        }
        say("stopped at once, by a second signal");
        // Without the hooks of an ordinary exit: the engine's would wait for threads that still run, or crash them.
        signal_hook::low_level::exit(128 + signal);
    }
    state.asked = true;
    tracing::info!(signal, "draining");
    if let Some(stopper) = &state.stopper {
        stopper.stop(StopMode::Drain);
    }
    say("answering what was accepted, then stopping; a second signal stops at once");
}
