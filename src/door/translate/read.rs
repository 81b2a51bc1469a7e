//! Reads an inference request: JSON, and the tensors behind it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::options::{Options, flag, shown};
use super::strings::{to_documents, with_lengths};
use super::values::{self, Column};
use super::{Infer, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS, Wanted, WantedOutput};
use crate::error::{Error, Result};
use crate::message::{Params, Request};
use crate::tensor::{Batch, Data, DataType, Tensor, element_count};
use crate::wire::bounded::BoundedParams;

/// A request's JSON. Unknown keys are ignored, as other servers do.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    parameters: Option<BoundedParams>,
    #[serde(borrow, default)]
    inputs: Option<Few<Input<'a>, MAX_TENSORS>>,
    #[serde(default)]
    outputs: Option<Few<Output, MAX_TENSORS>>,
}

#[derive(Deserialize)]
struct Input<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Few<i64, MAX_RANK>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<BoundedParams<MAX_TENSOR_PARAMS>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Option<BoundedParams<MAX_TENSOR_PARAMS>>,
}

/// Most values in the parameters of one tensor, of which a request may have many.
const MAX_TENSOR_PARAMS: usize = 64;

/// A list of at most so many entries: one of a few bytes takes far more once it is read.
struct Few<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Entries<T, MOST> {
            type Value = Few<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    if entries.len() == MOST {
                        return Err(A::Error::custom(format_args!("more than {MOST} entries")));
                    }
                    entries.push(entry);
                }
                Ok(Few(entries))
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// Reads a body whose first `json_bytes` are JSON and whose rest is tensors. A tensor behind the JSON is a slice of the
/// body, but for BYTES, whose lengths are taken out from between them.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what is wrong and what was expected.
pub(crate) fn read(body: &Bytes, json_bytes: usize, most_bytes: u64) -> Result<Infer> {
    let Some(json) = body.get(..json_bytes) else {
        return Err(Error::invalid(format!(
            "the JSON should have {json_bytes} bytes (Inference-Header-Content-Length), and the body has {}",
            body.len()
        )));
    };
    // A list would be read as the fields in their order.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::invalid(
            "the request is not the protocol's JSON: expected an object with `inputs`",
        ));
    }
    let head: Head<'_> = serde_json::from_slice(json)
        .map_err(|e| Error::invalid(format!("the request is not the protocol's JSON: {e}")))?;
    let id = head.id.map(Cow::into_owned);
    if id.as_ref().is_some_and(|id| id.len() > MAX_NAME_BYTES) {
        return Err(Error::invalid(format!(
            "`id` has more than {MAX_NAME_BYTES} bytes"
        )));
    }
    let options = Options::of(params(head.parameters))?;
    let outputs = head.outputs.map(|Few(outputs)| outputs);
    // An empty list means all of them, as over gRPC, where none is an empty list.
    let outputs = outputs.filter(|outputs| !outputs.is_empty());
    let wanted = Wanted {
        outputs: outputs
            .map(|outputs| each_once(outputs.into_iter().map(output).collect::<Result<_>>()?))
            .transpose()?,
        binary: options.binary,
        in_order: options.in_order,
    };
    let Some(Few(inputs)) = head.inputs else {
        return Err(Error::invalid(
            "`inputs` is missing, expected a list of tensors",
        ));
    };
    let mut behind = body.slice(json_bytes..);
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        tensors.push(tensor(input, &mut behind, most_bytes)?);
    }
    if !behind.is_empty() {
        return Err(Error::invalid(format!(
            "{} bytes behind the JSON more than the inputs' binary_data_size say",
            behind.len()
        )));
    }
    Ok(Infer {
        id,
        request: Request {
            model: None,
            params: options.params,
            inputs: Batch { tensors },
            timeout_ms: options.timeout_ms,
            priority: options.priority,
            stream: false,
            on_bad_row: options.on_bad_row,
        },
        wanted,
    })
}

fn params<const MOST: usize>(parameters: Option<BoundedParams<MOST>>) -> Params {
    parameters
        .map(|BoundedParams(params)| params)
        .unwrap_or_default()
}

fn output(output: Output) -> Result<WantedOutput> {
    let Output { name, parameters } = output;
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!(
            "the name of an output has {} bytes, and {MAX_NAME_BYTES} is the most",
            name.len()
        )));
    }
    wanted_output(name, params(parameters))
}

/// The outputs that are asked for, if none is asked for twice: each costs its bytes once more.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the output.
pub(crate) fn each_once(outputs: Vec<WantedOutput>) -> Result<Vec<WantedOutput>> {
    let mut names = HashSet::new();
    let twice = outputs.iter().find(|one| !names.insert(&*one.name));
    if let Some(one) = twice {
        let name = &one.name;
        return Err(Error::invalid(format!(
            "output {name:?} was asked for twice"
        )));
    }
    Ok(outputs)
}

/// An output that is asked for with these parameters.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the output and the parameter.
pub(crate) fn wanted_output(name: String, mut params: Params) -> Result<WantedOutput> {
    let in_output = |e: Error| e.context(format_args!("output {name:?}"));
    refuse_shared_memory(&params).map_err(in_output)?;
    let classes = match params.remove("classification") {
        None => 0,
        Some(value) => {
            let classes = value.as_u64().and_then(|n| usize::try_from(n).ok());
            classes.ok_or_else(|| {
                in_output(Error::invalid(format!(
                    "parameters.classification is {}, expected a number of classes",
                    shown(&value)
                )))
            })?
        }
    };
    let binary = flag(&mut params, "binary_data").map_err(in_output)?;
    Ok(WantedOutput {
        name,
        binary,
        classes,
    })
}

/// # Errors
/// `INVALID_ARGUMENT`: memory of another process cannot be named here.
pub(crate) fn refuse_shared_memory(params: &Params) -> Result<()> {
    if params.contains_key("shared_memory_region") {
        return Err(Error::invalid(
            "parameters.shared_memory_region: this server has no shared memory, send the tensor itself",
        ));
    }
    Ok(())
}

fn tensor(input: Input<'_>, behind: &mut Bytes, most_bytes: u64) -> Result<Tensor> {
    let name: &str = &input.name;
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!(
            "an input's name has more than {MAX_NAME_BYTES} bytes"
        )));
    }
    let in_tensor = |e: Error| e.context(format_args!("tensor {name:?}"));
    let datatype = DataType::parse(&input.datatype).map_err(in_tensor)?;
    let dims = input.shape.0.iter().map(|&dim| {
        usize::try_from(dim).map_err(|_| {
            in_tensor(Error::invalid(format!(
                "shape {:?} has a negative dimension",
                input.shape.0
            )))
        })
    });
    let shape = dims.collect::<Result<Vec<usize>>>()?;
    let mut params = params(input.parameters);
    refuse_shared_memory(&params).map_err(in_tensor)?;
    let size = params.remove("binary_data_size");
    // Documents come as text.
    let travels_as = match datatype {
        DataType::Json => DataType::Bytes,
        other => other,
    };
    let tensor = match (input.data, size) {
        (Some(data), None) => {
            let column = Column {
                name,
                datatype: travels_as,
                shape,
                most_bytes,
            };
            values::read(column, data.get())
        }
        (None, Some(size)) => {
            let bytes = size.as_u64().and_then(|n| usize::try_from(n).ok());
            let Some(bytes) = bytes else {
                return Err(in_tensor(Error::invalid(format!(
                    "parameters.binary_data_size is {}, expected a number of bytes",
                    shown(&size)
                ))));
            };
            if bytes > behind.len() {
                return Err(in_tensor(Error::invalid(format!(
                    "parameters.binary_data_size is {bytes}, and {} bytes of the body are left for it",
                    behind.len()
                ))));
            }
            binary(name, travels_as, shape, behind.split_to(bytes))
        }
        (Some(_), Some(_)) => Err(in_tensor(Error::invalid(
            "both `data` and parameters.binary_data_size; give one of them",
        ))),
        (None, None) => Err(in_tensor(Error::invalid(
            "neither `data` nor parameters.binary_data_size; give one of them",
        ))),
    }?;
    match datatype {
        DataType::Json => to_documents(&tensor.check_values(0)?),
        _ => Ok(tensor),
    }
}

/// A tensor of bytes as the protocol has them.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the tensor: a length that is not the shape's.
pub(crate) fn binary(
    name: &str,
    datatype: DataType,
    shape: Vec<usize>,
    bytes: Bytes,
) -> Result<Tensor> {
    let data = match datatype.size() {
        Some(_) => Data::Fixed(bytes),
        None => {
            let elements = element_count(&shape).unwrap_or(usize::MAX);
            with_lengths(name, elements, &bytes)?
        }
    };
    Tensor::unchecked(name, datatype, shape, data)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ErrorCode;
    use crate::message::Priority;

    fn of(json: &Value, behind: &[u8]) -> Result<Infer> {
        let json = json.to_string();
        let body = [json.as_bytes(), behind].concat();
        read(&body.into(), json.len(), 1 << 20)
    }

    fn input(more: Value) -> Value {
        let mut input = json!({"name": "x", "datatype": "FP32", "shape": [1, 2]});
        let own = input.as_object_mut().unwrap();
        own.extend(more.as_object().unwrap().clone());
        json!({"inputs": [input]})
    }

    #[test]
    fn json_and_bytes_behind_it_are_one_request() {
        let json = json!({
            "id": "seven",
            "parameters": {"timeout": 2000, "priority": 1, "k": [1]},
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                {"name": "b", "datatype": "INT8", "shape": [2], "data": [1, -1]},
                {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": true, "classification": 3}}, {"name": "z"}],
            "unknown": {},
        });
        let read = of(&json, b"\0\0\x80\x3f\0\0\0\x40\x01\0\0\0c").unwrap();
        assert_eq!(read.id.as_deref(), Some("seven"));
        let request = read.request;
        assert_eq!(
            (request.timeout_ms, request.priority),
            (Some(2), Priority::High)
        );
        assert_eq!(Value::Object(request.params), json!({"k": [1]}));
        let [a, b, c] = &request.inputs.tensors[..] else {
            panic!("three inputs")
        };
        assert_eq!(a.to_vec::<f32>().unwrap(), [1., 2.]);
        assert_eq!(b.to_vec::<i8>().unwrap(), [1, -1]);
        assert_eq!(c.strings().unwrap(), ["c"]);
        let outputs = read.wanted.outputs.unwrap();
        assert_eq!((outputs[0].binary, outputs[0].classes), (Some(true), 3));
        assert_eq!((outputs[1].binary, outputs[1].classes), (None, 0));
    }

    #[test]
    fn a_tensor_behind_the_json_is_a_slice_of_the_body() {
        let json = input(json!({"parameters": {"binary_data_size": 8}})).to_string();
        let body = Bytes::from([json.as_bytes(), &[0; 8]].concat());
        let read = read(&body, json.len(), 1 << 20).unwrap();
        let Data::Fixed(bytes) = read.request.inputs.tensors[0].data() else {
            panic!("numbers")
        };
        assert_eq!(bytes.as_ptr(), body[json.len()..].as_ptr());
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let many = |n: usize| Value::Array(vec![json!({"name": "x"}); n]);
        for (json, behind, why) in [
            (json!([]), 0, "not the protocol's JSON"),
            (json!({}), 0, "`inputs` is missing"),
            (
                json!({"id": 7, "inputs": []}),
                0,
                "invalid type: integer `7`",
            ),
            (
                json!({"id": "x".repeat(2000), "inputs": []}),
                0,
                "`id` has more than 1024",
            ),
            (json!({"inputs": {}}), 0, "a list of at most 1024"),
            (
                json!({"inputs": [], "outputs": many(1025)}),
                0,
                "more than 1024 entries",
            ),
            (input(json!({})), 0, "neither `data` nor"),
            (
                input(json!({"data": [1, 2], "parameters": {"binary_data_size": 8}})),
                8,
                "both `data` and",
            ),
            (
                input(json!({"parameters": {"binary_data_size": 8}})),
                7,
                "7 bytes of the body are left",
            ),
            (
                input(json!({"parameters": {"binary_data_size": 8}})),
                9,
                "1 bytes behind the JSON more",
            ),
            (
                input(json!({"parameters": {"binary_data_size": 4}})),
                4,
                "takes 8 bytes, got 4",
            ),
            (
                input(json!({"parameters": {"binary_data_size": -1}})),
                0,
                "expected a number of bytes",
            ),
            (
                input(json!({"data": [1, 2]})),
                3,
                "3 bytes behind the JSON more",
            ),
            (
                input(json!({"shape": [-1, 2], "data": [1, 2]})),
                0,
                "negative dimension",
            ),
            (
                input(json!({"shape": [1u64 << 62, 8], "data": []})),
                0,
                "more elements than memory",
            ),
            (
                input(json!({"shape": vec![1; 65], "data": [1]})),
                0,
                "more than 64 entries",
            ),
            (
                input(json!({"shape": 2, "data": [1]})),
                0,
                "a list of at most 64",
            ),
            (
                input(json!({"datatype": "FLOAT", "data": [1]})),
                0,
                "unknown datatype \"FLOAT\"",
            ),
            (
                input(json!({"parameters": {"shared_memory_region": "r"}})),
                0,
                "no shared memory",
            ),
        ] {
            let error = of(&json, &vec![0; behind]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(error.message().contains(why), "{json}: {error}");
        }
        let deep = format!(
            "{{\"parameters\":{}1{}}}",
            "{\"a\":".repeat(10_000),
            "}".repeat(10_000)
        );
        let error = read(&deep.clone().into(), deep.len(), 1 << 20).unwrap_err();
        assert!(error.message().contains("recursion limit"), "{error}");
        let error = read(&Bytes::from_static(b"{}"), 3, 1 << 20).unwrap_err();
        assert!(error.message().contains("the body has 2"), "{error}");
    }
}
