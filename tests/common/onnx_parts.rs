//! The parts that ONNX models are made of: nodes, values, weights, attributes.
#![allow(dead_code)] // as in onnx.rs

#[path = "../../src/model/engine/proto.rs"]
pub mod proto;

use mdm::DataType;
use prost::Message;
use proto::*;

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum D {
    /// Always this size.
    Fix(i64),
    /// A symbol.
    Sym(&'static str),
    /// Dynamic, without a name.
    Any,
}

/// A model of any nodes.
pub fn graph(
    node: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> Vec<u8> {
    ModelProto {
        ir_version: 8,
        producer_name: "mdm-tests".to_owned(),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "g".to_owned(),
            node,
            input,
            output,
            initializer,
        }),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

/// A node.
pub fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        name: format!("{op}_{}", outputs.join("_")),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: outputs.iter().map(|&name| name.to_owned()).collect(),
        attribute,
        domain: String::new(),
    }
}

/// An input or output.
pub fn value(name: &str, element: ElementType, shape: &[D]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|dim| DimensionProto {
            value: match dim {
                D::Fix(size) => Some(DimensionValue::Size(*size)),
                D::Sym(name) => Some(DimensionValue::Symbol((*name).to_owned())),
                D::Any => None,
            },
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: element as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
            sequence_type: None,
        }),
    }
}

/// Weights between -scale and scale: the same for the same seed.
pub fn floats(name: &str, dims: &[usize], scale: f32, seed: u64) -> TensorProto {
    let count: usize = dims.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut raw = Vec::with_capacity(count * 4);
    for _ in 0..count {
        // xorshift64: enough to be without pattern.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        raw.extend_from_slice(&(unit * scale).to_le_bytes());
    }
    TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|&dim| dim as i64).collect(),
        data_type: ElementType::Float as i32,
        raw_data: raw.into(),
        ..TensorProto::default()
    }
}

/// A constant list of integers.
pub fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: ElementType::Int64 as i32,
        raw_data: values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>()
            .into(),
        ..TensorProto::default()
    }
}

/// An attribute without a value.
pub fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: kind as i32,
        ..AttributeProto::default()
    }
}

/// An integer attribute.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        i,
        ..attribute(name, AttributeType::Int)
    }
}

/// An attribute that is a list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    }
}

/// A text attribute.
pub fn string(name: &str, text: &str) -> AttributeProto {
    AttributeProto {
        s: text.as_bytes().to_vec().into(),
        ..attribute(name, AttributeType::String)
    }
}

/// ONNX's number for a datatype.
pub fn element(datatype: DataType) -> ElementType {
    match datatype {
        DataType::Bool => ElementType::Bool,
        DataType::Int8 => ElementType::Int8,
        DataType::Int16 => ElementType::Int16,
        DataType::Int32 => ElementType::Int32,
        DataType::Int64 => ElementType::Int64,
        DataType::Uint8 => ElementType::Uint8,
        DataType::Uint16 => ElementType::Uint16,
        DataType::Uint32 => ElementType::Uint32,
        DataType::Uint64 => ElementType::Uint64,
        DataType::Fp16 => ElementType::Float16,
        DataType::Bf16 => ElementType::Bfloat16,
        DataType::Fp32 => ElementType::Float,
        DataType::Fp64 => ElementType::Double,
        DataType::Bytes => ElementType::String,
        DataType::Json => panic!("ONNX has no JSON"),
    }
}
