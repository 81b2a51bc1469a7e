//! A server of an example's own: the command that a person would start, and ended with the example however that ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A server that runs.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts one with two workers over a folder of models. Its sockets and its log are in `scratch`.
    pub fn start(models: &Path, scratch: &Path) -> Result<Server> {
        let program = command("mdm-server-start")?;
        let mut child = Command::new(&program)
            .args(["--port", "0", "--port-out", "0", "--num-worker", "2"])
            .arg("--run-script-dir")
            .arg(models)
            .arg("--zeromq-sock-tmp-dir")
            .arg(scratch)
            .arg("--logger")
            .arg(scratch.join("logger.txt"))
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
        let log = scratch.join("logger.txt");
        ensure!(port.is_some(), "not ready; see {}", log.display());
        Ok(server)
    }

    /// What a client connects to.
    pub fn address(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Stops it as a person would, and waits until it has ended.
    pub fn stop(mut self) -> Result<()> {
        let stop = Command::new(command("mdm-server-terminate")?)
            .args(["--port", &self.port.to_string()])
            .status()?;
        ensure!(stop.success(), "mdm-server-terminate: {stop}");
        let deadline = Instant::now() + Duration::from_secs(10);
        let ended = loop {
            if let Some(ended) = self.child.try_wait()? {
                break ended;
            }
            ensure!(Instant::now() < deadline, "the server has not ended");
            std::thread::sleep(Duration::from_millis(10));
        };
        ensure!(ended.success(), "the server ended with {ended}");
        println!("stopped");
        Ok(())
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
