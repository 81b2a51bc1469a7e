//! What takes its time is read and written beside the door's thread, and does not hold others up there either.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use mdm::DataType;
use serde_json::{Value, json};

use crate::common::{Server, eventually, models, onnx, within};
use crate::events::{EVENTS, events};
use crate::grpc::protocol::infer_parameter::ParameterChoice;
use crate::grpc::protocol::{InferTensorContents, ModelInferRequest};
use crate::grpc::{Client, input, parameter};
use crate::http::Http;
use crate::{LIMIT, echo_request};

/// Numbers of a row, and rows: as text and as lists they are few bytes, which are read at once, and half a megabyte in
/// memory.
const WIDTH: usize = 4096;
const ROWS: usize = 16;

fn server() -> Server {
    let model = onnx::echo(DataType::Int64, &[WIDTH]);
    let flags = ["--http-port", "0", "--grpc-port", "0", "--num-worker", "1"];
    Server::start(models(&[("numbers.onnx", model)]), &flags)
}

/// Whether a thread beside the doors' own has ever been needed, of late.
fn is_used(server: &Server) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
    let names =
        tasks.map(|task| std::fs::read_to_string(task.expect("a thread").path().join("comm")));
    names.flatten().any(|name| name.trim() == "door-pool")
}

fn numbers(rows: usize) -> Value {
    let data = vec![1; rows * WIDTH];
    let shape = [rows, WIDTH];
    json!({"inputs": [{"name": "x", "datatype": "INT64", "shape": shape, "data": data}]})
}

fn listed(rows: usize, in_parts: bool) -> ModelInferRequest {
    let mut request = ModelInferRequest {
        model_name: "numbers".to_owned(),
        inputs: vec![input("x", "INT64", &[rows as i64, WIDTH as i64])],
        ..ModelInferRequest::default()
    };
    request.inputs[0].contents = Some(InferTensorContents {
        int64_contents: vec![1; rows * WIDTH],
        ..InferTensorContents::default()
    });
    for (name, value) in [
        ("binary_data_output", false),
        ("triton_enable_empty_final_response", in_parts),
    ] {
        let value = parameter(ParameterChoice::BoolParam(value));
        request.parameters.insert(name.to_owned(), value);
    }
    request
}

#[test]
fn large_events_are_written_beside_the_door() {
    within(LIMIT, || {
        let server = server();
        let mut http = Http::to(&server);
        for (rows, is_large) in [(1, false), (ROWS, true)] {
            let body = numbers(rows).to_string();
            assert!(body.len() < 256 * 1024, "reading it takes its time too");
            let path = "/v2/models/numbers/infer";
            let answer = http.request("POST", path, &EVENTS, body.as_bytes());
            let mut events = events(&answer.body);
            assert_eq!(events.pop().expect("an end").0, "end");
            let numbers = events.iter().map(|(name, part)| {
                assert_eq!(name, "part");
                part["outputs"][0]["data"].as_array().expect("a list").len()
            });
            assert_eq!(numbers.sum::<usize>(), rows * WIDTH);
            assert_eq!(is_used(&server), is_large);
        }
    });
}

#[test]
fn large_answers_of_grpc_that_are_copied_are_written_beside_the_door() {
    within(LIMIT, || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            for in_stream in [false, true] {
                for in_parts in [false, in_stream] {
                    let server = server();
                    let mut client = Client::to(&server).await;
                    for (rows, is_large) in [(1, false), (ROWS, true)] {
                        let mut got = 0;
                        if in_stream {
                            let (say, mut answers) = client.stream().await;
                            say.send(listed(rows, in_parts)).expect("it is sent");
                            drop(say);
                            while let Some(answer) = answers.message().await.expect("no error") {
                                let answer = answer.infer_response.expect("an answer");
                                for output in answer.outputs {
                                    got += output.contents.expect("a list").int64_contents.len();
                                }
                            }
                        } else {
                            let answer =
                                client.infer(listed(rows, false)).await.expect("an answer");
                            let contents = answer.outputs[0].contents.clone().expect("a list");
                            got = contents.int64_contents.len();
                        }
                        assert_eq!(got, rows * WIDTH);
                        assert_eq!(is_used(&server), is_large);
                    }
                }
            }
        });
    });
}

/// JSON that takes seconds to be read, and then is none: more than is read beside what others send.
fn endless() -> Vec<u8> {
    const ROWS: usize = 5 << 20;
    let head = format!(
        r#"{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [{ROWS}, 4], "data": ["#
    );
    [head.as_bytes(), &b"1,".repeat(4 * ROWS - 1), b"x]}]}"].concat()
}

#[test]
fn large_json_holds_up_neither_look_ups_nor_small_packed_nor_large_binary_requests() {
    within(LIMIT, || {
        let flags = [
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--preload",
            "echo",
            "--preload",
            "wide",
        ];
        let folder = models(&[
            ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
            ("wide.onnx", onnx::echo(DataType::Fp32, &[4096])),
            ("other.onnx", onnx::echo(DataType::Fp32, &[4])),
        ]);
        let server = Server::start(folder, &flags);
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        let request = echo_request(500).to_string();
        packed.write_all(request.as_bytes()).expect("it is packed");
        let packed = packed.finish().expect("it is packed");
        assert!(packed.len() > 256, "it is inflated at once");
        let rows = 20; // 320 KiB
        let input = json!({
            "name": "x", "datatype": "FP32", "shape": [rows, 4096],
            "parameters": {"binary_data_size": rows * 4096 * 4},
        });
        let json = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
        let binary = vec![0; rows * 4096 * 4];
        let body = endless();
        let is_answered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut http = Http::to(&server);
                    let answer = http.request("POST", "/v2/models/echo/infer", &[], &body);
                    is_answered.store(true, Ordering::SeqCst);
                    assert_eq!(answer.status, 400, "{answer:?}");
                });
            }
            eventually("it is being read", || is_used(&server));
            std::thread::sleep(Duration::from_millis(300)); // the others have come too
            let mut honest = Http::to(&server);
            for _ in 0..3 {
                let infer = "/v2/models/echo/infer";
                let gzip = [("content-encoding", "gzip")];
                let answer = honest.request("POST", infer, &gzip, &packed);
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(honest.get("/v2/models/echo").status, 200);
                assert_eq!(honest.get("/v2/models/other/ready").status, 200);
                let index = honest.request("POST", "/v2/repository/index", &[], b"{}");
                assert_eq!(index.status, 200, "{index:?}");
                let answer = honest.post_binary("/v2/models/wide/infer", &json, &binary);
                assert_eq!(answer.status, 200);
                let stalled = "answered only once large JSON was read";
                assert!(!is_answered.load(Ordering::SeqCst), "{stalled}");
            }
        });
    });
}
