//! What the server does about signals, and about what it inherits: ignored signals, full pipes, few descriptors.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use mdm::DataType;
use mdm::client::Client;

use crate::behind::FOR_EVER;
use crate::common::{PATIENCE, eventually, models, onnx, wait, within};
use crate::stop::{queued, refuses_new_requests, server};
use crate::{numbered, refused};

fn folder() -> tempfile::TempDir {
    models(&[("echo.onnx", onnx::echo(DataType::Int64, &[2]))])
}

/// A server that a shell starts in its own place, after `before`.
fn started_by_a_shell(dir: &Path, before: &str, workers: u32) -> Child {
    let program = env!("CARGO_BIN_EXE_mdm-server-start");
    Command::new("sh")
        .arg("-c")
        .arg(format!("{before}; exec \"$0\" \"$@\""))
        .arg(program)
        .args(["--run-script-dir=models", "--port=0", "--port-out=0"])
        .args(["--num-worker", &workers.to_string()])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell")
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
}

/// A client of the server in that folder, whose port the name of its local socket tells.
fn connected(dir: &Path) -> Client {
    let mut client = None;
    eventually("it serves", || {
        let sockets = std::fs::read_dir(dir.join("sock_tmp"))
            .into_iter()
            .flatten();
        let names = sockets.map(|entry| entry.expect("a name").file_name());
        client = names
            .filter_map(|name| {
                let port = name.to_str()?.strip_prefix("mdm-")?.strip_suffix(".in")?;
                Client::connect(&format!("tcp://localhost:{port}")).ok()
            })
            .next();
        client.is_some()
    });
    client.expect("a client")
}

#[test]
fn a_hangup_drains_and_signals_without_a_meaning_are_passed_over() {
    within(PATIENCE, || {
        let mut server = server(&[]);
        let client = server.client();
        for name in ["USR1", "USR2", "XFSZ"] {
            server.signal(name);
        }
        client.infer(numbered(1, 1), "echo").expect("it serves on");
        let running = client.submit(&[FOR_EVER], "busy").expect("sent");
        queued(&client, 1);
        server.signal("HUP");
        refuses_new_requests(&client);
        assert!(server.is_running(), "what was accepted is answered first");
        client.cancel(&running);
        refused(client.fetch(running), mdm::ErrorCode::Cancelled, &[]);
        assert_eq!(server.wait().code(), Some(0));
    });
}

/// As under `nohup`.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_that_was_ignored_before_the_start_stays_ignored() {
    within(PATIENCE, || {
        let dir = folder();
        let mut child = started_by_a_shell(dir.path(), "trap '' HUP", 1);
        let client = connected(dir.path());
        signal(&child, "HUP");
        for _ in 0..20 {
            client.infer(numbered(1, 1), "echo").expect("it serves on");
        }
        signal(&child, "TERM");
        assert_eq!(wait(&mut child).code(), Some(0));
    });
}

/// As under a program that starts it with a pipe and never reads that.
#[test]
fn a_full_standard_output_holds_up_neither_the_start_nor_the_end() {
    within(PATIENCE, || {
        let dir = folder();
        // A pipe holds so much.
        let mut child = started_by_a_shell(dir.path(), "head -c 65536 /dev/zero", 1);
        let client = connected(dir.path());
        client.infer(numbered(1, 1), "echo").expect("it serves");
        signal(&child, "TERM");
        assert_eq!(wait(&mut child).code(), Some(0));
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_without_descriptors_for_all_its_workers_says_so_and_does_not_start() {
    within(PATIENCE, || {
        let dir = folder();
        let child = started_by_a_shell(dir.path(), "ulimit -n 256", 160);
        let output = child.wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("Too many open files"), "{said}");
        assert_eq!(output.stdout, b"");
    });
}
