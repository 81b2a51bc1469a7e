//! Frames <-> messages: the only user of rmp-serde.
//!
//! A message is `[header][payload frame]*`, the header a msgpack map with string keys.
//!
//! ```text
//! client -> port       infer | cancel | hello | status | models | terminate | load | unload   (client.rs)
//! client -> port_out   hello
//! port     -> client   hello_ok | status_ok | models_ok | terminate_ok | load_ok | unload_ok | error
//! port_out -> client   welcome | result | part | end | error                                   (server.rs)
//! inside               chunk, part, credit, and the ventilator's orders to the sink            (inner.rs)
//! ```
//! `models` lists what is loaded. With a `model` or `params` it asks for one: `models_ok` then describes the model that
//! an infer with these would get, read from its file if it is not loaded, and never loaded anew.
//!
//! `stream: true` has parts come as they finish, and then the end. A model that is served whole has no rows to send in
//! parts: it answers a stream with one `result`.
//!
//! # Sessions
//!
//! A session is a DEALER at `port` and one at `port_out` (ZMTP 3.0 or 3.1, mechanism NULL), both with the same routing id: 16
//! random bytes, the first not 0. It says `hello` on both and has the answers before its first infer. A second connection
//! that claims an id in use is closed. A connection that ends ends the session: the complete messages that had come are
//! heard, the other connection is closed, and what is open is cancelled.
//!
//! Six seconds of silence end a connection; bytes are no silence, in either direction, however slowly they move. The server sends PINGs, of
//! time to live 0, to peers that announce 3.1 and to those that have sent a PING with a time to live. It answers every
//! PING. A message beyond `max_request_bytes` and 64 KiB, or of more than 16,384 frames, ends its connection; `port_out`
//! takes messages of up to 4 KiB. A client that lets more than 256 KiB of answers wait on `port` is not heard until it reads.
//!
//! # Two steps
//!
//! `client.rs` is what clients say, `server.rs` what they are told; both ends of each direction are in one file,
//! so that the writer and the reader of a frame cannot drift apart.
//!
//! What a client says is read in two steps, for the thread that reads it has all clients to serve. The front looks at the
//! header, at datatypes, counts and lengths (`header.rs`, `params.rs`, `bounded.rs`, over `msgpack.rs`); the worker that
//! gets the rows looks at their values and reads the parameters (`chunk.rs`), and what is wrong there ends that request
//! alone.

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
#[cfg(feature = "server")]
mod members;
mod msgpack;
pub(crate) mod params;
#[cfg(feature = "server")]
pub(crate) mod rows;
pub mod server;

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
/// So many names are faster compared than hashed.
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

/// One msgpack document, as JSON elements hold it.
pub(crate) fn to_document<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|e| Error::invalid(format!("not a document: {e}")))
}

/// Reads one msgpack document.
pub(crate) fn from_document<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| Error::invalid(format!("not a document: {e}")))
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

/// A name that is there more than once. A thousand long names are not held against each other one by one.
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
