//! Requests of the Open Inference Protocol over REST: tensors as binary data behind the JSON, or as JSON.

use anyhow::{Context, Result, bail};
use mdm::{Batch, DataType, Element, Params, Tensor};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::inference::{datatype, texts, write_binary};

/// How tensors travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Json,
}

/// A request's body.
pub struct Body {
    /// The JSON, and what is behind it.
    pub bytes: Vec<u8>,
    /// How much of it is the JSON, where that is not all.
    pub json_bytes: Option<usize>,
}

/// Writes a request.
///
/// # Errors
/// What JSON cannot hold.
pub fn write(batch: &Batch, params: &Params, encoding: Encoding) -> Result<Body> {
    let mut behind = Vec::new();
    let inputs = batch.tensors.iter().map(|tensor| {
        let mut input = json!({
            "name": tensor.name(),
            "shape": tensor.shape(),
            "datatype": datatype(tensor),
        });
        match encoding {
            Encoding::Binary => {
                let before = behind.len();
                write_binary(tensor, &mut behind)?;
                input["parameters"] = json!({ "binary_data_size": behind.len() - before });
            }
            Encoding::Json => input["data"] = values(tensor)?,
        }
        Ok(input)
    });
    let inputs = inputs.collect::<Result<Vec<Value>>>()?;
    let mut request = json!({ "inputs": inputs });
    let mut params = params.clone();
    if encoding == Encoding::Binary {
        params.insert("binary_data_output".to_owned(), true.into());
    }
    if !params.is_empty() {
        request["parameters"] = params.into();
    }
    let mut bytes = request.to_string().into_bytes();
    let json_bytes = (encoding == Encoding::Binary).then_some(bytes.len());
    bytes.append(&mut behind);
    Ok(Body { bytes, json_bytes })
}

fn values(tensor: &Tensor) -> Result<Value> {
    fn of<T: Element + Serialize>(tensor: &Tensor) -> Result<Value> {
        Ok(json!(tensor.to_vec::<T>()?))
    }
    match tensor.datatype() {
        DataType::Bool => of::<bool>(tensor),
        DataType::Int8 => of::<i8>(tensor),
        DataType::Int16 => of::<i16>(tensor),
        DataType::Int32 => of::<i32>(tensor),
        DataType::Int64 => of::<i64>(tensor),
        DataType::Uint8 => of::<u8>(tensor),
        DataType::Uint16 => of::<u16>(tensor),
        DataType::Uint32 => of::<u32>(tensor),
        DataType::Uint64 => of::<u64>(tensor),
        DataType::Fp32 => of::<f32>(tensor),
        DataType::Fp64 => of::<f64>(tensor),
        DataType::Fp16 | DataType::Bf16 => bail!(
            "input {:?}: {} has no form in JSON; leave --json out",
            tensor.name(),
            tensor.datatype()
        ),
        DataType::Bytes | DataType::Json => {
            let texts = texts(tensor)?.into_iter().map(String::from_utf8);
            let texts = texts.collect::<Result<Vec<String>, _>>();
            Ok(json!(texts.with_context(|| {
                format!(
                    "input {:?}: JSON has only text; leave --json out",
                    tensor.name()
                )
            })?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let x = Tensor::from_vec("x", vec![2, 1], vec![1i32, -2]).unwrap();
        let s = Tensor::from_strings("s", None, &["ü", "b"]).unwrap();
        let j = Tensor::from_json_rows("j", &[json!({"a": 1}), json!(null)]).unwrap();
        Batch {
            tensors: vec![x, s, j],
        }
    }

    #[test]
    fn tensors_follow_the_json_or_stand_in_it() {
        let params = Params::from_iter([("a".to_owned(), json!(1))]);
        let body = write(&batch(), &params, Encoding::Binary).unwrap();
        let (head, behind) = body.bytes.split_at(body.json_bytes.unwrap());
        let head: Value = serde_json::from_slice(head).unwrap();
        let input = |name: &str, shape: Value, datatype: &str, bytes: usize| json!({"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": bytes}});
        assert_eq!(
            head,
            json!({
                "inputs": [
                    input("x", json!([2, 1]), "INT32", 8),
                    input("s", json!([2]), "BYTES", 6 + 5),
                    input("j", json!([2]), "BYTES", 4 + 7 + 4 + 4),
                ],
                "parameters": {"a": 1, "binary_data_output": true},
            })
        );
        let expected = b"\x01\0\0\0\xfe\xff\xff\xff\x02\0\0\0\xc3\xbc\x01\0\0\0b\x07\0\0\0{\"a\":1}\x04\0\0\0null";
        assert_eq!(behind, expected);

        let body = write(&batch(), &Params::default(), Encoding::Json).unwrap();
        assert_eq!(body.json_bytes, None);
        let all: Value = serde_json::from_slice(&body.bytes).unwrap();
        assert_eq!(
            all,
            json!({"inputs": [
                {"name": "x", "shape": [2, 1], "datatype": "INT32", "data": [1, -2]},
                {"name": "s", "shape": [2], "datatype": "BYTES", "data": ["ü", "b"]},
                {"name": "j", "shape": [2], "datatype": "BYTES", "data": ["{\"a\":1}", "null"]},
            ]})
        );
    }

    #[test]
    fn what_json_cannot_hold_is_told() {
        let half = Tensor::from_vec("h", vec![1], vec![half::f16::ONE]).unwrap();
        let bytes = Tensor::from_strings("b", None, &[b"\xff"]).unwrap();
        for tensor in [half, bytes] {
            let batch = Batch::from(tensor);
            assert!(write(&batch, &Params::default(), Encoding::Binary).is_ok());
            let e = write(&batch, &Params::default(), Encoding::Json)
                .err()
                .unwrap();
            assert!(format!("{e:#}").contains("--json"), "{e:#}");
        }
    }
}
