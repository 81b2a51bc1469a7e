//! When requests are due, as a pure state machine: whoever is free to send one asks it, and says what time it is.
//!
//! ```text
//! 0          warm-up        start              measured             end        backlog      last call
//! ├── begin, not counted ──────┤── due here: counted, late or not ──┤── late ones are sent ──┤
//! ```
//! In a closed loop a request is due when a connection is free. In an open loop requests are due at random times that
//! nothing on the server's side moves, and one that is due while every connection is busy is late, and not skipped.

use std::time::Duration;

use super::random::Random;

/// How long something is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Requests that are due before are sent, and not counted.
    pub start: Duration,
    /// How long requests that are counted become due.
    pub length: Duration,
    /// So many requests are counted, however long it takes.
    pub requests: Option<u64>,
}

impl Window {
    /// When no more requests become due; never where they are counted.
    fn end(&self) -> Duration {
        match self.requests {
            Some(_) => Duration::MAX,
            None => self.start.saturating_add(self.length),
        }
    }

    /// How long the backlog of an open loop is worked off after the end: without a bound a server that takes a tenth of
    /// what is asked of it would be waited for nine times as long as it is measured.
    fn last_call(&self) -> Duration {
        self.end().saturating_add(self.length)
    }
}

/// A request that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number, from 0.
    pub number: u64,
    /// When it is to be sent: now, later, or long ago.
    pub due: Duration,
    /// Whether it counts, and is no warm-up.
    pub counted: bool,
}

/// When requests of an open loop are due.
struct Poisson {
    rate: f64,
    next_s: f64,
    random: Random,
}

impl Poisson {
    fn new(rate: u64) -> Poisson {
        let mut poisson = Poisson {
            rate: rate as f64,
            next_s: 0.0,
            // The same arrivals each time, so that what differs between two runs is the server.
            random: Random::new(rate),
        };
        poisson.step();
        poisson
    }

    /// On to the next arrival: the times between two are exponentially distributed.
    fn step(&mut self) {
        const STEPS: u64 = 1 << 53;
        let uniform = (self.random.below(STEPS) + 1) as f64 / STEPS as f64;
        self.next_s -= uniform.ln() / self.rate;
    }

    fn due(&self) -> Duration {
        Duration::try_from_secs_f64(self.next_s).unwrap_or(Duration::MAX)
    }
}

/// The requests of one case.
pub struct Load {
    window: Window,
    arrivals: Option<Poisson>,
    /// The number of the next request.
    next: u64,
    counted: u64,
    over: bool,
}

impl Load {
    /// A closed loop: whoever is free sends.
    pub fn closed(window: Window) -> Load {
        Load {
            window,
            arrivals: None,
            next: 0,
            counted: 0,
            over: false,
        }
    }

    /// An open loop: so many requests a second are due, whoever is free.
    pub fn open(window: Window, rate: u64) -> Load {
        Load {
            arrivals: Some(Poisson::new(rate)),
            ..Load::closed(window)
        }
    }

    /// The next request, for a connection that is free now; `None` if that was all.
    pub fn next(&mut self, now: Duration) -> Option<Arrival> {
        if let Some(poisson) = &mut self.arrivals
            && now >= self.window.start
        {
            // What is left of the warm-up would only be in the way of what counts.
            while poisson.due() < self.window.start {
                poisson.step();
            }
        }
        let due = match &self.arrivals {
            Some(poisson) => poisson.due(),
            None => now,
        };
        let is_all = |most| self.counted >= most;
        let is_all = self.window.requests.is_some_and(is_all);
        if self.over || is_all || due >= self.window.end() || now >= self.window.last_call() {
            // Once told that it is over, no connection may find that it is not.
            self.over = true;
            return None;
        }
        Some(self.take(due))
    }

    fn take(&mut self, due: Duration) -> Arrival {
        let counted = due >= self.window.start;
        let number = self.next;
        self.next += 1;
        self.counted += u64::from(counted);
        if let Some(poisson) = &mut self.arrivals {
            poisson.step();
        }
        Arrival {
            number,
            due,
            counted,
        }
    }

    /// No more requests, whatever is due.
    pub fn stop(&mut self) {
        self.over = true;
    }

    /// The requests that became due and that nobody was ever free to send.
    pub fn unsent(&mut self) -> Vec<Arrival> {
        let mut unsent = Vec::new();
        // Where they are counted, all of them are waited for.
        while self.window.requests.is_none()
            && let Some(poisson) = &self.arrivals
            && poisson.due() < self.window.end()
        {
            let due = poisson.due();
            unsent.push(self.take(due));
        }
        unsent
    }
}
