//! ZMTP 3 without libzmq: what ventilator and sink listen with, and what the client connects with.
//!
//! ```text
//! codec.rs       bytes ⇄ greeting, handshake, frames, PING and PONG; no input or output      mechanism.rs  who may connect: NULL
//! outgoing.rs    what waits to be written on one connection: small frames copied together, large ones written in place
//! stream.rs      TCP and local streams and listeners, non-blocking
//! connection.rs  a stream, its codec, its outgoing bytes, and when its peer was last known to be alive
//! unsent.rs      how many written bytes the system still holds
//! router.rs      the server's end: many connections by routing id, in one epoll with inner sockets      poller.rs
//! dealer.rs      the client's end: one connection
//! ```
//! libzmq hides what a server has to know of its peers: who is connected, what waits unsent, how much of a frame has
//! arrived. Here all three are fields, and the bounds are on these numbers. The protocol is the same
//! (<https://rfc.zeromq.org/spec/23/>, `/37/` for 3.1): libzmq and every other library that speaks ZMTP 3 can connect to
//! these ports, and the client to a ROUTER of theirs.
//!
//! A connection is given up after 6 s without a sign of life. Bytes from the peer are one, and so are bytes that arrive at
//! it, or that cannot because it does not read. Our PINGs have a time to live of 0, so that no peer gives a connection up
//! because of them. The client announces ZMTP 3.0, since it has no thread that could answer a PING at any time, and sends
//! the PINGs itself while a caller waits.
//!
//! Why not a library: `omq-proto` (0.37, ISC, with CURVE, tested against pyzmq) has 30,000 lines where we need five hundred,
//! an interface that changed 37 times in half a year, one author, and message types of its own, which would be one more step
//! for each frame on the path of every row. If CURVE is wanted, look again.

// The client alone uses about half of what is below.
#![cfg_attr(not(feature = "server"), allow(dead_code))]

pub(crate) mod codec;
#[cfg(feature = "client")]
pub(crate) mod connection;
#[cfg(feature = "client")]
pub(crate) mod dealer;
pub(crate) mod mechanism;
pub(crate) mod outgoing;
#[cfg(feature = "server")]
pub(crate) mod poller;
#[cfg(feature = "server")]
pub(crate) mod router;
pub(crate) mod stream;
pub(crate) mod unsent;

use std::time::Duration;

/// A peer that answers PINGs gets one after so long a silence.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A peer that has shown no sign of life for so long is given up.
pub(crate) const SILENCE: Duration = Duration::from_secs(6);
/// How long a peer may take from connecting to the end of its handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
