//! The models that were read, by their numbers: what they are made of, and the weights that their sessions share. Which of
//! them requests find is not known here: `catalog/` decides it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::{Device, Engine, Options, Shared, memory};
use super::find::{Files, Found, Lookup, Roots, Stage};
use super::key::{FoundModel, Name};
use super::plugin::ModelEnv;
use super::sample::sample;
use super::stage::{self, ModelText, StageSource};
use super::{Description, Model, ModelSource, Rows, Run};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role, WorkerId};
use crate::proxy::SessionOptions;
use crate::tensor::Batch;

/// Where models are, and on what they run.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where models are looked up.
    pub run_script_dir: PathBuf,
    /// Further directories that paths may lead into.
    pub allow_paths: Vec<PathBuf>,
    /// Worker i runs on entry i mod the length; none is the processor.
    pub devices: Vec<Device>,
    /// Engine threads in each worker; 1 runs in the worker's own.
    pub intra_op_threads: usize,
    /// The share of its GPU's memory that a session's arena may take, 0 to 1; 0 leaves it to the engine.
    pub gpu_memory_fraction: f64,
    /// There are workers for plugin stages only: models of such stages have legs.
    pub extra_workers: bool,
    /// So many workers, the last of them, are for small chunks alone: they run models in one thread.
    pub express_workers: usize,
    /// The most bytes of files that a model may have; `None` is no bound.
    pub max_model_bytes: Option<u64>,
}

/// The models that were read. Finding, reading and opening touch files and take seconds: they are for the loader's thread
/// and the workers', never for the ventilator's. The others look at what is held.
pub struct Store {
    shared: Arc<Shared>,
    roots: Arc<Roots>,
    devices: Vec<(Device, Options)>,
    extra_workers: bool,
    max_model_bytes: Option<u64>,
    models: Mutex<HashMap<ModelId, Arc<Loaded>>>,
}

/// What came of reading a model.
#[derive(Debug)]
pub(crate) enum Read {
    /// It is held under the number that it was read for.
    New(Arc<Description>),
    /// The files are those that this model was read from, which is held.
    Unchanged(ModelId),
}

/// A model that was read and described.
pub(super) struct Loaded {
    description: Arc<Description>,
    stages: Vec<StageSource>,
    /// What it is made of besides its stages' own files: the proxy.
    files: Files,
    /// Held while a worker opens a session: opening takes a core and twice the memory for a moment.
    opening: Mutex<()>,
    /// What each leg is warmed up with, as far as it is known: the proxy's sample for the first, what a leg gave of it
    /// for the next one.
    samples: Mutex<Vec<Option<Batch>>>,
}

impl Loaded {
    /// Every file that it is made of, as far as that is known: plugins open theirs when a worker loads them.
    fn all_files(&self) -> Files {
        let mut files = self.files.clone();
        for stage in &self.stages {
            stage.add_files(&mut files);
        }
        files
    }

    /// What an operator may want to know of how it is served.
    fn notes(&self) -> Vec<String> {
        self.stages.iter().filter_map(StageSource::note).collect()
    }

    /// Runs the proxy's sample, or else zeros, of which not every model makes something.
    fn warm_up(&self, model: &mut dyn Model, leg: u32) -> Result<()> {
        let samples = || self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let leg = leg as usize;
        let sample = samples().get(leg).cloned().flatten();
        let Some(sample) = sample else {
            model.warm_up();
            return Ok(());
        };
        let outputs = model
            .warm_up_with(&sample)
            .map_err(|e| Error::precondition(format!("warm_up: {}", e.message())))?;
        if let Some(next) = samples().get_mut(leg + 1) {
            next.get_or_insert(outputs);
        }
        Ok(())
    }
}

impl Store {
    /// A store that holds no model yet.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: a directory that is not there, or a GPU whose memory is not known while a share of it
    /// is asked for.
    pub fn new(engine: Engine, config: StoreConfig) -> Result<Store> {
        let roots = Roots::new(&config.run_script_dir, &config.allow_paths)?;
        let mut devices = Vec::new();
        let others = config.devices.len().saturating_sub(config.express_workers);
        for (worker, device) in config.devices.into_iter().enumerate() {
            let threads = match worker < others {
                true => config.intra_op_threads.max(1),
                false => 1,
            };
            let options = Options {
                intra_op_threads: threads,
                gpu_limit_bytes: device.limit_bytes(config.gpu_memory_fraction)?,
                wanted: SessionOptions::default(),
            };
            devices.push((device, options));
        }
        if devices.is_empty() {
            let options = Options {
                intra_op_threads: config.intra_op_threads.max(1),
                gpu_limit_bytes: 0,
                wanted: SessionOptions::default(),
            };
            devices.push((Device::Cpu, options));
        }
        Ok(Store {
            shared: Arc::new(Shared::new(engine)),
            roots: Arc::new(roots),
            devices,
            extra_workers: config.extra_workers,
            max_model_bytes: config.max_model_bytes,
            models: Mutex::default(),
        })
    }

    /// By what a lookup names a model; `None` if [`Store::find`] has to look at it.
    pub(crate) fn name_of(&self, lookup: &Lookup) -> Option<Name> {
        self.roots.alias(lookup).map(Name)
    }

    /// Whether a lookup names files besides its model that it may.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub(crate) fn check_parameters(&self, lookup: &Lookup) -> Result<()> {
        self.roots.check_parameters(lookup)
    }

    /// Where a lookup leads now.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `PERMISSION_DENIED`, `NOT_FOUND`; `FAILED_PRECONDITION` for something that is no model.
    pub(crate) fn find(&self, lookup: &Lookup) -> Result<FoundModel> {
        FoundModel::of(self.roots.find(lookup)?)
    }

    /// A name without the method that it ends in.
    #[cfg(feature = "gateway")]
    pub(crate) fn without_method<'a>(&self, name: &'a str) -> &'a str {
        self.roots.without_method(name)
    }

    /// Reads a model and holds it under that number, unless its files are still those of one of these models.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the file cannot be opened as a model; `RESOURCE_EXHAUSTED` if its files are larger than
    /// the bound.
    pub(crate) fn read(&self, id: ModelId, found: &FoundModel, unless: &[ModelId]) -> Result<Read> {
        let is_unchanged = |model: &Arc<Loaded>| model.all_files().are_unchanged();
        let same = unless
            .iter()
            .find(|id| self.get(**id).as_ref().is_some_and(is_unchanged));
        if let Some(same) = same {
            return Ok(Read::Unchanged(*same));
        }
        let model = self.described(id, &found.found)?;
        let description = model.description.clone();
        self.models().insert(id, Arc::new(model));
        Ok(Read::New(description))
    }

    fn described(&self, id: ModelId, found: &Found) -> Result<Loaded> {
        let name = found.name.clone();
        let place = |e: Error| e.context(format_args!("model {}", found.shown()));
        let mut files = Files::default();
        files.add(&found.origin);
        let mut all = files.clone();
        found.stages.iter().for_each(|stage| all.add(&stage.path));
        self.check_bytes(&all).map_err(place)?;
        let env = self.model_env(0);
        let started = std::time::Instant::now();
        let alone = found.stages.len() == 1;
        let describe = || -> Result<Vec<StageSource>> {
            let load = |one: &Stage| {
                let rows = found
                    .rows
                    .filter(|rows| alone || *rows == Rows::Independent);
                // A stage that is all of a model goes by the model's name.
                let one = match alone {
                    true => &Stage {
                        name: name.clone(),
                        ..one.clone()
                    },
                    false => one,
                };
                StageSource::load(one, rows, &env).map_err(|e| match alone {
                    true => e,
                    false => e.context(format_args!("stage {:?}", one.name)),
                })
            };
            found.stages.iter().map(load).collect()
        };
        let stages = describe().map_err(place)?;
        let text = ModelText {
            name: name.clone(),
            version: found.version,
            rows: found.rows,
            plugin_role: if self.extra_workers {
                Role::Extra
            } else {
                Role::Main
            },
        };
        let description = stage::described(&stages, text).map_err(place)?;
        let mut samples = vec![None; description.legs.len()];
        if let (Some(given), Some(first)) = (&found.warm_up, samples.first_mut()) {
            *first = Some(sample(&description, given).map_err(place)?);
        }
        let description = Arc::new(Description { id, ..description });
        let model = Loaded {
            description: description.clone(),
            stages,
            files,
            opening: Mutex::new(()),
            samples: Mutex::new(samples),
        };
        // Weights outside of the file are known only now.
        let all = model.all_files();
        self.check_bytes(&all).map_err(place)?;
        tracing::info!(
            model = %description.name,
            version = %description.version,
            id = id.0,
            kind = ?description.kind,
            stages = model.stages.len(),
            bytes = all.bytes(),
            elapsed_ms = started.elapsed().as_millis() as u64,
            "model described"
        );
        for note in model.notes() {
            tracing::info!(model = %description.name, version = %description.version, note, "how it is served");
        }
        Ok(model)
    }

    fn check_bytes(&self, files: &Files) -> Result<()> {
        match self.max_model_bytes {
            Some(most) if files.bytes() > most => Err(Error::exhausted(format!(
                "its files have {} bytes, and all loaded models together may have {most} (--max-model-bytes)",
                files.bytes()
            ))),
            _ => Ok(()),
        }
    }

    /// The bytes of the files of every model that is held. What a plugin reads by itself is not known.
    pub(crate) fn sizes(&self) -> Vec<(ModelId, u64)> {
        let models: Vec<_> = self.models().values().cloned().collect();
        let size = |model: Arc<Loaded>| (model.description.id, model.all_files().bytes());
        models.into_iter().map(size).collect()
    }

    /// Nobody needs a model any more. Sessions that workers have stay until they are told to drop them.
    pub(crate) fn let_go(&self, id: ModelId) {
        let gone = self.models().remove(&id);
        // Taking down an engine's session takes a while, which the caller may not have. Without a thread it is
        // dropped right here.
        let _ = std::thread::Builder::new()
            .name("mdm-let-go".to_owned())
            .spawn(move || {
                drop(gone);
                memory::trim();
            });
    }

    /// Looks at a model that is not kept: what it is, what each of its stages is by itself, and whether it can be opened.
    ///
    /// # Errors
    /// As [`Store::find`], [`Store::read`] and [`ModelSource::open`].
    pub(super) fn look_at(&self, lookup: &Lookup) -> Result<LookedAt> {
        let found = self.find(lookup)?.found;
        let model = self.described(ModelId(0), &found)?;
        self.open_of(&model, 0, WorkerId(0))?;
        let looked_at = LookedAt {
            description: model.description.clone(),
            stages: model.stages.iter().map(|s| s.description.clone()).collect(),
            notes: model.notes(),
            found,
        };
        drop(model);
        // A folder may have more models than memory.
        memory::trim();
        Ok(looked_at)
    }

    /// The folders that paths may lead into.
    pub(super) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Where models are.
    pub(super) fn run_script_dir(&self) -> &Path {
        self.roots.first()
    }

    /// What models may use in a worker.
    fn model_env(&self, worker: u32) -> ModelEnv {
        let (device, options) = &self.devices[worker as usize % self.devices.len()];
        ModelEnv {
            roots: self.roots.clone(),
            shared: self.shared.clone(),
            device: *device,
            options: options.clone(),
        }
    }

    fn open_of(&self, loaded: &Loaded, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>> {
        let env = self.model_env(worker.0);
        let device = env.device;
        let started = std::time::Instant::now();
        let place = |e: Error| e.context(format_args!("model {}", loaded.description.shown()));
        let mut opened = {
            let _one_at_a_time = loaded
                .opening
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            stage::open(&loaded.stages, &loaded.description, leg, &env).map_err(place)?
        };
        // All workers at once: running needs no more than running does.
        loaded.warm_up(&mut *opened, leg).map_err(place)?;
        tracing::info!(
            worker_id = worker.0,
            model = %loaded.description.name,
            version = %loaded.description.version,
            %device,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "session opened"
        );
        if loaded.description.has_versions {
            opened = Box::new(OfVersion {
                model: opened,
                place: format!("model {}", loaded.description.shown()),
            });
        }
        Ok(opened)
    }

    fn get(&self, id: ModelId) -> Option<Arc<Loaded>> {
        self.models().get(&id).cloned()
    }

    fn models(&self) -> MutexGuard<'_, HashMap<ModelId, Arc<Loaded>>> {
        // Nothing is left half done in there: a panic elsewhere does not spoil it.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance of a model that has versions, warm already: what goes wrong in it says in which.
struct OfVersion {
    model: Box<dyn Model>,
    place: String,
}

impl Model for OfVersion {
    fn infer_with(&mut self, inputs: &Batch, run: &Run<'_>) -> Result<Batch> {
        let result = self.model.infer_with(inputs, run);
        result.map_err(|e| e.context(&self.place))
    }
}

/// What [`Store::look_at`] saw.
pub(super) struct LookedAt {
    pub(super) description: Arc<Description>,
    pub(super) stages: Vec<Arc<Description>>,
    pub(super) notes: Vec<String>,
    pub(super) found: Found,
}

impl ModelSource for Store {
    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>> {
        let loaded = self.get(model).ok_or_else(|| unknown(model))?;
        Ok(loaded.description.legs.clone())
    }

    fn is_express(&self, model: ModelId) -> bool {
        self.get(model)
            .is_some_and(|loaded| loaded.description.express)
    }

    fn name(&self, model: ModelId) -> Option<(String, String)> {
        let description = &self.get(model)?.description;
        Some((description.name.clone(), description.version.clone()))
    }

    fn open(&self, model: ModelId, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>> {
        let loaded = self.get(model).ok_or_else(|| unknown(model))?;
        self.open_of(&loaded, leg, worker)
    }
}

fn unknown(model: ModelId) -> Error {
    Error::not_found(format!("model number {model} is not known (any more)"))
}
