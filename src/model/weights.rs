//! Weights that the workers' sessions share: which initializers of an ONNX file can be, and their values.
//!
//! A session that is given an initializer's value does not make its own copy, and sessions that are given the same
//! values and one container of prepacked weights share those too. But the engine believes what it is given: where
//! one of its optimisers changes an initializer and keeps its name (the transpose optimiser does: it turns constants
//! around to save a node), the old value under the new shape would silently give wrong results. So only initializers
//! are shared that are used in no other way than as the weights of the operators below, which no optimiser rewrites
//! under the same name; they are where the bytes are.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use ort::session::builder::PrepackedWeights;
use ort::value::{DynValue, PrimitiveTensorElementType};
use prost::bytes::Bytes;

use super::proto::{AttributeProto, ElementType, GraphProto, ModelProto, NodeProto, TensorProto};
use super::values::with_element;
use crate::tensor::{DataType, Element, element_count};

/// Smaller initializers are not worth a name in every session's options.
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
    // What exporters and quantisers make of them, in com.microsoft.
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
    /// The weights of a model that can be shared, and why no more of them; copied out of the file, so that nothing
    /// done to the file later reaches the sessions.
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
    pub(super) fn give(
        &self,
        mut builder: ort::session::builder::SessionBuilder,
    ) -> ort::Result<ort::session::builder::SessionBuilder> {
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

/// How each name is used in a graph. Names that subgraphs mention, that are inputs (whose value a request could
/// override) or outputs are used otherwise.
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

fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
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

/// An initializer's value, if it is large enough, of a datatype of fixed size, and whole.
fn value(tensor: &TensorProto) -> Option<DynValue> {
    let shape: Vec<usize> = tensor
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).ok())
        .collect::<Option<_>>()?;
    let elements = element_count(&shape)?;
    let datatype = match ElementType::try_from(tensor.data_type).ok()? {
        ElementType::Float => DataType::Fp32,
        ElementType::Double => DataType::Fp64,
        ElementType::Float16 => DataType::Fp16,
        ElementType::Bfloat16 => DataType::Bf16,
        ElementType::Int8 => DataType::Int8,
        ElementType::Uint8 => DataType::Uint8,
        ElementType::Int16 => DataType::Int16,
        ElementType::Uint16 => DataType::Uint16,
        ElementType::Int32 => DataType::Int32,
        ElementType::Uint32 => DataType::Uint32,
        ElementType::Int64 => DataType::Int64,
        ElementType::Uint64 => DataType::Uint64,
        ElementType::Bool | ElementType::String | ElementType::Undefined => return None,
    };
    let bytes = elements.checked_mul(datatype.size()?)?;
    if bytes < SMALLEST_BYTES {
        return None;
    }
    if datatype == DataType::Fp32 && tensor.float_data.len() == elements {
        return ort::value::Tensor::from_array((shape, tensor.float_data.clone()))
            .ok()
            .map(ort::value::Value::into_dyn);
    }
    if tensor.raw_data.len() != bytes {
        return None;
    }
    with_element!(datatype, owned(shape, &tensor.raw_data), DataType::Bytes | DataType::Json => None)
}

fn owned<T>(shape: Vec<usize>, raw: &Bytes) -> Option<DynValue>
where
    T: Element + PrimitiveTensorElementType + Debug + 'static,
{
    let mut elements = vec![T::default(); raw.len() / size_of::<T>()];
    for (element, bytes) in elements.iter_mut().zip(raw.chunks_exact(size_of::<T>())) {
        *element = bytemuck::checked::try_pod_read_unaligned(bytes).ok()?;
    }
    ort::value::Tensor::from_array((shape, elements))
        .ok()
        .map(ort::value::Value::into_dyn)
}
