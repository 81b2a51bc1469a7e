//! MDM serves models to programs that have a lot of rows to run through them.

#[cfg(feature = "client")]
pub mod client;
pub mod error;
pub mod message;
pub mod tensor;
pub mod wire;

pub(crate) mod frames;
pub(crate) mod socket;

#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod logging;
#[cfg(feature = "server")]
pub mod model;
#[cfg(feature = "server")]
pub(crate) mod pipeline;
#[cfg(feature = "server")]
pub(crate) mod schedule;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub(crate) mod split;

#[cfg(feature = "client")]
pub use client::Client;
pub use error::{Error, ErrorCode, Result};
pub use message::{Params, Priority, Request, RequestId, Stats};
pub use tensor::{Batch, DataType, Element, Tensor};
