//! The protocol's messages as Rust types, and their description for reflection: generated, and committed as they are.
//!
//! Both files are made of `open_inference.proto` whenever that changes, by a program of a few lines that needs no `protoc`:
//! `protox::compile(["open_inference.proto"], ["."])` gives the set of descriptors, whose `source_code_info` is taken out
//! and which is written to `open_inference.bin` as it is encoded; `prost_build::Config::new().bytes(["."])
//! .disable_comments(["."]).compile_fds(set)` writes the types (protox 0.10, prost-build 0.14), in front of which go the lines
//! of the file's head that say so.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    reason = "generated: its words are in the .proto, and the types of inference are read and written by hand"
)]

include!("open_inference.rs");

/// The set of descriptors, encoded.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!("open_inference.bin");
