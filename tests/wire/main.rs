//! The wire from its nasty side: the real server, and peers that keep to no rule.

mod asked;
mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod endless;
mod golden;
mod handshake;
mod headers;
mod ids;
mod malformed;
mod payloads;
mod raw;
mod session;
mod slow;
mod vanish;
mod zmtp;
