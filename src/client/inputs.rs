//! Turns a program's data into a request's inputs.
//!
//! Vectors, arrays and tensors that are handed over are not copied. Borrowed numbers are not copied by `infer`, which
//! returns after they were sent; other calls return earlier, so they copy them once.

use std::borrow::Cow;

use ndarray::{Array, ArrayBase, ArrayView, Data, Dimension};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::tensor::{Batch, DataType, Element, Tensor};

/// Data that becomes a request's inputs. Dimension 0 is the row.
///
/// | data | becomes |
/// |---|---|
/// | an array or a view of [`ndarray`](crate::ndarray), by value or by reference | numbers of its shape |
/// | `Vec<T>`, `&[T]`, `&[T; N]` of numbers or truths | numbers of one dimension |
/// | `&[&str]`, `&[String]`, `Vec<&str>`, `Vec<String>` | strings, one a row |
/// | [`JsonRows`] | rows of any type that serde can write |
/// | [`Tensor`], [`Batch`] | itself |
///
/// An input without a name (the empty one) is for models that have one input; `("name", data)` names it, and
/// [`Inputs`] holds several.
///
/// Arrays have to be of the version of ndarray that this crate uses, which is 0.17: `mdm::ndarray` is that version.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot become a request's inputs",
    label = "not an array of ndarray 0.17, a slice or Vec of numbers or strings, a `Tensor`, `Inputs` or `JsonRows`",
    note = "an array of ndarray has to be of version 0.17, which `mdm::ndarray` is: take `use mdm::ndarray;`, or `ndarray = \"0.17\"` in Cargo.toml",
    note = "elements are bool, f16, bf16, f32, f64 and the integers of 8 to 64 bits; rows of any other type go as `JsonRows(&rows)`"
)]
pub trait IntoInputs {
    /// The inputs.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for rows that have no form on the wire.
    fn into_inputs(self) -> Result<Batch>;

    /// The inputs, for a call that lasts until they are sent: what is borrowed need not be copied.
    ///
    /// # Errors
    /// As [`IntoInputs::into_inputs`].
    #[doc(hidden)]
    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: Sized + 'env,
    {
        // By default nothing is borrowed.
        self.into_inputs().map(LentInputs::from)
    }
}

/// The inputs of a call that lasts until they are sent.
#[doc(hidden)]
#[derive(Debug)]
pub struct LentInputs<'env> {
    pub(super) columns: Vec<Column<'env>>,
}

/// One input.
#[derive(Debug)]
pub(super) enum Column<'env> {
    Own(Tensor),
    /// Borrowed numbers, row after row.
    Lent {
        name: Cow<'env, str>,
        datatype: DataType,
        shape: Vec<usize>,
        bytes: &'env [u8],
    },
}

impl<'env> LentInputs<'env> {
    fn of<T: Element>(shape: &[usize], slice: &'env [T]) -> Result<LentInputs<'env>> {
        let column = Column::Lent {
            name: Cow::Borrowed(""),
            datatype: T::DATATYPE,
            shape: shape.to_vec(),
            bytes: bytemuck::cast_slice(slice),
        };
        Ok(LentInputs {
            columns: vec![column],
        })
    }

    fn named(mut self, name: &'env str) -> Result<LentInputs<'env>> {
        match &mut self.columns[..] {
            [Column::Own(tensor)] => *tensor = tensor.clone().renamed(name),
            [Column::Lent { name: old, .. }] => *old = Cow::Borrowed(name),
            others => return Err(one_name(name, others.len())),
        }
        Ok(self)
    }
}

impl From<Batch> for LentInputs<'_> {
    fn from(batch: Batch) -> Self {
        LentInputs {
            columns: batch.tensors.into_iter().map(Column::Own).collect(),
        }
    }
}

fn one_name(name: &str, tensors: usize) -> Error {
    Error::invalid(format!(
        "input {name:?}: one name was given to {tensors} tensors"
    ))
}

/// Rows that are neither numbers nor strings: each is any value that serde can write, and travels as one JSON element.
#[derive(Clone, Copy, Debug)]
pub struct JsonRows<'a, T>(pub &'a [T]);

/// Several named inputs of any kinds.
///
/// ```
/// use mdm::client::Inputs;
///
/// let ids = mdm::ndarray::arr2(&[[1i64, 2], [3, 4]]);
/// let inputs = Inputs::new().with("ids", &ids).with("text", &["one", "two"]);
/// ```
#[derive(Clone, Debug)]
pub struct Inputs {
    batch: Result<Batch>,
}

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Inputs {
        Inputs {
            batch: Ok(Batch::default()),
        }
    }

    /// Adds an input. What is wrong with its data is told when the inputs are used.
    #[must_use]
    pub fn with(mut self, name: &str, data: impl IntoInputs) -> Inputs {
        if let Ok(batch) = &mut self.batch {
            match (name, data).into_inputs() {
                Ok(more) => batch.tensors.extend(more.tensors),
                Err(e) => self.batch = Err(e),
            }
        }
        self
    }
}

impl Default for Inputs {
    fn default() -> Inputs {
        Inputs::new()
    }
}

impl IntoInputs for Inputs {
    fn into_inputs(self) -> Result<Batch> {
        self.batch
    }
}

impl IntoInputs for Batch {
    fn into_inputs(self) -> Result<Batch> {
        Ok(self)
    }
}

impl IntoInputs for Tensor {
    fn into_inputs(self) -> Result<Batch> {
        Ok(Batch {
            tensors: vec![self],
        })
    }
}

impl IntoInputs for Vec<Tensor> {
    fn into_inputs(self) -> Result<Batch> {
        Ok(Batch { tensors: self })
    }
}

impl<X: IntoInputs> IntoInputs for (&str, X) {
    fn into_inputs(self) -> Result<Batch> {
        let (name, data) = self;
        let mut batch = data.into_inputs()?;
        match &mut batch.tensors[..] {
            [tensor] => *tensor = tensor.clone().renamed(name),
            others => return Err(one_name(name, others.len())),
        }
        Ok(batch)
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        let (name, data) = self;
        data.lend_inputs()?.named(name)
    }
}

impl<X: IntoInputs, const N: usize> IntoInputs for [X; N] {
    fn into_inputs(self) -> Result<Batch> {
        let mut tensors = Vec::with_capacity(N);
        for data in self {
            tensors.extend(data.into_inputs()?.tensors);
        }
        Ok(Batch { tensors })
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        let mut columns = Vec::with_capacity(N);
        for data in self {
            columns.extend(data.lend_inputs()?.columns);
        }
        Ok(LentInputs { columns })
    }
}

impl<T: Element + Send + Sync, D: Dimension> IntoInputs for Array<T, D> {
    fn into_inputs(self) -> Result<Batch> {
        if !self.is_standard_layout() {
            return (&self).into_inputs();
        }
        let shape = self.shape().to_vec();
        let elements = self.len();
        match self.into_raw_vec_and_offset() {
            (vec, None | Some(0)) if vec.len() == elements => {
                Tensor::from_vec("", shape, vec)?.into_inputs()
            }
            (vec, offset) => {
                let start = offset.unwrap_or(0);
                Tensor::from_slice("", shape, &vec[start..start + elements])?.into_inputs()
            }
        }
    }
}

impl<T: Element + Send + Sync, D: Dimension> IntoInputs for ArrayView<'_, T, D> {
    fn into_inputs(self) -> Result<Batch> {
        (&self).into_inputs()
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        match self.to_slice() {
            Some(slice) => LentInputs::of(self.shape(), slice),
            None => self.into_inputs().map(LentInputs::from),
        }
    }
}

impl<T, S, D> IntoInputs for &ArrayBase<S, D>
where
    T: Element + Send + Sync,
    S: Data<Elem = T>,
    D: Dimension,
{
    fn into_inputs(self) -> Result<Batch> {
        let shape = self.shape().to_vec();
        let tensor = match self.as_slice() {
            Some(slice) => Tensor::from_slice("", shape, slice)?,
            // Not row after row in memory: collected in the order of its indices.
            None => Tensor::from_vec("", shape, self.iter().copied().collect())?,
        };
        tensor.into_inputs()
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        match self.as_slice() {
            Some(slice) => LentInputs::of(self.shape(), slice),
            None => self.into_inputs().map(LentInputs::from),
        }
    }
}

impl<T: Element> IntoInputs for &[T] {
    fn into_inputs(self) -> Result<Batch> {
        Tensor::from_slice("", vec![self.len()], self)?.into_inputs()
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        LentInputs::of(&[self.len()], self)
    }
}

impl<T: Element, const N: usize> IntoInputs for &[T; N] {
    fn into_inputs(self) -> Result<Batch> {
        self.as_slice().into_inputs()
    }

    fn lend_inputs<'env>(self) -> Result<LentInputs<'env>>
    where
        Self: 'env,
    {
        self.as_slice().lend_inputs()
    }
}

impl<T: Element + Send + Sync> IntoInputs for Vec<T> {
    fn into_inputs(self) -> Result<Batch> {
        Tensor::from_vec("", vec![self.len()], self)?.into_inputs()
    }
}

macro_rules! strings {
    ($($kind:ty),+ $(,)?) => {
        $(impl IntoInputs for $kind {
            fn into_inputs(self) -> Result<Batch> {
                Tensor::from_strings("", None, &self[..])?.into_inputs()
            }
        })+
    };
}
strings! { &[&str], &[String], Vec<&str>, Vec<String>, &Vec<&str>, &Vec<String> }

impl<const N: usize> IntoInputs for &[&str; N] {
    fn into_inputs(self) -> Result<Batch> {
        self.as_slice().into_inputs()
    }
}

impl<T: Serialize> IntoInputs for JsonRows<'_, T> {
    fn into_inputs(self) -> Result<Batch> {
        Tensor::from_json_rows("", self.0)?.into_inputs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    fn only(data: impl IntoInputs) -> Tensor {
        let mut batch = data.into_inputs().unwrap();
        assert_eq!(batch.tensors.len(), 1);
        batch.tensors.remove(0)
    }

    #[test]
    fn arrays_keep_the_order_of_their_indices() {
        let a = arr2(&[[1f32, 2., 3.], [4., 5., 6.]]);
        assert_eq!(only(&a).to_vec::<f32>().unwrap(), [1., 2., 3., 4., 5., 6.]);
        let t = only(a.t());
        assert_eq!(t.shape(), [3, 2]);
        assert_eq!(t.to_vec::<f32>().unwrap(), [1., 4., 2., 5., 3., 6.]);
        let column = only(a.slice(ndarray::s![.., 1..2]));
        assert_eq!(column.to_vec::<f32>().unwrap(), [2., 5.]);
        let f = Array2::<i64>::from_shape_vec(ndarray::ShapeBuilder::f((2, 2)), vec![1, 2, 3, 4]);
        assert_eq!(only(f.unwrap()).to_vec::<i64>().unwrap(), [1, 3, 2, 4]);
    }

    #[test]
    fn an_array_that_is_handed_over_is_not_copied() {
        let a = Array2::<f64>::zeros((4, 4));
        let address = a.as_ptr();
        let t = only(a);
        assert_eq!(t.as_slice::<f64>().unwrap().as_ptr(), address);
        let a = Array2::from_shape_fn((4, 2), |(i, _)| i as f64);
        let tail = a.slice_move(ndarray::s![2.., ..]);
        assert_eq!(only(tail).to_vec::<f64>().unwrap(), [2., 2., 3., 3.]);
    }

    #[test]
    fn what_is_borrowed_is_lent_where_the_call_lasts() {
        let a = Array2::<f32>::ones((128, 256));
        for inputs in [
            a.view().lend_inputs(),
            (&a).lend_inputs(),
            [("x", &a)].lend_inputs(),
            a.as_slice().unwrap().lend_inputs(),
        ] {
            let inputs = inputs.unwrap();
            match &inputs.columns[..] {
                [Column::Lent { bytes, .. }] => {
                    assert_eq!(bytes.len(), 128 * 256 * 4);
                    assert_eq!(bytes.as_ptr(), a.as_ptr().cast());
                }
                other => panic!("{other:?}"),
            }
        }
        match &a.t().lend_inputs().unwrap().columns[..] {
            [Column::Own(turned)] => assert_eq!(turned.shape(), [256, 128]),
            other => panic!("{other:?}"),
        }
        let e = ("x", [&a, &a]).lend_inputs().unwrap_err();
        assert!(e.message().contains("2 tensors"), "{e}");
    }

    /// The compiler's words for arrays of another version name ours.
    #[test]
    fn the_version_of_ndarray_that_is_named_is_the_one_that_is_used() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains("\nndarray = { version = \"0.17\""));
        let named = include_str!("inputs.rs").matches("0.17").count();
        assert!(named >= 6, "{named}");
    }

    #[test]
    fn names_strings_rows_and_several_inputs() {
        let t = only(("x", &[1u8, 2, 3]));
        assert_eq!((t.name(), t.shape()), ("x", &[3usize][..]));
        assert_eq!(only(&["a", "b"]).strings().unwrap(), ["a", "b"]);
        assert_eq!(only(vec!["a".to_owned()]).strings().unwrap(), ["a"]);
        let rows = [serde_json::json!({"a": 1}), serde_json::json!("b")];
        let t = only(JsonRows(&rows));
        assert_eq!(t.json_rows::<serde_json::Value>().unwrap(), rows);
        let two = Inputs::new()
            .with("a", &[1i32])
            .with("b", &["x"])
            .into_inputs()
            .unwrap();
        assert_eq!(two.tensors[1].name(), "b");
        let e = Inputs::new().with("a", two).into_inputs().unwrap_err();
        assert!(e.message().contains("2 tensors"), "{e}");
    }
}
