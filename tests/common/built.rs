//! What cargo builds beside the tests: the examples, programs and plugins.
#![allow(dead_code)] // each test program uses some of it

use std::path::{Path, PathBuf};

/// An example that is a program.
pub fn program(name: &str) -> PathBuf {
    example(name, &format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// An example that is a plugin.
pub fn plugin(name: &str) -> PathBuf {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    example(name, &format!("{prefix}{name}{suffix}"))
}

fn example(name: &str, file: &str) -> PathBuf {
    let file = profile().join("examples").join(file);
    assert!(
        file.is_file(),
        "{} is not built: `cargo test` without --test builds it, `cargo build --example {name}` too",
        file.display()
    );
    file
}

/// `target/PROFILE`.
pub fn profile() -> PathBuf {
    let own = std::env::current_exe().expect("a program");
    let profile = own
        .ancestors()
        .find(|folder| folder.join("examples").is_dir());
    profile.expect("target/PROFILE").to_owned()
}

/// `target`.
pub fn target() -> PathBuf {
    profile().parent().expect("target").to_owned()
}

/// The folder of an example's sources.
pub fn sources(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}
