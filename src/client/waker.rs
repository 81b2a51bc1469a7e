//! Wakes a thread that waits in a poll: one descriptor that can be read once somebody has asked for it.

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Error, Result};

#[cfg(target_os = "linux")]
type Ends = std::os::fd::OwnedFd;
#[cfg(not(target_os = "linux"))]
type Ends = (
    std::os::unix::net::UnixStream,
    std::os::unix::net::UnixStream,
);

pub(super) struct Waker(Ends);

impl Waker {
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: no descriptor is left.
    pub(super) fn new() -> Result<Waker> {
        let ends = make();
        let ends =
            ends.map_err(|e| Error::exhausted(format!("nothing to wake threads by: {e}")))?;
        Ok(Waker(ends))
    }

    pub(super) fn wake(&self) {
        // It fails only where it is full, and then the thread is being woken.
        let _ = rustix::io::write(self.writer(), &1u64.to_ne_bytes());
    }

    /// Makes it wait again. Called when it can be read.
    pub(super) fn reset(&self) {
        // What is left over wakes once more than needed, and no more.
        let _ = rustix::io::read(self, &mut [0; 8]);
    }

    #[cfg(target_os = "linux")]
    fn writer(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    #[cfg(not(target_os = "linux"))]
    fn writer(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

#[cfg(target_os = "linux")]
fn make() -> std::io::Result<Ends> {
    use rustix::event::{EventfdFlags, eventfd};

    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

#[cfg(not(target_os = "linux"))]
fn make() -> std::io::Result<Ends> {
    let ends = std::os::unix::net::UnixStream::pair()?;
    ends.0.set_nonblocking(true)?;
    ends.1.set_nonblocking(true)?;
    Ok(ends)
}

impl AsFd for Waker {
    #[cfg(target_os = "linux")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    #[cfg(not(target_os = "linux"))]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
