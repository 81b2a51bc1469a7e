//! A server that stops loses nothing that it has accepted, says so, and leaves no file behind.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mdm::client::{Call, Client};
use mdm::{DataType, ErrorCode, Tensor};

use crate::behind::FOR_EVER;
use crate::common::{PATIENCE, Server, command, eventually, models, onnx, wait, within};
use crate::{numbered, refused};

pub(crate) fn server(flags: &[&str]) -> Server {
    let dir = models(&[
        ("busy.onnx", crate::models::busy()),
        ("busy.proxy", crate::models::busy_rows("busy")),
        ("bilstm.onnx", onnx::bilstm()),
        ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
    ]);
    let mut all = vec!["--intra-op-threads", "1"];
    all.extend(flags);
    Server::start(dir, &all)
}

fn sockets(server: &Server) -> Vec<String> {
    let entries = std::fs::read_dir(server.dir.path().join("s")).expect("the folder");
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("a name").file_name();
    entries
        .map(|e| name(e).to_string_lossy().into_owned())
        .collect()
}

fn ids(rows: usize) -> Tensor {
    Tensor::from_vec("ids", vec![rows, 64], vec![1i64; rows * 64]).unwrap()
}

/// The server takes nothing any more.
pub(crate) fn refuses_new_requests(client: &Client) {
    eventually("new requests are refused", || {
        // One that is taken before the drain begins may wait behind what runs for ever.
        let call = Call::model("echo").timeout(Duration::from_millis(200));
        match client.infer(numbered(1, 1), call) {
            Ok(_) => false,
            Err(error) if error.code() == ErrorCode::DeadlineExceeded => false,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
                assert!(error.message().contains("shutting down"), "{error}");
                true
            }
        }
    });
}

pub(crate) fn queued(client: &Client, requests: u64) {
    eventually("it is queued", || {
        client.status().unwrap().queue.requests == requests
    });
}

#[test]
fn a_drain_answers_all_that_was_accepted() {
    within(PATIENCE, || {
        let mut server = server(&["--num-worker", "2"]);
        let client = server.client();
        assert!(
            !sockets(&server).is_empty(),
            "or the check below would mean nothing"
        );
        // Keeps the server from ending before the test has seen that it refuses; taken back in the end.
        let last = client.submit(ids(60_000), "bilstm").unwrap();
        let threads: Vec<_> = (0..4i64)
            .map(|number| {
                let client = server.client();
                std::thread::spawn(move || {
                    let response = client
                        .infer(ids(700), "bilstm")
                        .expect("accepted, so answered");
                    assert_eq!(response.tensor("logits").unwrap().shape(), [700, 64, 3]);
                    number
                })
            })
            .collect();
        eventually("all are accepted", || {
            let status = client.status().unwrap();
            status.queue.requests + status.totals.requests == 5
        });
        server.signal("TERM");
        refuses_new_requests(&client);
        // Who comes now is told why.
        refuses_new_requests(&server.client());
        assert!(server.is_running());
        assert!(client.status().unwrap().queue.requests > 0);
        for (number, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().expect("an answer"), number as i64);
        }
        client.cancel(&last);
        refused(client.fetch(last), ErrorCode::Cancelled, &[]);
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(sockets(&server), [""; 0]);
        let log = server.log();
        assert!(log.contains("draining") && log.contains("stopped"), "{log}");
        // The port is closed.
        refused(
            client.infer(numbered(1, 1), "echo"),
            ErrorCode::Unavailable,
            &["no server"],
        );
    });
}

/// A model that was loaded then would be read and opened for a server that is about to end.
#[test]
fn a_drain_refuses_to_load_and_unload_models() {
    within(PATIENCE, || {
        let server = server(&[]);
        let client = server.client();
        client.load("echo").expect("a load while it serves");
        let running = client.submit(&[FOR_EVER], "busy").unwrap();
        queued(&client, 1);
        server.signal("TERM");
        refuses_new_requests(&client);
        let (code, words) = (ErrorCode::Unavailable, ["shutting down"]);
        refused(client.load("bilstm"), code, &words);
        refused(client.load("echo"), code, &words);
        refused(client.unload("echo"), code, &words);
        let models = client.status().unwrap().models;
        let names: Vec<_> = models.iter().map(|model| &*model.name).collect();
        assert!(
            names.contains(&"echo") && !names.contains(&"bilstm"),
            "{names:?}"
        );
        client.cancel(&running);
    });
}

#[test]
fn a_second_signal_stops_at_once() {
    within(PATIENCE, || {
        let mut server = server(&[]);
        let client = Arc::new(server.client());
        let running = client.submit(&[FOR_EVER], "busy").unwrap();
        queued(&client, 1);
        server.signal("TERM");
        refuses_new_requests(&client);
        assert!(server.is_running());
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(128 + 15));
        assert_eq!(sockets(&server), [""; 0]);
        refused(client.fetch(running), ErrorCode::Unavailable, &["lost"]);
    });
}

fn terminate(port: u16, flags: &[&str]) -> Output {
    command("mdm-server-terminate")
        .args(["--port", &port.to_string()])
        .args(flags)
        .output()
        .expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn terminate_waits_for_the_servers_last_word() {
    within(PATIENCE, || {
        let mut server = server(&["--num-worker", "2"]);
        let client = server.client();
        let ticket = client.submit(ids(1500), "bilstm").unwrap();
        eventually("it is accepted", || {
            let status = client.status().unwrap();
            status.queue.requests + status.totals.requests == 1
        });
        let output = terminate(server.port, &["--timeout", "50000"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).starts_with("stopped"), "{output:?}");
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(sockets(&server), [""; 0]);
        assert_eq!(client.fetch(ticket).unwrap().rows(), Some(1500));
    });
}

#[test]
fn terminate_says_how_much_is_left_and_now_ends_it() {
    within(PATIENCE, || {
        let mut server = server(&[]);
        let client = server.client();
        let running = client.submit(&[FOR_EVER], "busy").unwrap();
        queued(&client, 1);
        let small = client.submit(numbered(1, 1), "echo").unwrap();
        let bulk = client.submit(numbered(1, 5000), "echo").unwrap();
        queued(&client, 3);
        let output = terminate(server.port, &["--timeout", "600"]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let line = text(&output.stderr);
        assert!(
            line.lines().last().unwrap().contains("3 requests left"),
            "{line}"
        );
        assert!(server.is_running());
        refuses_new_requests(&client);

        let output = terminate(
            server.port,
            &["--now", "--ip", "127.0.0.1", "--timeout", "50000"],
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for ticket in [running, small, bulk] {
            refused(
                client.fetch(ticket),
                ErrorCode::Unavailable,
                &["stop at once"],
            );
        }
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(sockets(&server), [""; 0]);
    });
}

#[test]
fn terminate_with_no_server_fails_and_does_not_hang() {
    within(PATIENCE, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Something accepts there, and never says a word.
        let output = terminate(port, &["--ip=127.0.0.1", "--timeout=700"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            text(&output.stderr).contains("not an MDM server"),
            "{output:?}"
        );
        drop(listener);
        for flags in [&["--ip=127.0.0.1"][..], &["-timeout=2000"]] {
            let output = terminate(port, flags);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let line = text(&output.stderr);
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(
                line.contains("no server") && line.contains(&port.to_string()),
                "{line}"
            );
        }
    });
}

/// Its client has had its answer; the engine cannot be stopped.
#[test]
fn a_drain_does_not_wait_for_a_run_that_nobody_wants_any_more() {
    within(PATIENCE, || {
        let mut server = server(&[]);
        let client = server.client();
        let call = Call::model("busy").timeout(Duration::from_millis(100));
        let ended = client.infer(&[FOR_EVER], call);
        refused(ended, ErrorCode::DeadlineExceeded, &["deadline"]);
        assert_eq!(client.status().unwrap().workers[0].state, "busy");
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(sockets(&server), [""; 0]);
    });
}

/// As under a program that starts it with a pipe and never reads that.
#[test]
fn a_full_standard_error_holds_up_nobody() {
    within(PATIENCE, || {
        let dir = models(&[("fails.onnx", onnx::failing_at_run())]);
        let mut child = command("mdm-server-start")
            .args(["--port=0", "--port-out=0", "--run-script-dir=models"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
        stdout.read_line(&mut ready).expect("text");
        let port = ready
            .split(' ')
            .find_map(|word| word.strip_prefix("port="))
            .expect("a port");
        let client = Client::connect(&format!("tcp://localhost:{port}")).expect("a server");
        // The engine complains of each.
        for _ in 0..1000 {
            assert!(client.infer(&[10i64], "fails").is_err());
        }
        let signal = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(signal.expect("kill runs").success());
        assert_eq!(wait(&mut child).code(), Some(0));
    });
}
