//! A waker: a descriptor that any thread can make readable, to wake a thread that polls.

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Error, Result};

/// A descriptor that can be read once somebody has called [`Waker::wake`], until [`Waker::clear`].
#[derive(Debug)]
pub(crate) struct Waker(imp::Pair);

impl Waker {
    /// # Errors
    /// `UNAVAILABLE` if no descriptor is left.
    pub(crate) fn new() -> Result<Waker> {
        let pair = imp::Pair::new();
        pair.map(Waker)
            .map_err(|e| Error::unavailable(format!("no descriptor is left for a waker: {e}")))
    }

    pub(crate) fn wake(&self) {
        // It fails only where it is set already.
        let _ = self.0.set();
    }

    pub(crate) fn clear(&self) {
        // It fails only where it is not set.
        let _ = self.0.clear();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{Result, read, write};

    #[derive(Debug)]
    pub(super) struct Pair(OwnedFd);

    impl Pair {
        pub(super) fn new() -> Result<Pair> {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Pair)
        }

        pub(super) fn set(&self) -> Result<usize> {
            write(&self.0, &1u64.to_ne_bytes())
        }

        pub(super) fn clear(&self) -> Result<usize> {
            read(&self.0, &mut [0u8; 8])
        }

        pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io::{Read, Result, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(super) struct Pair(UnixStream, UnixStream);

    impl Pair {
        pub(super) fn new() -> Result<Pair> {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok(Pair(near, far))
        }

        pub(super) fn set(&self) -> Result<usize> {
            (&self.1).write(&[1])
        }

        pub(super) fn clear(&self) -> Result<usize> {
            loop {
                match (&self.0).read(&mut [0; 512]) {
                    Ok(512) => {} // more of them may be there
                    other => return other,
                }
            }
        }

        pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}
