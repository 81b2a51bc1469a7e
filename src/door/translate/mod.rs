//! The Open Inference Protocol on one side, requests and outputs on the other: pure, and shared by the doors.
//!
//! ```text
//! JSON, and tensors as bytes behind it ─▶ read.rs, values.rs, strings.rs ─▶ Infer { Request, Wanted }
//! Outputs, Wanted ─▶ write.rs, classes.rs, strings.rs ─▶ JSON, and pieces of bytes behind it
//! ModelInfo ─▶ metadata.rs ─▶ a model's metadata and configuration
//! Snapshot ─▶ statistics.rs ─▶ what was counted of models
//! ```
//! Bounds on what is read are those of the wire ([`crate::wire`]).

mod classes;
pub(crate) mod metadata;
pub(crate) mod options;
pub(crate) mod read;
pub(crate) mod statistics;
pub(crate) mod strings;
pub(crate) mod values;
pub(crate) mod write;

use crate::message::Request;

/// Most inputs, and most outputs that are asked for.
pub(crate) const MAX_TENSORS: usize = 1024;
/// Most dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 64;
/// Most bytes of a tensor's name, and of a request's id.
pub(crate) const MAX_NAME_BYTES: usize = 1024;
/// Most bytes of a model's name and of a parameter that is a path.
pub(crate) const MAX_PATH_BYTES: usize = 4096;

/// An inference request, read.
#[derive(Debug)]
pub(crate) struct Infer {
    /// To be given back with the answer.
    pub(crate) id: Option<String>,
    /// What the pipeline gets, but for the model.
    pub(crate) request: Request,
    /// What is to come back.
    pub(crate) wanted: Wanted,
}

/// Which outputs are to come back, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    /// Those that were asked for; `None`: all.
    pub(crate) outputs: Option<Vec<WantedOutput>>,
    /// As bytes behind the JSON, where an output says nothing else.
    pub(crate) binary: bool,
    /// The parts of a stream in row order.
    pub(crate) in_order: bool,
}

/// An output that was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WantedOutput {
    pub(crate) name: String,
    /// As bytes behind the JSON; `None`: as the request says.
    pub(crate) binary: Option<bool>,
    /// The so many highest values of each row with their places, in place of the values; 0: the values.
    pub(crate) classes: usize,
}
