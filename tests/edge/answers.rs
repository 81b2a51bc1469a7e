//! Answers that wait: all of them arrive, bounded by bytes alone.

use std::time::Duration;

use serde_json::json;

use crate::common::{PATIENCE, Server, eventually, within};
use crate::peer::Pair;
use crate::raw::{Raw, dealer, echo, hello, pack, receive, routing_id, send};
use crate::{LIMIT, MIB, answered, queued, server, wide};

/// Only 65,536 answers were kept for a client that did not read; the rest were dropped.
#[test]
fn a_hundred_thousand_answers_wait_for_a_client_that_reads_later() {
    const COUNT: u64 = 100_000;
    within(LIMIT, || {
        let server = server(&["--num-worker", "2"]);
        let raw = Raw::open(&server);
        for id in 10..10 + COUNT {
            send(&raw.port, &echo(id, &[[id as f32, 0.0, 1.0, 2.0]]));
        }
        let mut bystander = Raw::open(&server);
        eventually("all are answered", || answered(&mut bystander) == COUNT);
        let mut seen = vec![false; COUNT as usize];
        for _ in 0..COUNT {
            let answer = receive(&raw.out);
            let (id, row) = (answer.id(), answer.floats());
            assert_eq!(row, [id as f32, 0.0, 1.0, 2.0]);
            let seen = &mut seen[id as usize - 10];
            assert!(!std::mem::replace(seen, true), "{id} was answered twice");
        }
    });
}

/// A DEALER that keeps next to nothing on its side of the line.
fn reader(server: &Server) -> Raw {
    let (context, id) = (zmq::Context::new(), routing_id());
    let out = context.socket(zmq::DEALER).expect("a socket");
    out.set_identity(&id).expect("a routing id");
    out.set_linger(0).expect("linger");
    out.set_rcvhwm(1).expect("a mark");
    out.set_rcvbuf(64 * 1024).expect("a size");
    out.set_rcvtimeo(PATIENCE.as_millis() as i32)
        .expect("a timeout");
    let address = |port| format!("tcp://127.0.0.1:{port}");
    out.connect(&address(server.port_out)).expect("an endpoint");
    let port = dealer(&context, &address(server.port), Some(&id));
    let mut raw = Raw::of(context, port, out);
    raw.greet();
    raw
}

#[test]
fn past_its_bytes_a_client_is_told_so_for_each_request() {
    within(LIMIT, || {
        let server = server(&["--max-client-bytes", "512KiB", "--preload", "wide"]);
        let (mut raw, mut bystander) = (reader(&server), Raw::open(&server));
        let count = 800;
        let first = raw.id();
        for id in first..first + count {
            send(&raw.port, &wide(id, 1));
        }
        eventually("all are answered", || answered(&mut bystander) == count);
        bystander.round(&[[1.0; 4]]);
        let (mut seen, mut refused) = (Vec::new(), 0);
        for _ in 0..count {
            let answer = receive(&raw.out);
            seen.push(answer.id());
            if answer.kind() == "error" {
                assert_eq!(answer.code(), "RESOURCE_EXHAUSTED", "{answer:?}");
                assert!(answer.message().contains("--max-client-bytes"));
                refused += 1;
            } else {
                assert_eq!(answer.payload.concat().len(), 16 * 1024);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (first..first + count).collect::<Vec<_>>());
        assert!(0 < refused && refused < count, "{refused} were refused");
    });
}

/// It was left without answers on a session that lived.
#[test]
fn a_session_that_cannot_hold_even_the_errors_ends_so_that_its_client_knows() {
    within(LIMIT, || {
        let server = server(&["--max-client-bytes", "512KiB", "--preload", "wide"]);
        let mut bystander = Raw::open(&server);
        let mut pair = Pair::open(&server);
        let mut id = 1;
        // Long rows until nothing more has room, then short ones: each is refused, and each refusal waits too.
        let is_cut = loop {
            id += 1;
            let frames = if id < 800 {
                wide(id, 1)
            } else {
                echo(id, &[[1.0; 4]])
            };
            if pair.port.send(&frames).is_err() {
                break true;
            }
            if id == 60_000 {
                break false;
            }
        };
        // The last of them may lie unread when the connection is closed.
        if !is_cut {
            eventually("all is heard", || queued(&mut bystander) == 0);
        }
        pair.port.ended(Duration::from_secs(10));
        pair.out.ended(Duration::from_secs(10));
        bystander.round(&[[2.0; 4]]);
        // A result may be there before its worker has said that it is free.
        eventually("nothing is queued", || queued(&mut bystander) == 0);
        assert!(server.log().contains("does not read even the errors"));
    });
}

/// It was read from without end, and its answers were kept without end.
#[test]
fn a_client_that_asks_for_the_status_and_never_reads_holds_little_memory() {
    within(LIMIT, || {
        let server = server(&[]);
        let (mut bystander, mut pair) = (Raw::open(&server), Pair::open(&server));
        bystander.round(&[[1.0; 4]]);
        let before = server.resident_bytes();
        let patience = Duration::from_secs(2);
        let stream = &pair.port.stream;
        stream.set_write_timeout(Some(patience)).expect("a timeout");
        let mut asked = 0;
        for id in 2..100_002 {
            let question = if id % 2 == 0 {
                pack(&json!({"v": 1, "type": "status", "id": id}))
            } else {
                hello(id)
            };
            // Once it is not read from any more, its own side of the line fills.
            if pair.port.send(&[question]).is_err() {
                break;
            }
            asked += 1;
            if id % 5_000 == 0 {
                bystander.round(&[[id as f32; 4]]);
            }
        }
        bystander.greet();
        bystander.round(&[[2.0; 4]]);
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(
            grown < 24 * MIB as u64,
            "grew by {grown} bytes for {asked} questions"
        );
        // It reads at last: what was heard is answered, in a number for each.
        let stream = &pair.port.stream;
        stream.set_read_timeout(Some(patience)).expect("a timeout");
        let mut answers = 0;
        while let Ok(answer) = pair.port.receive() {
            let kinds = ["status_ok", "hello_ok", "error"];
            assert!(kinds.contains(&answer.kind()), "{answer:?}");
            answers += 1;
        }
        assert!(answers > 1_000 && answers <= asked + 1, "{answers} answers");
    });
}
