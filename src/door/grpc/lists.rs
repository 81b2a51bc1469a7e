//! Tensors in protobuf's own lists: the `contents` of an input, read straight into the tensor's bytes.

use bytes::Bytes;

use super::fields::{Fields, Value, varint};
use crate::door::translate::MAX_TENSORS;
use crate::door::translate::strings::Elements;
use crate::error::{Error, Result};
use crate::tensor::{Data, DataType, element_count};

/// A tensor's values as they are read from the list of its datatype.
pub(super) struct List {
    datatype: DataType,
    /// The number of the list's field, and its name.
    field: (u32, &'static str),
    elements: usize,
    most_bytes: usize,
    count: usize,
    fixed: Vec<u8>,
    strings: Elements,
}

/// The list that holds a datatype's values: its field's number and name.
pub(super) fn field_of(datatype: DataType) -> Option<(u32, &'static str)> {
    Some(match datatype {
        DataType::Bool => (1, "bool_contents"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => (2, "int_contents"),
        DataType::Int64 => (3, "int64_contents"),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => (4, "uint_contents"),
        DataType::Uint64 => (5, "uint64_contents"),
        DataType::Fp32 => (6, "fp32_contents"),
        DataType::Fp64 => (7, "fp64_contents"),
        DataType::Bytes | DataType::Json => (8, "bytes_contents"),
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

impl List {
    /// # Errors
    /// `INVALID_ARGUMENT` for a datatype without a list, and a shape beyond memory.
    pub(super) fn new(datatype: DataType, shape: &[usize], most_bytes: u64) -> Result<List> {
        let field = field_of(datatype).ok_or_else(|| {
            Error::invalid(format!(
                "{datatype} has no list in `contents`; send it in raw_input_contents"
            ))
        })?;
        let elements = element_count(shape).ok_or_else(|| {
            Error::invalid(format!(
                "shape {shape:?} has more elements than memory can hold"
            ))
        })?;
        Ok(List {
            datatype,
            field,
            elements,
            most_bytes: usize::try_from(most_bytes).unwrap_or(usize::MAX),
            count: 0,
            fixed: Vec::new(),
            strings: Elements::new(),
        })
    }

    /// The values in the parts of an input's `contents`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another list's values, for one that the datatype does not hold, and for fewer or more than the
    /// shape has.
    pub(super) fn read(mut self, contents: Vec<Bytes>) -> Result<Data> {
        let mut pieces: Vec<Bytes> = Vec::new();
        for contents in contents {
            let mut fields = Fields::of(contents);
            while let Some((number, value)) = fields.next()? {
                if number != self.field.0 {
                    if (1..=8).contains(&number) && value != Value::Bytes(Bytes::new()) {
                        return Err(Error::invalid(format!(
                            "{} travels in {}, and another list has values",
                            self.datatype, self.field.1
                        )));
                    }
                    continue;
                }
                match (self.datatype, value) {
                    (DataType::Bytes, Value::Bytes(element)) => self.string(&element)?,
                    (DataType::Fp32 | DataType::Fp64, Value::Bytes(packed)) => {
                        // As they travel, so are they here: a slice, where there is but one.
                        if pieces.len() == MAX_TENSORS {
                            return Err(Error::invalid(format!(
                                "{} comes in more than {MAX_TENSORS} pieces",
                                self.field.1
                            )));
                        }
                        pieces.push(packed);
                    }
                    (DataType::Fp32, Value::Fixed32(value)) => {
                        self.count(1)?;
                        self.fixed.extend_from_slice(&value);
                    }
                    (DataType::Fp64, Value::Fixed64(value)) => {
                        self.count(1)?;
                        self.fixed.extend_from_slice(&value);
                    }
                    (_, Value::Bytes(packed)) => {
                        let mut rest = &packed[..];
                        while !rest.is_empty() {
                            let value = varint(&mut rest)?;
                            self.whole(value)?;
                        }
                    }
                    (_, Value::Varint(value)) => self.whole(value)?,
                    (_, other) => {
                        return Err(Error::invalid(format!(
                            "{} has {other:?} in it",
                            self.field.1
                        )));
                    }
                }
            }
        }
        self.finish(pieces)
    }

    fn finish(mut self, mut pieces: Vec<Bytes>) -> Result<Data> {
        let packed: usize = pieces.iter().map(Bytes::len).sum();
        if packed > 0 {
            let size = self.datatype.size().unwrap_or(1);
            if !packed.is_multiple_of(size) {
                return Err(Error::invalid(format!(
                    "{} has {packed} bytes, which are no whole number of values",
                    self.field.1
                )));
            }
            self.count(packed / size)?;
        }
        if self.count != self.elements {
            return Err(Error::invalid(format!(
                "{} has {} values, and its shape has {}",
                self.field.1, self.count, self.elements
            )));
        }
        if self.datatype == DataType::Bytes {
            return Ok(self.strings.into_data());
        }
        if self.fixed.is_empty() && pieces.len() == 1 {
            return Ok(Data::Fixed(pieces.swap_remove(0)));
        }
        pieces
            .iter()
            .for_each(|piece| self.fixed.extend_from_slice(piece));
        Ok(Data::Fixed(self.fixed.into()))
    }

    /// So many more values.
    fn count(&mut self, more: usize) -> Result<()> {
        self.count += more;
        if self.count > self.elements {
            return Err(Error::invalid(format!(
                "{} has more values than the {} of its shape",
                self.field.1, self.elements
            )));
        }
        if self.fixed.len().max(self.strings.bytes()) > self.most_bytes {
            return Err(Error::invalid(format!(
                "its values take more than {} bytes (--max-request-bytes)",
                self.most_bytes
            )));
        }
        Ok(())
    }

    fn string(&mut self, element: &[u8]) -> Result<()> {
        self.count(1)?;
        self.strings.push(element);
        Ok(())
    }

    fn whole(&mut self, value: u64) -> Result<()> {
        self.count(1)?;
        let beyond = |shown: String| {
            Error::invalid(format!(
                "{}: element {} is {shown}, which {} does not hold",
                self.field.1,
                self.count - 1,
                self.datatype
            ))
        };
        // Protobuf's lists of 32 bits carry these; what is above them is cut off, as protobuf says.
        let (int, uint) = (value as i32, value as u32);
        let out = &mut self.fixed;
        match self.datatype {
            DataType::Bool => out.push(u8::from(value != 0)),
            DataType::Int8 => {
                let value = i8::try_from(int).map_err(|_| beyond(int.to_string()))?;
                out.extend_from_slice(&value.to_le_bytes());
            }
            DataType::Int16 => {
                let value = i16::try_from(int).map_err(|_| beyond(int.to_string()))?;
                out.extend_from_slice(&value.to_le_bytes());
            }
            DataType::Int32 => out.extend_from_slice(&int.to_le_bytes()),
            DataType::Uint8 => {
                let value = u8::try_from(uint).map_err(|_| beyond(uint.to_string()))?;
                out.push(value);
            }
            DataType::Uint16 => {
                let value = u16::try_from(uint).map_err(|_| beyond(uint.to_string()))?;
                out.extend_from_slice(&value.to_le_bytes());
            }
            DataType::Uint32 => out.extend_from_slice(&uint.to_le_bytes()),
            DataType::Int64 | DataType::Uint64 => out.extend_from_slice(&value.to_le_bytes()),
            _ => {
                return Err(Error::invalid(format!(
                    "{} has a whole number in it",
                    self.field.1
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages::{InferTensorContents, ModelInferRequest};
    use super::super::request::read;
    use super::super::request::tests::{input, request};
    use super::*;
    use crate::tensor::Tensor;

    fn read_one(request: &ModelInferRequest) -> Result<Tensor> {
        let mut asked =
            read(request.encode_to_vec().into(), 1 << 20).map_err(|refused| refused.error)?;
        Ok(asked.infer.request.inputs.tensors.remove(0))
    }

    #[test]
    fn lists_become_the_bytes_of_their_datatype() {
        let of = |datatype: &str, contents: InferTensorContents| {
            let mut input = input(datatype, &[2]);
            input.contents = Some(contents);
            read_one(&request(input))
        };
        let ints = |values: [i32; 2]| InferTensorContents {
            int_contents: values.to_vec(),
            ..InferTensorContents::default()
        };
        let uints = |values: [u32; 2]| InferTensorContents {
            uint_contents: values.to_vec(),
            ..InferTensorContents::default()
        };
        let tensor = of("INT8", ints([-128, 127])).unwrap();
        assert_eq!(tensor.to_vec::<i8>().unwrap(), [-128, 127]);
        let tensor = of("INT16", ints([-2, 300])).unwrap();
        assert_eq!(tensor.to_vec::<i16>().unwrap(), [-2, 300]);
        let tensor = of("INT32", ints([i32::MIN, i32::MAX])).unwrap();
        assert_eq!(tensor.to_vec::<i32>().unwrap(), [i32::MIN, i32::MAX]);
        let tensor = of("UINT8", uints([0, 255])).unwrap();
        assert_eq!(tensor.to_vec::<u8>().unwrap(), [0, 255]);
        let tensor = of("UINT16", uints([1, 65_535])).unwrap();
        assert_eq!(tensor.to_vec::<u16>().unwrap(), [1, 65_535]);
        let tensor = of("UINT32", uints([0, u32::MAX])).unwrap();
        assert_eq!(tensor.to_vec::<u32>().unwrap(), [0, u32::MAX]);
        let contents = InferTensorContents {
            uint64_contents: vec![1, u64::MAX],
            ..InferTensorContents::default()
        };
        let tensor = of("UINT64", contents).unwrap();
        assert_eq!(tensor.to_vec::<u64>().unwrap(), [1, u64::MAX]);
        let contents = InferTensorContents {
            int64_contents: vec![-1, i64::MIN],
            ..InferTensorContents::default()
        };
        let tensor = of("INT64", contents).unwrap();
        assert_eq!(tensor.to_vec::<i64>().unwrap(), [-1, i64::MIN]);
        let contents = InferTensorContents {
            fp64_contents: vec![0.1, f64::NEG_INFINITY],
            ..InferTensorContents::default()
        };
        let tensor = of("FP64", contents).unwrap();
        assert_eq!(tensor.to_vec::<f64>().unwrap(), [0.1, f64::NEG_INFINITY]);
        let contents = InferTensorContents {
            bool_contents: vec![true, false],
            ..InferTensorContents::default()
        };
        let tensor = of("BOOL", contents).unwrap();
        assert_eq!(tensor.data(), &Data::Fixed(Bytes::from_static(&[1, 0])));
        let contents = InferTensorContents {
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
            ..InferTensorContents::default()
        };
        let tensor = of("BYTES", contents.clone()).unwrap();
        assert_eq!(tensor.strings().unwrap(), ["ab", ""]);
        for (datatype, contents, why) in [
            (
                "INT8",
                ints([0, 128]),
                "element 1 is 128, which INT8 does not hold",
            ),
            ("UINT16", uints([65_536, 0]), "element 0 is 65536"),
            ("UINT8", ints([0, 1]), "UINT8 travels in uint_contents"),
            ("FP16", ints([0, 1]), "FP16 has no list"),
            ("FP32", contents, "FP32 travels in fp32_contents"),
            ("INT64", ints([0, 1]), "INT64 travels in int64_contents"),
            (
                "FP32",
                InferTensorContents {
                    fp32_contents: vec![1.],
                    ..InferTensorContents::default()
                },
                "fp32_contents has 1 values, and its shape has 2",
            ),
            (
                "BOOL",
                InferTensorContents {
                    bool_contents: vec![true; 3],
                    ..InferTensorContents::default()
                },
                "more values than the 2",
            ),
        ] {
            let error = of(datatype, contents).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn numbers_that_are_not_packed_are_read_too() {
        // `int_contents` with a key in front of each, as the older form of protobuf has them.
        let contents = b"\x10\x05\x10\x06";
        let mut tensor = input("INT32", &[2]).encode_to_vec();
        tensor.extend_from_slice(&[5 << 3 | 2, contents.len() as u8]);
        tensor.extend_from_slice(contents);
        let mut message = b"\x0a\x01m".to_vec();
        message.extend_from_slice(&[5 << 3 | 2, tensor.len() as u8]);
        message.extend_from_slice(&tensor);
        let asked = read(message.into(), 1 << 20).unwrap();
        let tensor = &asked.infer.request.inputs.tensors[0];
        assert_eq!(tensor.to_vec::<i32>().unwrap(), [5, 6]);
    }

    #[test]
    fn lists_that_grow_beyond_the_bound_are_refused() {
        // One byte each as they travel, eight here.
        let mut input = input("INT64", &[200_000]);
        input.contents = Some(InferTensorContents {
            int64_contents: vec![1; 200_000],
            ..InferTensorContents::default()
        });
        let error = read_one(&request(input)).unwrap_err();
        assert!(error.message().contains("--max-request-bytes"), "{error}");
    }
}
