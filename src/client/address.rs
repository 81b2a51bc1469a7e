//! A server's address: parses it, resolves it to endpoints, and works out where results leave.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::zmtp::dealer::Endpoint;

/// A server's address, checked for its form only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A name or a number, without brackets.
    Tcp { host: String, port: u16 },
    /// The path of a local socket.
    Local { path: String },
}

impl Address {
    /// Reads `tcp://HOST:PORT`, `HOST:PORT` or `ipc://PATH`.
    pub(super) fn parse(text: &str) -> Result<Address> {
        let wrong = |why: &str| {
            Error::invalid(format!(
                "server address {text:?}: {why}; expected tcp://HOST:PORT, HOST:PORT or ipc://PATH"
            ))
        };
        if let Some(path) = text.strip_prefix("ipc://") {
            if path.is_empty() {
                return Err(wrong("nothing after the scheme"));
            }
            let path = path.to_owned();
            return Ok(Address::Local { path });
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        if rest.contains("://") {
            return Err(wrong("the scheme is not known"));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if bare.is_empty() {
            return Err(wrong("no host"));
        }
        if bare == host && host.contains(':') {
            return Err(wrong("an IPv6 address needs brackets, as in [::1]:5555"));
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(Address::Tcp {
                host: bare.to_owned(),
                port,
            }),
            _ => Err(wrong("the port is not a number from 1 to 65535")),
        }
    }

    /// The endpoints that the address may mean, IPv4 first: a server that was told nothing binds 127.0.0.1.
    pub(super) fn endpoints(&self, deadline: Instant) -> Result<Vec<Endpoint>> {
        let (host, port) = match self {
            Address::Tcp { host, port } => (host.as_str(), *port),
            Address::Local { path } => return Ok(vec![Endpoint::Local(PathBuf::from(path))]),
        };
        let mut ips = if let Ok(ip) = host.parse::<IpAddr>() {
            vec![ip]
        } else {
            resolve(host, port, deadline)?
        };
        ips.sort_by_key(IpAddr::is_ipv6);
        ips.dedup();
        Ok(ips
            .into_iter()
            .map(|ip| Endpoint::Tcp(SocketAddr::new(ip, port)))
            .collect())
    }

    /// Where results leave, if requests go to `endpoint` and the server says `port_out`.
    pub(super) fn endpoint_out(endpoint: &Endpoint, port_out: u16) -> Result<Endpoint> {
        match endpoint {
            Endpoint::Tcp(address) => Ok(Endpoint::Tcp(SocketAddr::new(address.ip(), port_out))),
            Endpoint::Local(path) => match path.extension() {
                Some(extension) if extension == "in" => {
                    Ok(Endpoint::Local(path.with_extension("out")))
                }
                _ => Err(Error::invalid(format!(
                    "server address \"{endpoint}\": it does not end in .in, so where results leave is not known; give it with port_out"
                ))),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Address::Local { path } => write!(f, "ipc://{path}"),
        }
    }
}

/// Asks the system for a name's addresses. The system's call knows no deadline, so it runs in a thread that is left
/// behind if it takes too long.
fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<IpAddr>> {
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    std::thread::Builder::new()
        .name("mdm-resolve".to_owned())
        .spawn(move || {
            let found = (name.as_str(), port)
                .to_socket_addrs()
                .map(|found| found.map(|a: SocketAddr| a.ip()).collect::<Vec<_>>());
            // It fails if the caller has given up waiting.
            let _ = sender.send(found);
        })
        .map_err(|e| Error::unavailable(format!("no thread to resolve {host:?}: {e}")))?;
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(ips)) if !ips.is_empty() => Ok(ips),
        Ok(Ok(_)) => Err(Error::unavailable(format!("host {host:?} has no address"))),
        Ok(Err(e)) => Err(Error::unavailable(format!(
            "host {host:?} is not known: {e}"
        ))),
        Err(_) => Err(Error::unavailable(format!(
            "host {host:?}: its address was not found in time"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_results_leave_beside_them() {
        let read = |text: &str| Address::parse(text).unwrap();
        assert_eq!(read("localhost:5555").to_string(), "tcp://localhost:5555");
        assert_eq!(read("[::1]:5555").to_string(), "tcp://[::1]:5555");
        let out = |text: &str| {
            let deadline = Instant::now() + std::time::Duration::from_secs(5);
            let endpoint = read(text).endpoints(deadline).unwrap().remove(0);
            Address::endpoint_out(&endpoint, 77).map(|out| out.to_string())
        };
        assert_eq!(out("tcp://[::1]:5555").unwrap(), "tcp://[::1]:77");
        assert_eq!(out("10.0.0.1:5555").unwrap(), "tcp://10.0.0.1:77");
        assert_eq!(out("ipc:///tmp/mdm-5.in").unwrap(), "ipc:///tmp/mdm-5.out");
        let e = out("ipc:///tmp/mdm-5").unwrap_err();
        assert!(e.message().contains("port_out"), "{e}");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, why) in [
            ("localhost", "no port"),
            ("localhost:0", "1 to 65535"),
            ("tcp://:5555", "no host"),
            ("::1:5555", "brackets"),
            ("http://localhost:80", "scheme"),
            ("inproc://x.in", "scheme"),
            ("ipc://", "nothing after"),
        ] {
            let e = Address::parse(text).unwrap_err();
            assert!(e.message().contains(why), "{text}: {e}");
        }
    }

    #[test]
    fn localhost_means_ipv4_first() {
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        let found = Address::parse("localhost:5555")
            .unwrap()
            .endpoints(deadline)
            .unwrap();
        assert_eq!(found[0].to_string(), "tcp://127.0.0.1:5555");
    }
}
