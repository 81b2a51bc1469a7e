//! A test that hangs fails instead.
#![allow(dead_code)] // each test program uses some of it

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Long enough for any test that waits for nothing but this machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Runs a test's body in a thread, and fails the test if it takes too long.
pub fn within<T: Send + 'static>(limit: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(limit) {
        Ok(value) => value,
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("it ended without a value"))
        }
        Err(RecvTimeoutError::Timeout) => panic!("it still runs after {limit:?}"),
    }
}
