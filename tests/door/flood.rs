//! A flood on one connection, and an honest client beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cancel::requests;
use crate::common::within;
use crate::grpc::{Client, mlp, with_server};
use crate::grpc_stream::slow;
use crate::http::Http;
use crate::infer::rows;
use crate::odd::FLAT_BYTES;
use crate::{LIMIT, echo_request, server, slow_request};

/// Requests of a flood, and the rows of each: together they take a worker more than ten seconds.
const FLOOD: usize = 600;
const ROWS: usize = 100;

#[test]
fn requests_that_are_sent_ahead_on_one_connection_keep_no_other_waiting() {
    within(LIMIT, || {
        let server = server(&[
            "--num-worker",
            "1",
            "--preload",
            "slow",
            "--preload",
            "echo",
        ]);
        let mut flood = Http::to(&server);
        let mut told = flood.other_end();
        let sending = std::thread::spawn(move || {
            let (json, behind) = slow_request(ROWS);
            let json = json.to_string();
            let length = json.len().to_string();
            let headers = [("Inference-Header-Content-Length", length.as_str())];
            let body = [json.as_bytes(), &behind].concat();
            let request = flood.request_of("POST", "/v2/models/slow/infer", &headers, &body);
            // It ends when the connection is closed below.
            (0..FLOOD).all(|_| flood.send(&request))
        });
        assert_eq!(told.answer().expect("an answer").status, 200);
        let memory = server.resident_bytes();
        let mut honest = Http::to(&server);
        for _ in 0..20 {
            let answer = honest.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200);
            assert_eq!(honest.get("/v2/health/ready").status, 200);
        }
        let run = server.client().status().expect("a status").totals.requests;
        assert!(run < FLOOD as u64, "the flood was over before: {run}");
        told.hang_up();
        sending.join().expect("no panic");
        crate::common::eventually("nothing runs for who has gone", || requests(&server) == 0);
        crate::common::eventually("what it held is free", || {
            server.resident_bytes() < memory + FLAT_BYTES
        });
    });
}

#[test]
fn calls_at_once_on_one_channel_keep_no_other_waiting() {
    let flags = ["--num-worker", "1", "--preload", "slow", "--preload", "mlp"];
    with_server(&flags, async |server| {
        let flood = Client::to(server).await;
        let answered = Arc::new(AtomicUsize::new(0));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..FLOOD {
            let (mut flood, answered) = (flood.clone(), answered.clone());
            calls.spawn(async move {
                let answer = flood.infer(slow(ROWS)).await;
                answered.fetch_add(1, Ordering::Relaxed);
                answer.map(drop)
            });
        }
        calls
            .join_next()
            .await
            .expect("one")
            .expect("no panic")
            .expect("an answer");
        let mut honest = Client::to(server).await;
        for _ in 0..20 {
            honest.infer(mlp(&rows(1))).await.expect("an answer");
        }
        let answered = answered.load(Ordering::Relaxed);
        assert!(answered < FLOOD, "the flood was over before");
        drop((calls, flood));
        crate::grpc::eventually("nothing runs for who has gone", || requests(server) == 0).await;
    });
}
