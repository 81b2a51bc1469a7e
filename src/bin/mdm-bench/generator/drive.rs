//! Drives a load over real connections: a thread for each, which asks, waits for the answer, and counts.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use super::Case;
use super::load::{Arrival, Load, Window};
use super::measure::{Outcome, Spent, Tally, Times};
use super::report::Report;

/// What a connection's thread needs: a request's bytes lie on the heap.
const STACK_BYTES: usize = 512 << 10;

/// How often whoever watches is told that time passes.
const TICK: Duration = Duration::from_millis(50);

/// A way to the server.
pub trait Connection: Send {
    /// Sends the prepared request of that index, and waits for its end.
    fn ask(&mut self, request: usize) -> Outcome;

    /// Sends what is due when it is due, until that was all. Where the protocol knows no more, one request at a time.
    fn serve(&mut self, asking: &mut Asking<'_>) {
        while let Some(arrival) = asking.next() {
            let wait = arrival.due.saturating_sub(asking.now());
            if !wait.is_zero() {
                thread::sleep(wait);
            }
            let sent = asking.now();
            let outcome = self.ask(asking.request(arrival));
            asking.ended(arrival, sent, outcome);
        }
    }
}

/// What a connection is to send, and what has come of it so far.
pub struct Asking<'a> {
    shared: &'a Shared,
    tally: Tally,
}

impl Asking<'_> {
    /// The next request, which may be due later; `None` if that was all.
    pub fn next(&self) -> Option<Arrival> {
        self.shared.load().next(self.now())
    }

    /// Which of the prepared requests that is.
    pub fn request(&self, arrival: Arrival) -> usize {
        (arrival.number % self.shared.requests) as usize
    }

    /// What time it is.
    pub fn now(&self) -> Duration {
        self.shared.now()
    }

    /// A request that was sent has just ended.
    pub fn ended(&mut self, arrival: Arrival, sent: Duration, outcome: Outcome) {
        let done = self.now();
        self.tally.ended(arrival, Times { sent, done }, outcome);
    }
}

/// What is to be driven.
pub struct Drive {
    pub case: Case,
    pub window: Window,
    /// All together they have as many requests in flight as the case.
    pub connections: Vec<Box<dyn Connection>>,
    /// How many different requests there are, which take turns.
    pub requests: usize,
}

impl Drive {
    /// Runs the case to its end. `passing` hears how long it has been running, every now and then.
    ///
    /// # Errors
    /// If the system has no more threads, or one of them failed.
    pub fn run(self, passing: impl Fn(Duration)) -> Result<Report> {
        let load = match self.case.rate {
            Some(rate) => Load::open(self.window, rate),
            None => Load::closed(self.window),
        };
        let shared = Shared {
            load: Mutex::new(load),
            window: self.window,
            requests: self.requests as u64,
            start: Instant::now(),
        };
        let processor = processor_time();
        let mut tally = thread::scope(|scope| {
            let mut threads = Vec::new();
            for connection in self.connections {
                let shared = &shared;
                let thread = thread::Builder::new().stack_size(STACK_BYTES);
                match thread.spawn_scoped(scope, move || shared.serve(connection)) {
                    Ok(thread) => threads.push(thread),
                    Err(e) => {
                        shared.load().stop();
                        let so_far = threads.len();
                        return Err(e).with_context(|| {
                            format!("--concurrency: no thread for more than {so_far} connections")
                        });
                    }
                }
            }
            while !threads.iter().all(ScopedJoinHandle::is_finished) {
                thread::sleep(TICK);
                passing(shared.now());
            }
            let mut tally = Tally::new(self.window);
            for thread in threads {
                let of_one = thread.join();
                tally.add(of_one.map_err(|_| anyhow::anyhow!("a connection's thread panicked"))?);
            }
            Ok(tally)
        })?;
        let now = shared.now();
        for arrival in shared.load().unsent() {
            tally.unsent(arrival, now);
        }
        let spent = Spent {
            processor: processor_time().saturating_sub(processor),
            elapsed: now,
        };
        Ok(tally.report(self.case, spent))
    }
}

/// What the connections' threads share.
pub struct Shared {
    load: Mutex<Load>,
    window: Window,
    requests: u64,
    start: Instant,
}

impl Shared {
    fn serve(&self, mut connection: Box<dyn Connection>) -> Tally {
        // Where it cannot be set, requests of an open loop are sent some 50 microseconds late, which the table shows.
        #[cfg(target_os = "linux")]
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut asking = Asking {
            shared: self,
            tally: Tally::new(self.window),
        };
        connection.serve(&mut asking);
        asking.tally
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process has had of the processors so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
