//! A model as the rest of the server sees it: its description, an instance that runs, and a source of instances.

use std::sync::Arc;

use super::find::shown;
use crate::error::Result;
use crate::message::{ModelId, Params, Role, Run, WorkerId};
use crate::signature::{Dim, Port};
use crate::tensor::Batch;
use crate::wire::server::ModelInfo;

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
    /// It is one of the versions of a folder.
    pub has_versions: bool,
    /// How rows may be put together.
    pub kind: BatchKind,
    /// Whether `inputs` says what it takes.
    pub takes: Takes,
    /// What it takes, in order; empty if it takes anything.
    pub inputs: Vec<Port>,
    /// What it gives, in order; empty if it does not declare it.
    pub outputs: Vec<Port>,
    /// Which kind of worker runs each of its legs, in order. A leg is consecutive stages that run in one worker.
    pub legs: Arc<[Role]>,
    /// Whether express workers may run it: every stage is an ONNX file, so that one more instance is one more session.
    pub express: bool,
    /// Whether its inputs may have dimensions of size 0.
    pub empty: Empty,
    /// The size B that dimension 0 has in every input and output of an ONNX file, above 1, where nothing says whether
    /// that means B rows: then it gets requests whole, and a proxy's `batch` would say so.
    pub unproven_rows: Option<usize>,
}

/// Whether a dimension of size 0 may reach a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Empty {
    /// Yes, as the caches of language models have at the start.
    #[default]
    Allowed,
    /// No: it has an operator for which the engine would end the whole process.
    Refused,
}

/// What a request's inputs are checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takes {
    /// The model's inputs, each with its datatype and shape.
    #[default]
    Declared,
    /// Nothing, because a plugin takes anything. If rows are independent, all inputs must have as many.
    Anything,
}

impl Description {
    /// What to call it in messages: its name, and its version where it has versions.
    pub fn shown(&self) -> String {
        shown(&self.name, self.has_versions.then_some(&self.version))
    }

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

/// The size of dimension 0, where it is one and the same constant in every input and output.
pub(crate) fn constant_rows(inputs: &[Port], outputs: &[Port]) -> Option<usize> {
    let mut firsts = inputs.iter().chain(outputs).map(|port| port.shape.first());
    let first = firsts.next()??;
    match first {
        Dim::Fixed(rows) if *rows > 0 && firsts.all(|other| other == Some(first)) => Some(*rows),
        _ => None,
    }
}

/// One worker's instance of a model. It lives and runs in that worker's thread.
pub trait Model {
    /// Runs a batch. The inputs are in the description's order, checked against it; so must the outputs be.
    /// For a model with a batch dimension every output has as many rows as the inputs.
    ///
    /// # Errors
    /// Whatever went wrong in the model, for the client to read, with the rows of the batch that it concerns where
    /// the model knows them.
    fn infer_with(&mut self, inputs: &Batch, run: &Run<'_>) -> Result<Batch>;

    /// Whether what it runs with was lost at the last error, so that the next run begins by making it anew.
    fn is_broken(&self) -> bool {
        false
    }

    /// Runs made-up rows, so that the first request does not wait for what the engine sets up at the first run.
    fn warm_up(&mut self) {}

    /// As [`Model::warm_up`], with a sample, which has to run.
    ///
    /// # Errors
    /// As [`Model::infer`].
    fn warm_up_with(&mut self, sample: &Batch) -> Result<Batch> {
        self.infer(sample, &Params::new())
    }

    /// As [`Model::infer_with`], outside of any request.
    ///
    /// # Errors
    /// As there.
    fn infer(&mut self, inputs: &Batch, params: &Params) -> Result<Batch> {
        self.infer_with(inputs, &Run::alone(params))
    }
}

/// Opens models for workers.
pub trait ModelSource: Send + Sync {
    /// An instance of one leg of a model for this worker, on this worker's device. May take seconds; called in the
    /// worker's thread.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it cannot be opened, `NOT_FOUND` if the number is not known (any more).
    fn open(&self, model: ModelId, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>>;

    /// Which kind of worker runs each of a model's legs.
    ///
    /// # Errors
    /// `NOT_FOUND` if the number is not known (any more).
    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>>;

    /// Whether express workers may run a model.
    fn is_express(&self, _model: ModelId) -> bool {
        false
    }

    /// A model's name and version, for the log; `None` if the number is not known (any more).
    fn name(&self, _model: ModelId) -> Option<(String, String)> {
        None
    }
}
