//! Extra workers: stages of plugins run beside the model, and nobody can tell by the answers.

use std::time::Duration;

use mdm::client::{Call, Client};
use mdm::{ErrorCode, Tensor};
use serde_json::json;

use crate::common::{PATIENCE, Server, eventually, onnx, within};
use crate::{folder, refused};

const CHAIN: &str = r#"{"mdm":1,"stages":[
    {"name":"before","plugin":"libecho.so","entry":"echo"},
    {"name":"net","onnx":"mlp.onnx"},
    {"name":"after","plugin":"libecho.so","entry":"echo"}]}"#;

const FAULTY_FIRST: &str = r#"{"mdm":1,"stages":[
    {"name":"before","plugin":"libecho.so","entry":"faulty"},
    {"name":"net","onnx":"runs.onnx"}]}"#;

const FAULTY_LAST: &str = r#"{"mdm":1,"stages":[
    {"name":"net","onnx":"mlp.onnx"},
    {"name":"after","plugin":"libecho.so","entry":"faulty"}]}"#;

fn server(extra: &str) -> Server {
    let dir = folder(&[
        ("mlp.onnx", onnx::mlp()),
        ("runs.onnx", onnx::echo(mdm::DataType::Int64, &[])),
        ("chain.proxy", CHAIN.into()),
        ("first.proxy", FAULTY_FIRST.into()),
        ("last.proxy", FAULTY_LAST.into()),
    ]);
    let flags = ["--num-worker", "1", "--num-parallel-workers", extra];
    Server::start(dir, &flags)
}

fn rows(first: usize, count: usize) -> Tensor {
    let values = (0..count * 64).map(|i| ((first * 64 + i) % 977) as f32 / 977.0);
    Tensor::from_vec("x", vec![count, 64], values.collect()).unwrap()
}

fn scores(client: &Client, model: &str, first: usize, count: usize) -> Vec<f32> {
    let response = client.infer(rows(first, count), model).unwrap();
    let outputs = response.array::<f32>("y").unwrap();
    assert_eq!(outputs.shape()[0], count);
    outputs.iter().copied().collect()
}

#[test]
fn answers_are_the_same_whoever_runs_the_stages() {
    within(PATIENCE, || {
        let server = server("2");
        let client = server.client();
        for count in [1, 16, 17, 400, 3000] {
            let (staged, plain) = (
                scores(&client, "chain", 7, count),
                scores(&client, "mlp", 7, count),
            );
            // Chunks may be cut elsewhere, and a row's last bits depend on its neighbours.
            let close = staged.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close && staged.len() == plain.len(), "{count} rows");
        }
        let status = client.status().unwrap();
        assert_eq!(status.workers.len(), 3);
        let ran: Vec<u64> = status.workers.iter().map(|worker| worker.chunks).collect();
        assert!(ran.iter().all(|chunks| *chunks > 0), "{ran:?}");
        assert!(
            status.workers[1..]
                .iter()
                .all(|worker| worker.device == "cpu")
        );
        assert_eq!(status.totals.errors.values().sum::<u64>(), 0);
    });
}

#[test]
fn many_small_requests_go_through_every_stage_and_keep_their_rows() {
    within(PATIENCE, || {
        let server = server("2");
        let client = server.client();
        let expected: Vec<Vec<f32>> = (0..64).map(|n| scores(&client, "mlp", n, 1)).collect();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (client, expected) = (&client, &expected);
                scope.spawn(move || {
                    for turn in 0..40 {
                        let n = (thread * 7 + turn * 3) % 64;
                        let given = scores(client, "chain", n, 1);
                        let close = given
                            .iter()
                            .zip(&expected[n])
                            .all(|(a, b)| (a - b).abs() < 1e-5);
                        assert!(close, "request {n}");
                    }
                });
            }
        });
        let parts: Vec<_> = client
            .infer_stream(rows(0, 500), "chain")
            .unwrap()
            .map(|part| part.unwrap().outputs.rows().unwrap())
            .collect();
        assert_eq!(parts.iter().sum::<usize>(), 500);
    });
}

#[test]
fn what_goes_wrong_in_a_leg_is_told_once_and_costs_nobody_else() {
    within(PATIENCE, || {
        let server = server("1");
        let client = server.client();
        let told = |model: &str, what: &str| Call::model(model).param("do", json!(what));
        for turn in 0..3 {
            let input = || Tensor::from_vec("x", vec![100], vec![1i64; 100]).unwrap();
            refused(
                client.infer(input(), told("first", "panic")),
                ErrorCode::Internal,
                &["stage \"before\"", "told to panic"],
            );
            refused(
                client.infer(rows(0, 100), told("last", "lose a row")),
                ErrorCode::Internal,
                &["stage \"after\"", "for "],
            );
            let runs = client.infer(input(), "first").unwrap();
            assert_eq!(runs.rows(), Some(100));
            assert_eq!(scores(&client, "chain", turn, 20).len(), 200);
        }
        // A request that is taken back between its legs leaves nothing behind.
        let waits = client
            .submit(
                Tensor::from_vec("x", vec![100], vec![1i64; 100]).unwrap(),
                told("first", "wait"),
            )
            .unwrap();
        eventually("it runs", || client.status().unwrap().queue.requests == 1);
        client.cancel(&waits);
        refused(client.fetch(waits), ErrorCode::Cancelled, &["cancel"]);
        let late = told("first", "wait").timeout(Duration::from_millis(20));
        let input = Tensor::from_vec("x", vec![100], vec![1i64; 100]).unwrap();
        refused(
            client.infer(input, late),
            ErrorCode::DeadlineExceeded,
            &["deadline"],
        );
        eventually("all is done", || {
            let status = client.status().unwrap();
            status.queue.requests == 0 && status.workers.iter().all(|w| w.state == "idle")
        });
        assert_eq!(scores(&client, "chain", 1, 300).len(), 3000);
    });
}

#[test]
fn a_drain_ends_what_is_between_two_legs() {
    within(PATIENCE, || {
        let mut server = server("2");
        let client = server.client();
        let tickets: Vec<_> = (0..6)
            .map(|n| client.submit(rows(n, 2000), "chain").unwrap())
            .collect();
        eventually("they are accepted", || {
            let status = client.status().unwrap();
            status.queue.requests + status.totals.requests == 6
        });
        server.signal("TERM");
        for answer in client.fetch_all(tickets) {
            assert_eq!(answer.unwrap().rows(), Some(2000));
        }
        assert_eq!(server.wait().code(), Some(0));
    });
}
