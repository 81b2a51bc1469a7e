//! Models that only these tests serve.

use crate::common::onnx::parts::proto::{AttributeProto, AttributeType, ElementType, GraphProto};
use crate::common::onnx::parts::{D, attribute, graph, int, integers, node, value};

/// The rows that keep a worker busy: more than a small request has, and never more than one chunk.
pub const BUSY_ROWS: usize = 17;

/// "x" INT64 [17] -> "y" INT64 [17], the same numbers; it first counts to the largest of them, a million in about a
/// second: a worker is busy for as long as a test wants.
pub fn busy() -> Vec<u8> {
    let scalar = |name: &str, element| value(name, element, &[]);
    let body = GraphProto {
        name: "count".to_owned(),
        node: vec![
            node("Identity", &["go"], &["on"], vec![]),
            node("Add", &["before", "one"], &["after"], vec![]),
        ],
        input: vec![
            scalar("index", ElementType::Int64),
            scalar("go", ElementType::Bool),
            value("before", ElementType::Int64, &[D::Fix(1)]),
        ],
        output: vec![
            scalar("on", ElementType::Bool),
            value("after", ElementType::Int64, &[D::Fix(1)]),
        ],
        ..GraphProto::default()
    };
    graph(
        vec![
            node("ReduceMax", &["x"], &["most"], vec![int("keepdims", 0)]),
            node(
                "Loop",
                &["most", "", "one"],
                &["counted"],
                vec![AttributeProto {
                    g: Some(body),
                    ..attribute("body", AttributeType::Graph)
                }],
            ),
            // The count has to be used, or it would be optimised away.
            node("Mul", &["counted", "zero"], &["nothing"], vec![]),
            node("Add", &["x", "nothing"], &["y"], vec![]),
        ],
        vec![value("x", ElementType::Int64, &[D::Fix(BUSY_ROWS as i64)])],
        vec![value("y", ElementType::Int64, &[D::Fix(BUSY_ROWS as i64)])],
        vec![integers("one", &[1]), integers("zero", &[0])],
    )
}

/// The proxy that says of that model, which has this name, that its numbers are rows.
pub fn busy_rows(name: &str) -> Vec<u8> {
    format!(r#"{{"mdm": 1, "onnx": "{name}.onnx", "options": {{"batch": {BUSY_ROWS}}}}}"#).into()
}
