//! Where requests go in: what is asked of a server before it is measured, and the connections to it.

pub mod http;
pub mod zmq;

use anyhow::Result;
use mdm::Batch;
use mdm::wire::server::ModelInfo;

use crate::drive::Connection;
use crate::measure::ServerTimes;

/// A way into a server.
pub trait Door {
    /// What the model takes. If it is not loaded, it is now.
    fn describe(&self) -> Result<ModelInfo>;

    /// Makes ready the requests that connections are to send from now on.
    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()>;

    /// Opens a connection for the requests that were prepared.
    fn connect(&self) -> Result<Box<dyn Connection>>;

    /// What the server has counted of the model so far, if answers do not say it and the server does.
    fn server_times(&self) -> Option<ServerTimes> {
        None
    }
}
