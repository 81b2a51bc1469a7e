//! Questions without end: they hold no memory beyond bounds, and other clients' are answered meanwhile.

use std::time::Duration;

use mdm::DataType;
use serde_json::{Map, Value, json};

use crate::common::{Server, models, onnx, within};
use crate::raw::{Raw, pack, receive, send};

const LIMIT: Duration = Duration::from_secs(300);
const EXHAUSTED: &str = "RESOURCE_EXHAUSTED";

fn server() -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("other.onnx", onnx::echo(DataType::Fp32, &[4])),
    ]);
    Server::start(folder, &[])
}

#[test]
fn questions_about_models_hold_bounded_memory_and_delay_no_other_clients_first_request() {
    within(LIMIT, || {
        let server = server();
        let (mut asks, mut other) = (Raw::open(&server), Raw::open(&server));
        let before = server.resident_bytes();
        let count = 2_000;
        // They have to come faster than the loader looks at them: they lie deep, and are written before the first is sent.
        let deep = "d/".repeat(30);
        let folder = server.models().join(&deep);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("file"), "").expect("a file");
        let deep = format!("{deep}file");
        let question = |number: usize| {
            // Each is different, and the loader looks at as many paths for it as there may be.
            let path = |i: usize| (format!("{number}_{i}_path"), json!(deep));
            let params: Map<String, Value> = (0..256).map(path).collect();
            let id = asks.id();
            let question =
                json!({"v": 1, "type": "models", "id": id, "model": "other", "params": params});
            pack(&question)
        };
        let questions: Vec<_> = (0..count).map(question).collect();
        for question in questions {
            send(&asks.port, &[question]);
        }
        // A model that nobody has named yet.
        other.round(&[[1.0; 4]]);
        let mut seen = Vec::new();
        while asks.port.poll(zmq::POLLIN, 0).expect("a socket") > 0 {
            seen.push(receive(&asks.port).kind().to_owned());
        }
        let grown = server.resident_bytes().saturating_sub(before);
        let earlier = seen.len();
        for _ in earlier..count {
            let answer = receive(&asks.port);
            if answer.kind() == "error" {
                assert_eq!(answer.code(), EXHAUSTED, "{answer:?}");
                assert!(answer.message().contains("wait for"), "{answer:?}");
            }
            seen.push(answer.kind().to_owned());
        }
        let described = |kinds: &[String]| kinds.iter().filter(|k| *k == "models_ok").count();
        let all = described(&seen);
        assert!(all > 0 && all < count, "{all} of {count} were described");
        assert!(
            described(&seen[..earlier]) < described(&seen),
            "the other client waited for all of them"
        );
        assert!(grown < 64 << 20, "{grown} bytes");
        // Its share is free again.
        let id = asks.id();
        let question = json!({"v": 1, "type": "models", "id": id, "model": "./other"});
        send(&asks.port, &[pack(&question)]);
        assert_eq!(receive(&asks.port).kind(), "models_ok");
    });
}

#[test]
fn status_questions_without_end_are_answered_or_refused_at_once() {
    within(LIMIT, || {
        let server = server();
        let (mut asks, mut other) = (Raw::open(&server), Raw::open(&server));
        let first = asks.id() + 1;
        for _ in 0..1_000 {
            let id = asks.id();
            send(
                &asks.port,
                &[pack(&json!({"v": 1, "type": "status", "id": id}))],
            );
        }
        other.status();
        let mut ids = Vec::new();
        for _ in 0..1_000 {
            let answer = receive(&asks.port);
            if answer.kind() != "status_ok" {
                assert_eq!(answer.code(), EXHAUSTED, "{answer:?}");
            }
            ids.push(answer.id());
        }
        ids.sort_unstable();
        assert_eq!(ids, (first..first + 1_000).collect::<Vec<_>>());
        // What it asked is no more open: the server counts up to date.
        asks.round(&[[1.0; 4]]);
        assert_eq!(asks.status()["totals"]["requests"], 1);
    });
}
