//! Writes small ONNX models (opset 17) for tests and benchmarks: the same bytes every time, no Python.
#![allow(dead_code)] // each test and benchmark uses some of the models

#[path = "onnx_parts.rs"]
pub mod parts;

use mdm::DataType;
use parts::proto::*;
pub use parts::*;

/// The identity for any datatype but JSON: input "x", output "y", both `[N, dims…]`.
pub fn echo(datatype: DataType, dims: &[usize]) -> Vec<u8> {
    let mut shape = vec![D::Sym("N")];
    shape.extend(dims.iter().map(|&dim| D::Fix(dim as i64)));
    let element = element(datatype);
    graph(
        vec![node("Identity", &["x"], &["y"], vec![])],
        vec![value("x", element, &shape)],
        vec![value("y", element, &shape)],
        vec![],
    )
}

/// A perceptron 64-256-256-10 with Relu: "x" FP32 [N,64], "y" FP32 [N,10].
pub fn mlp() -> Vec<u8> {
    let mut nodes = Vec::new();
    let mut weights = Vec::new();
    let sizes = [64, 256, 256, 10];
    let mut from = "x".to_owned();
    for layer in 0..3 {
        let (rows, columns) = (sizes[layer], sizes[layer + 1]);
        let (w, b, z) = (
            format!("w{layer}"),
            format!("b{layer}"),
            if layer == 2 {
                "y".to_owned()
            } else {
                format!("z{layer}")
            },
        );
        let scale = (6.0 / (rows + columns) as f32).sqrt();
        weights.push(floats(&w, &[rows, columns], scale, layer as u64 + 1));
        weights.push(floats(&b, &[columns], 0.1, layer as u64 + 11));
        nodes.push(node("Gemm", &[&from, &w, &b], &[&z], vec![]));
        from = z;
        if layer < 2 {
            let relu = format!("h{layer}");
            nodes.push(node("Relu", &[&from], &[&relu], vec![]));
            from = relu;
        }
    }
    graph(
        nodes,
        vec![value("x", ElementType::Float, &[D::Sym("N"), D::Fix(64)])],
        vec![value("y", ElementType::Float, &[D::Sym("N"), D::Fix(10)])],
        weights,
    )
}

/// A sequence labeller: "ids" INT64 [N,64] below 5,000 -> embedding 100 -> bidirectional LSTM 128 -> "logits" FP32
/// [N,64,3].
pub fn bilstm() -> Vec<u8> {
    let (vocabulary, embedding, hidden, positions) = (5000, 100, 128, 64);
    let nodes = vec![
        node("Gather", &["embedding", "ids"], &["e"], vec![]),
        // ONNX's LSTM wants [sequence, batch, features].
        node("Transpose", &["e"], &["s"], vec![ints("perm", &[1, 0, 2])]),
        node(
            "LSTM",
            &["s", "w", "r", "b"],
            &["h"],
            vec![
                int("hidden_size", hidden as i64),
                string("direction", "bidirectional"),
            ],
        ),
        // [sequence, directions, batch, hidden] -> [batch, sequence, directions, hidden]
        node(
            "Transpose",
            &["h"],
            &["t"],
            vec![ints("perm", &[2, 0, 1, 3])],
        ),
        node("Reshape", &["t", "joined"], &["f"], vec![]),
        node("MatMul", &["f", "v"], &["m"], vec![]),
        node("Add", &["m", "c"], &["logits"], vec![]),
    ];
    let weights = vec![
        floats("embedding", &[vocabulary, embedding], 1.0, 21),
        floats("w", &[2, 4 * hidden, embedding], 0.1, 22),
        floats("r", &[2, 4 * hidden, hidden], 0.1, 23),
        floats("b", &[2, 8 * hidden], 0.1, 24),
        integers("joined", &[0, 0, 2 * hidden as i64]),
        floats("v", &[2 * hidden, 3], 0.1, 25),
        floats("c", &[3], 0.1, 26),
    ];
    let n = D::Sym("N");
    graph(
        nodes,
        vec![value("ids", ElementType::Int64, &[n, D::Fix(positions)])],
        vec![value(
            "logits",
            ElementType::Float,
            &[n, D::Fix(positions), D::Fix(3)],
        )],
        weights,
    )
}

/// "x" FP32 [N,1024] through square MatMuls with so many megabytes (4 each) of weights, inside the file, to "y".
pub fn matmul_weights(megabytes: usize) -> Vec<u8> {
    let layers = (megabytes / 4).max(1);
    let mut nodes = Vec::new();
    let mut weights = Vec::new();
    for layer in 0..layers {
        let from = if layer == 0 {
            "x".to_owned()
        } else {
            format!("z{}", layer - 1)
        };
        let to = if layer + 1 == layers {
            "y".to_owned()
        } else {
            format!("z{layer}")
        };
        let w = format!("w{layer}");
        nodes.push(node("MatMul", &[&from, &w], &[&to], vec![]));
        weights.push(floats(&w, &[1024, 1024], 0.05, 100 + layer as u64));
    }
    let shape = [D::Sym("N"), D::Fix(1024)];
    graph(
        nodes,
        vec![value("x", ElementType::Float, &shape)],
        vec![value("y", ElementType::Float, &shape)],
        weights,
    )
}

/// As [`matmul_weights`] with one MatMul of so many megabytes (256 rows of weights).
pub fn one_matmul(megabytes: usize) -> Vec<u8> {
    let columns = megabytes * 1024;
    graph(
        vec![node("MatMul", &["x", "w"], &["y"], vec![])],
        vec![value("x", ElementType::Float, &[D::Sym("N"), D::Fix(256)])],
        vec![value(
            "y",
            ElementType::Float,
            &[D::Sym("N"), D::Fix(columns as i64)],
        )],
        vec![floats("w", &[256, columns], 0.05, 99)],
    )
}

/// The proxy of a model file that has exactly so many rows at a time.
pub fn rows_at_a_time(file: &str, rows: usize) -> Vec<u8> {
    format!(r#"{{"mdm":1,"onnx":"{file}","options":{{"batch":{rows}}}}}"#).into_bytes()
}

/// "x" FP32 [b,8] -> "y" FP32 [b,4]: exactly `b` rows at a time.
pub fn fixed_batch(b: usize) -> Vec<u8> {
    graph(
        vec![node("MatMul", &["x", "w"], &["y"], vec![])],
        vec![value(
            "x",
            ElementType::Float,
            &[D::Fix(b as i64), D::Fix(8)],
        )],
        vec![value(
            "y",
            ElementType::Float,
            &[D::Fix(b as i64), D::Fix(4)],
        )],
        vec![floats("w", &[8, 4], 1.0, 31)],
    )
}

/// "m" FP32 [n,n] x "v" FP32 [n] -> "y" FP32 [n]: dimension 0 is the same everywhere, and is no row.
pub fn square_times_vector(n: usize) -> Vec<u8> {
    let n = || D::Fix(n as i64);
    graph(
        vec![node("MatMul", &["m", "v"], &["y"], vec![])],
        vec![
            value("m", ElementType::Float, &[n(), n()]),
            value("v", ElementType::Float, &[n()]),
        ],
        vec![value("y", ElementType::Float, &[n()])],
        vec![],
    )
}

/// "a" FP32 [3,4] x "b" FP32 [4,5] -> "y" FP32 [3,5], "rank" INT64 []: dimension 0 is no row.
pub fn no_batch() -> Vec<u8> {
    graph(
        vec![
            node("MatMul", &["a", "b"], &["y"], vec![]),
            node("Size", &["y"], &["size"], vec![]),
        ],
        vec![
            value("a", ElementType::Float, &[D::Fix(3), D::Fix(4)]),
            value("b", ElementType::Float, &[D::Fix(4), D::Fix(5)]),
        ],
        vec![
            value("y", ElementType::Float, &[D::Fix(3), D::Fix(5)]),
            value("size", ElementType::Int64, &[]),
        ],
        vec![],
    )
}

/// "a" FP32 [N,3], "b" INT64 [N,3] -> "sum" FP32 [N,3], "difference" INT64 [N,3].
pub fn two_inputs_two_outputs() -> Vec<u8> {
    let shape = [D::Sym("N"), D::Fix(3)];
    graph(
        vec![
            node(
                "Cast",
                &["b"],
                &["bf"],
                vec![int("to", ElementType::Float as i64)],
            ),
            node(
                "Cast",
                &["a"],
                &["ai"],
                vec![int("to", ElementType::Int64 as i64)],
            ),
            node("Add", &["a", "bf"], &["sum"], vec![]),
            node("Sub", &["ai", "b"], &["difference"], vec![]),
        ],
        vec![
            value("a", ElementType::Float, &shape),
            value("b", ElementType::Int64, &shape),
        ],
        vec![
            value("sum", ElementType::Float, &shape),
            value("difference", ElementType::Int64, &shape),
        ],
        vec![],
    )
}

/// "x" FP32 [N,S] and "mask" FP32 [N,S] -> "y" FP32 [N,S]: a second symbol, which requests may bind differently.
pub fn two_symbols() -> Vec<u8> {
    let shape = [D::Sym("N"), D::Sym("S")];
    graph(
        vec![node("Mul", &["x", "mask"], &["y"], vec![])],
        vec![
            value("x", ElementType::Float, &shape),
            value("mask", ElementType::Float, &shape),
        ],
        vec![value("y", ElementType::Float, &shape)],
        vec![],
    )
}

/// "x" BYTES [N] -> "y" BYTES [N], in upper case.
pub fn upper_case() -> Vec<u8> {
    graph(
        vec![node(
            "StringNormalizer",
            &["x"],
            &["y"],
            vec![
                string("case_change_action", "UPPER"),
                int("is_case_sensitive", 1),
                // The engine's default locale is not on every machine.
                string("locale", "C"),
            ],
        )],
        vec![value("x", ElementType::String, &[D::Sym("N")])],
        vec![value("y", ElementType::String, &[D::Sym("N")])],
        vec![],
    )
}

/// "x" INT64 [N] -> "y" FP32 [N]: looks up a table of 10, and fails for any other number.
pub fn failing_at_run() -> Vec<u8> {
    graph(
        vec![node("Gather", &["table", "x"], &["y"], vec![])],
        vec![value("x", ElementType::Int64, &[D::Sym("N")])],
        vec![value("y", ElementType::Float, &[D::Sym("N")])],
        vec![floats("table", &[10], 1.0, 41)],
    )
}

/// "x" FP32 [N,2] -> "y" FP32 [M,2] declared as if it had as many rows, but with twice as many.
pub fn wrong_rows() -> Vec<u8> {
    graph(
        vec![node("Tile", &["x", "twice"], &["y"], vec![])],
        vec![value("x", ElementType::Float, &[D::Any, D::Fix(2)])],
        vec![value("y", ElementType::Float, &[D::Any, D::Fix(2)])],
        vec![integers("twice", &[2, 1])],
    )
}

/// "x" FP32 [N] -> those of them that are as large as the largest, declared as if it were all: right for one row.
pub fn largest_only() -> Vec<u8> {
    let shape = [D::Sym("N")];
    graph(
        vec![
            node("ReduceMax", &["x"], &["m"], vec![int("keepdims", 1)]),
            node("Equal", &["x", "m"], &["e"], vec![]),
            node("Compress", &["x", "e"], &["y"], vec![int("axis", 0)]),
        ],
        vec![value("x", ElementType::Float, &shape)],
        vec![value("y", ElementType::Float, &shape)],
        vec![],
    )
}

/// "x" FP32 [?,4] -> "y" FP32 [?,4]: dynamic without a name.
pub fn dynamic_unnamed() -> Vec<u8> {
    graph(
        vec![node("Neg", &["x"], &["y"], vec![])],
        vec![value("x", ElementType::Float, &[D::Any, D::Fix(4)])],
        vec![value("y", ElementType::Float, &[D::Any, D::Fix(4)])],
        vec![],
    )
}

/// "x" FP32 of any rank -> "y" FP32 of any rank.
pub fn any_rank() -> Vec<u8> {
    let unranked = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: ElementType::Float as i32,
                shape: None,
            }),
            ..TypeProto::default()
        }),
    };
    graph(
        vec![node("Neg", &["x"], &["y"], vec![])],
        vec![unranked("x")],
        vec![unranked("y")],
        vec![],
    )
}

/// An output that is the input itself, without a node in between ("x" FP32 [N,512]), beside one that is not ("y").
pub fn pass_through() -> Vec<u8> {
    let shape = [D::Sym("N"), D::Fix(512)];
    graph(
        vec![node("Neg", &["x"], &["y"], vec![])],
        vec![value("x", ElementType::Float, &shape)],
        vec![
            value("x", ElementType::Float, &shape),
            value("y", ElementType::Float, &shape),
        ],
        vec![],
    )
}

/// "x" FP32 [N,2] -> "y", a sequence: not to be served.
pub fn sequence_output() -> Vec<u8> {
    let tensor = value("x", ElementType::Float, &[D::Sym("N"), D::Fix(2)]);
    let sequence = ValueInfoProto {
        name: "y".to_owned(),
        r#type: Some(TypeProto {
            tensor_type: None,
            sequence_type: Some(Box::new(SequenceTypeProto {
                elem_type: tensor.r#type.clone().map(Box::new),
            })),
        }),
    };
    graph(
        vec![node("SequenceConstruct", &["x", "x"], &["y"], vec![])],
        vec![tensor],
        vec![sequence],
        vec![],
    )
}

/// Weights that optimisers fold and fuse, that a subgraph uses, and that come in several datatypes: "x" FP32 [N,32] ->
/// "y" FP32 [N,32].
pub fn awkward_weights() -> Vec<u8> {
    let branch = |name: &str, op: &str, inputs: &[&str]| GraphProto {
        name: name.to_owned(),
        node: vec![node(op, inputs, &[&format!("{name}_out")], vec![])],
        output: vec![value(
            &format!("{name}_out"),
            ElementType::Float,
            &[D::Sym("N"), D::Fix(32)],
        )],
        ..GraphProto::default()
    };
    let half = |name: &str, seed| {
        let full = floats(name, &[32, 32], 0.2, seed);
        let halves: Vec<u8> = full
            .raw_data
            .chunks_exact(4)
            .flat_map(|b| {
                half::f16::from_f32(f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes()
            })
            .collect();
        TensorProto {
            data_type: ElementType::Float16 as i32,
            raw_data: halves.into(),
            ..full
        }
    };
    let mut fields = floats("fields", &[32, 32], 0.2, 54);
    fields.float_data = fields
        .raw_data
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    fields.raw_data = bytes::Bytes::new();
    let mut choose = attribute("then_branch", AttributeType::Graph);
    choose.g = Some(branch("then", "MatMul", &["h", "inner"]));
    let mut otherwise = attribute("else_branch", AttributeType::Graph);
    otherwise.g = Some(branch("else", "Neg", &["h"]));
    graph(
        vec![
            // Folded when a session is made: its weights are new in each.
            node(
                "Transpose",
                &["turned"],
                &["straight"],
                vec![ints("perm", &[1, 0])],
            ),
            node("MatMul", &["x", "straight"], &["a"], vec![]),
            node(
                "Cast",
                &["halves"],
                &["widened"],
                vec![int("to", ElementType::Float as i64)],
            ),
            node("MatMul", &["a", "widened"], &["b"], vec![]),
            node("MatMul", &["b", "fields"], &["c"], vec![]),
            // The same weights twice, plainly and turned.
            node("Gemm", &["c", "fields"], &["d"], vec![int("transB", 1)]),
            node("Add", &["d", "bias"], &["h"], vec![]),
            node("Size", &["h"], &["size"], vec![]),
            node(
                "Cast",
                &["size"],
                &["some"],
                vec![int("to", ElementType::Bool as i64)],
            ),
            node("If", &["some"], &["y"], vec![choose, otherwise]),
        ],
        vec![value("x", ElementType::Float, &[D::Sym("N"), D::Fix(32)])],
        vec![value("y", ElementType::Float, &[D::Sym("N"), D::Fix(32)])],
        vec![
            floats("turned", &[32, 32], 0.2, 51),
            half("halves", 52),
            floats("inner", &[32, 32], 0.2, 53),
            fields,
            floats("bias", &[32, 32], 0.2, 55),
        ]
        .into_iter()
        .map(|mut tensor| {
            if tensor.name == "bias" {
                tensor.dims = vec![32];
                tensor.raw_data = tensor.raw_data.slice(..128);
            }
            tensor
        })
        .collect(),
    )
}

/// Constants between transpositions, which an optimiser turns around under their own names: "x" FP32 [N,32,16] ->
/// "y" FP32 [N,32,16].
pub fn turned_constants() -> Vec<u8> {
    let turn = || vec![ints("perm", &[0, 2, 1])];
    let shape = [D::Sym("N"), D::Fix(32), D::Fix(16)];
    graph(
        vec![
            node("Transpose", &["x"], &["t"], turn()),
            node("Add", &["t", "added"], &["a"], vec![]),
            node("Mul", &["a", "factors"], &["m"], vec![]),
            node("Transpose", &["m"], &["b"], turn()),
            node("MatMul", &["b", "w"], &["c"], vec![]),
            node("Transpose", &["c"], &["d"], turn()),
            node("Sub", &["d", "added"], &["e"], vec![]),
            node("Transpose", &["e"], &["y"], turn()),
        ],
        vec![value("x", ElementType::Float, &shape)],
        vec![value("y", ElementType::Float, &shape)],
        vec![
            floats("added", &[16, 32], 0.5, 61),
            floats("factors", &[1, 16, 32], 0.5, 62),
            floats("w", &[16, 16], 0.5, 63),
        ],
    )
}

/// As [`one_matmul`] with its weights in a second file, of that name. The model, and that file.
pub fn external_weights(file: &str) -> (Vec<u8>, Vec<u8>) {
    let mut weights = floats("w", &[256, 1024], 0.05, 98);
    let raw = std::mem::take(&mut weights.raw_data).to_vec();
    weights.data_location = 1;
    weights.external_data = vec![StringStringEntryProto {
        key: "location".to_owned(),
        value: file.to_owned(),
    }];
    let model = graph(
        vec![node("MatMul", &["x", "w"], &["y"], vec![])],
        vec![value("x", ElementType::Float, &[D::Sym("N"), D::Fix(256)])],
        vec![value("y", ElementType::Float, &[D::Sym("N"), D::Fix(1024)])],
        vec![weights],
    );
    (model, raw)
}

/// Where a graph has an operator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Top,
    /// In both branches of an If.
    InBranches,
}

/// "x" FP32 [L,N,4] -> "h" FP32 [1,N,2], the last state of an LSTM.
pub fn recurrent(lstm_at: Place) -> Vec<u8> {
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
    let nodes = match lstm_at {
        Place::InBranches => vec![
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
        Place::Top => vec![lstm("h")],
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
