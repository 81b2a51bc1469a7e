//! Clients that people already have, unchanged: they are programs in Python, in `official/`, which check what they get.

use std::path::Path;
use std::process::Command;

use mdm::{DataType, Tensor};

use crate::LIMIT;
use crate::common::{self, Server, onnx, within};
use crate::python::python_with;

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
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/door/official");
    let output = python
        .arg(source.join(program))
        .arg(format!("127.0.0.1:{port}"))
        .args([file("rows", &values), file("result", &result)])
        .output()
        .expect("python3 runs");
    let (said, why) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{program}: {said}");
    assert!(output.status.success(), "{said}\n{why}");
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

#[test]
fn kserves_grpc_client_gets_what_it_expects() {
    check("kserve", "kserve_grpc.py", |s| s.grpc_port);
}
