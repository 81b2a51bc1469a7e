//! A tensor's elements as an array of `ndarray`, with as many dimensions as the caller says, or as it has.

use ndarray::{Array1, Array2, ArrayD, Dimension, IxDyn};

use super::{Element, Tensor};
use crate::error::{Error, Result};

impl Tensor {
    /// The elements as an array of as many dimensions as the tensor has, copied.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the tensor's datatype is not that of `T`.
    pub fn array<T: Element>(&self) -> Result<ArrayD<T>> {
        let elements = self.to_vec()?;
        ArrayD::from_shape_vec(IxDyn(self.shape()), elements)
            .map_err(|e| Error::internal(format!("tensor {:?}: no array: {e}", self.name())))
    }

    /// The elements of a tensor of one dimension, copied.
    ///
    /// # Errors
    /// As [`Tensor::array`], and `INVALID_ARGUMENT` if it has not one dimension.
    pub fn array1<T: Element>(&self) -> Result<Array1<T>> {
        with_dimensions(self.array()?, format_args!("tensor {:?}", self.name()))
    }

    /// The elements of a tensor of two dimensions, copied.
    ///
    /// # Errors
    /// As [`Tensor::array`], and `INVALID_ARGUMENT` if it has not two dimensions.
    pub fn array2<T: Element>(&self) -> Result<Array2<T>> {
        with_dimensions(self.array()?, format_args!("tensor {:?}", self.name()))
    }
}

/// The same array with its number of dimensions in its type.
///
/// # Errors
/// `INVALID_ARGUMENT` if it has another number of them.
pub(crate) fn with_dimensions<T, D: Dimension>(
    array: ArrayD<T>,
    of: impl std::fmt::Display,
) -> Result<ndarray::Array<T, D>> {
    let shape = array.shape().to_vec();
    array.into_dimensionality().map_err(|_| {
        let asked = D::NDIM.unwrap_or_default();
        Error::invalid(format!(
            "{of} has shape {shape:?}, asked for as an array of {asked} {}: `array` gives any number of them",
            if asked == 1 { "dimension" } else { "dimensions" }
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr1, arr2};

    #[test]
    fn elements_come_with_the_dimensions_that_were_asked_for() {
        let t = Tensor::from_vec("y", vec![2, 3], vec![1i64, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(t.array2::<i64>().unwrap(), arr2(&[[1, 2, 3], [4, 5, 6]]));
        assert_eq!(t.array::<i64>().unwrap().shape(), [2, 3]);
        let one = Tensor::from_slice("label", vec![2], &[7u8, 8]).unwrap();
        assert_eq!(one.array1::<u8>().unwrap(), arr1(&[7, 8]));
        let e = t.array1::<i64>().unwrap_err();
        for word in ["\"y\"", "[2, 3]", "1 dimension:", "`array`"] {
            assert!(e.message().contains(word), "{word} is not in: {e}");
        }
        let e = one.array2::<f32>().unwrap_err();
        assert!(e.message().contains("UINT8"), "{e}");
    }
}
