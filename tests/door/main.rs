//! The doors: the real server, spoken to by a client of HTTP written here, byte by byte.
#![cfg(feature = "gateway")]

#[path = "../common/mod.rs"]
mod common;
mod http;
mod infer;
mod places;

use std::time::Duration;

use mdm::DataType;

use crate::common::{Server, models, onnx};

/// What any of these tests may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A server with a door for HTTP, over models that echo, add and take their time.
fn server(flags: &[&str]) -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("mlp.onnx", onnx::mlp()),
        ("two.onnx", onnx::two_inputs_two_outputs()),
        ("upper.onnx", onnx::upper_case()),
        ("whole.onnx", onnx::no_batch()),
        ("slow.onnx", onnx::bilstm()),
    ]);
    Server::start(folder, &[&["--http-port", "0"], flags].concat())
}
