//! What REST and gRPC have in common: the Open Inference Protocol's words for models, tensors and times.

use std::time::Duration;

use anyhow::{Context, Result};
use mdm::tensor::Data;
use mdm::wire::server::{DimInfo, ModelInfo, PortInfo};
use mdm::{DataType, Tensor};
use serde_json::Value;

use super::super::report::ServerTimes;

/// How long a message from a server may be before it is cut.
const MESSAGE_CHARS: usize = 500;

/// An input of a model's metadata.
#[derive(Debug, serde::Deserialize)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: String,
    pub shape: Vec<i64>,
}

/// The queue's and the model's times of the statistics extension: how often, and nanoseconds in all.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub count: u64,
    pub queue_ns: u64,
    pub run_ns: u64,
}

/// What a model's metadata say, in our own protocol's words.
pub fn model_info(model: &str, versions: &[String], inputs: Vec<TensorMetadata>) -> ModelInfo {
    let is_open = |input: &TensorMetadata| input.shape.first() == Some(&-1);
    let kind = match inputs.iter().all(is_open) {
        true => "batched",
        false => "whole",
    };
    let port = |input: TensorMetadata| PortInfo {
        name: input.name,
        dtype: input.datatype,
        shape: input.shape.into_iter().map(DimInfo::Size).collect(),
    };
    ModelInfo {
        name: model.to_owned(),
        version: versions.last().cloned().unwrap_or_default(),
        kind: kind.to_owned(),
        inputs: inputs.into_iter().map(port).collect(),
        outputs: Vec::new(),
    }
}

/// The sum over a model's versions.
pub fn server_times(of_versions: impl Iterator<Item = Counted>) -> ServerTimes {
    of_versions.fold(ServerTimes::default(), |sum, version| ServerTimes {
        requests: sum.requests + version.count,
        queue: sum.queue + Duration::from_nanos(version.queue_ns),
        run: sum.run + Duration::from_nanos(version.run_ns),
    })
}

/// A tensor's datatype there.
pub fn datatype(tensor: &Tensor) -> &'static str {
    match tensor.datatype() {
        // The protocol has no records: each is its JSON text.
        DataType::Json => DataType::Bytes.name(),
        other => other.name(),
    }
}

/// Writes a tensor as binary data.
///
/// # Errors
/// If an element has more bytes than its length can say.
pub fn write_binary(tensor: &Tensor, into: &mut Vec<u8>) -> Result<()> {
    match tensor.data() {
        Data::Fixed(bytes) => into.extend_from_slice(bytes),
        Data::Variable { .. } => {
            let texts = texts(tensor)?;
            for element in texts.iter().map(Vec::as_slice) {
                let length = u32::try_from(element.len()).context("an element of 4 GiB or more")?;
                into.extend_from_slice(&length.to_le_bytes());
                into.extend_from_slice(element);
            }
        }
    }
    Ok(())
}

/// The elements of a tensor of strings or records.
pub fn texts(tensor: &Tensor) -> Result<Vec<Vec<u8>>> {
    if tensor.datatype() != DataType::Json {
        return Ok(tensor.byte_strings().map(<[u8]>::to_vec).collect());
    }
    let rows = tensor.json_rows::<Value>()?;
    Ok(rows
        .iter()
        .map(|row| row.to_string().into_bytes())
        .collect())
}

/// What a server says, short enough to be shown.
pub fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS).collect()
}
