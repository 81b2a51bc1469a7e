//! What is known about models: which file each number stands for, what it takes and gives, and the weights that its
//! sessions share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::{Device, Engine, Options, Shared, memory};
use super::find::{Files, Found, Lookup, Roots, Stage};
use super::known::{Key, Known, Replaced, Standing};
use super::plugin::ModelEnv;
use super::sample::sample;
use super::stage::{self, ModelText, StageSource};
use super::{Description, Model, ModelSource, Rows};
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, Role, WorkerId};
use crate::proxy::SessionOptions;
use crate::tensor::Batch;
use crate::wire::server::ModelInfo;

/// Where models are, and on what they run.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
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
    /// The most bytes of files that a model may have; `None` is no bound.
    pub max_model_bytes: Option<u64>,
}

/// The models that are known. [`Registry::resolve`], [`Registry::load`], [`Registry::unload`] and opening touch files
/// and take seconds: they are for the loader's thread and the workers', never for the ventilator's. The others look at
/// what is known.
pub struct Registry {
    shared: Arc<Shared>,
    roots: Arc<Roots>,
    devices: Vec<(Device, Options)>,
    extra_workers: bool,
    max_model_bytes: Option<u64>,
    known: Mutex<Known>,
}

/// A model that was read and described.
pub(super) struct Described {
    pub(super) description: Arc<Description>,
    stages: Vec<StageSource>,
    /// What it is made of besides its stages' own files: the proxy.
    files: Files,
    /// Held while a worker opens a session: opening takes a core and twice the memory for a moment.
    opening: Mutex<()>,
    /// What each leg is warmed up with, as far as it is known: the proxy's sample for the first, what a leg gave of it
    /// for the next one.
    samples: Mutex<Vec<Option<Batch>>>,
}

impl Described {
    /// Every file that it is made of, as far as that is known: plugins open theirs when a worker loads them.
    fn all_files(&self) -> Files {
        let mut files = self.files.clone();
        for stage in &self.stages {
            stage.add_files(&mut files);
        }
        files
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
            .infer(&sample, &Params::new())
            .map_err(|e| Error::precondition(format!("warm_up: {}", e.message())))?;
        if let Some(next) = samples().get_mut(leg + 1) {
            next.get_or_insert(outputs);
        }
        Ok(())
    }
}

impl Registry {
    /// A registry that knows no model yet.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: a directory that is not there, or a GPU whose memory is not known while a share of it
    /// is asked for.
    pub fn new(engine: Engine, config: RegistryConfig) -> Result<Registry> {
        let roots = Roots::new(&config.run_script_dir, &config.allow_paths)?;
        let mut devices = Vec::new();
        for device in config.devices {
            let options = Options {
                intra_op_threads: config.intra_op_threads.max(1),
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
        Ok(Registry {
            shared: Arc::new(Shared::new(engine)),
            roots: Arc::new(roots),
            devices,
            extra_workers: config.extra_workers,
            max_model_bytes: config.max_model_bytes,
            known: Mutex::default(),
        })
    }

    /// The model that a request names, as it was loaded: what has become of its files since is not looked at. The
    /// first time they are opened and described; the same file under another name is the same model. A failure is not
    /// remembered.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `PERMISSION_DENIED`, `NOT_FOUND` from the lookup; `FAILED_PRECONDITION` if the file cannot
    /// be opened as a model; `RESOURCE_EXHAUSTED` if its files are larger than the bound.
    pub fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        let alias = self.roots.alias(lookup);
        let served = alias.as_ref().and_then(|a| self.known().by_alias(a));
        if let Some(description) = served {
            self.roots.check_parameters(lookup)?;
            return Ok(description);
        }
        let found = self.roots.find(lookup)?;
        let key = Key::of(&found)?;
        if let Some(description) = self.known().adopt(&key, alias.clone()) {
            return Ok(description);
        }
        let model = self.described(found)?;
        let description = model.description.clone();
        let mut known = self.known();
        known.insert(key, Standing::Served, alias, model);
        Ok(description)
    }

    /// The model that a name leads to now. If its files, or the highest version, are not those that are served, it is
    /// another model, which requests find only after [`Registry::serve`]; until then they have the one that they had.
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub fn load(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        let found = self.roots.find(lookup)?;
        let key = Key::of(&found)?;
        let same = self.known().of_state(&key);
        if let Some(model) = same.iter().find(|model| model.all_files().are_unchanged()) {
            return Ok(model.description.clone());
        }
        let model = self.described(found)?;
        let description = model.description.clone();
        self.known().insert(key, Standing::Coming, None, model);
        Ok(description)
    }

    /// What a model replaces when it is served under that name.
    pub fn replaced_by(&self, id: ModelId, lookup: &Lookup) -> Replaced {
        let alias = self.roots.alias(lookup);
        self.known().replaced_by(id, alias.as_ref())
    }

    /// From now on requests find a loaded model under that name, and not what it replaces, which can be opened until
    /// [`Registry::let_go`]. `false` if it was forgotten meanwhile.
    pub fn serve(&self, id: ModelId, lookup: &Lookup) -> bool {
        let alias = self.roots.alias(lookup);
        self.known().serve(id, alias)
    }

    /// Forgets a loaded model that is not served yet; `false` if it is, or is not known.
    pub fn abandon(&self, id: ModelId) -> bool {
        self.known().abandon(id)
    }

    fn described(&self, found: Found) -> Result<Arc<Described>> {
        let name = found.name.clone();
        let place = |e: Error| e.context(format_args!("model {name:?}"));
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
        let id = self.known().next_id();
        let description = Arc::new(Description { id, ..description });
        let model = Described {
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
        Ok(Arc::new(model))
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

    /// What is known of a model by its number.
    pub fn describe(&self, id: ModelId) -> Option<Arc<Description>> {
        Some(self.known().get(id)?.description.clone())
    }

    /// Whether requests find it.
    pub fn is_served(&self, id: ModelId) -> bool {
        self.known().standing(id) == Some(Standing::Served)
    }

    /// Every model that requests find, in the order in which they were described.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.served()
            .map(|model| model.description.info())
            .collect()
    }

    /// The bytes of the files of every model that requests find. What a plugin reads by itself is not known.
    pub fn sizes(&self) -> Vec<(ModelId, u64)> {
        self.served()
            .map(|model| (model.description.id, model.all_files().bytes()))
            .collect()
    }

    /// As one of [`Registry::sizes`], for a model that may not be served yet.
    pub fn size(&self, id: ModelId) -> u64 {
        let model = self.known().get(id).cloned();
        model.map_or(0, |model| model.all_files().bytes())
    }

    fn served(&self) -> impl Iterator<Item = Arc<Described>> {
        let kept = self.known().kept().into_iter();
        kept.filter(|(standing, _)| *standing == Standing::Served)
            .map(|(_, model)| model)
    }

    /// Forgets a model: no lookup finds it any more. By its number it can be opened until [`Registry::let_go`], for
    /// requests that had found it. Sessions that workers have stay until they are told to drop them.
    ///
    /// # Errors
    /// As [`Registry::resolve`]; `NOT_FOUND` also if the model is not known.
    pub fn unload(&self, lookup: &Lookup) -> Result<Vec<ModelId>> {
        let found = self.roots.find(lookup);
        // The file may be gone, or another version be the highest; the name is still known.
        let alias = self.roots.alias(lookup);
        let mut known = self.known();
        let origin = found.as_ref().ok().map(|found| found.origin.as_path());
        let ids = known.named(alias.as_ref(), origin);
        if ids.is_empty() {
            return Err(match found {
                Err(e) => e,
                Ok(found) => Error::not_found(format!("model {:?} is not loaded", found.name)),
            });
        }
        for id in &ids {
            known.leave(*id);
        }
        Ok(ids)
    }

    /// As [`Registry::unload`], by its number.
    pub fn forget(&self, id: ModelId) {
        self.known().leave(id);
    }

    /// No request needs a forgotten model any more.
    pub fn let_go(&self, id: ModelId) {
        let left = self.known().let_go(id);
        // Taking down an engine's session takes a while, which the caller may not have. Without a thread it is
        // dropped right here.
        let _ = std::thread::Builder::new()
            .name("mdm-let-go".to_owned())
            .spawn(move || {
                drop(left);
                memory::trim();
            });
    }

    /// Where a request's name leads.
    pub(super) fn found(&self, lookup: &Lookup) -> Result<Found> {
        self.roots.find(lookup)
    }

    /// Where models are.
    pub(super) fn run_script_dir(&self) -> &Path {
        self.roots.first()
    }

    /// What each stage of a model is by itself.
    pub(super) fn stage_descriptions(&self, id: ModelId) -> Vec<Arc<Description>> {
        let known = self.known();
        let stages = known.get(id).map_or(&[][..], |model| &model.stages);
        stages.iter().map(|s| s.description.clone()).collect()
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

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half done in there: a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelSource for Registry {
    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>> {
        let described = self.describe(model);
        described
            .map(|d| d.legs.clone())
            .ok_or_else(|| unknown(model))
    }

    fn open(&self, model: ModelId, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>> {
        let described = {
            let known = self.known();
            let described = known.get(model).ok_or_else(|| unknown(model))?;
            described.clone()
        };
        let env = self.model_env(worker.0);
        let device = env.device;
        let started = std::time::Instant::now();
        let place = |e: Error| e.context(format_args!("model {:?}", described.description.name));
        let mut opened = {
            let _one_at_a_time = described
                .opening
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let description = &described.description;
            stage::open(&described.stages, description, leg, &env).map_err(place)?
        };
        // All workers at once: running needs no more than running does.
        described.warm_up(&mut *opened, leg).map_err(place)?;
        tracing::info!(
            worker_id = worker.0,
            model = %described.description.name,
            %device,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "session opened"
        );
        Ok(opened)
    }
}

fn unknown(model: ModelId) -> Error {
    Error::not_found(format!("model number {model} is not known (any more)"))
}
