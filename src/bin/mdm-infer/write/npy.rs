//! Results as `.npy` and `.npz`, the files of NumPy.

use std::io::{Cursor, Seek, Write};

use anyhow::{Context, Result, bail, ensure};
use mdm::tensor::Data;
use mdm::{DataType, Tensor};
use npyz::npz::NpzWriter;
use npyz::zip::write::FileOptions;

use super::destination::Destination;

/// Digits that a number of rows may have: as NumPy does, a header leaves room for it to be filled in.
const ROWS_DIGITS: usize = 20;

/// One output that is written row by row.
pub struct NpyRows {
    /// What the header is to say, if it is known before the rows are.
    expected: Option<u64>,
    begun: Option<Begun>,
    rows: u64,
}

struct Begun {
    datatype: DataType,
    row_shape: Vec<usize>,
}

impl NpyRows {
    /// Of so many rows, if that is known.
    pub fn new(expected: Option<u64>) -> NpyRows {
        NpyRows {
            expected,
            begun: None,
            rows: 0,
        }
    }

    /// Writes the next rows.
    pub fn add(&mut self, to: &mut Destination, tensor: &Tensor) -> Result<()> {
        let [rows, row_shape @ ..] = tensor.shape() else {
            bail!("output {:?} has no rows", tensor.name());
        };
        match &self.begun {
            None => {
                let kind = kind(tensor)?;
                to.write_all(&header(kind, self.expected, row_shape))?;
                self.begun = Some(Begun {
                    datatype: tensor.datatype(),
                    row_shape: row_shape.to_vec(),
                });
            }
            Some(begun) => ensure!(
                begun.datatype == tensor.datatype() && begun.row_shape == row_shape,
                "output {:?}: row {} is {} {row_shape:?}, and those before it are {} {:?}: an array holds rows of one \
                 shape; use .jsonl",
                tensor.name(),
                self.rows,
                tensor.datatype(),
                begun.datatype,
                begun.row_shape
            ),
        }
        self.rows += *rows as u64;
        write_data(to, tensor)
    }

    /// All rows were written.
    pub fn finish(self, to: &mut Destination) -> Result<()> {
        let begun = self.begun.context("the model gave no outputs")?;
        if self.expected != Some(self.rows) {
            let kind = fixed_kind(begun.datatype).context("text is not written row by row")?;
            to.write_at_start(&header(kind, Some(self.rows), &begun.row_shape))?;
        }
        Ok(())
    }
}

/// Writes the arrays as `numpy.savez` does, not compressed.
pub fn write_archive(to: &mut Destination, outputs: &[Tensor]) -> Result<()> {
    // An archive's writer goes back to what it has written.
    if let Some(file) = to.file() {
        return write_zip(file, outputs);
    }
    let mut bytes = Cursor::new(Vec::new());
    write_zip(&mut bytes, outputs)?;
    Ok(to.write_all(bytes.get_ref())?)
}

fn write_zip(to: &mut (impl Write + Seek), outputs: &[Tensor]) -> Result<()> {
    let mut archive = NpzWriter::new(to);
    let zip = archive.zip_writer();
    for tensor in outputs {
        let name = match tensor.name() {
            "" => npyz::npz::file_name_from_index(0),
            name => npyz::npz::file_name_from_array_name(name),
        };
        // More than 4 GiB need another header.
        let options = FileOptions::default()
            .compression_method(npyz::zip::CompressionMethod::Stored)
            .large_file(tensor.payload_bytes() > u32::MAX as usize / 2);
        zip.start_file(name, options)?;
        write(&mut *zip, tensor)?;
    }
    zip.finish()?;
    Ok(())
}

/// Writes the format of `numpy.save`. BF16 has no such type and becomes FP32; strings are padded to the longest.
pub fn write(to: &mut impl Write, tensor: &Tensor) -> Result<()> {
    if tensor.datatype() == DataType::Bytes {
        return write_strings(to, tensor);
    }
    let kind = kind(tensor)?;
    to.write_all(&whole_header(kind, tensor.shape()))?;
    write_data(to, tensor)
}

/// NumPy's name of the elements.
fn kind(tensor: &Tensor) -> Result<&'static str> {
    fixed_kind(tensor.datatype()).with_context(|| {
        format!(
            "output {:?} is {}, which no array holds; use .jsonl",
            tensor.name(),
            tensor.datatype()
        )
    })
}

fn fixed_kind(datatype: DataType) -> Option<&'static str> {
    Some(match datatype {
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
        DataType::Bytes | DataType::Json => return None,
    })
}

fn write_data(to: &mut impl Write, tensor: &Tensor) -> Result<()> {
    match tensor.data() {
        Data::Fixed(_) if tensor.datatype() == DataType::Bf16 => {
            for value in tensor.to_vec::<half::bf16>()? {
                to.write_all(&value.to_f32().to_le_bytes())?;
            }
        }
        Data::Fixed(bytes) => to.write_all(bytes)?,
        Data::Variable { .. } => {}
    }
    Ok(())
}

fn write_strings(to: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let strings = tensor
        .strings()
        .with_context(|| format!("output {:?} is not UTF-8 text, and a file of NumPy holds no other; read it with the client", tensor.name()))?;
    let longest = strings.iter().map(|s| s.chars().count()).max().unwrap_or(0);
    // NumPy has no strings of length 0.
    let longest = longest.max(1);
    to.write_all(&whole_header(&format!("<U{longest}"), tensor.shape()))?;
    for string in strings {
        let padding = std::iter::repeat('\0');
        for character in string.chars().chain(padding).take(longest) {
            to.write_all(&(character as u32).to_le_bytes())?;
        }
    }
    Ok(())
}

fn whole_header(kind: &str, shape: &[usize]) -> Vec<u8> {
    match shape {
        [rows, row_shape @ ..] => header(kind, Some(*rows as u64), row_shape),
        [] => framed(kind, "()", 0),
    }
}

/// A header for so many rows. It has the same length for every number of them.
fn header(kind: &str, rows: Option<u64>, row_shape: &[usize]) -> Vec<u8> {
    let rows = rows.unwrap_or(0).to_string();
    let further: Vec<String> = row_shape.iter().map(usize::to_string).collect();
    let shape = match &further[..] {
        [] => format!("({rows},)"),
        further => format!("({rows}, {})", further.join(", ")),
    };
    framed(kind, &shape, ROWS_DIGITS - rows.len())
}

/// Version 1 of the format (2 where the shape is long), filled up so that the data begins at a multiple of 64.
fn framed(kind: &str, shape: &str, room: usize) -> Vec<u8> {
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    let start = |length: usize| -> Vec<u8> {
        let mut start = b"\x93NUMPY".to_vec();
        match u16::try_from(length) {
            Ok(length) => {
                start.extend([1, 0]);
                start.extend(length.to_le_bytes());
            }
            Err(_) => {
                start.extend([2, 0]);
                start.extend((length as u32).to_le_bytes());
            }
        }
        start
    };
    // The line feed at the end included.
    let least = text.len() + room + 1;
    let ahead = start(least).len();
    let length = (ahead + least).next_multiple_of(64) - ahead;
    let mut bytes = start(length);
    bytes.extend(text.as_bytes());
    bytes.resize(ahead + length - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_room_for_any_number_of_rows() {
        for shape in [&[][..], &[3], &[1, 2]] {
            let none = header("<f4", None, shape);
            for rows in [1, 12345, u64::MAX / 64] {
                let bytes = header("<f4", Some(rows), shape);
                assert_eq!(bytes.len(), none.len());
                assert_eq!(bytes.len() % 64, 0);
                let read = npyz::NpyHeader::from_reader(&bytes[..]).unwrap();
                assert_eq!(read.shape()[0], rows);
                assert_eq!(read.shape().len(), shape.len() + 1);
            }
        }
        let read = npyz::NpyHeader::from_reader(&whole_header("<f4", &[])[..]).unwrap();
        assert!(read.shape().is_empty());
    }
}
