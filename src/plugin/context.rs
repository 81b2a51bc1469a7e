//! What a model can ask of the server, and a replacement for tests and tools that have no server.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::glue::{self, HostContext, HostSession};
use super::{Level, Params, Port};
use crate::error::{Error, Result};
use crate::tensor::Batch;

/// What [`Model::load`](super::Model::load) is given.
pub struct LoadContext(Place);

enum Place {
    Server(HostContext),
    /// No server: files are below a folder, and sessions come from [`LoadContext::with_sessions`].
    Folder(PathBuf, Option<Box<OpenSession>>),
}

type RunSession = dyn FnMut(&Batch) -> Result<Batch>;
type OpenSession = dyn Fn(&str) -> Result<Box<RunSession>>;

impl LoadContext {
    /// One without a server: for tests, and for programs that make proxies. Paths are relative to the folder.
    pub fn of(folder: impl AsRef<Path>) -> LoadContext {
        LoadContext(Place::Folder(folder.as_ref().to_owned(), None))
    }

    /// Stands in for the server's engine sessions: `open` is given what [`LoadContext::session`] is, and returns what runs a
    /// batch. Such a session does not say what it takes and gives.
    #[must_use]
    pub fn with_sessions(
        self,
        open: impl Fn(&str) -> Result<Box<RunSession>> + 'static,
    ) -> LoadContext {
        match self.0 {
            Place::Folder(folder, _) => LoadContext(Place::Folder(folder, Some(Box::new(open)))),
            server => LoadContext(server),
        }
    }

    pub(super) fn in_server(context: HostContext) -> LoadContext {
        LoadContext(Place::Server(context))
    }

    /// The absolute path of a file that the state names, relative to the proxy's folder.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `PERMISSION_DENIED` if it leads out of the directories that the server allows.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        match &self.0 {
            Place::Server(context) => context.resolve_path(path),
            Place::Folder(folder, _) => existing(folder, "path", path),
        }
    }

    /// An engine session over an ONNX file, on this worker's device. Its path is relative to the proxy's folder.
    ///
    /// # Errors
    /// As [`LoadContext::path`]; `FAILED_PRECONDITION` if the engine refuses the file, or there is no server.
    pub fn session(&self, path: &str) -> Result<EngineSession> {
        self.session_with(path, &Value::Null)
    }

    /// As [`LoadContext::session`], with a proxy's `options`: `intra_op_threads`, `graph_optimization`,
    /// `execution_provider`, `batch`.
    ///
    /// # Errors
    /// As there; `FAILED_PRECONDITION` for wrong options.
    pub fn session_with(&self, path: &str, options: &Value) -> Result<EngineSession> {
        match &self.0 {
            Place::Server(context) => context
                .open_session(path, options)
                .map(|session| EngineSession(RunBy::Server(session))),
            Place::Folder(_, Some(open)) => Ok(EngineSession(RunBy::StandIn(open(path)?))),
            Place::Folder(_, None) => Err(Error::precondition(format!(
                "session {path:?}: there is no server to open it; give the context sessions with \
                 LoadContext::with_sessions"
            ))),
        }
    }

    /// Where this worker runs: "cpu", "cuda:0", ...
    pub fn device(&self) -> String {
        match &self.0 {
            Place::Server(context) => context.device(),
            Place::Folder(..) => "cpu".to_owned(),
        }
    }

    /// A line for the server's log.
    pub fn log(&self, level: Level, message: &str) {
        glue::log(level, message);
    }
}

/// What [`Model::inference`](super::Model::inference) is given besides rows and parameters.
pub struct Context(Call);

enum Call {
    Server(HostContext),
    Folder(PathBuf, Params),
}

impl Context {
    /// One without a server: for tests. Paths in the parameters are relative to the folder.
    pub fn of(folder: impl AsRef<Path>, params: &Params) -> Context {
        Context(Call::Folder(folder.as_ref().to_owned(), params.clone()))
    }

    pub(super) fn in_server(context: HostContext) -> Context {
        Context(Call::Server(context))
    }

    /// The absolute path of the file that a parameter names. The server has checked that it may be read; the
    /// parameter's name ends in `_path`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there is no such parameter, `NOT_FOUND` if the file is gone.
    pub fn path(&self, key: &str) -> Result<PathBuf> {
        match &self.0 {
            Call::Server(context) => context.param_path(key),
            Call::Folder(folder, params) => match params.get(key) {
                Some(Value::String(text)) => existing(folder, key, text),
                _ => Err(Error::invalid(format!(
                    "the parameter {key:?} is missing: expected the path of a file"
                ))),
            },
        }
    }

    /// Whether all requests of these rows were cancelled. A model that runs long may check now and then, and stop.
    pub fn cancelled(&self) -> bool {
        match &self.0 {
            Call::Server(context) => context.is_cancelled(),
            Call::Folder(..) => false,
        }
    }

    /// How many requests' rows are in the batch; they have the same parameters.
    pub fn requests(&self) -> usize {
        match &self.0 {
            Call::Server(context) => context.requests().max(1),
            Call::Folder(..) => 1,
        }
    }

    /// Where this worker runs: "cpu", "cuda:0", ...
    pub fn device(&self) -> String {
        match &self.0 {
            Call::Server(context) => context.device(),
            Call::Folder(..) => "cpu".to_owned(),
        }
    }

    /// An `INVALID_ARGUMENT` about one row of the batch: the client reads its number in its own request.
    pub fn bad_row(&self, row: usize, message: impl Into<String>) -> Error {
        Error::invalid(message).at_rows(row..row + 1)
    }

    /// A line for the server's log.
    pub fn log(&self, level: Level, message: &str) {
        glue::log(level, message);
    }
}

/// A session of the server's engine over an ONNX file; a client's session is something else. It lives in the worker's
/// thread.
pub struct EngineSession(RunBy);

enum RunBy {
    Server(HostSession),
    StandIn(Box<RunSession>),
}

impl EngineSession {
    /// Runs a batch. Inputs are found by their names; one input needs none. The outputs are in the model's order, and
    /// are the engine's own memory where that can be lent.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the inputs do not fit, `INTERNAL` if the engine fails.
    pub fn run(&mut self, batch: &Batch) -> Result<Batch> {
        match &mut self.0 {
            RunBy::Server(session) => session.run(batch),
            RunBy::StandIn(run) => run(batch),
        }
    }

    /// What it takes; empty for a stand-in.
    pub fn inputs(&self) -> &[Port] {
        match &self.0 {
            RunBy::Server(session) => &session.inputs,
            RunBy::StandIn(_) => &[],
        }
    }

    /// What it gives; empty for a stand-in.
    pub fn outputs(&self) -> &[Port] {
        match &self.0 {
            RunBy::Server(session) => &session.outputs,
            RunBy::StandIn(_) => &[],
        }
    }
}

fn existing(folder: &Path, key: &str, path: &str) -> Result<PathBuf> {
    folder
        .join(path)
        .canonicalize()
        .map_err(|e| Error::not_found(format!("{key} {path:?}: {e}")))
}
