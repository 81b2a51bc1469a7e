//! Every class of frames that break the rules: answered on the right socket with what is wrong, or dropped and
//! counted; and nobody else notices.

use std::time::Duration;

use mdm::DataType;
use serde_json::{Value, json};

use crate::common::{Server, models, onnx, within};
use crate::raw::{Raw, bytes, pack, receive, send};

/// What becomes of a message.
pub enum Fate {
    /// An error on `port_out`, of this code, whose message has these words.
    Out(&'static str, &'static str),
    /// An error on `port`.
    Port(&'static str, &'static str),
    /// Nothing but a number in the status.
    Dropped,
}
use Fate::{Dropped, Out, Port};

pub const INVALID: &str = "INVALID_ARGUMENT";

pub struct Case {
    pub name: &'static str,
    pub frames: Vec<Vec<u8>>,
    pub fate: Fate,
}

/// A good infer's header, to be spoilt.
pub fn good(id: u64) -> Value {
    json!({
        "v": 1, "type": "infer", "id": id, "model": "echo",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [2, 4]}],
    })
}

/// The header of an infer of one input.
pub fn input(id: u64, model: &str, (name, dtype): (&str, &str), shape: Value) -> Vec<u8> {
    pack(&json!({
        "v": 1, "type": "infer", "id": id, "model": model,
        "inputs": [{"name": name, "dtype": dtype, "shape": shape}],
    }))
}

/// A good header with one field changed.
pub fn with(id: u64, field: &str, value: Value) -> Vec<u8> {
    let mut header = good(id);
    header[field] = value;
    pack(&header)
}

pub fn without(id: u64, field: &str) -> Vec<u8> {
    let mut header = good(id);
    header.as_object_mut().expect("a map").remove(field);
    pack(&header)
}

pub fn rows() -> Vec<u8> {
    bytes(&[1.0; 8])
}

/// Not an infer.
fn others(id: u64) -> Vec<Case> {
    let say = |kind: &str| pack(&json!({"v": 1, "type": kind, "id": id}));
    let case = |name, frames, fate| Case { name, frames, fate };
    vec![
        case(
            "an unknown type",
            vec![say("inver")],
            Port(INVALID, "inver"),
        ),
        case("an empty type", vec![say("")], Port(INVALID, "type")),
        case(
            "payload on a cancel",
            vec![say("cancel"), vec![1]],
            Port(INVALID, "cancel"),
        ),
        case(
            "payload on a hello",
            vec![say("hello"), vec![]],
            Port(INVALID, "hello"),
        ),
        case(
            "a cancel without v",
            vec![pack(&json!({"type": "cancel", "id": id}))],
            Port(INVALID, "`v`"),
        ),
        case(
            "an answer's type",
            vec![say("result")],
            Port(INVALID, "result"),
        ),
        case(
            "an unknown mode",
            vec![pack(
                &json!({"v": 1, "type": "terminate", "id": id, "mode": "hard"}),
            )],
            Port(INVALID, "hard"),
        ),
        case(
            "a load without a model",
            vec![say("load")],
            Port(INVALID, "model"),
        ),
        case(
            "a load of what is not there",
            vec![pack(
                &json!({"v": 1, "type": "load", "id": id, "model": "nix"}),
            )],
            Port("NOT_FOUND", "nix"),
        ),
        case(
            "an unload of what is not there",
            vec![pack(
                &json!({"v": 1, "type": "unload", "id": id, "model": "nix"}),
            )],
            Port("NOT_FOUND", "nix"),
        ),
        case(
            "an infer of a model that is not there",
            vec![with(id, "model", json!("nix")), rows()],
            Out("NOT_FOUND", "nix"),
        ),
        case(
            "a model outside the folder",
            vec![with(id, "model", json!("../echo")), rows()],
            Out("PERMISSION_DENIED", ".."),
        ),
        case(
            "a path outside the folder",
            vec![
                with(id, "params", json!({"data_path": "/etc/passwd"})),
                rows(),
            ],
            Out("PERMISSION_DENIED", "data_path"),
        ),
        case(
            "an infer without a model",
            vec![without(id, "model"), rows()],
            Out(INVALID, "model"),
        ),
        case("an empty message", vec![vec![]], Dropped),
    ]
}

fn server() -> Server {
    let folder = models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("flags.onnx", onnx::echo(DataType::Bool, &[2])),
        ("upper.onnx", onnx::upper_case()),
        ("pair.onnx", onnx::two_inputs_two_outputs()),
        ("free.onnx", onnx::two_symbols()),
        ("any.onnx", onnx::any_rank()),
    ]);
    Server::start(folder, &[])
}

fn dropped(status: &Value) -> u64 {
    status["totals"]["dropped"].as_u64().expect("a count")
}

/// Sends one, and sees its fate and nothing else.
fn try_case(raw: &mut Raw, make: impl Fn(u64) -> Case) {
    let before = dropped(&raw.status());
    let id = raw.id();
    let Case { name, frames, fate } = make(id);
    println!("{name}");
    send(&raw.port, &frames);
    let (answer, code, words) = match fate {
        Out(code, words) => (receive(&raw.out), code, words),
        Port(code, words) => (receive(&raw.port), code, words),
        Dropped => {
            assert_eq!(dropped(&raw.status()), before + 1, "{name}");
            return;
        }
    };
    assert_eq!(
        (answer.kind(), answer.id()),
        ("error", id),
        "{name}: {answer:?}"
    );
    assert_eq!(answer.code(), code, "{name}: {}", answer.message());
    assert!(
        answer.message().contains(words),
        "{name}: {}",
        answer.message()
    );
    assert!(answer.message().len() < 2000, "{name}: a message to read");
    assert_eq!(dropped(&raw.status()), before, "{name}");
}

fn try_all(cases: fn(u64) -> Vec<Case>) {
    within(Duration::from_secs(240), move || {
        let mut server = server();
        let (mut bad, mut bystander) = (Raw::open(&server), Raw::open(&server));
        bystander.round(&[[0.0; 4]]);
        let before = server.resident_bytes();
        for index in 0..cases(0).len() {
            try_case(&mut bad, |id| cases(id).swap_remove(index));
            bystander.round(&[[index as f32; 4], [0.5; 4]]);
        }
        // The session that sent all that has lost nothing but its time.
        bad.greet();
        bad.round(&[[9.0; 4]]);
        assert!(server.is_running());
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "grew by {grown} bytes");
    });
}

#[test]
fn headers_that_break_the_rules() {
    try_all(crate::headers::bad_headers);
}

#[test]
fn payloads_that_break_the_rules() {
    try_all(crate::payloads::bad_payloads);
}

#[test]
fn messages_other_than_infer_that_break_the_rules() {
    try_all(others);
}
