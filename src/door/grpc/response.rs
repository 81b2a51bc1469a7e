//! Writes the answer to an inference request: protobuf, and the tensors in it as the parts that they came in.

use bytes::Bytes;

use super::fields::{Writer, put_varint};
use super::lists::field_of;
use crate::door::translate::Wanted;
use crate::door::translate::strings::{document_text, lengths_in_front};
use crate::door::translate::write::{
    AnswerNames, Column, each_output, failed_json, shown_datatype,
};
use crate::error::{Error, Result};
use crate::tensor::{Data, DataType, Tensor};
use crate::wire::server::Outputs;

/// The field of [`super::messages::ModelStreamInferResponse`] that an answer is in.
pub(super) const ANSWER_OF_STREAM: u32 = 2;

/// A parameter of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parameter {
    Flag(bool),
    Number(u64),
}

/// Writes an answer's names and parameters.
fn begin(answered: AnswerNames<'_>, parameters: &[(&str, Parameter)]) -> Writer {
    let mut writer = Writer::new();
    writer.bytes(1, answered.model.as_bytes());
    writer.bytes(2, answered.version.unwrap_or_default().as_bytes());
    writer.bytes(3, answered.id.unwrap_or_default().as_bytes());
    for (name, parameter) in parameters {
        let mut value = Vec::new();
        match *parameter {
            Parameter::Flag(flag) => value.extend_from_slice(&[1 << 3, u8::from(flag)]),
            Parameter::Number(number) => {
                value.push(2 << 3);
                put_varint(&mut value, number);
            }
        }
        put_parameter(&mut writer, name, &value);
    }
    writer
}

fn put_parameter(writer: &mut Writer, name: &str, value: &[u8]) {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, name.as_bytes());
    put_bytes(&mut entry, 2, value);
    writer.listed_bytes(4, &entry);
}

/// Writes a result, or one part of it.
///
/// # Errors
/// `INVALID_ARGUMENT` for an output that the model does not give, and for one that cannot be had as was asked;
/// `RESOURCE_EXHAUSTED` for more than a message holds.
pub(super) fn write(
    answered: AnswerNames<'_>,
    parameters: &[(&str, Parameter)],
    (outputs, wanted): (&Outputs, &Wanted),
    wrapped_in: Option<u32>,
) -> Result<Vec<Bytes>> {
    let mut writer = begin(answered, parameters);
    if !outputs.failed.is_empty() {
        // A parameter holds no list.
        let mut value = Vec::new();
        put_bytes(&mut value, 3, &failed_json(&outputs.failed));
        put_parameter(&mut writer, "failed", &value);
    }
    let mut raw: Vec<Vec<Bytes>> = Vec::new();
    each_output(outputs, wanted, |column, of| {
        if of.is_some_and(|of| of.binary.is_some()) {
            return Err(Error::invalid(
                "an output's parameters.binary_data: here all outputs travel alike, by the request's binary_data_output",
            ));
        }
        let mut output = Vec::with_capacity(64);
        let tensor = column.first();
        put_bytes(&mut output, 1, tensor.name().as_bytes());
        let datatype = shown_datatype(tensor.datatype());
        put_bytes(&mut output, 2, datatype.as_bytes());
        let mut dims = Vec::with_capacity(16);
        for &dim in &column.shape {
            put_varint(&mut dims, dim as u64);
        }
        if !dims.is_empty() {
            put_bytes(&mut output, 3, &dims);
        }
        match wanted.binary {
            true => raw.push(pieces(column)?),
            false => put_bytes(&mut output, 5, &lists(column)?),
        }
        writer.listed_bytes(5, &output);
        Ok(())
    })?;
    for pieces in raw {
        writer.pieces(6, pieces);
    }
    writer.finish(wrapped_in)
}

/// Writes an answer without outputs: the end of parts.
///
/// # Errors
/// None that can happen to so short a message.
pub(super) fn write_end(
    answered: AnswerNames<'_>,
    parameters: &[(&str, Parameter)],
) -> Result<Vec<Bytes>> {
    begin(answered, parameters).finish(Some(ANSWER_OF_STREAM))
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number << 3 | 2));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The bytes of an output, part after part.
fn pieces(column: &Column<'_>) -> Result<Vec<Bytes>> {
    let piece = |tensor: &&Tensor| match tensor.data() {
        Data::Fixed(bytes) => Ok(bytes.clone()),
        Data::Variable { .. } => lengths_in_front(tensor),
    };
    column.tensors.iter().map(piece).collect()
}

/// The values of an output in the list of its datatype.
fn lists(column: &Column<'_>) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    let datatype = column.first().datatype();
    let (number, _) = field_of(datatype).ok_or_else(|| {
        Error::invalid(format!(
            "output {:?} is {datatype}, for which there is no list: ask without binary_data_output false",
            column.first().name()
        ))
    })?;
    let mut packed = Vec::new();
    for tensor in &column.tensors {
        let Data::Fixed(bytes) = tensor.data() else {
            for element in tensor.byte_strings() {
                match datatype {
                    DataType::Json => {
                        let text = document_text(tensor.name(), element)?;
                        put_bytes(&mut contents, number, &text);
                    }
                    _ => put_bytes(&mut contents, number, element),
                }
            }
            continue;
        };
        macro_rules! each {
            ($size:literal, $read:expr) => {
                for element in bytes.as_chunks::<$size>().0 {
                    let read: fn([u8; $size]) -> u64 = $read;
                    put_varint(&mut packed, read(*element));
                }
            };
        }
        match datatype {
            DataType::Bool | DataType::Uint8 => each!(1, |[byte]| u64::from(byte)),
            DataType::Int8 => each!(1, |b| i8::from_le_bytes(b) as u64),
            DataType::Int16 => each!(2, |b| i16::from_le_bytes(b) as u64),
            DataType::Int32 => each!(4, |b| i32::from_le_bytes(b) as u64),
            DataType::Uint16 => each!(2, |b| u64::from(u16::from_le_bytes(b))),
            DataType::Uint32 => each!(4, |b| u64::from(u32::from_le_bytes(b))),
            DataType::Int64 | DataType::Uint64 => each!(8, u64::from_le_bytes),
            // As they lie here, so do they travel.
            _ => packed.extend_from_slice(bytes),
        }
    }
    if !packed.is_empty() {
        put_bytes(&mut contents, number, &packed);
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::fields::PREFIX_BYTES;
    use super::super::messages::{ModelInferResponse, ModelStreamInferResponse};
    use super::*;
    use crate::tensor::Batch;

    const ANSWERED: AnswerNames<'_> = AnswerNames {
        model: "m",
        version: Some("2"),
        id: Some("seven"),
    };

    /// Two parts of three outputs.
    fn outputs() -> Outputs {
        let part = |ints: &[i8], floats: &[f32], texts: &[&str]| {
            Batch::from(vec![
                Tensor::from_slice("i", vec![ints.len()], ints).unwrap(),
                Tensor::from_slice("f", vec![floats.len() / 2, 2], floats).unwrap(),
                Tensor::from_strings("s", None, texts).unwrap(),
            ])
        };
        Outputs {
            parts: vec![
                part(&[1, -1], &[0.5, 1., 2., 3.], &["a", ""]),
                part(&[-128], &[4., f32::NEG_INFINITY], &["ü"]),
            ],
            batched: true,
            failed: Vec::new(),
        }
    }

    #[test]
    fn parts_are_one_tensor_in_bytes_and_in_lists() {
        let outputs = outputs();
        let wanted = |binary| Wanted {
            binary,
            ..Wanted::default()
        };
        let raw = write(ANSWERED, &[], (&outputs, &wanted(true)), None).unwrap();
        let raw = ModelInferResponse::decode(&raw.concat()[PREFIX_BYTES..]).unwrap();
        assert_eq!((&*raw.model_name, &*raw.model_version), ("m", "2"));
        assert_eq!(raw.id, "seven");
        let shapes: Vec<&[i64]> = raw.outputs.iter().map(|of| &of.shape[..]).collect();
        assert_eq!(shapes, [&[3][..], &[3, 2], &[3]]);
        assert_eq!(raw.raw_output_contents[0], [1, 255, 128][..]);
        assert_eq!(raw.raw_output_contents[1].len(), 24);
        let strings = b"\x01\0\0\0a\0\0\0\0\x02\0\0\0\xc3\xbc";
        assert_eq!(raw.raw_output_contents[2], strings[..]);

        let parameters = [("n", Parameter::Number(300)), ("b", Parameter::Flag(true))];
        let lists = write(ANSWERED, &parameters, (&outputs, &wanted(false)), Some(2)).unwrap();
        let lists = ModelStreamInferResponse::decode(&lists.concat()[PREFIX_BYTES..]).unwrap();
        let lists = lists.infer_response.unwrap();
        assert_eq!(lists.parameters.len(), 2);
        assert!(lists.raw_output_contents.is_empty());
        let contents = |index: usize| lists.outputs[index].contents.clone().unwrap();
        assert_eq!(contents(0).int_contents, [1, -1, -128]);
        let floats = [0.5, 1., 2., 3., 4., f32::NEG_INFINITY];
        assert_eq!(contents(1).fp32_contents, floats);
        assert_eq!(contents(2).bytes_contents, ["a", "", "ü"]);
    }
}
