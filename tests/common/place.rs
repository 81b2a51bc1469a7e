//! A folder of models, what a server knows of it, and its workers' sessions: what tests of models stand on.
#![allow(dead_code)] // each test program uses some of it

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mdm::message::WorkerId;
use mdm::model::{Description, Device, Engine, EngineLog, Lookup, Model, ModelSource, StoreConfig};
use mdm::server::ModelFolder;
use mdm::{Batch, Error, Params, Tensor};
use tempfile::TempDir;

/// A folder of models, and what a server knows of it.
pub struct Place {
    pub folder: TempDir,
    pub models: ModelFolder,
}

pub fn engine() -> Engine {
    Engine::load(None, EngineLog::Problems).unwrap()
}

impl Place {
    pub fn new(files: &[(&str, Vec<u8>)]) -> Place {
        Place::with(files, |_| {})
    }

    pub fn with(files: &[(&str, Vec<u8>)], change: impl FnOnce(&mut StoreConfig)) -> Place {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            write(&folder.path().join(name), bytes);
        }
        let mut config = StoreConfig {
            run_script_dir: folder.path().to_owned(),
            allow_paths: vec![],
            devices: vec![Device::Cpu],
            intra_op_threads: 1,
            gpu_memory_fraction: 0.2,
            extra_workers: false,
            express_workers: 0,
            max_model_bytes: None,
        };
        change(&mut config);
        let models = ModelFolder::new(engine(), config).unwrap();
        Place { folder, models }
    }

    pub fn find(&self, name: &str) -> Result<Arc<Description>, Error> {
        self.models.resolve(&Lookup::of(Some(name), &Params::new()))
    }

    /// Loads what a name leads to now, serves it, and has a request hold it.
    pub fn load(&self, name: &str) -> Arc<Description> {
        let lookup = Lookup::of(Some(name), &Params::new());
        let loaded = self.models.load(&lookup).unwrap();
        assert!(self.models.serve(loaded.id));
        self.models.hold(loaded.id);
        loaded
    }

    pub fn open(&self, name: &str) -> (Arc<Description>, Box<dyn Model>) {
        let description = self.find(name).unwrap();
        let model = self.models.open(description.id, 0, WorkerId(0)).unwrap();
        (description, model)
    }

    pub fn infer(&self, name: &str, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let (_, mut model) = self.open(name);
        Ok(model.infer(&Batch { tensors }, &Params::new())?.tensors)
    }
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub fn params(value: serde_json::Value) -> Params {
    value.as_object().unwrap().clone()
}

pub fn ramp(name: &str, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let elements = (0..count).map(|i| (i % 23) as f32 / 7.0 - 1.5).collect();
    Tensor::from_vec::<f32>(name, shape.to_vec(), elements).unwrap()
}
