//! Models: what a worker runs, and where it comes from.
//!
//! A worker knows a model only as a [`Model`] that a [`ModelSource`] opened for it (`interface.rs`); what the source
//! knows about files, weights and engines stays in this folder. `find/` goes from names to files, `engine/` from ONNX
//! files to sessions; neither imports the rest of the folder but the interface.

mod chain;
pub(crate) mod check;
pub(crate) mod engine;
pub(crate) mod find;
mod inspect;
mod interface;
mod known;
pub(crate) mod loader;
#[cfg(test)]
pub(crate) mod mock;
mod plugin;
mod registry;
mod sample;
mod stage;
mod turns;

pub use engine::{Device, Engine, EngineLog, without_telemetry};
pub use find::Lookup;
pub use inspect::{Inspection, StageInfo};
pub use interface::{BatchKind, Description, Empty, Model, ModelSource, Takes};
pub use known::Replaced;
pub use registry::{Registry, RegistryConfig};
pub use sample::from_json;

pub use crate::message::Run;
pub use crate::signature::{Dim, Port, Rows};
