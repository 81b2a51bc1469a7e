//! Numbers of requests: each session has its own, they ascend, and none is answered for another.

use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, models, onnx, within};
use crate::malformed::{INVALID, input};
use crate::raw::{Raw, dealer, echo, hello, pack, receive, routing_id, send};

const LIMIT: Duration = Duration::from_secs(180);

pub fn echo_server(flags: &[&str]) -> Server {
    Server::with_model("echo", onnx::echo(DataType::Fp32, &[4]), flags)
}

fn cancel(id: u64) -> Vec<u8> {
    pack(&json!({"v": 1, "type": "cancel", "id": id}))
}

#[test]
fn two_clients_with_the_same_numbers_get_their_own_results() {
    within(LIMIT, || {
        let server = echo_server(&["--num-worker", "2"]);
        let (a, b) = (Raw::open(&server), Raw::open(&server));
        for id in 100..200 {
            send(&a.port, &echo(id, &[[id as f32; 4]]));
            send(&b.port, &echo(id, &[[-(id as f32); 4]]));
        }
        for (raw, sign) in [(&a, 1.0), (&b, -1.0)] {
            let mut seen = Vec::new();
            for _ in 100..200 {
                let answer = receive(&raw.out);
                assert_eq!(answer.floats(), [sign * answer.id() as f32; 4]);
                seen.push(answer.id());
            }
            seen.sort_unstable();
            assert_eq!(seen, (100..200).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_number_used_again_or_lower_is_refused_on_port() {
    within(LIMIT, || {
        let server = echo_server(&[]);
        let mut raw = Raw::open(&server);
        send(&raw.port, &echo(50, &[[1.0; 4]]));
        assert_eq!(receive(&raw.out).id(), 50);
        // A good one, and one that is wrong in itself: both would be taken for an answer to the first.
        let malformed = vec![input(50, "echo", ("x", "FP99"), json!([1, 4]))];
        for (id, frames) in [
            (50, echo(50, &[[2.0; 4]])),
            (50, malformed),
            (49, echo(49, &[[2.0; 4]])),
        ] {
            send(&raw.port, &frames);
            let answer = receive(&raw.port);
            assert_eq!(
                (answer.kind(), answer.id(), answer.code()),
                ("error", id, INVALID)
            );
            assert!(answer.message().contains("ascend"), "{}", answer.message());
            assert!(answer.message().contains("50"), "{}", answer.message());
        }
        // A malformed one uses its number up as well.
        send(
            &raw.port,
            &[input(60, "echo", ("x", "FP99"), json!([1, 4]))],
        );
        assert_eq!((receive(&raw.out).id()), 60);
        send(&raw.port, &echo(60, &[[3.0; 4]]));
        assert_eq!(receive(&raw.port).code(), INVALID);
        send(&raw.port, &echo(61, &[[4.0; 4]]));
        assert_eq!(receive(&raw.out).floats(), [4.0; 4]);
        send(&raw.port, &echo(u64::MAX, &[[5.0; 4]]));
        assert_eq!(receive(&raw.out).id(), u64::MAX);
        raw.greet();
    });
}

/// Two rows of one number keep a worker as busy as they say.
fn slow_server(flags: &[&str]) -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("slow.onnx", onnx::bilstm()),
    ]);
    Server::start(folder, flags)
}

/// Rows that each keep a worker busy for some time.
pub fn slow(id: u64, rows: u64) -> Vec<Vec<u8>> {
    vec![
        input(id, "slow", ("ids", "INT64"), json!([rows, 64])),
        vec![0; rows as usize * 64 * 8],
    ]
}

#[test]
fn a_cancel_of_what_is_not_open_does_nothing() {
    within(LIMIT, || {
        let server = slow_server(&[]);
        let mut raw = Raw::open(&server);
        let mut other = Raw::open(&server);
        send(&raw.port, &slow(500, 20_000));
        // Unknown numbers, and a number that is another session's: the long one goes on.
        for id in [1, 499, 501, u64::MAX] {
            send(&raw.port, &[cancel(id)]);
        }
        send(&other.port, &[cancel(500)]);
        other.greet();
        raw.greet();
        assert_eq!(raw.status()["queue"]["requests"], 1);
        send(&raw.port, &[cancel(500)]);
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (500, "CANCELLED"));
        send(&raw.port, &[cancel(500)]);
        send(&raw.port, &echo(501, &[[1.0; 4]]));
        assert_eq!(receive(&raw.out).floats(), [1.0; 4]);
        raw.greet();
    });
}

/// A malformed message with the number of an open request must not cut it loose from its cancel.
#[test]
fn an_open_request_survives_a_malformed_one_of_its_number() {
    within(LIMIT, || {
        let server = slow_server(&[]);
        let mut raw = Raw::open(&server);
        send(&raw.port, &slow(7, 20_000));
        send(&raw.port, &[input(7, "echo", ("x", "FP99"), json!([1, 4]))]);
        assert_eq!(receive(&raw.port).code(), INVALID);
        send(&raw.port, &[cancel(7)]);
        let answer = receive(&raw.out);
        assert_eq!((answer.id(), answer.code()), (7, "CANCELLED"));
        raw.greet();
    });
}

#[test]
fn routing_ids_of_a_wrong_length_get_an_error_and_no_result() {
    within(LIMIT, || {
        let server = echo_server(&[]);
        let mut bystander = Raw::open(&server);
        let addresses = [server.port, server.port_out].map(|p| format!("tcp://127.0.0.1:{p}"));
        for length in [None, Some(1), Some(15), Some(17), Some(255)] {
            let id = length.map(|length| vec![9; length]);
            let mut raw = Raw::at(&addresses[0], &addresses[1], id.as_deref());
            raw.greet();
            let id = raw.submit(&[[1.0; 4]]);
            let answer = receive(&raw.port);
            assert_eq!((answer.id(), answer.code()), (id, INVALID), "{length:?}");
            assert!(
                answer.message().contains("16 bytes"),
                "{}",
                answer.message()
            );
            // Questions are answered whoever asks.
            raw.status();
            bystander.round(&[[2.0; 4]]);
        }
    });
}

#[test]
fn a_second_session_with_a_routing_id_in_use_gets_nothing_of_the_first() {
    within(LIMIT, || {
        let server = echo_server(&[]);
        let addresses = [server.port, server.port_out].map(|p| format!("tcp://127.0.0.1:{p}"));
        let id = routing_id();
        let mut first = Raw::at(&addresses[0], &addresses[1], Some(&id));
        first.greet();
        let thief = Raw::at(&addresses[0], &addresses[1], Some(&id));
        send(&thief.out, &[hello(1)]);
        send(&thief.port, &echo(1000, &[[6.0; 4]]));
        for _ in 0..20 {
            first.round(&[[5.0; 4]]);
        }
        for socket in [&thief.port, &thief.out] {
            assert_eq!(socket.poll(zmq::POLLIN, 0), Ok(0), "it got something");
        }
        drop(thief);
        first.round(&[[5.0; 4]]);
        first.greet();
    });
}

#[test]
fn port_out_takes_a_hello_and_nothing_else() {
    within(LIMIT, || {
        let mut server = echo_server(&[]);
        let mut bystander = Raw::open(&server);
        let mut raw = Raw::open(&server);
        send(&raw.out, &echo(5, &[[1.0; 4]]));
        let answer = receive(&raw.out);
        assert_eq!(
            (answer.kind(), answer.id(), answer.code()),
            ("error", 5, INVALID)
        );
        assert!(
            answer.message().contains("only hello"),
            "{}",
            answer.message()
        );
        let before = raw.status()["totals"]["dropped"].as_u64();
        send(&raw.out, &[b"nonsense".to_vec()]);
        raw.greet();
        assert_eq!(
            raw.status()["totals"]["dropped"].as_u64(),
            before.map(|n| n + 1)
        );
        // A frame above 4 KiB ends the connection, and this session's alone.
        let endpoint = format!("tcp://127.0.0.1:{}", server.port_out);
        let context = zmq::Context::new();
        let big = dealer(&context, &endpoint, Some(&routing_id()));
        let mut padded = json!({"v": 1, "type": "hello", "id": 1});
        padded["pad"] = json!("x".repeat(8 << 20));
        send(&big, &[pack(&padded)]);
        bystander.round(&[[2.0; 4]]);
        raw.round(&[[3.0; 4]]);
        assert_eq!(big.poll(zmq::POLLIN, 0), Ok(0));
        assert!(server.is_running());
    });
}
