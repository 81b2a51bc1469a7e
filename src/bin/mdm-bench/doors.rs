//! Where requests go in: what is asked of a server before it is measured, and the connections to it.

pub mod http;
pub mod zmq;

use anyhow::{Context, Result, bail, ensure};
use mdm::Batch;
use mdm::wire::server::ModelInfo;

use crate::args::{Args, DoorKind};
use crate::drive::Connection;
use crate::report::ServerTimes;
use http::{Asked, Encoding, Http};
use zmq::Zmq;

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

/// The door that was asked for.
///
/// # Errors
/// If flags do not go together.
pub fn open(args: &Args) -> Result<Box<dyn Door>> {
    let kind = match (args.door, &args.url) {
        (Some(DoorKind::Zmq), Some(_)) => {
            bail!("--url is for --door http; --server says where MDM's own protocol is spoken")
        }
        (Some(kind), _) => kind,
        (None, Some(_)) => DoorKind::Http,
        (None, None) => DoorKind::Zmq,
    };
    match kind {
        DoorKind::Zmq => {
            ensure!(
                !args.json,
                "--json is for --door http; the server's own protocol has no JSON tensors"
            );
            let call = args.asked.call()?.timeout(args.timeout());
            Ok(Box::new(Zmq::new(args.asked.address(), call)))
        }
        DoorKind::Http => {
            ensure!(
                args.asked.server.is_none(),
                "--server is for --door zmq; --url says where a server is reached over http"
            );
            let url = match &args.url {
                Some(url) => url.clone(),
                None => args.asked.at.address().replacen("tcp", "http", 1),
            };
            let asked = Asked {
                model: args
                    .asked
                    .model
                    .clone()
                    .context("over http a model has to be named: --model NAME")?,
                params: args.asked.params()?,
                encoding: if args.json {
                    Encoding::Json
                } else {
                    Encoding::Binary
                },
                timeout: args.timeout(),
            };
            Ok(Box::new(Http::new(&url, asked)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::typed;

    #[test]
    fn flags_of_the_other_door_are_refused() {
        for (flags, words) in [
            (&["--door", "zmq", "--url", "http://a:1"][..], "--server"),
            (&["--json"], "--door http"),
            (
                &["--door", "http", "--server", "a:1", "--model", "m"],
                "--url",
            ),
            (&["--door", "http"], "--model"),
            (
                &["--url", "localhost:1", "--model", "m"],
                "http://HOST:PORT",
            ),
        ] {
            let e = open(&typed(flags)).err().unwrap().to_string();
            assert!(e.contains(words), "{e}");
        }
        assert!(open(&typed(&["--door", "http", "--model", "m"])).is_ok());
    }
}
