//! What travels: requests, chunks, parts and answers, and the numbers that name them. What is serialized here is the head
//! of a message between two loops; rows travel beside it (`wire/inner.rs`).

mod failed;
#[cfg(feature = "server")]
mod inner;
#[cfg(feature = "server")]
mod members;

use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use failed::{FailedRows, OnBadRow};
#[cfg(feature = "server")]
pub(crate) use inner::{Chunk, Credit, Handed, Outcome, Part, Ran, Rows};

use crate::tensor::Batch;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The client's own number for a request; ascends within a session.
    RequestId(u64)
);
number!(
    /// The server's own number for a request; never used twice.
    Serial(u64)
);
number!(
    /// One of the workers, counted from 0.
    WorkerId(u32)
);
number!(
    /// The server's own number for a chunk that was given out; never used twice.
    ChunkId(u64)
);
number!(
    /// A model that was read; a changed file gets another number.
    ModelId(u64)
);
number!(
    /// Under which model's name something is counted; 0 is for what reached no model. A changed file keeps its name's.
    ModelLabel(u32)
);

/// By what protocol a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// A session of this crate's protocol, over `port` and `port_out`.
    Zmq,
    /// A door for HTTP.
    Http,
    /// A door for gRPC.
    Grpc,
    /// A door that the program around the server uses for itself.
    Inside,
}

impl Protocol {
    /// Every protocol, in the order of the declaration.
    pub const ALL: [Protocol; 4] = [
        Protocol::Zmq,
        Protocol::Http,
        Protocol::Grpc,
        Protocol::Inside,
    ];

    /// The name that metrics give it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Zmq => "zmq",
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Inside => "inside",
        }
    }
}

/// The second byte of an address that is made here, of which the first is 0: of a connection without a session.
#[cfg(feature = "server")]
const OF_NO_SESSION: u8 = 1;
/// Of a caller of a door.
#[cfg(feature = "server")]
const OF_CALLER: u8 = 2;

/// Where answers to a session go: its 16-byte routing id. A secret, so it prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplyTo(pub [u8; 16]);

impl ReplyTo {
    /// Of a connection whose routing id is none of this protocol's: it may ask questions, and no result can reach it.
    #[cfg(feature = "server")]
    pub(crate) fn without_session(number: u64) -> ReplyTo {
        ReplyTo::inside(OF_NO_SESSION, 0, number)
    }

    /// Of a caller of a door in this process.
    #[cfg(feature = "server")]
    pub(crate) fn of_caller(protocol: Protocol, door: u32, caller: u64) -> ReplyTo {
        let mut reply = ReplyTo::inside(OF_CALLER, door, caller);
        reply.0[2] = protocol as u8;
        reply
    }

    /// Routing ids never begin with 0, so that these are nobody else's.
    #[cfg(feature = "server")]
    fn inside(kind: u8, door: u32, number: u64) -> ReplyTo {
        let mut id = [0; 16];
        id[1] = kind;
        id[4..8].copy_from_slice(&door.to_le_bytes());
        id[8..].copy_from_slice(&number.to_le_bytes());
        ReplyTo(id)
    }

    /// Whether results can reach it.
    #[cfg(feature = "server")]
    pub(crate) fn is_session(self) -> bool {
        self.0[0] != 0 || self.0[1] == OF_CALLER
    }

    /// How it came.
    #[cfg(feature = "server")]
    pub(crate) fn protocol(self) -> Protocol {
        match self.0 {
            [0, OF_CALLER, protocol, ..] => Protocol::ALL.get(protocol as usize).copied(),
            _ => None,
        }
        .unwrap_or(Protocol::Zmq)
    }

    /// The door and the caller, if it is a door's.
    #[cfg(feature = "server")]
    pub(crate) fn caller(self) -> Option<(u32, u64)> {
        let [0, OF_CALLER, _, _, door @ ..] = self.0 else {
            return None;
        };
        let (door, caller) = door.split_at(4);
        Some((
            u32::from_le_bytes(door.try_into().ok()?),
            u64::from_le_bytes(caller.try_into().ok()?),
        ))
    }
}

/// As one string of bytes: serde would write an array of 16 numbers, one by one, into every chunk and part.
impl Serialize for ReplyTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ReplyTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ReplyTo, D::Error> {
        struct Id;

        impl Visitor<'_> for Id {
            type Value = ReplyTo;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a routing id of 16 bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<ReplyTo, E> {
                let id = bytes.try_into();
                id.map(ReplyTo)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(Id)
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyTo(..)")
    }
}

/// Which of the waiting bulk requests is served first. Small requests overtake both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Priority {
    /// In turn with the others.
    #[default]
    Normal,
    /// Ahead of other bulk requests.
    High,
}

/// Which of the server's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The workers with a device, which run anything.
    Main,
    /// Further workers, which run plugin stages only.
    Extra,
    /// Workers for small chunks alone, while all main ones are inside bulk. No leg is theirs.
    Express,
}

/// A request's free parameters, handed to the model as they are.
pub type Params = serde_json::Map<String, serde_json::Value>;

/// The parameter that asks for a version of a model.
pub(crate) const MODEL_VERSION: &str = "model_version";

/// What a client asks for: rows, and the model to run them through. The server itself holds it with parameters that are
/// still bytes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Request<P = Params> {
    /// The model's name, if the parameters do not say it.
    pub model: Option<String>,
    /// Free parameters; every key that ends in `_path` is checked against the allowed roots.
    pub params: P,
    /// The rows, in columns.
    pub inputs: Batch,
    /// Milliseconds until the request ends with `DEADLINE_EXCEEDED`; the server's default if absent.
    pub timeout_ms: Option<u64>,
    /// Ahead of other bulk requests, or in turn.
    pub priority: Priority,
    /// Parts as chunks finish instead of one result at the end.
    pub stream: bool,
    /// Whether a row that fails ends the request.
    pub on_bad_row: OnBadRow,
}

/// How long a request took, and in how many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// From arrival until the first chunk was given to a worker, in microseconds.
    pub queue_us: u64,
    /// Inside the model, summed over chunks, in microseconds.
    pub compute_us: u64,
    /// The number of chunks.
    pub chunks: u64,
}

/// The rows of one request in a chunk.
///
/// A chunk of a bulk request has one member; a chunk of coalesced small requests has one for each. A member
/// carries all that the worker and the sink need, so that neither looks anything up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The server's number for the request.
    pub serial: Serial,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// The client's number for the request.
    pub request: RequestId,
    /// The first row of the request that is in this chunk.
    pub offset: u64,
    /// The number of rows in this chunk.
    pub rows: u64,
    /// The number of rows of the whole request.
    pub total: u64,
    /// The client asked for parts.
    pub stream: bool,
    /// What the client wants done about rows that fail.
    pub on_bad_row: OnBadRow,
    /// The rows have no batch dimension: the outputs are whole, not rows.
    pub whole: bool,
    /// When the request arrived, in microseconds of the server's clock.
    pub arrived_us: u64,
    /// From arrival until this chunk was given out, in microseconds.
    pub queue_us: u64,
}

/// What a run belongs to: what a model may want to know besides its rows.
#[cfg(feature = "server")]
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The request's parameters.
    pub params: &'a Params,
    /// Whose rows these are, in their order in the batch; empty if that is not known.
    pub members: &'a [Member],
    /// Whether nobody waits for these rows any more.
    pub cancelled: &'a dyn Fn() -> bool,
}

#[cfg(feature = "server")]
impl<'a> Run<'a> {
    /// A run of nobody in particular.
    pub fn alone(params: &'a Params) -> Run<'a> {
        Run {
            params,
            members: &[],
            cancelled: &|| false,
        }
    }
}
