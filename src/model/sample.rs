//! Turns a proxy's `warm_up`, JSON rows by input, into a batch that fits the model.

use bytemuck::NoUninit;
use serde_json::{Map, Value};

use super::check::check_inputs;
use super::{Description, Takes};
use crate::error::{Error, Result};
use crate::proxy::kind_of;
use crate::tensor::{Batch, DataType, Element, Tensor};

/// The sample as the model takes it.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming the input: expected and got.
pub(super) fn sample(description: &Description, given: &Map<String, Value>) -> Result<Batch> {
    let tensors = given.iter().map(|(name, value)| {
        let port = description.inputs.iter().find(|port| port.name == *name);
        let tensor = match port {
            Some(port) => {
                let open = port.shape.last() == Some(&super::Dim::Rest);
                let rank = (!open).then_some(port.shape.len());
                from_json(name, port.datatype, rank, value)
            }
            // The check below says what the model takes.
            None if description.takes == Takes::Declared => {
                Tensor::from_vec(&**name, vec![], vec![0u8])
            }
            None => guessed(name, value),
        };
        let tensor = tensor.map_err(|e| e.context(format_args!("input {name:?}")))?;
        match tensor.shape().first() {
            Some(0) => Err(Error::invalid(format!("input {name:?} has no rows"))),
            _ => Ok(tensor),
        }
    });
    let wrong = |e: Error| Error::precondition(format!("warm_up: {}", e.message()));
    let tensors = tensors.collect::<Result<Vec<Tensor>>>().map_err(wrong)?;
    let checked = check_inputs(description, Batch { tensors }).map_err(wrong)?;
    Ok(checked.inputs)
}

/// For a plugin that takes anything: texts, truths, whole numbers and numbers are what they look like, all else is
/// records.
fn guessed(name: &str, value: &Value) -> Result<Tensor> {
    let leaf = |test: fn(&Value) -> bool| all_leaves(value, &test);
    let datatype = if leaf(Value::is_string) {
        DataType::Bytes
    } else if leaf(Value::is_boolean) {
        DataType::Bool
    } else if leaf(Value::is_i64) {
        DataType::Int64
    } else if leaf(Value::is_number) {
        DataType::Fp32
    } else {
        DataType::Json
    };
    let rank = (datatype == DataType::Json).then_some(1);
    from_json(name, datatype, rank, value)
}

fn all_leaves(value: &Value, test: &impl Fn(&Value) -> bool) -> bool {
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(|item| all_leaves(item, test)),
        leaf => test(leaf),
    }
}

/// A tensor of nested lists; without a rank they are all of them dimensions.
///
/// # Errors
/// `INVALID_ARGUMENT`: lists that differ in length, or an element that is none of that datatype.
pub fn from_json(
    name: &str,
    datatype: DataType,
    rank: Option<usize>,
    value: &Value,
) -> Result<Tensor> {
    let mut shape = Vec::new();
    let mut at = Some(value);
    while let Some(Value::Array(items)) = at
        && rank.is_none_or(|rank| shape.len() < rank)
    {
        shape.push(items.len());
        at = items.first();
    }
    let mut leaves = Vec::new();
    gather(value, &shape, &mut leaves)?;
    let of = |elements: Result<Tensor>| elements.map(|tensor| tensor.renamed(name));
    of(match datatype {
        DataType::Bool => fixed::<bool>(shape, &leaves, Value::as_bool),
        DataType::Int8 => fixed::<i8>(shape, &leaves, |v| v.as_i64()?.try_into().ok()),
        DataType::Int16 => fixed::<i16>(shape, &leaves, |v| v.as_i64()?.try_into().ok()),
        DataType::Int32 => fixed::<i32>(shape, &leaves, |v| v.as_i64()?.try_into().ok()),
        DataType::Int64 => fixed::<i64>(shape, &leaves, Value::as_i64),
        DataType::Uint8 => fixed::<u8>(shape, &leaves, |v| v.as_u64()?.try_into().ok()),
        DataType::Uint16 => fixed::<u16>(shape, &leaves, |v| v.as_u64()?.try_into().ok()),
        DataType::Uint32 => fixed::<u32>(shape, &leaves, |v| v.as_u64()?.try_into().ok()),
        DataType::Uint64 => fixed::<u64>(shape, &leaves, Value::as_u64),
        DataType::Fp16 => fixed(shape, &leaves, |v| {
            Some(half::f16::from_f64(v.as_f64()?)).filter(|v| v.is_finite())
        }),
        DataType::Bf16 => fixed(shape, &leaves, |v| {
            Some(half::bf16::from_f64(v.as_f64()?)).filter(|v| v.is_finite())
        }),
        DataType::Fp32 => fixed::<f32>(shape, &leaves, |v| {
            Some(v.as_f64()? as f32).filter(|v| v.is_finite())
        }),
        DataType::Fp64 => fixed::<f64>(shape, &leaves, Value::as_f64),
        DataType::Bytes => {
            let text = |v: &&'_ Value| {
                v.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| unfit(v, datatype))
            };
            let texts = leaves.iter().map(text).collect::<Result<Vec<String>>>()?;
            Tensor::from_strings("", Some(shape), &texts)
        }
        DataType::Json => {
            let rows = Tensor::from_json_rows("", &leaves)?;
            Tensor::new("", DataType::Json, shape, rows.data().clone())
        }
    })
}

fn fixed<T: Element + NoUninit + Send + Sync + 'static>(
    shape: Vec<usize>,
    leaves: &[&Value],
    element: impl Fn(&Value) -> Option<T>,
) -> Result<Tensor> {
    let element = |leaf: &&Value| element(leaf).ok_or_else(|| unfit(leaf, T::DATATYPE));
    let elements = leaves.iter().map(element).collect::<Result<Vec<T>>>()?;
    Tensor::from_vec("", shape, elements)
}

/// The elements in order, if every list has the length that its dimension says.
fn gather<'a>(value: &'a Value, shape: &[usize], leaves: &mut Vec<&'a Value>) -> Result<()> {
    let Some((size, inner)) = shape.split_first() else {
        leaves.push(value);
        return Ok(());
    };
    match value {
        Value::Array(items) if items.len() == *size => items
            .iter()
            .try_for_each(|item| gather(item, inner, leaves)),
        Value::Array(items) => Err(Error::invalid(format!(
            "its lists differ in length: {size} and {}",
            items.len()
        ))),
        other => Err(Error::invalid(format!(
            "expected a list of {size} everywhere, got {} in place of one",
            kind_of(other)
        ))),
    }
}

fn unfit(value: &Value, datatype: DataType) -> Error {
    let got = match value {
        Value::Array(_) | Value::Object(_) => kind_of(value).to_owned(),
        small => small.to_string(),
    };
    Error::invalid(format!("expected {datatype}, got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn lists_become_tensors_of_the_inputs_datatype() {
        for datatype in DataType::ALL {
            let (text, shape) = match datatype {
                DataType::Bool => ("[[true],[false]]", vec![2, 1]),
                DataType::Bytes => (r#"[["a"],["é"]]"#, vec![2, 1]),
                _ => ("[[1],[0]]", vec![2, 1]),
            };
            let made = from_json("x", datatype, Some(2), &parsed(text)).unwrap();
            assert_eq!((made.datatype(), made.shape()), (datatype, &shape[..]));
            assert_eq!(made.name(), "x");
        }
        let scalar = from_json("x", DataType::Fp32, Some(0), &parsed("1.5")).unwrap();
        assert_eq!(
            (scalar.shape(), scalar.to_vec::<f32>().unwrap()),
            (&[][..], vec![1.5])
        );
        let records = from_json("x", DataType::Json, Some(1), &parsed("[[1,2],{}]")).unwrap();
        assert_eq!(records.shape(), [2]);
    }

    #[test]
    fn what_a_plugin_takes_is_guessed() {
        for (text, datatype, shape) in [
            (r#"["a","b"]"#, DataType::Bytes, &[2][..]),
            ("[[1,2,3]]", DataType::Int64, &[1, 3]),
            ("[1,2.5]", DataType::Fp32, &[2]),
            ("[true]", DataType::Bool, &[1]),
            (r#"[{"k":1},[2]]"#, DataType::Json, &[2]),
        ] {
            let made = guessed("x", &parsed(text)).unwrap();
            assert_eq!((made.datatype(), made.shape()), (datatype, shape), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (datatype, text, why) in [
            (DataType::Fp32, "[[1,2],[3]]", "differ in length: 2 and 1"),
            (
                DataType::Fp32,
                "[[1,2],3]",
                "a list of 2 everywhere, got a number",
            ),
            (DataType::Int8, "[[300]]", "expected INT8, got 300"),
            // It would be infinite.
            (DataType::Fp32, "[[1e300]]", "expected FP32, got 1e+300"),
            (DataType::Int64, "[[1.5]]", "expected INT64, got 1.5"),
            (DataType::Bytes, "[[1]]", "expected BYTES, got 1"),
            (DataType::Fp32, "[[[1]]]", "expected FP32, got an array"),
        ] {
            let e = from_json("x", datatype, Some(2), &parsed(text)).unwrap_err();
            assert!(e.message().contains(why), "{text}: {e}");
        }
    }
}
