//! Results as lines of JSON.

use std::io::{self, Write};

use anyhow::{Result, bail};
use mdm::{DataType, Element, Tensor};
use serde::Serialize;

use super::look::describe;

/// One object a row, with a key for each output. NaN and infinities, which JSON does not have, are null.
pub fn write_rows(file: &mut impl Write, outputs: &[Tensor]) -> Result<()> {
    let rows = outputs.first().and_then(Tensor::rows);
    let Some(rows) = rows.filter(|_| outputs.iter().all(|t| t.rows() == rows)) else {
        let shapes = outputs.iter().map(describe).collect::<Vec<_>>().join(", ");
        bail!("the outputs have no rows in common ({shapes}); use .npz");
    };
    let columns = outputs
        .iter()
        .map(Column::new)
        .collect::<Result<Vec<_>>>()?;
    (0..rows).try_for_each(|row| write_object(file, &columns, row))
}

/// One object for all outputs of a model that has no rows.
pub fn write_whole(file: &mut impl Write, outputs: &[Tensor]) -> Result<()> {
    let columns = outputs.iter().map(Column::whole);
    write_object(file, &columns.collect::<Result<Vec<_>>>()?, 0)
}

fn write_object(file: &mut impl Write, columns: &[Column<'_>], row: usize) -> Result<()> {
    let mut separator = b'{';
    for column in columns {
        file.write_all(&[separator])?;
        separator = b',';
        serde_json::to_writer(&mut *file, column.name)?;
        file.write_all(b":")?;
        column.write_row(file, row)?;
    }
    Ok(file.write_all(b"}\n")?)
}

/// An output whose rows can be written as JSON.
pub struct Column<'a> {
    name: &'a str,
    /// The dimensions of one row.
    of_row: &'a [usize],
    cells: Cells<'a>,
}

/// Writes the element of that index.
type Cells<'a> = Box<dyn Fn(&mut dyn Write, usize) -> io::Result<()> + 'a>;

impl<'a> Column<'a> {
    /// The rows of an output.
    pub fn new(tensor: &'a Tensor) -> Result<Column<'a>> {
        let cells: Cells<'a> = match tensor.datatype() {
            DataType::Bool => cells::<bool, _>(tensor, |v| v)?,
            DataType::Int8 => cells::<i8, _>(tensor, |v| v)?,
            DataType::Int16 => cells::<i16, _>(tensor, |v| v)?,
            DataType::Int32 => cells::<i32, _>(tensor, |v| v)?,
            DataType::Int64 => cells::<i64, _>(tensor, |v| v)?,
            DataType::Uint8 => cells::<u8, _>(tensor, |v| v)?,
            DataType::Uint16 => cells::<u16, _>(tensor, |v| v)?,
            DataType::Uint32 => cells::<u32, _>(tensor, |v| v)?,
            DataType::Uint64 => cells::<u64, _>(tensor, |v| v)?,
            DataType::Fp16 => cells::<half::f16, _>(tensor, half::f16::to_f32)?,
            DataType::Bf16 => cells::<half::bf16, _>(tensor, half::bf16::to_f32)?,
            DataType::Fp32 => cells::<f32, _>(tensor, |v| v)?,
            DataType::Fp64 => cells::<f64, _>(tensor, |v| v)?,
            DataType::Bytes => values(tensor.strings()?),
            DataType::Json => values(tensor.json_rows::<serde_json::Value>()?),
        };
        Ok(Column {
            name: tensor.name(),
            of_row: tensor.shape().get(1..).unwrap_or(&[]),
            cells,
        })
    }

    /// All of an output as its only row.
    fn whole(tensor: &'a Tensor) -> Result<Column<'a>> {
        Ok(Column {
            of_row: tensor.shape(),
            ..Column::new(tensor)?
        })
    }

    /// Writes a row's value.
    pub fn write_row(&self, out: &mut dyn Write, row: usize) -> io::Result<()> {
        let elements: usize = self.of_row.iter().product();
        self.write_nested(out, self.of_row, row * elements)
    }

    fn write_nested(&self, out: &mut dyn Write, shape: &[usize], start: usize) -> io::Result<()> {
        let [count, inner @ ..] = shape else {
            return (self.cells)(out, start);
        };
        let step: usize = inner.iter().product();
        out.write_all(b"[")?;
        for index in 0..*count {
            if index > 0 {
                out.write_all(b",")?;
            }
            self.write_nested(out, inner, start + index * step)?;
        }
        out.write_all(b"]")
    }
}

fn cells<'a, T: Element, S: Serialize>(
    tensor: &Tensor,
    shown: impl Fn(T) -> S + 'a,
) -> Result<Cells<'a>> {
    let elements = tensor.to_vec::<T>()?;
    Ok(Box::new(move |out, index| {
        Ok(serde_json::to_writer(out, &shown(elements[index]))?)
    }))
}

fn values<'a, S: Serialize + 'a>(values: Vec<S>) -> Cells<'a> {
    Box::new(move |out, index| Ok(serde_json::to_writer(out, &values[index])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> String {
        let mut text = Vec::new();
        write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_has_no_rows_is_one_object() {
        let y = Tensor::from_slice("y", vec![2, 2], &[1i64, 2, 3, 4]).unwrap();
        let n = Tensor::from_slice("n", vec![], &[f64::INFINITY]).unwrap();
        assert_eq!(
            text(|file| write_whole(file, &[y, n])),
            "{\"y\":[[1,2],[3,4]],\"n\":null}\n"
        );
    }

    #[test]
    fn rows_become_objects() {
        let y = Tensor::from_slice("y", vec![2, 2], &[0.1f32, f32::NAN, 3.0, 4.5]).unwrap();
        let s = Tensor::from_strings("s", None, &["a\"", "b"]).unwrap();
        let j =
            Tensor::from_json_rows("j", &[serde_json::json!({"k": 1}), serde_json::json!(null)])
                .unwrap();
        assert_eq!(
            text(|file| write_rows(file, &[y, s, j])),
            "{\"y\":[0.1,null],\"s\":\"a\\\"\",\"j\":{\"k\":1}}\n{\"y\":[3.0,4.5],\"s\":\"b\",\"j\":null}\n"
        );
    }
}
