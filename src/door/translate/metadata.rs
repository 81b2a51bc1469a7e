//! What a model is, as the Open Inference Protocol and Triton's extensions of it say it.

use serde::Serialize;

use super::write::shown_datatype;
use crate::tensor::DataType;
use crate::wire::server::{DimInfo, ModelInfo, PortInfo};

/// What serves models here, in the words of the protocol.
const PLATFORM: &str = "mdm";

/// A model's metadata.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ModelMetadata {
    pub(crate) name: String,
    pub(crate) versions: Vec<String>,
    pub(crate) platform: String,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

/// An input or an output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TensorMetadata {
    pub(crate) name: String,
    pub(crate) datatype: String,
    /// -1 for a dimension of any size.
    pub(crate) shape: Vec<i64>,
}

/// A model's metadata. A model that takes anything has no inputs there.
pub(crate) fn of_model(model: &ModelInfo) -> ModelMetadata {
    ModelMetadata {
        name: model.name.clone(),
        versions: vec![model.version.clone()],
        platform: PLATFORM.to_owned(),
        inputs: model.inputs.iter().map(tensor).collect(),
        outputs: model.outputs.iter().map(tensor).collect(),
    }
}

fn tensor(port: &PortInfo) -> TensorMetadata {
    TensorMetadata {
        name: port.name.clone(),
        datatype: datatype(port).to_owned(),
        shape: port.shape.iter().map(size).collect(),
    }
}

/// As clients know it.
fn datatype(port: &PortInfo) -> &str {
    match DataType::parse(&port.dtype) {
        Ok(datatype) => shown_datatype(datatype),
        Err(_) => &port.dtype,
    }
}

fn size(dim: &DimInfo) -> i64 {
    match dim {
        DimInfo::Size(size) => *size,
        DimInfo::Symbol(_) => -1,
    }
}

/// Whether a model's rows are independent, so that its first dimension is the batch.
fn is_batched(model: &ModelInfo) -> bool {
    model.kind != "whole"
}

/// A model's configuration, as far as clients and load generators read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ModelConfig {
    pub(crate) name: String,
    pub(crate) platform: &'static str,
    pub(crate) backend: &'static str,
    pub(crate) version_policy: VersionPolicy,
    /// 0 for a model whose rows are not independent, or are single values.
    pub(crate) max_batch_size: usize,
    pub(crate) input: Vec<ConfigTensor>,
    pub(crate) output: Vec<ConfigTensor>,
}

/// Which versions are served.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct VersionPolicy {
    pub(crate) specific: Versions,
}

/// These.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Versions {
    pub(crate) versions: Vec<i64>,
}

/// An input or an output of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ConfigTensor {
    pub(crate) name: String,
    pub(crate) data_type: String,
    /// Those of a row, where a model has any.
    pub(crate) dims: Vec<i64>,
}

/// A model's configuration. The dimensions of a batched model are those of a row, unless the row of an input is a single
/// value: a load generator takes no input without dimensions, so it is told of a model that takes no batch.
pub(crate) fn config_of_model(model: &ModelInfo, max_batch_size: usize) -> ModelConfig {
    let has_scalar_rows = model.inputs.iter().any(|input| input.shape.len() <= 1);
    let batched = is_batched(model) && !has_scalar_rows;
    let port = |port: &PortInfo| ConfigTensor {
        name: port.name.clone(),
        data_type: config_type(datatype(port)),
        dims: port
            .shape
            .iter()
            .skip(usize::from(batched))
            .map(size)
            .collect(),
    };
    ModelConfig {
        name: model.name.clone(),
        platform: PLATFORM,
        backend: PLATFORM,
        version_policy: VersionPolicy {
            specific: Versions {
                versions: vec![model.version.parse().unwrap_or(1)],
            },
        },
        max_batch_size: if batched { max_batch_size } else { 0 },
        input: model.inputs.iter().map(port).collect(),
        output: model.outputs.iter().map(port).collect(),
    }
}

/// A datatype's name in configurations.
fn config_type(name: &str) -> String {
    match name {
        "BYTES" => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(kind: &str) -> ModelInfo {
        let port = |name: &str, dtype: &str, shape: Vec<DimInfo>| PortInfo {
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            shape,
        };
        ModelInfo {
            name: "m".to_owned(),
            version: "3".to_owned(),
            kind: kind.to_owned(),
            inputs: vec![port(
                "x",
                "FP32",
                vec![DimInfo::Symbol("N".to_owned()), DimInfo::Size(64)],
            )],
            outputs: vec![port("r", "JSON", vec![DimInfo::Size(-1)])],
        }
    }

    #[test]
    fn a_model_is_told_in_the_protocols_words() {
        let told = serde_json::to_value(of_model(&model("batched"))).unwrap();
        let expected = json!({
            "name": "m", "versions": ["3"], "platform": "mdm",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
            "outputs": [{"name": "r", "datatype": "BYTES", "shape": [-1]}],
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_configuration_leaves_the_rows_out_where_there_are_any() {
        let config = |kind| serde_json::to_value(config_of_model(&model(kind), 1024)).unwrap();
        let batched = config("batched");
        assert_eq!(batched["max_batch_size"], 1024);
        let input = json!({"name": "x", "data_type": "TYPE_FP32", "dims": [64]});
        assert_eq!(batched["input"], json!([input]));
        assert_eq!(batched["output"][0]["data_type"], "TYPE_STRING");
        let whole = config("whole");
        assert_eq!(
            (&whole["max_batch_size"], &whole["input"][0]["dims"]),
            (&json!(0), &json!([-1, 64]))
        );
        // Rows that are single values.
        let mut scalars = model("batched");
        scalars.inputs[0].shape.truncate(1);
        let scalars = serde_json::to_value(config_of_model(&scalars, 1024)).unwrap();
        assert_eq!(
            (&scalars["max_batch_size"], &scalars["input"][0]["dims"]),
            (&json!(0), &json!([-1]))
        );
    }
}
