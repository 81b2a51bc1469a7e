//! The demo: a server with two workers classifies 1,797 handwritten digits, and is stopped again.
//!
//! It runs the commands that a person would type, and checks what they give.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mdm::client::Client;
use ndarray::Array2;
use npyz::NpyFile;

/// How many requests are timed.
const REPEATS: u32 = 20;

/// A server of our own, ended with us however we end.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path, models: &Path, sockets: &Path) -> Result<Server> {
        let mut child = Command::new(program)
            .args(["--port", "0", "--port-out", "0", "--num-worker", "2"])
            .arg("--run-script-dir")
            .arg(models)
            .arg("--zeromq-sock-tmp-dir")
            .arg(sockets)
            .arg("--logger")
            .arg(sockets.join("logger.txt"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        let stdout = child.stdout.take().context("its standard output")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready)?;
        print!("{ready}");
        let port = ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix("port=")?.parse().ok());
        let server = Server {
            child,
            port: port.unwrap_or(0),
        };
        let log = sockets.join("logger.txt");
        ensure!(port.is_some(), "not ready; see {}", log.display());
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, as a rule; both then do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The commands are built beside the examples.
fn command(name: &str) -> Result<PathBuf> {
    let example = std::env::current_exe()?;
    let folder = example.parent().and_then(Path::parent);
    Ok(folder.context("where the examples are")?.join(name))
}

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
    let mut server = Server::start(&command("mdm-server-start")?, data, scratch)?;
    let client = Client::connect(&format!("tcp://127.0.0.1:{}", server.port))?;

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

    let stop = Command::new(command("mdm-server-terminate")?)
        .args(["--port", &server.port.to_string()])
        .status()?;
    ensure!(stop.success(), "mdm-server-terminate: {stop}");
    let deadline = Instant::now() + Duration::from_secs(10);
    let ended = loop {
        if let Some(ended) = server.child.try_wait()? {
            break ended;
        }
        ensure!(Instant::now() < deadline, "the server has not ended");
        std::thread::sleep(Duration::from_millis(10));
    };
    ensure!(ended.success(), "the server ended with {ended}");
    println!("stopped");
    Ok(())
}
