//! Readers that do not read: they get so much and no more, and nobody else waits for them.

use std::collections::HashSet;
use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, eventually, models, onnx, within};
use crate::malformed::input;
use crate::raw::{Raw, hello, receive, routing_id, send};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: usize = 1 << 20;
const WIDTH: usize = MIB / 4;

/// "wide" echoes rows of 1 MiB.
fn server(flags: &[&str]) -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("wide.onnx", onnx::echo(DataType::Fp32, &[WIDTH])),
    ]);
    let flags = [&["--max-client-bytes", "16MiB"], flags].concat();
    Server::start(folder, &flags)
}

fn wide(id: u64, rows: usize) -> Vec<Vec<u8>> {
    vec![
        input(id, "wide", ("x", "FP32"), json!([rows, WIDTH])),
        vec![id as u8 & 0x3f; rows * MIB],
    ]
}

/// A session that keeps next to nothing between the server and a reader that does not read.
fn reader(server: &Server) -> Raw {
    let context = zmq::Context::new();
    let id = routing_id();
    let connect = |port: u16| {
        let socket = context.socket(zmq::DEALER).expect("a socket");
        socket.set_identity(&id).expect("a routing id");
        socket.set_linger(0).expect("linger");
        socket.set_rcvhwm(1).expect("a mark");
        socket.set_rcvbuf(64 * 1024).expect("a size");
        let patience = crate::common::PATIENCE.as_millis() as i32;
        socket.set_rcvtimeo(patience).expect("a timeout");
        socket.set_sndtimeo(patience).expect("a timeout");
        socket
            .connect(&format!("tcp://127.0.0.1:{port}"))
            .expect("an endpoint");
        socket
    };
    let (port, out) = (connect(server.port), connect(server.port_out));
    let mut raw = Raw::of(context.clone(), port, out);
    raw.greet();
    raw
}

fn answered(raw: &mut Raw) -> u64 {
    raw.status()["totals"]["requests"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_slow_reader_is_refused_and_others_are_served() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2"]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let mut raw = reader(&server);
        let base = server.resident_bytes();
        let mut most = 0;
        let count = 60;
        for _ in 0..count {
            let before = answered(&mut bystander);
            let id = raw.id();
            send(&raw.port, &wide(id, 4));
            eventually("the server has an answer", || {
                answered(&mut bystander) > before
            });
            bystander.round(&[[2.0; 4]; 20]);
            most = most.max(server.resident_bytes());
        }
        assert!(most < base + 120 * MIB as u64, "{base} bytes became {most}");
        let mut seen = HashSet::new();
        let mut refused = 0;
        for _ in 0..count {
            let answer = receive(&raw.out);
            assert!(seen.insert(answer.id()), "answered twice");
            if answer.kind() == "result" {
                let bytes: usize = answer.payload.iter().map(Vec::len).sum();
                assert_eq!(bytes, 4 * MIB);
                assert!(
                    answer
                        .payload
                        .concat()
                        .iter()
                        .all(|b| *b == answer.id() as u8 & 0x3f)
                );
            } else {
                assert_eq!(answer.code(), "RESOURCE_EXHAUSTED");
                assert!(
                    answer.message().contains("--max-client-bytes"),
                    "{}",
                    answer.message()
                );
                refused += 1;
            }
        }
        assert!(refused > 0 && refused < count, "{refused} refused");
        // It reads again: it is served again.
        let id = raw.id();
        send(&raw.port, &wide(id, 4));
        let answer = receive(&raw.out);
        assert_eq!((answer.kind(), answer.id()), ("result", id));
    });
}

#[test]
fn readers_that_vanish_with_results_queued_leave_nothing() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let base = server.resident_bytes();
        for _ in 0..30 {
            let mut raw = reader(&server);
            for _ in 0..6 {
                let before = answered(&mut bystander);
                let id = raw.id();
                send(&raw.port, &wide(id, 4));
                eventually("the server has an answer", || {
                    answered(&mut bystander) > before
                });
            }
            raw.vanish();
            bystander.round(&[[2.0; 4]; 20]);
        }
        // 30 times 16 MiB were queued.
        eventually("the memory is back", || {
            server.resident_bytes() < base + 120 * MIB as u64
        });
        let mut raw = Raw::open(&server);
        let id = raw.id();
        send(&raw.port, &wide(id, 4));
        assert_eq!(receive(&raw.out).kind(), "result");
    });
}

/// Streams are bounded as well, and one result above the bound is refused as a whole.
#[test]
fn a_result_above_the_bound_is_refused_unless_it_is_streamed_and_read() {
    within(LIMIT, || {
        let server = server(&[]);
        let raw = Raw::open(&server);
        send(&raw.port, &wide(10, 24));
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (10, "RESOURCE_EXHAUSTED"));
        send(&raw.port, &wide(11, 8));
        assert_eq!(receive(&raw.out).kind(), "result");
    });
}

/// Questions are answered on `port`, and their answers are bounded too.
#[test]
fn a_client_that_asks_and_never_reads() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let raw = reader(&server);
        let base = server.resident_bytes();
        let long = "x".repeat(20_000);
        for id in 1..30_000 {
            let frame = match id % 3 {
                0 => crate::raw::pack(&json!({"v": 1, "type": long, "id": id})),
                1 => crate::raw::pack(&json!({"v": 1, "type": "status", "id": id})),
                _ => hello(id),
            };
            if raw.port.send_multipart([frame], 0).is_err() {
                // It reads no sign of life either: where this machine stops for some seconds, the server cuts it off.
                break;
            }
            if id % 1000 == 0 {
                bystander.round(&[[id as f32; 4]]);
            }
        }
        bystander.greet();
        let grown = server.resident_bytes().saturating_sub(base);
        assert!(grown < 120 * MIB as u64, "grew by {grown} bytes");
    });
}
