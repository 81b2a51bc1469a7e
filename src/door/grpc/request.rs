//! Reads an inference request: protobuf, tensors as bytes or in its own lists ([`super::lists`]).

use bytes::Bytes;
use serde_json::{Number, Value as Json};

use super::fields::{Fields, Value, varint};
use super::lists::List;
use crate::door::incoming::HERE_BYTES;
use crate::door::models::ModelName;
use crate::door::translate::options::{Options, flag};
use crate::door::translate::read::{binary, each_once, refuse_shared_memory, wanted_output};
use crate::door::translate::strings::to_documents;
use crate::door::translate::{
    Infer, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_RANK, MAX_TENSORS, Wanted, WantedOutput,
};
use crate::error::{Error, Result};
use crate::message::{Params, Request};
use crate::tensor::{Batch, DataType, Tensor};

/// Most parameters of a request, of an input and of an output.
const MAX_PARAMS: usize = 1024;
/// Fields of a message that are looked at to tell how long it takes to read it; one with more takes its time.
const MAX_LOOKED_AT: usize = 4 * MAX_TENSORS;
/// Parameters that begin with this are the protocol's, and no model's.
const RESERVED: &str = "triton_";
/// Asks for the rows in parts, and for an answer without rows that ends them.
const PARTS: &str = "triton_enable_empty_final_response";
/// Asks for tensors as bytes, as they come unless this is false.
const RAW: &str = "binary_data_output";

/// A request, read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: ModelName,
    pub(super) infer: Infer,
    /// Its rows are to come in parts, where there can be more than one answer.
    pub(super) in_parts: bool,
}

/// Why a request cannot be read, with what of it names it, as far as that was read.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) model: String,
    pub(super) id: String,
    pub(super) error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        let (model, id) = (String::new(), String::new());
        Refused { model, id, error }
    }
}

/// What names a request.
#[derive(Default)]
struct Names {
    model: String,
    version: String,
    id: String,
}

/// Reads a request. Tensors that travel as bytes are slices of the message, and so are FP32 and FP64 in lists; BYTES are
/// copied, whose lengths lie between them, and so are the lists whose numbers are packed.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what is wrong and what was expected.
pub(super) fn read(message: Bytes, most_bytes: u64) -> Result<Asked, Refused> {
    let mut names = Names::default();
    read_into(&mut names, message, most_bytes).map_err(|error| Refused {
        model: names.model,
        id: names.id,
        error,
    })
}

fn read_into(names: &mut Names, message: Bytes, most_bytes: u64) -> Result<Asked> {
    let mut params = Params::new();
    let (mut inputs, mut outputs, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => names.model = value.text("model_name", MAX_PATH_BYTES)?,
            2 => names.version = value.text("model_version", MAX_NAME_BYTES)?,
            3 => names.id = value.text("id", MAX_NAME_BYTES)?,
            4 => parameter(value, &mut params)?,
            5 => few(&mut inputs, value, "inputs")?,
            6 => few(&mut outputs, value, "outputs")?,
            7 => few(&mut raw, value, "raw_input_contents")?,
            _ => {} // a later protocol's
        }
    }
    let raw_outputs = flag(&mut params, RAW)?.unwrap_or(true);
    let in_parts = flag(&mut params, PARTS)?.unwrap_or(false);
    params.retain(|name, _| !name.starts_with(RESERVED));
    let options = Options::of(params)?;
    let outputs: Result<Vec<WantedOutput>> = outputs.into_iter().map(output).collect();
    let outputs = Some(each_once(outputs?)?).filter(|outputs| !outputs.is_empty());
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(Error::invalid(format!(
            "raw_input_contents has {} entries, and there are {} inputs; give one for each, or `contents` in each",
            raw.len(),
            inputs.len()
        )));
    }
    let mut raw = raw.into_iter();
    let tensors: Result<Vec<Tensor>> = inputs
        .into_iter()
        .map(|input| tensor(input, raw.next(), most_bytes))
        .collect();
    let inputs = Batch { tensors: tensors? };
    // Behind all that may be wrong, which is told with them.
    let Names { model, version, id } = std::mem::take(names);
    let model = ModelName::new(model, version);
    let infer = Infer {
        id: Some(id).filter(|id| !id.is_empty()),
        request: Request {
            model: None,
            params: options.params,
            inputs,
            timeout_ms: options.timeout_ms,
            priority: options.priority,
            stream: false,
            on_bad_row: options.on_bad_row,
        },
        wanted: Wanted {
            outputs,
            binary: raw_outputs,
            in_order: options.in_order,
        },
    };
    Ok(Asked {
        infer: infer.for_model(&model),
        model,
        in_parts,
    })
}

/// Where the first tensor begins that travels as bytes, as far as the start of a message tells.
pub(super) fn first_raw(mut start: &[u8]) -> Option<usize> {
    let whole = start.len();
    loop {
        let key = varint(&mut start).ok()?;
        if key & 7 != 2 {
            return None; // a request begins with its names
        }
        let length = usize::try_from(varint(&mut start).ok()?).ok()?;
        if key >> 3 == 7 {
            return Some(whole - start.len());
        }
        start = start.get(length..)?;
    }
}

/// How many bytes of a message take their time to be read: all but tensors that travel as bytes, and these too if there
/// may be texts among them, whose lengths are taken out.
pub(super) fn work_bytes(message: &Bytes) -> usize {
    if message.len() <= HERE_BYTES {
        return message.len();
    }
    let (mut own, mut has_texts) = (0, false);
    let mut fields = Fields::of(message.clone());
    for _ in 0..MAX_LOOKED_AT {
        let Ok(Some((number, value))) = fields.next() else {
            return match has_texts {
                true => message.len(),
                false => own,
            };
        };
        if let Value::Bytes(bytes) = value
            && number != 7
        {
            own += bytes.len();
            if own > HERE_BYTES {
                break;
            }
            let has = |name: &[u8]| bytes.windows(name.len()).any(|some| some == name);
            has_texts |= number == 5 && (has(b"BYTES") || has(b"JSON"));
        }
    }
    message.len()
}

fn few(list: &mut Vec<Bytes>, value: Value, what: &str) -> Result<()> {
    if list.len() == MAX_TENSORS {
        return Err(Error::invalid(format!(
            "`{what}` has more than {MAX_TENSORS} entries"
        )));
    }
    list.push(value.bytes(what)?);
    Ok(())
}

/// An entry of a map of parameters.
fn parameter(entry: Value, params: &mut Params) -> Result<()> {
    let mut fields = Fields::of(entry.bytes("parameters")?);
    let (mut name, mut choice) = (String::new(), None);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = value.text("a parameter's name", MAX_NAME_BYTES)?,
            2 => choice = Some(value.bytes("a parameter")?),
            _ => {}
        }
    }
    let in_parameter = |e: Error| e.context(format_args!("parameters.{name}"));
    let value = chosen(choice.unwrap_or_default()).map_err(in_parameter)?;
    if params.len() == MAX_PARAMS && !params.contains_key(&name) {
        return Err(Error::invalid(format!("more than {MAX_PARAMS} parameters")));
    }
    params.insert(name, value);
    Ok(())
}

/// A parameter's value.
fn chosen(choice: Bytes) -> Result<Json> {
    let mut fields = Fields::of(choice);
    let mut chosen = None;
    while let Some(field) = fields.next()? {
        chosen = match field {
            (1, Value::Varint(value)) => Some(Json::Bool(value != 0)),
            (2, Value::Varint(value)) => Some(Json::from(value as i64)),
            (3, value @ Value::Bytes(_)) => Some(Json::String(value.text("its text", usize::MAX)?)),
            (4, Value::Fixed64(value)) => {
                let value = f64::from_le_bytes(value);
                let number = Number::from_f64(value);
                let number = number
                    .ok_or_else(|| Error::invalid(format!("{value}, expected a finite number")))?;
                Some(Json::Number(number))
            }
            (5, Value::Varint(value)) => Some(Json::from(value)),
            _ => chosen,
        };
    }
    chosen.ok_or_else(|| {
        Error::invalid("no value, expected one of bool_param, int64_param, string_param, double_param, uint64_param")
    })
}

fn output(output: Bytes) -> Result<WantedOutput> {
    let mut fields = Fields::of(output);
    let (mut name, mut params) = (String::new(), Params::new());
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = value.text("an output's name", MAX_NAME_BYTES)?,
            2 => parameter(value, &mut params)?,
            _ => {}
        }
    }
    wanted_output(name, params)
}

fn tensor(input: Bytes, raw: Option<Bytes>, most_bytes: u64) -> Result<Tensor> {
    let (mut name, mut datatype) = (String::new(), String::new());
    let (mut shape, mut params, mut contents) = (Vec::new(), Params::new(), Vec::new());
    let mut fields = Fields::of(input);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, value) => name = value.text("an input's name", MAX_NAME_BYTES)?,
            (2, value) => datatype = value.text("an input's datatype", MAX_NAME_BYTES)?,
            (3, Value::Varint(dim)) => dimension(&mut shape, dim)?,
            (3, value) => {
                let packed = value.bytes("an input's shape")?;
                let mut rest = &packed[..];
                while !rest.is_empty() {
                    dimension(&mut shape, varint(&mut rest)?)?;
                }
            }
            (4, value) => parameter(value, &mut params)?,
            // Each is a part of one message; more than a few make no sense, and each has a price.
            (5, value) => few(&mut contents, value, "contents")?,
            _ => {}
        }
    }
    let in_tensor = |e: Error| e.context(format_args!("tensor {name:?}"));
    let datatype = DataType::parse(&datatype).map_err(in_tensor)?;
    refuse_shared_memory(&params).map_err(in_tensor)?;
    // Documents come as text.
    let travels_as = match datatype {
        DataType::Json => DataType::Bytes,
        other => other,
    };
    let tensor = match raw {
        Some(_) if contents.iter().any(|contents| !contents.is_empty()) => {
            return Err(in_tensor(Error::invalid(
                "both `contents` and raw_input_contents; give one of them",
            )));
        }
        Some(bytes) => binary(&name, travels_as, shape, bytes)?,
        None => {
            let list = List::new(travels_as, &shape, most_bytes);
            let data = list.and_then(|list| list.read(contents));
            Tensor::unchecked(name.as_str(), travels_as, shape, data.map_err(in_tensor)?)?
        }
    };
    match datatype {
        DataType::Json => to_documents(&tensor.check_values(0)?),
        _ => Ok(tensor),
    }
}

fn dimension(shape: &mut Vec<usize>, dim: u64) -> Result<()> {
    if shape.len() == MAX_RANK {
        return Err(Error::invalid(format!(
            "a shape has more than {MAX_RANK} dimensions"
        )));
    }
    let dim = usize::try_from(dim as i64).map_err(|_| {
        Error::invalid(format!("a shape has the negative dimension {}", dim as i64))
    })?;
    shape.push(dim);
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use prost::Message;

    use super::super::messages::ModelInferRequest;
    use super::super::messages::model_infer_request::InferInputTensor;
    use super::*;
    use crate::tensor::Data;

    /// A request of one input.
    pub(in super::super) fn request(input: InferInputTensor) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![input],
            ..ModelInferRequest::default()
        }
    }

    /// An input without values.
    pub(in super::super) fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        }
    }

    #[test]
    fn a_tensor_that_travels_as_bytes_is_a_slice_of_its_message_and_found_at_its_start() {
        let mut request = request(input("FP32", &[2]));
        request.raw_input_contents = vec![vec![1u8, 0, 0, 0, 2, 0, 0, 0].into()];
        let message = Bytes::from(request.encode_to_vec());
        let asked = read(message.clone(), 1 << 20).unwrap();
        let Data::Fixed(bytes) = asked.infer.request.inputs.tensors[0].data() else {
            panic!("numbers")
        };
        let at = message.len() - 8;
        assert_eq!(bytes.as_ptr(), message[at..].as_ptr());
        assert_eq!(first_raw(&message[..at]), Some(at));
        assert_eq!(first_raw(&message[..at - 5]), None);
        assert_eq!(first_raw(b""), None);
        assert_eq!(
            first_raw(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            None
        );
    }

    #[test]
    fn of_a_large_message_only_texts_and_what_is_no_raw_tensor_take_their_time() {
        let message = |datatype: &str, raw: bool, more: usize| {
            let mut request = request(input(datatype, &[2]));
            let bytes = vec![0; 2 * HERE_BYTES];
            match raw {
                true => request.raw_input_contents = vec![bytes.into()],
                false => request.id = String::from_utf8(bytes).unwrap(),
            }
            let more = b"\x38\x00".repeat(more); // numbers, where tensors should be
            Bytes::from([request.encode_to_vec(), more].concat())
        };
        for (datatype, raw, more, takes) in [
            ("FP32", true, 0, false),
            ("FP32", true, 10, false),
            ("FP32", false, 0, true),
            ("FP32", true, MAX_LOOKED_AT, true),
            ("BYTES", true, 0, true),
            ("JSON", true, 0, true),
        ] {
            let message = message(datatype, raw, more);
            assert_eq!(
                work_bytes(&message) == message.len(),
                takes,
                "{datatype} {more}"
            );
            assert!(takes || work_bytes(&message) < 100);
        }
    }
}
