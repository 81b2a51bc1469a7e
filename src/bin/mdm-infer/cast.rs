//! Numbers of another datatype than the model takes, such as NumPy's float64: converted where `--cast` asks for it, and
//! otherwise an error that says so.

use anyhow::{Result, bail};
use half::{bf16, f16};
use mdm::client::ModelInfo;
use mdm::tensor::Data;
use mdm::{Batch, DataType, Element, Error, Tensor};

use crate::numbering::Numbering;

/// What is done about numbers of another datatype than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cast {
    /// They are an error.
    Never,
    /// They are converted, and those that have no equal are an error.
    Numbers,
}

impl Cast {
    /// The inputs with the datatypes that the model takes. What is no number is left to the server.
    pub fn fit(self, inputs: Batch, model: &ModelInfo, numbering: &Numbering) -> Result<Batch> {
        let tensors = inputs.tensors.into_iter().map(|tensor| {
            let port = match (tensor.name(), &model.inputs[..]) {
                ("", [port]) => Some(port),
                (name, ports) => ports.iter().find(|port| port.name == name),
            };
            let to = port.and_then(|port| Some((port, DataType::parse(&port.dtype).ok()?)));
            let (Some((port, to)), true) = (to, is_number(tensor.datatype())) else {
                return Ok(tensor);
            };
            if to == tensor.datatype() || !is_number(to) {
                return Ok(tensor);
            }
            match self {
                Cast::Numbers => cast(&tensor, to, &port.name, numbering),
                Cast::Never => bail!(Error::invalid(format!(
                    "input {:?}: expected {to}, got {}; --cast converts it, or save it as array.astype({:?})",
                    port.name,
                    tensor.datatype(),
                    numpy(to)
                ))),
            }
        });
        Ok(Batch {
            tensors: tensors.collect::<Result<_>>()?,
        })
    }
}

fn is_number(datatype: DataType) -> bool {
    datatype.size().is_some()
}

/// What NumPy calls it; it has no BF16, for which FP32 is the nearest.
fn numpy(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "bool",
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Uint8 => "uint8",
        DataType::Uint16 => "uint16",
        DataType::Uint32 => "uint32",
        DataType::Uint64 => "uint64",
        DataType::Fp16 => "float16",
        DataType::Fp64 => "float64",
        _ => "float32",
    }
}

fn cast(tensor: &Tensor, to: DataType, input: &str, numbering: &Numbering) -> Result<Tensor> {
    let numbers = numbers(tensor)?;
    let made = match to {
        DataType::Bool => made(&numbers, |v| {
            Some(v == 1.0).filter(|_| v == 0.0 || v == 1.0)
        }),
        DataType::Int8 => made(&numbers, whole::<i8>),
        DataType::Int16 => made(&numbers, whole::<i16>),
        DataType::Int32 => made(&numbers, whole::<i32>),
        DataType::Int64 => made(&numbers, whole::<i64>),
        DataType::Uint8 => made(&numbers, whole::<u8>),
        DataType::Uint16 => made(&numbers, whole::<u16>),
        DataType::Uint32 => made(&numbers, whole::<u32>),
        DataType::Uint64 => made(&numbers, whole::<u64>),
        DataType::Fp16 => made(&numbers, |v| near(v, f16::from_f64(v), |n| n.is_finite())),
        DataType::Bf16 => made(&numbers, |v| near(v, bf16::from_f64(v), |n| n.is_finite())),
        DataType::Fp32 => made(&numbers, |v| near(v, v as f32, |n| n.is_finite())),
        DataType::Fp64 => made(&numbers, Some),
        DataType::Bytes | DataType::Json => return Ok(tensor.clone()),
    };
    match made {
        Ok(bytes) => {
            let data = Data::Fixed(bytes.into());
            Ok(Tensor::new(
                tensor.name(),
                to,
                tensor.shape().to_vec(),
                data,
            )?)
        }
        Err(index) => {
            let row = index / tensor.row_elements().max(1);
            bail!(Error::invalid(format!(
                "{}: input {input:?}: {} cannot be {to}, which the model takes",
                numbering.row(row),
                numbers[index]
            )))
        }
    }
}

/// The elements as numbers that hold all of their datatype's values, but for whole numbers of more than 53 bits.
fn numbers(tensor: &Tensor) -> mdm::Result<Vec<f64>> {
    fn of<T: Element>(tensor: &Tensor, number: impl Fn(T) -> f64) -> mdm::Result<Vec<f64>> {
        Ok(tensor.to_vec::<T>()?.into_iter().map(number).collect())
    }
    match tensor.datatype() {
        DataType::Bool => of(tensor, |v: bool| f64::from(u8::from(v))),
        DataType::Int8 => of(tensor, |v: i8| f64::from(v)),
        DataType::Int16 => of(tensor, |v: i16| f64::from(v)),
        DataType::Int32 => of(tensor, |v: i32| f64::from(v)),
        DataType::Int64 => exact(tensor, |v: i64| (v as f64, v.unsigned_abs())),
        DataType::Uint8 => of(tensor, |v: u8| f64::from(v)),
        DataType::Uint16 => of(tensor, |v: u16| f64::from(v)),
        DataType::Uint32 => of(tensor, |v: u32| f64::from(v)),
        DataType::Uint64 => exact(tensor, |v: u64| (v as f64, v)),
        DataType::Fp16 => of(tensor, f16::to_f64),
        DataType::Bf16 => of(tensor, bf16::to_f64),
        DataType::Fp32 => of(tensor, |v: f32| f64::from(v)),
        _ => tensor.to_vec::<f64>(),
    }
}

fn exact<T: Element>(tensor: &Tensor, number: impl Fn(T) -> (f64, u64)) -> mdm::Result<Vec<f64>> {
    /// The largest below which every whole number has a float of 64 bits.
    const EXACT: u64 = 1 << f64::MANTISSA_DIGITS;

    let numbers = tensor.to_vec::<T>()?.into_iter().map(|value| {
        let (number, size) = number(value);
        match size <= EXACT {
            true => Ok(number),
            false => Err(Error::invalid(format!(
                "{value:?} is too large to be converted exactly (--cast)"
            ))),
        }
    });
    numbers.collect()
}

/// The bytes of the converted numbers, or the index of the first that does not fit.
fn made<T: Element>(numbers: &[f64], to: impl Fn(f64) -> Option<T>) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(size_of_val(numbers) / size_of::<f64>() * size_of::<T>());
    for (index, number) in numbers.iter().enumerate() {
        let element = to(*number).ok_or(index)?;
        bytes.extend_from_slice(bytemuck::bytes_of(&element));
    }
    Ok(bytes)
}

fn whole<T: TryFrom<i128>>(value: f64) -> Option<T> {
    // NaN and infinities have no fraction that is 0; all else fits.
    (value.fract() == 0.0)
        .then_some(value as i128)
        .and_then(|value| T::try_from(value).ok())
}

/// The nearest number of fewer digits; what was finite must stay so.
fn near<T: Copy>(from: f64, to: T, is_finite: impl Fn(&T) -> bool) -> Option<T> {
    Some(to).filter(|to| is_finite(to) || !from.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm::wire::server::{DimInfo, PortInfo};

    fn fit(cast: Cast, tensor: Tensor, dtype: &str) -> Result<Tensor, String> {
        let model = ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind: "batched".to_owned(),
            inputs: vec![PortInfo {
                name: "x".to_owned(),
                dtype: dtype.to_owned(),
                shape: vec![DimInfo::Size(-1)],
            }],
            outputs: Vec::new(),
        };
        let numbering = Numbering::rows("f.npy", 100);
        match cast.fit(tensor.into(), &model, &numbering) {
            Ok(mut batch) => Ok(batch.tensors.remove(0)),
            Err(e) => Err(format!("{e:#}")),
        }
    }

    fn doubles(values: &[f64]) -> Tensor {
        Tensor::from_slice("", vec![values.len()], values).unwrap()
    }

    #[test]
    fn numbers_become_what_the_model_takes() {
        let values = [0.0, 1.0, -3.0, 0.1, f64::NAN, f64::INFINITY];
        let made = fit(Cast::Numbers, doubles(&values), "FP32").unwrap();
        let made = made.to_vec::<f32>().unwrap();
        assert_eq!(made[..4], [0.0, 1.0, -3.0, 0.1]);
        assert!(made[4].is_nan() && made[5] == f32::INFINITY);
        let made = fit(Cast::Numbers, doubles(&values[..3]), "INT16").unwrap();
        assert_eq!(made.to_vec::<i16>().unwrap(), [0, 1, -3]);
        let made = fit(Cast::Numbers, doubles(&values[..2]), "BOOL").unwrap();
        assert_eq!(made.to_vec::<bool>().unwrap(), [false, true]);
        let longs = Tensor::from_slice("x", vec![2], &[7i64, -8]).unwrap();
        let made = fit(Cast::Numbers, longs, "FP16").unwrap();
        assert_eq!(made.name(), "x");
        let expected = [7f32, -8.0].map(f16::from_f32);
        assert_eq!(made.to_vec::<f16>().unwrap(), expected);
        // What is right, and what is no number, stays.
        let texts = Tensor::from_strings("", None, &["a"]).unwrap();
        assert_eq!(fit(Cast::Numbers, texts.clone(), "FP32").unwrap(), texts);
    }

    #[test]
    fn what_has_no_equal_is_named_with_its_row() {
        for (value, dtype) in [
            (1e300, "FP32"),
            (1e300, "BF16"),
            (70000.0, "FP16"),
            (0.5, "INT64"),
            (9.3e18, "INT64"),
            (-1.0, "UINT8"),
            (f64::NAN, "INT32"),
            (2.0, "BOOL"),
        ] {
            let e = fit(Cast::Numbers, doubles(&[0.0, value]), dtype).unwrap_err();
            assert!(e.contains("row 101: input \"x\":"), "{value} {dtype}: {e}");
            assert!(e.contains(&format!("cannot be {dtype}")), "{e}");
        }
        let large = Tensor::from_slice("", vec![1], &[i64::MAX]).unwrap();
        let e = fit(Cast::Numbers, large, "FP32").unwrap_err();
        assert!(e.contains("9223372036854775807"), "{e}");
    }

    #[test]
    fn without_cast_the_error_says_so() {
        let e = fit(Cast::Never, doubles(&[0.0]), "FP32").unwrap_err();
        assert!(e.contains("expected FP32, got FP64"), "{e}");
        assert!(
            e.contains("--cast") && e.contains("astype(\"float32\")"),
            "{e}"
        );
    }
}
