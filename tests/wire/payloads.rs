//! Payloads that do not fit their header, or do not fit the model.

use serde_json::{Value, json};

use crate::malformed::Fate::Out;
use crate::malformed::{Case, INVALID, input, rows, with};
use crate::raw::{bytes, pack};

/// The payload does not fit the header, or both do not fit the model.
pub fn bad_payloads(id: u64) -> Vec<Case> {
    let echo = |shape: Value| input(id, "echo", ("x", "FP32"), shape);
    let two = |first: &str, second: &str| {
        pack(&json!({
            "v": 1, "type": "infer", "id": id, "model": "pair",
            "inputs": [{"name": first, "dtype": "FP32", "shape": [2, 3]},
                       {"name": second, "dtype": "INT64", "shape": [2, 3]}],
        }))
    };
    let six = || bytes(&[0.0; 6]);
    let text = |shape: Value| input(id, "upper", ("x", "BYTES"), shape);
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
            vec![input(id, "free", ("x", "FP32"), json!([huge, 0])), vec![]],
            "\"mask\"",
        ),
        case(
            "a trillion rows of nothing",
            vec![
                pack(&json!({
                    "v": 1, "type": "infer", "id": id, "model": "free",
                    "inputs": [{"name": "x", "dtype": "FP32", "shape": [1u64 << 40, 0]},
                               {"name": "mask", "dtype": "FP32", "shape": [1u64 << 40, 0]}],
                })),
                vec![],
                vec![],
            ],
            "rows",
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
                input(id, "any", ("x", "FP32"), json!(vec![1; 1000])),
                bytes(&[1.0]),
            ],
            "\"x\"",
        ),
        case(
            "a wrong datatype",
            vec![input(id, "echo", ("x", "FP64"), json!([1, 4])), rows()],
            "FP64",
        ),
        case(
            "an unknown input",
            vec![input(id, "echo", ("z", "FP32"), json!([2, 4])), rows()],
            "\"z\"",
        ),
        case(
            "a missing input",
            vec![input(id, "pair", ("a", "FP32"), json!([2, 3])), six()],
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
                input(id, "flags", ("x", "BOOL"), json!([2, 2])),
                vec![0, 1, 2, 1],
            ],
            "\"x\"",
        ),
        case(
            "JSON to an ONNX model",
            vec![
                input(id, "upper", ("x", "JSON"), json!([1])),
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

fn offsets(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}
