//! ZMTP 3 by connections of our own: what ventilator and sink listen with, and what the client connects with.
//!
//! ```text
//! codec.rs       bytes ⇄ greeting, handshake, frames, PING and PONG; no input or output      mechanism.rs  who may speak: NULL
//! outgoing.rs    what waits to be written on one connection, small frames gathered, large ones lent to `writev`
//! stream.rs      TCP and local streams and listeners, non-blocking
//! connection.rs  a stream, its codec, its outgoing bytes, and when it was last heard
//! unsent.rs      what the system holds of what was written
//! router.rs      the server's end: many connections by routing id, in one epoll with inner sockets      poller.rs
//! dealer.rs      the client's end: one connection
//! ```
//! libzmq hides what a server has to know of its peers: who is connected, what waits unsent, how far a frame has come.
//! Here all three are fields, and the bounds are on these numbers themselves. What is spoken is the same (<https://rfc.zeromq.org/spec/23/>, `/37/` for 3.1), so that
//! libzmq and every library that speaks ZMTP 3 connects to these fronts, and the client to a ROUTER of theirs.
//!
//! A connection ends by 6 s without a byte. Bytes that arrive at the other end are a sign of life, and what cannot arrive
//! because the other end does not read is no silence. Our PINGs carry a time to live of 0, so that nobody ends a connection
//! because of them. The client announces ZMTP 3.0, since it has no thread that could answer a PING at any time, and asks for
//! signs of life itself while somebody waits.
//!
//! Own lines and not a library: `omq-proto` (0.37, ISC, with CURVE, tested against pyzmq) was weighed for the codec. It
//! has 30,000 lines where we need five hundred, an interface that changed 37 times in half a year, one author, and
//! message types of its own, which would be one more step for each frame on the path of every row. CURVE would be the
//! reason to look again.

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

/// A peer that can answer is asked for a sign of life after so long a silence.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A connection on which no byte came for so long is over.
pub(crate) const SILENCE: Duration = Duration::from_secs(6);
/// How long a peer may take from connecting to the end of its handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
