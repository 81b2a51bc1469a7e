//! Tensors whose values are not checked yet: the ventilator checks lengths, the worker checks values.
//!
//! Checking every BOOL byte and every offset takes time in proportion to the bytes, and the ventilator has all clients to
//! serve. So it makes tensors with [`Tensor::unchecked`], which checks lengths alone, and cuts rows out of them without
//! reading what lies between. [`Tensor::check_values`] has to come before anything reads the values; a worker cannot get
//! the rows of a chunk without it.

use bytes::Bytes;

#[cfg(feature = "server")]
use super::Batch;
use super::layout::{check_fixed, check_offset_ends, element_count, offset_at};
use super::{Data, DataType, Tensor};
use crate::error::{Error, Result};

/// How many BOOL bytes are checked at once: enough for the compiler to use wide instructions.
const BOOLS_AT_ONCE: usize = 4096;

/// Whether a tensor's values were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// They are what the datatype says.
    Checked,
    /// BOOL bytes may be any. Offsets may be any, as many as they should be; those of rows that were cut out are still
    /// the whole tensor's, and the values begin where the first of them says.
    Unchecked,
}

impl Values {
    /// Numbers can have any bits: their lengths are all there is to check.
    fn of(datatype: DataType) -> Values {
        match datatype {
            DataType::Bool | DataType::Bytes | DataType::Json => Values::Unchecked,
            _ => Values::Checked,
        }
    }
}

impl Tensor {
    /// A tensor over bytes whose lengths are checked against the datatype and shape, and whose values are not: it costs
    /// the same whatever their number.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the tensor: a length that does not fit the shape, an overflowing shape, offsets of
    /// which the first is not 0 or the last not the length of the values.
    pub(crate) fn unchecked(
        name: impl Into<std::sync::Arc<str>>,
        datatype: DataType,
        shape: Vec<usize>,
        data: Data,
    ) -> Result<Tensor> {
        let name = name.into();
        let elements = element_count(&shape).filter(|&n| n <= isize::MAX as usize / 16);
        let Some(elements) = elements else {
            return Err(Error::invalid(format!(
                "tensor {name:?}: shape {shape:?} has more elements than memory can hold"
            )));
        };
        match &data {
            Data::Fixed(bytes) => check_fixed(&name, datatype, &shape, bytes)?,
            Data::Variable { .. } if datatype.size().is_some() => {
                return Err(Error::invalid(format!(
                    "tensor {name:?}: {datatype} travels in one frame, not as offsets and values"
                )));
            }
            Data::Variable { offsets, values } => {
                check_offset_ends(&name, elements, offsets, values)?;
            }
        }
        Ok(Tensor {
            name,
            values: Values::of(datatype),
            datatype,
            shape,
            data,
        })
    }

    /// The same tensor with its values unchecked, as at a receiver that does not know whether they were.
    #[cfg(feature = "server")]
    pub(crate) fn distrusted(mut self) -> Tensor {
        self.values = Values::of(self.datatype);
        self
    }

    /// Whether its values were checked.
    pub(crate) fn is_checked(&self) -> bool {
        self.values == Values::Checked
    }

    /// # Errors
    /// `INTERNAL` if they were not: then they must not be read.
    pub(super) fn must_be_checked(&self) -> Result<()> {
        if self.is_checked() {
            return Ok(());
        }
        Err(Error::internal(format!(
            "tensor {:?}: its values were not checked",
            self.name
        )))
    }

    /// Checks the values. If the tensor is rows of a larger one, from `first_row` on, errors count that one's elements.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the tensor and the first element that is wrong.
    pub(crate) fn check_values(mut self, first_row: usize) -> Result<Tensor> {
        if self.is_checked() {
            return Ok(self);
        }
        let first = first_row.saturating_mul(self.row_elements());
        match &mut self.data {
            Data::Fixed(bytes) => check_bools(&self.name, first, bytes)?,
            Data::Variable { offsets, values } => {
                check_offsets(&self.name, first, offsets, values)?;
                rebase(offsets);
            }
        }
        self.values = Values::Checked;
        Ok(self)
    }
}

#[cfg(feature = "server")]
impl Batch {
    /// Whether all values were checked.
    pub(crate) fn is_checked(&self) -> bool {
        self.tensors.iter().all(Tensor::is_checked)
    }

    /// # Errors
    /// `INTERNAL`, naming a tensor whose values were not checked.
    pub(crate) fn must_be_checked(&self) -> Result<()> {
        self.tensors.iter().try_for_each(Tensor::must_be_checked)
    }

    /// As [`Tensor::check_values`], of each.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check_values(self, first_row: usize) -> Result<Batch> {
        let check = |tensor: Tensor| tensor.check_values(first_row);
        let tensors = self.tensors.into_iter().map(check);
        Ok(Batch {
            tensors: tensors.collect::<Result<_>>()?,
        })
    }
}

/// Elements `first..last` of unchecked ones. Takes no longer for many than for one.
pub(super) fn cut(offsets: &Bytes, values: &Bytes, first: usize, last: usize) -> Data {
    let start = offset_at(offsets, 0);
    let (from, to) = (offset_at(offsets, first), offset_at(offsets, last));
    let within = |offset: usize| offset.checked_sub(start).filter(|&at| at <= values.len());
    let values = match (within(from), within(to)) {
        (Some(from), Some(to)) if from <= to => values.slice(from..to),
        // Values of another length than these offsets say: whoever checks them finds out.
        _ if from == to => Bytes::from_static(&[0]),
        _ => Bytes::new(),
    };
    Data::Variable {
        offsets: offsets.slice(first * 8..(last + 1) * 8),
        values,
    }
}

fn check_bools(name: &str, first: usize, bytes: &[u8]) -> Result<()> {
    for (index, some) in bytes.chunks(BOOLS_AT_ONCE).enumerate() {
        if some.iter().fold(0, |all, byte| all | byte) <= 1 {
            continue;
        }
        if let Some(at) = some.iter().position(|&byte| byte > 1) {
            return Err(Error::invalid(format!(
                "tensor {name:?}: a BOOL byte is 0 or 1, element {} is {}",
                first.saturating_add(index * BOOLS_AT_ONCE + at),
                some[at]
            )));
        }
    }
    Ok(())
}

/// Each offset against the one before it, and the last against the values, which begin where the first one says.
fn check_offsets(name: &str, first: usize, offsets: &[u8], values: &[u8]) -> Result<()> {
    let mut all = words(offsets);
    let start = all.next().unwrap_or(0);
    let mut last = start;
    for (index, offset) in all.enumerate() {
        if offset < last {
            return Err(Error::invalid(format!(
                "tensor {name:?}: offsets must ascend from 0, offset {} is {offset} after {last}",
                first.saturating_add(index + 1)
            )));
        }
        last = offset;
    }
    if last - start != values.len() as u64 {
        let count = (offsets.len() / 8).saturating_sub(1);
        return Err(Error::invalid(format!(
            "tensor {name:?}: offsets must ascend from 0 to the length of the values, offset {} is {last}",
            first.saturating_add(count)
        )));
    }
    Ok(())
}

/// Checked offsets of rows that were cut out, from 0.
fn rebase(offsets: &mut Bytes) {
    let start = words(offsets).next().unwrap_or(0);
    if start > 0 {
        let rebased = words(offsets).flat_map(|offset| (offset - start).to_le_bytes());
        *offsets = rebased.collect::<Vec<u8>>().into();
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| {
        let mut le = [0u8; 8];
        le.copy_from_slice(word);
        u64::from_le_bytes(le)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(offsets: &[u64]) -> Bytes {
        let le = offsets.iter().flat_map(|offset| offset.to_le_bytes());
        le.collect::<Vec<u8>>().into()
    }

    fn texts(offsets: &[u64], values: &'static [u8]) -> Tensor {
        let data = Data::Variable {
            offsets: bytes_of(offsets),
            values: Bytes::from_static(values),
        };
        Tensor::unchecked("s", DataType::Bytes, vec![offsets.len() - 1], data).unwrap()
    }

    fn refused(tensor: Tensor, first_row: usize) -> String {
        let error = tensor.check_values(first_row).unwrap_err();
        assert_eq!(error.code(), crate::ErrorCode::InvalidArgument);
        error.message().to_owned()
    }

    #[test]
    fn rows_cut_out_of_unchecked_ones_are_those_of_checked_ones() {
        let unchecked = texts(&[0, 1, 1, 4, 5], b"abcde");
        let checked = unchecked.clone().check_values(0).unwrap();
        assert_eq!(checked.strings().unwrap(), ["a", "", "bcd", "e"]);
        for (start, rows) in [(0, 4), (0, 1), (1, 2), (2, 2), (3, 1), (4, 0)] {
            let cut = unchecked.slice_rows(start, rows);
            assert_eq!(
                cut.clone().check_values(start).unwrap(),
                checked.slice_rows(start, rows)
            );
            let again = cut.slice_rows(rows.min(1), rows - rows.min(1));
            let expected = checked.slice_rows(start + rows.min(1), rows - rows.min(1));
            assert_eq!(again.check_values(0).unwrap(), expected);
        }
    }

    #[test]
    fn a_bool_byte_is_told_by_its_number_in_the_whole_request() {
        let mut bytes = vec![1u8; 30_000];
        bytes[20_001] = 2;
        let data = Data::Fixed(bytes.into());
        let flags = Tensor::unchecked("x", DataType::Bool, vec![10_000, 3], data).unwrap();
        let words = "tensor \"x\": a BOOL byte is 0 or 1, element 20001 is 2";
        assert_eq!(refused(flags.clone(), 0), words);
        assert_eq!(refused(flags.slice_rows(6000, 1000), 6000), words);
        assert!(flags.slice_rows(0, 6000).check_values(0).is_ok());
    }

    #[test]
    fn offsets_that_lead_elsewhere_are_refused_after_a_cut() {
        let unchecked = texts(&[0, 1, 99, 99, 2, 5], b"abcde");
        let words = "tensor \"s\": offsets must ascend from 0, offset 4 is 2 after 99";
        assert_eq!(refused(unchecked.clone(), 0), words);
        assert_eq!(refused(unchecked.slice_rows(3, 2), 3), words);
        assert!(refused(unchecked.slice_rows(0, 2), 0).ends_with("offset 2 is 99"));
        // An empty element that lies nowhere.
        assert!(refused(unchecked.slice_rows(2, 1), 2).ends_with("offset 3 is 99"));
        assert!(unchecked.slice_rows(0, 1).check_values(0).is_ok());
    }

    #[test]
    fn values_that_nobody_checked_are_not_joined() {
        let unchecked = texts(&[0, 3, 1], b"a");
        let error = Tensor::concat(&[unchecked.clone(), unchecked]).unwrap_err();
        assert!(error.message().contains("not checked"), "{error}");
    }

    proptest! {
        #[test]
        fn no_offsets_make_a_cut_a_join_or_a_check_panic(
            inner in prop::collection::vec(prop_oneof![0u64..12, any::<u64>()], 1..8), start in 0usize..8, rows in 0usize..8,
        ) {
            let (all, values) = ([&[0], &inner[..], &[9]].concat(), &b"abcdefghi"[..]);
            let unchecked = texts(&all, b"abcdefghi");
            let total = all.len() - 1;
            let (start, rows) = (start.min(total), rows.min(total - start.min(total)));
            let _ = unchecked.byte_strings().count();
            let cut = unchecked.slice_rows(start, rows);
            let _ = cut.slice_rows(rows / 2, rows - rows / 2).byte_strings().count();
            let _ = Tensor::concat(&[cut.clone(), unchecked.clone()]);
            let own = &all[start..=start + rows];
            let good = own.is_sorted() && own.iter().all(|&o| o <= 9);
            match cut.check_values(start) {
                Ok(checked) => {
                    prop_assert!(good);
                    let expected = own.windows(2).map(|o| &values[o[0] as usize..o[1] as usize]);
                    prop_assert!(checked.byte_strings().eq(expected));
                }
                Err(error) => prop_assert!(!good, "{}", error),
            }
            prop_assert_eq!(unchecked.check_values(0).is_ok(), all.is_sorted());
        }
    }
}
