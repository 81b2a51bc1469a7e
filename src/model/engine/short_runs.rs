//! Chooses a session of one thread for short runs, and of several for those that several end much sooner.
//!
//! A session of several threads hands a part of nearly every operator to the others, however little there is to do, and
//! waking them then costs more than they take off: with two threads requests of one row of a small net take a fifth
//! longer than with one, and more processor time. The engine does not let a single run choose. So where the run that
//! warms a model up is short, its worker has a second session of one thread, which shares the first one's weights.
//! Which of the two suits runs of a size is measured as they come: it depends on the model, and on what else the cores
//! have to do.

use std::time::{Duration, Instant};

use ort::session::Session;

use crate::error::Result;

/// A run that one thread is expected to end in this time is not shared with others: waking one of them takes a good
/// part of it.
pub(super) const SHORT: Duration = Duration::from_micros(100);

/// Up to so many times as long both ways are measured; what takes longer has several threads, as a trial of one could
/// cost more than is ever saved.
const TRY_UP_TO: f64 = 8.0;

/// Several threads have to end a run in this part of one thread's time: they take cores that others may need.
const WORTH_IT: f64 = 0.7;

/// After so many runs one way the other is tried again: what was measured of it may have been an accident, or the cores
/// may have less or more to do by now.
const TRY_AGAIN: u32 = 64;

/// What a measurement counts for in the mean, more where it is below, and how many times the mean it may be: a run may
/// have had to wait for a core.
const WEIGHT_BELOW: f64 = 0.25;
const WEIGHT_ABOVE: f64 = 0.1;
const AT_MOST: f64 = 4.0;

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

/// What suits runs of which size, by how long earlier ones took.
#[derive(Debug)]
struct Choice {
    /// One for each power of two of the inputs' bytes.
    sizes: [Size; usize::BITS as usize],
}

/// What a run is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threads {
    One,
    Several,
}

impl Threads {
    fn other(self) -> Threads {
        match self {
            Threads::One => Threads::Several,
            Threads::Several => Threads::One,
        }
    }
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    one: Mean,
    several: Mean,
    last: Option<Threads>,
    /// How many runs in a row were made like the last one.
    in_a_row: u32,
}

/// A moving mean of how long runs take.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    us: Option<f64>,
}

impl Mean {
    fn add(&mut self, took: Duration) {
        let took = took.as_secs_f64() * 1e6;
        let mean = self.us.unwrap_or(took);
        let weight = match took < mean {
            true => WEIGHT_BELOW,
            false => WEIGHT_ABOVE,
        };
        self.us = Some(mean + (took.min(mean * AT_MOST) - mean) * weight);
    }
}

fn class(bytes: usize) -> usize {
    bytes.max(1).ilog2() as usize
}

impl Choice {
    /// A run of so many bytes took so long on one thread.
    fn new(bytes: usize, took: Duration) -> Choice {
        let mut choice = Choice {
            sizes: [Size::default(); usize::BITS as usize],
        };
        choice.ran(Threads::One, bytes, took);
        choice
    }

    /// How many threads the next run of so many bytes should have.
    fn threads(&self, bytes: usize) -> Threads {
        let size = &self.sizes[class(bytes)];
        let one = size.one.us.unwrap_or_else(|| self.expected(bytes));
        let short = SHORT.as_secs_f64() * 1e6;
        if one <= short {
            return Threads::One;
        }
        let shorter = size.several.us.map_or(one, |several| several.min(one));
        if shorter > TRY_UP_TO * short {
            return Threads::Several;
        }
        let better = match (size.one.us, size.several.us) {
            (None, _) => return Threads::One,
            (_, None) => return Threads::Several,
            (Some(one), Some(several)) if several <= one * WORTH_IT => Threads::Several,
            _ => Threads::One,
        };
        match size.last == Some(better) && size.in_a_row >= TRY_AGAIN {
            true => better.other(),
            false => better,
        }
    }

    /// How long one thread may take for runs of a size that it never made: a smaller run's time scaled up, which is
    /// at least that, since part of the time does not grow with the size.
    fn expected(&self, bytes: usize) -> f64 {
        let class = class(bytes);
        let smaller = (0..class)
            .rev()
            .find_map(|c| Some((c, self.sizes[c].one.us?)));
        smaller.map_or(0.0, |(c, us)| us * 2f64.powi((class - c) as i32))
    }

    fn ran(&mut self, threads: Threads, bytes: usize, took: Duration) {
        let size = &mut self.sizes[class(bytes)];
        match threads {
            Threads::One => size.one.add(took),
            Threads::Several => size.several.add(took),
        }
        size.in_a_row = match size.last.replace(threads) == Some(threads) {
            true => size.in_a_row.saturating_add(1),
            false => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Runs of so many bytes, of a model that takes one thread 10 us and another for each byte, and several threads
    /// this part of that; how many of them one thread made.
    fn run(choice: &mut Choice, bytes: usize, times: u32, part: f64) -> u32 {
        let mut by_one = 0;
        for _ in 0..times {
            let threads = choice.threads(bytes);
            by_one += u32::from(threads == Threads::One);
            let one = us(10 + bytes as u64);
            choice.ran(
                threads,
                bytes,
                match threads {
                    Threads::One => one,
                    Threads::Several => one.mul_f64(part),
                },
            );
        }
        by_one
    }

    #[test]
    fn one_thread_makes_the_runs_that_it_ends_soon() {
        let mut choice = Choice::new(1, us(11));
        assert_eq!(run(&mut choice, 1, 100, 0.5), 100);
        assert_eq!(run(&mut choice, 90, 100, 0.5), 100);
    }

    #[test]
    fn longer_runs_go_to_several_threads_only_where_these_end_them_much_sooner() {
        // Alone on the machine: half the time on two threads.
        let mut choice = Choice::new(1, us(11));
        let by_one = run(&mut choice, 400, 6400, 0.5);
        assert!((1..=102).contains(&by_one), "{by_one}");
        // Beside others that use the cores.
        let mut choice = Choice::new(1, us(11));
        let by_one = run(&mut choice, 400, 6400, 0.9);
        assert!((6298..6400).contains(&by_one), "{by_one}");
        // The others have gone, and come again.
        assert!(run(&mut choice, 400, 6400, 0.5) < 2000);
        assert!(run(&mut choice, 400, 6400, 1.5) > 4400);
    }

    #[test]
    fn long_runs_are_never_tried_on_one_thread() {
        let mut choice = Choice::new(1, us(11));
        assert_eq!(run(&mut choice, 1 << 40, 1000, 0.5), 0);
        // Not by way of ever longer ones either, but for a trial of the first size that is too long.
        let by_one: u32 = (0..40)
            .map(|power| run(&mut choice, 1 << power, 1, 1.0))
            .sum();
        assert!(by_one <= 11, "{by_one}");
        assert_eq!(run(&mut choice, 1 << 12, 1000, 0.5), 0);
    }

    #[test]
    fn a_slow_run_by_accident_does_not_count_for_ever() {
        let mut choice = Choice::new(8, us(5000));
        assert!(run(&mut choice, 8, 100 * TRY_AGAIN, 1.0) > 50 * TRY_AGAIN);
    }

    #[test]
    fn every_size_has_its_place() {
        let mut choice = Choice::new(0, us(1));
        assert_eq!(choice.threads(0), Threads::One);
        assert_eq!(choice.threads(usize::MAX), Threads::Several);
        choice.ran(Threads::Several, usize::MAX, us(1));
    }
}
