//! What is known about models: which file each number stands for, what it takes and gives, and the weights that its
//! sessions share.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::Engine;
use super::lookup::{Found, Lookup, Roots, Stage};
use super::plugin::Surroundings;
use super::proxy::SessionOptions;
use super::shared::Shared;
use super::source::{Options, Stamp};
use super::stage::{self, StageSource};
use super::{Description, Device, Model, ModelSource, Rows, gpu};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role, WorkerId};
use crate::wire::server::ModelInfo;

/// The most models that are kept described. Beyond it the one that was asked for longest ago is forgotten.
const MOST_MODELS: usize = 64;

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
}

/// The models that are known. Its methods touch files and take seconds: they are for the loader's thread and the
/// workers', never for the ventilator's.
pub struct Registry {
    shared: Arc<Shared>,
    roots: Arc<Roots>,
    devices: Vec<(Device, Options)>,
    extra_workers: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last_id: u64,
    /// Counts lookups, to know which model was asked for longest ago.
    clock: u64,
    entries: HashMap<ModelId, Entry>,
    /// Forgotten since somebody last asked.
    retired: Vec<ModelId>,
    /// Forgotten, while requests that had found them are on their way: workers may still have to open them.
    leaving: HashMap<ModelId, Arc<Described>>,
}

struct Entry {
    key: Key,
    names: BTreeSet<String>,
    used: u64,
    model: Arc<Described>,
}

/// One state of a model's files, served in one way.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    /// The file that says what is served.
    origin: PathBuf,
    method: Option<String>,
    rows: Option<Rows>,
    stages: Vec<(Stage, Stamp)>,
}

struct Described {
    description: Arc<Description>,
    stages: Vec<StageSource>,
    /// Held while a worker opens a session: opening takes a core and twice the memory for a moment.
    opening: Mutex<()>,
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
            let gpu_limit_bytes = match device {
                Device::Cuda(number) if config.gpu_memory_fraction > 0.0 => {
                    (gpu::total_memory(number)? as f64 * config.gpu_memory_fraction) as usize
                }
                Device::Cuda(_) | Device::Cpu => 0,
            };
            let options = Options {
                intra_op_threads: config.intra_op_threads.max(1),
                gpu_limit_bytes,
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
            known: Mutex::default(),
        })
    }

    /// The model that a request names. The first time its file is opened and described; the same file under another
    /// name is the same model, a changed file another. A failure is not remembered.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `PERMISSION_DENIED`, `NOT_FOUND` from the lookup; `FAILED_PRECONDITION` if the file cannot
    /// be opened as a model.
    pub fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        let found = self.roots.find(lookup)?;
        let key = key(&found)?;
        if let Some(description) = self.known().touch(&key, &found.name) {
            return Ok(description);
        }
        let name = found.name.clone();
        let surroundings = self.surroundings(0);
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
                StageSource::load(one, rows, &surroundings).map_err(|e| match alone {
                    true => e,
                    false => e.context(format_args!("stage {:?}", one.name)),
                })
            };
            found.stages.iter().map(load).collect()
        };
        let place = |e: Error| e.context(format_args!("model {name:?}"));
        let stages = describe().map_err(place)?;
        let description = stage::described(
            &stages,
            found.rows,
            name.clone(),
            found.version,
            self.extra_workers,
        )
        .map_err(place)?;
        let mut known = self.known();
        known.last_id += 1;
        let id = ModelId(known.last_id);
        let description = Arc::new(Description { id, ..description });
        tracing::info!(
            model = %description.name,
            version = %description.version,
            id = id.0,
            kind = ?description.kind,
            stages = stages.len(),
            elapsed_ms = started.elapsed().as_millis() as u64,
            "model described"
        );
        known.retire_older(&key);
        let used = known.tick();
        known.entries.insert(
            id,
            Entry {
                key,
                names: BTreeSet::from([found.name]),
                used,
                model: Arc::new(Described {
                    description: description.clone(),
                    stages,
                    opening: Mutex::new(()),
                }),
            },
        );
        known.retire_excess();
        Ok(description)
    }

    /// What is known of a model by its number.
    pub fn describe(&self, id: ModelId) -> Option<Arc<Description>> {
        Some(self.known().get(id)?.description.clone())
    }

    /// Every model that is known, in the order in which they were described.
    pub fn models(&self) -> Vec<ModelInfo> {
        let known = self.known();
        let mut descriptions: Vec<&Arc<Description>> = known
            .entries
            .values()
            .map(|entry| &entry.model.description)
            .collect();
        descriptions.sort_by_key(|description| description.id);
        descriptions
            .into_iter()
            .map(|description| description.info())
            .collect()
    }

    /// Forgets a model: no lookup finds it any more. By its number it can be opened until [`Registry::let_go`], for
    /// requests that had found it. Sessions that workers have stay until they are told to drop them.
    ///
    /// # Errors
    /// As [`Registry::resolve`]; `NOT_FOUND` also if the model is not known.
    pub fn unload(&self, lookup: &Lookup) -> Result<Vec<ModelId>> {
        let found = self.roots.find(lookup);
        let mut known = self.known();
        let mut ids: Vec<ModelId> = known
            .entries
            .iter()
            .filter(|(_, entry)| match &found {
                Ok(found) => entry.key.origin == found.origin,
                // The file is gone; its name is still known.
                Err(_) => entry.names.contains(lookup.name()),
            })
            .map(|(id, _)| *id)
            .collect();
        ids.sort();
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

    /// The models that were forgotten since the last call without being unloaded: their file was replaced, or too
    /// many others came. Workers should drop their sessions.
    pub fn take_retired(&self) -> Vec<ModelId> {
        std::mem::take(&mut self.known().retired)
    }

    /// No request needs a forgotten model any more.
    pub fn let_go(&self, id: ModelId) {
        let left = self.known().leaving.remove(&id);
        // Taking down an engine's session takes a while, which the caller may not have. Without a thread it is
        // dropped right here.
        let _ = std::thread::Builder::new()
            .name("mdm-let-go".to_owned())
            .spawn(move || drop(left));
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
    fn surroundings(&self, worker: u32) -> Surroundings {
        let (device, options) = &self.devices[worker as usize % self.devices.len()];
        Surroundings {
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

impl Known {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn touch(&mut self, key: &Key, name: &str) -> Option<Arc<Description>> {
        let used = self.tick();
        let entry = self.entries.values_mut().find(|entry| entry.key == *key)?;
        entry.used = used;
        if !entry.names.contains(name) {
            entry.names.insert(name.to_owned());
        }
        Some(entry.model.description.clone())
    }

    /// Forgets what was known of earlier states of a file, but for the last of them, which chunks that are on their
    /// way may still need.
    fn retire_older(&mut self, key: &Key) {
        let mut earlier: Vec<ModelId> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                entry.key.origin == key.origin
                    && entry.key.method == key.method
                    && entry.key.rows == key.rows
            })
            .map(|(id, _)| *id)
            .collect();
        earlier.sort();
        earlier.pop();
        for id in earlier {
            self.retire(id);
        }
    }

    fn retire_excess(&mut self) {
        while self.entries.len() > MOST_MODELS {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(id) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.retire(id);
        }
    }

    fn retire(&mut self, id: ModelId) {
        self.leave(id);
        self.retired.push(id);
    }

    fn leave(&mut self, id: ModelId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.leaving.insert(id, entry.model);
        }
    }

    /// A model that is known, or that requests on their way may still need.
    fn get(&self, id: ModelId) -> Option<&Arc<Described>> {
        match self.entries.get(&id) {
            Some(entry) => Some(&entry.model),
            None => self.leaving.get(&id),
        }
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
            let mut known = self.known();
            let used = known.tick();
            if let Some(entry) = known.entries.get_mut(&model) {
                entry.used = used;
            }
            let described = known.get(model).ok_or_else(|| unknown(model))?;
            described.clone()
        };
        let surroundings = self.surroundings(worker.0);
        let device = surroundings.device;
        let started = std::time::Instant::now();
        let opened = {
            let _one_at_a_time = described
                .opening
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let description = &described.description;
            stage::open(&described.stages, description, leg, &surroundings)
                .map_err(|e| e.context(format_args!("model {:?}", described.description.name)))?
        };
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

fn key(found: &Found) -> Result<Key> {
    let stages = found.stages.iter().map(|stage| {
        let stamp = Stamp::of(&stage.path)
            .map_err(|e| Error::not_found(format!("model {:?}: {e}", found.name)))?;
        Ok((stage.clone(), stamp))
    });
    Ok(Key {
        origin: found.origin.clone(),
        method: found.method.clone(),
        rows: found.rows,
        stages: stages.collect::<Result<Vec<_>>>()?,
    })
}
