//! The engine: ONNX Runtime, loaded once per process, and all that the server asks of it. Nothing outside this folder
//! uses `ort`.
//!
//! ```text
//! mod.rs, library.rs         the engine of this process, and where its library is; telemetry.rs keeps it silent
//! device.rs                  where a session runs, and all that differs from device to device
//! shared.rs, source.rs       ONNX files that are open, and the weights of each (weights.rs, proto.rs) for its sessions
//! session.rs                 one session: how it is made, and what its model takes and gives
//! onnx.rs, short_runs.rs     a worker's instance, which runs batches: tensors to values and back (values.rs)
//! memory.rs                  what opening a model leaves behind goes back to the system
//! ```

mod device;
mod library;
pub(crate) mod memory;
mod onnx;
mod proto;
mod session;
mod shared;
mod short_runs;
mod source;
mod telemetry;
mod values;
mod weights;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;

pub use device::Device;
pub use telemetry::without_telemetry;

pub(crate) use onnx::OnnxModel;
pub(crate) use session::Options;
pub(crate) use shared::Shared;
pub(crate) use source::OnnxSource;

use library::{Candidate, SearchStart};

use crate::elf::check_whole;
use crate::error::{Error, Result};

/// What mends a missing library.
const HOW_TO_MEND: &str = "`pip install onnxruntime` in a Python environment or `make onnxruntime` in the sources fetches \
it, or name it with --onnxruntime PATH";

/// The loaded engine. Cloning is cheap; there is one per process, and it stays until the process ends.
#[derive(Clone)]
pub struct Engine {
    environment: Environment,
    library: Arc<Path>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

/// How much of its own log the engine writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineLog {
    /// Warnings and errors.
    Problems,
    /// Information too.
    Everything,
}

/// ONNX Runtime allows one environment per process, and crashes if it is torn down while statics of its own still
/// run: so it is kept here for ever.
static LOADED: Mutex<Option<Engine>> = Mutex::new(None);

impl Engine {
    /// Loads the library: the file or folder `library` if given, else what `ORT_DYLIB_PATH` names, else the first
    /// that is found beside the executable, in `../lib/mdm` from there, in `.onnxruntime` of any folder above the
    /// executable or the working directory, in the `onnxruntime` package of the Python environment that the
    /// executable lies in or of the active one, or by the system's loader. The engine's own log goes to `tracing`, as much of it as `log` says.
    ///
    /// Once an engine is loaded, every later call returns that one. What it would report to its makers see
    /// [`without_telemetry`](without_telemetry), which a program calls before it does anything else.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: what was looked for and where, why each library found does not do, and the command
    /// that mends it.
    pub fn load(library: Option<&Path>, log: EngineLog) -> Result<Engine> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*loaded {
            return Ok(engine.clone());
        }
        let named = library.map(Path::to_owned).or_else(|| {
            std::env::var_os("ORT_DYLIB_PATH")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        });
        let engine = match named {
            Some(path) => open_file(&library::explicit(&path)?, log)?,
            None => search(&SearchStart::of_process(), log)?,
        };
        tracing::debug!(library = %engine.library.display(), "engine loaded");
        *loaded = Some(engine.clone());
        Ok(engine)
    }

    /// The library's file, or the name that the system's loader resolved.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether sessions can run on a device. The processor always can.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming what is missing: the device's provider in the library, the driver, that GPU, or
    /// what the library needs to use it.
    pub fn check_device(&self, device: Device) -> Result<()> {
        device.check(&self.library)?;
        let Some(provider) = device.provider(0, &BTreeMap::new()) else {
            return Ok(());
        };
        // The rest (the provider's own libraries, the driver's version, the card's state) only a session tells.
        let attempt = || -> ort::Result<()> {
            Session::builder(&self.environment)?
                .with_execution_providers([provider])?
                .commit_from_memory(&smallest_model())?;
            Ok(())
        };
        attempt().map_err(|e| device.unusable(format_args!("{device} does not start: {e}")))
    }

    /// The engine's own handle, of which a process can have only one: for tests and benchmarks that compare with the
    /// bare engine. No part of the stable interface.
    #[doc(hidden)]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// An identity of one number.
fn smallest_model() -> Vec<u8> {
    use prost::Message;
    use proto::*;
    let port = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: ElementType::Float as i32,
                shape: Some(TensorShapeProto::default()),
            }),
            sequence_type: None,
        }),
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "probe".to_owned(),
            node: vec![NodeProto {
                op_type: "Identity".to_owned(),
                input: vec!["x".to_owned()],
                output: vec!["y".to_owned()],
                ..NodeProto::default()
            }],
            input: vec![port("x")],
            output: vec![port("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

fn search(start: &SearchStart, log: EngineLog) -> Result<Engine> {
    let mut looked = Vec::new();
    for candidate in start.candidates() {
        let failure = match candidate {
            Candidate::Nothing(folder) => format!("{}: not there", folder.display()),
            Candidate::File(file) => match open_file(&file, log) {
                Ok(engine) => return Ok(engine),
                Err(e) => e.message().to_owned(),
            },
            Candidate::Name(name) => match open(Path::new(name), log) {
                Ok(engine) => return Ok(engine),
                Err(_) => format!("{name}: not known to the system's loader"),
            },
        };
        looked.push(failure);
    }
    Err(Error::precondition(format!(
        "ONNX Runtime was not found; {HOW_TO_MEND}. Looked in:\n  {}",
        looked.join("\n  ")
    )))
}

fn open_file(file: &Path, log: EngineLog) -> Result<Engine> {
    check_whole(file).map_err(|e| e.context("ONNX Runtime"))?;
    open(file, log)
}

fn open(path: &Path, log: EngineLog) -> Result<Engine> {
    let threshold = match log {
        EngineLog::Everything => LogLevel::Info,
        EngineLog::Problems => LogLevel::Warning,
    };
    let attempt = || -> Result<Environment> {
        let unusable = |why: String| {
            Error::precondition(format!(
                "ONNX Runtime: {} cannot be used: {why}; {HOW_TO_MEND}",
                path.display()
            ))
        };
        let environment = ort::init_from(path)
            .map_err(|e| unusable(why_not(&e)))?
            .with_name("mdm")
            .with_telemetry(false)
            .with_logger(Arc::new(move |level, category, id, _place, message| {
                if level >= threshold {
                    trace(level, category, id, message);
                }
            }))
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        // ort asks for every message and leaves the choice to the logger; but the engine formats each one first.
        environment.set_log_level(threshold);
        Ok(environment)
    };
    // ort asserts what a library of that name should hold; a strange one must not end the process.
    let environment = catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| {
        Err(Error::precondition(format!(
            "ONNX Runtime: {} is not the library that its name says; {HOW_TO_MEND}",
            path.display()
        )))
    })?;
    Ok(Engine {
        environment,
        library: path.into(),
    })
}

fn why_not(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => error.to_string(),
        ort::LoadDynamicError::MissingApi { .. } => {
            "it is a library, but not ONNX Runtime".to_owned()
        }
        ort::LoadDynamicError::InvalidVersionString => "its version cannot be read".to_owned(),
        ort::LoadDynamicError::BadVersion { version_str, .. } => format!(
            "it is version {version_str}, and 1.{} is the oldest that works",
            ort::MINOR_VERSION
        ),
    }
}

/// Writes a line of the engine's to the log.
fn trace(level: LogLevel, category: &str, id: &str, message: &str) {
    match level {
        LogLevel::Verbose => {
            tracing::trace!(target: "onnxruntime", category, session = id, "{message}");
        }
        LogLevel::Info => {
            tracing::info!(target: "onnxruntime", category, session = id, "{message}");
        }
        LogLevel::Warning => {
            tracing::warn!(target: "onnxruntime", category, session = id, "{message}");
        }
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: "onnxruntime", category, session = id, "{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let start = SearchStart {
            executable: Some(root.path().join("bin/mdm")),
            working_dir: None,
            python: vec![],
        };
        // A machine may have one installed.
        let Err(e) = search(&start, EngineLog::Problems) else {
            return;
        };
        let message = e.message();
        for part in [
            "pip install onnxruntime",
            "make onnxruntime",
            "--onnxruntime PATH",
        ] {
            assert!(message.contains(part), "{e}");
        }
        for folder in ["bin", "lib/mdm", "bin/.onnxruntime", ".onnxruntime"] {
            let line = format!("{}: not there", root.path().join(folder).display());
            assert!(message.contains(&line), "{line} in {e}");
        }
    }

    #[test]
    fn a_library_that_is_too_old_is_told_apart() {
        let error = ort::LoadDynamicError::BadVersion {
            version_str: "1.9.0".to_owned(),
            path: PathBuf::from("old.so"),
        };
        assert_eq!(
            why_not(&error),
            "it is version 1.9.0, and 1.17 is the oldest that works"
        );
    }
}
