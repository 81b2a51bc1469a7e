//! Results as files: `.npy`, `.npz`, `.jsonl`; or as a look at the first rows.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use mdm::client::ModelInfo;
use mdm::tensor::Data;
use mdm::{DataType, Element, Tensor};
use npyz::npz::NpzWriter;
use npyz::zip::write::FileOptions;
use npyz::{DType, TypeStr, WriteOptions, WriterBuilder};
use serde::Serialize;

use crate::read::Format;
use crate::run::Answer;

/// Rows that the look at a result shows.
const SHOWN_ROWS: usize = 3;
/// Characters of a row that it shows.
const SHOWN_CHARS: usize = 100;

/// Where results go, checked before any work is done.
pub struct Target {
    path: PathBuf,
    format: Format,
}

impl Target {
    /// Checks that the format is one that can be written, and that the folder is there.
    pub fn new(path: &Path) -> Result<Target> {
        let format = Format::of(path)?;
        ensure!(
            format != Format::Txt,
            "{}: results are written as .npy, .npz or .jsonl",
            path.display()
        );
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder {
            ensure!(
                folder.is_dir(),
                "{}: the folder {} does not exist",
                path.display(),
                folder.display()
            );
        }
        Ok(Target {
            path: path.to_owned(),
            format,
        })
    }

    /// Checks that what the model gives can be written there, as far as it says what it gives.
    pub fn check(&self, model: &ModelInfo) -> Result<()> {
        if model.outputs.is_empty() {
            return Ok(());
        }
        self.check_names(model.outputs.iter().map(|o| o.name.as_str()).collect())
    }

    fn check_names(&self, names: Vec<&str>) -> Result<()> {
        ensure!(
            self.format != Format::Npy || names.len() == 1,
            "{}: a .npy file holds one output, the model has {names:?}; use .npz",
            self.path.display()
        );
        Ok(())
    }

    /// Writes the outputs. The file is whole or not there: it gets its name at the end.
    pub fn write(&self, answer: &Answer) -> Result<()> {
        let place = || self.path.display().to_string();
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = self
            .write_to(&partial, answer)
            .and_then(|()| fs::rename(&partial, &self.path).with_context(place));
        if written.is_err() {
            // It may not even have been made.
            let _ = fs::remove_file(&partial);
        }
        written
    }

    fn write_to(&self, partial: &Path, answer: &Answer) -> Result<()> {
        let place = || self.path.display().to_string();
        let outputs = &answer.outputs;
        self.check_names(outputs.iter().map(Tensor::name).collect())?;
        let mut file = BufWriter::new(File::create(partial).with_context(place)?);
        match self.format {
            Format::Npy => write_npy(&mut file, &outputs[0]),
            Format::Npz => write_npz(&mut file, outputs),
            Format::Jsonl | Format::Txt => write_jsonl(&mut file, answer),
        }
        .and_then(|()| Ok(file.flush()?))
        .with_context(place)
    }
}

fn write_npz(file: &mut (impl Write + Seek), outputs: &[Tensor]) -> Result<()> {
    let mut archive = NpzWriter::new(file);
    let zip = archive.zip_writer();
    for tensor in outputs {
        let name = match tensor.name() {
            "" => npyz::npz::file_name_from_index(0),
            name => npyz::npz::file_name_from_array_name(name),
        };
        // Not compressed, as numpy.savez does; and more than 4 GiB need another header.
        let options = FileOptions::default()
            .compression_method(npyz::zip::CompressionMethod::Stored)
            .large_file(tensor.payload_bytes() > u32::MAX as usize / 2);
        zip.start_file(name, options)?;
        write_npy(&mut *zip, tensor)?;
    }
    zip.finish()?;
    Ok(())
}

/// Writes the format of `numpy.save`. BF16 has no such type and becomes FP32; strings are padded to the longest.
fn write_npy(file: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let kind = match tensor.datatype() {
        DataType::Bool => "|b1",
        DataType::Int8 => "|i1",
        DataType::Int16 => "<i2",
        DataType::Int32 => "<i4",
        DataType::Int64 => "<i8",
        DataType::Uint8 => "|u1",
        DataType::Uint16 => "<u2",
        DataType::Uint32 => "<u4",
        DataType::Uint64 => "<u8",
        DataType::Fp16 => "<f2",
        DataType::Fp32 | DataType::Bf16 => "<f4",
        DataType::Fp64 => "<f8",
        DataType::Bytes => return write_strings(file, tensor),
        DataType::Json => bail!(
            "output {:?} is JSON, which no array holds; use .jsonl",
            tensor.name()
        ),
    };
    write_header(file, kind, tensor.shape())?;
    match tensor.data() {
        Data::Fixed(_) if tensor.datatype() == DataType::Bf16 => {
            for value in tensor.to_vec::<half::bf16>()? {
                file.write_all(&value.to_f32().to_le_bytes())?;
            }
        }
        Data::Fixed(bytes) => file.write_all(bytes)?,
        Data::Variable { .. } => {}
    }
    Ok(())
}

fn write_strings(file: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let strings = tensor
        .strings()
        .with_context(|| format!("output {:?} is not UTF-8 text, and a file of NumPy holds no other; read it with the client", tensor.name()))?;
    let longest = strings.iter().map(|s| s.chars().count()).max().unwrap_or(0);
    // NumPy has no strings of length 0.
    let longest = longest.max(1);
    write_header(file, &format!("<U{longest}"), tensor.shape())?;
    for string in strings {
        let padding = std::iter::repeat('\0');
        for character in string.chars().chain(padding).take(longest) {
            file.write_all(&(character as u32).to_le_bytes())?;
        }
    }
    Ok(())
}

fn write_header(file: &mut impl Write, kind: &str, shape: &[usize]) -> Result<()> {
    let kind: TypeStr = kind.parse().context("a type of our own table")?;
    let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    WriteOptions::new_header_only()
        .dtype(DType::Plain(kind))
        .shape(&shape)
        .writer(file)
        .write_header_only()?;
    Ok(())
}

/// One object a row, with a key for each output; one object for all where there are no rows. NaN and infinities, which
/// JSON does not have, are null.
fn write_jsonl(file: &mut impl Write, answer: &Answer) -> Result<()> {
    let outputs = &answer.outputs;
    if answer.whole {
        let columns = outputs
            .iter()
            .map(Column::whole)
            .collect::<Result<Vec<_>>>()?;
        return write_object(file, &columns, 0);
    }
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
struct Column<'a> {
    name: &'a str,
    /// The dimensions of one row.
    of_row: &'a [usize],
    cells: Cells<'a>,
}

/// Writes the element of that index.
type Cells<'a> = Box<dyn Fn(&mut dyn Write, usize) -> io::Result<()> + 'a>;

impl<'a> Column<'a> {
    fn new(tensor: &'a Tensor) -> Result<Column<'a>> {
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

    fn write_row(&self, out: &mut dyn Write, row: usize) -> io::Result<()> {
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

/// `probabilities FP32 [1797, 10]`
pub fn describe(tensor: &Tensor) -> String {
    let name = match tensor.name() {
        "" => "(unnamed)",
        name => name,
    };
    format!("{name} {} {:?}", tensor.datatype(), tensor.shape())
}

/// The outputs and their first rows, for a person.
pub fn summary(outputs: &[Tensor]) -> Result<String> {
    let mut text = String::new();
    for tensor in outputs {
        text += &describe(tensor);
        text.push('\n');
        let rows = tensor.rows().unwrap_or(1);
        // Only what is shown is read.
        let shown = match tensor.rows() {
            Some(rows) => tensor.slice_rows(0, rows.min(SHOWN_ROWS)),
            None => tensor.clone(),
        };
        for row in 0..rows.min(SHOWN_ROWS) {
            let line = match Column::new(&shown) {
                Ok(column) => {
                    let mut line = Vec::new();
                    column.write_row(&mut line, row)?;
                    String::from_utf8_lossy(&line).into_owned()
                }
                Err(e) => format!("({e:#})"),
            };
            let short: String = line.chars().take(SHOWN_CHARS).collect();
            let more = if short.len() < line.len() { "…" } else { "" };
            text += &format!("  {row}: {short}{more}\n");
        }
        if rows > SHOWN_ROWS {
            text += &format!("  … {} rows more\n", rows - SHOWN_ROWS);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(outputs: &[Tensor]) -> Answer {
        Answer {
            outputs: outputs.to_vec(),
            whole: false,
        }
    }

    fn jsonl(answer: &Answer) -> String {
        let mut text = Vec::new();
        write_jsonl(&mut text, answer).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn arrays(path: &Path) -> Vec<Tensor> {
        match crate::read::read(path).unwrap() {
            crate::read::Contents::Inputs(batch) => batch.tensors,
            other => panic!("no arrays: {other:?}"),
        }
    }

    #[test]
    fn what_has_no_rows_is_one_object() {
        let y = Tensor::from_slice("y", vec![2, 2], &[1i64, 2, 3, 4]).unwrap();
        let n = Tensor::from_slice("n", vec![], &[f64::INFINITY]).unwrap();
        let answer = Answer {
            outputs: vec![y, n],
            whole: true,
        };
        assert_eq!(jsonl(&answer), "{\"y\":[[1,2],[3,4]],\"n\":null}\n");
    }

    #[test]
    fn rows_become_objects() {
        let y = Tensor::from_slice("y", vec![2, 2], &[0.1f32, f32::NAN, 3.0, 4.5]).unwrap();
        let s = Tensor::from_strings("s", None, &["a\"", "b"]).unwrap();
        let j =
            Tensor::from_json_rows("j", &[serde_json::json!({"k": 1}), serde_json::json!(null)])
                .unwrap();
        assert_eq!(
            jsonl(&rows(&[y, s, j])),
            "{\"y\":[0.1,null],\"s\":\"a\\\"\",\"j\":{\"k\":1}}\n{\"y\":[3.0,4.5],\"s\":\"b\",\"j\":null}\n"
        );
    }

    #[test]
    fn what_was_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let a = Tensor::from_slice("a", vec![2, 2], &[1u16, 2, 3, 4]).unwrap();
        let b = Tensor::from_strings("b", None, &["x", "äöü"]).unwrap();
        let c = Tensor::from_slice("c", vec![1], &[half::f16::from_f32(0.5)]).unwrap();
        let path = folder.path().join("out.npz");
        Target::new(&path)
            .unwrap()
            .write(&rows(&[a.clone(), b.clone(), c.clone()]))
            .unwrap();
        assert_eq!(arrays(&path), [a.clone(), b, c]);
        let path = folder.path().join("out.npy");
        let target = Target::new(&path).unwrap();
        let e = target.write(&rows(&[a.clone(), a.clone()])).unwrap_err();
        assert!(format!("{e:#}").contains("use .npz"), "{e:#}");
        assert!(fs::read_dir(folder.path()).unwrap().count() == 1);
        target.write(&rows(std::slice::from_ref(&a))).unwrap();
        assert_eq!(arrays(&path)[0], a.renamed(""));
    }

    #[test]
    fn the_look_at_a_result_is_short() {
        let y = Tensor::from_vec("y", vec![5, 100], vec![0.25f32; 500]).unwrap();
        let text = summary(&[y]).unwrap();
        assert!(text.starts_with("y FP32 [5, 100]\n  0: [0.25,"), "{text}");
        assert!(text.contains("… 2 rows more") && text.len() < 500, "{text}");
    }
}
