//! Reads the headers of clients' messages, field by field and within bounds.
//!
//! By hand and not by serde: a derived reader takes arrays for maps and numbers for keys, does not name the field that is
//! wrong, and builds values that are then refused. Here each byte is read once and little is built.

use std::borrow::Cow;

use bytes::Bytes;

use super::bounded::start_of;
use super::client::{MAX_HEADER_BYTES, Malformed};
use super::msgpack::{Item, ReadResult, Reader};
use super::params::RawParams;
use super::{MAX_RANK, MAX_TENSORS, TensorHeader, VERSION};
use crate::error::Error;
use crate::message::RequestId;

/// A header's fields: every field that any type of message may have.
#[derive(Default)]
pub(super) struct Header<'a> {
    pub(super) v: Option<u64>,
    pub(super) kind: Option<&'a str>,
    pub(super) id: Option<u64>,
    pub(super) model: Option<&'a str>,
    pub(super) params: Option<RawParams>,
    pub(super) inputs: Option<Vec<TensorHeader<'a>>>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) priority: Option<&'a str>,
    pub(super) on_bad_row: Option<&'a str>,
    pub(super) stream: Option<bool>,
    pub(super) mode: Option<&'a str>,
}

/// Reads one field's value, names it in the error, and refuses a second one.
pub(super) fn field<'a, T>(
    place: &mut Option<T>,
    name: &str,
    source: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> ReadResult<T>,
) -> ReadResult<()> {
    let value = if source.skip_nil() {
        None
    } else {
        Some(read(source).map_err(|e| format!("`{name}`: {e}"))?)
    };
    if place.is_some() {
        return Err(format!("`{name}` is given twice"));
    }
    *place = value;
    Ok(())
}

/// Reads a header that fills all the bytes, or says what is wrong with it.
pub(super) fn read_header(bytes: &Bytes) -> ReadResult<Header<'_>> {
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(format!(
            "it has {} bytes, and {MAX_HEADER_BYTES} is the most",
            bytes.len()
        ));
    }
    let source = &mut Reader::new(bytes);
    let mut header = Header::default();
    for _ in 0..source.map()? {
        let key = source.text().map_err(|e| format!("a key: {e}"))?;
        match key {
            "v" => field(&mut header.v, key, source, Reader::unsigned)?,
            "type" => field(&mut header.kind, key, source, Reader::text)?,
            "id" => field(&mut header.id, key, source, Reader::unsigned)?,
            "model" => field(&mut header.model, key, source, Reader::text)?,
            "params" => field(&mut header.params, key, source, |source| {
                RawParams::read(source, bytes)
            })?,
            "inputs" => field(&mut header.inputs, key, source, |source| {
                tensors(source, MAX_TENSORS)
            })?,
            "timeout_ms" => field(&mut header.timeout_ms, key, source, Reader::unsigned)?,
            "priority" => field(&mut header.priority, key, source, Reader::text)?,
            "on_bad_row" => field(&mut header.on_bad_row, key, source, Reader::text)?,
            "stream" => field(&mut header.stream, key, source, Reader::boolean)?,
            "mode" => field(&mut header.mode, key, source, Reader::text)?,
            _ => source.skip()?,
        }
    }
    source.check_end()?;
    Ok(header)
}

/// Reads the descriptions of at most `most` tensors.
pub(super) fn tensors<'a>(
    source: &mut Reader<'a>,
    most: usize,
) -> ReadResult<Vec<TensorHeader<'a>>> {
    // Not sized by what the header promises.
    let mut tensors = Vec::new();
    for _ in 0..source.array()? {
        if tensors.len() == most {
            return Err(format!("more than {most} tensors, which is the most"));
        }
        tensors.push(tensor(source)?);
    }
    Ok(tensors)
}

fn tensor<'a>(source: &mut Reader<'a>) -> ReadResult<TensorHeader<'a>> {
    let (mut name, mut dtype, mut shape) = (None, None, None);
    for _ in 0..source.map()? {
        match source.text()? {
            key @ "name" => once(&mut name, key, source.text())?,
            key @ "dtype" => once(&mut dtype, key, source.text())?,
            key @ "shape" => once(&mut shape, key, dimensions(source))?,
            _ => source.skip()?,
        }
    }
    let missing = |name: &str| format!("missing field `{name}`");
    let name = name.ok_or_else(|| missing("name"))?;
    let in_tensor = |e: String| format!("tensor {}: {e}", start_of(name));
    Ok(TensorHeader {
        name: Cow::Borrowed(name),
        dtype: Cow::Borrowed(dtype.ok_or_else(|| missing("dtype"))?),
        shape: shape.ok_or_else(|| missing("shape"))?.map_err(in_tensor)?,
    })
}

pub(super) fn once<T>(place: &mut Option<T>, name: &str, value: ReadResult<T>) -> ReadResult<()> {
    let value = value.map_err(|e| format!("`{name}`: {e}"))?;
    if place.replace(value).is_some() {
        return Err(format!("`{name}` is given twice"));
    }
    Ok(())
}

/// A shape, or the error for one of too many dimensions, which is reported once the tensor's name is known.
fn dimensions(source: &mut Reader<'_>) -> ReadResult<ReadResult<Vec<u64>>> {
    let rank = source.array()?;
    if rank as usize > MAX_RANK {
        source.skip_inside(Item::Array(rank))?;
        return Ok(Err(format!(
            "{rank} dimensions, and {MAX_RANK} is the most"
        )));
    }
    Ok(Ok((0..rank)
        .map(|_| source.unsigned())
        .collect::<ReadResult<_>>()?))
}

/// What is needed to answer a header that the strict reading refused, as far as it can be read.
#[derive(Default)]
struct Loose<'a> {
    v: Option<Scalar<'a>>,
    kind: Option<Scalar<'a>>,
    id: Option<Scalar<'a>>,
}

/// A value of which only numbers and strings are of interest.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Number(u64),
    Text(&'a str),
    Other,
}

impl<'a> Scalar<'a> {
    fn read(source: &mut Reader<'a>) -> ReadResult<Scalar<'a>> {
        let item = source.item()?;
        source.skip_inside(item)?;
        Ok(match item {
            Item::Unsigned(number) => Scalar::Number(number),
            Item::Text(bytes) => std::str::from_utf8(bytes).map_or(Scalar::Other, Scalar::Text),
            _ => Scalar::Other,
        })
    }
}

impl<'a> Loose<'a> {
    /// # Errors
    /// What comes behind cannot be read.
    fn read(&mut self, source: &mut Reader<'a>) -> ReadResult<()> {
        for _ in 0..source.map()? {
            if self.v.is_some() && self.kind.is_some() && self.id.is_some() {
                break;
            }
            let place = match Scalar::read(source)? {
                Scalar::Text("v") => &mut self.v,
                Scalar::Text("type") => &mut self.kind,
                Scalar::Text("id") => &mut self.id,
                _ => {
                    source.skip()?;
                    continue;
                }
            };
            *place = Some(Scalar::read(source)?);
        }
        Ok(())
    }
}

/// Reads what is needed to answer a header that the strict reading refused.
pub(super) fn read_loosely(header: &[u8], cause: &str) -> Malformed {
    let mut loose = Loose::default();
    let start = &header[..header.len().min(MAX_HEADER_BYTES)];
    // An error ends the reading; the fields that were read before it count.
    let complete = loose.read(&mut Reader::new(start)).is_ok();
    let Some(Scalar::Number(id)) = loose.id else {
        return Malformed {
            id: None,
            infer: false,
            error: Error::invalid(format!(
                "the header is not a message of this protocol: {cause}"
            )),
        };
    };
    let infer = matches!(loose.kind, Some(Scalar::Text("infer")));
    let error = match (loose.v, loose.kind) {
        (Some(Scalar::Number(v)), _) if v != VERSION => wrong_version(v),
        (Some(Scalar::Number(_)), Some(Scalar::Text(_))) => {
            Error::invalid(format!("the header cannot be read: {cause}"))
        }
        (Some(Scalar::Number(_)), kind) if complete || kind.is_some() => {
            Error::invalid("the header's `type` is missing or not a string")
        }
        (v, _) if complete || v.is_some_and(|v| !matches!(v, Scalar::Number(_))) => {
            Error::invalid("the header's `v` (protocol version) is missing or not a number")
        }
        _ => Error::invalid(format!("the header cannot be read: {cause}")),
    };
    Malformed {
        id: Some(RequestId(id)),
        infer,
        error,
    }
}

pub(super) fn wrong_version(v: u64) -> Error {
    Error::invalid(format!(
        "protocol version {v} is not spoken here; this server speaks {VERSION}"
    ))
}
