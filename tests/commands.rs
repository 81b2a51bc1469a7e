//! The commands that talk to a server: what they print, their exit codes, both spellings.

mod common;
#[path = "client/fake.rs"]
#[allow(dead_code)] // the client's tests use the rest
mod fake;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::command;
use fake::{Act, Fake, Manners, echo, echoes, model};
use mdm::message::{FailedRows, OnBadRow, Stats};
use mdm::wire::server::{Outputs, ServerMessage};

fn run(name: &str, flags: &[&str]) -> (i32, String, String) {
    let start = Instant::now();
    let Output {
        status,
        stdout,
        stderr,
    } = command(name).args(flags).output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{name} hangs");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A port that nobody listens on.
fn free_port() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port().to_string()
}

#[test]
fn terminate_says_how_it_ended() {
    let stop = |left, last_word, flags: &[&str]| {
        let manners = Manners {
            stop: (left, last_word),
            ..Manners::default()
        };
        let server = Fake::with(manners, echoes);
        let port = server.port.to_string();
        run(
            "mdm-server-terminate",
            &[&["--port", &port], flags].concat(),
        )
    };
    let (code, out, _) = stop(0, true, &[]);
    assert_eq!((code, out.starts_with("stopped")), (0, true), "{out}");
    let (code, out, _) = stop(2, false, &["-timeout=5000"]);
    assert_eq!(
        (code, out.contains("without confirming")),
        (0, true),
        "{out}"
    );
    let (code, _, err) = stop(7, true, &["--timeout", "2000"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("3 requests left to answer"), "{err}");

    let (code, _, err) = run("mdm-server-terminate", &["-port_in", &free_port()]);
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
    assert!(err.contains("no server"), "{err}");
    assert_eq!(run("mdm-server-terminate", &[]).0, 2);
    assert_eq!(run("mdm-server-terminate", &["--port", "0"]).0, 2);
}

#[test]
fn terminate_of_a_silent_listener_ends_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let start = Instant::now();
    let flags = ["--port", &port, "--timeout", "600"];
    let (code, _, err) = run("mdm-server-terminate", &flags);
    assert_eq!(code, 1);
    assert!(err.contains("not an MDM server"), "{err}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn status_is_a_page_or_json() {
    let server = Fake::start(echoes);
    let port = server.port.to_string();
    let (code, page, _) = run("mdm-server-status", &["\u{2013}port", &port]);
    assert_eq!(code, 0);
    assert!(page.contains("queue    3 requests"), "{page}");
    let (code, json, _) = run("mdm-server-status", &["--port-data", &port, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["queue"]["requests"]), (0, &3.into()));
    let output = command("mdm-server-status").env("MDM_PORT", &port).output();
    assert!(output.unwrap().status.success());
    let (code, _, err) = run("mdm-server-status", &["--port", &free_port()]);
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
    assert_eq!(run("mdm-server-status", &["--watch", "0"]).0, 2);
}

/// It looks again and again, and goes on when the server is gone: it may come back.
#[test]
fn status_watches_until_it_is_ended() {
    let server = Fake::start(echoes);
    let mut child = command("mdm-server-status")
        .args(["-port", &server.port.to_string(), "-json", "-watch=0.05"])
        .args(["--timeout", "500"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line = lines.next().unwrap().unwrap();
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["queue"]["requests"], 3);
    }
    drop(server);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = said.next().unwrap().unwrap();
    assert!(line.starts_with("mdm-server-status: "), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "it has ended");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// On a terminal, which Python makes, there is a bar while rows run; it is gone at the end.
#[cfg(unix)]
#[test]
fn infer_shows_its_progress_on_a_terminal() {
    let server = Fake::start(in_parts);
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.txt");
    std::fs::write(&rows, "x\n".repeat(1234)).unwrap();
    let infer = command("mdm-infer");
    let spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let output = std::process::Command::new("python3")
        .args(["-c", spawn])
        .arg(infer.get_program())
        .args(["-port", &server.port.to_string(), "-input"])
        .arg(&rows)
        .args(["-params", "{\"model_proxy_path\": \"x\"}"])
        // Where the tests run there may be none, or one that shows no progress.
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .expect("make test needs python3");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("/1,234 rows, "), "{shown}");
    assert!(shown.contains("1,234/1,234 rows, "), "{shown}");
    assert!(
        shown.contains(" k rows/s, ") && shown.contains(" s left"),
        "{shown}"
    );
    let mut last = shown.trim_end().rsplit('\n');
    assert!(
        last.next().unwrap().contains(" for the server, "),
        "{shown}"
    );
    assert!(last.next().unwrap().contains("1234 rows in "), "{shown}");
}

/// Answers in parts of two rows.
fn in_parts(id: mdm::RequestId, request: mdm::Request) -> Vec<Act> {
    let rows = request.inputs.rows().unwrap();
    let part = |offset: usize| request.inputs.slice_rows(offset, 2.min(rows - offset));
    let outputs = Outputs {
        parts: (0..rows).step_by(2).map(part).collect(),
        batched: true,
        failed: Vec::new(),
    };
    let stats = Stats {
        chunks: outputs.parts.len() as u64,
        ..Stats::default()
    };
    vec![Act::Out(id, ServerMessage::Result(outputs, stats))]
}

#[test]
fn infer_gives_each_kind_of_file_back_as_an_echo_does() {
    let manners = Manners {
        models: vec![model("whole", "whole")],
        ..Manners::default()
    };
    let server = Fake::with(manners, |id, request| {
        if request.model.as_deref() == Some("whole") {
            // As the server does: no parts of what has no rows.
            let ServerMessage::Result(mut outputs, stats) = echo(request) else {
                panic!("an echo is a result");
            };
            outputs.batched = false;
            return vec![Act::Out(id, ServerMessage::Result(outputs, stats))];
        }
        in_parts(id, request)
    });
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = server.port.to_string();
    let infer = |input: &str, output: &str| {
        let (input, output) = (path(input), path(output));
        // By parameters the fake finds a model that takes anything.
        let params = r#"{"model_proxy_path": "x.proxy"}"#;
        let flags = [
            "-port", &port, "-input", &input, "-output", &output, "-params", params,
        ];
        let (code, out, err) = run("mdm-infer", &flags);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("chunks"), "{out}");
    };
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();

    std::fs::write(path("rows.txt"), "one\ntwo\r\n\nfour\nfünf").unwrap();
    infer("rows.txt", "txt.jsonl");
    assert_eq!(
        read("txt.jsonl"),
        "{\"\":\"one\"}\n{\"\":\"two\"}\n{\"\":\"\"}\n{\"\":\"four\"}\n{\"\":\"fünf\"}\n"
    );
    std::fs::write(path("rows.jsonl"), "{\"a\": [1, 2.5]}\n\nnull\n\"x\"\n").unwrap();
    infer("rows.jsonl", "jsonl.jsonl");
    assert_eq!(
        read("jsonl.jsonl"),
        "{\"\":{\"a\":[1,2.5]}}\n{\"\":null}\n{\"\":\"x\"}\n"
    );
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/images.npy");
    std::fs::copy(images, path("images.npy")).unwrap();
    infer("images.npy", "out.npy");
    infer("out.npy", "out.npz");
    infer("out.npz", "again.npy");
    let bytes = |name: &str| std::fs::read(path(name)).unwrap();
    assert_eq!(bytes("again.npy"), bytes("out.npy"));
    // Headers may differ in their spaces; the rows are the same.
    let rows = 1797 * 64 * 4;
    let tail = |bytes: Vec<u8>| bytes[bytes.len() - rows..].to_vec();
    assert_eq!(tail(bytes("out.npy")), tail(bytes("images.npy")));

    let (txt, out) = (path("rows.txt"), path("whole.jsonl"));
    let flags = [
        "-port", &port, "-model", "whole", "-input", &txt, "-output", &out,
    ];
    let (code, said, err) = run("mdm-infer", &flags);
    assert_eq!(code, 0, "{err}");
    assert!(said.contains("1 request in"), "{said}");
    assert_eq!(
        read("whole.jsonl"),
        "{\"\":[\"one\",\"two\",\"\",\"four\",\"fünf\"]}\n"
    );
}

#[test]
fn infer_says_in_one_line_what_is_wrong() {
    let server = Fake::start(in_parts);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("bad.npy"), "no array").unwrap();
    std::fs::write(path("bad.jsonl"), "1\n{").unwrap();
    std::fs::write(path("empty.txt"), "").unwrap();
    std::fs::write(path("good.txt"), "x\n").unwrap();
    let port = server.port.to_string();
    let wrong = |flags: &[&str], why: &str| {
        let (code, _, err) = run("mdm-infer", &[&["--port", &port], flags].concat());
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(why), "{err}");
    };
    let not_found = "mdm-infer: NOT_FOUND: ";
    wrong(&["--input", &path("none.npy")], not_found);
    wrong(&["--input", &path("none.npy")], "none.npy: No such file");
    let invalid = format!("mdm-infer: INVALID_ARGUMENT: {}: ", path("bad.npy"));
    wrong(&["--input", &path("bad.npy")], &invalid);
    wrong(&["--input", &path("bad.npy")], "not an .npy file");
    wrong(&["--input", &path("bad.jsonl")], "line 2: not JSON");
    wrong(&["--input", &path("empty.txt")], "no rows");
    let names = ["rows.csv", "rows.parquet"];
    for name in names {
        wrong(&["--input", &path(name)], "neither read nor written");
        wrong(&["--input", &path(name)], "pandas.read_");
    }
    wrong(&["--input", &path("rows")], "--input-format");
    wrong(&["--input", "-"], "--input-format npy");
    let good = path("good.txt");
    wrong(&["--input", &good, "--params", "[1]"], "JSON object");
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(80), "]".repeat(80));
    let flags = ["--input", &good, "--params", &deep];
    wrong(&flags, "--params: the parameters are nested too deep");
    let nowhere = path("none/out.npz");
    wrong(&["--input", &good, "--output", &nowhere], "does not exist");
    wrong(&["--input", &good, "--output", "-"], "--output-format npy");
    wrong(&["--input", &good, "--output", &path("a.csv")], "neither");
    let out = path("out.npy");
    // The fake describes no model of that name.
    let flags = ["--model", "m", "--input", &good, "--output", &out];
    wrong(&flags, "mdm-infer: NOT_FOUND: no model \"m\"");
    // A server that does not say what the model is, which may take a while to load.
    let flags = ["--model=silent", "--input", &good, "--timeout-ms=300"];
    wrong(&flags, "no answer in time");
    let nobody = format!("localhost:{}", free_port());
    wrong(&["--input", &good, "--server", &nobody], "no server");
    assert_eq!(run("mdm-infer", &[]).0, 2);
}

/// The second request fails: its rows are named as the file numbers them, and nothing is left of the output.
#[test]
fn infer_names_the_rows_of_the_file_and_leaves_no_half_of_an_output() {
    let server = Fake::start(|id, request| {
        let rows = request.inputs.rows().unwrap();
        // Where nothing is known of a model's results, the first request has 256 rows.
        if rows == 256 {
            return echoes(id, request);
        }
        let error = mdm::Error::invalid("row 3: is bad");
        vec![Act::Out(id, ServerMessage::Error(error))]
    });
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("rows.txt"), "x\n".repeat(1000)).unwrap();
    // A blank line is no row.
    std::fs::write(path("rows.jsonl"), "\n1".repeat(1000)).unwrap();
    let port = server.port.to_string();
    let infer = |input: &str, output: &str| {
        let (input, output) = (path(input), path(output));
        let flags = [
            "--port",
            &port,
            "--params={\"model_proxy_path\":\"x\"}",
            "--input",
            &input,
            "--output",
            &output,
        ];
        let (code, _, err) = run("mdm-infer", &flags);
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        err
    };
    for (input, output, place) in [
        ("rows.txt", "out.jsonl", "line 260: is bad"),
        ("rows.txt", "out.npz", "line 260: is bad"),
        ("rows.jsonl", "out.jsonl", "line 261: is bad"),
    ] {
        let err = infer(input, output);
        let said = format!("INVALID_ARGUMENT: {}: {place}", path(input));
        assert!(err.contains(&said), "{err}");
    }
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["rows.jsonl", "rows.txt"]);
}

/// Standard output has the results alone, so that another program can read them.
#[test]
fn infer_reads_standard_input_and_writes_standard_output() {
    let server = Fake::start(in_parts);
    let port = server.port.to_string();
    let infer = |format: &str, to: &str, rows: &[u8]| {
        let mut child = command("mdm-infer")
            .args(["--port", &port, "--params={\"model_proxy_path\":\"x\"}"])
            .args(["--input", "-", "--input-format", format])
            .args(["--output=-", "--output-format", to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(rows).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains("wrote standard output: "), "{said}");
        assert!(said.contains(" rows/s, "), "{said}");
        output.stdout
    };
    let lines = infer("txt", "jsonl", "one\nzwei\n".repeat(500).as_bytes());
    assert!(lines.starts_with(b"{\"\":\"one\"}\n{\"\":\"zwei\"}\n"));
    assert_eq!(lines.iter().filter(|b| **b == b'\n').count(), 1000);
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/images.npy");
    let images = std::fs::read(images).unwrap();
    let rows = 1797 * 64 * 4;
    for to in ["npy", "npz"] {
        let out = infer("npy", to, &images);
        let data = &images[images.len() - rows..];
        assert!(out.windows(rows).any(|window| window == data), "{to}");
        let again = infer(to, "jsonl", &out);
        assert_eq!(again.iter().filter(|b| **b == b'\n').count(), 1797);
    }
    // How many rows there are is not known before the last.
    let array = infer("jsonl", "jsonl", "[1,2]\n".repeat(300).as_bytes());
    assert_eq!(array.len(), "{\"\":[1,2]}\n".len() * 300);
    let array = infer("txt", "npy", "one\n".repeat(300).as_bytes());
    let read = npyz::NpyFile::new(&array[..]).unwrap();
    assert_eq!(read.shape(), [300]);
}

/// Who reads the output may have read enough; that is not an error.
#[test]
fn infer_ends_well_when_its_reader_has_read_enough() {
    let server = Fake::start(echoes);
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.txt");
    std::fs::write(&rows, "x\n".repeat(100_000)).unwrap();
    let mut child = command("mdm-infer")
        .args(["--port", &server.port.to_string()])
        .args(["--params={\"model_proxy_path\":\"x\"}", "--input"])
        .arg(&rows)
        .args(["--output=-", "--output-format=jsonl"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    drop(reader);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}

/// Rows that fail are blank in the output and listed as the file numbers them, whatever requests it was cut into.
#[test]
fn infer_lists_rows_that_failed_and_writes_the_others() {
    let mut requests = 0;
    let server = Fake::start(move |id, request| {
        assert_eq!(request.on_bad_row, OnBadRow::Report);
        requests += 1;
        let rows = request.inputs.rows().unwrap();
        let error = mdm::Error::invalid("all of them").at_rows(0..rows);
        let ServerMessage::Result(mut outputs, stats) = echo(request) else {
            panic!("an echo is a result");
        };
        // Of the first and the third request no row has a result.
        if requests % 2 == 1 {
            return vec![Act::Out(id, ServerMessage::Error(error))];
        }
        outputs.failed = vec![FailedRows {
            first: 3,
            count: 2,
            code: mdm::ErrorCode::Internal,
            message: "no date".to_owned(),
        }];
        vec![Act::Out(id, ServerMessage::Result(outputs, stats))]
    });
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let texts: Vec<String> = (0..600).map(|row| format!("{row}\n")).collect();
    std::fs::write(path("rows.txt"), texts.concat()).unwrap();
    let port = server.port.to_string();
    let flags = [
        "--port",
        &port,
        "--params={\"model_proxy_path\":\"x\"}",
        "--on-bad-row=report",
        "--input",
        &path("rows.txt"),
        "--output",
        &path("out.jsonl"),
    ];
    let (code, out, err) = run("mdm-infer", &flags);
    assert_eq!(code, 4, "{err}");
    // Until something is known of the model's results, requests have 256 rows.
    let listed: Vec<&str> = err.lines().collect();
    let expected = [
        "mdm-infer: lines 1 to 256: INVALID_ARGUMENT: all of them",
        "mdm-infer: lines 260 to 261: INTERNAL: no date",
        "mdm-infer: lines 513 to 600: INVALID_ARGUMENT: all of them",
    ];
    assert_eq!(listed, expected, "{err}");
    assert!(out.contains("346 rows failed\n600 rows in "), "{out}");
    let lines = std::fs::read_to_string(path("out.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 600);
    assert!(lines[..256].iter().all(|line| *line == "{\"\":\"\"}"));
    assert_eq!(lines[256], "{\"\":\"256\"}");

    // If no row has a result, nothing is written.
    std::fs::write(path("rows.txt"), texts[..200].concat()).unwrap();
    std::fs::remove_file(path("out.jsonl")).unwrap();
    let server = Fake::start(|id, request| {
        let rows = request.inputs.rows().unwrap();
        let error = mdm::Error::invalid("all of them").at_rows(0..rows);
        vec![Act::Out(id, ServerMessage::Error(error))]
    });
    let port = server.port.to_string();
    let flags = [&["--port", &port], &flags[2..]].concat();
    let (code, _, err) = run("mdm-infer", &flags);
    assert_eq!(code, 1, "{err}");
    let last = err.lines().last().unwrap();
    assert!(
        last.ends_with("rows.txt: lines 1 to 200: all of them"),
        "{err}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Of a command that was copied to where no library is: each place that was searched has a line of its own.
#[test]
fn a_missing_library_is_told_with_one_place_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("mdm-model");
    std::fs::copy(env!("CARGO_BIN_EXE_mdm-model"), &copy).unwrap();
    std::fs::write(dir.path().join("m.onnx"), "").unwrap();
    let mut command = std::process::Command::new(&copy);
    for name in [
        "ORT_DYLIB_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(name);
    }
    let output = command
        .args(["check", "m.onnx"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    if !said.contains("was not found") {
        return; // the system has a library of its own
    }
    let here = dir.path().canonicalize().unwrap();
    for place in ["", "/.onnxruntime"] {
        let line = format!("  {}{place}: not there", here.display());
        assert!(
            said.lines().any(|l| l == line),
            "{line:?} is no line of: {said}"
        );
    }
    let first = said.lines().next().unwrap_or_default();
    assert!(first.ends_with("Looked in:"), "{said}");
}
