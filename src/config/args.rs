//! The flags of `mdm-server-start`: their names, help, defaults, and which values each takes.
//!
//! This is the one table of flags. The environment's names, the file's keys, the page `flags.md` and the tests that try
//! every spelling are all made from it, so that no flag can be forgotten in one of them.

use std::fmt;
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValue};
use clap::{ArgAction, Parser, ValueEnum};

use super::values::{DeviceMap, GIB, MIB, Size, fraction, host, switch, whole};

/// A server's workers: each takes six of the 1,023 sockets that a ZeroMQ context has.
pub(super) const MAX_WORKERS: u64 = 160;

/// A year. A longer time is a typing error, and sums of times stay far from overflow.
const MAX_TIMEOUT_MS: u64 = 365 * 24 * 60 * 60 * 1000;

const AFTER_HELP: &str = "\
Every flag is also read from the environment (MDM_NUM_WORKER=4; those that can be repeated are split like PATH) and
from a TOML file (--config; num_worker = 4, lists for those that can be repeated). The command line wins over the
environment, the environment over the file. The older spelling works too: -num_worker=4 -device_map=-1 -port=5555
Sizes are bytes, or a number with KiB, MiB, GiB or TiB (1024) or kB, MB, GB or TB (1000).
MDM_LOG filters the log file as RUST_LOG does, as in MDM_LOG=info,mdm=trace
Exit codes: 0 stopped as asked, 1 failed while running, 2 could not start; 128 + the signal's number when a second
signal cut the draining short.";

/// Serves the models in a folder: splits requests over workers, and answers in row order.
#[derive(Parser, Clone, Debug)]
#[command(name = "mdm-server-start", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Where requests arrive; 0 picks a free port
    #[arg(long, visible_aliases = ["port-in", "port-data"], default_value_t = 5555)]
    #[arg(value_parser = whole::<u16>(0..=65535), help_heading = "Addresses")]
    pub port: u16,

    /// Where results leave; 0 picks a free port
    #[arg(
        long,
        visible_alias = "port-result",
        value_name = "PORT",
        default_value_t = 5556
    )]
    #[arg(value_parser = whole::<u16>(0..=65535), help_heading = "Addresses")]
    pub port_out: u16,

    /// The address to bind: IPv4, IPv6 or localhost. Any that is not loopback needs --insecure
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host)]
    #[arg(help_heading = "Addresses")]
    pub host: String,

    /// Let --host be reached from other machines, although nothing protects the server yet
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set, help_heading = "Addresses")]
    pub insecure: bool,

    /// Where the local sockets mdm-PORT.in and mdm-PORT.out are; made if it is missing, and our files in it go when the
    /// server stops
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./sock_tmp",
        help_heading = "Addresses"
    )]
    pub zeromq_sock_tmp_dir: PathBuf,

    /// Serve the Open Inference Protocol over HTTP on this port of --host too; 0 picks a free one [default: off]
    #[arg(long, value_name = "PORT", help_heading = "Doors")]
    #[arg(value_parser = whole::<u16>(0..=65535))]
    pub http_port: Option<u16>,

    /// Serve the Open Inference Protocol over gRPC on this port of --host too; 0 picks a free one [default: off]
    #[arg(long, value_name = "PORT", help_heading = "Doors")]
    #[arg(value_parser = whole::<u16>(0..=65535))]
    pub grpc_port: Option<u16>,

    /// Tell metrics on this port of --host, and no longer on --http-port; 0 picks a free one [default: on --http-port]
    #[arg(long, value_name = "PORT", help_heading = "Doors")]
    #[arg(value_parser = whole::<u16>(0..=65535))]
    pub metrics_port: Option<u16>,

    /// Threads that serve the doors' connections; each has the connections that it has accepted
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Doors")]
    #[arg(value_parser = whole::<usize>(1..=64))]
    pub door_threads: usize,

    /// Let clients of a door on this machine load and unload models; never for a request that a browser or a proxy has sent
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set, help_heading = "Doors")]
    pub door_model_control: bool,

    /// Workers, up to 160; each runs one chunk at a time
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Workers")]
    #[arg(value_parser = whole::<usize>(1..=MAX_WORKERS))]
    pub num_worker: usize,

    /// Further workers that run only plugin stages, on the CPU, so that preparing the next chunk overlaps the model's run
    #[arg(long, value_name = "M", default_value_t = 0, help_heading = "Workers")]
    #[arg(value_parser = whole::<usize>(0..=MAX_WORKERS))]
    pub num_parallel_workers: usize,

    /// Further workers, on the CPU, that run small requests only, and only while all others are inside bulk whose runs are long:
    /// in the middle of such a run. For models of ONNX files without plugins [default: 1 beside two workers and more that are all
    /// on the CPU, else 0]
    #[arg(long, value_name = "N", help_heading = "Workers")]
    #[arg(value_parser = whole::<usize>(0..=MAX_WORKERS))]
    pub express_workers: Option<usize>,

    /// "-1" or "cpu" for the CPU, "0" or "cuda:0" for a GPU, or several such as "0,1": worker i gets entry i mod length, in
    /// this order
    #[arg(
        long,
        value_name = "DEVICES",
        default_value = "-1",
        allow_hyphen_values = true
    )]
    #[arg(help_heading = "Workers")]
    pub device_map: DeviceMap,

    /// Share of each GPU's memory that one worker's session may take, 0 to 1; 0 leaves it to the engine
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = fraction)]
    #[arg(help_heading = "Workers")]
    pub gpu_memory_fraction: f64,

    /// Engine threads in each worker; runs of less than a tenth of a millisecond have one [default: cores / workers,
    /// at least 1]
    #[arg(long, value_name = "N", help_heading = "Workers")]
    #[arg(value_parser = whole::<usize>(1..=1024))]
    pub intra_op_threads: Option<usize>,

    /// Chunks that wait at a worker behind the one that it runs
    #[arg(
        long,
        value_name = "CHUNKS",
        default_value_t = 1,
        help_heading = "Workers"
    )]
    #[arg(value_parser = whole::<usize>(0..=64))]
    pub prefetch_size: usize,

    /// The ONNX Runtime library [default: looked for beside this program, in .onnxruntime/, in Python, in the system]
    #[arg(long, value_name = "PATH", help_heading = "Workers")]
    pub onnxruntime: Option<PathBuf>,

    /// Where models, proxies and plugins are
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./",
        help_heading = "Models"
    )]
    pub run_script_dir: PathBuf,

    /// One more folder that a request's *_path parameters may point into; can be repeated
    #[arg(long, value_name = "DIR", help_heading = "Models")]
    pub allow_path: Vec<PathBuf>,

    /// Load this model, open it on every worker and warm it before the server is ready; it does not leave to make room. Can
    /// be repeated
    #[arg(long, value_name = "MODEL", help_heading = "Models")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub preload: Vec<String>,

    /// Most models that are loaded; beyond it those leave that were used longest ago
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Models")]
    #[arg(value_parser = whole::<usize>(1..=1 << 20))]
    pub max_models: usize,

    /// Most bytes of the loaded models' files; beyond it those leave that were used longest ago [default: no bound]
    #[arg(long, value_name = "SIZE", help_heading = "Models")]
    pub max_model_bytes: Option<Size>,

    /// Most rows in a chunk
    #[arg(
        long,
        value_name = "ROWS",
        default_value_t = 1024,
        help_heading = "Batches"
    )]
    #[arg(value_parser = whole::<usize>(1..=1 << 32))]
    pub max_batch_size: usize,

    /// Requests of at most so many rows go to one worker, ahead of bulk [default: 16, or less if a chunk has less]
    #[arg(long, value_name = "ROWS", help_heading = "Batches")]
    #[arg(value_parser = whole::<usize>(0..=1 << 32))]
    pub priority_batch_size: Option<usize>,

    /// How long a small request may wait for others to run with, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Batches")]
    #[arg(value_parser = whole::<u64>(0..=60_000_000))]
    pub max_batch_delay_us: u64,

    /// How long a loop that is used a lot stays awake for its next message before it sleeps, in microseconds: saves
    /// waking it up, costs that much processor time after a small request; 0: not at all
    #[arg(
        long,
        value_name = "US",
        default_value_t = 200,
        help_heading = "Batches"
    )]
    #[arg(value_parser = whole::<u64>(0..=1_000_000))]
    pub busy_poll_us: u64,

    /// How much workers let everything else on this machine go first: niceness, 0 to 19 (Linux). Small requests then pass
    /// workers that are inside a model; beside other programs that keep the cores busy bulk gets less of them
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Batches")]
    #[arg(value_parser = whole::<u8>(0..=19))]
    pub worker_nice: u8,

    /// The longest that a bulk chunk should run, in milliseconds: one of several runs takes about half of it; 0: only
    /// --max-batch-size limits it
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 20,
        help_heading = "Batches"
    )]
    #[arg(value_parser = whole::<u64>(0..=3_600_000))]
    pub max_chunk_ms: u64,

    /// Most bytes of requests that wait or run; what comes beyond is refused
    #[arg(long, value_name = "SIZE", default_value_t = Size(2 * GIB), help_heading = "Bounds")]
    pub max_queue_bytes: Size,

    /// Most requests that wait or run; what comes beyond is refused
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "Bounds"
    )]
    #[arg(value_parser = whole::<usize>(1..=1 << 32))]
    pub max_queue_requests: usize,

    /// Most bytes of one request
    #[arg(long, value_name = "SIZE", default_value_t = Size(512 * MIB), help_heading = "Bounds")]
    pub max_request_bytes: Size,

    /// Most bytes of results that are gathered for one client or on their way to it
    #[arg(long, value_name = "SIZE", default_value_t = Size(256 * MIB), help_heading = "Bounds")]
    pub max_client_bytes: Size,

    /// Most bytes of messages that have begun to come and not ended, over all connections to the ports for ZeroMQ, and as
    /// many over all to the doors; beyond it the slowest are closed, at the doors with 429 [default: as --max-queue-bytes]
    #[arg(long, value_name = "SIZE", help_heading = "Bounds")]
    pub max_unfinished_bytes: Option<Size>,

    /// Most sessions at once; who comes beyond is turned away [default: what the descriptor limit allows]
    #[arg(long, value_name = "N", help_heading = "Bounds")]
    #[arg(value_parser = whole::<usize>(1..=1 << 20))]
    pub max_sessions: Option<usize>,

    /// The deadline of a request that names none, in milliseconds; 0: none
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 600_000,
        help_heading = "Bounds"
    )]
    #[arg(value_parser = whole::<u64>(0..=MAX_TIMEOUT_MS))]
    pub default_timeout_ms: u64,

    /// The log file [default: ${XDG_STATE_HOME:-~/.local/state}/mdm/mdm-PORT.log]
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    pub logger: Option<PathBuf>,

    /// When a new log file is begun: never, hourly or daily; the date (UTC) is then added to its name
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "never",
        help_heading = "Log"
    )]
    pub logger_rotation: Rotation,

    /// Debug log, the engine's log included
    #[arg(
        long,
        short,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = switch)]
    #[arg(hide_default_value = true, hide_possible_values = true, action = ArgAction::Set, help_heading = "Log")]
    pub verbose: bool,

    /// Read settings from this TOML file; an unknown key is an error, paths are seen from the working directory
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// When a new log file is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// One file, for ever.
    Never,
    /// Each hour, UTC.
    Hourly,
    /// Each day, UTC.
    Daily,
}

impl Rotation {
    fn name(self) -> &'static str {
        match self {
            Rotation::Never => "never",
            Rotation::Hourly => "hourly",
            Rotation::Daily => "daily",
        }
    }
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// By hand: derived, the variants' documentation would double the length of --help.
impl ValueEnum for Rotation {
    fn value_variants<'a>() -> &'a [Rotation] {
        &[Rotation::Never, Rotation::Hourly, Rotation::Daily]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}
