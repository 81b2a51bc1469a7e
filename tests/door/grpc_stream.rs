//! `ModelStreamInfer`: many requests on one call.

use crate::cancel::{cancelled, requests};
use crate::grpc::protocol::infer_parameter::ParameterChoice;
use crate::grpc::protocol::{InferParameter, ModelInferRequest, ModelInferResponse};
use crate::grpc::{Client, eventually, input, mlp, parameter, with_server};
use crate::infer::{bytes, expected, rows};

fn with_id(mut request: ModelInferRequest, id: &str) -> ModelInferRequest {
    request.id = id.to_owned();
    request
}

fn in_parts(mut request: ModelInferRequest) -> ModelInferRequest {
    let yes = parameter(ParameterChoice::BoolParam(true));
    let name = "triton_enable_empty_final_response";
    request.parameters.insert(name.to_owned(), yes);
    request
}

/// Rows for the model "slow", which takes about a quarter of a millisecond for each.
pub fn slow(rows: usize) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "slow".to_owned(),
        inputs: vec![input("ids", "INT64", &[rows as i64, 64])],
        raw_input_contents: vec![vec![0; rows * 64 * 8].into()],
        ..ModelInferRequest::default()
    }
}

fn flag(answer: &ModelInferResponse, name: &str) -> Option<bool> {
    match answer.parameters.get(name)? {
        InferParameter {
            parameter_choice: Some(ParameterChoice::BoolParam(value)),
        } => Some(*value),
        other => panic!("{name}: {other:?}"),
    }
}

fn number(answer: &ModelInferResponse, name: &str) -> i64 {
    match &answer.parameters[name].parameter_choice {
        Some(ParameterChoice::Int64Param(value)) => *value,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_stream_answers_in_order_and_outlives_the_errors_of_its_requests() {
    with_server(&["--num-worker", "2"], async |server| {
        let mut client = Client::to(server).await;
        let (say, mut answers) = client.stream().await;
        let values = rows(700);
        let mut wrong = mlp(&values);
        wrong.inputs[0].datatype = "FLOAT".to_owned();
        let mut unknown = mlp(&rows(1));
        unknown.model_name = "none".to_owned();
        for (id, request) in [
            ("0", mlp(&values)),
            ("1", unknown),
            ("2", wrong),
            ("3", mlp(&values[..64])),
        ] {
            say.send(with_id(request, id)).unwrap();
        }
        for turn in 4..60 {
            say.send(with_id(mlp(&values[..64 * turn]), &turn.to_string()))
                .unwrap();
        }
        drop(say);
        let all = expected(server, &values);
        for turn in 0..60 {
            let answer = answers.message().await.expect("no end").expect("an answer");
            match turn {
                1 => {
                    let why = &answer.error_message;
                    assert!(why.starts_with("Request for unknown model"), "{why}");
                    let of = answer.infer_response.expect("of which");
                    assert_eq!((&*of.id, &*of.model_name), ("1", "none"));
                }
                2 => {
                    let why = &answer.error_message;
                    assert!(why.contains("unknown datatype \"FLOAT\""), "{why}");
                    let of = answer.infer_response.expect("of which");
                    assert_eq!((&*of.id, &*of.model_name), ("2", "mlp"));
                }
                _ => {
                    assert_eq!(answer.error_message, "");
                    let answer = answer.infer_response.expect("a result");
                    assert_eq!(answer.id, turn.to_string());
                    assert_eq!(flag(&answer, "triton_final_response"), Some(true));
                    let rows = match turn {
                        0 => 700,
                        3 => 1,
                        rows => rows,
                    };
                    // The rows of few are those of many, but for how the engine rounds: what is asked alone is compared
                    // bit for bit elsewhere.
                    assert_eq!(answer.outputs[0].shape, [rows as i64, 10]);
                    if rows == 700 {
                        assert_eq!(answer.raw_output_contents, [bytes(&all)]);
                    }
                }
            }
        }
        assert!(answers.message().await.expect("a good end").is_none());
    });
}

#[test]
fn a_bulk_request_comes_in_parts_when_asked_and_an_answer_without_rows_ends_them() {
    with_server(
        &["--num-worker", "2", "--max-batch-size", "64"],
        async |server| {
            let mut client = Client::to(server).await;
            let values = rows(1000);
            let expected = bytes(&expected(server, &values));
            for ordered in [false, true] {
                let (say, mut answers) = client.stream().await;
                let mut request = in_parts(with_id(mlp(&values), "bulk"));
                let choice = parameter(ParameterChoice::BoolParam(ordered));
                request.parameters.insert("ordered".to_owned(), choice);
                say.send(request).unwrap();
                // One behind it need not wait for its end, and its own answer is whole.
                say.send(with_id(mlp(&values[..64]), "one")).unwrap();
                drop(say);
                let (mut whole, mut parts, mut next, mut one) = (vec![0; expected.len()], 0, 0, 0);
                loop {
                    let answer = answers.message().await.expect("no end").expect("an answer");
                    assert_eq!(answer.error_message, "");
                    let answer = answer.infer_response.expect("a result");
                    if answer.id == "one" {
                        one += 1;
                        continue;
                    }
                    assert_eq!(answer.id, "bulk");
                    if flag(&answer, "triton_final_response") == Some(true) {
                        assert!(answer.outputs.is_empty());
                        assert_eq!(number(&answer, "rows"), 1000);
                        assert!(number(&answer, "chunks") > 2);
                        break;
                    }
                    parts += 1;
                    let (offset, rows) = (number(&answer, "offset"), number(&answer, "rows"));
                    assert!(!ordered || offset == next, "{offset} after {next}");
                    next = offset + rows;
                    assert_eq!(answer.outputs[0].shape, [rows, 10]);
                    let raw = &answer.raw_output_contents[0];
                    let start = offset as usize * 40;
                    whole[start..start + raw.len()].copy_from_slice(raw);
                }
                assert!(parts > 2, "{parts}");
                assert_eq!(whole, expected);
                if one == 0 {
                    let answer = answers.message().await.expect("no end").expect("an answer");
                    assert_eq!(answer.infer_response.expect("a result").id, "one");
                }
                assert!(answers.message().await.expect("a good end").is_none());
            }
        },
    );
}

#[test]
fn answers_that_wait_for_their_turn_end_neither_those_before_them_nor_themselves() {
    let flags = [
        "--preload",
        "slow",
        "--preload",
        "wide",
        "--max-client-bytes",
        "16MiB",
    ];
    with_server(
        &[&flags[..], &["--num-worker", "2"]].concat(),
        async |server| {
            let mut client = Client::to(server).await;
            let (say, mut answers) = client.stream().await;
            // Seconds, then much more than may lie unread.
            say.send(with_id(slow(8_000), "slow")).unwrap();
            let (rows, count) = (64, 24);
            for id in 0..count {
                let echo = ModelInferRequest {
                    model_name: "wide".to_owned(),
                    inputs: vec![input("x", "FP32", &[rows as i64, 4096])],
                    raw_input_contents: vec![vec![0; rows * 4096 * 4].into()],
                    ..ModelInferRequest::default()
                };
                say.send(with_id(echo, &id.to_string())).unwrap();
            }
            drop(say);
            let ids = (0..count).map(|id| id.to_string());
            for id in std::iter::once("slow".to_owned()).chain(ids) {
                let answer = answers.message().await.expect("no end").expect("an answer");
                assert_eq!(answer.error_message, "");
                assert_eq!(answer.infer_response.expect("rows").id, id);
            }
            assert!(answers.message().await.expect("a good end").is_none());
        },
    );
}

#[test]
fn a_message_that_is_too_long_ends_its_stream_after_what_runs_was_answered() {
    with_server(
        &["--preload", "slow", "--max-request-bytes", "1MiB"],
        async |server| {
            let mut client = Client::to(server).await;
            let (say, mut answers) = client.stream().await;
            for id in ["a", "b"] {
                say.send(with_id(slow(1000), id)).unwrap();
            }
            say.send(slow(4000)).unwrap();
            for id in ["a", "b"] {
                let answer = answers.message().await.expect("no end").expect("an answer");
                assert_eq!(answer.error_message, "");
                assert_eq!(answer.infer_response.expect("rows").id, id);
            }
            let end = answers.message().await.expect_err("an end");
            assert_eq!(end.code(), tonic::Code::ResourceExhausted, "{end}");
            assert!(end.message().contains("--max-request-bytes"), "{end}");
        },
    );
}

#[test]
fn a_cancelled_stream_cancels_all_its_requests() {
    with_server(&["--preload", "slow"], async |server| {
        let mut client = Client::to(server).await;
        let (say, mut answers) = client.stream().await;
        for id in ["a", "b", "c"] {
            say.send(with_id(slow(10_000), id)).unwrap();
        }
        say.send(in_parts(with_id(slow(10_000), "d"))).unwrap();
        let part = answers.message().await.expect("no end").expect("a part");
        assert_eq!(part.infer_response.expect("rows").id, "d");
        assert_eq!(requests(server), 4);
        drop((say, answers));
        eventually("they are cancelled", || cancelled(server) == 4).await;
        eventually("nothing runs", || requests(server) == 0).await;
    });
}
