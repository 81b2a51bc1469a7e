//! The fields of protobuf messages, read where they lie and written in front of bytes that are not copied.
//!
//! Inference is read and written with this instead of generated types: those copy tensors, and a few bytes that say "an
//! empty list" a million times become a hundred times as many.

use bytes::{BufMut, Bytes};

use crate::error::{Error, Result};

/// A field's value, by how it travels.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    /// Text, bytes, a message, or a packed list.
    Bytes(Bytes),
}

impl Value {
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no bytes.
    pub(super) fn bytes(self, what: &str) -> Result<Bytes> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(Error::invalid(format!("{what}: {other:?} in its place"))),
        }
    }

    /// Text of at most so many bytes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no text, and for more.
    pub(super) fn text(self, what: &str, most: usize) -> Result<String> {
        let bytes = self.bytes(what)?;
        if bytes.len() > most {
            return Err(Error::invalid(format!("{what} has more than {most} bytes")));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::invalid(format!("{what} is not UTF-8"))),
        }
    }
}

/// The fields of a message, one after the other.
pub(super) struct Fields(Bytes);

impl Fields {
    pub(super) fn of(message: Bytes) -> Fields {
        Fields(message)
    }

    /// The next field's number and value.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for bytes that are no message.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| broken("a field's number"))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.array()?),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                if length > self.0.len() {
                    return Err(broken("a field that is longer than its message"));
                }
                Value::Bytes(self.0.split_to(length))
            }
            5 => Value::Fixed32(self.array()?),
            _ => return Err(broken("a field of no known kind")),
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut rest = &self.0[..];
        let before = rest.len();
        let value = varint(&mut rest)?;
        let read = before - rest.len();
        // As `advance`, which is a trait's.
        drop(self.0.split_to(read));
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some(array) = self.0.first_chunk::<N>().copied() else {
            return Err(broken("a number that is cut off"));
        };
        drop(self.0.split_to(N));
        Ok(array)
    }
}

/// A whole number off the front of some bytes.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is cut off, or has more than 64 bits.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else {
            return Err(broken("a number that is cut off"));
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(broken("a number of more than 64 bits"))
}

fn broken(what: &str) -> Error {
    Error::invalid(format!("the message is no protobuf: {what}"))
}

/// The bytes of gRPC's prefix: whether the message is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;
/// Room for the prefix, and for the head of a field that the message is wrapped in.
const SPARE_BYTES: usize = 16;
/// Longer bytes are kept as they are, shorter ones copied: a copy is cheaper than a piece more.
const KEPT_BYTES: usize = 16 * 1024;

/// A message as it is written: its own bytes, and bytes of others between them that are not copied.
pub(super) struct Writer {
    /// Pieces that are done; the first has room for the prefix.
    done: Vec<Bytes>,
    open: Vec<u8>,
    /// Its first piece, if that is done.
    first: Option<Vec<u8>>,
    length: usize,
}

impl Writer {
    pub(super) fn new() -> Writer {
        let mut open = Vec::with_capacity(512);
        open.resize(SPARE_BYTES, 0);
        Writer {
            done: Vec::new(),
            open,
            first: None,
            length: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
        self.length += bytes.len();
    }

    fn put_varint(&mut self, value: u64) {
        let before = self.open.len();
        put_varint(&mut self.open, value);
        self.length += self.open.len() - before;
    }

    fn head(&mut self, number: u32, kind: u32) {
        self.put_varint(u64::from(number << 3 | kind));
    }

    /// A field of text, a message or a packed list; nothing if it is empty, as the protocol's default is.
    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.listed_bytes(number, bytes);
        }
    }

    /// An entry of a list of such.
    pub(super) fn listed_bytes(&mut self, number: u32, bytes: &[u8]) {
        self.head(number, 2);
        self.put_varint(bytes.len() as u64);
        self.put(bytes);
    }

    /// A field of bytes that come in pieces, which are not copied where they are long.
    pub(super) fn pieces(&mut self, number: u32, pieces: Vec<Bytes>) {
        self.head(number, 2);
        let length: usize = pieces.iter().map(Bytes::len).sum();
        self.put_varint(length as u64);
        for piece in pieces {
            if piece.len() < KEPT_BYTES {
                self.put(&piece);
                continue;
            }
            let before = std::mem::take(&mut self.open);
            match self.first {
                None => self.first = Some(before),
                Some(_) if before.is_empty() => {}
                Some(_) => self.done.push(before.into()),
            }
            self.length += piece.len();
            self.done.push(piece);
        }
    }

    /// The message with gRPC's prefix, and as field `wrapped_in` of another one if that is given.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for one that is longer than protobuf's messages may be.
    pub(super) fn finish(mut self, wrapped_in: Option<u32>) -> Result<Vec<Bytes>> {
        let mut head = Vec::with_capacity(SPARE_BYTES);
        if let Some(number) = wrapped_in {
            put_varint(&mut head, u64::from(number << 3 | 2));
            put_varint(&mut head, self.length as u64);
        }
        let length = i32::try_from(self.length + head.len()).map_err(|_| {
            Error::exhausted(format!(
                "the answer has {} bytes, more than protobuf's messages may have; ask for fewer rows, or for parts",
                self.length
            ))
        })?;
        let mut prefix = [0; PREFIX_BYTES];
        prefix[1..].copy_from_slice(&length.to_be_bytes());
        let mut first = match self.first.take() {
            None => std::mem::take(&mut self.open),
            Some(first) => first,
        };
        let start = SPARE_BYTES - PREFIX_BYTES - head.len();
        first[start..start + PREFIX_BYTES].copy_from_slice(&prefix);
        first[start + PREFIX_BYTES..SPARE_BYTES].copy_from_slice(&head);
        let mut pieces = Vec::with_capacity(self.done.len() + 2);
        pieces.push(Bytes::from(first).slice(start..));
        pieces.append(&mut self.done);
        if !self.open.is_empty() {
            pieces.push(self.open.into());
        }
        Ok(pieces)
    }
}

/// Writes a whole number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages::{
        InferTensorContents, ModelInferResponse, ModelStreamInferResponse,
    };
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written() {
        let contents = InferTensorContents {
            int_contents: vec![1, -1],
            fp32_contents: vec![1.5],
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
            ..InferTensorContents::default()
        };
        let mut fields = Fields::of(contents.encode_to_vec().into());
        let (number, value) = fields.next().unwrap().unwrap();
        let packed = value.bytes("ints").unwrap();
        let mut rest = &packed[..];
        assert_eq!((number, varint(&mut rest).unwrap()), (2, 1));
        assert_eq!(varint(&mut rest).unwrap() as i64, -1);
        let floats = Value::Bytes(Bytes::from_static(&[0, 0, 0xc0, 0x3f]));
        assert_eq!(fields.next().unwrap(), Some((6, floats)));
        let text = Value::Bytes(Bytes::from_static(b"ab"));
        assert_eq!(fields.next().unwrap(), Some((8, text)));
        assert_eq!(
            fields.next().unwrap(),
            Some((8, Value::Bytes(Bytes::new())))
        );
        assert_eq!(fields.next().unwrap(), None);
    }

    #[test]
    fn bytes_that_are_no_message_are_told_and_never_read_beyond() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x08",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0d\0\0\0",
            b"\x09\0",
            b"\x0b",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\x01\0",
        ] {
            let mut fields = Fields::of(Bytes::from_static(bytes));
            let error = fields.next().unwrap_err();
            assert!(
                error.message().contains("no protobuf"),
                "{bytes:?}: {error}"
            );
        }
    }

    #[test]
    fn a_long_piece_is_not_copied_and_the_whole_reads_back() {
        let long = Bytes::from(vec![7; KEPT_BYTES]);
        let short = Bytes::from_static(b"short");
        for wrapped in [None, Some(2)] {
            let mut writer = Writer::new();
            writer.bytes(1, b"m");
            writer.bytes(3, b"");
            writer.pieces(6, vec![long.clone(), short.clone(), long.clone()]);
            writer.pieces(6, vec![]);
            let pieces = writer.finish(wrapped).unwrap();
            assert!(pieces.iter().any(|piece| piece.as_ptr() == long.as_ptr()));
            let all = pieces.concat();
            let (prefix, message) = all.split_at(PREFIX_BYTES);
            assert_eq!(prefix[0], 0);
            assert_eq!(prefix[1..], (message.len() as u32).to_be_bytes());
            let response = match wrapped {
                None => ModelInferResponse::decode(message).unwrap(),
                Some(_) => {
                    let response = ModelStreamInferResponse::decode(message).unwrap();
                    response.infer_response.unwrap()
                }
            };
            assert_eq!(response.model_name, "m");
            let raw = &response.raw_output_contents;
            assert_eq!(raw.len(), 2);
            assert_eq!(raw[0], [&long[..], &short[..], &long[..]].concat());
            assert!(raw[1].is_empty());
        }
    }
}
