//! The server's own protocol, by the crate's client: a session of its own for each connection.

use std::sync::Arc;

use anyhow::Result;
use mdm::client::{Call, Client};
use mdm::wire::server::ModelInfo;
use mdm::{Batch, Error};

use super::super::drive::Connection;
use super::super::measure::{Failure, Outcome};
use super::{Door, error};

/// A server's `port` and `port_out`.
pub struct Zmq {
    address: String,
    call: Call,
    requests: Arc<[Batch]>,
}

impl Zmq {
    pub fn new(address: String, call: Call) -> Zmq {
        Zmq {
            address,
            call,
            requests: Arc::new([]),
        }
    }
}

impl Door for Zmq {
    fn describe(&self) -> Result<ModelInfo> {
        let client = Client::builder().connect_later(&self.address)?;
        Ok(client.describe(self.call.clone())?)
    }

    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()> {
        self.requests = requests.into();
        Ok(())
    }

    fn try_one(&self) -> Result<usize> {
        let client = Client::connect(&self.address)?;
        let answer = client.infer(self.requests[0].clone(), self.call.clone());
        let answer = answer.map_err(|e| error(failure(&e)))?;
        Ok(answer.parts().iter().map(Batch::payload_bytes).sum())
    }

    fn connect(&self, _in_flight: usize) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Session {
            client: Client::connect(&self.address)?,
            call: self.call.clone(),
            requests: Arc::clone(&self.requests),
        }))
    }
}

struct Session {
    client: Client,
    call: Call,
    requests: Arc<[Batch]>,
}

impl Connection for Session {
    fn ask(&mut self, request: usize) -> Outcome {
        // The tensors are shared and not copied.
        let inputs = self.requests[request].clone();
        match self.client.infer(inputs, self.call.clone()) {
            Ok(response) => Ok(Some(response.stats())),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn failure(error: &Error) -> Failure {
    Failure {
        code: error.code().as_str().to_owned(),
        message: error.message().to_owned(),
    }
}
