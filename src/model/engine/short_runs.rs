//! Chooses a session of one thread for short runs, and of several for others.
//!
//! A session of several threads hands a part of nearly every operator to the others, however little there is to do, and
//! waking them then costs more than they take off: with two threads requests of one row of a small net take a fifth
//! longer than with one, and more processor time. The engine does not let a single run choose. So where the run that
//! warms a model up is short, its worker has a second session of one thread, which shares the first one's weights.

use std::time::{Duration, Instant};

use ort::session::Session;

use crate::error::Result;

/// A run that one thread is expected to end in this time is not shared with others: waking one of them takes a good
/// part of it.
pub(super) const SHORT: Duration = Duration::from_micros(100);

/// After so many runs on several threads that were short themselves, one thread is tried again: what was measured of
/// it may have been an accident.
const TRY_AGAIN: u32 = 64;

/// A size that was never run on one thread is tried there if it may take up to so many times as long as a short run.
const TRY_UP_TO: f64 = 8.0;

/// What a measurement counts for in the mean: more where it is below, as what is above had to wait for a core.
const WEIGHT_BELOW: f64 = 0.25;
const WEIGHT_ABOVE: f64 = 0.03;

/// A worker's sessions of one model.
pub(super) struct Sessions {
    /// Of as many threads as the options say.
    session: Session,
    single: Option<(Session, Choice)>,
}

impl Sessions {
    pub(super) fn new(session: Session) -> Sessions {
        Sessions {
            session,
            single: None,
        }
    }

    /// Adds a session of one thread, for short runs. A short one, of so many bytes, took so long.
    pub(super) fn add_single(&mut self, session: Session, (bytes, took): (usize, Duration)) {
        self.single = Some((session, Choice::new(bytes, took)));
    }

    /// Runs inputs of so many bytes in the session that suits them.
    ///
    /// # Errors
    /// The run's own.
    pub(super) fn run<T>(
        &mut self,
        bytes: usize,
        run: impl FnOnce(&mut Session) -> Result<T>,
    ) -> Result<T> {
        let Some((single, choice)) = &mut self.single else {
            return run(&mut self.session);
        };
        let threads = choice.threads(bytes);
        let started = Instant::now();
        let result = run(match threads {
            Threads::One => single,
            Threads::Several => &mut self.session,
        });
        // What was refused says nothing about how long a run takes.
        if result.is_ok() {
            choice.ran(threads, bytes, started.elapsed());
        }
        result
    }
}

/// Which runs are short, by what earlier ones of about the same size took.
#[derive(Debug)]
struct Choice {
    /// One for each power of two of the inputs' bytes.
    sizes: [Size; usize::BITS as usize],
}

/// What a run was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threads {
    One,
    Several,
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// How long one thread takes, once that was measured.
    us: Option<f64>,
    /// How many runs on several threads were short since one thread was last tried.
    passed: u32,
}

fn class(bytes: usize) -> usize {
    bytes.max(1).ilog2() as usize
}

impl Choice {
    /// A run of so many bytes took so long.
    fn new(bytes: usize, took: Duration) -> Choice {
        let mut choice = Choice {
            sizes: [Size::default(); usize::BITS as usize],
        };
        choice.ran(Threads::One, bytes, took);
        choice
    }

    /// How many threads the next run of so many bytes should have.
    fn threads(&self, bytes: usize) -> Threads {
        match self.is_short(bytes) {
            true => Threads::One,
            false => Threads::Several,
        }
    }

    fn is_short(&self, bytes: usize) -> bool {
        let short = SHORT.as_micros() as f64;
        let class = class(bytes);
        let size = self.sizes[class];
        if let Some(us) = size.us {
            return us <= short || size.passed >= TRY_AGAIN;
        }
        // Never measured: at most a smaller run's time scaled up, since part of that time does not grow with the size.
        let smaller = (0..class).rev().find_map(|c| Some((c, self.sizes[c].us?)));
        let expected = smaller.map_or(0.0, |(c, us)| us * 2f64.powi((class - c) as i32));
        expected <= TRY_UP_TO * short
    }

    fn ran(&mut self, threads: Threads, bytes: usize, took: Duration) {
        let size = &mut self.sizes[class(bytes)];
        if threads == Threads::Several {
            size.passed += u32::from(took <= SHORT);
            return;
        }
        size.passed = 0;
        let took = took.as_secs_f64() * 1e6;
        let mean = size.us.unwrap_or(took);
        let weight = if took < mean {
            WEIGHT_BELOW
        } else {
            WEIGHT_ABOVE
        };
        size.us = Some(mean + (took - mean) * weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Runs of so many bytes, of a model that takes 10 us and another for each byte; how many of them one thread made.
    fn run(choice: &mut Choice, bytes: usize, times: u32) -> u32 {
        let mut by_one = 0;
        for _ in 0..times {
            let threads = choice.threads(bytes);
            by_one += u32::from(threads == Threads::One);
            choice.ran(threads, bytes, us(10 + bytes as u64));
        }
        by_one
    }

    #[test]
    fn one_thread_makes_the_runs_that_it_ends_soon() {
        let mut choice = Choice::new(1, us(11));
        assert_eq!(run(&mut choice, 1, 100), 100);
        assert_eq!(run(&mut choice, 90, 100), 100);
        // Tried once, and then known.
        assert_eq!(run(&mut choice, 200, 1000), 1);
        assert_eq!(run(&mut choice, 1 << 40, 1000), 0);
    }

    #[test]
    fn a_slow_run_by_accident_does_not_count_for_ever() {
        let mut choice = Choice::new(8, us(5000));
        assert!(run(&mut choice, 8, 100 * TRY_AGAIN) > 50 * TRY_AGAIN);
    }

    #[test]
    fn every_size_has_its_place() {
        let mut choice = Choice::new(0, us(1));
        assert!(choice.is_short(0));
        assert!(!choice.is_short(usize::MAX));
        choice.ran(Threads::Several, usize::MAX, us(1));
    }
}
