//! What clients announce and what is to be read first: neither costs memory ahead of bytes, nor time beyond a deadline.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::built;
use crate::common::{Server, onnx, within};
use crate::grpc::protocol::infer_parameter::ParameterChoice;
use crate::grpc::protocol::{ModelInferRequest, ModelInferResponse};
use crate::grpc::{Client, input, parameter};
use crate::http::Http;
use crate::{LIMIT, server};

#[test]
fn a_length_that_is_announced_reserves_no_memory_ahead_of_its_bytes() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut honest = Http::to(&server);
        honest.get("/v2/health/ready");
        let before = server.virtual_bytes();
        let mut announcing: Vec<Http> = (0..32).map(|_| Http::to(&server)).collect();
        for http in &mut announcing {
            let head = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n\
                        content-length: 62914560\r\nexpect: 100-continue\r\n\r\n";
            assert!(http.send(head.as_bytes()));
        }
        for http in &mut announcing {
            // It waits for the body.
            assert_eq!(http.head().expect("an answer").status, 100);
            assert!(http.send(&[b' '; 1000]));
        }
        for _ in 0..10 {
            assert_eq!(honest.get("/v2/health/ready").status, 200);
        }
        let grown = server.virtual_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes more");
    });
}

/// A folder whose model "stuck" is not read before a named pipe is opened and closed; "echo" is.
pub fn stuck_folder() -> (tempfile::TempDir, PathBuf) {
    let plugin = std::fs::read(built::plugin("echo_plugin")).unwrap();
    let echo = onnx::echo(mdm::DataType::Fp32, &[4]);
    let folder = crate::common::models(&[("libecho.so", plugin), ("echo.onnx", echo)]);
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let proxy =
        json!({"mdm": 1, "plugin": "libecho.so", "entry": "faulty", "state": {"wait_for": pipe}});
    let file = folder.path().join("models/stuck.proxy");
    std::fs::write(file, proxy.to_string()).unwrap();
    (folder, pipe)
}

/// A server over it.
fn stuck() -> (Server, PathBuf) {
    let (folder, pipe) = stuck_folder();
    let server = Server::start(folder, &["--http-port", "0", "--grpc-port", "0"]);
    (server, pipe)
}

/// Lets the model be read.
pub fn release(pipe: &std::path::Path) {
    let mut pipe = std::fs::File::options().write(true).open(pipe).unwrap();
    pipe.write_all(b"go").unwrap();
}

#[test]
fn a_request_whose_model_is_still_read_for_its_documents_ends_at_its_deadline() {
    within(LIMIT, || {
        let (server, pipe) = stuck();
        let mut http = Http::to(&server);
        let input = json!({"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a"]});
        let request = json!({"inputs": [input], "parameters": {"timeout": 50_000}});
        let answer = http.post("/v2/models/stuck/infer", &request);
        assert_eq!(answer.status, 504, "{answer:?}");
        release(&pipe);
    });
}

#[test]
fn over_grpc_a_request_whose_model_is_still_read_for_its_documents_ends_at_its_deadline() {
    within(LIMIT, || {
        let (server, pipe) = stuck();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut client = Client::to(&server).await;
            let timeout = parameter(ParameterChoice::Int64Param(50_000));
            let request = ModelInferRequest {
                model_name: "stuck".to_owned(),
                parameters: [("timeout".to_owned(), timeout)].into(),
                inputs: vec![input("x", "BYTES", &[1])],
                raw_input_contents: vec![(&b"\x01\0\0\0a"[..]).into()],
                ..ModelInferRequest::default()
            };
            let answer: Result<ModelInferResponse, tonic::Status> =
                client.call("ModelInfer", request).await;
            assert_eq!(answer.unwrap_err().code(), tonic::Code::DeadlineExceeded);
        });
        release(&pipe);
    });
}
