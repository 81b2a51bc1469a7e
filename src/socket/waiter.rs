//! Waits for sockets, with busy polling for a moment where that pays.
//!
//! A small request wakes one thread after another, and waking a thread on a core that has gone to sleep costs many
//! times what the thread then does, on virtual machines most of all. So a loop whose next message came soon last time
//! asks for the next one again and again, yielding its core in between, before it goes to sleep. A loop that is used
//! seldom sleeps at once, and so do all while there are as many workers with chunks as cores: then no core is asleep,
//! and asking only takes time from those who have work. How many requests are open says nothing about that: most of
//! them may be on their way.
//!
//! Ventilator and sink have a core each to ask on. Workers ask only if there are more cores than that: they would take
//! turns with those two, and a thread that sleeps is woken fast where a core is awake.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zmq::Socket;

use crate::error::{Error, Result};
use crate::frames;
use crate::thread_priority::{self, Slice};

/// Cores on which workers do not stay awake.
const CORES_FOR_VENTILATOR_AND_SINK: usize = 2;

/// What the loops of one server share: how long each may stay awake, and how many workers at once.
#[derive(Clone)]
pub(crate) struct BusyPoll {
    limit: Duration,
    /// Workers that stay awake for their next chunk.
    awake: Arc<AtomicUsize>,
    /// Workers that have chunks.
    busy: Arc<AtomicUsize>,
    cores: usize,
}

impl BusyPoll {
    /// Loops stay awake for `limit` after a message; never on a machine of one core.
    pub(crate) fn new(limit: Duration) -> BusyPoll {
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        BusyPoll {
            limit: if cores > 1 { limit } else { Duration::ZERO },
            awake: Arc::default(),
            busy: Arc::default(),
            cores,
        }
    }

    /// Cores that the server may use.
    pub(crate) fn cores(&self) -> usize {
        self.cores
    }

    /// The waiter of the ventilator, or of the sink.
    pub(crate) fn waiter(&self) -> Waiter {
        Waiter {
            busy_poll: self.clone(),
            is_worker: false,
            soon: false,
            slices: Slices::of_work(Slice::Short),
        }
    }

    /// The waiter of a worker that has asked for such slices.
    pub(crate) fn worker_waiter(&self, at_work: Slice) -> Waiter {
        Waiter {
            is_worker: true,
            slices: Slices::of_work(at_work),
            ..self.waiter()
        }
    }

    /// A place among those that may stay awake, if there is one.
    fn place_awake(&self, is_worker: bool) -> Option<AwakePlace<'_>> {
        if !is_worker {
            return Some(AwakePlace(None));
        }
        let place = AwakePlace(Some(&self.awake));
        let others = self.awake.fetch_add(1, Ordering::Relaxed);
        (others < self.cores.saturating_sub(CORES_FOR_VENTILATOR_AND_SINK)).then_some(place)
    }

    /// Whether fewer workers have chunks than there are cores: a core would be idle otherwise.
    pub(crate) fn has_a_core(&self) -> bool {
        self.busy.load(Ordering::Relaxed) < self.cores
    }
}

/// How one loop waits.
pub(crate) struct Waiter {
    busy_poll: BusyPoll,
    is_worker: bool,
    /// The last wait was short, so the next one may be short too.
    soon: bool,
    slices: Slices,
}

impl Waiter {
    /// Notes how many workers have chunks.
    pub(crate) fn busy(&self, workers: usize) {
        self.busy_poll.busy.store(workers, Ordering::Relaxed);
    }

    /// Waits until there is news for one of the sockets, or the time is over; `None` waits for ever. A signal ends it
    /// early.
    ///
    /// Each socket must have been received from until it had nothing, and not been used since: only then does its
    /// descriptor tell of whatever comes next. (zmq_poll has no such rule, and asks every socket twice, at a system call
    /// each: half the time of a loop that handles small requests.)
    pub(crate) fn wait(&mut self, sockets: [&Socket; 2], timeout: Option<Duration>) -> Result<()> {
        let [first, second] = [
            frames::descriptor(sockets[0])?,
            frames::descriptor(sockets[1])?,
        ];
        self.wait_with(timeout, |left| {
            // Rounded up: a wait that ends just before its time would be followed by another of 0.
            let millis = left.map(|left| left.as_micros().div_ceil(1000) as u64);
            wait_for([first, second], millis.map(Duration::from_millis))
        })
    }

    /// Waits by `poll_once`, which is told for how long and says whether something came: a few times without waiting, if the
    /// last message came soon, and then asleep.
    pub(crate) fn wait_with(
        &mut self,
        timeout: Option<Duration>,
        mut poll_once: impl FnMut(Option<Duration>) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        let news = self.watch(start, timeout, &mut poll_once)? || {
            let left = timeout.map(|t| t.saturating_sub(start.elapsed()));
            self.slices.ask_for(self.slices.at_work);
            poll_once(left)?
        };
        // Asleep the same wait takes longer, by the waking.
        self.soon = news && start.elapsed() < 2 * self.busy_poll.limit;
        Ok(())
    }

    /// Asks until there is news, which is true, or it is time to sleep. On a core that others want a yield takes long,
    /// with the slices that are asked for, and one of them is enough.
    fn watch(
        &mut self,
        start: Instant,
        timeout: Option<Duration>,
        poll_once: &mut impl FnMut(Option<Duration>) -> Result<bool>,
    ) -> Result<bool> {
        let limit = timeout.map_or(self.busy_poll.limit, |t| t.min(self.busy_poll.limit));
        if !self.soon || limit.is_zero() {
            return Ok(false);
        }
        let busy_poll = &self.busy_poll;
        let Some(_place) = busy_poll.place_awake(self.is_worker) else {
            return Ok(false);
        };
        let mut news = false;
        while !news && busy_poll.has_a_core() && start.elapsed() < limit {
            news = poll_once(Some(Duration::ZERO))?;
            if !news {
                self.slices.ask_for(Slice::Long);
                thread::yield_now();
            }
        }
        Ok(news)
    }
}

/// A place among those that stay awake, until it is dropped. Only workers are counted.
struct AwakePlace<'a>(Option<&'a AtomicUsize>);

impl Drop for AwakePlace<'_> {
    fn drop(&mut self) {
        if let Some(awake) = self.0 {
            awake.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The slices of one thread.
struct Slices {
    /// While it has work, or sleeps until there is some.
    at_work: Slice,
    /// What it asked the system for last.
    asked: Slice,
    /// The system refused: it is not asked again.
    refused: bool,
}

impl Slices {
    /// Those of a thread that asked for `at_work` when it started.
    fn of_work(at_work: Slice) -> Slices {
        Slices {
            at_work,
            asked: at_work,
            refused: false,
        }
    }

    fn ask_for(&mut self, slice: Slice) {
        if self.asked != slice && !self.refused {
            self.asked = slice;
            self.refused = !thread_priority::ask_for(slice);
        }
    }
}

/// Sleeps until one of the descriptors can be read, which is true, or the time is over. A signal ends it early.
///
/// # Errors
/// The system's.
pub(crate) fn wait_for(fds: [BorrowedFd<'_>; 2], timeout: Option<Duration>) -> Result<bool> {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(Error::internal(format!("poll: {e}"))),
    }
}
