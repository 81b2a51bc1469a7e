//! Sets up the process's log: all of it goes into a file, warnings and errors to standard error too.
//!
//! Without `--logger` the file is `mdm-PORT.log` in [`state_dir`], so that servers do not share one; until the port is
//! bound, lines are kept (`late.rs`). Where that file cannot be written, all of the log goes to standard error.

mod late;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{self, RollingFileAppender};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use self::late::{Late, Marked};
use crate::config::{Config, Rotation};
use crate::error::{Error, Result};
pub use crate::faults::PRINTED;

/// The log file's filter without `--verbose`: of the engine only warnings and errors.
const NORMAL: &str = "info,ort=warn";
/// With `--verbose`.
const VERBOSE: &str = "debug";
/// Environment variables with a filter for the file; the first that is set counts.
const VARIABLES: [&str; 2] = ["MDM_LOG", "RUST_LOG"];

/// The log while it is open. Dropping it writes out what is still on its way.
#[must_use = "dropping it ends the log"]
pub struct Log {
    guards: [WorkerGuard; 2],
    /// Where lines go, if that depends on the port.
    late: Option<Late>,
    rotation: Rotation,
    made: Made,
}

/// What was made by opening a log.
#[derive(Default)]
struct Made {
    /// The outer ones first.
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Log {
    /// The server's port is known: without `--logger` the log has its file now, which is returned, if it can be written.
    /// Lines from before are the first in it.
    pub fn port_bound(&mut self, port: u16) -> Option<PathBuf> {
        let late = self.late.take()?;
        let Some(path) = default_file(port) else {
            late.settle(None);
            tracing::warn!(
                "neither XDG_STATE_HOME nor a home folder says where the log goes by default, so it goes to standard error; --logger FILE names another place"
            );
            return None;
        };
        match open_default(&path, self.rotation) {
            Ok((appender, made)) => {
                self.made = made;
                late.settle(Some(appender));
                Some(path)
            }
            Err(why) => {
                late.settle(None);
                tracing::warn!(
                    "{} cannot be written, so the log goes to standard error: {why}; --logger FILE names another place",
                    path.display()
                );
                None
            }
        }
    }

    /// What to say of a log's file: with rotation its name is followed by the date.
    pub fn written(&self, path: &Path) -> String {
        let every = match self.rotation {
            Rotation::Never => return path.display().to_string(),
            Rotation::Hourly => "hour",
            Rotation::Daily => "day",
        };
        let now = dated(path).unwrap_or_else(|| with_date(path, "DATE"));
        format!("{}, and a new file each {every}", now.display())
    }

    /// Ends the log and removes what was made by opening it: for a server that could not start.
    pub fn discard(self) {
        drop(self.guards);
        for path in self.made.files {
            // It may be gone already.
            let _ = fs::remove_file(path);
        }
        for dir in self.made.dirs.iter().rev() {
            // Not empty: another server's log is there by now.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The folder of the logs that no `--logger` names: `mdm` in `XDG_STATE_HOME`, or else in `~/.local/state`. `None` if
/// there is no home folder either.
pub fn state_dir() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    // The specification has a path that is not absolute ignored.
    let state = named.filter(|path| path.is_absolute()).or_else(|| {
        let home = std::env::home_dir().filter(|home| home.is_absolute())?;
        Some(home.join(".local/state"))
    })?;
    Some(state.join("mdm"))
}

/// The log of the server on that port, without `--logger`.
pub fn default_file(port: u16) -> Option<PathBuf> {
    Some(state_dir()?.join(format!("mdm-{port}.log")))
}

/// Opens the log of this process.
///
/// # Errors
/// The file cannot be written, a filter in the environment cannot be read, or there is a log already.
pub fn init(config: &Config) -> Result<Log> {
    let filter = filter(if config.verbose { VERBOSE } else { NORMAL })?;
    let rotation = config.logger_rotation;
    let (mut late, mut made) = (None, Made::default());
    // Lossy, with a bounded buffer: a full disk must not hold up the data path.
    let (writer, file_guard) = match &config.logger {
        Some(path) => {
            let appender;
            (appender, made.files) = open(path, rotation).map_err(|why| {
                Error::invalid(format!("--logger {path:?} cannot be written: {why}"))
            })?;
            let (writer, guard) = tracing_appender::non_blocking(appender);
            (BoxMakeWriter::new(writer), guard)
        }
        None => {
            let place = late.insert(Late::new()).clone();
            let (writer, guard) = tracing_appender::non_blocking(place);
            (BoxMakeWriter::new(Marked(writer)), guard)
        }
    };
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
        late,
        rotation,
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

/// Opens the default file, in a folder that is made if it is missing; says what that made.
fn open_default(path: &Path, rotation: Rotation) -> Result<(RollingFileAppender, Made), String> {
    let dirs = path.ancestors().skip(1);
    let missing = dirs.take_while(|dir| !dir.exists()).map(Path::to_path_buf);
    let mut dirs: Vec<PathBuf> = missing.collect();
    dirs.reverse();
    let opened = path.parent().map_or(Ok(()), make_private).and_then(|()| {
        let (appender, files) = open(path, rotation)?;
        Ok((appender, files))
    });
    match opened {
        Ok((appender, files)) => Ok((appender, Made { dirs, files })),
        Err(why) => {
            for dir in dirs.iter().rev() {
                let _ = fs::remove_dir(dir); // it may not have come so far
            }
            Err(why)
        }
    }
}

/// Makes a folder for this user alone, as the specification of `XDG_STATE_HOME` has it.
fn make_private(dir: &Path) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|e| e.to_string())
}

/// Opens the file; says which files that made.
///
/// # Errors
/// Why it cannot be written, in words.
fn open(path: &Path, rotation: Rotation) -> Result<(RollingFileAppender, Vec<PathBuf>), String> {
    let name = path
        .file_name()
        .ok_or("it names no file")?
        .to_str()
        .ok_or("the file's name is not UTF-8")?;
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
            std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
        })?;
    let made = named(dir, name)
        .difference(&before)
        .map(|file| dir.join(file))
        .collect();
    Ok((appender, made))
}

/// The newest of a log's files whose names have a date at their end.
fn dated(path: &Path) -> Option<PathBuf> {
    let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
    let files = named(dir, name).into_iter();
    let dates = files.filter_map(|file| {
        let date = file.to_str()?.strip_prefix(name)?.strip_prefix('.')?;
        let is_date = |date: &str| date.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        is_date(date).then(|| date.to_owned())
    });
    Some(with_date(path, &dates.max()?))
}

fn with_date(path: &Path, date: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".");
    path.push(date);
    path.into()
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
