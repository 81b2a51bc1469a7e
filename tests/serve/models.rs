//! Models that only these tests serve.

use crate::common::onnx::parts::proto::{AttributeProto, AttributeType, ElementType, GraphProto};
use crate::common::onnx::parts::{D, attribute, floats, graph, int, integers, node, value};

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

/// "x" FP32 [L,N,4] -> "h" FP32 [1,N,2], the last state of an LSTM; `nested` has it in the branches of an If.
pub fn recurrent(nested: bool) -> Vec<u8> {
    let h = || {
        value(
            "h",
            ElementType::Float,
            &[D::Fix(1), D::Sym("N"), D::Fix(2)],
        )
    };
    let lstm = |to: &str| {
        node(
            "LSTM",
            &["x", "w", "r"],
            &["", to],
            vec![int("hidden_size", 2)],
        )
    };
    let branch = |name: &str| {
        let to = format!("{name}_h");
        let mut output = h();
        output.name.clone_from(&to);
        AttributeProto {
            g: Some(GraphProto {
                name: name.to_owned(),
                node: vec![lstm(&to)],
                output: vec![output],
                ..GraphProto::default()
            }),
            ..attribute(name, AttributeType::Graph)
        }
    };
    let nodes = match nested {
        true => vec![
            node("Size", &["x"], &["size"], vec![]),
            node(
                "Cast",
                &["size"],
                &["some"],
                vec![int("to", ElementType::Bool as i64)],
            ),
            node(
                "If",
                &["some"],
                &["h"],
                vec![branch("then_branch"), branch("else_branch")],
            ),
        ],
        false => vec![lstm("h")],
    };
    let shape = [D::Sym("L"), D::Sym("N"), D::Fix(4)];
    graph(
        nodes,
        vec![value("x", ElementType::Float, &shape)],
        vec![h()],
        vec![
            floats("w", &[1, 8, 4], 0.5, 1),
            floats("r", &[1, 8, 2], 0.5, 2),
        ],
    )
}
