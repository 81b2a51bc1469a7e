//! Headers that break the rules.

use serde_json::{Value, json};

use crate::malformed::Fate::{self, Dropped, Out, Port};
use crate::malformed::{Case, INVALID, good, input, rows, with, without};
use crate::raw::pack;

/// The header alone is at fault: a good payload goes with it.
pub fn bad_headers(id: u64) -> Vec<Case> {
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
            "a choice about bad rows that there is not",
            with(id, "on_bad_row", json!("skip")),
            Out(INVALID, "\"fail\" or \"report\""),
        ),
        (
            "a choice about bad rows that is a flag",
            with(id, "on_bad_row", json!(true)),
            Out(INVALID, "`on_bad_row`"),
        ),
        (
            "params are no map",
            with(id, "params", json!([1])),
            Out(INVALID, "params"),
        ),
        (
            "params 10,000 levels deep",
            nested(10_000),
            Out(INVALID, "params"),
        ),
        (
            "params 100 levels deep",
            nested(100),
            Out(INVALID, "params"),
        ),
        (
            "a header of 2 MiB",
            with(id, "params", json!({"a": "a".repeat(2 << 20)})),
            Port(INVALID, "2097"),
        ),
        (
            "a type of 200 KiB",
            with(id, "type", json!("a".repeat(200_000))),
            Port(INVALID, "aaaa"),
        ),
        (
            "a datatype of 200 KiB",
            input(id, "echo", ("x", &"a".repeat(200_000)), json!([2, 4])),
            Out(INVALID, "aaaa"),
        ),
        (
            "a header of a byte more than it may have",
            {
                let of = |bytes: usize| with(id, "params", json!({"a": "a".repeat(bytes)}));
                of(262_145 + 200_000 - of(200_000).len())
            },
            Out(INVALID, "262145 bytes, and 262144 is the most"),
        ),
        (
            "params of too many values",
            with(id, "params", json!({"a": vec![json!({"b": null}); 5_000]})),
            Out(INVALID, "more than 10000 values"),
        ),
        (
            "a model's name longer than a path",
            with(id, "model", json!(format!("{}echo", "./".repeat(2_500)))),
            Out(INVALID, "4096 is the most"),
        ),
        (
            "a path longer than a path",
            with(
                id,
                "params",
                json!({"a_path": format!("{}echo.onnx", "./".repeat(2_500))}),
            ),
            Out(INVALID, "\"a_path\" has 5009 bytes"),
        ),
        (
            "a tensor's name of 2 KiB",
            input(id, "echo", (&"n".repeat(2048), "FP32"), json!([2, 4])),
            Out(INVALID, "1024 is the most"),
        ),
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
            input(id, "echo", ("x", "FP128"), json!([2, 4])),
            Out(INVALID, "FP128"),
        ),
        (
            "the shape is a number",
            input(id, "echo", ("x", "FP32"), json!(8)),
            Out(INVALID, "inputs"),
        ),
        (
            "a negative dimension",
            input(id, "echo", ("x", "FP32"), json!([-2, 4])),
            Out(INVALID, "inputs"),
        ),
        (
            "a dimension is a float",
            input(id, "echo", ("x", "FP32"), json!([2.0, 4])),
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
            Port(INVALID, "cannot be read"),
        ),
        (
            "a header that promises 4 billion inputs",
            huge_inputs,
            Out(INVALID, "inputs"),
        ),
        (
            "a header that promises a string of 4 GiB",
            open_map("infer", id, b"\xa5model\xdb\xff\xff\xff\xff"),
            Out(INVALID, "model"),
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
            Out(INVALID, "`id` is given twice"),
        ),
        (
            "a name that is not UTF-8",
            open_map("infer", id, b"\xa5model\xa1\xff"),
            Out(INVALID, "model"),
        ),
    ];
    let mut garbage = pack(&good(id));
    garbage.extend_from_slice(b"more");
    cases.push((
        "garbage behind the header",
        garbage,
        Out(INVALID, "behind its end"),
    ));
    let with_rows = |(name, header, fate)| Case {
        name,
        frames: vec![header, rows()],
        fate,
    };
    cases.into_iter().map(with_rows).collect()
}

/// A map with `v`, `type` and `id`, and room for one more entry, whose bytes follow.
fn open_map(kind: &str, id: u64, rest: &[u8]) -> Vec<u8> {
    let mut map = pack(&json!({"v": 1, "type": kind, "id": id}));
    assert_eq!(map[0], 0x83);
    map[0] = 0x84;
    map.extend_from_slice(rest);
    map
}
