//! Tensors <-> the engine's values, without a copy wherever memory allows it.
//!
//! ```text
//! in    aligned bytes     the engine reads the frame itself
//!       unaligned bytes   copied: the engine needs aligned elements
//!       strings           copied: the engine keeps std::string objects
//! out   more than 1 KiB   the tensor owns the engine's value and lends its memory
//!       up to 1 KiB       copied: cheaper than the bookkeeping, and the engine's memory is free again at once
//!       strings           copied, as above
//! ```

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};

use crate::error::{Error, Result};
use crate::tensor::{Batch, Data, DataType, Element, Tensor};

/// Outputs up to this many bytes are copied.
const COPY_BYTES: usize = 1024;

/// Calls `$function::<T>($arguments)` with the Rust type of a fixed-size datatype.
macro_rules! with_element {
    ($datatype:expr, $function:ident($($argument:expr),*), $other:pat => $otherwise:expr) => {
        match $datatype {
            DataType::Bool => $function::<bool>($($argument),*),
            DataType::Int8 => $function::<i8>($($argument),*),
            DataType::Int16 => $function::<i16>($($argument),*),
            DataType::Int32 => $function::<i32>($($argument),*),
            DataType::Int64 => $function::<i64>($($argument),*),
            DataType::Uint8 => $function::<u8>($($argument),*),
            DataType::Uint16 => $function::<u16>($($argument),*),
            DataType::Uint32 => $function::<u32>($($argument),*),
            DataType::Uint64 => $function::<u64>($($argument),*),
            DataType::Fp16 => $function::<half::f16>($($argument),*),
            DataType::Bf16 => $function::<half::bf16>($($argument),*),
            DataType::Fp32 => $function::<f32>($($argument),*),
            DataType::Fp64 => $function::<f64>($($argument),*),
            $other => $otherwise,
        }
    };
}

/// The datatype of the engine's elements, if it is one of ours.
pub(super) fn datatype_of(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

/// A tensor as an input of the engine; one of [`aligned`].
///
/// # Errors
/// `INVALID_ARGUMENT` for JSON, and for strings that the engine cannot hold.
pub(super) fn to_engine(tensor: &Tensor) -> Result<SessionInputValue<'_>> {
    with_element!(tensor.datatype(), lend(tensor),
        DataType::Bytes | DataType::Json => strings_in(tensor))
}

fn lend<T>(tensor: &Tensor) -> Result<SessionInputValue<'_>>
where
    T: Element + PrimitiveTensorElementType + Debug + 'static,
{
    let elements = tensor.as_slice::<T>().ok_or_else(|| {
        Error::internal(format!(
            "input {:?} is not aligned in memory",
            tensor.name()
        ))
    })?;
    let view = TensorRef::from_array_view((tensor.shape(), elements))
        .map_err(|e| Error::invalid(format!("input {:?}: {e}", tensor.name())))?;
    Ok(view.into())
}

/// Inputs that the engine can read where they lie. What is not aligned, as small received frames and slices of rows
/// can be, is copied before the run and not in it: an output may be an input passed through unchanged, and
/// [`from_engine`] has to know all memory that is not the engine's.
///
/// # Errors
/// As [`Tensor::to_vec`].
pub(super) fn aligned(inputs: &Batch) -> Result<Cow<'_, Batch>> {
    fn fits<T: Element>(tensor: &Tensor) -> bool {
        tensor.as_slice::<T>().is_some()
    }
    fn copied<T: Element + Send + Sync>(tensor: &Tensor) -> Result<Tensor> {
        Tensor::from_vec(
            tensor.name(),
            tensor.shape().to_vec(),
            tensor.to_vec::<T>()?,
        )
    }
    fn is_aligned(tensor: &Tensor) -> bool {
        with_element!(tensor.datatype(), fits(tensor),
            DataType::Bytes | DataType::Json => true)
    }
    if inputs.tensors.iter().all(is_aligned) {
        return Ok(Cow::Borrowed(inputs));
    }
    let tensors = inputs.tensors.iter().map(|tensor| {
        if is_aligned(tensor) {
            return Ok(tensor.clone());
        }
        with_element!(tensor.datatype(), copied(tensor),
            DataType::Bytes | DataType::Json => Ok(tensor.clone()))
    });
    Ok(Cow::Owned(Batch {
        tensors: tensors.collect::<Result<_>>()?,
    }))
}

fn strings_in(tensor: &Tensor) -> Result<SessionInputValue<'static>> {
    if tensor.datatype() == DataType::Json {
        return Err(Error::invalid(format!(
            "input {:?}: JSON rows are for proxies, an ONNX model takes tensors",
            tensor.name()
        )));
    }
    let strings = tensor.strings()?;
    // The engine's interface takes C strings.
    if let Some(at) = strings.iter().position(|text| text.contains('\0')) {
        return Err(Error::invalid(format!(
            "input {:?}: element {at} has a NUL byte, which strings of an ONNX model cannot have",
            tensor.name()
        )));
    }
    let owned: Vec<String> = strings.into_iter().map(str::to_owned).collect();
    let value = ort::value::Tensor::from_string_array((tensor.shape(), owned.as_slice()))
        .map_err(|e| Error::invalid(format!("input {:?}: {e}", tensor.name())))?;
    Ok(value.into())
}

/// An output of the engine as a tensor. `inputs` are what the run was given, all of them [`aligned`].
///
/// # Errors
/// `INTERNAL` if it is not of the datatype that the model declares, or strings that are not UTF-8.
pub(super) fn from_engine(
    name: &Arc<str>,
    datatype: DataType,
    value: DynValue,
    inputs: &Batch,
) -> Result<Tensor> {
    with_element!(datatype, adopt(name, value, inputs),
        DataType::Bytes | DataType::Json => strings_out(name, &value))
}

/// An output's value, which lends its memory for as long as a tensor needs it.
struct Adopted<T> {
    value: DynValue,
    element: PhantomData<fn() -> T>,
}

impl<T: Element + PrimitiveTensorElementType> AsRef<[u8]> for Adopted<T> {
    fn as_ref(&self) -> &[u8] {
        match self.value.try_extract_tensor::<T>() {
            Ok((_, elements)) => bytemuck::cast_slice(elements),
            // `adopt` has extracted the same before.
            Err(_) => &[],
        }
    }
}

fn adopt<T>(name: &Arc<str>, value: DynValue, inputs: &Batch) -> Result<Tensor>
where
    T: Element + PrimitiveTensorElementType,
{
    let (shape, elements) = value
        .try_extract_tensor::<T>()
        .map_err(|e| Error::internal(format!("output {name:?}: {e}")))?;
    let shape = dims(shape);
    let bytes: &[u8] = bytemuck::cast_slice(elements);
    // An output that is an input passed through is the frame's memory, which the value does not keep alive.
    let data = if bytes.len() <= COPY_BYTES || lies_in(bytes, inputs) {
        Bytes::copy_from_slice(bytes)
    } else {
        Bytes::from_owner(Adopted::<T> {
            value,
            element: PhantomData,
        })
    };
    Ok(Tensor::trusted(
        name.clone(),
        T::DATATYPE,
        shape,
        Data::Fixed(data),
    ))
}

fn strings_out(name: &Arc<str>, value: &DynValue) -> Result<Tensor> {
    let (shape, strings) = value
        .try_extract_strings()
        .map_err(|e| Error::internal(format!("output {name:?}: {e}")))?;
    Tensor::from_strings(name.clone(), Some(dims(shape)), &strings)
}

/// A value's dimensions; those of a value that exists are never negative.
fn dims(shape: &[i64]) -> Vec<usize> {
    shape
        .iter()
        .map(|&dim| usize::try_from(dim).unwrap_or(0))
        .collect()
}

fn lies_in(bytes: &[u8], inputs: &Batch) -> bool {
    let start = bytes.as_ptr().addr();
    inputs.tensors.iter().any(|tensor| match tensor.data() {
        Data::Fixed(input) => {
            let first = input.as_ptr().addr();
            (first..first + input.len()).contains(&start)
        }
        Data::Variable { .. } => false,
    })
}
