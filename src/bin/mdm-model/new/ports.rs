//! What an ONNX file takes and gives, as the source of a plugin around it says it, and rows to try it with.

use std::fmt::Write;

use mdm::DataType;
use mdm::wire::server::{DimInfo, ModelInfo, PortInfo};
use serde_json::{Map, Value, json};

/// Most elements of an input that are written out as text.
const MOST_ELEMENTS: usize = 1 << 20;
/// Sample rows.
const ROWS: usize = 2;

/// The inputs and outputs of a plugin that hands rows through to an ONNX file.
pub struct Ports {
    inputs: Vec<(PortInfo, DataType)>,
    outputs: Vec<(PortInfo, DataType)>,
    is_whole: bool,
}

impl Ports {
    /// # Errors
    /// A datatype that this version does not know.
    pub fn of(model: ModelInfo) -> mdm::Result<Ports> {
        let is_whole = model.kind == "whole";
        let all = model.inputs.iter().chain(&model.outputs);
        let symbols: Vec<&str> = all
            .flat_map(|port| &port.shape)
            .filter_map(symbol)
            .collect();
        // A plugin takes any number of rows, whatever its session does with them: their dimension needs a name.
        let mut rows = "N".to_owned();
        while symbols.contains(&&*rows) {
            rows.push('_');
        }
        let side = |ports: &[PortInfo]| -> mdm::Result<Vec<(PortInfo, DataType)>> {
            let ports = ports.iter().map(|port| {
                let mut port = port.clone();
                if let Some(first) = port.shape.first_mut()
                    && !is_whole
                    && symbol(first).is_none()
                {
                    *first = DimInfo::Symbol(rows.clone());
                }
                let datatype = DataType::parse(&port.dtype)?;
                Ok((port, datatype))
            });
            ports.collect()
        };
        Ok(Ports {
            inputs: side(&model.inputs)?,
            outputs: side(&model.outputs)?,
            is_whole,
        })
    }

    /// The calls behind `Signature::new()`, a line each.
    pub fn in_rust(&self) -> String {
        let mut text = String::new();
        for (side, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            for (port, datatype) in ports {
                let dims = port.shape.iter().map(|dim| match dim {
                    DimInfo::Size(-1) => "\"?\".into()".to_owned(),
                    DimInfo::Size(size) => format!("{size}.into()"),
                    DimInfo::Symbol(name) => format!("{name:?}.into()"),
                });
                let dims = dims.collect::<Vec<_>>().join(", ");
                let name = &port.name;
                // Writing to a string cannot fail.
                let _ = write!(
                    text,
                    "\n            .{side}({name:?}, DataType::{datatype:?}, &[{dims}])"
                );
            }
        }
        if self.is_whole {
            text += "\n            .whole()";
        }
        text
    }

    /// The signature's JSON as a literal of C.
    pub fn in_c(&self) -> String {
        let side = |ports: &[(PortInfo, DataType)]| -> Vec<String> {
            let ports = ports.iter().map(|(port, _)| json!(port).to_string());
            ports.collect()
        };
        let mut json = format!(
            "{{\"inputs\": [{}],\n\"outputs\": [{}]",
            side(&self.inputs).join(",\n"),
            side(&self.outputs).join(",\n")
        );
        if self.is_whole {
            json += ",\n\"rows\": \"whole\"";
        }
        json += "}";
        let lines = json.lines().map(|line| {
            // A question mark may begin a trigraph.
            let escaped = line
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('?', "\\?");
            format!("\n      \"{escaped}\"")
        });
        lines.collect()
    }

    /// Rows of zeros and empty strings, as `mdm-infer` reads them from a `.jsonl`; `None` where they would be too many.
    pub fn sample(&self) -> Option<String> {
        let mut row = Map::new();
        for (port, datatype) in &self.inputs {
            let own = if self.is_whole { 0 } else { 1 };
            let dims: Vec<usize> = port.shape.iter().skip(own).map_while(size_of).collect();
            let elements = dims
                .iter()
                .try_fold(1usize, |all, dim| all.checked_mul(*dim));
            if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
                return None;
            }
            row.insert(port.name.clone(), zeros(*datatype, &dims));
        }
        let line = Value::Object(row).to_string() + "\n";
        Some(line.repeat(if self.is_whole { 1 } else { ROWS }))
    }
}

fn symbol(dim: &DimInfo) -> Option<&str> {
    match dim {
        DimInfo::Symbol(name) => Some(name),
        DimInfo::Size(_) => None,
    }
}

/// How large a dimension of a sample is; none for `...`, which may stand for no dimensions.
fn size_of(dim: &DimInfo) -> Option<usize> {
    match dim {
        DimInfo::Symbol(name) if name == "..." => None,
        DimInfo::Symbol(_) | DimInfo::Size(-1) => Some(1),
        DimInfo::Size(size) => usize::try_from(*size).ok(),
    }
}

fn zeros(datatype: DataType, dims: &[usize]) -> Value {
    match dims {
        [first, rest @ ..] => Value::Array(vec![zeros(datatype, rest); *first]),
        [] => match datatype {
            DataType::Bool => json!(false),
            DataType::Bytes => json!(""),
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => json!(0.0),
            _ => json!(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(kind: &str, inputs: Value, outputs: Value) -> Ports {
        let model = json!({"name": "m", "version": "1", "kind": kind, "inputs": inputs, "outputs": outputs});
        Ports::of(serde_json::from_value(model).unwrap()).unwrap()
    }

    #[test]
    fn rows_get_a_name_that_no_other_dimension_has() {
        let ports = model(
            "fixed:1",
            json!([{"name": "a\"b", "dtype": "INT64", "shape": [1, "N", -1]}]),
            json!([{"name": "y", "dtype": "FP32", "shape": [1, 2]}]),
        );
        let expected = "\n            .input(\"a\\\"b\", DataType::Int64, &[\"N_\".into(), \"N\".into(), \"?\".into()])\
                        \n            .output(\"y\", DataType::Fp32, &[\"N_\".into(), 2.into()])";
        assert_eq!(ports.in_rust(), expected);
        // The name is quoted twice: once for JSON, once for C.
        assert!(
            ports.in_c().contains(r#"\"name\":\"a\\\"b\""#),
            "{}",
            ports.in_c()
        );
        assert_eq!(ports.sample().unwrap(), "{\"a\\\"b\":[[0]]}\n".repeat(2));
    }

    #[test]
    fn a_model_that_is_served_whole_stays_so() {
        let ports = model(
            "whole",
            json!([{"name": "x", "dtype": "FP32", "shape": [3, "..."]}]),
            json!([{"name": "y", "dtype": "BYTES", "shape": []}]),
        );
        assert!(ports.in_rust().ends_with(".whole()"), "{}", ports.in_rust());
        assert!(
            ports.in_c().contains(r#"\"rows\": \"whole\""#),
            "{}",
            ports.in_c()
        );
        assert_eq!(ports.sample().unwrap(), "{\"x\":[0.0,0.0,0.0]}\n");
    }

    #[test]
    fn rows_of_millions_of_numbers_are_not_written_as_text() {
        let image = json!([{"name": "x", "dtype": "FP32", "shape": ["N", 3, 4096, 4096]}]);
        assert_eq!(model("batched", image.clone(), image).sample(), None);
    }
}
