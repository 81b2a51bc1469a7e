//! The server's settings: read from the command line, the environment and a file, and checked.
//!
//! ```text
//! command line ─┐ spelling.rs
//! MDM_* ────────┼───────────────────▶ args.rs, values.rs ──▶ Config
//! --config ─────┘ sources.rs, file.rs    each value alone       what must agree, and the folders
//! ```
//!
//! The command line wins over the environment, the environment over the file.
//!
#![doc = include_str!("flags.md")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::message::Role;
use crate::model::Device;

mod args;
mod file;
#[cfg(test)]
mod flags_page;
mod sources;
mod spelling;
#[cfg(test)]
mod tests;
mod values;
mod variables;

pub use args::{Args, Rotation};
pub use sources::{Asked, parse_flags};
pub use spelling::normalize_args;
pub use values::{DeviceMap, Size, switch, whole};
pub use variables::{check_variables, is_flag_variable};

/// Bytes that the path of a local socket may have: 108 in Linux's `sockaddr_un`, one of them the closing 0.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The priority lane's usual limit in rows.
const PRIORITY_BATCH_SIZE: usize = 16;

/// The settings that a server runs with. Every value is in range, and the folders are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The address to bind, without brackets.
    pub host: String,
    /// That address may be one that others can reach.
    pub insecure: bool,
    /// Where requests arrive; 0 for a free port.
    pub port: u16,
    /// Where results leave; 0 for a free port, else not equal to `port`.
    pub port_out: u16,
    /// Where the door for HTTP listens, if there is one; 0 for a free port.
    pub http_port: Option<u16>,
    /// Where the door for gRPC listens, if there is one; 0 for a free port.
    pub grpc_port: Option<u16>,
    /// Where metrics are told, if not where HTTP is served; 0 for a free port.
    pub metrics_port: Option<u16>,
    /// Threads of the doors, at least 1.
    pub door_threads: usize,
    /// Clients of a door on this machine may load and unload models.
    pub door_model_control: bool,
    /// How many workers, at least 1.
    pub num_worker: usize,
    /// Further workers, for plugin stages only.
    pub num_parallel_workers: usize,
    /// Workers for small chunks alone, while all others are inside bulk.
    pub express_workers: usize,
    /// Not empty: worker i runs on entry i mod length.
    pub devices: Vec<Device>,
    /// Most rows in a chunk, at least 1.
    pub max_batch_size: usize,
    /// Requests of at most so many rows take the small lane; at most `max_batch_size`, 0 for none.
    pub priority_batch_size: usize,
    /// Share of a GPU's memory for one session, 0 to 1; 0 leaves it to the engine.
    pub gpu_memory_fraction: f64,
    /// Where models, proxies and plugins are.
    pub run_script_dir: PathBuf,
    /// Further folders for `*_path` parameters.
    pub allow_paths: Vec<PathBuf>,
    /// Where the ipc sockets live.
    pub sock_tmp_dir: PathBuf,
    /// The log file, if it was named; else the port says it ([`crate::logging::default_file`]).
    pub logger: Option<PathBuf>,
    /// When a new log file is begun.
    pub logger_rotation: Rotation,
    /// Debug log, the engine's included.
    pub verbose: bool,
    /// Models to load before the server is ready.
    pub preload: Vec<String>,
    /// Most models that are loaded, at least 1.
    pub max_models: usize,
    /// Most bytes of the loaded models' files, if there is a bound.
    pub max_model_bytes: Option<u64>,
    /// The engine's library, if it was named.
    pub onnxruntime: Option<PathBuf>,
    /// Engine threads in each worker, at least 1.
    pub intra_op_threads: usize,
    /// Chunks that wait at a worker behind the one that it runs.
    pub prefetch_size: usize,
    /// How long a small request may wait for others to run with.
    pub max_batch_delay: Duration,
    /// How long a bulk chunk should run; `None` leaves it to `max_batch_size`.
    pub max_chunk: Option<Duration>,
    /// How long a loop that is used a lot stays awake for its next message.
    pub busy_poll: Duration,
    /// Niceness of workers.
    pub worker_nice: u8,
    /// Most bytes of requests that wait or run; at least `max_request_bytes`.
    pub max_queue_bytes: u64,
    /// Most requests that wait or run.
    pub max_queue_requests: usize,
    /// Most bytes of one request.
    pub max_request_bytes: u64,
    /// Most bytes of results held for one client.
    pub max_client_bytes: u64,
    /// Most bytes of messages that have begun to come and not ended.
    pub max_unfinished_bytes: u64,
    /// Most sessions at once, if that was said; else the system's limit on descriptors says it.
    pub max_sessions: Option<usize>,
    /// The deadline of a request that names none.
    pub default_timeout: Option<Duration>,
}

/// Folders that this process made, to be removed again if the start fails.
#[derive(Debug, Default)]
pub struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// Removes them, unless somebody else has put something there meanwhile.
    pub fn remove(self) {
        for dir in self.0.iter().rev() {
            // Not empty or already gone: then it is not ours to remove.
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Config {
    /// Reads the command line (the first argument is the program), the environment through `variable`, and the file
    /// that one of them names. Makes nothing; [`Config::make_sock_tmp_dir`] does.
    ///
    /// # Errors
    /// One line that names the flag, variable or key, what was expected, and what came.
    pub fn from_command_line(
        args: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Asked<Config>> {
        match sources::parse_with_file(args, variable)? {
            Asked::Run(args) => Config::from_args(args).map(Asked::Run),
            Asked::Print(text) => Ok(Asked::Print(text)),
        }
    }

    /// The settings for these flags (without a program in front), whatever the environment is; makes the folder for
    /// sockets. What a test, or a program that has the server inside, starts from.
    ///
    /// # Errors
    /// As [`Config::from_command_line`]; `--help` and `--version` are errors here.
    pub fn parse_from<S: Into<OsString>>(flags: impl IntoIterator<Item = S>) -> Result<Config> {
        let program = std::iter::once(OsString::from("mdm-server-start"));
        let args = program.chain(flags.into_iter().map(Into::into));
        match Config::from_command_line(args, |_| None)? {
            Asked::Run(config) => {
                config.make_sock_tmp_dir()?;
                Ok(config)
            }
            Asked::Print(_) => Err(Error::invalid(
                "--help and --version are for a command line",
            )),
        }
    }

    /// Checks what needs more than one value: settings that must agree, and files that must be there.
    ///
    /// # Errors
    /// One line that names the flag, what was expected, and what came.
    pub fn from_args(args: Args) -> Result<Config> {
        let loopback = args
            .host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback());
        if !loopback && !args.insecure {
            return Err(Error::invalid(format!(
                "--host {} can be reached from other machines, and nothing protects the server: give --insecure if that is meant, or a loopback address such as 127.0.0.1",
                args.host
            )));
        }
        if args.port == args.port_out && args.port != 0 {
            return Err(Error::invalid(format!(
                "--port and --port-out are both {}: they are two sockets, give two ports",
                args.port
            )));
        }
        check_doors(&args)?;
        let priority_batch_size = args
            .priority_batch_size
            .unwrap_or(PRIORITY_BATCH_SIZE.min(args.max_batch_size));
        if priority_batch_size > args.max_batch_size {
            return Err(Error::invalid(format!(
                "--priority-batch-size {priority_batch_size} is more than --max-batch-size {}: a small request is one chunk, lower the one or raise the other",
                args.max_batch_size
            )));
        }
        check_workers(&args)?;
        let express_workers = express_workers(&args);
        if args.max_request_bytes > args.max_queue_bytes {
            return Err(Error::invalid(format!(
                "--max-request-bytes {} is more than --max-queue-bytes {}: such a request would never be accepted, lower the one or raise the other",
                args.max_request_bytes, args.max_queue_bytes
            )));
        }
        folder("--run-script-dir", &args.run_script_dir)?;
        for path in &args.allow_path {
            folder("--allow-path", path)?;
        }
        check_sock_tmp_dir(&args)?;
        args.logger.as_deref().map_or(Ok(()), check_logger)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            intra_op_threads: args
                .intra_op_threads
                .unwrap_or((cores / args.num_worker).max(1)),
            host: args.host,
            insecure: args.insecure,
            port: args.port,
            port_out: args.port_out,
            http_port: args.http_port,
            grpc_port: args.grpc_port,
            metrics_port: args.metrics_port,
            door_threads: args.door_threads,
            door_model_control: args.door_model_control,
            num_worker: args.num_worker,
            num_parallel_workers: args.num_parallel_workers,
            express_workers,
            devices: args.device_map.0,
            max_batch_size: args.max_batch_size,
            priority_batch_size,
            gpu_memory_fraction: args.gpu_memory_fraction,
            run_script_dir: args.run_script_dir,
            allow_paths: args.allow_path,
            sock_tmp_dir: args.zeromq_sock_tmp_dir,
            logger: args.logger,
            logger_rotation: args.logger_rotation,
            verbose: args.verbose,
            preload: args.preload,
            max_models: args.max_models,
            max_model_bytes: args.max_model_bytes.map(|size| size.0),
            onnxruntime: args.onnxruntime,
            prefetch_size: args.prefetch_size,
            max_batch_delay: Duration::from_micros(args.max_batch_delay_us),
            busy_poll: Duration::from_micros(args.busy_poll_us),
            worker_nice: args.worker_nice,
            max_chunk: (args.max_chunk_ms > 0).then(|| Duration::from_millis(args.max_chunk_ms)),
            max_queue_bytes: args.max_queue_bytes.0,
            max_queue_requests: args.max_queue_requests,
            max_request_bytes: args.max_request_bytes.0,
            max_client_bytes: args.max_client_bytes.0,
            max_unfinished_bytes: args.max_unfinished_bytes.unwrap_or(args.max_queue_bytes).0,
            max_sessions: args.max_sessions,
            default_timeout: (args.default_timeout_ms > 0)
                .then(|| Duration::from_millis(args.default_timeout_ms)),
        })
    }

    /// Workers of all kinds: first the main ones, then the extra ones, then the express ones.
    pub fn all_workers(&self) -> usize {
        self.num_worker + self.num_parallel_workers + self.express_workers
    }

    /// What worker number `worker` is for.
    pub(crate) fn role(&self, worker: usize) -> Role {
        match worker {
            _ if worker < self.num_worker => Role::Main,
            _ if worker < self.num_worker + self.num_parallel_workers => Role::Extra,
            _ => Role::Express,
        }
    }

    /// Where worker number `worker` runs.
    pub fn device(&self, worker: usize) -> Device {
        if worker >= self.num_worker {
            return Device::Cpu;
        }
        let entry = worker % self.devices.len().max(1);
        self.devices.get(entry).copied().unwrap_or(Device::Cpu)
    }

    /// Makes the folder for the ipc sockets if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_sock_tmp_dir(&self) -> Result<MadeDirs> {
        let missing: Vec<PathBuf> = self
            .sock_tmp_dir
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
            .map(Path::to_path_buf)
            .collect();
        let made = MadeDirs(missing.into_iter().rev().collect());
        match fs::create_dir_all(&self.sock_tmp_dir) {
            Ok(()) => Ok(made),
            Err(e) => {
                made.remove();
                let full = std::path::absolute(&self.sock_tmp_dir);
                let full = full.unwrap_or_else(|_| self.sock_tmp_dir.clone());
                Err(Error::invalid(format!(
                    "--zeromq-sock-tmp-dir {:?}, the folder for the server's local sockets, cannot be made as {}: {e}; \
                     name one that can be, such as --zeromq-sock-tmp-dir {:?}",
                    self.sock_tmp_dir,
                    full.display(),
                    std::env::temp_dir().join("mdm")
                )))
            }
        }
    }

    /// The settings in force, under the names that a settings file has, and as the environment would have them: an
    /// empty one is not set, a list is joined like PATH.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let path = |path: &Path| path.display().to_string();
        let optional = |port: Option<u16>| port.map(|port| port.to_string()).unwrap_or_default();
        let millis = |time: Option<Duration>| time.unwrap_or_default().as_millis().to_string();
        let rows = [
            ("host", self.host.clone()),
            ("insecure", self.insecure.to_string()),
            ("port", self.port.to_string()),
            ("port_out", self.port_out.to_string()),
            ("http_port", optional(self.http_port)),
            ("grpc_port", optional(self.grpc_port)),
            ("metrics_port", optional(self.metrics_port)),
            ("door_threads", self.door_threads.to_string()),
            ("door_model_control", self.door_model_control.to_string()),
            ("num_worker", self.num_worker.to_string()),
            (
                "num_parallel_workers",
                self.num_parallel_workers.to_string(),
            ),
            ("express_workers", self.express_workers.to_string()),
            ("device_map", DeviceMap(self.devices.clone()).to_string()),
            ("max_batch_size", self.max_batch_size.to_string()),
            ("priority_batch_size", self.priority_batch_size.to_string()),
            ("gpu_memory_fraction", self.gpu_memory_fraction.to_string()),
            ("run_script_dir", path(&self.run_script_dir)),
            (
                "allow_path",
                joined(self.allow_paths.iter().map(|dir| path(dir))),
            ),
            ("zeromq_sock_tmp_dir", path(&self.sock_tmp_dir)),
            (
                "logger",
                self.logger.as_deref().map(path).unwrap_or_default(),
            ),
            ("logger_rotation", self.logger_rotation.to_string()),
            ("verbose", self.verbose.to_string()),
            ("preload", joined(self.preload.iter().cloned())),
            ("max_models", self.max_models.to_string()),
            (
                "max_model_bytes",
                self.max_model_bytes
                    .map(|bytes| Size(bytes).to_string())
                    .unwrap_or_default(),
            ),
            (
                "onnxruntime",
                self.onnxruntime.as_deref().map(path).unwrap_or_default(),
            ),
            ("intra_op_threads", self.intra_op_threads.to_string()),
            ("prefetch_size", self.prefetch_size.to_string()),
            (
                "max_batch_delay_us",
                self.max_batch_delay.as_micros().to_string(),
            ),
            ("busy_poll_us", self.busy_poll.as_micros().to_string()),
            ("worker_nice", self.worker_nice.to_string()),
            ("max_chunk_ms", millis(self.max_chunk)),
            ("max_queue_bytes", Size(self.max_queue_bytes).to_string()),
            ("max_queue_requests", self.max_queue_requests.to_string()),
            (
                "max_request_bytes",
                Size(self.max_request_bytes).to_string(),
            ),
            ("max_client_bytes", Size(self.max_client_bytes).to_string()),
            (
                "max_unfinished_bytes",
                Size(self.max_unfinished_bytes).to_string(),
            ),
            (
                "max_sessions",
                self.max_sessions.map(|n| n.to_string()).unwrap_or_default(),
            ),
            ("default_timeout_ms", millis(self.default_timeout)),
        ];
        rows.into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

impl Config {
    /// The settings in force as lines of TOML, which `--config` reads back. A comment stands for what is not set.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let list = |entries: Vec<String>| {
            let entries: Vec<String> = entries.iter().map(|entry| quoted(entry)).collect();
            format!("[{}]", entries.join(", "))
        };
        let mut lines = String::new();
        for (name, value) in self.settings() {
            let is_number = value.parse::<u64>().is_ok_and(|n| n.to_string() == value);
            let value = match name.as_str() {
                "preload" => list(self.preload.clone()),
                "allow_path" => {
                    let paths = self.allow_paths.iter();
                    list(paths.map(|path| path.display().to_string()).collect())
                }
                "door_model_control" | "gpu_memory_fraction" | "insecure" | "verbose" => value,
                _ if is_number => value,
                _ if value.is_empty() => {
                    lines += &format!("# {name} is not set\n");
                    continue;
                }
                _ => quoted(&value),
            };
            lines += &format!("{name} = {value}\n");
        }
        lines
    }
}

/// Whether the workers' numbers agree with each other and with the devices.
fn check_workers(args: &Args) -> Result<()> {
    let kinds = [
        ("--num-worker", args.num_worker),
        ("--num-parallel-workers", args.num_parallel_workers),
        ("--express-workers", args.express_workers.unwrap_or(0)),
    ];
    let workers: usize = kinds.iter().map(|(_, count)| count).sum();
    if workers > args::MAX_WORKERS as usize {
        let kinds = kinds.iter().filter(|(_, count)| *count > 0);
        let kinds: Vec<String> = kinds
            .map(|(flag, count)| format!("{flag} {count}"))
            .collect();
        return Err(Error::invalid(format!(
            "{} are {workers} together, expected at most {}",
            kinds.join(" and "),
            args::MAX_WORKERS
        )));
    }
    let on_gpu = args.device_map.0.iter().find(|of| **of != Device::Cpu);
    if let (Some(express @ 1..), Some(device)) = (args.express_workers, on_gpu) {
        return Err(Error::invalid(format!(
            "--express-workers {express}: they are on the CPU, where all others must be too, and --device-map names {device}; \
             leave --express-workers out, or give 0"
        )));
    }
    Ok(())
}

/// Who asked for one worker may count on it that nothing runs beside what it runs.
fn express_workers(args: &Args) -> usize {
    let on_cpu = args.device_map.0.iter().all(|of| *of == Device::Cpu);
    let has_room = args.num_worker + args.num_parallel_workers < args::MAX_WORKERS as usize;
    let usual = usize::from(on_cpu && args.num_worker > 1 && has_room);
    args.express_workers.unwrap_or(usual)
}

/// What the doors' flags have to agree with.
fn check_doors(args: &Args) -> Result<()> {
    let doors = [
        ("--http-port", args.http_port),
        ("--grpc-port", args.grpc_port),
        ("--metrics-port", args.metrics_port),
    ];
    let mut taken = vec![("--port", args.port), ("--port-out", args.port_out)];
    for (flag, port) in doors {
        let Some(port) = port else {
            continue;
        };
        if !cfg!(feature = "gateway") {
            return Err(Error::invalid(format!(
                "{flag}: this server was built without doors; build it with the feature `gateway`, which is in the default set"
            )));
        }
        let same = taken.iter().find(|(_, other)| *other == port && port != 0);
        if let Some((other, _)) = same {
            return Err(Error::invalid(format!(
                "{other} and {flag} are both {port}: they are two sockets, give two ports"
            )));
        }
        taken.push((flag, port));
    }
    Ok(())
}

/// As the environment has a list: what `std::env::split_paths` takes apart.
fn joined(entries: impl Iterator<Item = String>) -> String {
    entries
        .collect::<Vec<_>>()
        .join(if cfg!(windows) { ";" } else { ":" })
}

/// A folder that is there and can be listed.
fn folder(flag: &str, path: &Path) -> Result<()> {
    match fs::read_dir(path) {
        Ok(_) => Ok(()),
        Err(_) if path.exists() && !path.is_dir() => {
            Err(Error::invalid(format!("{flag} {path:?} is not a folder")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::invalid(format!(
            "{flag} {path:?} does not exist; make the folder, or name another"
        ))),
        Err(e) => Err(Error::invalid(format!(
            "{flag} {path:?} cannot be read: {e}"
        ))),
    }
}

/// The folder may be missing, but what is there must be a folder, and a socket's path must fit into the system's limit.
fn check_sock_tmp_dir(args: &Args) -> Result<()> {
    let dir = &args.zeromq_sock_tmp_dir;
    if dir.exists() && !dir.is_dir() {
        return Err(Error::invalid(format!(
            "--zeromq-sock-tmp-dir {dir:?} is not a folder"
        )));
    }
    // A free port can have as many digits as any.
    let port = if args.port == 0 { u16::MAX } else { args.port };
    let bytes = dir.join(format!("mdm-{port}.out")).as_os_str().len();
    if cfg!(unix) && bytes > MAX_SOCKET_PATH_BYTES {
        return Err(Error::invalid(format!(
            "--zeromq-sock-tmp-dir {dir:?} is too long: a socket's path in it has {bytes} bytes, and the system takes {MAX_SOCKET_PATH_BYTES}; give a shorter --zeromq-sock-tmp-dir"
        )));
    }
    Ok(())
}

/// The log's folder must be there: what opens the file would make it without a word, under a mistyped name too.
fn check_logger(logger: &Path) -> Result<()> {
    if logger.is_dir() {
        return Err(Error::invalid(format!(
            "--logger {logger:?} is a folder; name a file"
        )));
    }
    match logger.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => Err(Error::invalid(
            format!("--logger {logger:?}: {parent:?} is no folder; make it, or name another file"),
        )),
        _ => Ok(()),
    }
}
