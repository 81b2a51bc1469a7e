//! Sets up the process's log: all of it goes into a file, warnings and errors to standard error too.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{self, RollingFileAppender};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Config, Rotation};
use crate::error::{Error, Result};

/// The log file's filter without `--verbose`: of the engine only warnings and errors.
const NORMAL: &str = "info,ort=warn";
/// With `--verbose`.
const VERBOSE: &str = "debug";
/// Environment variables with a filter for the file; the first that is set counts.
const VARIABLES: [&str; 2] = ["MDM_LOG", "RUST_LOG"];
/// The target of lines that a command prints itself, so that they go to the log file only.
pub const PRINTED: &str = "mdm::printed";

/// The log while it is open. Dropping it writes out what is still on its way.
#[must_use = "dropping it ends the log"]
pub struct Log {
    guards: [WorkerGuard; 2],
    made: Vec<PathBuf>,
}

impl Log {
    /// Ends the log and removes the file, if it was made by opening this log: for a server that could not start.
    pub fn discard(self) {
        drop(self.guards);
        for path in self.made {
            // It may be gone already.
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens the log of this process.
///
/// # Errors
/// The file cannot be written, a filter in the environment cannot be read, or there is a log already.
pub fn init(config: &Config) -> Result<Log> {
    let filter = filter(if config.verbose { VERBOSE } else { NORMAL })?;
    let (appender, made) = open(&config.logger, config.logger_rotation)?;
    // Lossy, with a bounded buffer: a full disk must not hold up the data path.
    let (writer, file_guard) = tracing_appender::non_blocking(appender);
    let file = fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .with_filter(filter);
    // Neither must a parent process that does not read standard error.
    let (writer, stderr_guard) = tracing_appender::non_blocking(io::stderr());
    let stderr = fmt::layer()
        .with_writer(writer)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_filter(
            Targets::new()
                .with_default(LevelFilter::WARN)
                .with_target(PRINTED, LevelFilter::OFF),
        );
    tracing_subscriber::registry()
        .with(file)
        .with(stderr)
        .try_init()
        .map_err(|e| Error::precondition(format!("the log cannot be set up: {e}")))?;
    Ok(Log {
        guards: [file_guard, stderr_guard],
        made,
    })
}

/// The filter that the environment says, or else this one.
fn filter(default: &str) -> Result<EnvFilter> {
    for name in VARIABLES {
        let Some(text) = std::env::var_os(name).filter(|text| !text.is_empty()) else {
            continue;
        };
        let text = text.to_string_lossy();
        return EnvFilter::try_new(&text).map_err(|e| {
            Error::invalid(format!(
                "{name} {text:?} is not a log filter: {e}; expected one such as info,mdm=debug"
            ))
        });
    }
    Ok(EnvFilter::new(default))
}

/// Opens the file; says which files that made.
fn open(path: &Path, rotation: Rotation) -> Result<(RollingFileAppender, Vec<PathBuf>)> {
    let fail = |why: String| Error::invalid(format!("--logger {path:?} cannot be written: {why}"));
    let name = path
        .file_name()
        .ok_or_else(|| fail("it names no file".to_owned()))?
        .to_str()
        .ok_or_else(|| fail("the file's name is not UTF-8".to_owned()))?;
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // With rotation the appender adds the date to the name, and does not say what came out.
    let before = named(dir, name);
    let appender = RollingFileAppender::builder()
        .rotation(match rotation {
            Rotation::Never => rolling::Rotation::NEVER,
            Rotation::Hourly => rolling::Rotation::HOURLY,
            Rotation::Daily => rolling::Rotation::DAILY,
        })
        .filename_prefix(name)
        .build(dir)
        .map_err(|e| {
            let cause =
                std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            fail(format!(
                "{cause}; name a file in a folder that this user may write to"
            ))
        })?;
    let made = named(dir, name)
        .difference(&before)
        .map(|file| dir.join(file))
        .collect();
    Ok((appender, made))
}

/// The files in a folder whose names begin so. A folder that cannot be listed has none: then nothing is removed.
fn named(dir: &Path, prefix: &str) -> HashSet<OsString> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        .collect()
}
