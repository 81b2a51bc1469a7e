//! Runs stages one after another, such as preprocess -> model -> postprocess, and hands batches on without a copy.
//!
//! A stage's outputs become the next stage's inputs by this rule, which is checked when the model is described, as far
//! as both sides are declared:
//!
//! ```text
//! the next takes anything            all outputs, as they are
//! every input is an output's name    those, by name; outputs that nobody takes are left behind
//! one output, one input              that one, whatever the names
//! as many of both                    by place, if the datatypes fit
//! ```
//! Rows keep their order and their number through every stage, unless a stage is `whole`.

use std::sync::Arc;
use std::time::Instant;

use super::check::check_inputs;
use super::{BatchKind, Description, Dim, Model, Port, Run, Takes};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{Batch, DataType, Tensor};

/// One worker's instances of stages that run one after another.
pub(super) struct Chain {
    stages: Vec<(Arc<Description>, Box<dyn Model>)>,
    inputs: ChainInputs,
}

/// What a chain's first stage gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainInputs {
    /// The inputs of requests.
    Request,
    /// The outputs of a stage that ran in another worker.
    EarlierStage,
}

impl Chain {
    pub(super) fn new(inputs: ChainInputs) -> Chain {
        Chain {
            stages: Vec::new(),
            inputs,
        }
    }

    pub(super) fn push(&mut self, description: Arc<Description>, model: Box<dyn Model>) {
        self.stages.push((description, model));
    }
}

impl Chain {
    /// Passes a batch through all stages, each of which `run_stage` runs, unless the request was cancelled before.
    fn pass(
        &mut self,
        inputs: &Batch,
        cancelled: &dyn Fn() -> bool,
        mut run_stage: impl FnMut(&mut dyn Model, &Batch) -> Result<Batch>,
    ) -> Result<Batch> {
        let mut batch = inputs.clone();
        for (index, (description, model)) in self.stages.iter_mut().enumerate() {
            let stage = &description.name;
            let place = |e: Error| e.context(format_args!("stage {stage:?}"));
            if index > 0 || self.inputs == ChainInputs::EarlierStage {
                if cancelled() {
                    return Err(place(Error::new(
                        ErrorCode::Cancelled,
                        "not begun: the request was cancelled",
                    )));
                }
                // The inputs were checked; what does not fit here is a stage's output, so the error is the model's.
                batch =
                    linked(description, batch).map_err(|e| place(Error::internal(e.message())))?;
            }
            let started = Instant::now();
            let outputs = run_stage(&mut **model, &batch).map_err(place)?;
            tracing::debug!(
                stage = stage.as_str(),
                elapsed_us = started.elapsed().as_micros() as u64,
                "stage ran"
            );
            if description.kind != BatchKind::Whole {
                let rows = batch.rows()?;
                check_rows(&outputs, rows).map_err(place)?;
            }
            batch = outputs;
        }
        Ok(batch)
    }
}

impl Model for Chain {
    fn infer_with(&mut self, inputs: &Batch, run: &Run<'_>) -> Result<Batch> {
        self.pass(inputs, run.cancelled, |stage, batch| {
            stage.infer_with(batch, run)
        })
    }

    fn is_broken(&self) -> bool {
        self.stages.iter().any(|(_, model)| model.is_broken())
    }

    fn warm_up(&mut self) {
        for (_, model) in &mut self.stages {
            model.warm_up();
        }
    }

    fn warm_up_with(&mut self, sample: &Batch) -> Result<Batch> {
        self.pass(sample, &|| false, |stage, batch| stage.warm_up_with(batch))
    }
}

fn check_rows(outputs: &Batch, rows: usize) -> Result<()> {
    let other = outputs
        .tensors
        .iter()
        .find(|tensor| tensor.rows() != Some(rows));
    match other {
        None => Ok(()),
        Some(tensor) => Err(Error::internal(format!(
            "output {:?} has shape {:?} for {rows} rows: expected a row for each",
            tensor.name(),
            tensor.shape()
        ))
        .about_row_count()),
    }
}

/// How outputs become inputs.
#[derive(Debug, PartialEq)]
enum Link {
    AsTheyAre,
    /// The output of this place for each input.
    Places(Vec<usize>),
}

fn link(inputs: &[Port], outputs: &[(&str, DataType)]) -> Option<Link> {
    let by_name: Option<Vec<usize>> = inputs
        .iter()
        .map(|port| outputs.iter().position(|(name, _)| *name == port.name))
        .collect();
    if let Some(places) = by_name {
        return Some(Link::Places(places));
    }
    let fit = inputs.len() == outputs.len()
        && inputs
            .iter()
            .zip(outputs)
            .all(|(port, (_, datatype))| inputs.len() == 1 || port.datatype == *datatype);
    fit.then(|| Link::Places((0..inputs.len()).collect()))
}

fn link_to(next: &Description, outputs: &[(&str, DataType)]) -> Result<Link> {
    if next.takes == Takes::Anything {
        return Ok(Link::AsTheyAre);
    }
    link(&next.inputs, outputs).ok_or_else(|| {
        let given: Vec<String> = outputs
            .iter()
            .map(|(name, datatype)| format!("{name:?} {datatype}"))
            .collect();
        let taken: Vec<String> = next
            .inputs
            .iter()
            .map(|port| format!("{:?} {}", port.name, port.datatype))
            .collect();
        Error::precondition(format!(
            "it takes {}, and is given {}: names, or number and datatypes, must agree",
            taken.join(", "),
            given.join(", ")
        ))
    })
}

/// A stage's outputs as the next stage's inputs.
fn linked(next: &Description, outputs: Batch) -> Result<Batch> {
    let shown: Vec<(&str, DataType)> = outputs
        .tensors
        .iter()
        .map(|tensor| (tensor.name(), tensor.datatype()))
        .collect();
    let inputs = match link_to(next, &shown)? {
        Link::AsTheyAre => outputs,
        Link::Places(places) => Batch {
            tensors: places
                .iter()
                .zip(&next.inputs)
                .map(|(&place, port)| renamed(&outputs.tensors[place], &port.name))
                .collect(),
        },
    };
    Ok(check_inputs(next, inputs)?.inputs)
}

fn renamed(tensor: &Tensor, name: &str) -> Tensor {
    if tensor.name() == name {
        tensor.clone()
    } else {
        tensor.clone().renamed(name)
    }
}

/// Whether a stage can follow another, as far as both are declared.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming both.
pub(super) fn check_link(one: &Description, next: &Description) -> Result<()> {
    let both = |e: Error| {
        e.context(format_args!(
            "stage {:?} behind stage {:?}",
            next.name, one.name
        ))
    };
    if one.outputs.is_empty() {
        return Ok(());
    }
    let shown: Vec<(&str, DataType)> = one
        .outputs
        .iter()
        .map(|port| (port.name.as_str(), port.datatype))
        .collect();
    let Link::Places(places) = link_to(next, &shown).map_err(both)? else {
        return Ok(());
    };
    for (&place, port) in places.iter().zip(&next.inputs) {
        let output = &one.outputs[place];
        if output.datatype != port.datatype || !may_fit(&output.shape, &port.shape, next.kind) {
            return Err(both(Error::precondition(format!(
                "input {:?} is {} {}, and output {:?} is {} {}",
                port.name,
                port.datatype,
                port.shown_shape(),
                output.name,
                output.datatype,
                output.shown_shape()
            ))));
        }
    }
    Ok(())
}

/// Whether there is a shape that both declarations allow.
fn may_fit(output: &[Dim], input: &[Dim], kind: BatchKind) -> bool {
    let open = |shape: &[Dim]| shape.last() == Some(&Dim::Rest);
    if !open(output) && !open(input) && output.len() != input.len() {
        return false;
    }
    output
        .iter()
        .zip(input)
        .enumerate()
        .all(|(axis, pair)| match pair {
            // A fixed batch takes any number of rows.
            (Dim::Fixed(_), Dim::Fixed(_)) if axis == 0 && kind != BatchKind::Whole => true,
            (Dim::Fixed(one), Dim::Fixed(other)) => one == other,
            _ => true,
        })
}
