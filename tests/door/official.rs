//! Clients that people already have, unchanged: they are programs in Python, in `official/`, which check what they get.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use mdm::{DataType, Tensor};

use crate::common::{self, Server, onnx, within};
use crate::http::Http;
use crate::python::{missing, packages, python_with};
use crate::{LIMIT, echo_request};

fn server() -> Server {
    let folder = common::models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("half.onnx", onnx::echo(DataType::Fp16, &[2])),
        ("bfloat.onnx", onnx::echo(DataType::Bf16, &[2])),
        ("mlp.onnx", onnx::mlp()),
        ("upper.onnx", onnx::upper_case()),
        ("old/1/model.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("old/3/model.onnx", onnx::echo(DataType::Fp32, &[4])),
    ]);
    let doors = [
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--door-model-control",
    ];
    Server::start(folder, &[&doors[..], &["--num-worker", "2"]].concat())
}

/// Runs one of the programs against a port, with rows for the model "mlp" and what the ZeroMQ client got for them.
fn run(mut python: Command, program: &str, server: &Server, port: u16) {
    let values: Vec<f32> = (0..300 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let rows = Tensor::from_slice("x", vec![300, 64], &values).unwrap();
    let answer = server.client().infer(rows, "mlp").expect("a result");
    let result: Vec<f32> = answer.tensor("y").unwrap().to_vec().unwrap();
    let file = |name: &str, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = server.dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    python
        .arg(source(program))
        .arg(format!("127.0.0.1:{port}"))
        .args([file("rows", &values), file("result", &result)]);
    succeeds(python);
}

fn source(program: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/door/official");
    folder.join(program)
}

/// Runs a program that has to end well, and gives what it said.
fn succeeds(mut program: Command) -> String {
    let output = program.output().expect("it runs");
    let (said, why) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{said}");
    assert!(output.status.success(), "{program:?}: {said}\n{why}");
    said.into_owned()
}

/// Runs a program of a package's clients against a server, if the package is there.
fn check(package: &str, program: &'static str, port: fn(&Server) -> u16) {
    if let Some(python) = python_with(package) {
        within(LIMIT, move || {
            let server = server();
            run(python, program, &server, port(&server));
        });
    }
}

#[test]
fn tritonclient_over_http_gets_what_it_expects() {
    check("tritonclient", "tritonclient_http.py", |s| s.http_port);
}

#[test]
fn kserves_rest_client_gets_what_it_expects() {
    check("kserve", "kserve_rest.py", |s| s.http_port);
}

#[test]
fn tritonclient_over_grpc_gets_what_it_expects() {
    check("tritonclient", "tritonclient_grpc.py", |s| s.grpc_port);
}

/// The bug: its deadlines counted as cancelled, since its client resets the call as they come.
#[test]
fn tritonclients_deadlines_and_cancels_end_what_runs_and_are_counted_as_what_they_are() {
    let Some(mut python) = python_with("tritonclient") else {
        return;
    };
    within(LIMIT, move || {
        let slow = common::models(&[("slow.onnx", onnx::bilstm())]);
        let server = Server::start(slow, &["--grpc-port", "0", "--preload", "slow"]);
        python
            .arg(source("tritonclient_gives_up.py"))
            .arg(format!("127.0.0.1:{}", server.grpc_port));
        succeeds(python);
        let status = server.client().status().expect("a status");
        let count = |code: &str| status.totals.errors.get(code).copied().unwrap_or(0);
        assert_eq!((count("DEADLINE_EXCEEDED"), count("CANCELLED")), (2, 1));
        let run: u64 = status.workers.iter().map(|worker| worker.rows).sum();
        assert!(run < 60_000, "{run} of 120000 rows were run for nobody");
    });
}

#[test]
fn grpcs_own_client_of_reflection_finds_and_calls_everything() {
    let Some(mut python) = python_with("grpc_reflection") else {
        return;
    };
    within(LIMIT, move || {
        let server = server();
        python
            .arg(source("reflection.py"))
            .arg(format!("127.0.0.1:{}", server.grpc_port));
        let said = succeeds(python);
        assert!(said.contains("ok calls"), "{said}");
    });
}

#[test]
fn kserves_grpc_client_gets_what_it_expects() {
    check("kserve", "kserve_grpc.py", |s| s.grpc_port);
}

/// The program, with the libraries of its own where it finds them; `None`, which it says, if it cannot run.
fn perf_analyzer() -> Option<Command> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: there is a perf_analyzer for x86-64 only");
        return None;
    }
    let folder = packages().join("perf_analyzer");
    let program = folder.join("bin/perf_analyzer");
    if !program.is_file() {
        missing("perf_analyzer", "run `make clients`");
        return None;
    }
    let mut libraries = folder.join("nvidia/cuda_runtime/lib").into_os_string();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
        libraries.push(":");
        libraries.push(others);
    }
    let command = || {
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", &libraries);
        command
    };
    // Its help ends with an error, and a loader that finds a library missing says which.
    let tried = command().arg("--help").output().expect("it runs");
    let said = String::from_utf8_lossy(&tried.stderr);
    if let Some(library) = said.lines().find(|line| line.contains("shared libraries")) {
        let how = format!("{library}; on Debian and Ubuntu: sudo apt-get install libb64-0d");
        missing("perf_analyzer", &how);
        return None;
    }
    Some(command())
}

/// Has perf_analyzer send 300 requests of 4 rows, two at a time, and reads what it found.
fn analyzed(protocol: &'static str, port: fn(&Server) -> u16) {
    const REQUESTS: u64 = 300;
    const ROWS: u64 = 4;
    let Some(mut perf_analyzer) = perf_analyzer() else {
        return;
    };
    within(LIMIT, move || {
        let server = server();
        let table = server.dir.path().join("table.csv");
        perf_analyzer
            .args(["-m", "mlp", "-i", protocol, "-u"])
            .arg(format!("127.0.0.1:{}", port(&server)))
            .args(["-b", &ROWS.to_string(), "--concurrency-range", "2"])
            .args(["--request-count", &REQUESTS.to_string()])
            .arg("-f")
            .arg(&table);
        let said = succeeds(perf_analyzer);
        // A failed request would have ended it; the server counted no other ones.
        let totals = server.client().status().expect("a status").totals;
        let errors: u64 = totals.errors.values().sum();
        assert!(totals.requests >= REQUESTS && errors == 0, "{totals:?}");
        assert_eq!(totals.rows, totals.requests * ROWS, "{said}");
        let told = |words: &str| {
            let line = said
                .lines()
                .find_map(|line| line.trim().strip_prefix(words));
            let number = line.and_then(|number| number.trim().parse::<u64>().ok());
            number.unwrap_or_else(|| panic!("no {words:?} in {said}"))
        };
        assert!(told("Request count:") >= REQUESTS, "{said}");
        // What our statistics told it; the last results may be counted after it asked.
        assert!(told("Inference count:") >= REQUESTS * ROWS / 2, "{said}");
        assert!(said.contains("compute infer"), "{said}");
        let text = std::fs::read_to_string(&table).expect("the table");
        let mut lines = text.lines().map(|line| line.split(','));
        let names = lines.next().expect("names");
        let line: HashMap<&str, &str> = names.zip(lines.next().expect("a line")).collect();
        let rate: f64 = line["Inferences/Second"].parse().expect("a number");
        assert!(rate > 0.0, "{text}");
    });
}

#[test]
fn perf_analyzer_measures_over_http() {
    analyzed("http", |s| s.http_port);
}

#[test]
fn perf_analyzer_measures_over_grpc() {
    analyzed("grpc", |s| s.grpc_port);
}

/// Rows that are single values: a model of which perf_analyzer would make no request, were it said to take batches.
#[test]
fn perf_analyzer_drives_a_model_whose_rows_are_single_values() {
    let Some(mut perf_analyzer) = perf_analyzer() else {
        return;
    };
    within(LIMIT, move || {
        let flat = onnx::echo(DataType::Fp32, &[]);
        let folder = common::models(&[("flat.onnx", flat)]);
        let server = Server::start(folder, &["--http-port", "0"]);
        perf_analyzer
            .args(["-m", "flat", "-i", "http", "-u"])
            .arg(format!("127.0.0.1:{}", server.http_port))
            .args(["--shape", "x:3", "--request-count", "50"]);
        succeeds(perf_analyzer);
        let totals = server.client().status().expect("a status").totals;
        let errors: u64 = totals.errors.values().sum();
        assert!(totals.requests >= 50 && errors == 0, "{totals:?}");
        assert_eq!(totals.rows, totals.requests * 3);
    });
}

/// The page of a server that works on requests of every kind, as Prometheus' own library for Python reads it.
#[test]
fn prometheus_client_reads_the_metrics_page_of_a_busy_server() {
    let Some(mut python) = python_with("prometheus_client") else {
        return;
    };
    within(LIMIT, move || {
        let server = server();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut http = Http::to(&server);
                let client = server.client();
                let row = Tensor::from_slice("x", vec![1, 4], &[0f32; 4]).unwrap();
                while !done.load(Ordering::Relaxed) {
                    let answer = http.post("/v2/models/echo/infer", &echo_request(3));
                    assert_eq!(answer.status, 200);
                    let answer = http.post("/v2/models/none/infer", &echo_request(1));
                    assert_eq!(answer.status, 404);
                    client.infer(row.clone(), "echo").expect("a result");
                    client
                        .infer(row.clone(), "mlp")
                        .expect_err("too few numbers");
                }
            });
            python
                .arg(source("metrics.py"))
                .arg(format!("http://127.0.0.1:{}/metrics", server.http_port));
            let said = succeeds(python);
            done.store(true, Ordering::Relaxed);
            load.join().expect("the load");
            assert!(said.contains("ok refused"), "{said}");
        });
    });
}
