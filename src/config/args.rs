//! What was typed: the flags of `mdm-server-start`, their defaults, and what each value may look like.
//!
//! This is the one table of flags. The environment's names, the file's keys and the tests that try every spelling are
//! all made from it, so that no flag can be forgotten in one of them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{ArgAction, Parser, ValueEnum};

use crate::model::Device;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
/// A year: more is a slip of the keyboard, and sums of times stay far from overflow.
const MAX_TIMEOUT_MS: u64 = 365 * 24 * 60 * 60 * 1000;

const AFTER_HELP: &str = "\
Every flag is also read from the environment (MDM_NUM_WORKER=4; those that can be repeated are split like PATH) and
from a TOML file (--config; num_worker = 4, lists for those that can be repeated). The command line wins over the
environment, the environment over the file. The older spelling works too: -num_worker=4 -device_map=-1 -port=5555
Sizes are bytes, or a number with KiB, MiB, GiB or TiB (1024) or kB, MB, GB or TB (1000).
MDM_LOG filters the log file as RUST_LOG does, as in MDM_LOG=info,mdm=trace
Exit codes: 0 stopped as asked, 1 failed while running, 2 could not start.";

/// Serves the models in a folder: splits requests over workers, and answers in row order.
#[derive(Parser, Clone, Debug)]
#[command(name = "mdm-server-start", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Args {
    /// Where requests arrive; 0 picks a free port
    #[arg(long, visible_aliases = ["port-in", "port-data"], default_value_t = 5555)]
    #[arg(help_heading = "Addresses")]
    pub port: u16,

    /// Where results leave; 0 picks a free port
    #[arg(
        long,
        visible_alias = "port-result",
        value_name = "PORT",
        default_value_t = 5556
    )]
    #[arg(help_heading = "Addresses")]
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
    #[arg(num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    #[arg(hide_default_value = true, action = ArgAction::Set, help_heading = "Addresses")]
    pub insecure: bool,

    /// Where the ipc sockets live; made if it is missing, and our files in it go when the server stops
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./sock_tmp",
        help_heading = "Addresses"
    )]
    pub zeromq_sock_tmp_dir: PathBuf,

    /// Workers; each runs one chunk at a time
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Workers")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub num_worker: usize,

    /// "-1" for the CPU, or GPU numbers such as "0,1": worker i gets entry i mod length, in this order
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

    /// Engine threads in each worker [default: cores / workers, at least 1]
    #[arg(long, value_name = "N", help_heading = "Workers")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub intra_op_threads: Option<usize>,

    /// Chunks that wait at a worker behind the one that it runs
    #[arg(
        long,
        value_name = "CHUNKS",
        default_value_t = 1,
        help_heading = "Workers"
    )]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(0..=64))]
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

    /// Load and warm this model before the server is ready; can be repeated
    #[arg(long, value_name = "MODEL", help_heading = "Models")]
    pub preload: Vec<String>,

    /// Most rows in a chunk
    #[arg(
        long,
        value_name = "ROWS",
        default_value_t = 1024,
        help_heading = "Batches"
    )]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 32))]
    pub max_batch_size: usize,

    /// Requests of at most so many rows go to one worker, ahead of bulk [default: 16, or less if a chunk has less]
    #[arg(long, value_name = "ROWS", help_heading = "Batches")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(0..=1 << 32))]
    pub priority_batch_size: Option<usize>,

    /// How long a small request may wait for others to run with, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Batches")]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(0..=60_000_000))]
    pub max_batch_delay_us: u64,

    /// A bulk chunk is cut so that it runs about so long, in milliseconds; 0: only --max-batch-size limits it
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 20,
        help_heading = "Batches"
    )]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(0..=3_600_000))]
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
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 32))]
    pub max_queue_requests: usize,

    /// Most bytes of one request
    #[arg(long, value_name = "SIZE", default_value_t = Size(512 * MIB), help_heading = "Bounds")]
    pub max_request_bytes: Size,

    /// Most bytes of results that are gathered for one client or on their way to it
    #[arg(long, value_name = "SIZE", default_value_t = Size(256 * MIB), help_heading = "Bounds")]
    pub max_client_bytes: Size,

    /// The deadline of a request that names none, in milliseconds; 0: none
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 600_000,
        help_heading = "Bounds"
    )]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(0..=MAX_TIMEOUT_MS))]
    pub default_timeout_ms: u64,

    /// The log file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "./logger.txt",
        help_heading = "Log"
    )]
    pub logger: PathBuf,

    /// When a new log file is begun; the date is then added to its name
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
    #[arg(num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    #[arg(hide_default_value = true, action = ArgAction::Set, help_heading = "Log")]
    pub verbose: bool,

    /// Read settings from this TOML file; an unknown key in it is an error
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// When a new log file is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rotation {
    /// One file, for ever.
    Never,
    /// Each hour, UTC.
    Hourly,
    /// Each day, UTC.
    Daily,
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rotation::Never => "never",
            Rotation::Hourly => "hourly",
            Rotation::Daily => "daily",
        })
    }
}

/// A list of devices, in the order in which workers get them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMap(pub Vec<Device>);

impl FromStr for DeviceMap {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceMap, String> {
        text.split(',')
            .map(|entry| match entry.trim() {
                "-1" => Ok(Device::Cpu),
                // Digits only: a number's own parser would take "+1" too.
                digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => digits
                    .parse::<u16>()
                    .map(|number| Device::Cuda(number.into()))
                    .map_err(|_| format!("{digits} is no GPU's number: at most {}", u16::MAX)),
                other => Err(format!(
                    "{other:?} is no device: expected -1 for the CPU, or GPU numbers joined by commas, such as 0,1"
                )),
            })
            .collect::<Result<_, _>>()
            .map(DeviceMap)
    }
}

impl fmt::Display for DeviceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, device) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match device {
                Device::Cpu => f.write_str("-1")?,
                Device::Cuda(number) => write!(f, "{number}")?,
            }
        }
        Ok(())
    }
}

/// A size in bytes, at least 1; typed as `1000000`, `64MiB` or `1GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The most that a size may be: sums of a few of them stay far below 2^63, which is where ZeroMQ's own limit ends.
const MAX_SIZE: u64 = 1024 * 1024 * GIB;

const UNITS: [(&str, u64); 9] = [
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", 1024 * GIB),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let scale = match unit {
            "" => Some(1),
            unit => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| *scale),
        };
        let (Some(scale), false) = (scale, number.is_empty()) else {
            return Err(
                "expected bytes, or a whole number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 64MiB"
                    .to_owned(),
            );
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .filter(|bytes| (1..=MAX_SIZE).contains(bytes))
            .map(Size)
            .ok_or_else(|| format!("a size is 1 to {}", Size(MAX_SIZE)))
    }
}

impl fmt::Display for Size {
    /// The same number in the largest binary unit that leaves it whole, so that it reads back as it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS[..4]
            .iter()
            .rev()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&("", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        // NaN is in no range.
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1, such as 0.2".to_owned()),
    }
}

/// An address that can be bound, bare: no name to look up, no brackets.
fn host(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    // ZeroMQ binds addresses, not names; this name is the one that everybody types.
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok("127.0.0.1".to_owned());
    }
    match bare.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(bare.to_owned()),
        Err(_) => Err("expected an IPv4 or IPv6 address or localhost; 0.0.0.0 is every IPv4 address, :: every address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_map_keeps_its_order_and_refuses_what_is_no_device() {
        let parse = |text: &str| text.parse::<DeviceMap>().map(|map| map.0);
        assert_eq!(parse("-1"), Ok(vec![Device::Cpu]));
        assert_eq!(
            parse("3,0, 1,0"),
            Ok(vec![
                Device::Cuda(3),
                Device::Cuda(0),
                Device::Cuda(1),
                Device::Cuda(0)
            ])
        );
        assert_eq!(parse("-1,0"), Ok(vec![Device::Cpu, Device::Cuda(0)]));
        for bad in [
            "", "a", "-2", "0,", ",0", "0;1", "+1", "1.5", "70000", "--port",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(
            parse("2,-1,0").map(DeviceMap).map(|m| m.to_string()),
            Ok("2,-1,0".to_owned())
        );
    }

    #[test]
    fn sizes_are_read_in_every_unit_and_printed_so_that_they_read_back() {
        let parse = |text: &str| text.parse::<Size>().map(|size| size.0);
        for (text, bytes) in [
            ("1000000", 1_000_000),
            ("1B", 1),
            ("64MiB", 64 * MIB),
            ("64 mib", 64 * MIB),
            ("1GiB", GIB),
            ("2KiB", 2048),
            ("3kB", 3000),
            ("1MB", 1_000_000),
            ("1GB", 1_000_000_000),
            ("1TiB", 1024 * GIB),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
            assert_eq!(parse(&Size(bytes).to_string()), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "MiB",
            "-1",
            "1.5GiB",
            "64M",
            "64MiBs",
            "99999999999999999999",
            "9999999999TiB",
            "1e6",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(Size(512 * MIB).to_string(), "512MiB");
        assert_eq!(Size(1_000_001).to_string(), "1000001");
    }

    #[test]
    fn a_fraction_is_a_number_from_0_to_1() {
        assert_eq!(fraction("0"), Ok(0.0));
        assert_eq!(fraction("1.0"), Ok(1.0));
        for bad in ["NaN", "nan", "-0.1", "1.01", "inf", "", "20%"] {
            assert!(fraction(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_host_is_an_address() {
        assert_eq!(host("localhost").as_deref(), Ok("127.0.0.1"));
        assert_eq!(host("[::1]").as_deref(), Ok("::1"));
        assert_eq!(host("0.0.0.0").as_deref(), Ok("0.0.0.0"));
        for bad in [
            "",
            "*",
            "example.org",
            "127.0.0.1:5555",
            "[::1",
            "tcp://127.0.0.1",
        ] {
            assert!(host(bad).is_err(), "{bad:?} was taken");
        }
    }
}
