//! Weights that the workers' sessions share: which initializers of an ONNX file can be, and their values.
//!
//! A session that is given an initializer's value does not make its own copy, and sessions that are given the same
//! values and one container of prepacked weights share those too. But the engine does not check what it is given:
//! where one of its optimisers changes an initializer and keeps its name (the transpose optimiser does: it transposes
//! constants to save a node), the old value under the new shape would silently give wrong results. So only initializers
//! are shared that are used in no other way than as the weights of the operators below, which no optimiser rewrites
//! under the same name; they are where the bytes are.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType};

use super::proto::{AttributeProto, ElementType, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::tensor::element_count;

/// Smaller initializers are not shared: each costs an entry in every session's options.
const SMALLEST_BYTES: usize = 1024;

/// Operators, and which of their inputs are weights.
const WEIGHTS: [(&str, &[usize]); 20] = [
    ("MatMul", &[1]),
    ("MatMulInteger", &[1]),
    ("Gemm", &[1]),
    ("Conv", &[1]),
    ("ConvTranspose", &[1]),
    ("ConvInteger", &[1]),
    ("QLinearConv", &[3]),
    ("QLinearMatMul", &[3]),
    ("LSTM", &[1, 2, 3]),
    ("GRU", &[1, 2, 3]),
    ("RNN", &[1, 2, 3]),
    ("Gather", &[0]),
    // Fused and quantised forms of them, which exporters write in the domain com.microsoft.
    ("Attention", &[1]),
    ("QAttention", &[1]),
    ("FusedMatMul", &[1]),
    ("FusedGemm", &[1]),
    ("FusedConv", &[1]),
    ("MatMulNBits", &[1, 2, 3]),
    ("DynamicQuantizeMatMul", &[1]),
    ("DynamicQuantizeLSTM", &[1, 2]),
];

/// What every session of a model is given.
pub(super) struct Weights {
    initializers: Vec<(String, Arc<DynValue>)>,
    bytes: usize,
    prepacked: PrepackedWeights,
}

impl Weights {
    /// The weights that sessions of a model can share. They are copied out of the file, so that nothing done to the file
    /// later reaches the sessions.
    ///
    /// # Errors
    /// Why there are none, for the log.
    pub(super) fn of(model: &ModelProto) -> Result<Weights, &'static str> {
        let graph = model.graph.as_ref().ok_or("it has no graph")?;
        if graph
            .initializer
            .iter()
            .any(|tensor| tensor.data_location != 0)
        {
            return Err("its weights are outside the file");
        }
        let uses = uses(graph);
        let mut initializers = Vec::new();
        let mut bytes = 0;
        for tensor in &graph.initializer {
            if uses.get(tensor.name.as_str()) != Some(&Use::Weight) {
                continue;
            }
            if let Some(value) = value(tensor) {
                bytes += tensor.raw_data.len().max(tensor.float_data.len() * 4);
                initializers.push((tensor.name.clone(), Arc::new(value)));
            }
        }
        if initializers.is_empty() {
            return Err("it has no weights that sessions could share");
        }
        Ok(Weights {
            initializers,
            bytes,
            prepacked: PrepackedWeights::new(),
        })
    }

    /// How many bytes are shared.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Options with the weights in them.
    pub(super) fn give(&self, mut builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        for (name, value) in &self.initializers {
            builder = builder.with_initializer(name, value.clone())?;
        }
        Ok(builder.with_prepacked_weights(&self.prepacked)?)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Only ever as an operator's weights.
    Weight,
    /// Also in another way.
    Other,
}

/// How each name is used in a graph. Names that subgraphs mention, inputs (whose value a request could override) and
/// outputs count as [`Use::Other`].
fn uses(graph: &GraphProto) -> HashMap<&str, Use> {
    let mut uses = HashMap::new();
    for node in &graph.node {
        for (index, name) in node.input.iter().enumerate() {
            let this = if is_weight(node, index) {
                Use::Weight
            } else {
                Use::Other
            };
            uses.entry(name.as_str())
                .and_modify(|known| {
                    if this == Use::Other {
                        *known = Use::Other;
                    }
                })
                .or_insert(this);
        }
        for attribute in &node.attribute {
            for subgraph in subgraphs(attribute) {
                mark_all(subgraph, &mut uses);
            }
        }
    }
    for port in graph.input.iter().chain(&graph.output) {
        uses.insert(&port.name, Use::Other);
    }
    uses
}

fn is_weight(node: &NodeProto, index: usize) -> bool {
    matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft")
        && WEIGHTS
            .iter()
            .any(|(op, inputs)| *op == node.op_type && inputs.contains(&index))
}

/// The graphs inside an operator: branches and bodies.
pub(super) fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

fn mark_all<'a>(graph: &'a GraphProto, uses: &mut HashMap<&'a str, Use>) {
    for node in &graph.node {
        for name in &node.input {
            uses.insert(name, Use::Other);
        }
        for attribute in &node.attribute {
            for subgraph in subgraphs(attribute) {
                mark_all(subgraph, uses);
            }
        }
    }
    for port in &graph.output {
        uses.insert(&port.name, Use::Other);
    }
}

/// An initializer's value, if it is large enough, of a datatype of fixed size, and complete in the file.
fn value(tensor: &TensorProto) -> Option<DynValue> {
    match ElementType::try_from(tensor.data_type).ok()? {
        ElementType::Float => owned::<f32>(tensor),
        ElementType::Double => owned::<f64>(tensor),
        ElementType::Float16 => owned::<half::f16>(tensor),
        ElementType::Bfloat16 => owned::<half::bf16>(tensor),
        ElementType::Int8 => owned::<i8>(tensor),
        ElementType::Uint8 => owned::<u8>(tensor),
        ElementType::Int16 => owned::<i16>(tensor),
        ElementType::Uint16 => owned::<u16>(tensor),
        ElementType::Int32 => owned::<i32>(tensor),
        ElementType::Uint32 => owned::<u32>(tensor),
        ElementType::Int64 => owned::<i64>(tensor),
        ElementType::Uint64 => owned::<u64>(tensor),
        ElementType::Bool | ElementType::String | ElementType::Undefined => None,
    }
}

/// A copy: the file's bytes go once the model is described, and lie at any address.
fn owned<T>(tensor: &TensorProto) -> Option<DynValue>
where
    T: PrimitiveTensorElementType + NoUninit + AnyBitPattern + Debug + 'static,
{
    let shape: Vec<usize> = tensor
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).ok())
        .collect::<Option<_>>()?;
    let bytes = element_count(&shape)?.checked_mul(size_of::<T>())?;
    // Floats may also be in a field of their own. So may other datatypes, but no exporter does that with large tensors.
    let raw: &[u8] = if tensor.raw_data.is_empty() {
        bytemuck::cast_slice(&tensor.float_data)
    } else {
        &tensor.raw_data
    };
    let is_float = T::into_tensor_element_type() == TensorElementType::Float32;
    if bytes < SMALLEST_BYTES || raw.len() != bytes || (tensor.raw_data.is_empty() && !is_float) {
        return None;
    }
    let mut elements = vec![T::zeroed(); raw.len() / size_of::<T>()];
    bytemuck::cast_slice_mut::<T, u8>(&mut elements).copy_from_slice(raw);
    ort::value::Tensor::from_array((shape, elements))
        .ok()
        .map(ort::value::Value::into_dyn)
}
