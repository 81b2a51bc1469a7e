//! Models: what a worker runs, and where it comes from.
//!
//! A worker knows a model only as a [`Model`] that a [`ModelSource`] opened for it; what the source knows about
//! files, weights and engines stays in this folder.

pub(crate) mod check;
mod engine;
mod gpu;
mod library;
pub(crate) mod loader;
mod lookup;
mod memory;
#[cfg(test)]
pub(crate) mod mock;
mod onnx;
mod proto;
mod registry;
mod source;
mod values;
mod weights;

pub use engine::Engine;
pub use lookup::Lookup;
pub use registry::{Registry, RegistryConfig};

use std::sync::Arc;

use crate::error::Result;
use crate::message::{ModelId, Params, Role, WorkerId};
use crate::tensor::{Batch, DataType};
use crate::wire::server::{DimInfo, ModelInfo, PortInfo};

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size, the same wherever the name stands.
    Symbol(String),
    /// Any size.
    Dynamic,
    /// Any number of further dimensions of any size: a model that does not declare its rank.
    Rest,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The datatype.
    pub datatype: DataType,
    /// The dimensions, the row first.
    pub shape: Vec<Dim>,
}

/// How rows may be put together for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// Rows are independent, any number of them runs at once.
    Batched,
    /// Rows are independent, and exactly so many run at once; the last run is padded.
    Fixed(usize),
    /// The model gets a request whole; dimension 0 need not be a row.
    Whole,
}

/// What is known about a model once it is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its number.
    pub id: ModelId,
    /// The name that requests give.
    pub name: String,
    /// Its version; "1" where there are none.
    pub version: String,
    /// How rows may be put together.
    pub kind: BatchKind,
    /// What it takes, in order.
    pub inputs: Vec<Port>,
    /// What it gives, in order.
    pub outputs: Vec<Port>,
    /// Who runs its legs, one after another: stages in a row that run in the same kind of worker.
    pub legs: Arc<[Role]>,
}

impl Port {
    fn info(&self) -> PortInfo {
        PortInfo {
            name: self.name.clone(),
            dtype: self.datatype.name().to_owned(),
            shape: self
                .shape
                .iter()
                .map(|dim| match dim {
                    Dim::Fixed(size) => DimInfo::Size(*size as i64),
                    Dim::Symbol(name) => DimInfo::Symbol(name.clone()),
                    Dim::Dynamic => DimInfo::Size(-1),
                    Dim::Rest => DimInfo::Symbol("...".to_owned()),
                })
                .collect(),
        }
    }
}

impl Description {
    /// The description as the wire shows it.
    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.name.clone(),
            version: self.version.clone(),
            kind: match self.kind {
                BatchKind::Batched => "batched".to_owned(),
                BatchKind::Fixed(rows) => format!("fixed:{rows}"),
                BatchKind::Whole => "whole".to_owned(),
            },
            inputs: self.inputs.iter().map(Port::info).collect(),
            outputs: self.outputs.iter().map(Port::info).collect(),
        }
    }
}

/// One worker's instance of a model. It lives and runs in that worker's thread.
pub trait Model {
    /// Runs a batch. The inputs are in the description's order, checked against it; so must the outputs be.
    /// For a model with a batch dimension every output has as many rows as the inputs.
    ///
    /// # Errors
    /// Whatever went wrong in the model, for the client to read.
    fn infer(&mut self, inputs: &Batch, params: &Params) -> Result<Batch>;
}

/// Opens models for workers.
pub trait ModelSource: Send + Sync {
    /// An instance of one leg of a model for this worker, on this worker's device. May take seconds; called in the
    /// worker's thread.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it cannot be opened, `NOT_FOUND` if the number is not known (any more).
    fn open(&self, model: ModelId, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>>;

    /// Who runs a model's legs.
    ///
    /// # Errors
    /// `NOT_FOUND` if the number is not known (any more).
    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>>;
}

/// Where a worker's sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor: "-1" in a device map.
    Cpu,
    /// A GPU of that number, through the CUDA execution provider.
    Cuda(u32),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}
