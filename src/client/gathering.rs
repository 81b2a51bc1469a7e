//! How long the thread that writes for all waits for the requests of others.

use std::time::{Duration, Instant};

/// How long the requests of others are waited for before those that are there leave.
const GATHER_LIMIT: Duration = Duration::from_micros(200);
/// How many yields in a row may bring no request.
const GATHER_IDLE_YIELDS: u32 = 2;

/// A driver's wait for the requests of threads that it has just woken: sent together they cost both ends one system call
/// and one wakeup instead of one each, and the server runs them as one chunk. Each time half of those that are missing
/// have come, they leave: the server works on them while the others come.
#[derive(Default)]
pub(super) struct Gathering {
    since: Option<Instant>,
    /// How many were missing at first.
    most: usize,
    expected: usize,
    idle_yields: u32,
}

/// What a driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Yields the core once, as the threads that are expected may be waiting for it.
    Yield,
    /// Sends what there is.
    Send,
    /// Sends what there is, and no longer waits for the others: they do something else.
    GiveUp,
}

impl Gathering {
    /// What to do while so many threads are `expected` to send a request.
    pub(super) fn next(&mut self, expected: usize, clock: impl FnOnce() -> Instant) -> Step {
        self.most = self.most.max(expected);
        if 2 * expected <= self.most {
            return Step::Send;
        }
        self.idle_yields = if self.expected == expected {
            self.idle_yields + 1
        } else {
            0
        };
        self.expected = expected;
        let now = clock();
        let since = *self.since.get_or_insert(now);
        if self.idle_yields < GATHER_IDLE_YIELDS && now.duration_since(since) < GATHER_LIMIT {
            Step::Yield
        } else {
            Step::GiveUp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_when_half_of_them_have_come() {
        let start = Instant::now();
        assert_eq!(Gathering::default().next(0, || start), Step::Send);
        let mut gathering = Gathering::default();
        // Of 5 threads one sends a request, then none, then another one.
        for expected in [5, 4, 4, 3] {
            assert_eq!(gathering.next(expected, || start), Step::Yield);
        }
        assert_eq!(gathering.next(2, || start), Step::Send);
        let mut gathering = Gathering::default();
        assert_eq!(gathering.next(1, || start), Step::Yield);
        assert_eq!(gathering.next(0, || start), Step::Send);
    }

    #[test]
    fn threads_that_do_something_else_are_not_waited_for() {
        let start = Instant::now();
        let mut gathering = Gathering::default();
        for step in [Step::Yield, Step::Yield, Step::GiveUp] {
            assert_eq!(gathering.next(3, || start), step);
        }
        let mut gathering = Gathering::default();
        assert_eq!(gathering.next(9, || start), Step::Yield);
        let just_before = start + GATHER_LIMIT - Duration::from_micros(1);
        assert_eq!(gathering.next(8, || just_before), Step::Yield);
        assert_eq!(gathering.next(7, || start + GATHER_LIMIT), Step::GiveUp);
    }
}
