//! Plugins, proxies and stages through the real server and a folder of models: what a user sees.
#![cfg(feature = "server")]

#[path = "../common/built.rs"]
mod built;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/place.rs"]
mod place;

mod bad_rows;
mod chains;
mod commands;
mod extra;
mod faults;
mod header;
mod life;
mod rust;

use std::path::{Path, PathBuf};

use crate::common::{Server, refused};

/// The plugin of `examples/plugin`, which cargo builds with the tests.
pub fn echo_plugin() -> PathBuf {
    built::plugin("echo_plugin")
}

/// A folder with these files and the example's plugin.
pub fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = common::models(files);
    let plugin = dir.path().join("models/libecho.so");
    std::fs::copy(echo_plugin(), plugin).expect("a copy of the plugin");
    dir
}

/// A server over such a folder.
pub fn serve(files: &[(&str, &str)], flags: &[&str]) -> Server {
    let files: Vec<(&str, Vec<u8>)> = files
        .iter()
        .map(|(name, text)| (*name, text.as_bytes().to_vec()))
        .collect();
    Server::start(folder(&files), flags)
}

/// Where the sample in C is built to.
pub fn build_sample(to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = std::process::Command::new("cc")
        .args(["-std=c11", "-O1", "-shared", "-fPIC", "-I"])
        .arg(root.join("src/model"))
        .arg("-o")
        .arg(to)
        .arg(root.join("tests/plugins/sample.c"))
        .status()
        .expect("a C compiler");
    assert!(status.success());
}
