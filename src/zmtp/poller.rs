//! Waiting for many descriptors at once: epoll where there is one, poll elsewhere.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::Timespec;

use crate::error::Result;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// The descriptor is kept and not waited for, but for its end.
    Nothing,
    Read,
    Write,
    Both,
}

/// A descriptor that can be read, or written; both where it has come to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub token: u64,
    pub read: bool,
    pub write: bool,
}

fn timespec(timeout: Option<Duration>) -> Option<Timespec> {
    // Rounded up to milliseconds, as epoll takes them: a wait that ends just before its time is followed by another.
    let millis = timeout?.as_micros().div_ceil(1000);
    Timespec::try_from(Duration::from_millis(millis as u64)).ok()
}

#[cfg(target_os = "linux")]
pub(crate) use linux::Poller;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;

    use rustix::buffer::spare_capacity;
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

    use super::{AsFd, Duration, Interest, Ready, Result, timespec};
    use crate::error::Error;

    /// Events that one wait gives.
    const MOST_EVENTS: usize = 256;

    /// One epoll. A descriptor that is closed leaves it by itself.
    pub(crate) struct Poller {
        epoll: OwnedFd,
        events: Vec<epoll::Event>,
    }

    fn flags(interest: Interest) -> EventFlags {
        match interest {
            Interest::Nothing => EventFlags::empty(),
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
            Interest::Both => EventFlags::IN | EventFlags::OUT,
        }
    }

    fn failed(e: rustix::io::Errno) -> Error {
        Error::unavailable(format!("epoll: {e}"))
    }

    impl Poller {
        /// # Errors
        /// `UNAVAILABLE` if no descriptor is left.
        pub(crate) fn new() -> Result<Poller> {
            Ok(Poller {
                epoll: epoll::create(CreateFlags::CLOEXEC).map_err(failed)?,
                events: Vec::with_capacity(MOST_EVENTS),
            })
        }

        pub(crate) fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> Result<()> {
            let data = EventData::new_u64(token);
            epoll::add(&self.epoll, source, data, flags(interest)).map_err(failed)
        }

        pub(crate) fn change(
            &self,
            source: impl AsFd,
            token: u64,
            interest: Interest,
        ) -> Result<()> {
            let data = EventData::new_u64(token);
            epoll::modify(&self.epoll, source, data, flags(interest)).map_err(failed)
        }

        /// A descriptor is about to be closed; epoll forgets it then by itself.
        pub(crate) fn remove(&self, _token: u64) {}

        /// Waits until something is ready, or the time is over; `None` waits for ever. A signal ends it early.
        pub(crate) fn wait(
            &mut self,
            timeout: Option<Duration>,
            mut ready: impl FnMut(Ready),
        ) -> Result<()> {
            self.events.clear();
            let timeout = timespec(timeout);
            match epoll::wait(
                &self.epoll,
                spare_capacity(&mut self.events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
            for event in &self.events {
                let flags = event.flags;
                let ended = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                ready(Ready {
                    token: event.data.u64(),
                    read: ended || flags.contains(EventFlags::IN),
                    write: ended || flags.contains(EventFlags::OUT),
                });
            }
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) use other::Poller;

#[cfg(not(target_os = "linux"))]
mod other {
    use std::collections::HashMap;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::{Mutex, PoisonError};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::{Duration, Interest, Ready, Result, timespec};
    use crate::error::Error;

    /// A list of descriptors, each a copy of the one that it stands for. Copies that nobody else holds are dropped at
    /// the next wait, when their end shows.
    pub(crate) struct Poller {
        sources: Mutex<HashMap<u64, (OwnedFd, Interest)>>,
    }

    impl Poller {
        pub(crate) fn new() -> Result<Poller> {
            Ok(Poller {
                sources: Mutex::default(),
            })
        }

        pub(crate) fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> Result<()> {
            let copy = source.as_fd().try_clone_to_owned();
            let copy = copy.map_err(|e| Error::unavailable(format!("poll: {e}")))?;
            self.lock().insert(token, (copy, interest));
            Ok(())
        }

        pub(crate) fn change(
            &self,
            source: impl AsFd,
            token: u64,
            interest: Interest,
        ) -> Result<()> {
            self.add(source, token, interest)
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (OwnedFd, Interest)>> {
            self.sources.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn remove(&self, token: u64) {
            self.lock().remove(&token);
        }

        pub(crate) fn wait(
            &mut self,
            timeout: Option<Duration>,
            mut ready: impl FnMut(Ready),
        ) -> Result<()> {
            let sources = self.lock();
            let flags = |interest| match interest {
                Interest::Nothing => PollFlags::empty(),
                Interest::Read => PollFlags::IN,
                Interest::Write => PollFlags::OUT,
                Interest::Both => PollFlags::IN | PollFlags::OUT,
            };
            let mut tokens = Vec::with_capacity(sources.len());
            let mut fds = Vec::with_capacity(sources.len());
            for (token, (fd, interest)) in sources.iter() {
                tokens.push(*token);
                fds.push(PollFd::new(fd, flags(*interest)));
            }
            match poll(&mut fds, timespec(timeout).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::unavailable(format!("poll: {e}"))),
            }
            for (token, fd) in tokens.iter().zip(&fds) {
                let seen = fd.revents();
                if seen.is_empty() {
                    continue;
                }
                let ended = seen.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
                ready(Ready {
                    token: *token,
                    read: ended || seen.contains(PollFlags::IN),
                    write: ended || seen.contains(PollFlags::OUT),
                });
            }
            Ok(())
        }
    }
}
