//! The queue's bounds: what comes beyond is refused by name, and what comes later is served.

use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, eventually, models, onnx, within};
use crate::ids::slow;
use crate::malformed::input;
use crate::raw::{Raw, pack, receive, send};

const LIMIT: Duration = Duration::from_secs(180);
const EXHAUSTED: &str = "RESOURCE_EXHAUSTED";

fn server(flags: &[&str]) -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("pair.onnx", onnx::two_inputs_two_outputs()),
        ("slow.onnx", onnx::bilstm()),
    ]);
    Server::start(folder, flags)
}

fn cancel(raw: &Raw, id: u64) {
    send(
        &raw.port,
        &[pack(&json!({"v": 1, "type": "cancel", "id": id}))],
    );
}

fn idle(raw: &mut Raw) {
    eventually("the queue is empty", || {
        raw.status()["queue"] == json!({"requests": 0, "rows": 0, "bytes": 0})
    });
}

/// No frame is too long, but all together are.
#[test]
fn a_request_too_large_in_several_frames() {
    within(LIMIT, || {
        let server = server(&["--max-request-bytes", "8MiB"]);
        let mut raw = Raw::open(&server);
        let rows = (8 << 20) / 36 + 500;
        let header = pack(&json!({
            "v": 1, "type": "infer", "id": 100, "model": "pair",
            "inputs": [{"name": "a", "dtype": "FP32", "shape": [rows, 3]},
                       {"name": "b", "dtype": "INT64", "shape": [rows, 3]}],
        }));
        send(&raw.port, &[header, vec![0; rows * 12], vec![0; rows * 24]]);
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (100, EXHAUSTED));
        for words in [
            (rows * 36).to_string(),
            (8 << 20).to_string(),
            "--max-request-bytes".to_owned(),
        ] {
            assert!(answer.message().contains(&words), "{}", answer.message());
        }
        raw.greet();
        send(&raw.port, &slow(101, 1));
        assert_eq!(receive(&raw.out).kind(), "result");
    });
}

#[test]
fn a_queue_full_of_requests() {
    within(LIMIT, || {
        let server = server(&["--max-queue-requests", "4"]);
        let mut raw = Raw::open(&server);
        let mut other = Raw::open(&server);
        raw.round(&[[1.0; 4]]);
        send(&raw.port, &slow(100, 1));
        assert_eq!(receive(&raw.out).kind(), "result");
        idle(&mut raw);
        for id in 101..105 {
            send(&raw.port, &slow(id, 50_000));
        }
        for id in 105..110 {
            send(&raw.port, &slow(id, 1));
            let answer = receive(&raw.out);
            assert_eq!((answer.id(), answer.code()), (id, EXHAUSTED));
            assert!(
                answer.message().contains("4 requests"),
                "{}",
                answer.message()
            );
        }
        // The bound is everybody's.
        let id = other.submit(&[[1.0; 4]]);
        let answer = receive(&other.out);
        assert_eq!((answer.id(), answer.code()), (id, EXHAUSTED));
        for id in 101..105 {
            cancel(&raw, id);
            let answer = receive(&raw.out);
            assert_eq!((answer.id(), answer.code()), (id, "CANCELLED"));
        }
        idle(&mut other);
        other.round(&[[2.0; 4]]);
        send(&raw.port, &slow(200, 1));
        assert_eq!(receive(&raw.out).kind(), "result");
    });
}

#[test]
fn a_request_beyond_max_queue_bytes_is_refused_and_a_small_one_of_another_client_runs() {
    within(LIMIT, || {
        let server = server(&["--max-queue-bytes", "10MiB", "--max-request-bytes", "10MiB"]);
        let mut raw = Raw::open(&server);
        let mut other = Raw::open(&server);
        other.round(&[[1.0; 4]]);
        send(&raw.port, &slow(100, 1));
        assert_eq!(receive(&raw.out).kind(), "result");
        idle(&mut raw);
        // 512 bytes a row: 9.8 MiB are held, and 1 MiB more is too much.
        send(&raw.port, &slow(101, 20_000));
        send(&raw.port, &slow(102, 2048));
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (102, EXHAUSTED));
        assert!(
            answer.message().contains("--max-queue-bytes"),
            "{}",
            answer.message()
        );
        // A small one of another client still fits, and overtakes: one client has not all of the queue.
        let id = other.submit(&[[1.0; 4]]);
        let answer = receive(&other.out);
        assert_eq!((answer.id(), answer.kind()), (id, "result"));
        cancel(&raw, 101);
        assert_eq!(receive(&raw.out).code(), "CANCELLED");
        idle(&mut raw);
        send(&raw.port, &slow(104, 2048));
        assert_eq!(receive(&raw.out).kind(), "result");
    });
}

/// Parameters are held as long as rows are.
#[test]
fn parameters_count_as_bytes() {
    within(LIMIT, || {
        let server = server(&["--max-queue-bytes", "1MiB", "--max-request-bytes", "1MiB"]);
        let mut raw = Raw::open(&server);
        raw.round(&[[1.0; 4]]);
        let infer = |id: u64, model: &str, params: serde_json::Value| {
            let (name, dtype, width) = match model {
                "slow" => ("ids", "INT64", 64),
                _ => ("x", "FP32", 4),
            };
            pack(&json!({
                "v": 1, "type": "infer", "id": id, "model": model, "params": params,
                "inputs": [{"name": name, "dtype": dtype, "shape": [1, width]}],
            }))
        };
        send(
            &raw.port,
            &[
                infer(100, "echo", json!({"a": vec![json!({"b": null}); 1_500]})),
                vec![0; 16],
            ],
        );
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (100, EXHAUSTED));
        // A client that holds something may not have the last quarter.
        eventually("nothing is held", || raw.status()["queue"]["bytes"] == 0);
        // 1,800 rows of 512 bytes are held; numbers in parameters take more than their digits.
        send(&raw.port, &slow(101, 1_800));
        send(
            &raw.port,
            &[
                infer(102, "slow", json!({"a": vec![0; 5_000]})),
                vec![0; 512],
            ],
        );
        let mut answers = [receive(&raw.out), receive(&raw.out)];
        answers.sort_by_key(|answer| answer.id());
        assert_eq!(answers[0].kind(), "result");
        assert_eq!(answers[1].code(), EXHAUSTED);
        raw.greet();
        // A result leaves before its worker says that it is free, and until then its rows are held.
        eventually("nothing is held", || raw.status()["queue"]["bytes"] == 0);
        // As deep as they may be, they go all the way to the worker.
        let mut deep = json!(1);
        for _ in 0..60 {
            deep = json!([deep]);
        }
        send(
            &raw.port,
            &[infer(200, "echo", json!({"a": deep})), vec![0; 16]],
        );
        let answer = receive(&raw.out);
        assert_eq!(answer.kind(), "result", "{:?}", answer.header);
    });
}

/// What a header has is held as long as rows are, whatever the server makes of it.
#[test]
fn headers_count_as_bytes() {
    within(LIMIT, || {
        let server = server(&["--max-queue-bytes", "1MiB", "--max-request-bytes", "1MiB"]);
        let mut raw = Raw::open(&server);
        send(&raw.port, &slow(100, 1));
        assert_eq!(receive(&raw.out).kind(), "result");
        idle(&mut raw);
        send(&raw.port, &slow(101, 1_800));
        let noted = pack(&json!({
            "v": 1, "type": "infer", "id": 102, "model": "slow", "note": "n".repeat(200_000),
            "inputs": [{"name": "ids", "dtype": "INT64", "shape": [1, 64]}],
        }));
        send(&raw.port, &[noted, vec![0; 512]]);
        let mut answers = [receive(&raw.out), receive(&raw.out)];
        answers.sort_by_key(|answer| answer.id());
        assert_eq!(answers[0].kind(), "result");
        assert_eq!(answers[1].code(), EXHAUSTED);
    });
}

/// However the first request spelt it.
#[test]
fn a_model_is_called_by_its_plain_name() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut raw = Raw::open(&server);
        for model in [&*"./".repeat(1_000), ".//x/.././"] {
            let id = raw.id();
            let name = format!("{model}echo");
            let header = input(id, &name, ("x", "FP32"), json!([1, 4]));
            send(&raw.port, &[header, vec![0; 16]]);
            assert_eq!(receive(&raw.out).kind(), "result");
        }
        let status = raw.status();
        assert_eq!(status["models"].as_array().map(Vec::len), Some(1));
        assert_eq!(status["models"][0]["name"], "echo");
        assert!(server.log().len() < 20_000, "{}", server.log());
    });
}
