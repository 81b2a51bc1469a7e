//! Files of rows: `.npy`, `.npz`, `.jsonl`, `.txt`.
//!
//! What a line of `.jsonl` means depends on the model: `rows.rs`.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mdm::tensor::Data;
use mdm::{Batch, DataType, Tensor};
use ndarray::{ArrayView, IxDyn, ShapeBuilder};
use npyz::npz::NpzArchive;
use npyz::{DType, Endianness, NpyFile, Order, TypeChar, TypeStr};

use crate::rows::Lines;

/// What a file's name says that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One array.
    Npy,
    /// Named arrays.
    Npz,
    /// A JSON document a line.
    Jsonl,
    /// A string a line.
    Txt,
}

impl Format {
    /// The format that a file's name ends with.
    pub fn of(path: &Path) -> Result<Format> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Format::Npy),
            Some("npz") => Ok(Format::Npz),
            Some("jsonl") => Ok(Format::Jsonl),
            Some("txt") => Ok(Format::Txt),
            _ => bail!(
                "{}: the name does not end in .npy, .npz, .jsonl or .txt, so the format is not known",
                path.display()
            ),
        }
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum Contents {
    /// One input without a name, or for `.npz` the inputs of its arrays' names.
    Inputs(Batch),
    /// JSON documents.
    Lines(Lines),
}

/// Reads a file's rows.
pub fn read(path: &Path) -> Result<Contents> {
    let format = Format::of(path)?;
    let place = || path.display().to_string();
    let batch = match format {
        Format::Npy => {
            let file = File::open(path).with_context(place)?;
            let tensor = array("", BufReader::new(file)).with_context(place)?;
            Batch {
                tensors: vec![tensor],
            }
        }
        Format::Npz => archive(path).with_context(place)?,
        Format::Jsonl => {
            let text = fs::read_to_string(path).with_context(place)?;
            let mut rows = Vec::new();
            for (index, line) in text.lines().enumerate() {
                if !line.trim().is_empty() {
                    let row: serde_json::Value = serde_json::from_str(line)
                        .with_context(|| format!("{}, line {}: not JSON", place(), index + 1))?;
                    rows.push((index + 1, row));
                }
            }
            ensure!(!rows.is_empty(), "{}: there are no rows in it", place());
            return Ok(Contents::Lines(Lines {
                file: place(),
                rows,
            }));
        }
        Format::Txt => {
            let text = fs::read(path).with_context(place)?;
            // Every line ends with a line feed; the last one may go without.
            let body = text.strip_suffix(b"\n").unwrap_or(&text);
            let mut lines: Vec<&[u8]> = Vec::new();
            if !text.is_empty() {
                let cut = |line| <[u8]>::strip_suffix(line, b"\r").unwrap_or(line);
                lines.extend(body.split(|b| *b == b'\n').map(cut));
            }
            Batch {
                tensors: vec![Tensor::from_strings("", None, &lines)?],
            }
        }
    };
    ensure!(
        batch.tensors.iter().all(|t| t.rows() != Some(0)),
        "{}: there are no rows in it",
        path.display()
    );
    Ok(Contents::Inputs(batch))
}

fn archive(path: &Path) -> Result<Batch> {
    let mut archive = NpzArchive::open(path).context("not an .npz file")?;
    let zip = archive.zip_archive();
    let mut batch = Batch::default();
    // By position: the inputs keep the order in which they were saved.
    for index in 0..zip.len() {
        let file = zip.by_index(index).context("not an .npz file")?;
        let entry = file.name().to_owned();
        if let Some(name) = npyz::npz::array_name_from_file_name(&entry) {
            let tensor = array(name, file).with_context(|| format!("array {name:?}"))?;
            batch.tensors.push(tensor);
        }
    }
    ensure!(!batch.tensors.is_empty(), "there is no array in it");
    Ok(batch)
}

/// Reads one array of the `.npy` format.
fn array(name: &str, reader: impl Read) -> Result<Tensor> {
    let file = NpyFile::new(reader).context("not an .npy file")?;
    let shape = file.shape().iter().map(|&d| usize::try_from(d));
    let shape: Vec<usize> = shape.collect::<Result<_, _>>().context("too large")?;
    let order = file.order();
    let DType::Plain(kind) = file.dtype() else {
        bail!("its elements are records, expected numbers, booleans or strings");
    };
    let kind = Kind::of(&kind)?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let expected = elements
        .and_then(|n| n.checked_mul(kind.size()))
        .with_context(|| format!("shape {shape:?} has more elements than memory can hold"))?;
    let mut bytes = Vec::new();
    file.into_inner().read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() == expected,
        "shape {shape:?} takes {expected} bytes of data, the file has {}: it is damaged or cut short",
        bytes.len()
    );
    if order == Order::Fortran {
        bytes = by_rows(bytes, &shape, kind.size())?;
    }
    kind.tensor(name, shape, bytes)
}

/// What an array's elements are.
enum Kind {
    /// Numbers or booleans; the second value is whether their bytes are the other way round.
    Fixed(DataType, bool),
    /// Byte strings of this length, filled up with zeros.
    Strings(usize),
    /// Strings of so many characters of four bytes; whether their bytes are the other way round.
    Unicode(usize, bool),
}

impl Kind {
    fn of(kind: &TypeStr) -> Result<Kind> {
        let swapped = kind.endianness() == Endianness::Big;
        let size = kind.size_field();
        let datatype = match (kind.type_char(), size) {
            (TypeChar::Bool, 1) => DataType::Bool,
            (TypeChar::Int, 1) => DataType::Int8,
            (TypeChar::Int, 2) => DataType::Int16,
            (TypeChar::Int, 4) => DataType::Int32,
            (TypeChar::Int, 8) => DataType::Int64,
            (TypeChar::Uint, 1) => DataType::Uint8,
            (TypeChar::Uint, 2) => DataType::Uint16,
            (TypeChar::Uint, 4) => DataType::Uint32,
            (TypeChar::Uint, 8) => DataType::Uint64,
            (TypeChar::Float, 2) => DataType::Fp16,
            (TypeChar::Float, 4) => DataType::Fp32,
            (TypeChar::Float, 8) => DataType::Fp64,
            (TypeChar::ByteStr, _) => return Ok(Kind::Strings(usize::try_from(size)?)),
            (TypeChar::UnicodeStr, _) => {
                return Ok(Kind::Unicode(usize::try_from(size)?, swapped));
            }
            (TypeChar::Object, _) => bail!(
                "its elements are Python objects, which are not read (that could run any code); save numbers, or a list of strings as np.array(strings, dtype=str)"
            ),
            _ => bail!(
                "its elements are of type {kind}, expected booleans, integers, floats of 2 to 8 bytes, or strings"
            ),
        };
        Ok(Kind::Fixed(datatype, swapped))
    }

    fn size(&self) -> usize {
        match self {
            Kind::Fixed(datatype, _) => datatype.size().unwrap_or(0),
            Kind::Strings(length) => *length,
            Kind::Unicode(length, _) => length * 4,
        }
    }

    fn tensor(&self, name: &str, shape: Vec<usize>, mut bytes: Vec<u8>) -> Result<Tensor> {
        let elements = shape.iter().product();
        match self {
            Kind::Fixed(datatype, swapped) => {
                if *swapped {
                    bytes
                        .chunks_exact_mut(self.size())
                        .for_each(<[u8]>::reverse);
                }
                let data = Data::Fixed(bytes.into());
                Ok(Tensor::new(name, *datatype, shape, data)?)
            }
            Kind::Strings(size) => {
                let strings: Vec<&[u8]> = (0..elements)
                    .map(|i| {
                        let string = &bytes[i * size..(i + 1) * size];
                        let end = string.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
                        &string[..end]
                    })
                    .collect();
                Ok(Tensor::from_strings(name, Some(shape), &strings)?)
            }
            Kind::Unicode(..) => {
                let size = self.size();
                let strings = (0..elements)
                    .map(|i| self.text(&bytes[i * size..(i + 1) * size]))
                    .collect::<Result<Vec<String>>>()?;
                Ok(Tensor::from_strings(name, Some(shape), &strings)?)
            }
        }
    }

    fn text(&self, units: &[u8]) -> Result<String> {
        let swapped = matches!(self, Kind::Unicode(_, true));
        let mut text = String::new();
        for unit in units.chunks_exact(4) {
            let bytes = [unit[0], unit[1], unit[2], unit[3]];
            let point = if swapped {
                u32::from_be_bytes(bytes)
            } else {
                u32::from_le_bytes(bytes)
            };
            text.push(
                char::from_u32(point).with_context(|| format!("{point:#x} is no character"))?,
            );
        }
        text.truncate(text.trim_end_matches('\0').len());
        Ok(text)
    }
}

/// Columns one after the other become rows one after the other.
fn by_rows(bytes: Vec<u8>, shape: &[usize], size: usize) -> Result<Vec<u8>> {
    if size == 0 {
        return Ok(bytes);
    }
    // Each element is a row of `size` bytes, which lie together: the fastest of the dimensions in the file.
    let mut dims = vec![size];
    dims.extend(shape);
    let mut view = ArrayView::from_shape(IxDyn(&dims).f(), &bytes)?;
    let axes: Vec<usize> = (1..dims.len()).chain([0]).collect();
    view = view.permuted_axes(IxDyn(&axes));
    Ok(view.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, order: Order, shape: &str, data: &[u8]) -> Vec<u8> {
        let fortran = if order == Order::Fortran {
            "True"
        } else {
            "False"
        };
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    fn read_npy(descr: &str, order: Order, shape: &str, data: &[u8]) -> Result<Tensor> {
        array("x", &npy(descr, order, shape, data)[..])
    }

    #[test]
    fn numbers_of_either_byte_order_and_either_layout() {
        let le: Vec<u8> = (1..=6i16).flat_map(i16::to_le_bytes).collect();
        let be: Vec<u8> = (1..=6i16).flat_map(i16::to_be_bytes).collect();
        let t = read_npy("<i2", Order::C, "(2, 3)", &le).unwrap();
        assert_eq!((t.name(), t.shape()), ("x", &[2usize, 3][..]));
        assert_eq!(t.to_vec::<i16>().unwrap(), [1, 2, 3, 4, 5, 6]);
        let t = read_npy(">i2", Order::C, "(6,)", &be).unwrap();
        assert_eq!(t.to_vec::<i16>().unwrap(), [1, 2, 3, 4, 5, 6]);
        // Columns (1, 2), (3, 4), (5, 6).
        let t = read_npy("<i2", Order::Fortran, "(2, 3)", &le).unwrap();
        assert_eq!(t.to_vec::<i16>().unwrap(), [1, 3, 5, 2, 4, 6]);
        let t = read_npy(">i2", Order::Fortran, "(1, 2, 3)", &be).unwrap();
        assert_eq!(t.to_vec::<i16>().unwrap(), [1, 3, 5, 2, 4, 6]);
        let t = read_npy("|b1", Order::C, "(2,)", &[1, 0]).unwrap();
        assert_eq!(t.to_vec::<bool>().unwrap(), [true, false]);
        assert!(read_npy("<f2", Order::C, "(1,)", &[0, 60]).is_ok());
    }

    #[test]
    fn strings_lose_their_filling() {
        let t = read_npy("|S3", Order::C, "(3,)", b"ab\0abc\0\0\0").unwrap();
        assert_eq!(t.strings().unwrap(), ["ab", "abc", ""]);
        let points: Vec<u8> = ['ä', '\0', '中', '文']
            .iter()
            .flat_map(|c| (*c as u32).to_le_bytes())
            .collect();
        let t = read_npy("<U2", Order::C, "(2,)", &points).unwrap();
        assert_eq!(t.strings().unwrap(), ["ä", "中文"]);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let why = |e: anyhow::Error| format!("{e:#}");
        assert!(why(array("x", &b"PK\x03\x04"[..]).unwrap_err()).contains("not an .npy"));
        let e = read_npy("<f4", Order::C, "(2, 2)", &[0; 15]).unwrap_err();
        assert!(why(e).contains("16 bytes of data, the file has 15"));
        let e = read_npy("|O", Order::C, "(1,)", &[0; 8]).unwrap_err();
        assert!(why(e).contains("Python objects"));
        let e = read_npy("<c16", Order::C, "(1,)", &[0; 16]).unwrap_err();
        assert!(why(e).contains("<c16"));
    }
}
