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
mod key;
pub(crate) mod loader;
#[cfg(test)]
pub(crate) mod mock;
mod plugin;
mod sample;
mod stage;
mod store;
mod turns;

pub use engine::{Device, Engine, EngineLog, without_telemetry};
pub use find::Lookup;
pub use inspect::{Inspection, StageInfo};
pub use interface::{BatchKind, Description, Empty, Model, ModelSource, Takes};
pub(crate) use key::{FoundModel, Key, Name};
pub use sample::from_json;
pub(crate) use store::Read;
pub use store::{Store, StoreConfig};

pub use crate::message::Run;
pub use crate::signature::{Dim, Port, Rows};
