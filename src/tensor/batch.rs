//! Batches: rows in named columns.

#[cfg(feature = "server")]
use std::borrow::Borrow;

#[cfg(feature = "server")]
use bytes::Bytes;

#[cfg(feature = "server")]
use super::Data;
use super::{DataType, Tensor};
use crate::error::{Error, Result};

/// Named columns. Where a model has a batch dimension they have the same number of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The columns, in the order of the model's inputs or outputs.
    pub tensors: Vec<Tensor>,
}

impl Batch {
    /// Whether the tensors are alike but for their rows: names, datatypes and further dimensions, in the same order.
    pub fn is_like(&self, other: &Batch) -> bool {
        fn kind(tensor: &Tensor) -> (&str, DataType, &[usize]) {
            let inner = tensor.shape().get(1..).unwrap_or_default();
            (tensor.name(), tensor.datatype(), inner)
        }
        self.tensors
            .iter()
            .map(kind)
            .eq(other.tensors.iter().map(kind))
    }

    /// The rows of the first column; `None` where there is no column, or it is a scalar. Columns of rows are alike in this:
    /// [`Batch::rows`] checks it.
    pub(crate) fn row_count(&self) -> Option<usize> {
        self.tensors.first().and_then(Tensor::rows)
    }

    /// Rows `start..start + rows` of each column, as [`Tensor::slice_rows`] cuts them.
    ///
    /// # Panics
    /// If a column has fewer rows: callers cut what they have counted.
    #[must_use]
    pub fn slice_rows(&self, start: usize, rows: usize) -> Batch {
        let tensors = self.tensors.iter();
        Batch {
            tensors: tensors
                .map(|tensor| tensor.slice_rows(start, rows))
                .collect(),
        }
    }

    /// The same in memory of its own.
    #[cfg(feature = "server")]
    pub(crate) fn detached(&self) -> Batch {
        Batch {
            tensors: self.tensors.iter().map(Tensor::detached).collect(),
        }
    }

    /// What it is like, without its rows: they are let go.
    #[cfg(feature = "server")]
    pub(crate) fn without_rows(&self) -> Batch {
        let without = |tensor: &Tensor| {
            let mut shape = tensor.shape().to_vec();
            if let Some(rows) = shape.first_mut() {
                *rows = 0;
            }
            let none = Data::Fixed(Bytes::new());
            Tensor::trusted(tensor.name().into(), tensor.datatype(), shape, none)
        };
        Batch {
            tensors: self.tensors.iter().map(without).collect(),
        }
    }

    /// The rows of several batches in one piece of memory for each column. `None` where that is not worth a copy: for one
    /// batch, for batches of more than so many bytes, for elements that differ in length; and for columns that are not alike.
    #[cfg(feature = "server")]
    pub(crate) fn joined<B: Borrow<Batch>>(batches: &[B], most_bytes: usize) -> Option<Batch> {
        let (first, rest) = batches.split_first()?;
        let columns = first.borrow().tensors.len();
        let fits = |batch: &B| {
            let batch = batch.borrow();
            batch.tensors.len() == columns && batch.payload_bytes() <= most_bytes
        };
        if rest.is_empty() || !batches.iter().all(fits) {
            return None;
        }
        let column =
            |index: usize| Tensor::joined(batches.iter().map(move |b| &b.borrow().tensors[index]));
        let tensors = (0..columns).map(column).collect::<Option<_>>()?;
        Some(Batch { tensors })
    }

    /// The tensors in words, for errors: names, datatypes and shapes.
    pub fn kinds(&self) -> String {
        let words = self.tensors.iter().map(|tensor| {
            let (name, datatype) = (tensor.name(), tensor.datatype());
            format!("{name:?} {datatype} {:?}", tensor.shape())
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The number of rows that all columns share.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the two columns that differ, or the one that is a scalar.
    pub fn rows(&self) -> Result<usize> {
        let mut rows: Option<(usize, &str)> = None;
        for tensor in &self.tensors {
            let Some(own) = tensor.rows() else {
                return Err(Error::invalid(format!(
                    "tensor {:?} is a scalar, expected a first dimension of rows",
                    tensor.name()
                )));
            };
            match rows {
                Some((others, name)) if others != own => {
                    return Err(Error::invalid(format!(
                        "tensor {name:?} has {others} rows, {:?} has {own}: every input needs the same number",
                        tensor.name()
                    )));
                }
                _ => rows = Some((own, tensor.name())),
            }
        }
        rows.map(|(rows, _)| rows)
            .ok_or_else(|| Error::invalid("a batch without tensors"))
    }

    /// The column of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name() == name)
    }

    /// The column of that name, or the only one if it has no name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the columns that there are.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        if let [only] = self.tensors.as_slice()
            && only.name().is_empty()
        {
            return Ok(only);
        }
        self.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.iter().map(Tensor::name).collect();
            Error::invalid(format!("tensor {name:?} is missing, got {names:?}"))
        })
    }

    /// The bytes of payload.
    pub fn payload_bytes(&self) -> usize {
        self.tensors.iter().map(Tensor::payload_bytes).sum()
    }
}

/// One column.
impl From<Tensor> for Batch {
    fn from(tensor: Tensor) -> Batch {
        Batch {
            tensors: vec![tensor],
        }
    }
}

impl From<Vec<Tensor>> for Batch {
    fn from(tensors: Vec<Tensor>) -> Batch {
        Batch { tensors }
    }
}
