//! The wire from its nasty side: the real server, and peers that keep to no rule.

#[path = "../common/mod.rs"]
mod common;
mod golden;
mod headers;
mod ids;
mod malformed;
mod payloads;
mod raw;
