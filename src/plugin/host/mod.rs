//! The server's side of the C interface: opening libraries, calling what they offer, and checking all that they give.
//!
//! ```text
//! library.rs   a file -> an open library and its checked table
//! table.rs     the functions that plugins call back, over a context that lives as long as a call
//! memory.rs    buffers: memory of ours that plugins see, and memory of theirs that we use without a copy
//! output.rs    checks of a plugin's outputs
//! session.rs   engine sessions for plugins
//! text.rs      checks of texts that plugins give
//! ```
//! Whatever a plugin returns is checked: an error names the plugin, the output, what was expected and what came.

mod call;
mod library;
mod memory;
mod output;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;

pub(crate) use call::{InferCall, Instance, Plugin};
pub(crate) use library::Library;

use crate::error::Result;
use crate::tensor::Batch;

/// What a plugin may ask of the server: files and engine sessions.
pub(crate) trait Services {
    /// A file that the proxy's state names.
    fn state_path(&self, path: &str) -> Result<PathBuf>;
    /// A file that the request's parameter names.
    fn param_path(&self, key: &str, path: &str) -> Result<PathBuf>;
    /// A session over an ONNX file that the proxy's state names, with a proxy's options as JSON (or empty).
    fn session(&self, path: &str, options: &str) -> Result<Box<dyn EngineSession>>;
    /// Where the worker runs.
    fn device(&self) -> String;
}

/// An engine session, as a plugin uses it.
pub(crate) trait EngineSession {
    /// What it takes and gives.
    fn signature(&self) -> &crate::signature::Signature;
    /// Runs a batch whose memory is borrowed for the call: nothing of it may be kept, or be part of the outputs.
    fn run(&mut self, inputs: Batch) -> Result<Batch>;
}
