//! A stage: an ONNX file or a plugin's entry, opened once and described, from which workers open their instances.

use std::ops::Range;
use std::sync::Arc;

use super::chain::Chain;
use super::engine::OnnxSource;
use super::find::{Files, Stage, StageRuns};
use super::plugin::{PluginSource, Surroundings};
use super::{BatchKind, Description, Empty, Model, Rows, Takes};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role};
use crate::proxy::SessionOptions;

/// A stage that is described.
pub(super) struct StageSource {
    /// What it takes and gives by itself; its name is the stage's.
    pub(super) description: Arc<Description>,
    source: Source,
}

enum Source {
    Onnx(Arc<OnnxSource>, SessionOptions),
    Plugin(PluginSource),
}

impl StageSource {
    /// Opens a stage's file. `rows` is what the proxy says, where the stage is all that it has.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the file is not what it should be, and what a plugin says of its state.
    pub(super) fn load(
        stage: &Stage,
        rows: Option<Rows>,
        surroundings: &Surroundings,
    ) -> Result<StageSource> {
        match &stage.runs {
            StageRuns::Onnx(options) => {
                let made = surroundings.options.with(options);
                let source = surroundings
                    .shared
                    .open(&stage.path, surroundings.device, &made)?;
                Ok(StageSource {
                    description: source
                        .signature()
                        .describe(&stage.name, options.batch, rows)?,
                    source: Source::Onnx(source, options.clone()),
                })
            }
            StageRuns::Plugin {
                entry,
                state,
                folder,
            } => {
                let (path, entry) = (&stage.path, entry.as_deref());
                let source = PluginSource::load(path, entry, state, folder, rows, surroundings)?;
                let signature = source.signature();
                let description = Description {
                    id: ModelId(0),
                    name: stage.name.clone(),
                    version: "1".to_owned(),
                    kind: match signature.rows {
                        Rows::Independent => BatchKind::Batched,
                        Rows::Whole => BatchKind::Whole,
                    },
                    takes: match signature.inputs {
                        Some(_) => Takes::Declared,
                        None => Takes::Anything,
                    },
                    inputs: signature.inputs.clone().unwrap_or_default(),
                    outputs: signature.outputs.clone().unwrap_or_default(),
                    legs: [Role::Main].into(),
                    empty: Empty::Allowed,
                };
                Ok(StageSource {
                    description: Arc::new(description),
                    source: Source::Plugin(source),
                })
            }
        }
    }

    /// The files that it is made of, as far as that is known.
    pub(super) fn add_files(&self, files: &mut Files) {
        match &self.source {
            Source::Onnx(source, _) => source.add_files(files),
            Source::Plugin(source) => source.add_files(files),
        }
    }

    /// An instance for one worker.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the file was changed meanwhile or cannot be opened here; a plugin's own.
    pub(super) fn open(&self, surroundings: &Surroundings) -> Result<Box<dyn Model>> {
        match &self.source {
            Source::Onnx(source, options) => {
                let options = surroundings.options.with(options);
                let device = surroundings.device;
                let model = source.open(self.description.clone(), device, &options)?;
                Ok(Box::new(model))
            }
            Source::Plugin(source) => Ok(Box::new(source.open(surroundings)?)),
        }
    }
}

/// What a model of these stages is, to those who ask for it: it takes what the first takes and gives what the last
/// gives. Stages that cannot follow each other are found here.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming both stages and what of them does not fit.
pub(super) fn described(
    stages: &[StageSource],
    rows: Option<Rows>,
    name: String,
    version: String,
    extra_workers: bool,
) -> Result<Description> {
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else {
        return Err(Error::internal("a model without stages"));
    };
    for (one, next) in stages.iter().zip(stages.iter().skip(1)) {
        super::chain::check_link(&one.description, &next.description)?;
    }
    let kinds = || stages.iter().map(|stage| stage.description.kind);
    let kind = match (rows, stages) {
        (_, [only]) => only.description.kind,
        (Some(Rows::Whole), _) => BatchKind::Whole,
        (None, _) if kinds().any(|kind| kind == BatchKind::Whole) => BatchKind::Whole,
        // Chunks are best cut to a fixed batch, where there is one.
        _ => kinds()
            .find(|kind| matches!(kind, BatchKind::Fixed(_)))
            .unwrap_or(BatchKind::Batched),
    };
    Ok(Description {
        id: ModelId(0),
        name,
        version,
        kind,
        takes: first.description.takes,
        inputs: first.description.inputs.clone(),
        outputs: last.description.outputs.clone(),
        legs: legs(stages, kind, extra_workers)
            .into_iter()
            .map(|(role, _)| role)
            .collect(),
        // Later stages are checked when they get their inputs.
        empty: first.description.empty,
    })
}

/// Who runs which stages. Extra workers get the plugins around an ONNX model. A model of plugins alone stays with the
/// workers that have a device: a plugin may open sessions there.
fn legs(stages: &[StageSource], kind: BatchKind, extra_workers: bool) -> Vec<(Role, Range<usize>)> {
    let role = |stage: &StageSource| match stage.source {
        Source::Onnx(..) => Role::Main,
        Source::Plugin(_) => Role::Extra,
    };
    let one = vec![(Role::Main, 0..stages.len())];
    let has_onnx = stages.iter().any(|stage| role(stage) == Role::Main);
    if !extra_workers || !has_onnx || kind == BatchKind::Whole {
        return one;
    }
    let mut legs: Vec<(Role, Range<usize>)> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        match legs.last_mut() {
            Some((last, stages)) if *last == role(stage) => stages.end = index + 1,
            _ => legs.push((role(stage), index..index + 1)),
        }
    }
    legs
}

/// A worker's instance of one leg of a model of these stages.
///
/// # Errors
/// As [`StageSource::open`], naming the stage; `INTERNAL` for a leg that there is not.
pub(super) fn open(
    stages: &[StageSource],
    description: &Description,
    leg: u32,
    surroundings: &Surroundings,
) -> Result<Box<dyn Model>> {
    if let [only] = stages {
        return only.open(surroundings);
    }
    let legs = legs(stages, description.kind, description.legs.len() > 1);
    let (_, range) = legs
        .get(leg as usize)
        .ok_or_else(|| Error::internal(format!("there is no leg {leg} of {}", legs.len())))?;
    let mut chain = Chain::new(leg > 0);
    for stage in &stages[range.clone()] {
        let model = stage.open(surroundings);
        let place = format_args!("stage {:?}", stage.description.name);
        chain.push(
            stage.description.clone(),
            model.map_err(|e| e.context(place))?,
        );
    }
    Ok(Box::new(chain))
}
