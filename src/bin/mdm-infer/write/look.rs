//! What a person sees of results: their names, datatypes and shapes, and the first rows.

use anyhow::Result;
use mdm::{Batch, DataType, Tensor};

use super::jsonl::Column;

/// Rows that are shown.
const SHOWN_ROWS: u64 = 3;
/// Characters of a row that are shown.
const SHOWN_CHARS: usize = 100;

/// The outputs as far as they have come.
#[derive(Default)]
pub struct Look {
    outputs: Vec<Output>,
}

struct Output {
    name: String,
    datatype: DataType,
    /// `None`: the rows differ in it, or it is the row's.
    shape: Vec<Option<usize>>,
    /// Where it has a first dimension.
    rows: Option<u64>,
    /// The first rows.
    shown: Vec<String>,
}

impl Look {
    /// Counts rows, and keeps how the first look.
    pub fn add_rows(&mut self, outputs: &Batch) -> Result<()> {
        let before = self.outputs.first().and_then(|output| output.rows);
        let missing = SHOWN_ROWS.saturating_sub(before.unwrap_or(0));
        self.count(outputs);
        self.show(&outputs.tensors, missing)
    }

    /// Takes outputs that have no rows; their first dimension is shown as if it were.
    pub fn add_whole(&mut self, outputs: &[Tensor]) -> Result<()> {
        self.count_whole(outputs);
        self.show(outputs, SHOWN_ROWS)
    }

    fn show(&mut self, outputs: &[Tensor], missing: u64) -> Result<()> {
        for (tensor, output) in outputs.iter().zip(&mut self.outputs) {
            let rows = tensor.rows().unwrap_or(1).min(missing as usize);
            if rows == 0 {
                continue;
            }
            // Only what is shown is read.
            let first = match tensor.rows() {
                Some(_) => tensor.slice_rows(0, rows),
                None => tensor.clone(),
            };
            for row in 0..rows {
                output.shown.push(match Column::new(&first) {
                    Ok(column) => shortened(&column, row)?,
                    Err(e) => format!("({e:#})"),
                });
            }
        }
        Ok(())
    }

    /// Counts rows.
    pub fn count(&mut self, outputs: &Batch) {
        if self.outputs.is_empty() {
            self.count_whole(&outputs.tensors);
            return;
        }
        for (tensor, output) in outputs.tensors.iter().zip(&mut self.outputs) {
            let rows = tensor.rows().unwrap_or(0) as u64;
            output.rows = output.rows.map(|all| all + rows);
            let further = tensor.shape().iter().skip(1).map(|dim| Some(*dim));
            for (own, dim) in output.shape.iter_mut().zip(further) {
                if *own != dim {
                    *own = None;
                }
            }
        }
    }

    /// Takes the shapes as they are.
    pub fn count_whole(&mut self, outputs: &[Tensor]) {
        let output = |tensor: &Tensor| Output {
            name: tensor.name().to_owned(),
            datatype: tensor.datatype(),
            shape: tensor
                .shape()
                .iter()
                .skip(1)
                .map(|dim| Some(*dim))
                .collect(),
            rows: tensor.rows().map(|rows| rows as u64),
            shown: Vec::new(),
        };
        self.outputs = outputs.iter().map(output).collect();
    }

    /// `label INT64 [1797], probabilities FP32 [1797, 10]`
    pub fn described(&self) -> String {
        let outputs: Vec<String> = self.outputs.iter().map(Output::described).collect();
        outputs.join(", ")
    }

    /// The outputs and their first rows.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        for output in &self.outputs {
            text += &output.described();
            text.push('\n');
            for (row, line) in output.shown.iter().enumerate() {
                text += &format!("  {row}: {line}\n");
            }
            let more = output.rows.unwrap_or(1) - output.shown.len() as u64;
            match more {
                0 => {}
                1 => text += "  … 1 row more\n",
                more => text += &format!("  … {more} rows more\n"),
            }
        }
        text
    }
}

impl Output {
    fn described(&self) -> String {
        let rows = self.rows.map(|rows| rows.to_string());
        let further = self.shape.iter();
        let further =
            further.map(|dim| dim.map_or_else(|| "?".to_owned(), |size| size.to_string()));
        let shape: Vec<String> = rows.into_iter().chain(further).collect();
        described(&self.name, self.datatype, &shape.join(", "))
    }
}

/// `probabilities FP32 [1797, 10]`
pub fn describe(tensor: &Tensor) -> String {
    let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    described(tensor.name(), tensor.datatype(), &shape.join(", "))
}

fn described(name: &str, datatype: DataType, shape: &str) -> String {
    let name = match name {
        "" => "(unnamed)",
        name => name,
    };
    format!("{name} {datatype} [{shape}]")
}

fn shortened(column: &Column<'_>, row: usize) -> Result<String> {
    let mut line = Vec::new();
    column.write_row(&mut line, row)?;
    let line = String::from_utf8_lossy(&line);
    let short: String = line.chars().take(SHOWN_CHARS).collect();
    let more = if short.len() < line.len() { "…" } else { "" };
    Ok(format!("{short}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_look_at_a_result_is_short() {
        let y = Tensor::from_vec("y", vec![5, 100], vec![0.25f32; 500]).unwrap();
        let all = Batch::from(y);
        let mut look = Look::default();
        for row in 0..5 {
            look.add_rows(&all.slice_rows(row, 1)).unwrap();
        }
        let text = look.shown();
        assert!(text.starts_with("y FP32 [5, 100]\n  0: [0.25,"), "{text}");
        assert!(
            text.contains("  2: [") && !text.contains("  3: ["),
            "{text}"
        );
        assert!(text.contains("… 2 rows more") && text.len() < 500, "{text}");
    }

    #[test]
    fn rows_that_differ_in_shape_are_said_to() {
        let row = |columns: usize| Tensor::from_vec("y", vec![1, columns], vec![1u8; columns]);
        let mut look = Look::default();
        for columns in [2, 3] {
            look.count(&Batch::from(row(columns).unwrap()));
        }
        assert_eq!(look.described(), "y UINT8 [2, ?]");
    }
}
