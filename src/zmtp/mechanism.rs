//! Security mechanisms: the handshake between the greeting and the first message, which decides who may connect.
//!
//! There is NULL, which lets everybody in. CURVE (<https://rfc.zeromq.org/spec/26/>) would be a second one: it has several
//! commands each way, so [`Mechanism::handle`] would have to return those to be sent, and its encrypted frames need one
//! more step in the codec.

use bytes::Bytes;

use super::codec::Violation;

/// The type of a socket, as its READY command names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    Router,
    Dealer,
}

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            SocketType::Router => "ROUTER",
            SocketType::Dealer => "DEALER",
        }
    }

    /// Whether a peer of that type may connect to this one.
    fn accepts(self, peer: &[u8]) -> bool {
        match self {
            // The peers that ZMTP allows a ROUTER. A REQ's empty first frame is refused later, as a header.
            SocketType::Router => [&b"DEALER"[..], b"REQ", b"ROUTER"].contains(&peer),
            SocketType::Dealer => [&b"ROUTER"[..], b"REP", b"DEALER"].contains(&peer),
        }
    }
}

/// A handshake's rules, for one connection.
pub(crate) trait Mechanism: Send {
    /// The name in the greeting.
    fn name(&self) -> &'static str;
    /// The body of this end's first command.
    fn first(&mut self) -> Vec<u8>;
    /// Handles the peer's command, which ends the handshake: the routing id that the peer asked for, empty if it asked for
    /// none.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    fn handle(&mut self, command: &[u8]) -> Result<Bytes, Violation>;
}

/// NULL: everybody may connect. One READY each way, with the socket's type and its routing id.
pub(crate) struct Null {
    own: SocketType,
    identity: Bytes,
}

/// The longest routing id that the protocol has.
const MAX_IDENTITY_BYTES: usize = 255;

impl Null {
    /// `identity` is the routing id that this end asks for; a ROUTER has none.
    pub(crate) fn new(own: SocketType, identity: Bytes) -> Null {
        Null { own, identity }
    }
}

impl Mechanism for Null {
    fn name(&self) -> &'static str {
        "NULL"
    }

    fn first(&mut self) -> Vec<u8> {
        let mut ready = b"\x05READY".to_vec();
        let mut property = |name: &[u8], value: &[u8]| {
            ready.push(name.len() as u8);
            ready.extend_from_slice(name);
            ready.extend_from_slice(&(value.len() as u32).to_be_bytes());
            ready.extend_from_slice(value);
        };
        property(b"Socket-Type", self.own.name().as_bytes());
        property(b"Identity", &self.identity);
        ready
    }

    fn handle(&mut self, command: &[u8]) -> Result<Bytes, Violation> {
        let (name, mut rest) = named(command).ok_or(Violation::Handshake)?;
        if name != b"READY" {
            return Err(match name {
                b"ERROR" => Violation::Refused,
                _ => Violation::Handshake,
            });
        }
        let (mut identity, mut socket_type) = (Bytes::new(), None);
        while !rest.is_empty() {
            let (name, value, after) = property(rest).ok_or(Violation::Handshake)?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                socket_type = Some(value);
            } else if name.eq_ignore_ascii_case(b"Identity") {
                // Ids that begin with 0 are those that a ROUTER gives to peers without any.
                if value.len() > MAX_IDENTITY_BYTES || value.first() == Some(&0) {
                    return Err(Violation::Identity);
                }
                identity = Bytes::copy_from_slice(value);
            }
            rest = after;
        }
        match socket_type {
            Some(peer) if self.own.accepts(peer) => Ok(identity),
            _ => Err(Violation::SocketType),
        }
    }
}

/// A command's name, and what follows it.
pub(super) fn named(command: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = command.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// The first property: its name, its value, and what follows.
fn property(said: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = named(said)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((name, value, rest))
}
