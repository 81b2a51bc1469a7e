//! The doors: the real server, spoken to by a client of HTTP written here, byte by byte.
#![cfg(feature = "gateway")]

mod announced;
mod bad_rows;
mod bench;
mod beside;
#[path = "../common/built.rs"]
mod built;
mod cancel;
mod coding;
#[path = "../common/mod.rs"]
mod common;
mod counted;
mod curl;
mod events;
mod flood;
mod grpc;
mod grpc_life;
mod grpc_odd;
mod grpc_stream;
mod http;
mod http2;
mod infer;
mod kinds;
mod models;
mod odd;
mod official;
mod parameters;
mod places;
#[path = "../common/python.rs"]
mod python;
mod refused;
mod slow;
mod starting;
mod stop;

use std::time::Duration;

use mdm::DataType;
use serde_json::{Value, json};

use crate::common::{Server, onnx};

/// What any of these tests may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A server with a door for HTTP.
fn server(flags: &[&str]) -> Server {
    server_of(&[&["--http-port", "0"], flags].concat())
}

/// A server with the doors that its flags open, over models that echo, add and take their time.
fn server_of(flags: &[&str]) -> Server {
    let many =
        br#"{"mdm":1,"methods":{"predict":{"onnx":"echo.onnx"},"again":{"onnx":"echo.onnx"}}}"#;
    let folder = common::models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("wide.onnx", onnx::echo(DataType::Fp32, &[4096])),
        ("half.onnx", onnx::echo(DataType::Fp16, &[2])),
        ("mlp.onnx", onnx::mlp()),
        ("two.onnx", onnx::two_inputs_two_outputs()),
        ("upper.onnx", onnx::upper_case()),
        ("whole.onnx", onnx::no_batch()),
        ("slow.onnx", onnx::bilstm()),
        ("many.proxy", many.to_vec()),
        ("echo.own.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("old/1/model.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("old/3/model.onnx", onnx::echo(DataType::Fp32, &[4])),
    ]);
    Server::start(folder, flags)
}

/// A request for the model "echo": rows of four numbers.
fn echo_request(rows: usize) -> Value {
    let data: Vec<usize> = (0..rows * 4).collect();
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": data}]})
}

/// Rows for the model "slow", which takes about a quarter of a millisecond for each: the JSON, and the bytes behind it.
fn slow_request(rows: usize) -> (Value, Vec<u8>) {
    let bytes = rows * 64 * 8;
    let input = json!({
        "name": "ids", "datatype": "INT64", "shape": [rows, 64],
        "parameters": {"binary_data_size": bytes},
    });
    (json!({"inputs": [input]}), vec![0; bytes])
}
