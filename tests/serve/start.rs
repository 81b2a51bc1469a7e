//! Starting: every way to say the settings, what is loaded before the server is ready, and what a start that fails says.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mdm::client::Client;
use mdm::{DataType, ErrorCode, Tensor};

use crate::behind::FOR_EVER;
use crate::common::{PATIENCE, Server, command, eventually, models, onnx, wait, within};
use crate::models::{BUSY_ROWS, busy as busy_model};
use crate::{numbered, refused, settled};

fn echo() -> Vec<u8> {
    onnx::echo(DataType::Int64, &[2])
}

/// A server that was started with other flags than [`Server`] gives.
pub struct Started {
    child: Child,
    ready: String,
}

impl Started {
    pub fn new(command: &mut Command) -> Started {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = None;
        // A program that was just copied is busy while a process that another test starts still holds the writer's
        // descriptor, between its fork and its exec.
        eventually("a copied program can be run", || match command.spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => false,
            started => {
                child = Some(started.expect("it runs"));
                true
            }
        });
        let mut child = child.expect("started");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("stdout");
        BufReader::new(stdout).read_line(&mut ready).expect("text");
        Started { child, ready }
    }

    /// The numbers of the ready line, in its order.
    pub fn numbers(&self) -> Vec<u32> {
        let words: Vec<&str> = self.ready.trim_end().split(' ').collect();
        let names = ["port=", "port_out=", "workers=", "pid="];
        assert_eq!((words[0], words.len()), ("ready", 5), "{:?}", self.ready);
        let number = |(word, name): (&&str, &str)| word.strip_prefix(name)?.parse().ok();
        let numbers = words[1..].iter().zip(names).map(number);
        numbers.collect::<Option<_>>().expect("four numbers")
    }

    /// Its exit code, and what it said on standard error.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child);
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().expect("stderr");
        stderr.read_to_string(&mut said).expect("text");
        (status.code(), said)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(dir: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let mut names: Vec<OsString> = entries.map(|e| e.expect("a name").file_name()).collect();
    names.sort();
    names
}

/// It does not start: exit code 2, no ready line, one line with each of these words, and nothing new in its folder.
#[track_caller]
fn does_not_start(dir: &Path, command: &mut Command, words: &[&str]) {
    let before = names(dir);
    let started = Started::new(command.current_dir(dir));
    assert_eq!(started.ready, "");
    let (code, said) = started.end();
    assert_eq!(code, Some(2), "{said}");
    // Ahead of it there are the settings, if the start came so far.
    let mut lines: Vec<&str> = said.lines().collect();
    let last = lines.pop().expect("a line");
    let is_setting = |line: &&str| line.starts_with("# ") || line.contains(" = ");
    assert!(lines.iter().all(is_setting), "{said}");
    assert!(last.starts_with("mdm-server-start: error: "), "{said}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in: {said}");
    }
    assert_eq!(names(dir), before, "{words:?} left something behind");
}

fn start(flags: &[&str]) -> Command {
    let mut command = command("mdm-server-start");
    command.args(["--port=0", "--port-out=0", "--run-script-dir=models"]);
    command.args(flags);
    command
}

#[test]
fn preloaded_models_are_there_before_the_first_request() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo()), ("sub/mlp.onnx", onnx::mlp())]);
        let flags = [
            "--preload",
            "echo",
            "--preload",
            "sub/mlp",
            "--num-worker",
            "2",
        ];
        let server = Server::start(dir, &flags);
        let client = server.client();
        let status = client.status().unwrap();
        let mut names: Vec<&str> = status.models.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["echo", "sub/mlp"]);
        assert_eq!(status.totals.requests, 0);
        assert_eq!(status.settings["preload"], "echo:sub/mlp");
        assert_eq!(client.models().unwrap(), status.models);
        // Each worker, the express one too, has opened each of them already, and none of them again.
        opened(&server, 3 * 2);
        client.infer(numbered(1, 100), "echo").unwrap();
        settled(&client);
        opened(&server, 3 * 2);
    });
}

/// The log tells of so many sessions; it is written by a thread of its own, a moment later.
fn opened(server: &Server, sessions: usize) {
    let mut seen = 0;
    eventually("the log tells of every session", || {
        seen = server.log().matches("session opened").count();
        seen >= sessions
    });
    assert_eq!(seen, sessions);
}

/// The model is described long before the last worker has connected, and cannot be opened there until then.
#[test]
fn a_start_with_a_preloaded_model_and_many_workers_becomes_ready() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        let flags = [
            "--preload",
            "echo",
            "--num-worker",
            "60",
            "--intra-op-threads",
            "1",
        ];
        let server = Server::start(dir, &flags);
        opened(&server, 60 + 1);
        server.client().infer(numbered(1, 100), "echo").unwrap();
    });
}

/// Both local sockets are bound when the ready line is there, not one of them a moment later.
#[test]
fn a_ready_server_has_both_of_its_local_sockets() {
    within(PATIENCE, || {
        for _ in 0..10 {
            let server = Server::start(models(&[]), &[]);
            let sockets = names(&server.dir.path().join("s"));
            let expected = ["in", "lock", "out"].map(|end| format!("mdm-{}.{end}", server.port));
            assert_eq!(sockets, expected.map(OsString::from));
        }
    });
}

/// A model that takes long to load is no reason not to know what the server was started with.
#[test]
fn the_settings_are_printed_before_models_are_preloaded() {
    within(PATIENCE, || {
        let dir = models(&[("bad.onnx", b"no model".to_vec())]);
        let mut command = start(&["--preload", "bad"]);
        let (code, said) = Started::new(command.current_dir(dir.path())).end();
        assert_eq!(code, Some(2));
        let (settings, error) = said.trim_end().rsplit_once('\n').expect("two lines");
        assert!(settings.contains("preload = [\"bad\"]\n"), "{said}");
        assert!(error.contains("bad.onnx"), "{said}");
    });
}

/// With rotation the log's name has the date in it.
#[test]
fn the_log_of_a_running_server_rotates() {
    within(PATIENCE, || {
        for (when, shape) in [
            ("daily", "log.txt.####-##-##"),
            ("hourly", "log.txt.####-##-##-##"),
        ] {
            let server = Server::start(models(&[]), &["--logger-rotation", when]);
            let here = server.dir.path();
            let is_log = |name: &OsString| name.to_string_lossy().starts_with("log.txt");
            let logs: Vec<OsString> = names(here).into_iter().filter(is_log).collect();
            assert!((1..=2).contains(&logs.len()), "{logs:?}"); // two at midnight
            for name in &logs {
                let digit = |c: char| if c.is_ascii_digit() { '#' } else { c };
                let name: String = name.to_string_lossy().chars().map(digit).collect();
                assert_eq!(name, shape);
            }
            eventually("the log says that it is ready", || {
                let text = |name| std::fs::read_to_string(here.join(name)).unwrap_or_default();
                logs.iter().any(|name| text(name).contains("ready port="))
            });
        }
    });
}

#[test]
fn a_model_that_cannot_be_preloaded_ends_the_start() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo()), ("bad.onnx", b"no model".to_vec())]);
        for (model, words) in [
            ("bad", &["--preload", "bad.onnx"]),
            ("gone", &["--preload", "gone.onnx"]),
            ("../x", &["--preload", "../x"]),
        ] {
            let mut command = start(&["--preload", "echo", "--preload", model]);
            does_not_start(dir.path(), &mut command, words);
        }
    });
}

#[test]
fn a_model_is_loaded_unloaded_and_found_anew_when_its_file_has_changed() {
    within(PATIENCE, || {
        let dir = models(&[("m.onnx", onnx::dynamic_unnamed())]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let client = server.client();
        assert!(client.models().unwrap().is_empty());
        refused(
            client.unload("m"),
            ErrorCode::NotFound,
            &["\"m\"", "not loaded"],
        );
        let info = client.load("m").unwrap();
        assert_eq!((info.name.as_str(), info.kind.as_str()), ("m", "batched"));
        assert_eq!(
            (info.inputs[0].name.as_str(), info.inputs[0].dtype.as_str()),
            ("x", "FP32")
        );
        assert_eq!(client.models().unwrap(), [info]);
        let rows = Tensor::from_vec("x", vec![200, 4], vec![2f32; 800]).unwrap();
        let first = |client: &Client| {
            let response = client.infer(rows.clone(), "m").unwrap();
            response.array::<f32>("y").unwrap()
        };
        assert!(first(&client).iter().all(|y| *y == -2.0));

        // Another model under the same name, with weights that workers share.
        let path = server.models().join("m.onnx");
        std::fs::write(&path, onnx::echo(DataType::Fp32, &[4])).unwrap();
        client.unload("m").unwrap();
        assert!(client.models().unwrap().is_empty());
        client.load("m").unwrap();
        assert!(first(&client).iter().all(|y| *y == 2.0));

        // Unloaded in the middle of its work: every request is answered, by the model or by its return.
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| (0..30).for_each(|_| drop(first(&client)))))
                .collect();
            for _ in 0..10 {
                // It may be unloaded already.
                let _ = client.unload("m");
            }
            for thread in threads {
                thread.join().expect("answers");
            }
        });

        // A file that is gone: what is loaded can still be unloaded, and then it is not found.
        std::fs::remove_file(&path).unwrap();
        client.unload("m").unwrap();
        refused(
            client.infer(rows.clone(), "m"),
            ErrorCode::NotFound,
            &["\"m\""],
        );
        refused(client.load("m"), ErrorCode::NotFound, &["\"m\""]);
        std::fs::write(&path, b"").unwrap();
        refused(
            client.load("m"),
            ErrorCode::FailedPrecondition,
            &["\"m\"", "empty"],
        );
        std::fs::write(&path, onnx::dynamic_unnamed()).unwrap();
        assert!(first(&client).iter().all(|y| *y == -2.0));
    });
}

#[test]
fn a_settings_file_starts_a_server() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        let file = dir.path().join("mdm.toml");
        let text = r#"
            port = 0
            port_out = 0
            num_worker = 3
            max_batch_size = 50
            max-chunk-ms = 0
            run_script_dir = "models"
            zeromq_sock_tmp_dir = "s"
            logger = "log.txt"
            preload = ["echo"]
        "#;
        std::fs::write(&file, text).unwrap();
        let started = Started::new(
            command("mdm-server-start")
                .current_dir(dir.path())
                .args(["--config", "mdm.toml", "--max-batch-size", "40"])
                .env("MDM_NUM_WORKER", "2"),
        );
        let [port, _, workers, pid] = started.numbers()[..] else {
            panic!("four numbers");
        };
        // The command line wins over the environment, the environment over the file.
        assert_eq!((workers, pid), (2, started.child.id()));
        let client = Client::connect(&format!("localhost:{port}")).unwrap();
        let settings = client.status().unwrap().settings;
        for (name, value) in [
            ("num_worker", "2"),
            ("max_batch_size", "40"),
            ("max_chunk_ms", "0"),
            ("preload", "echo"),
            ("port", &port.to_string()),
        ] {
            assert_eq!(settings[name], value, "{name}");
        }
        let response = client.infer(numbered(1, 100), "echo").unwrap();
        assert_eq!(response.stats().chunks, 4);
    });
}

/// One dash, underscores, `=` or a space, and the en dash of the old manual.
#[test]
fn the_older_spelling_starts_a_server() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        let dashes = |dash: &str| -> Vec<String> {
            [
                "num_worker=2",
                "device_map=-1",
                "port=0",
                "port_out=0",
                "run_script_dir=models",
            ]
            .into_iter()
            .chain(["zeromq_sock_tmp_dir=s", "gpu_memory_fraction=0.2"])
            .map(|flag| format!("{dash}{flag}"))
            .collect()
        };
        let spaced = [
            "-num_worker",
            "2",
            "-device_map",
            "-1",
            "-port_data",
            "0",
            "-port_result",
        ];
        let spaced = spaced.into_iter().chain(["0", "-run_script_dir", "models"]);
        let spellings: [Vec<String>; 4] = [
            dashes("-"),
            dashes("--"),
            dashes("\u{2013}"),
            spaced.map(str::to_owned).collect(),
        ];
        for flags in spellings {
            let mut command = command("mdm-server-start");
            let started = Started::new(command.current_dir(dir.path()).args(&flags));
            let numbers = started.numbers();
            assert_eq!(numbers[2], 2, "{flags:?}");
            let client = Client::connect(&format!("tcp://127.0.0.1:{}", numbers[0])).unwrap();
            let response = client.infer(numbered(1, 100), "echo").unwrap();
            assert_eq!(response.only().unwrap().data(), numbered(1, 100).data());
            let workers = settled(&client).workers;
            assert!(workers.iter().all(|w| w.device == "cpu"), "{flags:?}");
        }
    });
}

#[test]
fn what_is_not_there_ends_the_start_with_one_line() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        // No machine has so many.
        does_not_start(dir.path(), &mut start(&["--device-map", "77"]), &["77"]);
        does_not_start(dir.path(), &mut start(&["-device_map=-1,77"]), &["77"]);
        does_not_start(
            dir.path(),
            &mut start(&["--onnxruntime", "/nonexistent/libonnxruntime.so"]),
            &["/nonexistent/libonnxruntime.so"],
        );
        does_not_start(
            dir.path(),
            &mut start(&["--onnxruntime", "models"]),
            &["models", "libonnxruntime"],
        );
        let mut by_variable = start(&[]);
        by_variable.env("ORT_DYLIB_PATH", "/nonexistent/lib.so");
        does_not_start(dir.path(), &mut by_variable, &["/nonexistent/lib.so"]);
        let file = dir.path().join("models/echo.onnx").display().to_string();
        does_not_start(
            dir.path(),
            &mut start(&["--onnxruntime", &file]),
            &["echo.onnx"],
        );
    });
}

/// Two servers on one port: the second one says so, and the first one's sockets stay.
#[test]
fn a_port_in_use_leaves_the_other_server_alone() {
    within(PATIENCE, || {
        let server = Server::start(models(&[("echo.onnx", echo())]), &[]);
        let dir = models(&[]);
        let sockets = server.dir.path().join("s").display().to_string();
        let before = names(Path::new(&sockets));
        for (flag, port) in [("--port", server.port), ("--port-out", server.port_out)] {
            let port = port.to_string();
            let other = if flag == "--port" {
                "--port-out"
            } else {
                "--port"
            };
            let mut command = command("mdm-server-start");
            command.args([flag, &port, other, "0", "--run-script-dir=models"]);
            command.args(["--zeromq-sock-tmp-dir", &sockets]);
            does_not_start(dir.path(), &mut command, &[flag, &port, "in use"]);
        }
        assert_eq!(names(Path::new(&sockets)), before);
        let local = format!("ipc://{sockets}/mdm-{}.in", server.port);
        for client in [server.client(), Client::connect(&local).unwrap()] {
            client.infer(numbered(1, 100), "echo").unwrap();
        }
    });
}

/// A program that was copied somewhere without the library names every place where it looked.
#[test]
fn a_missing_library_is_told_with_the_places_that_were_searched() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        let copy = dir.path().join("mdm-server-start");
        std::fs::copy(env!("CARGO_BIN_EXE_mdm-server-start"), &copy).unwrap();
        let mut command = Command::new(&copy);
        command
            .args(["--port=0", "--port-out=0", "--run-script-dir=models"])
            .env("XDG_STATE_HOME", dir.path())
            .current_dir(dir.path());
        for (name, _) in std::env::vars_os() {
            let steers = [
                "ORT_DYLIB_PATH",
                "VIRTUAL_ENV",
                "CONDA_PREFIX",
                "LD_LIBRARY_PATH",
            ];
            let text = name.to_string_lossy();
            if text.starts_with("MDM_") || steers.contains(&&*text) {
                command.env_remove(name);
            }
        }
        let before = names(dir.path());
        let started = Started::new(&mut command);
        if !started.ready.is_empty() {
            // The system has a library of its own: then it is to be used.
            started.numbers();
            return;
        }
        let (code, said) = started.end();
        assert_eq!(code, Some(2), "{said}");
        let here = dir.path().display().to_string();
        for place in [
            &*here,
            ".onnxruntime",
            "libonnxruntime.so",
            "make onnxruntime",
        ] {
            assert!(said.contains(place), "{place:?} is not in: {said}");
        }
        assert_eq!(names(dir.path()), before);
    });
}

#[test]
fn a_signal_while_models_are_opened_ends_the_start_and_leaves_nothing() {
    within(PATIENCE, || {
        let dir = models(&[
            ("busy.onnx", busy_model()),
            // Its workers do not come back from warming up.
            (
                "slow.proxy",
                format!(
                    r#"{{"mdm":1,"onnx":"busy.onnx","options":{{"batch":{BUSY_ROWS}}},"warm_up":{{"x":[{FOR_EVER}]}}}}"#
                )
                .into_bytes(),
            ),
        ]);
        let before = names(dir.path());
        let mut child = start(&["--preload", "slow", "--logger", "models/log.txt"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        // The local sockets are bound, and the model is opened then.
        let sockets = dir.path().join("sock_tmp");
        eventually("it is bound", || {
            sockets.is_dir() && names(&sockets).len() == 3
        });
        let signal = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(signal.expect("kill runs").success());
        let status = wait(&mut child);
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("stderr");
        stderr.read_to_string(&mut said).expect("text");
        assert_eq!(status.code(), Some(0), "{said}");
        let mut ready = String::new();
        let mut stdout = child.stdout.take().expect("stdout");
        stdout.read_to_string(&mut ready).expect("text");
        assert_eq!(ready, "");
        assert_eq!(names(dir.path()), before);
    });
}

/// The released engines of 1.29 and later report to their makers, and keep a number for the machine.
#[test]
fn nothing_but_the_log_is_left_in_the_home_folder() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", echo())]);
        let home = dir.path().join("home");
        std::fs::create_dir(&home).expect("a folder");
        let mut command = start(&["--preload", "echo"]);
        // What tells the engine that it is under test would silence it as well.
        command
            .env_clear()
            .env("HOME", &home)
            .current_dir(dir.path());
        if let Some(library) = std::env::var_os("ORT_DYLIB_PATH") {
            command.env("ORT_DYLIB_PATH", library);
        }
        let started = Started::new(&mut command);
        assert_ne!(started.ready, "");
        let environment = std::fs::read(format!("/proc/{}/environ", started.child.id()));
        if let Ok(environment) = environment {
            let environment = String::from_utf8_lossy(&environment).into_owned();
            assert!(environment.contains("ORT_DISABLE_TELEMETRY=1"));
        }
        let port = started.numbers()[0];
        let client = Client::connect(&format!("tcp://localhost:{port}")).expect("a server");
        client.infer(numbered(1, 3), "echo").expect("rows");
        drop(client);
        let signal = Command::new("kill")
            .args(["-TERM", &started.child.id().to_string()])
            .status();
        assert!(signal.expect("kill runs").success());
        assert_eq!(started.end().0, Some(0));
        // The log is where it belongs, and nothing else.
        assert_eq!(names(&home), [".local"]);
        assert_eq!(names(&home.join(".local")), ["state"]);
        assert_eq!(names(&home.join(".local/state")), ["mdm"]);
        let log = format!("mdm-{port}.log");
        assert_eq!(names(&home.join(".local/state/mdm")), [&*log]);
    });
}

/// Two descriptors a session: what a shell allows by itself is soon used up.
#[test]
#[cfg(target_os = "linux")]
fn the_server_may_have_as_many_descriptors_as_the_system_allows() {
    within(PATIENCE, || {
        let server = Server::start(models(&[("echo.onnx", echo())]), &[]);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid()));
        let limits = limits.expect("limits");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<&str> = line.expect("a line").split_whitespace().collect();
        assert_eq!(words[3], words[4], "the soft limit is the hard one");
    });
}
