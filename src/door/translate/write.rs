//! Writes the answer to an inference request: JSON, and the tensors behind it as the parts that they came in.

use std::io::Write;

use bytes::Bytes;

use super::strings::{document_text, lengths_in_front};
use super::{Wanted, WantedOutput, classes};
use crate::error::{Error, Result};
use crate::message::{FailedRows, Stats};
use crate::tensor::{Batch, Data, DataType, Tensor};
use crate::wire::server::Outputs;

/// What an answer repeats of its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerNames<'a> {
    pub(crate) model: &'a str,
    pub(crate) version: Option<&'a str>,
    pub(crate) id: Option<&'a str>,
}

/// An answer: JSON, and the bytes of tensors behind it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) json: Vec<u8>,
    pub(crate) behind: Vec<Bytes>,
}

/// One output over all parts.
pub(crate) struct Column<'a> {
    pub(crate) tensors: Vec<&'a Tensor>,
    pub(crate) shape: Vec<usize>,
}

impl<'a> Column<'a> {
    /// Output `index` of each part.
    fn of(outputs: &'a Outputs, index: usize) -> Option<Column<'a>> {
        let tensors = outputs.parts.iter().map(|part| part.tensors.get(index));
        let tensors = tensors.collect::<Option<Vec<&Tensor>>>()?;
        let mut shape = tensors.first()?.shape().to_vec();
        if outputs.batched
            && let Some(first) = shape.first_mut()
        {
            *first = tensors.iter().filter_map(|tensor| tensor.rows()).sum();
        }
        Some(Column { tensors, shape })
    }

    pub(crate) fn first(&self) -> &'a Tensor {
        self.tensors[0] // a column is made of at least one
    }
}

/// Writes a result.
///
/// # Errors
/// `INVALID_ARGUMENT` for an output that the model does not give, and for one that cannot be had as was asked;
/// `INTERNAL` for a model's output that is not what it says.
pub(crate) fn write(
    answered: AnswerNames<'_>,
    outputs: &Outputs,
    wanted: &Wanted,
) -> Result<Written> {
    let mut written = Written {
        json: Vec::with_capacity(512),
        behind: Vec::new(),
    };
    let json = &mut written.json;
    names(json, answered);
    json.extend_from_slice(b",\"outputs\":");
    write_outputs(&mut written, outputs, wanted)?;
    write_failed(&mut written.json, &outputs.failed);
    written.json.push(b'}');
    Ok(written)
}

/// Adds the rows that failed as a parameter, if there are any.
fn write_failed(json: &mut Vec<u8>, failed: &[FailedRows]) {
    if failed.is_empty() {
        return;
    }
    json.extend_from_slice(b",\"parameters\":{\"failed\":");
    json.extend_from_slice(&failed_json(failed));
    json.push(b'}');
}

/// The rows that failed as a list.
pub(crate) fn failed_json(failed: &[FailedRows]) -> Vec<u8> {
    let mut json = vec![b'['];
    for (index, rows) in failed.iter().enumerate() {
        separate(&mut json, index);
        let numbers = format!(
            "{{\"first\":{},\"count\":{},\"code\":",
            rows.first, rows.count
        );
        json.extend_from_slice(numbers.as_bytes());
        text(&mut json, rows.code.as_str());
        json.extend_from_slice(b",\"message\":");
        text(&mut json, &rows.message);
        json.push(b'}');
    }
    json.push(b']');
    json
}

/// How many bytes of outputs are not given back as they lie in memory: all that become JSON, and strings.
pub(crate) fn copied_bytes(outputs: &Outputs, wanted: &Wanted) -> usize {
    let named = wanted.outputs.iter().flatten();
    let all_binary = match &wanted.outputs {
        None => wanted.binary,
        Some(_) => named
            .clone()
            .all(|one| one.classes == 0 && one.binary.unwrap_or(wanted.binary)),
    };
    let tensors = outputs.parts.iter().flat_map(|part| &part.tensors);
    let copied = tensors.filter(|tensor| !all_binary || tensor.datatype().size().is_none());
    copied.map(Tensor::payload_bytes).sum()
}

/// Writes one part of a stream as JSON; nothing is wanted behind it.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_part(offset: u64, outputs: &Outputs, wanted: &Wanted) -> Result<Vec<u8>> {
    let mut written = Written {
        json: format!("{{\"offset\":{offset},\"outputs\":").into_bytes(),
        behind: Vec::new(),
    };
    write_outputs(&mut written, outputs, wanted)?;
    write_failed(&mut written.json, &outputs.failed);
    written.json.push(b'}');
    Ok(written.json)
}

/// Writes the end of a stream as JSON; `rows` where its model has any.
pub(crate) fn write_end(answered: AnswerNames<'_>, rows: Option<u64>, stats: Stats) -> Vec<u8> {
    let mut json = Vec::with_capacity(256);
    names(&mut json, answered);
    let Stats {
        queue_us,
        compute_us,
        chunks,
    } = stats;
    if let Some(rows) = rows {
        json.extend_from_slice(format!(",\"rows\":{rows}").as_bytes());
    }
    let rest = format!(
        ",\"stats\":{{\"queue_us\":{queue_us},\"compute_us\":{compute_us},\"chunks\":{chunks}}}}}"
    );
    json.extend_from_slice(rest.as_bytes());
    json
}

/// Begins an object with what an answer repeats.
fn names(json: &mut Vec<u8>, answered: AnswerNames<'_>) {
    json.extend_from_slice(b"{\"model_name\":");
    text(json, answered.model);
    if let Some(version) = answered.version {
        json.extend_from_slice(b",\"model_version\":");
        text(json, version);
    }
    if let Some(id) = answered.id {
        json.extend_from_slice(b",\"id\":");
        text(json, id);
    }
}

fn write_outputs(written: &mut Written, outputs: &Outputs, wanted: &Wanted) -> Result<()> {
    written.json.push(b'[');
    let mut position = 0;
    each_output(outputs, wanted, |column, of| {
        separate(&mut written.json, position);
        position += 1;
        let binary = of.and_then(|of| of.binary).unwrap_or(wanted.binary);
        output(written, column, binary)
    })?;
    written.json.push(b']');
    Ok(())
}

/// Gives each output that is wanted to `write`, with how it was asked for; classes in place of values, where they are
/// wanted.
///
/// # Errors
/// As [`write`]; what `write` gives.
pub(crate) fn each_output(
    outputs: &Outputs,
    wanted: &Wanted,
    mut write: impl FnMut(&Column<'_>, Option<&WantedOutput>) -> Result<()>,
) -> Result<()> {
    let first = outputs.parts.first();
    let all = first.map_or(&[][..], |part: &Batch| &part.tensors);
    let missing = || Error::internal("the parts of a result differ in their outputs");
    if all.is_empty() && !outputs.failed.is_empty() {
        return Ok(()); // a part of which every row failed
    }
    let Some(named) = &wanted.outputs else {
        for index in 0..all.len() {
            write(&Column::of(outputs, index).ok_or_else(missing)?, None)?;
        }
        return Ok(());
    };
    for one in named {
        let index = all.iter().position(|tensor| tensor.name() == one.name);
        let index = index.ok_or_else(|| unknown_output(one, all))?;
        let column = Column::of(outputs, index).ok_or_else(missing)?;
        if one.classes == 0 {
            write(&column, Some(one))?;
            continue;
        }
        let ranked = classes::highest(&column.tensors, one.classes, outputs.batched)?;
        let column = Column {
            shape: ranked.shape().to_vec(),
            tensors: vec![&ranked],
        };
        write(&column, Some(one))?;
    }
    Ok(())
}

fn unknown_output(wanted: &WantedOutput, all: &[Tensor]) -> Error {
    let names: Vec<&str> = all.iter().map(Tensor::name).collect();
    Error::invalid(format!(
        "output {:?} was asked for, and the model gives {names:?}",
        wanted.name
    ))
}

fn separate(json: &mut Vec<u8>, index: usize) {
    if index > 0 {
        json.push(b',');
    }
}

fn output(written: &mut Written, column: &Column<'_>, binary: bool) -> Result<()> {
    let tensor = column.first();
    let json = &mut written.json;
    json.extend_from_slice(b"{\"name\":");
    text(json, tensor.name());
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(shown_datatype(tensor.datatype()).as_bytes());
    json.extend_from_slice(b"\",\"shape\":[");
    for (index, dim) in column.shape.iter().enumerate() {
        separate(json, index);
        shown(json, dim);
    }
    json.push(b']');
    if binary {
        let mut bytes = 0;
        for tensor in &column.tensors {
            let piece = match tensor.data() {
                Data::Fixed(bytes) => bytes.clone(),
                Data::Variable { .. } => lengths_in_front(tensor)?,
            };
            bytes += piece.len();
            if !piece.is_empty() {
                written.behind.push(piece);
            }
        }
        json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        shown(json, bytes);
        json.push(b'}');
    } else {
        json.extend_from_slice(b",\"data\":[");
        let mut written = 0;
        for tensor in &column.tensors {
            values(json, tensor, written)?;
            written += tensor.elements();
        }
        json.push(b']');
    }
    json.push(b'}');
    Ok(())
}

/// As clients know it: documents travel as JSON text in BYTES.
pub(crate) fn shown_datatype(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Json => DataType::Bytes.name(),
        other => other.name(),
    }
}

/// Writes the values of a tensor, behind so many others.
fn values(json: &mut Vec<u8>, tensor: &Tensor, before: usize) -> Result<()> {
    let Data::Fixed(bytes) = tensor.data() else {
        return strings(json, tensor, before);
    };
    macro_rules! each {
        ($size:literal, $read:expr) => {
            for (index, element) in bytes.as_chunks::<$size>().0.iter().enumerate() {
                separate(json, before + index);
                let read: fn(&mut Vec<u8>, [u8; $size]) = $read;
                read(json, *element);
            }
        };
    }
    match tensor.datatype() {
        DataType::Bool => each!(1, |json, [byte]| {
            json.extend_from_slice(if byte == 0 { b"false" } else { b"true" });
        }),
        DataType::Int8 => each!(1, |json, b| shown(json, i8::from_le_bytes(b))),
        DataType::Int16 => each!(2, |json, b| shown(json, i16::from_le_bytes(b))),
        DataType::Int32 => each!(4, |json, b| shown(json, i32::from_le_bytes(b))),
        DataType::Int64 => each!(8, |json, b| shown(json, i64::from_le_bytes(b))),
        DataType::Uint8 => each!(1, |json, b| shown(json, u8::from_le_bytes(b))),
        DataType::Uint16 => each!(2, |json, b| shown(json, u16::from_le_bytes(b))),
        DataType::Uint32 => each!(4, |json, b| shown(json, u32::from_le_bytes(b))),
        DataType::Uint64 => each!(8, |json, b| shown(json, u64::from_le_bytes(b))),
        DataType::Fp16 => each!(2, |json, b| float(json, half::f16::from_le_bytes(b).into())),
        DataType::Bf16 => each!(2, |json, b| float(
            json,
            half::bf16::from_le_bytes(b).into()
        )),
        DataType::Fp32 => each!(4, |json, b| float(json, f32::from_le_bytes(b))),
        DataType::Fp64 => each!(8, |json, b| double(json, f64::from_le_bytes(b))),
        DataType::Bytes | DataType::Json => {} // these are not fixed
    }
    Ok(())
}

fn strings(json: &mut Vec<u8>, tensor: &Tensor, before: usize) -> Result<()> {
    for (index, element) in tensor.byte_strings().enumerate() {
        separate(json, before + index);
        let document;
        let bytes = match tensor.datatype() {
            DataType::Json => {
                document = document_text(tensor.name(), element)?;
                &document
            }
            _ => element,
        };
        let string = std::str::from_utf8(bytes).map_err(|_| {
            Error::invalid(format!(
                "output {:?}: element {} is not UTF-8, which JSON cannot hold; ask for it with \"binary_data\": true",
                tensor.name(),
                before + index
            ))
        })?;
        text(json, string);
    }
    Ok(())
}

/// Writes a whole number.
fn shown(json: &mut Vec<u8>, number: impl std::fmt::Display) {
    // Writing to memory does not fail.
    let _ = write!(json, "{number}");
}

/// Writes a string with its quotes.
fn text(json: &mut Vec<u8>, text: &str) {
    // As above.
    let _ = serde_json::to_writer(json, text);
}

/// Writes a number so that it reads back as it was. What is no number has a word, as other servers write it: JSON has
/// none for it, and no number would be true.
fn float(json: &mut Vec<u8>, value: f32) {
    match value.is_finite() {
        true => {
            // As above.
            let _ = serde_json::to_writer(json, &value);
        }
        false => json.extend_from_slice(word(f64::from(value))),
    }
}

/// As [`float`].
fn double(json: &mut Vec<u8>, value: f64) {
    match value.is_finite() {
        true => {
            // As above.
            let _ = serde_json::to_writer(json, &value);
        }
        false => json.extend_from_slice(word(value)),
    }
}

fn word(value: f64) -> &'static [u8] {
    match value {
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ => b"NaN",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ANSWERED: AnswerNames<'_> = AnswerNames {
        model: "m",
        version: Some("2"),
        id: Some("i\"d"),
    };

    fn outputs(parts: Vec<Vec<Tensor>>, batched: bool) -> Outputs {
        Outputs {
            parts: parts.into_iter().map(Batch::from).collect(),
            batched,
            failed: Vec::new(),
        }
    }

    fn floats(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_slice(name, shape.to_vec(), values).unwrap()
    }

    fn binary(name: &str) -> WantedOutput {
        WantedOutput {
            name: name.to_owned(),
            binary: Some(true),
            classes: 0,
        }
    }

    #[test]
    fn parts_are_one_tensor_in_json_and_pieces_behind_it() {
        let part = |rows: usize, from: f32| {
            let values: Vec<f32> = (0..rows * 2).map(|i| from + i as f32).collect();
            vec![
                floats("y", &[rows, 2], &values),
                Tensor::from_strings("s", None, &vec!["é"; rows]).unwrap(),
            ]
        };
        let outputs = outputs(vec![part(2, 0.), part(1, 4.)], true);
        let all = write(ANSWERED, &outputs, &Wanted::default()).unwrap();
        let read: Value = serde_json::from_slice(&all.json).unwrap();
        let expected = json!({
            "model_name": "m", "model_version": "2", "id": "i\"d",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [3, 2], "data": [0., 1., 2., 3., 4., 5.]},
                {"name": "s", "datatype": "BYTES", "shape": [3], "data": ["é", "é", "é"]},
            ],
        });
        assert_eq!(read, expected);
        let wanted = Wanted {
            outputs: Some(vec![binary("s"), binary("y")]),
            ..Wanted::default()
        };
        let behind = write(ANSWERED, &outputs, &wanted).unwrap();
        let read: Value = serde_json::from_slice(&behind.json).unwrap();
        let expected = json!([
            {"name": "s", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": 18}},
            {"name": "y", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24}},
        ]);
        assert_eq!(read["outputs"], expected);
        let lengths: Vec<usize> = behind.behind.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [12, 6, 16, 8]);
        // As they lie in memory.
        let Data::Fixed(bytes) = outputs.parts[0].tensors[0].data() else {
            panic!("numbers")
        };
        assert_eq!(behind.behind[2].as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn numbers_read_back_as_they_were_and_words_stand_for_what_is_none() {
        let values = [0.1f32, 1e-45, f32::MAX, -0.0, 16_777_217.];
        let one = outputs(vec![vec![floats("y", &[5], &values)]], false);
        let written = write(ANSWERED, &one, &Wanted::default()).unwrap();
        let read: Value = serde_json::from_slice(&written.json).unwrap();
        let data = read["outputs"][0]["data"].as_array().unwrap();
        for (read, value) in data.iter().zip(values) {
            let read: f32 = read.to_string().parse().unwrap();
            assert_eq!(read.to_bits(), value.to_bits());
        }
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let one = outputs(vec![vec![floats("y", &[3], &odd)]], false);
        let written = write(ANSWERED, &one, &Wanted::default()).unwrap();
        let json = String::from_utf8(written.json).unwrap();
        assert!(json.contains("\"data\":[NaN,Infinity,-Infinity]"), "{json}");
    }

    #[test]
    fn an_output_that_cannot_be_had_is_named() {
        let bytes = Tensor::from_strings("s", None, &[&b"a"[..], b"\xff"]).unwrap();
        let one = outputs(vec![vec![bytes]], true);
        let error = write(ANSWERED, &one, &Wanted::default()).unwrap_err();
        assert!(
            error.message().contains("element 1 is not UTF-8"),
            "{error}"
        );
        let wanted = Wanted {
            outputs: Some(vec![binary("z")]),
            ..Wanted::default()
        };
        let error = write(ANSWERED, &one, &wanted).unwrap_err();
        assert!(error.message().contains("\"z\" was asked for"), "{error}");
        assert!(error.message().contains("[\"s\"]"), "{error}");
    }
}
