//! Servers in processes of their own: started, asked what they cost, and ended whatever happens.
#![allow(dead_code)] // each benchmark uses some of it

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use mdm::Client;
use tempfile::TempDir;

/// How long a server may take to be ready.
const START: Duration = Duration::from_secs(60);

/// A process that is killed when nobody needs it any more.
pub struct Process {
    child: Child,
    /// The baselines end when this is closed, so that they do not outlive a bench that is killed.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a command, and reads what it prints until a line begins with `ready `; the rest of that line is given.
    fn start(mut command: Command) -> Result<(Process, String)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{:?} does not start", command.get_program()))?;
        let stdout = child.stdout.take();
        let process = Process {
            _stdin: child.stdin.take(),
            child,
        };
        let lines = read_lines(stdout.context("a child without standard output")?);
        loop {
            let line = lines
                .recv_timeout(START)
                .map_err(|e| anyhow!("{:?} is not ready: {e}", command.get_program()))?;
            if let Some(rest) = line.strip_prefix("ready ") {
                return Ok((process, rest.to_owned()));
            }
        }
    }

    /// Processor time used so far, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// The same to the nanosecond, for what uses little: of the threads that are alive.
    pub fn fine_cpu(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut nanoseconds = 0;
        for task in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
            // A thread may end meanwhile.
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let first = text.split_whitespace().next().unwrap_or("0");
            nanoseconds += first.parse::<u64>().with_context(|| tasks.clone())?;
        }
        // A process that has started has used some.
        ensure!(nanoseconds > 0, "{tasks}: this kernel does not count it");
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory.
    pub fn memory(&self) -> Result<Memory> {
        let pid = self.child.id();
        Ok(Memory {
            rss: kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")?,
            pss: kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stdout: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Read on when nobody listens any more: a full pipe would stop the child.
            let _ = sender.send(line);
        }
    });
    lines
}

/// Resident bytes: all of them, and with those that other processes map as well counted in part.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub rss: f64,
    pub pss: f64,
}

/// Processor time of this process so far.
pub fn own_cpu() -> Result<Duration> {
    cpu_of("self")
}

fn cpu_of(process: &str) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, in brackets, may hold anything; after it come the state (field 3) and numbers.
    let numbers = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = numbers
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().with_context(|| path.clone()))
        .sum::<Result<u64>>()?;
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(Duration::from_millis(ticks * 10))
}

fn kilobytes(path: &str, key: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    let number: f64 = number
        .with_context(|| format!("{path} has no {key}"))?
        .parse()
        .with_context(|| format!("{path}: {key}"))?;
    Ok(number * 1024.0)
}

/// This program as the far end of a baseline; `mode` says which.
pub fn baseline(mode: &str, args: &[usize]) -> Result<(Process, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(mode);
    command.args(args.iter().map(usize::to_string));
    Process::start(command)
}

/// For a baseline's process: waits until whoever started it has gone.
pub fn until_abandoned() {
    // What could be read here is of no interest, nor is an error: either way it is over.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// A folder with models in it.
pub struct Models(TempDir);

impl Models {
    /// Writes `NAME.onnx` for each.
    pub fn write(models: &[(&str, Vec<u8>)]) -> Result<Models> {
        let dir = tempfile::tempdir()?;
        for (name, bytes) in models {
            std::fs::write(dir.path().join(format!("{name}.onnx")), bytes)?;
        }
        Ok(Models(dir))
    }

    /// A folder that somebody else wrote.
    pub fn of(dir: TempDir) -> Models {
        Models(dir)
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The program of the server of this crate.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mdm-server-start"))
}

/// The server itself, as users run it.
pub struct Server {
    pub process: Process,
    /// Where requests go.
    pub port: u16,
    /// Where answers come from.
    pub port_out: u16,
    /// What it said when it was ready.
    ready: String,
    /// Its log, its standard error and its local sockets.
    _dir: TempDir,
}

impl Server {
    /// Starts ours over these models, on free ports, with the engine's library that the baselines use.
    pub fn start(models: &Models, flags: &[&str]) -> Result<Server> {
        Server::start_program(program(), models, flags)
    }

    /// The same with any server's program.
    pub fn start_program(program: &Path, models: &Models, flags: &[&str]) -> Result<Server> {
        let dir = tempfile::tempdir()?;
        let errors = dir.path().join("stderr.txt");
        let mut command = Command::new(program);
        // The machine's own settings would be measured instead of the defaults.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MDM_") {
                command.env_remove(name);
            }
        }
        command
            .args(["--port", "0", "--port-out", "0", "--run-script-dir"])
            .arg(models.path())
            .arg("--onnxruntime")
            .arg(super::engine::library()?)
            .args(flags)
            .current_dir(dir.path())
            .env("XDG_STATE_HOME", dir.path())
            .stderr(std::fs::File::create(&errors)?);
        let (process, ready) = match Process::start(command) {
            Ok(started) => started,
            Err(e) => {
                let said = std::fs::read_to_string(&errors).unwrap_or_default();
                bail!("{e:#}; it said: {said}");
            }
        };
        Ok(Server {
            process,
            port: number(&ready, "port")?,
            port_out: number(&ready, "port_out")?,
            ready,
            _dir: dir,
        })
    }

    /// Where its door for HTTP is.
    pub fn http_port(&self) -> Result<u16> {
        number(&self.ready, "http_port")
    }

    /// Where its door for gRPC is.
    pub fn grpc_port(&self) -> Result<u16> {
        number(&self.ready, "grpc_port")
    }

    /// A client of it.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&format!("tcp://127.0.0.1:{}", self.port))?)
    }
}

/// The number behind `KEY=` in a line that says that something is ready.
pub fn number(ready: &str, key: &str) -> Result<u16> {
    ready
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .with_context(|| format!("no {key} in {ready:?}"))
}
