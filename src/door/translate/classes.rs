//! Classification: the highest values of each row with their places, as text, in place of all values.

use crate::error::{Error, Result};
use crate::tensor::{DataType, Element, Tensor};

/// The `most` highest values of each row as `VALUE:PLACE`, the highest first; of equal ones the first. A tensor without
/// rows is ranked whole.
///
/// # Errors
/// `INVALID_ARGUMENT` for a tensor whose elements are no numbers.
pub(super) fn highest(tensors: &[&Tensor], most: usize, batched: bool) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        return Err(Error::internal("an output without a part"));
    };
    let places = match batched {
        true => first.row_elements(),
        false => first.elements(),
    };
    let most = most.min(places);
    let mut texts = Vec::new();
    for tensor in tensors {
        rank(tensor, places, most, &mut texts)?;
    }
    let shape = match batched {
        true => vec![
            tensors.iter().filter_map(|tensor| tensor.rows()).sum(),
            most,
        ],
        false => vec![most],
    };
    Tensor::from_strings(first.name(), Some(shape), &texts)
}

fn rank(tensor: &Tensor, places: usize, most: usize, texts: &mut Vec<String>) -> Result<()> {
    match tensor.datatype() {
        DataType::Int8 => ranked::<i8>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Int16 => ranked::<i16>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Int32 => ranked::<i32>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Int64 => ranked::<i64>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Uint8 => ranked::<u8>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Uint16 => ranked::<u16>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Uint32 => ranked::<u32>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Uint64 => ranked::<u64>(tensor, places, most, texts, |v| v.to_string()),
        DataType::Fp16 => ranked::<half::f16>(tensor, places, most, texts, |v| format!("{v:.6}")),
        DataType::Bf16 => ranked::<half::bf16>(tensor, places, most, texts, |v| format!("{v:.6}")),
        DataType::Fp32 => ranked::<f32>(tensor, places, most, texts, |v| format!("{v:.6}")),
        DataType::Fp64 => ranked::<f64>(tensor, places, most, texts, |v| format!("{v:.6}")),
        other => Err(Error::invalid(format!(
            "output {:?} is {other}, whose elements have no classes",
            tensor.name()
        ))),
    }
}

fn ranked<T: Element + PartialOrd>(
    tensor: &Tensor,
    places: usize,
    most: usize,
    texts: &mut Vec<String>,
    shown: impl Fn(&T) -> String,
) -> Result<()> {
    let values = tensor.to_vec::<T>()?;
    for row in values.chunks_exact(places.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // What cannot be compared, NaN, comes last.
        let is_number = |value: &T| value.partial_cmp(value).is_some();
        order.sort_by(|&a, &b| {
            let (a, b) = (&row[a], &row[b]);
            let by_value = b.partial_cmp(a);
            by_value.unwrap_or_else(|| is_number(b).cmp(&is_number(a)))
        });
        let highest = order.iter().take(most);
        texts.extend(highest.map(|&place| format!("{}:{place}", shown(&row[place]))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_each_row_come_with_their_places() {
        let rows =
            |values: &[f32]| Tensor::from_slice("y", vec![values.len() / 3, 3], values).unwrap();
        let (a, b) = (
            rows(&[0.1, 0.7, 0.2, 5., 5., -1.]),
            rows(&[f32::NAN, -2., 1.]),
        );
        let ranked = highest(&[&a, &b], 2, true).unwrap();
        assert_eq!(ranked.shape(), [3, 2]);
        let expected = [
            "0.700000:1",
            "0.200000:2",
            "5.000000:0",
            "5.000000:1",
            "1.000000:2",
            "-2.000000:1",
        ];
        assert_eq!(ranked.strings().unwrap(), expected);
        let whole = Tensor::from_slice("y", vec![2, 2], &[3i64, 9, 4, 1]).unwrap();
        let ranked = highest(&[&whole], 9, false).unwrap();
        assert_eq!(ranked.strings().unwrap(), ["9:1", "4:2", "3:0", "1:3"]);
        let texts = Tensor::from_strings("s", None, &["a"]).unwrap();
        assert!(highest(&[&texts], 1, true).is_err());
    }
}
