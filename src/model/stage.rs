//! The stages of a model: each an ONNX file or a plugin's entry, opened once and described; workers' instances come from it.

use std::ops::Range;
use std::sync::Arc;

use super::chain::{Chain, ChainInputs};
use super::engine::OnnxSource;
use super::find::{Files, Stage, file_name};
use super::plugin::{ModelEnv, PluginSource, PluginStage};
use super::{BatchKind, Description, Empty, Model, Rows, Takes};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role};
use crate::proxy::{SessionOptions, StageRuns};

/// A stage that is described.
pub(super) struct StageSource {
    /// What it takes and gives by itself; its name is the stage's.
    pub(super) description: Arc<Description>,
    file: OpenFile,
}

/// A stage's file, opened: workers' instances are made from it.
enum OpenFile {
    Onnx(Arc<OnnxSource>, SessionOptions),
    Plugin(PluginSource),
}

impl StageSource {
    /// Opens a stage's file. `rows` is what the proxy says, where the stage is all that it has.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the file is not what it should be, and what a plugin says of its state.
    pub(super) fn load(stage: &Stage, rows: Option<Rows>, env: &ModelEnv) -> Result<StageSource> {
        match &stage.runs {
            StageRuns::Onnx(options) => {
                let made = env.options.with(options);
                let source = env.shared.open(&stage.path, env.device, &made)?;
                Ok(StageSource {
                    description: source
                        .signature()
                        .describe(&stage.name, options.batch, rows)?,
                    file: OpenFile::Onnx(source, options.clone()),
                })
            }
            StageRuns::Plugin { entry, state } => {
                let plugin = PluginStage {
                    path: &stage.path,
                    entry: entry.as_deref(),
                    state: state.to_string(),
                    folder: &stage.folder,
                };
                let source = PluginSource::load(plugin, rows, env)?;
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
                    express: false,
                    empty: Empty::Allowed,
                    has_versions: false,
                    unproven_rows: None,
                };
                Ok(StageSource {
                    description: Arc::new(description),
                    file: OpenFile::Plugin(source),
                })
            }
        }
    }

    /// The files that it is made of, as far as that is known.
    pub(super) fn add_files(&self, files: &mut Files) {
        match &self.file {
            OpenFile::Onnx(source, _) => source.add_files(files),
            OpenFile::Plugin(source) => source.add_files(files),
        }
    }

    /// What an operator may want to know of it: it is served in a way that was perhaps not meant.
    pub(super) fn note(&self) -> Option<String> {
        let rows = self.description.unproven_rows?;
        let OpenFile::Onnx(source, _) = &self.file else {
            return None;
        };
        let file = file_name(source.path());
        Some(format!(
            "dimension 0 of every input and output of {file} is {rows}, which may be rows or not: it gets requests \
             whole, of exactly {rows}; where no row depends on another, a proxy has it run any number, {rows} at a time: \
             {{\"mdm\":1,\"onnx\":{file},\"options\":{{\"batch\":{rows}}}}}"
        ))
    }

    /// An instance for one worker.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the file was changed meanwhile or cannot be opened here; a plugin's own.
    pub(super) fn open(&self, env: &ModelEnv) -> Result<Box<dyn Model>> {
        match &self.file {
            OpenFile::Onnx(source, options) => {
                let options = env.options.with(options);
                let device = env.device;
                let model = source.open(self.description.clone(), device, &options)?;
                Ok(Box::new(model))
            }
            OpenFile::Plugin(source) => Ok(Box::new(source.open(env)?)),
        }
    }
}

/// What a model is besides its stages.
pub(super) struct ModelText {
    pub(super) name: String,
    /// `None` if it has none.
    pub(super) version: Option<u64>,
    /// What the proxy says of the rows.
    pub(super) rows: Option<Rows>,
    /// Which workers run the plugins around an ONNX model.
    pub(super) plugin_role: Role,
}

/// Describes a model of these stages: it takes what the first takes and gives what the last gives.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming both stages and what of them does not fit.
pub(super) fn described(stages: &[StageSource], model: ModelText) -> Result<Description> {
    let ModelText {
        name,
        version,
        rows,
        plugin_role,
    } = model;
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
        version: version.unwrap_or(1).to_string(),
        has_versions: version.is_some(),
        kind,
        takes: first.description.takes,
        inputs: first.description.inputs.clone(),
        outputs: last.description.outputs.clone(),
        legs: legs(stages, kind, plugin_role)
            .into_iter()
            .map(|(role, _)| role)
            .collect(),
        express: stages.iter().all(|stage| stage.description.express),
        // Later stages are checked when they get their inputs.
        empty: first.description.empty,
        unproven_rows: match stages {
            [only] => only.description.unproven_rows,
            _ => None,
        },
    })
}

/// Who runs which stages. `plugin_role` gets the plugins around an ONNX model. A model of plugins alone stays with the
/// workers that have a device: a plugin may open sessions there.
fn legs(stages: &[StageSource], kind: BatchKind, plugin_role: Role) -> Vec<(Role, Range<usize>)> {
    let role = |stage: &StageSource| match stage.file {
        OpenFile::Onnx(..) => Role::Main,
        OpenFile::Plugin(_) => plugin_role,
    };
    let one = vec![(Role::Main, 0..stages.len())];
    let is_onnx = |stage: &StageSource| matches!(stage.file, OpenFile::Onnx(..));
    let has_onnx = stages.iter().any(is_onnx);
    if plugin_role == Role::Main || !has_onnx || kind == BatchKind::Whole {
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
/// As [`StageSource::open`], naming the stage; `INTERNAL` for a leg that does not exist.
pub(super) fn open(
    stages: &[StageSource],
    description: &Description,
    leg: u32,
    env: &ModelEnv,
) -> Result<Box<dyn Model>> {
    if let [only] = stages {
        return only.open(env);
    }
    let plugin_role = match &*description.legs {
        [_] => Role::Main,
        _ => Role::Extra,
    };
    let legs = legs(stages, description.kind, plugin_role);
    let (_, range) = legs.get(leg as usize).ok_or_else(|| {
        Error::internal(format!(
            "leg {leg} was asked for, and the model has {}",
            legs.len()
        ))
    })?;
    let mut chain = Chain::new(match leg {
        0 => ChainInputs::Request,
        _ => ChainInputs::EarlierStage,
    });
    for stage in &stages[range.clone()] {
        let model = stage.open(env);
        let place = format_args!("stage {:?}", stage.description.name);
        chain.push(
            stage.description.clone(),
            model.map_err(|e| e.context(place))?,
        );
    }
    Ok(Box::new(chain))
}
