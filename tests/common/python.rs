//! Clients in Python: packages that `make clients` fetches, and that tests only read.
#![allow(dead_code)] // each test program uses some of it

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `make clients` puts them.
pub fn packages() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.expect("the target folder").join("python")
}

/// Says that a client is not there, and how it comes there. Where everything has to run it must be.
pub fn missing(client: &str, how: &str) {
    assert!(
        std::env::var_os("REQUIRE_CLIENTS").is_none(),
        "{client} is not there: {how}"
    );
    println!("skipped: {client} is not there: {how}");
}

/// Python that can import this package; `None`, which it says, if it is not there.
pub fn python_with(package: &str) -> Option<Command> {
    if !packages().join(package).is_dir() {
        missing(package, "run `make clients`");
        return None;
    }
    let mut python = Command::new("python3");
    python
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Some(python)
}
