//! Every class of frames that break the rules: answered on the right socket with what is wrong, or dropped and
//! counted; and nobody else notices.

use std::time::Duration;

use mdm::DataType;
use serde_json::{Value, json};

use crate::common::{Server, models, onnx, within};
use crate::raw::{Raw, bytes, pack, receive, send};

/// What becomes of a message.
enum Fate {
    /// An error on `port_out`, of this code, whose message has these words.
    Out(&'static str, &'static str),
    /// An error on `port`.
    Port(&'static str, &'static str),
    /// Nothing but a number in the status.
    Dropped,
}
use Fate::{Dropped, Out, Port};

const INVALID: &str = "INVALID_ARGUMENT";

struct Case {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    fate: Fate,
}

/// A good infer's header, to be spoilt.
fn good(id: u64) -> Value {
    json!({
        "v": 1, "type": "infer", "id": id, "model": "echo",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [2, 4]}],
    })
}

fn input(id: u64, model: &str, name: &str, dtype: &str, shape: Value) -> Vec<u8> {
    pack(&json!({
        "v": 1, "type": "infer", "id": id, "model": model,
        "inputs": [{"name": name, "dtype": dtype, "shape": shape}],
    }))
}

/// A good header with one field changed.
fn with(id: u64, field: &str, value: Value) -> Vec<u8> {
    let mut header = good(id);
    header[field] = value;
    pack(&header)
}

fn without(id: u64, field: &str) -> Vec<u8> {
    let mut header = good(id);
    header.as_object_mut().expect("a map").remove(field);
    pack(&header)
}

/// A map with `v`, `type` and `id`, and room for one more entry, whose bytes follow.
fn open_map(kind: &str, id: u64, rest: &[u8]) -> Vec<u8> {
    let mut map = pack(&json!({"v": 1, "type": kind, "id": id}));
    assert_eq!(map[0], 0x83);
    map[0] = 0x84;
    map.extend_from_slice(rest);
    map
}

fn offsets(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn rows() -> Vec<u8> {
    bytes(&[1.0; 8])
}

/// The header alone is at fault: a good payload goes with it.
fn bad_headers(id: u64) -> Vec<Case> {
    let nested = |depth: usize| {
        let mut rest = b"\xa6params\x81\xa1a".to_vec();
        rest.extend(vec![0x91; depth]);
        rest.push(0xc0);
        open_map("infer", id, &rest)
    };
    let huge_inputs = open_map("infer", id, b"\xa6inputs\xdd\xff\xff\xff\xff");
    let mut cases: Vec<(&'static str, Vec<u8>, Fate)> = vec![
        (
            "a wrong v",
            with(id, "v", json!(2)),
            Out(INVALID, "protocol version 2"),
        ),
        (
            "v is a string",
            with(id, "v", json!("1")),
            Out(INVALID, "`v`"),
        ),
        ("no v", without(id, "v"), Out(INVALID, "`v`")),
        ("no type", without(id, "type"), Port(INVALID, "`type`")),
        (
            "the type is a number",
            with(id, "type", json!(5)),
            Port(INVALID, "`type`"),
        ),
        ("no id", without(id, "id"), Dropped),
        ("a negative id", with(id, "id", json!(-1)), Dropped),
        ("the id is a float", with(id, "id", json!(1.5)), Dropped),
        ("the id is a string", with(id, "id", json!("7")), Dropped),
        ("the id is nil", with(id, "id", Value::Null), Dropped),
        (
            "the model is a number",
            with(id, "model", json!(5)),
            Out(INVALID, "model"),
        ),
        (
            "params are no map",
            with(id, "params", json!([1])),
            Out(INVALID, "params"),
        ),
        ("params 10,000 levels deep", nested(10_000), Dropped),
        (
            "params with a number as key",
            open_map("infer", id, b"\xa6params\x81\x01\x02"),
            Out(INVALID, "params"),
        ),
        (
            "params with bytes inside",
            open_map("infer", id, b"\xa6params\x81\xa1a\xc4\x01\x00"),
            Out(INVALID, "params"),
        ),
        (
            "params with an extension inside",
            open_map("infer", id, b"\xa6params\x81\xa1a\xd4\x05\x00"),
            Out(INVALID, "params"),
        ),
        ("no inputs", without(id, "inputs"), Out(INVALID, "inputs")),
        (
            "inputs are a map",
            with(id, "inputs", json!({"x": 1})),
            Out(INVALID, "inputs"),
        ),
        (
            "inputs are empty",
            with(id, "inputs", json!([])),
            Out(INVALID, "inputs"),
        ),
        (
            "an input is a number",
            with(id, "inputs", json!([5])),
            Out(INVALID, "inputs"),
        ),
        (
            "an input without a name",
            with(id, "inputs", json!([{"dtype": "FP32", "shape": [2, 4]}])),
            Out(INVALID, "name"),
        ),
        (
            "the name is a number",
            with(
                id,
                "inputs",
                json!([{"name": 1, "dtype": "FP32", "shape": [2, 4]}]),
            ),
            Out(INVALID, "inputs"),
        ),
        (
            "the datatype is a number",
            with(
                id,
                "inputs",
                json!([{"name": "x", "dtype": 32, "shape": [2, 4]}]),
            ),
            Out(INVALID, "inputs"),
        ),
        (
            "an unknown datatype",
            input(id, "echo", "x", "FP128", json!([2, 4])),
            Out(INVALID, "FP128"),
        ),
        (
            "the shape is a number",
            input(id, "echo", "x", "FP32", json!(8)),
            Out(INVALID, "inputs"),
        ),
        (
            "a negative dimension",
            input(id, "echo", "x", "FP32", json!([-2, 4])),
            Out(INVALID, "inputs"),
        ),
        (
            "a dimension is a float",
            input(id, "echo", "x", "FP32", json!([2.0, 4])),
            Out(INVALID, "inputs"),
        ),
        (
            "an unknown priority",
            with(id, "priority", json!("urgent")),
            Out(INVALID, "urgent"),
        ),
        (
            "the priority is a number",
            with(id, "priority", json!(1)),
            Out(INVALID, "priority"),
        ),
        (
            "a negative timeout_ms",
            with(id, "timeout_ms", json!(-1)),
            Out(INVALID, "timeout_ms"),
        ),
        (
            "stream is a number",
            with(id, "stream", json!(1)),
            Out(INVALID, "stream"),
        ),
        ("an empty header", vec![], Dropped),
        (
            "a truncated header",
            pack(&good(id))[..30].to_vec(),
            Dropped,
        ),
        (
            "a header that promises 4 billion inputs",
            huge_inputs,
            Dropped,
        ),
        (
            "a header that promises a string of 4 GiB",
            open_map("infer", id, b"\xa5model\xdb\xff\xff\xff\xff"),
            Dropped,
        ),
        (
            "a header that promises 4 billion entries",
            b"\xdf\xff\xff\xff\xff\xa1v\x01".to_vec(),
            Dropped,
        ),
        (
            "a header that is text",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Dropped,
        ),
        (
            "a header that is JSON",
            good(id).to_string().into_bytes(),
            Dropped,
        ),
        (
            "a header that is an array",
            pack(&json!([1, "hello", id])),
            Dropped,
        ),
        ("a header that is a number", pack(&json!(id)), Dropped),
        ("a reserved byte", vec![0xc1], Dropped),
        (
            "the id twice",
            open_map("infer", id, b"\xa2id\x05"),
            Dropped,
        ),
        (
            "a name that is not UTF-8",
            open_map("infer", id, b"\xa5model\xa1\xff"),
            Out(INVALID, "header"),
        ),
    ];
    let mut garbage = pack(&good(id));
    garbage.extend_from_slice(b"more");
    cases.push(("garbage behind the header", garbage, Out(INVALID, "header")));
    let with_rows = |(name, header, fate)| Case {
        name,
        frames: vec![header, rows()],
        fate,
    };
    cases.into_iter().map(with_rows).collect()
}

/// The payload does not fit the header, or both do not fit the model.
fn bad_payloads(id: u64) -> Vec<Case> {
    let echo = |shape: Value| input(id, "echo", "x", "FP32", shape);
    let two = |first: &str, second: &str| {
        pack(&json!({
            "v": 1, "type": "infer", "id": id, "model": "pair",
            "inputs": [{"name": first, "dtype": "FP32", "shape": [2, 3]},
                       {"name": second, "dtype": "INT64", "shape": [2, 3]}],
        }))
    };
    let six = || bytes(&[0.0; 6]);
    let text = |shape: Value| input(id, "upper", "x", "BYTES", shape);
    let ab = || b"ab".to_vec();
    let many: Vec<Value> = (0..5000)
        .map(|i| json!({"name": i.to_string(), "dtype": "INT8", "shape": [1]}))
        .collect();
    let mut many = vec![with(id, "inputs", json!(many))];
    many.extend(vec![vec![1u8]; 5000]);
    let huge = u64::MAX;
    let case = |name, frames, words| Case {
        name,
        frames,
        fate: Out(INVALID, words),
    };
    vec![
        case("no payload", vec![echo(json!([2, 4]))], "\"x\""),
        case(
            "a frame too many",
            vec![echo(json!([2, 4])), rows(), rows()],
            "2 payload frames",
        ),
        case(
            "a short payload",
            vec![echo(json!([2, 4])), rows()[1..].to_vec()],
            "\"x\"",
        ),
        case(
            "a long payload",
            vec![echo(json!([2, 4])), bytes(&[0.0; 9])],
            "\"x\"",
        ),
        case(
            "an empty payload",
            vec![echo(json!([2, 4])), vec![]],
            "\"x\"",
        ),
        case(
            "a shape that overflows",
            vec![echo(json!([huge, huge])), rows()],
            "\"x\"",
        ),
        case(
            "a shape that overflows in bytes",
            vec![echo(json!([1u64 << 62, 4])), rows()],
            "\"x\"",
        ),
        case(
            "a shape that wraps around to nothing",
            vec![echo(json!([1u64 << 32, 1u64 << 32])), vec![]],
            "\"x\"",
        ),
        case(
            "endless rows of nothing",
            vec![input(id, "free", "x", "FP32", json!([huge, 0])), vec![]],
            "\"mask\"",
        ),
        case("no rows", vec![echo(json!([0, 4])), vec![]], "no rows"),
        case("a scalar", vec![echo(json!([])), bytes(&[1.0])], "\"x\""),
        case(
            "a wrong rank",
            vec![echo(json!([2, 2, 2])), rows()],
            "\"x\"",
        ),
        case("a wrong width", vec![echo(json!([4, 2])), rows()], "\"x\""),
        case(
            "a rank of a thousand",
            vec![
                input(id, "any", "x", "FP32", json!(vec![1; 1000])),
                bytes(&[1.0]),
            ],
            "\"x\"",
        ),
        case(
            "a wrong datatype",
            vec![input(id, "echo", "x", "FP64", json!([1, 4])), rows()],
            "FP64",
        ),
        case(
            "an unknown input",
            vec![input(id, "echo", "z", "FP32", json!([2, 4])), rows()],
            "\"z\"",
        ),
        case(
            "a missing input",
            vec![input(id, "pair", "a", "FP32", json!([2, 3])), six()],
            "\"b\"",
        ),
        case(
            "an input given twice",
            vec![two("a", "a"), six(), offsets(&[0; 6])],
            "\"a\"",
        ),
        case(
            "inputs that differ in rows",
            vec![
                pack(&json!({
                    "v": 1, "type": "infer", "id": id, "model": "pair",
                    "inputs": [{"name": "a", "dtype": "FP32", "shape": [2, 3]},
                               {"name": "b", "dtype": "INT64", "shape": [1, 3]}],
                })),
                six(),
                offsets(&[0; 3]),
            ],
            "rows",
        ),
        case("5,000 inputs", many, "inputs"),
        case(
            "a BOOL byte of 2",
            vec![
                input(id, "flags", "x", "BOOL", json!([2, 2])),
                vec![0, 1, 2, 1],
            ],
            "\"x\"",
        ),
        case(
            "JSON to an ONNX model",
            vec![
                input(id, "upper", "x", "JSON", json!([1])),
                offsets(&[0, 2]),
                b"\xc1\xc1".to_vec(),
            ],
            "JSON",
        ),
        case(
            "strings without values",
            vec![text(json!([2])), offsets(&[0, 1, 2])],
            "\"x\"",
        ),
        case(
            "offsets that descend",
            vec![text(json!([2])), offsets(&[0, 2, 1]), ab()],
            "\"x\"",
        ),
        case(
            "offsets that start behind 0",
            vec![text(json!([2])), offsets(&[1, 1, 2]), ab()],
            "\"x\"",
        ),
        case(
            "offsets beyond the values",
            vec![text(json!([2])), offsets(&[0, 1, 3]), ab()],
            "\"x\"",
        ),
        case(
            "offsets that end early",
            vec![text(json!([2])), offsets(&[0, 1, 1]), ab()],
            "\"x\"",
        ),
        case(
            "an offset of 2^64-1",
            vec![text(json!([2])), offsets(&[0, huge, 2]), ab()],
            "\"x\"",
        ),
        case(
            "an offset too few",
            vec![text(json!([2])), offsets(&[0, 2]), ab()],
            "\"x\"",
        ),
        case(
            "offsets that are no u64",
            vec![text(json!([2])), vec![0; 23], ab()],
            "\"x\"",
        ),
        case(
            "no offsets at all",
            vec![text(json!([2])), vec![], vec![]],
            "\"x\"",
        ),
        case(
            "2^64-1 strings",
            vec![text(json!([huge])), vec![], vec![]],
            "\"x\"",
        ),
        case(
            "strings that are not UTF-8",
            vec![text(json!([1])), offsets(&[0, 2]), b"\xff\xfe".to_vec()],
            "\"x\"",
        ),
        case(
            "a string with a NUL",
            vec![text(json!([1])), offsets(&[0, 2]), b"a\0".to_vec()],
            "\"x\"",
        ),
    ]
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
    try_all(bad_headers);
}

#[test]
fn payloads_that_break_the_rules() {
    try_all(bad_payloads);
}

#[test]
fn messages_other_than_infer_that_break_the_rules() {
    try_all(others);
}
