//! What the tests share: a server of their own, and models to serve.
#![allow(dead_code)] // each test file uses its own part of this

pub mod csv;
pub mod onnx;
pub mod within;

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mdm::client::Client;
use mdm::{ErrorCode, Result};
use tempfile::TempDir;
#[allow(unused_imports)] // as above
pub use within::within;

/// How long anything in a test may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The real binary on free ports, with a folder of its own. It is killed when the test ends, however it ends.
pub struct Server {
    child: Child,
    /// The run-script directory is in here, and whatever the server writes.
    pub dir: TempDir,
    pub port: u16,
    pub port_out: u16,
    /// 0 if it has no door for HTTP.
    pub http_port: u16,
    /// 0 if it has no door for gRPC.
    pub grpc_port: u16,
    /// 0 if metrics are told on that port, if anywhere.
    pub metrics_port: u16,
}

/// A folder with models in it, by file name.
pub fn models(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    std::fs::create_dir(dir.path().join("models")).expect("a folder for models");
    for (name, bytes) in files {
        let path = dir.path().join("models").join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a model file");
    }
    dir
}

/// It failed with this code, and its message has each of these words in it.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T>, code: ErrorCode, words: &[&str]) {
    let error = result.expect_err("expected an error");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(
            error.message().contains(word),
            "{word:?} is not in: {error}"
        );
    }
}

/// A command of ours, with nothing of the environment that could steer it.
pub fn command(name: &str) -> Command {
    let path = match name {
        "mdm-server-start" => env!("CARGO_BIN_EXE_mdm-server-start"),
        "mdm-server-terminate" => env!("CARGO_BIN_EXE_mdm-server-terminate"),
        "mdm-server-status" => env!("CARGO_BIN_EXE_mdm-server-status"),
        "mdm-infer" => env!("CARGO_BIN_EXE_mdm-infer"),
        "mdm-bench" => env!("CARGO_BIN_EXE_mdm-bench"),
        "mdm-model" => env!("CARGO_BIN_EXE_mdm-model"),
        other => panic!("{other} is none of our commands"),
    };
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MDM_") {
            command.env_remove(name);
        }
    }
    // A server that is started without --logger leaves its log here.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

impl Server {
    /// Starts a server over a folder that [`models`] made, with further flags.
    pub fn start(dir: TempDir, flags: &[&str]) -> Server {
        Server::start_on(dir, 0, 0, flags)
    }

    /// As [`Server::start`], on these ports.
    pub fn start_on(dir: TempDir, port: u16, port_out: u16, flags: &[&str]) -> Server {
        Server::start_by(command("mdm-server-start"), dir, (port, port_out), flags)
    }

    /// As [`Server::start`], with a log of what is told at this level.
    pub fn start_logging(level: &str, dir: TempDir, flags: &[&str]) -> Server {
        let mut command = command("mdm-server-start");
        command.env("MDM_LOG", level);
        Server::start_by(command, dir, (0, 0), flags)
    }

    /// As [`Server::start`], with no more than so many descriptors.
    pub fn start_limited(descriptors: usize, dir: TempDir, flags: &[&str]) -> Server {
        let own = command("mdm-server-start");
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\""])
            .arg(descriptors.to_string())
            .arg(own.get_program());
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        Server::start_by(limited, dir, (0, 0), flags)
    }

    fn start_by(
        mut command: Command,
        dir: TempDir,
        (port, port_out): (u16, u16),
        flags: &[&str],
    ) -> Server {
        let mut child = command
            .args(["--port", &port.to_string()])
            .args(["--port-out", &port_out.to_string()])
            .arg("--run-script-dir")
            .arg(dir.path().join("models"))
            .arg("--zeromq-sock-tmp-dir")
            .arg(dir.path().join("s"))
            .arg("--logger")
            .arg(dir.path().join("log.txt"))
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mdm-server-start runs");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("stdout");
        BufReader::new(stdout)
            .read_line(&mut ready)
            .expect("a line");
        let field = |name: &str| {
            ready
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.parse().ok())
        };
        let (Some(port), Some(port_out)) = (field("port="), field("port_out=")) else {
            let mut why = String::new();
            let stderr = child.stderr.take().expect("stderr");
            BufReader::new(stderr)
                .read_to_string(&mut why)
                .expect("text");
            let _ = child.wait();
            panic!("not ready: {ready:?} {why}");
        };
        let http_port = field("http_port=").unwrap_or(0);
        let grpc_port = field("grpc_port=").unwrap_or(0);
        let metrics_port = field("metrics_port=").unwrap_or(0);
        // Its stderr is drained, so that a talkative server never blocks on a full pipe.
        let mut stderr = child.stderr.take().expect("stderr");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Server {
            child,
            dir,
            port,
            port_out,
            http_port,
            grpc_port,
            metrics_port,
        }
    }

    /// Starts a server with one model, `NAME.onnx`.
    pub fn with_model(name: &str, bytes: Vec<u8>, flags: &[&str]) -> Server {
        Server::start(models(&[(&format!("{name}.onnx"), bytes)]), flags)
    }

    /// The address of its port.
    pub fn address(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::connect(&self.address()).expect("a session")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its models are.
    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    /// Its log so far. A server that is ready has one.
    #[track_caller]
    pub fn log(&self) -> String {
        text(&self.dir.path().join("log.txt"))
    }

    /// Its resident memory, in bytes.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.pid())
    }

    /// The memory that it has asked for, used or not.
    #[track_caller]
    pub fn virtual_bytes(&self) -> u64 {
        bytes_of(self.pid(), "VmSize:")
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, and fails the test if it does not come.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a process hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something holds, and fails the test if it does not come to.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The resident memory of a process, which has to be running: of one that has ended, nothing would seem to have grown.
#[track_caller]
pub fn resident_bytes(pid: u32) -> u64 {
    bytes_of(pid, "VmRSS:")
}

/// The most resident memory that a process has had so far, which has to be running.
#[track_caller]
pub fn peak_bytes(pid: u32) -> u64 {
    bytes_of(pid, "VmHWM:")
}

/// As [`peak_bytes`] of a process that may end meanwhile; `None` once it has.
pub fn peak_bytes_unless_ended(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

#[track_caller]
fn bytes_of(pid: u32, name: &str) -> u64 {
    match status_bytes(pid, name) {
        Some(bytes) => bytes,
        None => panic!("process {pid} has no {name} it has ended"),
    }
}

/// A line of what the system says of a process; one that has ended, and was not waited for, has none about memory.
fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
    Some(kib.expect("a number of kB") * 1024)
}

/// The processor time that a running process has used.
#[track_caller]
pub fn processor_time(pid: u32) -> Duration {
    let stat = text(format!("/proc/{pid}/stat").as_ref());
    // Behind the name, which may have blanks in it: the state, and fields 14 and 15, in hundredths of a second.
    let behind = stat.rsplit(')').next().expect("fields");
    let fields: Vec<&str> = behind.split_whitespace().collect();
    assert!(!matches!(fields[0], "Z" | "X"), "process {pid} has ended");
    let ticks = fields[11..13]
        .iter()
        .map(|t| t.parse::<u64>().expect("a number"));
    Duration::from_millis(10 * ticks.sum::<u64>())
}

/// The open descriptors of a running process.
#[track_caller]
pub fn descriptors(pid: u32) -> usize {
    // The folder of one that has ended can be there still, and empty.
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    assert!(open > 0, "process {pid} has no descriptors: it has ended");
    open
}

/// Reads a text file, which has to be there.
#[track_caller]
pub fn text(path: &Path) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => panic!("{}: {e}", path.display()),
    }
}
