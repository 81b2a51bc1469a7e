//! The door that the flags ask for.

use anyhow::{Context, Result, bail, ensure};

use crate::args::{Args, DoorKind};
#[cfg(feature = "gateway")]
use crate::generator::doors::grpc::Grpc;
use crate::generator::doors::http::{Encoding, Http};
use crate::generator::doors::zmq::Zmq;
use crate::generator::doors::{Asked, Door};

/// Opens it.
///
/// # Errors
/// If flags do not go together.
pub fn door(args: &Args) -> Result<Box<dyn Door>> {
    let kind = match (args.door, &args.url) {
        (Some(DoorKind::Zmq), Some(_)) => bail!(
            "--url is for --door http and grpc; --server says where MDM's own protocol is spoken"
        ),
        (Some(kind), _) => kind,
        (None, Some(url)) if url.starts_with("grpc://") => DoorKind::Grpc,
        (None, Some(_)) => DoorKind::Http,
        (None, None) => DoorKind::Zmq,
    };
    ensure!(
        !args.json || kind == DoorKind::Http,
        "--json is for --door http; the other protocols have no JSON tensors"
    );
    ensure!(
        args.connections.is_none() || kind == DoorKind::Grpc,
        "--connections is for --door grpc; over the other protocols each request in flight has a connection of its own"
    );
    ensure!(
        args.asked.server.is_none() || kind == DoorKind::Zmq,
        "--server is for --door zmq; --url says where a server is reached over http and grpc"
    );
    match kind {
        DoorKind::Zmq => {
            let call = args.asked.call()?.timeout(args.timeout());
            Ok(Box::new(Zmq::new(args.asked.address(), call)))
        }
        DoorKind::Http => {
            let encoding = match args.json {
                true => Encoding::Json,
                false => Encoding::Binary,
            };
            Ok(Box::new(Http::new(&url(args), encoding, asked(args)?)?))
        }
        #[cfg(feature = "gateway")]
        DoorKind::Grpc => Ok(Box::new(Grpc::new(&url(args), asked(args)?)?)),
        #[cfg(not(feature = "gateway"))]
        DoorKind::Grpc => bail!(
            "--door grpc: this mdm-bench was built without gRPC; build it with the feature gateway"
        ),
    }
}

/// Where the server is.
fn url(args: &Args) -> String {
    let here = || args.asked.at.address().replacen("tcp", "http", 1);
    args.url.clone().unwrap_or_else(here)
}

fn asked(args: &Args) -> Result<Asked> {
    let model = args.asked.model.clone();
    Ok(Asked {
        model: model.context("over http and grpc a model has to be named: --model NAME")?,
        params: args.asked.params()?,
        timeout: args.timeout(),
    })
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
            (&["--json", "--url", "grpc://a:1"], "--door http"),
            (
                &["--connections", "2", "--url", "http://a:1"],
                "--door grpc",
            ),
            (
                &["--door", "http", "--server", "a:1", "--model", "m"],
                "--url",
            ),
            (&["--door", "grpc", "--server", "a:1"], "--url"),
            (&["--door", "http"], "--model"),
            (
                &["--url", "localhost:1", "--model", "m"],
                "http://HOST:PORT",
            ),
        ] {
            let e = door(&typed(flags)).err().unwrap().to_string();
            assert!(e.contains(words), "{e}");
        }
        assert!(door(&typed(&["--door", "http", "--model", "m"])).is_ok());
    }

    #[cfg(feature = "gateway")]
    #[test]
    fn a_url_says_which_protocol_is_spoken() {
        for flags in [
            &["--url", "grpc://a:1", "--connections", "4"][..],
            &["--url", "http://a:1", "--door", "grpc"],
            &["--door", "grpc"],
        ] {
            let opened = door(&typed(&[flags, &["--model", "m"]].concat()));
            assert!(opened.is_ok(), "{flags:?}");
        }
        let e = door(&typed(&["--door", "grpc", "--url", "a:1", "--model", "m"]));
        let e = e.err().unwrap().to_string();
        assert!(e.contains("grpc://HOST:PORT"), "{e}");
    }

    #[test]
    fn requests_in_flight_are_spread_over_the_connections() {
        let spread = |flags: &[&str], concurrency| {
            let each = typed(flags).in_flight(concurrency);
            each.collect::<Vec<_>>()
        };
        assert_eq!(spread(&[], 3), [1, 1, 1]);
        assert_eq!(spread(&["--connections", "4"], 32), [8; 4]);
        assert_eq!(spread(&["--connections", "3"], 8), [3, 3, 2]);
        assert_eq!(spread(&["--connections", "9"], 2), [1, 1]);
    }
}
