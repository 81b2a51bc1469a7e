//! Short runs stay on the worker's own thread.
//!
//! A session of several threads hands a part of nearly every operator to the others, however little there is to do, and
//! waking them then costs more than they take off: a run of one row of a small net takes a fifth longer with two
//! threads than with one, and as much more processor time. The engine does not let a single run choose. So where
//! a model's smallest run is short, its worker has a second session of one thread, which shares the first one's weights.

use std::time::{Duration, Instant};

use ort::session::Session;

/// A run that one thread is expected to end in this time is not shared with others: waking one of them takes a good part
/// of it.
pub(super) const SHORT: Duration = Duration::from_micros(100);

/// After so many runs on several threads that were short themselves, one thread is tried again: what was measured of it may have been
/// an accident.
const TRY_AGAIN: u32 = 64;

/// What each measurement counts for in the mean.
const WEIGHT: f64 = 0.125;

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

    /// Adds a session of one thread, for short runs.
    pub(super) fn add_single(&mut self, session: Session) {
        self.single = Some((session, Choice::default()));
    }

    #[cfg(test)]
    pub(super) fn has_single(&self) -> bool {
        self.single.is_some()
    }

    /// Runs inputs of so many bytes in the session that suits them.
    pub(super) fn run<T>(&mut self, bytes: usize, run: impl FnOnce(&mut Session) -> T) -> T {
        let Some((single, choice)) = &mut self.single else {
            return run(&mut self.session);
        };
        let by_one = choice.is_short(bytes);
        let started = Instant::now();
        let result = run(if by_one { single } else { &mut self.session });
        choice.ran(by_one, bytes, started.elapsed());
        result
    }
}

/// Which runs are short, by what earlier ones took.
#[derive(Debug, Default)]
struct Choice {
    /// What one thread takes for a byte of input. A byte of a longer sequence may take longer: the mean follows.
    us_per_byte: f64,
    /// Runs on several threads that were short, since one thread was last tried.
    passed: u32,
}

impl Choice {
    fn is_short(&self, bytes: usize) -> bool {
        let expected = self.us_per_byte * bytes.max(1) as f64;
        expected <= SHORT.as_micros() as f64 || self.passed >= TRY_AGAIN
    }

    fn ran(&mut self, by_one: bool, bytes: usize, took: Duration) {
        if !by_one {
            self.passed += u32::from(took <= SHORT);
            return;
        }
        self.passed = 0;
        let measured = took.as_secs_f64() * 1e6 / bytes.max(1) as f64;
        self.us_per_byte = match self.us_per_byte {
            0.0 => measured,
            mean => mean + (measured - mean) * WEIGHT,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Of a model that takes a microsecond a byte on one thread.
    fn measured() -> Choice {
        let mut choice = Choice::default();
        choice.ran(true, 10, us(10));
        choice
    }

    #[test]
    fn one_thread_runs_what_it_ends_soon() {
        let choice = measured();
        assert!(choice.is_short(0) && choice.is_short(100));
        assert!(!choice.is_short(101));
    }

    #[test]
    fn what_was_never_measured_is_tried_on_one_thread() {
        assert!(Choice::default().is_short(1 << 40));
    }

    #[test]
    fn a_slow_run_by_accident_does_not_count_for_ever() {
        let mut choice = Choice::default();
        choice.ran(true, 10, us(5000));
        let mut tries = 0;
        for _ in 0..100 * TRY_AGAIN {
            let by_one = choice.is_short(10);
            tries += u32::from(by_one);
            choice.ran(by_one, 10, us(10));
        }
        assert!(choice.is_short(10), "{choice:?}");
        assert!(tries > 50 * TRY_AGAIN, "{tries}");
    }

    #[test]
    fn long_runs_are_not_tried_on_one_thread_again() {
        let mut choice = measured();
        for _ in 0..10 * TRY_AGAIN {
            assert!(!choice.is_short(1000));
            choice.ran(false, 1000, us(500));
        }
    }
}
