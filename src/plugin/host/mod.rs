//! The server's side of the C interface: opening libraries, calling what they offer, and checking all that they give.
//!
//! ```text
//! library.rs   a file -> an open library and its checked table
//! table.rs     the functions that plugins call back, over a context that lives as long as a call
//! memory.rs    buffers: memory of ours that plugins see, and memory of theirs that we adopt
//! output.rs    the checks of what a plugin gives out
//! session.rs   sessions of the engine for plugins
//! text.rs      texts that plugins give
//! ```
//! What a plugin returns is not believed: an error names the plugin, the output, what was expected and what came.

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

pub(crate) use call::{Instance, Plugin};
pub(crate) use library::Library;

use crate::error::Result;
use crate::tensor::Batch;

/// What a plugin asks of the server: files and sessions. One for each load or call.
pub(crate) trait Services {
    /// A file that the proxy's state names.
    fn state_path(&self, path: &str) -> Result<PathBuf>;
    /// A file that the request's parameter names.
    fn param_path(&self, key: &str, path: &str) -> Result<PathBuf>;
    /// A session over an ONNX file that the proxy's state names, with a proxy's options as JSON (or empty).
    fn session(&self, path: &str, options: &str) -> Result<Box<dyn Session>>;
    /// Where the worker runs.
    fn device(&self) -> String;
}

/// A session of the engine, as a plugin uses it.
pub(crate) trait Session {
    /// What it takes and gives.
    fn signature(&self) -> &crate::signature::Signature;
    /// Runs a batch whose memory is only lent: nothing of it may be kept, nor be part of the outputs.
    fn run(&mut self, inputs: Batch) -> Result<Batch>;
}
