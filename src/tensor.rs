//! Tensors: datatypes, shapes, bytes, and batches of rows in columns.
//!
//! A tensor's bytes are [`Bytes`]: reference-counted, cheap to slice, and able to borrow what a socket
//! received or an engine wrote. Everything is row-major and little-endian; dimension 0 is the row.
//!
//! A tensor's values are checked when it is made. Only the server puts that off, from the ventilator to the worker that
//! runs the rows: `unchecked.rs`.

#[cfg(feature = "client")]
mod array;
mod batch;
mod blank;
mod datatype;
mod document;
mod layout;
mod unchecked;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "client")]
pub(crate) use array::with_dimensions;
pub use batch::Batch;
pub use datatype::{DataType, Element};
use document::from_document;
pub(crate) use document::to_document;
#[cfg(feature = "server")]
pub(crate) use layout::element_count;
use layout::{offset_at, variable};
use unchecked::Values;

use crate::error::{Error, Result};

/// The bytes of a tensor, as they travel. What it shows of itself is how many they are.
#[derive(Clone, PartialEq, Eq)]
pub enum Data {
    /// Elements of one size, back to back.
    Fixed(Bytes),
    /// Elements that differ in length.
    Variable {
        /// n+1 little-endian u64, ascending, the first 0, the last the length of `values`.
        offsets: Bytes,
        /// The elements back to back.
        values: Bytes,
    },
}

/// Contents of tensors belong in no log and in no error.
impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::Fixed(bytes) => write!(f, "Fixed({} bytes)", bytes.len()),
            Data::Variable { offsets, values } => {
                let (offsets, values) = (offsets.len(), values.len());
                write!(
                    f,
                    "Variable({offsets} bytes of offsets, {values} of values)"
                )
            }
        }
    }
}

/// A named, typed, shaped piece of memory. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    name: Arc<str>,
    datatype: DataType,
    shape: Vec<usize>,
    data: Data,
    values: Values,
}

impl Tensor {
    /// A tensor over bytes that are checked against the datatype and shape.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the tensor: a length that does not fit the shape, an overflowing shape,
    /// BOOL bytes other than 0 and 1, offsets that do not ascend from 0 to the length of the values.
    pub fn new(
        name: impl Into<Arc<str>>,
        datatype: DataType,
        shape: Vec<usize>,
        data: Data,
    ) -> Result<Tensor> {
        Tensor::unchecked(name, datatype, shape, data)?.check_values(0)
    }

    /// A tensor over bytes that were checked when they came in.
    #[cfg(any(feature = "plugin", feature = "server"))]
    pub(crate) fn trusted(
        name: Arc<str>,
        datatype: DataType,
        shape: Vec<usize>,
        data: Data,
    ) -> Tensor {
        Tensor {
            name,
            datatype,
            shape,
            data,
            values: Values::Checked,
        }
    }

    /// A tensor that owns a vector's elements, without copying them.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the number of elements is not the product of the shape.
    pub fn from_vec<T: Element + Send + Sync + 'static>(
        name: impl Into<Arc<str>>,
        shape: Vec<usize>,
        elements: Vec<T>,
    ) -> Result<Tensor> {
        let bytes = Bytes::from_owner(OwnedElements(elements));
        Tensor::new(name, T::DATATYPE, shape, Data::Fixed(bytes))
    }

    /// A tensor that copies a slice's elements.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the number of elements is not the product of the shape.
    pub fn from_slice<T: Element>(
        name: impl Into<Arc<str>>,
        shape: Vec<usize>,
        elements: &[T],
    ) -> Result<Tensor> {
        let bytes = Bytes::copy_from_slice(bytemuck::cast_slice(elements));
        Tensor::new(name, T::DATATYPE, shape, Data::Fixed(bytes))
    }

    /// A BYTES tensor of shape `[n]` (or `shape`, where given) from strings or byte strings.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the number of elements is not the product of the shape.
    pub fn from_strings<S: AsRef<[u8]>>(
        name: impl Into<Arc<str>>,
        shape: Option<Vec<usize>>,
        strings: &[S],
    ) -> Result<Tensor> {
        let shape = shape.unwrap_or_else(|| vec![strings.len()]);
        let data = variable(strings.iter().map(|s| s.as_ref()));
        Tensor::new(name, DataType::Bytes, shape, data)
    }

    /// A JSON tensor of shape `[n]`: each row becomes one msgpack document.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a row that msgpack cannot hold.
    pub fn from_json_rows<T: serde::Serialize>(
        name: impl Into<Arc<str>>,
        rows: &[T],
    ) -> Result<Tensor> {
        let name = name.into();
        let documents = rows
            .iter()
            .enumerate()
            .map(|(i, row)| {
                to_document(row).map_err(|e| e.context(format_args!("tensor {name:?}, row {i}")))
            })
            .collect::<Result<Vec<_>>>()?;
        let data = variable(documents.iter().map(Vec::as_slice));
        Tensor::new(name, DataType::Json, vec![rows.len()], data)
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<Arc<str>>) -> Tensor {
        self.name = name.into();
        self
    }

    /// What the elements are.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions, the row first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes as they travel.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Dimension 0, or `None` for a scalar.
    pub fn rows(&self) -> Option<usize> {
        self.shape.first().copied()
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements in one row: the product of every dimension but the first.
    pub fn row_elements(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The bytes of payload, offsets included.
    pub fn payload_bytes(&self) -> usize {
        match &self.data {
            Data::Fixed(bytes) => bytes.len(),
            Data::Variable { offsets, values } => offsets.len() + values.len(),
        }
    }

    /// Where rows `start..start + rows` of fixed-size elements lie in its bytes.
    #[cfg(feature = "server")]
    pub(crate) fn fixed_range(&self, start: usize, rows: usize) -> std::ops::Range<usize> {
        let row_bytes = self.row_elements() * self.datatype.size().unwrap_or(0);
        start * row_bytes..(start + rows) * row_bytes
    }

    /// The bytes of payload of rows `start..start + rows`, offsets included.
    #[cfg(feature = "server")]
    pub(crate) fn bytes_of_rows(&self, start: usize, rows: usize) -> usize {
        match &self.data {
            Data::Fixed(_) => self.fixed_range(start, rows).len(),
            Data::Variable { offsets, .. } => {
                let per_row = self.row_elements();
                let (first, last) = (start * per_row, (start + rows) * per_row);
                let values = offset_at(offsets, last) - offset_at(offsets, first);
                (last - first + 1) * 8 + values
            }
        }
    }

    /// Rows `start..start + rows`. Fixed-size elements and values are shared, offsets are rewritten from 0 (unchecked
    /// ones are shared too).
    ///
    /// # Panics
    /// If the range is not within the tensor's rows: callers cut what they have counted.
    #[must_use]
    pub fn slice_rows(&self, start: usize, rows: usize) -> Tensor {
        let total = self.shape.first().copied().unwrap_or(0);
        assert!(
            start + rows <= total,
            "rows {start}..{} of {total}",
            start + rows
        );
        if start == 0 && rows == total {
            return self.clone();
        }
        let per_row = self.row_elements();
        let data = match &self.data {
            Data::Fixed(bytes) => {
                let row_bytes = per_row * self.datatype.size().unwrap_or(0);
                Data::Fixed(bytes.slice(start * row_bytes..(start + rows) * row_bytes))
            }
            Data::Variable { offsets, values } if self.values == Values::Unchecked => {
                unchecked::cut(offsets, values, start * per_row, (start + rows) * per_row)
            }
            Data::Variable { offsets, values } => {
                let (first, last) = (start * per_row, (start + rows) * per_row);
                let (from, to) = (offset_at(offsets, first), offset_at(offsets, last));
                let mut rebased = Vec::with_capacity((last - first + 1) * 8);
                for index in first..=last {
                    let offset = (offset_at(offsets, index) - from) as u64;
                    rebased.extend_from_slice(&offset.to_le_bytes());
                }
                Data::Variable {
                    offsets: rebased.into(),
                    values: values.slice(from..to),
                }
            }
        };
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Tensor {
            name: self.name.clone(),
            datatype: self.datatype,
            shape,
            data,
            values: self.values,
        }
    }

    /// The tensors' rows one after the other, in one piece of memory. One tensor comes back as it is.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensors differ in datatype or in any dimension but the first.
    pub fn concat(tensors: &[Tensor]) -> Result<Tensor> {
        let Some(first) = tensors.first() else {
            return Err(Error::invalid("no tensors to join"));
        };
        if tensors.len() == 1 {
            return Ok(first.clone());
        }
        let mut rows = 0;
        for tensor in tensors {
            let same = tensor.datatype == first.datatype
                && !tensor.shape.is_empty()
                && tensor.shape[1..] == first.shape[1..];
            if !same {
                return Err(Error::invalid(format!(
                    "tensor {:?}: cannot join {} {:?} with {} {:?}",
                    first.name, first.datatype, first.shape, tensor.datatype, tensor.shape
                )));
            }
            tensor.must_be_checked()?;
            rows += tensor.shape[0];
        }
        let mut shape = first.shape.clone();
        shape[0] = rows;
        let data = match first.datatype.size() {
            Some(_) => {
                let total = tensors.iter().map(Tensor::payload_bytes).sum();
                let mut joined = Vec::with_capacity(total);
                for tensor in tensors {
                    if let Data::Fixed(bytes) = &tensor.data {
                        joined.extend_from_slice(bytes);
                    }
                }
                Data::Fixed(joined.into())
            }
            None => variable(tensors.iter().flat_map(Tensor::byte_strings)),
        };
        Ok(Tensor {
            name: first.name.clone(),
            datatype: first.datatype,
            shape,
            data,
            values: Values::Checked,
        })
    }

    /// The rows of fixed-size elements one after the other, in one piece of memory; whether their values were looked at
    /// does not matter. `None` if they are not alike, or their elements differ in length.
    #[cfg(feature = "server")]
    fn joined<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone) -> Option<Tensor> {
        let first = tensors.clone().next()?;
        let (mut rows, mut bytes) = (0, 0);
        let mut values = Values::Checked;
        for tensor in tensors.clone() {
            let is_like = tensor.datatype == first.datatype
                && tensor.name == first.name
                && tensor.shape.get(1..)? == first.shape.get(1..)?;
            if !is_like {
                return None;
            }
            let Data::Fixed(own) = &tensor.data else {
                return None;
            };
            rows += tensor.shape[0];
            bytes += own.len();
            if tensor.values == Values::Unchecked {
                values = Values::Unchecked;
            }
        }
        let mut joined = Vec::with_capacity(bytes);
        for tensor in tensors {
            if let Data::Fixed(own) = &tensor.data {
                joined.extend_from_slice(own);
            }
        }
        let mut shape = first.shape.clone();
        shape[0] = rows;
        Some(Tensor {
            name: first.name.clone(),
            datatype: first.datatype,
            shape,
            data: Data::Fixed(joined.into()),
            values,
        })
    }

    /// The elements as a slice, where they are of type `T` and lie at an address that fits it.
    /// `None` on a wrong type or an odd address; [`Tensor::to_vec`] copies instead.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        match &self.data {
            Data::Fixed(bytes) if self.datatype == T::DATATYPE => {
                bytemuck::checked::try_cast_slice(bytes).ok()
            }
            _ => None,
        }
    }

    /// The elements, copied.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensor's datatype is not that of `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if let Some(slice) = self.as_slice::<T>() {
            return Ok(slice.to_vec());
        }
        match &self.data {
            Data::Fixed(bytes) if self.datatype == T::DATATYPE => {
                let size = std::mem::size_of::<T>();
                bytes
                    .chunks_exact(size)
                    .map(|element| {
                        bytemuck::checked::try_pod_read_unaligned(element).map_err(|_| {
                            Error::invalid(format!(
                                "tensor {:?}: an element is no {}",
                                self.name, self.datatype
                            ))
                        })
                    })
                    .collect()
            }
            _ => Err(Error::invalid(format!(
                "tensor {:?} is {}, asked for as {}",
                self.name,
                self.datatype,
                T::DATATYPE
            ))),
        }
    }

    /// The elements of a BYTES or JSON tensor; none for other datatypes.
    pub fn byte_strings(&self) -> impl Iterator<Item = &[u8]> {
        let (offsets, values): (&[u8], &[u8]) = match &self.data {
            Data::Variable { offsets, values } => (offsets, values),
            Data::Fixed(_) => (&[], &[]),
        };
        let count = (offsets.len() / 8).saturating_sub(1);
        // Offsets that were not checked may lead anywhere.
        (0..count).map(move |i| {
            let element = offset_at(offsets, i)..offset_at(offsets, i + 1);
            values.get(element).unwrap_or_default()
        })
    }

    /// The elements of a BYTES tensor as text.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensor is not BYTES, or naming the first element that is not UTF-8.
    pub fn strings(&self) -> Result<Vec<&str>> {
        self.texts()?.collect()
    }

    /// The elements of a BYTES tensor as text, one after the other. One that is not UTF-8 is an `INVALID_ARGUMENT`
    /// about its row.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensor is not BYTES.
    pub fn texts(&self) -> Result<impl Iterator<Item = Result<&str>>> {
        if self.datatype != DataType::Bytes {
            return Err(Error::invalid(format!(
                "tensor {:?} is {}, asked for as strings",
                self.name, self.datatype
            )));
        }
        let per_row = self.row_elements().max(1);
        let texts = self.byte_strings().enumerate().map(move |(i, bytes)| {
            std::str::from_utf8(bytes).map_err(|e| {
                let row = i / per_row;
                Error::invalid(format!(
                    "tensor {:?}: element {i} is not UTF-8: {e}",
                    self.name
                ))
                .at_rows(row..row + 1)
            })
        });
        Ok(texts)
    }

    /// The rows of a JSON tensor.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensor is not JSON, or naming the first row that is not a `T`.
    pub fn json_rows<T: serde::de::DeserializeOwned>(&self) -> Result<Vec<T>> {
        if self.datatype != DataType::Json {
            return Err(Error::invalid(format!(
                "tensor {:?} is {}, asked for as JSON rows",
                self.name, self.datatype
            )));
        }
        let per_row = self.row_elements().max(1);
        let elements = self.byte_strings().enumerate();
        let read = elements.map(|(i, bytes)| {
            from_document(bytes).map_err(|e| {
                let row = i / per_row;
                e.context(format_args!("tensor {:?}: element {i}", self.name))
                    .at_rows(row..row + 1)
            })
        });
        read.collect()
    }
}

/// Elements that a [`Bytes`] owns.
struct OwnedElements<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for OwnedElements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_how_many_bytes_there_are_and_none_of_them() {
        let strings = Tensor::from_strings("s", None, &["secret"]).unwrap();
        let numbers = Tensor::from_slice("x", vec![1], &[0x7365_6372u32]).unwrap();
        let shown = format!("{strings:?} {numbers:?}");
        assert!(shown.contains("16 bytes of offsets, 6 of values") && shown.contains("4 bytes"));
        assert!(
            !shown.contains("secr") && !shown.contains("rces"),
            "{shown}"
        );
    }

    #[test]
    fn a_slice_shares_memory_and_keeps_rows() {
        let t = Tensor::from_vec("x", vec![4, 2], vec![0f32, 1., 2., 3., 4., 5., 6., 7.]).unwrap();
        let s = t.slice_rows(1, 2);
        assert_eq!(s.shape(), [2, 2]);
        assert_eq!(s.as_slice::<f32>().unwrap(), [2., 3., 4., 5.]);
        let whole = t.as_slice::<f32>().unwrap().as_ptr();
        assert_eq!(s.as_slice::<f32>().unwrap().as_ptr(), whole.wrapping_add(2));
    }

    #[test]
    fn strings_slice_and_join_with_offsets_from_zero() {
        let t = Tensor::from_strings("s", None, &["a", "", "bcd", "e"]).unwrap();
        let s = t.slice_rows(2, 2);
        assert_eq!(s.strings().unwrap(), ["bcd", "e"]);
        let Data::Variable { offsets, .. } = s.data() else {
            panic!("BYTES are variable")
        };
        assert_eq!(&offsets[..8], &[0; 8]);
        let j = Tensor::concat(&[s, t.slice_rows(0, 1)]).unwrap();
        assert_eq!(j.strings().unwrap(), ["bcd", "e", "a"]);
    }

    #[test]
    fn a_json_row_of_another_type_is_blamed_by_its_number() {
        let rows = [serde_json::json!(1), serde_json::json!("two")];
        let tensor = Tensor::from_json_rows("p", &rows).unwrap();
        let error = tensor.json_rows::<u32>().unwrap_err();
        assert_eq!(error.rows(), Some(1..2));
        assert!(error.message().contains("\"p\": element 1: "), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_name() {
        let fixed = |d, shape, n: usize| {
            Tensor::new("x", d, shape, Data::Fixed(vec![2; n].into())).unwrap_err()
        };
        let e = fixed(DataType::Fp32, vec![2, 3], 23);
        assert!(e.message().contains("24 bytes, got 23"), "{e}");
        let e = fixed(DataType::Fp32, vec![usize::MAX, 2], 8);
        assert!(e.message().contains("more elements"), "{e}");
        let e = fixed(DataType::Bool, vec![3], 3);
        assert!(e.message().contains("0 or 1"), "{e}");
        let e = fixed(DataType::Bytes, vec![3], 3);
        assert!(e.message().contains("two frames"), "{e}");
        for (offsets, why) in [
            (vec![1u64, 2], "ascend"),
            (vec![0, 5], "last offset"),
            (vec![0], "offsets of 1"),
        ] {
            let data = Data::Variable {
                offsets: offsets
                    .iter()
                    .flat_map(|o| o.to_le_bytes())
                    .collect::<Vec<_>>()
                    .into(),
                values: vec![0; 2].into(),
            };
            let e = Tensor::new("x", DataType::Bytes, vec![1], data).unwrap_err();
            assert!(e.message().contains(why), "{e}");
        }
    }

    #[test]
    fn odd_addresses_are_copied_not_cast() {
        let bytes = Bytes::from(vec![0u8; 4097]).slice(1..);
        let t = Tensor::new("x", DataType::Fp64, vec![512], Data::Fixed(bytes)).unwrap();
        assert_eq!(t.to_vec::<f64>().unwrap(), vec![0.0; 512]);
        assert!(t.to_vec::<f32>().is_err());
    }

    #[test]
    fn rows_must_agree() {
        let a = Tensor::from_slice("a", vec![2], &[1i32, 2]).unwrap();
        let b = Tensor::from_slice("b", vec![3], &[1i32, 2, 3]).unwrap();
        let batch = Batch {
            tensors: vec![a.clone(), b],
        };
        let e = batch.rows().unwrap_err();
        assert!(e.message().contains("\"a\" has 2 rows, \"b\" has 3"), "{e}");
        assert_eq!(Batch { tensors: vec![a] }.rows().unwrap(), 2);
    }
}
