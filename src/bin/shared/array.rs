//! The `.npy` format of NumPy: what a header says, and elements as tensors.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use mdm::tensor::Data;
use mdm::{DataType, Tensor};
use ndarray::{ArrayView, IxDyn, ShapeBuilder};
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, TypeStr};

/// What stands ahead of an array's data.
#[derive(Debug)]
pub struct Header {
    kind: Kind,
    pub shape: Vec<usize>,
    order: Order,
    /// The bytes of all of the data.
    pub data_bytes: usize,
}

impl Header {
    /// Reads a header; the data follows.
    pub fn read(reader: &mut impl Read) -> Result<Header> {
        let header = NpyHeader::from_reader(reader).context("not an .npy file")?;
        let shape = header.shape().iter().map(|&d| usize::try_from(d));
        let shape: Vec<usize> = shape.collect::<Result<_, _>>().context("too large")?;
        let DType::Plain(kind) = header.dtype() else {
            bail!("its elements are records, expected numbers, booleans or strings");
        };
        let kind = Kind::of(&kind)?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let data_bytes = elements
            .and_then(|n| n.checked_mul(kind.size()))
            .with_context(|| format!("shape {shape:?} has more elements than memory can hold"))?;
        Ok(Header {
            kind,
            shape,
            order: header.order(),
            data_bytes,
        })
    }

    /// The bytes of a row, where rows lie one after the other and have any.
    pub fn row_bytes(&self) -> Option<usize> {
        let rows = *self.shape.first()?;
        let in_order = self.order == Order::C || self.shape.len() == 1;
        let of_row = self.data_bytes.checked_div(rows)?;
        (in_order && of_row > 0).then_some(of_row)
    }

    /// Checks how many bytes of data there are.
    pub fn check_bytes(&self, there: u64) -> Result<()> {
        ensure!(
            there == self.data_bytes as u64,
            "shape {:?} takes {} bytes of data, the file has {there}: it is damaged or cut short",
            self.shape,
            self.data_bytes
        );
        Ok(())
    }

    /// So many rows, of which these are the bytes.
    pub fn rows(&self, rows: usize, bytes: Vec<u8>) -> Result<Tensor> {
        let mut shape = self.shape.clone();
        shape[0] = rows;
        self.kind.tensor("", shape, bytes)
    }
}

/// Reads one array of the `.npy` format.
pub fn array(name: &str, mut reader: impl Read) -> Result<Tensor> {
    let header = Header::read(&mut reader)?;
    data(name, &header, reader)
}

/// Reads all of an array's data.
pub fn data(name: &str, header: &Header, mut reader: impl Read) -> Result<Tensor> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    header.check_bytes(bytes.len() as u64)?;
    if header.order == Order::Fortran {
        bytes = by_rows(bytes, &header.shape, header.kind.size())?;
    }
    header.kind.tensor(name, header.shape.clone(), bytes)
}

/// What an array's elements are.
#[derive(Debug)]
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
