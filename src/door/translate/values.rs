//! The `data` of a tensor in JSON: numbers, booleans and strings, flat or nested as the shape is.
//!
//! The text is JSON already (serde has looked at all of it), so that only its values and its brackets matter here. It is
//! read once, straight into the tensor's bytes: numbers by the standard library, which rounds them right.

use std::fmt::Display;
use std::str::FromStr;

use super::MAX_RANK;
use super::strings::Elements;
use crate::error::{Error, Result};
use crate::tensor::{Data, DataType, Tensor, element_count};

/// What a tensor's data is read for.
pub(crate) struct Column<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: DataType,
    pub(crate) shape: Vec<usize>,
    /// Most bytes that it may take.
    pub(crate) most_bytes: u64,
}

/// Reads a tensor's data.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the tensor and the element: a value that is none of the datatype's, another number of
/// values than the shape has, brackets that are neither flat nor the shape's.
pub(crate) fn read(column: Column<'_>, json: &str) -> Result<Tensor> {
    let in_tensor = |e: Error| e.context(format_args!("tensor {:?}", column.name));
    let elements = element_count(&column.shape).ok_or_else(|| {
        in_tensor(Error::invalid(format!(
            "shape {:?} has more elements than memory can hold",
            column.shape
        )))
    })?;
    let mut values = Values::new(&column, elements);
    let mut brackets = Brackets::default();
    scan(json, &mut brackets, &mut values).map_err(in_tensor)?;
    brackets.check(&column.shape).map_err(in_tensor)?;
    if values.count != elements {
        return Err(in_tensor(Error::invalid(format!(
            "{} values, and shape {:?} has {elements}",
            values.count, column.shape
        ))));
    }
    let Column {
        name,
        datatype,
        shape,
        ..
    } = column;
    Tensor::unchecked(name, datatype, shape, values.out.into_data())
}

/// The bytes so far.
enum Out {
    Fixed(Vec<u8>),
    Variable(Elements),
}

impl Out {
    fn into_data(self) -> Data {
        match self {
            Out::Fixed(bytes) => Data::Fixed(bytes.into()),
            Out::Variable(elements) => elements.into_data(),
        }
    }
}

struct Values {
    datatype: DataType,
    out: Out,
    count: usize,
    elements: usize,
    most_bytes: usize,
}

impl Values {
    fn new(column: &Column<'_>, elements: usize) -> Values {
        Values {
            datatype: column.datatype,
            out: match column.datatype.size() {
                Some(_) => Out::Fixed(Vec::new()),
                None => Out::Variable(Elements::new()),
            },
            count: 0,
            elements,
            most_bytes: usize::try_from(column.most_bytes).unwrap_or(usize::MAX),
        }
    }

    fn push(&mut self, token: &str) -> Result<()> {
        if self.count == self.elements {
            return Err(Error::invalid(format!(
                "more values than the {} of its shape",
                self.elements
            )));
        }
        let pushed = match &mut self.out {
            Out::Fixed(bytes) => fixed(self.datatype, token, bytes),
            Out::Variable(elements) => variable(self.datatype, token, elements),
        };
        pushed.map_err(|e| e.context(format_args!("element {}", self.count)))?;
        self.count += 1;
        let bytes = match &self.out {
            Out::Fixed(bytes) => bytes.len(),
            Out::Variable(elements) => elements.bytes(),
        };
        if bytes > self.most_bytes {
            return Err(Error::invalid(format!(
                "its values take more than {} bytes (--max-request-bytes)",
                self.most_bytes
            )));
        }
        Ok(())
    }
}

/// Which arrays there were: how deep the values are, and how long the arrays of each depth.
#[derive(Default)]
struct Brackets {
    /// Of the arrays that are open, how many entries have ended.
    open: Vec<usize>,
    /// Of each depth, how many entries its arrays have.
    lengths: Vec<usize>,
    /// How many arrays are around each value; 0: no value has come.
    depth: usize,
}

impl Brackets {
    fn enter(&mut self) -> Result<()> {
        if self.open.len() == MAX_RANK {
            return Err(Error::invalid(format!(
                "`data` is nested deeper than {MAX_RANK}, the most dimensions"
            )));
        }
        self.open.push(0);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let depth = self.open.len();
        let Some(length) = self.open.pop() else {
            return Err(ragged());
        };
        // Arrays inside others end first, so that the deeper lengths may be known before the outer ones.
        if self.lengths.len() < depth {
            self.lengths.resize(depth, usize::MAX);
        }
        let known = &mut self.lengths[depth - 1];
        if *known == usize::MAX {
            *known = length;
        } else if *known != length {
            return Err(ragged());
        }
        self.entry();
        Ok(())
    }

    fn value(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Err(Error::invalid("`data` is no array"));
        }
        if self.depth == 0 {
            self.depth = self.open.len();
        } else if self.depth != self.open.len() {
            return Err(ragged());
        }
        self.entry();
        Ok(())
    }

    fn entry(&mut self) {
        if let Some(entries) = self.open.last_mut() {
            *entries += 1;
        }
    }

    /// Flat, or as the shape is.
    fn check(&self, shape: &[usize]) -> Result<()> {
        let is_flat = self.lengths.len() == 1;
        // Without a value the arrays need not go as deep as the shape.
        let is_empty = self.depth == 0 && shape.starts_with(&self.lengths);
        if is_flat || is_empty || self.lengths == shape {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "`data` is nested as {:?}, expected one flat array or shape {shape:?}",
            self.lengths
        )))
    }
}

fn ragged() -> Error {
    Error::invalid("`data` is ragged: the arrays of one depth differ in length")
}

/// Goes through the text: brackets, and values as they are written.
fn scan(json: &str, brackets: &mut Brackets, values: &mut Values) -> Result<()> {
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'[' => brackets.enter()?,
            b']' => brackets.leave()?,
            b',' | b' ' | b'\t' | b'\n' | b'\r' => {}
            b'{' => {
                return Err(Error::invalid(format!(
                    "element {}: an object, expected {}",
                    values.count,
                    expected(values.datatype)
                )));
            }
            b'"' => {
                // The text is JSON: each string ends, and what follows a backslash is not its end.
                while let Some(byte) = bytes.get(at) {
                    at += 1;
                    match byte {
                        b'\\' => at += 1,
                        b'"' => break,
                        _ => {}
                    }
                }
                brackets.value()?;
                values.push(json.get(start..at).unwrap_or_default())?;
            }
            _ => {
                let rest = &bytes[start..];
                let length = rest.iter().position(|b| b",] \t\n\r".contains(b));
                at = start + length.unwrap_or(rest.len());
                brackets.value()?;
                values.push(json.get(start..at).unwrap_or_default())?;
            }
        }
    }
    Ok(())
}

fn expected(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "true or false",
        DataType::Bytes => "a string",
        DataType::Json => "JSON in a string",
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => "a number",
        _ => "a whole number",
    }
}

/// A value that is none of the datatype's.
fn wrong(datatype: DataType, token: &str) -> Error {
    Error::invalid(format!(
        "{} is no {datatype}, expected {}",
        start_of(token),
        expected(datatype)
    ))
}

/// As much of a token as a message shows.
fn start_of(token: &str) -> &str {
    &token[..token.floor_char_boundary(40)]
}

fn number<T: FromStr>(datatype: DataType, token: &str) -> Result<T>
where
    T::Err: Display,
{
    // JSON's numbers are Rust's but for words such as NaN, which no JSON has.
    let begins = token.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let parsed = begins.then(|| token.parse().ok()).flatten();
    parsed.ok_or_else(|| wrong(datatype, token))
}

/// A number that is finite in its datatype.
fn finite(datatype: DataType, token: &str, is_finite: bool) -> Result<()> {
    match is_finite {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{} is beyond {datatype}",
            start_of(token)
        ))),
    }
}

fn fixed(datatype: DataType, token: &str, out: &mut Vec<u8>) -> Result<()> {
    macro_rules! push {
        ($kind:ty) => {{
            let value: $kind = number(datatype, token)?;
            out.extend_from_slice(&value.to_le_bytes());
        }};
    }
    match datatype {
        DataType::Bool => match token {
            "true" | "1" => out.push(1),
            "false" | "0" => out.push(0),
            _ => return Err(wrong(datatype, token)),
        },
        DataType::Int8 => push!(i8),
        DataType::Int16 => push!(i16),
        DataType::Int32 => push!(i32),
        DataType::Int64 => push!(i64),
        DataType::Uint8 => push!(u8),
        DataType::Uint16 => push!(u16),
        DataType::Uint32 => push!(u32),
        DataType::Uint64 => push!(u64),
        DataType::Fp32 => {
            let value: f32 = number(datatype, token)?;
            finite(datatype, token, value.is_finite())?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        DataType::Fp64 => {
            let value: f64 = number(datatype, token)?;
            finite(datatype, token, value.is_finite())?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        DataType::Fp16 => {
            let value = half::f16::from_f64(number(datatype, token)?);
            finite(datatype, token, value.is_finite())?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        DataType::Bf16 => {
            let value = half::bf16::from_f64(number(datatype, token)?);
            finite(datatype, token, value.is_finite())?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        DataType::Bytes | DataType::Json => return Err(wrong(datatype, token)),
    }
    Ok(())
}

fn variable(datatype: DataType, token: &str, elements: &mut Elements) -> Result<()> {
    let text = token
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or_else(|| wrong(datatype, token))?;
    if !text.contains('\\') {
        elements.push(text.as_bytes());
        return Ok(());
    }
    let unescaped: String = serde_json::from_str(token).map_err(|_| wrong(datatype, token))?;
    elements.push(unescaped.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Element;

    fn tensor(datatype: DataType, shape: &[usize], json: &str) -> Result<Tensor> {
        let column = Column {
            name: "x",
            datatype,
            shape: shape.to_vec(),
            most_bytes: 1 << 20,
        };
        read(column, json)?.check_values(0)
    }

    fn numbers<T: Element>(shape: &[usize], json: &str) -> Vec<T> {
        tensor(T::DATATYPE, shape, json).unwrap().to_vec().unwrap()
    }

    fn refused(datatype: DataType, shape: &[usize], json: &str) -> String {
        let error = tensor(datatype, shape, json).unwrap_err();
        assert!(error.message().starts_with("tensor \"x\": "), "{error}");
        error.message()["tensor \"x\": ".len()..].to_owned()
    }

    #[test]
    fn flat_and_nested_data_are_the_same_tensor() {
        let expected = [1f32, -2.5, 3e10, 0.1, 5., 6.];
        for json in [
            "[1, -2.5, 3e10, 0.1, 5, 6.0]",
            "[[1,-2.5,3E+10],[0.1,5,6]]",
            " [ [ 1 ,-2.5,\n3e10 ] , [0.1,5,6] ] ",
        ] {
            assert_eq!(numbers::<f32>(&[2, 3], json), expected, "{json}");
        }
        assert_eq!(numbers::<f32>(&[], "[7]"), [7.]);
        assert_eq!(numbers::<f32>(&[1, 1, 1], "[[[7]]]"), [7.]);
        assert!(numbers::<f32>(&[0, 3], "[]").is_empty());
        assert!(numbers::<f32>(&[2, 0], "[[],[]]").is_empty());
    }

    #[test]
    fn numbers_are_rounded_right_and_whole_ones_are_exact() {
        assert_eq!(numbers::<f64>(&[1], "[0.1]"), [0.1]);
        assert_eq!(
            numbers::<f64>(&[1], "[2.2250738585072011e-308]"),
            [2.225073858507201e-308]
        );
        assert_eq!(numbers::<u64>(&[1], "[18446744073709551615]"), [u64::MAX]);
        assert_eq!(numbers::<i64>(&[1], "[-9223372036854775808]"), [i64::MIN]);
        assert_eq!(numbers::<bool>(&[3], "[true,false,1]"), [true, false, true]);
        assert_eq!(
            numbers::<half::f16>(&[1], "[1.5]"),
            [half::f16::from_f32(1.5)]
        );
        assert_eq!(
            numbers::<half::bf16>(&[1], "[-2]"),
            [half::bf16::from_f32(-2.)]
        );
    }

    #[test]
    fn strings_are_read_with_their_escapes() {
        let read = tensor(
            DataType::Bytes,
            &[2, 2],
            r#"[["a","\"],["],["","é\u00e9\\"]]"#,
        )
        .unwrap();
        assert_eq!(read.strings().unwrap(), ["a", "\"],[", "", "éé\\"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let f = DataType::Fp32;
        for (datatype, shape, json, why) in [
            (f, &[3][..], "[1,2]", "2 values, and shape [3] has 3"),
            (f, &[1], "[1,2]", "more values than the 1 of its shape"),
            (f, &[2, 2], "[[1,2],[3]]", "ragged"),
            (f, &[2, 2], "[[1,2],3,4]", "ragged"),
            (f, &[2, 2], "[[1,2,3,4]]", "nested as [1, 4]"),
            (f, &[4], "[[1,2],[3,4]]", "nested as [2, 2]"),
            (f, &[1], "7", "no array"),
            (f, &[1], "null", "no array"),
            (
                f,
                &[1],
                "[null]",
                "element 0: null is no FP32, expected a number",
            ),
            (f, &[2], "[1,\"2\"]", "element 1: \"2\" is no FP32"),
            (f, &[1], "[1e40]", "element 0: 1e40 is beyond FP32"),
            (
                f,
                &[1],
                "[{\"a\":1}]",
                "element 0: an object, expected a number",
            ),
            (f, &[1], "[true]", "true is no FP32"),
            (
                DataType::Int32,
                &[1],
                "[1.5]",
                "1.5 is no INT32, expected a whole number",
            ),
            (DataType::Uint8, &[1], "[256]", "256 is no UINT8"),
            (DataType::Uint8, &[1], "[-1]", "-1 is no UINT8"),
            (
                DataType::Bool,
                &[1],
                "[2]",
                "2 is no BOOL, expected true or false",
            ),
            (
                DataType::Bytes,
                &[1],
                "[7]",
                "7 is no BYTES, expected a string",
            ),
            (DataType::Fp16, &[1], "[1e6]", "beyond FP16"),
        ] {
            let message = refused(datatype, shape, json);
            assert!(message.contains(why), "{json}: {message}");
        }
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert!(refused(f, &[1], &deep).contains("deeper than 64"));
        assert!(refused(f, &[usize::MAX, 2], "[]").contains("more elements than memory"));
    }

    #[test]
    fn values_are_bounded_while_they_are_read() {
        let column = Column {
            name: "x",
            datatype: DataType::Fp64,
            shape: vec![10],
            most_bytes: 16,
        };
        let error = read(column, "[1,2,3,4]").unwrap_err();
        assert!(error.message().contains("more than 16 bytes"), "{error}");
    }
}
