//! The demo: a server with two workers classifies 1,797 handwritten digits, and is stopped again.
//!
//! It runs the commands that a person would type, and checks what they give.

use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mdm::client::Client;
use ndarray::Array2;
use npyz::NpyFile;

#[path = "../setup/server.rs"]
mod server;

use server::Server;

/// How many requests are timed.
const REPEATS: u32 = 20;

fn read<T: npyz::Deserialize>(path: &Path) -> Result<Vec<T>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    Ok(NpyFile::new(BufReader::new(file))?.into_vec()?)
}

fn main() -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let pixels: Vec<f32> = read(&data.join("images.npy"))?;
    let labels: Vec<i64> = read(&data.join("labels.npy"))?;
    let images = Array2::from_shape_vec((labels.len(), 64), pixels)?;

    let scratch = std::env::temp_dir().join(format!("mdm-demo-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let outcome = demonstrate(&data, &scratch, &images, &labels);
    std::fs::remove_dir_all(&scratch)?;
    outcome
}

fn demonstrate(data: &Path, scratch: &Path, images: &Array2<f32>, labels: &[i64]) -> Result<()> {
    let server = Server::start(data, scratch)?;
    let client = Client::connect(&server.address())?;

    let response = client.infer(images, "digits")?;
    let found = response.array::<i64>("label")?;
    ensure!(found.len() == labels.len(), "a row was lost");
    let right = found.iter().zip(labels).filter(|(a, b)| a == b).count();
    let accuracy = right as f64 / labels.len() as f64;
    println!(
        "{} images, {right} right: accuracy {accuracy:.4}",
        labels.len()
    );
    ensure!(
        accuracy > 0.97,
        "the classifier is known to be better than that"
    );

    let started = Instant::now();
    for _ in 0..REPEATS {
        client.infer(images, "digits")?;
    }
    let rows = labels.len() as f64 * f64::from(REPEATS);
    println!("{:.0} rows/s", rows / started.elapsed().as_secs_f64());

    let status = client.status()?;
    let total: u64 = status.workers.iter().map(|w| w.rows).sum();
    for worker in &status.workers {
        let share = 100.0 * worker.rows as f64 / total.max(1) as f64;
        println!(
            "worker {} ({}): {} rows, {share:.0} %",
            worker.id, worker.device, worker.rows
        );
        ensure!(worker.rows > 0, "worker {} had nothing to do", worker.id);
    }

    server.stop()
}
