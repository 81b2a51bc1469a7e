//! What a plugin costs by being one: rows passed through the C interface and back, against handing the batch on.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use mdm::message::{Params, WorkerId};
use mdm::model::{Device, Engine, EngineLog, Lookup, Model, ModelSource, StoreConfig};
use mdm::server::ModelFolder;
use mdm::{Batch, Tensor};

use super::engine::library;
use super::report::{Bar, Pairs, Table};
use super::{Plan, onnx};

/// A chunk of a small request, and one of a large one.
const ROWS: [usize; 2] = [1, 1024];

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::copy(echo_plugin()?, folder.path().join("libecho.so"))?;
    let proxy = r#"{"mdm":1,"plugin":"libecho.so","entry":"echo"}"#;
    std::fs::write(folder.path().join("plugin.proxy"), proxy)?;
    let echo = onnx::echo(mdm::DataType::Fp32, &[256]);
    std::fs::write(folder.path().join("engine.onnx"), echo)?;
    let models = ModelFolder::new(
        Engine::load(Some(&library()?), EngineLog::Problems)?,
        StoreConfig {
            run_script_dir: folder.path().to_owned(),
            allow_paths: Vec::new(),
            devices: vec![Device::Cpu],
            intra_op_threads: 1,
            gpu_memory_fraction: 0.0,
            extra_workers: false,
            express_workers: 0,
            max_model_bytes: None,
        },
    )?;
    let open = |name: &str| -> Result<Box<dyn Model>> {
        let found = models.resolve(&Lookup::of(Some(name), &Params::new()))?;
        Ok(models.open(found.id, 0, WorkerId(0))?)
    };
    let (mut plugin, mut engine) = (open("plugin")?, open("engine")?);
    for rows in ROWS {
        let elements = vec![1f32; rows * 256];
        let batch = Batch::from(Tensor::from_vec("x", vec![rows, 256], elements)?);
        let count = plan.times(100_000);
        let pairs = Pairs::measure(
            plan,
            || per_run(&mut *plugin, &batch, count),
            || per_run(&mut *engine, &batch, count / 10),
        )?;
        let what = format!("plugin: {rows} rows passed through, to the engine's echo");
        table.add(&what, &pairs, "µs", Bar::None);
        let handed_on = handed_on(&batch, count);
        let more = pairs.ours() - handed_on;
        table.note(format!(
            "plugin: {rows} rows cost {more:.2} µs a chunk more than handing the batch on ({handed_on:.2} µs); at most 3 µs: {}",
            if more <= 3.0 { "met" } else { "missed" }
        ));
    }
    Ok(())
}

/// Microseconds of a run.
fn per_run(model: &mut dyn Model, batch: &Batch, count: usize) -> Result<f64> {
    let params = Params::new();
    let outputs = model.infer(batch, &params)?;
    ensure!(outputs.rows()? == batch.rows()?, "rows were lost");
    let start = Instant::now();
    for _ in 0..count {
        black_box(model.infer(black_box(batch), &params)?);
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// Microseconds of an echo that is built in: the same batch, shared.
fn handed_on(batch: &Batch, count: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        black_box(black_box(batch).clone());
    }
    start.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// The example's plugin, beside this program's folder.
fn echo_plugin() -> Result<PathBuf> {
    let name = format!(
        "{}echo_plugin{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let program = std::env::current_exe()?;
    program
        .ancestors()
        .map(|folder| folder.join("examples").join(&name))
        .find(|file| file.is_file())
        .with_context(|| {
            format!("no {name}: `cargo build --release --example echo_plugin` makes it")
        })
}
