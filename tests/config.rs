//! What `mdm-server-start` does when its settings are wrong, and what it says when they are right. The settings
//! themselves, in every spelling and from every source, are tried in `src/config/tests.rs`.
#![cfg(feature = "server")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use mdm::config::{Args, Asked, Config};

/// Far more than any run here takes: the end of a test that would hang.
const LIMIT: Duration = Duration::from_secs(30);

fn command(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdm-server-start"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("MDM_")) {
            command.env_remove(name);
        }
    }
    command
        .args(args)
        .env("XDG_STATE_HOME", dir.join("state"))
        .envs(variables.iter().copied())
        .env_remove("RUST_LOG")
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end of a process, and makes one if it does not come.
fn ended(child: &mut Child, args: &[&str]) -> ExitStatus {
    let begun = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if begun.elapsed() > LIMIT => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{args:?} did not end within {LIMIT:?}");
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Runs the command, which must end by itself.
fn start(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut child = command(dir, args, variables).spawn().unwrap();
    let status = ended(&mut child, args);
    // What these runs print fits into a pipe, so it can be read at the end.
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut stderr)
        .unwrap();
    Output {
        status,
        stdout,
        stderr,
    }
}

/// The command cannot start: exit code 2, nothing on standard output, one line on standard error with each of
/// `words` in it, and nothing new in its folder.
fn refused(dir: &Path, args: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let files = |dir: &Path| {
        let mut names: Vec<OsString> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = files(dir);
    let output = start(dir, args, variables);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "{args:?} {variables:?}: {line}"
    );
    assert!(output.stdout.is_empty(), "{args:?} {variables:?}");
    assert!(
        line.starts_with("mdm-server-start: error: "),
        "{args:?} {variables:?}: {line}"
    );
    assert_eq!(
        line.matches('\n').count(),
        1,
        "{args:?} {variables:?}: {line}"
    );
    for word in words {
        assert!(
            line.contains(word),
            "{args:?} {variables:?}: {word:?} is not in: {line}"
        );
    }
    assert_eq!(
        files(dir),
        before,
        "{args:?} {variables:?} left something behind"
    );
}

#[test]
fn a_bad_value_is_one_clear_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a_file"), "").unwrap();
    let long = "x".repeat(100);
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--port", "x"],
            &["--port", "'x'", "a whole number from 0 to 65535"],
        ),
        (&["--num-worker=-3"], &["--num-worker", "'-3'", "1 to 160"]),
        (&["--port", "70000"], &["--port", "70000", "65535"]),
        (&["-port=-1"], &["--port", "-1"]),
        (&["--port"], &["--port"]),
        (&["--port=1", "--port-in=2"], &["--port"]),
        (&["--port", "5556"], &["--port", "--port-out", "5556"]),
        (
            &["--port=7", "--port-out=7"],
            &["--port", "--port-out", "7"],
        ),
        (&["--port-out", ""], &["--port-out"]),
        (
            &["--host", "example.org"],
            &["--host", "example.org", "IPv4"],
        ),
        (&["--host", "0.0.0.0"], &["--host", "0.0.0.0", "--insecure"]),
        (&["--host", "::"], &["--host", "--insecure"]),
        (&["--num-worker", "0"], &["--num-worker", "0", "1 to 160"]),
        (&["--num-worker", "161"], &["--num-worker", "161"]),
        (&["--device-map", ""], &["--device-map"]),
        (
            &["--device-map", "a"],
            &["--device-map", "\"a\"", "-1", "0,1"],
        ),
        (&["--device-map", "-2"], &["--device-map", "\"-2\""]),
        (&["--device-map", "0,,1"], &["--device-map"]),
        (&["--max-batch-size", "0"], &["--max-batch-size", "0"]),
        (
            &["--priority-batch-size=2000"],
            &["--priority-batch-size", "2000", "--max-batch-size", "1024"],
        ),
        (
            &["--gpu-memory-fraction", "1.5"],
            &["--gpu-memory-fraction", "1.5", "0 to 1"],
        ),
        (
            &["--gpu-memory-fraction", "nan"],
            &["--gpu-memory-fraction", "nan"],
        ),
        (&["--intra-op-threads", "0"], &["--intra-op-threads", "0"]),
        (
            &["--run-script-dir", "no_such"],
            &["--run-script-dir", "no_such", "does not exist"],
        ),
        (
            &["--run-script-dir", "a_file"],
            &["--run-script-dir", "a_file", "not a folder"],
        ),
        (
            &["--allow-path", "no_such"],
            &["--allow-path", "no_such", "does not exist"],
        ),
        (
            &["--zeromq-sock-tmp-dir", "a_file"],
            &["--zeromq-sock-tmp-dir", "a_file", "not a folder"],
        ),
        (
            &["--zeromq-sock-tmp-dir", "a_file/x"],
            &["--zeromq-sock-tmp-dir", "a_file/x", "cannot be made"],
        ),
        (
            &["--zeromq-sock-tmp-dir", &long],
            &["shorter --zeromq-sock-tmp-dir"],
        ),
        (&["--logger", "."], &["--logger", "folder"]),
        (&["--logger", "no_such/log.txt"], &["--logger", "no_such"]),
        (
            &["--logger-rotation", "weekly"],
            &["--logger-rotation", "weekly", "never, hourly, daily"],
        ),
        (
            &["--max-queue-bytes", "64M"],
            &["--max-queue-bytes", "64M", "MiB"],
        ),
        (&["--max-request-bytes", "0"], &["--max-request-bytes", "0"]),
        (
            &["--max-request-bytes", "4GiB"],
            &["--max-request-bytes", "4GiB", "--max-queue-bytes", "2GiB"],
        ),
        (&["--max-client-bytes", "-1"], &["--max-client-bytes", "-1"]),
        (
            &["--default-timeout-ms", "1.5"],
            &["--default-timeout-ms", "1.5"],
        ),
        (&["--verbose=perhaps"], &["--verbose", "perhaps"]),
        (&["--preload", ""], &["--preload"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["models"], &["models"]),
        (
            &["--config", "no_such.toml"],
            &["--config", "no_such.toml", "cannot be read"],
        ),
    ];
    for (args, words) in cases {
        refused(dir.path(), args, &[], words);
    }
    // A folder in which nobody can make a file.
    #[cfg(target_os = "linux")]
    refused(
        dir.path(),
        &["--logger=/proc/l.txt"],
        &[],
        &["--logger", "/proc/l.txt", "cannot be written"],
    );
    #[cfg(target_os = "linux")]
    refused(
        dir.path(),
        &["--port=0", "--port-out=0", "--zeromq-sock-tmp-dir=/proc"],
        &[],
        &["--zeromq-sock-tmp-dir \"/proc\"", ".lock", "may write to"],
    );
}

#[test]
fn a_bad_value_from_the_environment_or_a_file_names_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    refused(d, &[], &[("MDM_PORT", "x")], &["MDM_PORT", "'x'"]);
    refused(
        d,
        &[],
        &[("MDM_DEVICE_MAP", "gpu")],
        &["MDM_DEVICE_MAP", "gpu"],
    );
    // Overruled, and still wrong.
    refused(d, &["--port=0"], &[("MDM_PORT", "x")], &["MDM_PORT"]);
    refused(d, &[], &[("MDM_CONFIG", "gone.toml")], &["gone.toml"]);
    refused(d, &[], &[("MDM_LOG", "mdm=loud")], &["MDM_LOG", "mdm=loud"]);
    for (file, words) in [
        ("prot = 1", &["prot", "unknown key"][..]),
        ("config = 'other.toml'", &["config", "unknown key"]),
        ("help = true", &["help", "unknown key"]),
        ("port = 'x'", &["port", "'x'"]),
        (
            "port = 5555\nport_in = 5556",
            &["port and port_in", "same setting"],
        ),
        (
            "num_worker = 1\nnum-worker = 1",
            &["num_worker", "num-worker", "same setting"],
        ),
        ("num_worker = [1, 2]", &["num_worker", "one value"]),
        ("num_worker = 1.5", &["num_worker", "1.5"]),
        ("[server]\nport = 1", &["server", "unknown key"]),
        ("[port]\nx = 1", &["port", "table"]),
        ("port = 1\nnum_worker = = 2", &["line 2"]),
        ("preload = [['a']]", &["preload", "array"]),
    ] {
        std::fs::write(d.join("s.toml"), file).unwrap();
        let words = [words, &["s.toml"]].concat();
        refused(d, &["--config=s.toml"], &[], &words);
    }
}

/// The port is taken: the log and the folder that were made for this start go again.
#[test]
fn a_port_in_use_is_one_clear_line_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for rotation in ["never", "daily"] {
        refused(
            dir.path(),
            &[
                "--port",
                &port,
                "--port-out=0",
                "--logger-rotation",
                rotation,
                "--zeromq-sock-tmp-dir=a/b",
            ],
            &[],
            &[&port],
        );
    }
    // A log that was there stays.
    std::fs::write(dir.path().join("old.txt"), "old\n").unwrap();
    refused(
        dir.path(),
        &["--port", &port, "--port-out=0", "--logger=old.txt"],
        &[],
        &[&port],
    );
    let log = std::fs::read_to_string(dir.path().join("old.txt")).unwrap();
    assert!(
        log.starts_with("old\n") && log.contains("could not start"),
        "{log}"
    );
}

#[test]
fn help_and_version_go_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    for flag in ["--help", "-h", "-help"] {
        let output = start(dir.path(), &[flag], &[]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{flag}");
        for arg in Args::command().get_arguments() {
            for name in arg.get_long_and_visible_aliases().unwrap() {
                assert!(
                    help.contains(&format!("--{name}")),
                    "{flag}: {name} is not in the help"
                );
            }
        }
    }
    for flag in ["--version", "-V"] {
        let output = start(dir.path(), &[flag], &[]);
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("mdm-server-start {}\n", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(output.status.code(), Some(0), "{flag}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Standard output is one line, the settings in force are on standard error, and a signal ends the server with 0.
#[cfg(unix)]
#[test]
fn a_server_says_that_it_is_ready_and_a_signal_ends_it() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let args = [
            "-port=0",
            "-port_out=0",
            "-num_worker=2",
            "-zeromq_sock_tmp_dir=s_t",
            "-max_request_bytes=1MiB",
        ];
        let mut child = command(dir.path(), &args, &[]).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in stdout.lines() {
                sender.send(line.unwrap()).unwrap();
            }
        });
        // A server that ends without the line closes the channel; its standard error then says why.
        let ready = lines.recv_timeout(LIMIT).unwrap_or_default();
        let pid = child.id().to_string();
        Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap();
        let status = ended(&mut child, &args);
        reader.join().unwrap();
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();

        assert_eq!(status.code(), Some(0), "SIG{signal}: {stderr}");
        assert_eq!(lines.iter().count(), 0, "more on standard output");
        let words: Vec<(&str, &str)> = ready
            .trim_end()
            .strip_prefix("ready ")
            .unwrap_or_else(|| panic!("not a ready line: {ready:?}; {stderr}"))
            .split(' ')
            .map(|word| word.split_once('=').unwrap())
            .collect();
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["port", "port_out", "workers", "pid"]);
        assert_eq!((words[2].1, words[3].1), ("2", pid.as_str()));
        let bound = words[0].1;
        for name in [
            "num_worker = 2",
            "max_request_bytes = \"1MiB\"",
            "zeromq_sock_tmp_dir = \"s_t\"",
            "insecure = false",
            "# max_model_bytes is not set",
        ] {
            assert!(
                stderr.lines().any(|line| line == name),
                "{name} is not in: {stderr}"
            );
        }
        // The port that was picked, not the 0 that asked for it.
        for (name, port) in &words[..2] {
            assert!(
                stderr
                    .lines()
                    .any(|line| line == format!("{name} = {port}")),
                "{name} is not in: {stderr}"
            );
        }
        // The library that is used, although none was named; and all of it reads back.
        let is_setting = |line: &&str| {
            let is_other = line.starts_with("mdm-server-start: ") || line.starts_with("# the log");
            !is_other
        };
        let printed: Vec<&str> = stderr.lines().filter(is_setting).collect();
        let library = printed
            .iter()
            .find_map(|line| line.strip_prefix("onnxruntime = "));
        let library = library.expect("a library").trim_matches('"');
        assert!(Path::new(library).is_file(), "{library}");
        let file = dir.path().join("printed.toml");
        std::fs::write(&file, printed.join("\n") + "\n").unwrap();
        let words = ["p".into(), "--config".into(), file.into_os_string()];
        let Ok(Asked::Run(read)) = Config::from_command_line(words, |_| None) else {
            panic!("not read: {stderr}");
        };
        assert_eq!(read.to_toml().lines().collect::<Vec<_>>(), printed);
        // The log has the port in its name, and what was said before there was one.
        let file = dir.path().join(format!("state/mdm/mdm-{bound}.log"));
        let log = std::fs::read_to_string(&file).unwrap();
        let mut from = 0;
        for word in ["starting version=", "ready port=", "stopped"] {
            from += log[from..]
                .find(word)
                .unwrap_or_else(|| panic!("{word}: {log}"));
        }
        let named = format!("# the log is {}", file.display());
        assert!(stderr.lines().any(|l| l == named), "{named}: {stderr}");
        assert_eq!(
            std::fs::read_dir(dir.path().join("s_t")).unwrap().count(),
            0
        );
    }
}

/// The settings that are printed have the ports of doors that were picked, and none where no door was asked for.
#[cfg(all(unix, feature = "gateway"))]
#[test]
fn the_settings_that_are_printed_have_the_ports_of_the_doors_that_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["-port=0", "-port_out=0", "-http_port=0", "-metrics_port=0"];
    let mut child = command(dir.path(), &args, &[]).spawn().unwrap();
    let mut ready = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut ready).unwrap();
    Command::new("kill")
        .args(["-s", "TERM", &child.id().to_string()])
        .status()
        .unwrap();
    let status = ended(&mut child, &args);
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    for name in ["http_port", "metrics_port"] {
        let word = ready.split_whitespace().find_map(|word| {
            let (key, port) = word.split_once('=')?;
            (key == name).then_some(port)
        });
        let port = word.unwrap_or_else(|| panic!("{name} is not in {ready:?}"));
        let line = format!("{name} = {port}");
        assert!(
            stderr.lines().any(|l| l == line),
            "{line} is not in: {stderr}"
        );
    }
    assert!(
        stderr.lines().any(|l| l == "# grpc_port is not set"),
        "{stderr}"
    );
}

/// A server in a container, or of a user without a home: the log is where its standard error goes.
#[cfg(target_os = "linux")]
#[test]
fn a_default_log_that_cannot_be_written_is_one_warning_and_goes_to_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a_file"), "").unwrap();
    let a_file = dir.path().join("a_file").display().to_string();
    for (state, place) in [
        ("/proc/mdm", "/proc/mdm/mdm/mdm-"),
        (&*a_file, "a_file/mdm/mdm-"),
    ] {
        let args = ["-port=0", "-port_out=0"];
        let mut child = command(dir.path(), &args, &[("XDG_STATE_HOME", state)])
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        Command::new("kill")
            .args(["-s", "TERM", &child.id().to_string()])
            .status()
            .unwrap();
        let status = ended(&mut child, &args);
        let mut stderr = String::new();
        let mut said = child.stderr.take().unwrap();
        said.read_to_string(&mut stderr).unwrap();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(ready.starts_with("ready "), "{stderr}");
        let warnings: Vec<&str> = stderr.lines().filter(|l| l.contains("WARN")).collect();
        let [warning] = warnings[..] else {
            panic!("one warning: {stderr}");
        };
        for word in [place, "cannot be written", "--logger FILE"] {
            assert!(warning.contains(word), "{word:?} is not in: {warning}");
        }
        for (line, count) in [("starting version=", 1), ("ready port=", 2), ("stopped", 1)] {
            assert_eq!(stderr.matches(line).count(), count, "{line:?}: {stderr}");
        }
        assert!(!stderr.contains("# the log is"), "{stderr}");
    }
}

/// The folder was read-only, and the log was in it.
#[test]
fn two_servers_in_one_folder_have_a_log_each() {
    let dir = tempfile::tempdir().unwrap();
    let args = |sockets: &'static str| ["-port=0", "-port_out=0", sockets];
    let servers = ["-zeromq_sock_tmp_dir=a", "-zeromq_sock_tmp_dir=b"].map(|sockets| {
        let mut child = command(dir.path(), &args(sockets), &[]).spawn().unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        (child, ready, stdout)
    });
    for (mut child, ready, _stdout) in servers {
        Command::new("kill")
            .args(["-s", "TERM", &child.id().to_string()])
            .status()
            .unwrap();
        ended(&mut child, &["two servers"]);
        let port = ready.split([' ', '=']).nth(2).expect("a port");
        let file = dir.path().join(format!("state/mdm/mdm-{port}.log"));
        let log = std::fs::read_to_string(file).unwrap();
        assert_eq!(log.matches("starting version=").count(), 1, "{log}");
        assert!(log.contains(ready.trim_end()), "{log}");
    }
    let files = std::fs::read_dir(dir.path().join("state/mdm")).unwrap();
    assert_eq!(files.count(), 2);
    assert!(!dir.path().join("logger.txt").exists());
}
