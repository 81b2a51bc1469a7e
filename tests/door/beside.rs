//! Answers that take their time to be written are written beside the door's thread, so that others are served meanwhile.

use mdm::DataType;
use serde_json::{Value, json};

use crate::LIMIT;
use crate::common::{Server, models, onnx, within};
use crate::events::{EVENTS, events};
use crate::grpc::protocol::infer_parameter::ParameterChoice;
use crate::grpc::protocol::{InferTensorContents, ModelInferRequest};
use crate::grpc::{Client, input, parameter};
use crate::http::Http;

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
