//! Encodes messages to frames and decodes them. The second half of this page describes the protocol.
//!
//! ```text
//! client -> port       infer | cancel | hello | status | models | terminate | load | unload   (client.rs)
//! client -> port_out   hello
//! port     -> client   hello_ok | status_ok | models_ok | terminate_ok | load_ok | unload_ok | error
//! port_out -> client   welcome | result | part | end | error                                   (server.rs)
//! between the loops    chunk, part, credit, and the ventilator's orders to the sink            (inner.rs)
//! ```
//! `client.rs` has the messages of clients, `server.rs` those of servers. The writer and the reader of a message are in one
//! file, so that they cannot drift apart.
//!
//! A request is read in two steps, because the ventilator, one thread, reads those of all clients. It checks the header,
//! datatypes, counts and lengths (`header.rs`, `params.rs`, `bounded.rs`, over `msgpack.rs`). The worker that gets the rows
//! checks their values and reads the parameters (`chunk.rs`); an error there ends that request alone. Checking each BOOL
//! byte or offset of a large request in the ventilator would delay all clients.
//!
#![doc = include_str!("protocol.md")]

mod answer;
pub(crate) mod bounded;
#[cfg(feature = "server")]
pub(crate) mod chunk;
pub mod client;
mod header;
#[cfg(feature = "client")]
pub(crate) mod id;
#[cfg(feature = "server")]
pub(crate) mod inner;
mod load;
mod msgpack;
pub(crate) mod params;
#[cfg(test)]
#[cfg(feature = "client")]
mod protocol_tests;
#[cfg(feature = "server")]
pub(crate) mod result_writer;
pub mod server;
pub(crate) mod status;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensor::{Batch, Data, DataType, Tensor};

/// The protocol's version: the `v` of every header.
pub const VERSION: u64 = 1;

/// Most tensors in one message.
const MAX_TENSORS: usize = 1024;
/// Up to so many names are compared with each other, which is faster than hashing them.
const FEW_TENSORS: usize = 16;
/// Most dimensions of one tensor.
const MAX_RANK: usize = 64;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorHeader<'a> {
    /// The input's or output's name.
    #[serde(borrow)]
    pub name: std::borrow::Cow<'a, str>,
    /// The datatype's name.
    #[serde(borrow)]
    pub dtype: std::borrow::Cow<'a, str>,
    /// The dimensions, the row first.
    pub shape: Vec<u64>,
}

impl<'a> TensorHeader<'a> {
    /// Describes a tensor.
    pub fn of(tensor: &'a Tensor) -> TensorHeader<'a> {
        TensorHeader {
            name: tensor.name().into(),
            dtype: tensor.datatype().name().into(),
            shape: tensor.shape().iter().map(|&d| d as u64).collect(),
        }
    }

    fn dims(&self) -> Result<Vec<usize>> {
        if self.shape.len() > MAX_RANK {
            return Err(Error::invalid(format!(
                "tensor {:?}: {} dimensions, and {MAX_RANK} is the most",
                self.name,
                self.shape.len()
            )));
        }
        self.shape
            .iter()
            .map(|&d| {
                usize::try_from(d).map_err(|_| {
                    Error::invalid(format!(
                        "tensor {:?}: dimension {d} is too large",
                        self.name
                    ))
                })
            })
            .collect()
    }
}

/// Writes a header: a map with string keys.
fn write<T: Serialize>(header: &T) -> Bytes {
    let mut buffer = Vec::with_capacity(192);
    append(&mut buffer, header);
    buffer.into()
}

/// Appends a header.
#[expect(
    clippy::expect_used,
    reason = "what is written is our own, and of kinds that cannot fail"
)]
pub(crate) fn append<T: Serialize>(buffer: &mut Vec<u8>, header: &T) {
    let mut serializer = rmp_serde::Serializer::new(buffer).with_struct_map();
    header
        .serialize(&mut serializer)
        .expect("headers hold numbers, strings and maps of them, which msgpack always takes");
}

/// Appends a tensor's payload frames.
pub(crate) fn push_payload(frames: &mut Vec<Bytes>, tensor: &Tensor) {
    match tensor.data() {
        Data::Fixed(bytes) => frames.push(bytes.clone()),
        Data::Variable { offsets, values } => {
            frames.push(offsets.clone());
            frames.push(values.clone());
        }
    }
}

/// Takes one tensor's payload off the front of the frames.
pub(crate) fn take_payload(
    name: &str,
    datatype: DataType,
    frames: &mut impl Iterator<Item = Bytes>,
) -> Result<Data> {
    let mut next = || {
        frames.next().ok_or_else(|| {
            Error::invalid(format!(
                "tensor {name:?}: its payload frame is missing ({datatype} takes {})",
                datatype.frames()
            ))
        })
    };
    Ok(if datatype.size().is_some() {
        Data::Fixed(next()?)
    } else {
        Data::Variable {
            offsets: next()?,
            values: next()?,
        }
    })
}

/// Reads the tensors that headers describe off the frames, checking frame counts, lengths, shapes and names, but not yet
/// the values.
pub(crate) fn read_tensors(
    headers: &[TensorHeader<'_>],
    frames: impl ExactSizeIterator<Item = Bytes>,
) -> Result<Batch> {
    if let Some(name) = given_twice(headers) {
        return Err(Error::invalid(format!("tensor {name:?} is given twice")));
    }
    let got = frames.len();
    let mut frames = frames;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(headers.len());
    let mut expected = 0;
    for header in headers {
        let datatype = DataType::parse(&header.dtype)
            .map_err(|e| e.context(format_args!("tensor {:?}", header.name)))?;
        expected += datatype.frames();
        if expected > got {
            return Err(Error::invalid(format!(
                "tensor {:?}: its payload frame is missing: {} tensors need at least {expected} frames, got {got}",
                header.name,
                headers.len()
            )));
        }
        let data = take_payload(&header.name, datatype, &mut frames)?;
        tensors.push(Tensor::unchecked(
            Arc::<str>::from(&*header.name),
            datatype,
            header.dims()?,
            data,
        )?);
    }
    if expected != got {
        return Err(Error::invalid(format!(
            "{got} payload frames for {} tensors that take {expected}",
            headers.len()
        )));
    }
    Ok(Batch { tensors })
}

/// A name that is there more than once. Many names are hashed: comparing each with each other could take long.
fn given_twice<'a>(headers: &'a [TensorHeader<'_>]) -> Option<&'a str> {
    if headers.len() <= FEW_TENSORS {
        let mut rest = headers.iter().enumerate();
        let twice = rest.find(|(i, header)| headers[..*i].iter().any(|h| h.name == header.name));
        return twice.map(|(_, header)| &*header.name);
    }
    let mut seen = HashSet::with_capacity(headers.len());
    headers
        .iter()
        .map(|header| &*header.name)
        .find(|name| !seen.insert(*name))
}
