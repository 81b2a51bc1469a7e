//! The wire from its nasty side: the real server, and peers that keep to no rule.

#[path = "../common/mod.rs"]
mod common;
mod headers;
mod malformed;
mod payloads;
mod raw;
