//! Models of plugins: what the store holds of one, a worker's instance, and what a plugin may use of the server.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::check::check_inputs;
use super::engine::{Device, OnnxModel, OnnxSource, Options, Shared};
use super::find::{Files, Roots, file_name};
use super::{Description, Model, Rows, Run};
use crate::error::{Error, Result};
use crate::message::Params;
use crate::plugin::host::{EngineSession, InferCall, Instance, Library, Plugin, Services};
use crate::proxy::SessionOptions;
use crate::signature::Signature;
use crate::tensor::Batch;

/// What a model may use of the server, in a worker or while it is described: files, the engine's sessions, a device.
#[derive(Clone)]
pub(super) struct ModelEnv {
    pub(super) roots: Arc<Roots>,
    pub(super) shared: Arc<Shared>,
    pub(super) device: Device,
    pub(super) options: Options,
}

/// A plugin's file that was opened, and a state.
pub(super) struct PluginSource {
    plugin: Plugin,
    state: Arc<str>,
    folder: PathBuf,
    signature: Arc<Signature>,
    opened: Arc<Opened>,
}

/// A stage that is a plugin.
pub(super) struct PluginStage<'a> {
    pub(super) path: &'a Path,
    pub(super) entry: Option<&'a str>,
    /// JSON.
    pub(super) state: String,
    /// What the state's paths are relative to.
    pub(super) folder: &'a Path,
}

/// What a plugin's models have opened through the server: the next worker's instance has the same, and a load looks
/// whether any of it has changed.
#[derive(Default)]
struct Opened {
    files: Mutex<Files>,
    /// Those of them that the plugin reads by itself.
    read: Mutex<Files>,
    sources: Mutex<Vec<(PathBuf, Device, Arc<OnnxSource>)>>,
}

/// Most files of one model that are remembered: a plugin may ask for any number.
const MOST_FILES: usize = 64;

impl Opened {
    fn files(&self) -> MutexGuard<'_, Files> {
        locked(&self.files)
    }

    /// The plugin is about to read a file by itself.
    fn reads(&self, path: &Path) {
        let mut read = locked(&self.read);
        if read.len() < MOST_FILES {
            read.add(path);
            self.files().extend(&read);
        }
    }

    /// Whether the next instance would read what the earlier ones have read.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the file that has changed.
    fn check(&self) -> Result<()> {
        match locked(&self.read).changed() {
            None => Ok(()),
            Some(path) => Err(Error::precondition(format!(
                "{} was changed since the model was loaded; load the model again",
                file_name(path)
            ))),
        }
    }

    /// The file as the first instance found it.
    fn source(
        &self,
        path: &Path,
        device: Device,
        open: impl FnOnce() -> Result<Arc<OnnxSource>>,
    ) -> Result<Arc<OnnxSource>> {
        let mut sources = locked(&self.sources);
        let mut known = sources.iter();
        if let Some((_, _, source)) = known.find(|(own, on, _)| own == path && *on == device) {
            return Ok(source.clone());
        }
        let source = open()?;
        if sources.len() < MOST_FILES {
            sources.push((path.to_owned(), device, source.clone()));
            source.add_files(&mut self.files());
        }
        Ok(source)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is used on: what it guards is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PluginSource {
    /// Opens the file and has the plugin describe the model.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it is no plugin; what the plugin says of its state.
    pub(super) fn load(
        stage: PluginStage<'_>,
        rows: Option<Rows>,
        env: &ModelEnv,
    ) -> Result<PluginSource> {
        let PluginStage {
            path,
            entry,
            state,
            folder,
        } = stage;
        let opened = Arc::new(Opened::default());
        opened.files().add(path);
        let plugin = Plugin::of(Library::open(path)?, entry)?;
        let services = PluginServices {
            env: env.clone(),
            folder: folder.to_owned(),
            opened: opened.clone(),
        };
        let mut signature = plugin.describe(&state, &services)?;
        if let Some(rows) = rows {
            signature.rows = rows;
            signature.check().map_err(|e| {
                e.context(format_args!(
                    "{}, with the rows that the proxy says",
                    plugin.label()
                ))
            })?;
        }
        Ok(PluginSource {
            plugin,
            state: state.into(),
            folder: folder.to_owned(),
            signature: Arc::new(signature),
            opened,
        })
    }

    /// The files that it is made of, as far as it has asked for them yet.
    pub(super) fn add_files(&self, files: &mut Files) {
        files.extend(&self.opened.files());
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    /// An instance for one worker, from the library that was described: whatever has become of its file.
    ///
    /// # Errors
    /// The plugin's own; `FAILED_PRECONDITION` if a file that it reads has changed since the first instance did.
    pub(super) fn open(&self, env: &ModelEnv) -> Result<PluginModel> {
        let mut model = PluginModel {
            plugin: self.plugin.clone(),
            state: self.state.clone(),
            signature: self.signature.clone(),
            services: PluginServices {
                env: env.clone(),
                folder: self.folder.clone(),
                opened: self.opened.clone(),
            },
            instance: None,
        };
        model.instance = Some(model.plugin.load(&model.state, &model.services)?);
        self.opened.check()?;
        Ok(model)
    }
}

/// One worker's instance.
pub(super) struct PluginModel {
    /// `None` after it broke: the next run loads another.
    instance: Option<Instance>,
    plugin: Plugin,
    state: Arc<str>,
    signature: Arc<Signature>,
    services: PluginServices,
}

impl Model for PluginModel {
    fn infer_with(&mut self, inputs: &Batch, run: &Run<'_>) -> Result<Batch> {
        let rows = match self.signature.rows {
            Rows::Independent => Some(inputs.rows()?),
            Rows::Whole => None,
        };
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.plugin.load(&self.state, &self.services)?,
        };
        let call = InferCall {
            inputs,
            signature: &self.signature,
            rows,
            run,
            services: &self.services,
        };
        match instance.infer(&call) {
            Ok(outputs) => {
                self.instance = Some(instance);
                Ok(outputs)
            }
            Err(broken) => {
                if !broken.instance_lost {
                    self.instance = Some(instance);
                }
                Err(match (broken.error.rows(), rows) {
                    // An error without rows concerns all of them.
                    (None, Some(rows)) if !broken.error.is_about_row_count() => {
                        broken.error.at_rows(0..rows)
                    }
                    _ => broken.error,
                })
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.instance.is_none()
    }
}

/// What one model of a plugin may use.
struct PluginServices {
    env: ModelEnv,
    folder: PathBuf,
    opened: Arc<Opened>,
}

impl Services for PluginServices {
    fn state_path(&self, path: &str) -> Result<PathBuf> {
        let path = self.env.roots.beside(&self.folder, "path", path)?;
        self.opened.reads(&path);
        Ok(path)
    }

    fn param_path(&self, key: &str, path: &str) -> Result<PathBuf> {
        self.env.roots.parameter(key, path)
    }

    fn session(&self, path: &str, options: &str) -> Result<Box<dyn EngineSession>> {
        let wanted = if options.is_empty() {
            SessionOptions::default()
        } else {
            let options = serde_json::from_str(options).map_err(|e| {
                Error::precondition(format!("a session's options: expected JSON: {e}"))
            })?;
            SessionOptions::of(options)?
        };
        let ModelEnv {
            roots,
            shared,
            device,
            options,
        } = &self.env;
        let file = roots.beside(&self.folder, "session", path)?;
        let options = options.with(&wanted);
        let open = || shared.open(&file, *device, &options);
        let source = self.opened.source(&file, *device, open)?;
        let description = source.signature().describe(path, wanted.batch, None)?;
        let model = source.open(description.clone(), *device, &options)?;
        Ok(Box::new(HostedSession {
            signature: Signature {
                inputs: Some(description.inputs.clone()),
                outputs: Some(description.outputs.clone()),
                // It only says whether dimension 0 is a row; a fixed batch is padded here.
                rows: Rows::Whole,
            },
            model,
            description,
            _source: source,
        }))
    }

    fn device(&self) -> String {
        self.env.device.to_string()
    }
}

/// A session that a plugin asked for.
struct HostedSession {
    model: OnnxModel,
    description: Arc<Description>,
    signature: Signature,
    /// Kept open so that other sessions can share its weights.
    _source: Arc<OnnxSource>,
}

impl EngineSession for HostedSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The engine's outputs are its own memory, or copies where they are an input handed through (`engine/values.rs`).
    fn run(&mut self, inputs: Batch) -> Result<Batch> {
        let checked = check_inputs(&self.description, inputs)?;
        self.model.infer(&checked.inputs, &Params::new())
    }
}
