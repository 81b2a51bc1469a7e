//! How elements lie in memory: checks of lengths against shapes, and of offsets.

use bytes::Bytes;

#[cfg(feature = "server")]
use super::Tensor;
use super::{Data, DataType};
use crate::error::{Error, Result};

/// The number of elements of a shape, or `None` if it overflows.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
}

pub(super) fn variable<'a>(elements: impl Iterator<Item = &'a [u8]>) -> Data {
    let mut offsets = 0u64.to_le_bytes().to_vec();
    let mut values = Vec::new();
    for element in elements {
        values.extend_from_slice(element);
        offsets.extend_from_slice(&(values.len() as u64).to_le_bytes());
    }
    Data::Variable {
        offsets: offsets.into(),
        values: values.into(),
    }
}

/// Offset `index`, where there are so many.
pub(super) fn offset_at(offsets: &[u8], index: usize) -> usize {
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&offsets[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes) as usize
}

/// Checks the number of bytes of a shape whose elements can be counted ([`element_count`]).
pub(super) fn check_fixed(
    name: &str,
    datatype: DataType,
    shape: &[usize],
    bytes: &Bytes,
) -> Result<()> {
    let Some(size) = datatype.size() else {
        return Err(Error::invalid(format!(
            "tensor {name:?}: {datatype} travels as two frames, offsets and values"
        )));
    };
    let expected = shape.iter().product::<usize>() * size;
    if bytes.len() != expected {
        return Err(Error::invalid(format!(
            "tensor {name:?}: {datatype} {shape:?} takes {expected} bytes, got {}",
            bytes.len()
        )));
    }
    Ok(())
}

/// Checks the number of offsets, the first and the last.
pub(super) fn check_offset_ends(
    name: &str,
    elements: usize,
    offsets: &Bytes,
    values: &Bytes,
) -> Result<()> {
    let expected = (elements + 1) * 8;
    if offsets.len() != expected {
        return Err(Error::invalid(format!(
            "tensor {name:?}: the offsets of {elements} elements take {expected} bytes, got {}",
            offsets.len()
        )));
    }
    let (first, last) = (offset_at(offsets, 0), offset_at(offsets, elements));
    if first != 0 {
        return Err(Error::invalid(format!(
            "tensor {name:?}: offsets must ascend from 0, offset 0 is {first}"
        )));
    }
    if last != values.len() {
        return Err(Error::invalid(format!(
            "tensor {name:?}: the last offset is {last}, the values have {} bytes",
            values.len()
        )));
    }
    Ok(())
}

#[cfg(feature = "server")]
impl Tensor {
    /// The same in memory of its own: it keeps nothing alive that it is a small part of.
    pub(crate) fn detached(&self) -> Tensor {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        Tensor {
            data: match &self.data {
                Data::Fixed(bytes) => Data::Fixed(copy(bytes)),
                Data::Variable { offsets, values } => Data::Variable {
                    offsets: copy(offsets),
                    values: copy(values),
                },
            },
            ..self.clone()
        }
    }
}
