//! Rows that stand for rows without a result: zeros, empty strings, JSON nulls.

use super::layout::element_count;
use super::{Batch, Data, DataType, Tensor};
use crate::error::{Error, Result};

/// A JSON null as a document: msgpack's nil.
const NULL: u8 = 0xc0;

impl Tensor {
    /// So many rows of zeros, empty strings or JSON nulls that are else like this tensor's rows.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no memory for so many.
    pub fn blank_rows(&self, rows: usize) -> Result<Tensor> {
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        let data = match self.datatype.size() {
            Some(size) => Data::Fixed(filled(bytes_of(&shape, size)?, 0)?.into()),
            None => {
                // A null takes one byte and an empty string none, so that offsets are the numbers of the elements or 0.
                let step = match self.datatype {
                    DataType::Json => 1,
                    _ => 0,
                };
                let values = filled(bytes_of(&shape, step)?, NULL)?;
                let elements = bytes_of(&shape, 1)?;
                let mut offsets = reserved(bytes_of(&shape, 8)?.saturating_add(8))?;
                for element in 0..=elements {
                    offsets.extend_from_slice(&((element * step) as u64).to_le_bytes());
                }
                Data::Variable {
                    offsets: offsets.into(),
                    values: values.into(),
                }
            }
        };
        Tensor::new(self.name.clone(), self.datatype, shape, data)
    }
}

impl Batch {
    /// As [`Tensor::blank_rows`], for each column.
    ///
    /// # Errors
    /// As there.
    pub fn blank_rows(&self, rows: usize) -> Result<Batch> {
        let columns = self.tensors.iter();
        let blank: Result<Vec<Tensor>> = columns.map(|column| column.blank_rows(rows)).collect();
        Ok(blank?.into())
    }
}

/// The bytes of the elements of that shape, of so many bytes each.
fn bytes_of(shape: &[usize], size: usize) -> Result<usize> {
    let bytes = element_count(shape).and_then(|elements| elements.checked_mul(size));
    bytes.ok_or_else(too_many)
}

fn too_many() -> Error {
    Error::exhausted("there is no memory for so many rows")
}

fn reserved(bytes: usize) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    match memory.try_reserve_exact(bytes) {
        Ok(()) => Ok(memory),
        Err(_) => Err(too_many()),
    }
}

fn filled(bytes: usize, with: u8) -> Result<Vec<u8>> {
    let mut memory = reserved(bytes)?;
    memory.resize(bytes, with);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn blank_rows_are_zeros_empty_strings_and_nulls_of_the_same_shape() {
        let numbers = Tensor::from_slice("n", vec![1, 2], &[1.5f32, 2.5]).unwrap();
        let flags = Data::Fixed(vec![1].into());
        let flags = Tensor::new("f", DataType::Bool, vec![1], flags).unwrap();
        let texts = Tensor::from_strings("t", Some(vec![1, 2]), &["a", "b"]).unwrap();
        let rows = Tensor::from_json_rows("r", &[7]).unwrap();
        let batch = Batch {
            tensors: vec![numbers, flags, texts, rows],
        };
        let blank = batch.blank_rows(3).unwrap();
        assert!(blank.is_like(&batch));
        assert_eq!(blank.rows(), Ok(3));
        let [numbers, flags, texts, rows] = &blank.tensors[..] else {
            panic!("four columns")
        };
        assert_eq!(numbers.to_vec::<f32>().unwrap(), [0.0; 6]);
        assert_eq!(*flags.data(), Data::Fixed(vec![0; 3].into()));
        assert_eq!(texts.strings().unwrap(), [""; 6]);
        let rows: Vec<Option<i64>> = rows.json_rows().unwrap();
        assert_eq!(rows, [None; 3]);
        assert_eq!(batch.blank_rows(0).unwrap().rows(), Ok(0));
    }

    #[test]
    fn more_blank_rows_than_memory_holds_are_an_error() {
        let tensors = [
            Tensor::from_slice("n", vec![1, 2], &[1.5f32, 2.5]).unwrap(),
            Tensor::from_strings("t", None, &["a"]).unwrap(),
            Tensor::from_json_rows("r", &[7]).unwrap(),
        ];
        for tensor in tensors {
            for rows in [usize::MAX, 1 << 48] {
                let error = tensor.blank_rows(rows).unwrap_err();
                assert_eq!(error.code(), ErrorCode::ResourceExhausted);
            }
        }
    }
}
