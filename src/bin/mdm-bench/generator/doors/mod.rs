//! Where requests go in: what is asked of a server before it is measured, and the connections to it.

#[cfg(feature = "gateway")]
pub mod grpc;
pub mod http;
mod inference;
pub mod url;
pub mod zmq;

use std::time::Duration;

use anyhow::{Result, anyhow};
use mdm::wire::server::ModelInfo;
use mdm::{Batch, Params};

use super::drive::Connection;
use super::measure::Failure;
use super::report::ServerTimes;

/// A way into a server.
pub trait Door {
    /// What the model takes. If it is not loaded, it is now.
    fn describe(&self) -> Result<ModelInfo>;

    /// Makes ready the requests that connections are to send from now on.
    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()>;

    /// Sends one of the requests that were prepared, on a connection of its own, and gives how many bytes its answer had,
    /// so that what is wrong with all of them is told before anything is measured.
    fn try_one(&self) -> Result<usize>;

    /// Opens a connection for the requests that were prepared, on which so many may be in flight: one, unless the
    /// protocol is gRPC.
    fn connect(&self, in_flight: usize) -> Result<Box<dyn Connection>>;

    /// What the server has counted of the model so far, if answers do not say it and the server does.
    fn server_times(&self) -> Option<ServerTimes> {
        None
    }
}

/// Which model of a server of the Open Inference Protocol is asked, and how.
#[derive(Clone, Debug)]
pub struct Asked {
    pub model: String,
    pub params: Params,
    pub timeout: Duration,
}

/// A failure as an error of its own.
fn error(failure: Failure) -> anyhow::Error {
    anyhow!("{}: {}", failure.code, failure.message)
}
