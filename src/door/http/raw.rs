//! A body that is nothing but one tensor: its name, datatype and shape are the model's.

use bytes::Bytes;

use super::super::local::Local;
use super::super::models::{ModelName, Models};
use super::super::submit::Caller;
use super::super::translate::read::binary;
use super::super::translate::{Infer, Wanted};
use crate::error::{Error, Result};
use crate::message::Request;
use crate::tensor::{Batch, Data, DataType, Tensor};
use crate::wire::server::{DimInfo, ModelInfo, PortInfo};

/// A request for the only input of a model. All outputs come back as bytes.
///
/// # Errors
/// `INVALID_ARGUMENT` if the model does not say what it takes, or that does not tell the shape.
pub(super) async fn read(
    local: &Local,
    caller: &Caller,
    model: &ModelName,
    body: Bytes,
) -> Result<Infer> {
    local.check_started(caller).await?;
    let described = Models::of(local, caller).describe(model).await?;
    let tensor = of_only_input(&described, body)?;
    Ok(Infer {
        id: None,
        request: Request {
            inputs: Batch::from(tensor),
            ..Request::default()
        },
        wanted: Wanted {
            binary: true,
            ..Wanted::default()
        },
    })
}

fn of_only_input(model: &ModelInfo, body: Bytes) -> Result<Tensor> {
    let [input] = model.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "a body without JSON is the only input of its model, and {:?} declares {}",
            model.name,
            model.inputs.len()
        )));
    };
    let datatype = DataType::parse(&input.dtype)?;
    let Some(size) = datatype.size() else {
        // The body is one text; documents travel as text too.
        let offsets = [0, body.len() as u64].map(u64::to_le_bytes).concat();
        let data = Data::Variable {
            offsets: offsets.into(),
            values: body,
        };
        let shape = vec![1; input.shape.len()];
        return Tensor::unchecked(input.name.as_str(), DataType::Bytes, shape, data);
    };
    let shape = shape_of(input, size, body.len())?;
    binary(&input.name, datatype, shape, body)
}

/// The declared shape; one dimension may be of any size, which the number of bytes tells.
fn shape_of(input: &PortInfo, size: usize, bytes: usize) -> Result<Vec<usize>> {
    let known = input.shape.iter().filter_map(|dim| match dim {
        DimInfo::Size(size) => usize::try_from(*size).ok(),
        DimInfo::Symbol(_) => None,
    });
    let known: Vec<usize> = known.collect();
    let open = input.shape.len() - known.len();
    let rest = known
        .iter()
        .try_fold(size, |all, dim| all.checked_mul(*dim));
    let fits = rest.filter(|&rest| rest > 0 && bytes.is_multiple_of(rest));
    let Some(rest) = fits.filter(|rest| open == 1 || (open == 0 && bytes == *rest)) else {
        return Err(Error::invalid(format!(
            "a body without JSON: {bytes} bytes do not tell the shape of {input}"
        )));
    };
    let shape = input.shape.iter().map(|dim| match dim {
        DimInfo::Size(size) if *size >= 0 => *size as usize,
        _ => bytes / rest,
    });
    Ok(shape.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dtype: &str, shape: &[i64]) -> ModelInfo {
        ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind: "batched".to_owned(),
            inputs: vec![PortInfo {
                name: "x".to_owned(),
                dtype: dtype.to_owned(),
                shape: shape.iter().map(|&size| DimInfo::Size(size)).collect(),
            }],
            outputs: Vec::new(),
        }
    }

    #[test]
    fn the_shape_is_the_models_and_what_is_open_follows_from_the_bytes() {
        let body = Bytes::from(vec![0; 48]);
        let tensor = of_only_input(&model("FP32", &[-1, 4]), body.clone()).unwrap();
        assert_eq!((tensor.name(), tensor.shape()), ("x", &[3, 4][..]));
        let tensor = of_only_input(&model("INT8", &[48]), body.clone()).unwrap();
        assert_eq!(tensor.shape(), [48]);
        let tensor = of_only_input(&model("JSON", &[-1]), body.clone()).unwrap();
        assert_eq!(
            (tensor.datatype(), tensor.shape()),
            (DataType::Bytes, &[1][..])
        );
        for (dtype, shape) in [
            ("FP32", &[-1, 5][..]),
            ("FP32", &[-1, -1]),
            ("FP32", &[4]),
            ("FP32", &[-1, 0]),
        ] {
            assert!(
                of_only_input(&model(dtype, shape), body.clone()).is_err(),
                "{shape:?}"
            );
        }
    }
}
