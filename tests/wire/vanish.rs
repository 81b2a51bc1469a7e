//! Clients that go without a word: their work goes with them, and their memory.

use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, eventually, models, onnx, within};
use crate::raw::{Raw, echo, pack, receive, routing_id, send};
use crate::zmtp;

const LIMIT: Duration = Duration::from_secs(240);

/// A model that echoes, and one whose rows take some time.
fn server(flags: &[&str]) -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("slow.onnx", onnx::bilstm()),
    ]);
    Server::start(folder, flags)
}

/// Results of 768 bytes a row, in one piece or as they come.
fn slow(id: u64, rows: u64, stream: bool) -> Vec<Vec<u8>> {
    let header = pack(&json!({
        "v": 1, "type": "infer", "id": id, "model": "slow", "stream": stream,
        "inputs": [{"name": "ids", "dtype": "INT64", "shape": [rows, 64]}],
    }));
    vec![header, vec![0; rows as usize * 64 * 8]]
}

fn queued(raw: &mut Raw) -> u64 {
    raw.status()["queue"]["requests"]
        .as_u64()
        .expect("a number")
}

fn rows_run(raw: &mut Raw) -> u64 {
    let status = raw.status();
    let workers = status["workers"].as_array().expect("workers");
    workers
        .iter()
        .map(|w| w["rows"].as_u64().expect("a number"))
        .sum()
}

/// The first result finds nobody, and the rest is cancelled.
#[test]
fn a_client_that_vanishes_takes_its_work_with_it() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let mut raw = Raw::open(&server);
        for (rows, stream) in [(3_000, false), (200_000, false), (200_000, true)] {
            let id = raw.id();
            send(&raw.port, &slow(id, rows, stream));
        }
        raw.greet();
        raw.vanish();
        eventually("its requests are gone", || {
            bystander.round(&[[2.0; 4]]);
            queued(&mut bystander) == 0
        });
        assert!(rows_run(&mut bystander) < 400_000, "it was run to its end");
        assert_eq!(bystander.status()["totals"]["errors"]["INTERNAL"], 0);
    });
}

/// As above, but the connections end with a reset: what they were sent is unread.
#[test]
fn a_connection_that_is_reset_takes_its_work_with_it() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        for _ in 0..3 {
            let id = routing_id();
            let mut port = zmtp::dealer(server.port, &id);
            let mut out = zmtp::dealer(server.port_out, &id);
            for stream in [&mut port, &mut out] {
                // The answer stays unread in the kernel, so that closing means a reset.
                zmtp::send(stream, &[crate::raw::hello(1)]).expect("sent");
                assert_eq!(stream.peek(&mut [0]).expect("an answer"), 1);
            }
            zmtp::send(&mut port, &slow(1, 200_000, true)).expect("sent");
            eventually("it is accepted", || queued(&mut bystander) > 0);
            drop((port, out));
            eventually("its request is gone", || {
                bystander.round(&[[2.0; 4]]);
                queued(&mut bystander) == 0
            });
        }
        assert!(rows_run(&mut bystander) < 600_000, "it was run to its end");
    });
}

/// A message that its sender does not end leaves nothing behind.
#[test]
fn a_connection_that_ends_within_a_message_is_no_request() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let before = server.resident_bytes();
        for round in 0..60 {
            let mut port = zmtp::dealer(server.port, &routing_id());
            let mut request = Vec::new();
            for body in slow(1, 16_384, false) {
                request.extend(zmtp::frame(&body, false));
            }
            request.truncate(request.len() - round);
            std::io::Write::write_all(&mut port, &request).expect("sent");
            drop(port);
            bystander.round(&[[round as f32; 4]]);
        }
        eventually("all is answered", || queued(&mut bystander) == 0);
        assert_eq!(rows_run(&mut bystander), 61, "a piece of a message ran");
        // 60 times 8 MiB were sent.
        eventually("the memory is back", || {
            server.resident_bytes() < before + (100 << 20)
        });
    });
}

#[test]
fn memory_does_not_grow_with_clients_that_came_and_went() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2"]);
        let mut bystander = Raw::open(&server);
        let visit = |number: usize| {
            let mut raw = Raw::open(&server);
            for _ in 0..4 {
                raw.round(&[[number as f32; 4]; 3]);
            }
            // A bulk request of 1 MiB, and some more that nobody will read.
            let rows = vec![[0.25; 4]; 65_536];
            send(&raw.port, &echo(1000, &rows));
            assert_eq!(receive(&raw.out).floats().len(), 4 * rows.len());
            send(&raw.port, &echo(1001, &rows));
            send(&raw.port, &slow(1002, 8, false));
            raw.vanish();
        };
        (0..40).for_each(visit);
        eventually("all is quiet", || queued(&mut bystander) == 0);
        let before = server.resident_bytes();
        (40..200).for_each(visit);
        eventually("all is quiet", || queued(&mut bystander) == 0);
        // Each of them left a result of 1 MiB.
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "grew by {grown} bytes");
        bystander.round(&[[1.0; 4]]);
    });
}
