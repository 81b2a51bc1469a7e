//! How long the thread that writes for all waits for the requests of others.

use std::time::{Duration, Instant};

/// How long the requests of others are waited for before those that are there leave.
const GATHER_LIMIT: Duration = Duration::from_micros(200);
/// How many yields in a row may bring no request.
const GATHER_IDLE_YIELDS: u32 = 2;

/// A driver's wait for the requests of threads that it has just woken: sent together they cost both ends one system call
/// and one wakeup instead of one each, and the server runs them as one chunk.
#[derive(Default)]
pub(super) struct Gathering {
    since: Option<Instant>,
    expected: usize,
    idle_yields: u32,
}

impl Gathering {
    /// Whether to yield the core once more, as the threads that are still `expected` may be waiting for it. Those that do
    /// something else are not waited for.
    pub(super) fn goes_on(&mut self, expected: usize, clock: impl FnOnce() -> Instant) -> bool {
        if expected == 0 {
            return false;
        }
        self.idle_yields = if self.expected == expected {
            self.idle_yields + 1
        } else {
            0
        };
        self.expected = expected;
        let now = clock();
        let since = *self.since.get_or_insert(now);
        self.idle_yields < GATHER_IDLE_YIELDS && now.duration_since(since) < GATHER_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_while_requests_come_and_ends_when_none_do() {
        let start = Instant::now();
        let mut gathering = Gathering::default();
        // Of 5 threads one sends a request, then none, then another one.
        for expected in [5, 4, 4, 3] {
            assert!(gathering.goes_on(expected, || start), "{expected}");
        }
        assert!(
            gathering.goes_on(3, || start),
            "one yield may bring nothing"
        );
        assert!(!gathering.goes_on(3, || start), "two in a row end it");
    }

    #[test]
    fn it_ends_when_all_have_come_and_after_its_limit() {
        let start = Instant::now();
        let mut gathering = Gathering::default();
        assert!(gathering.goes_on(3, || start));
        let just_before = start + GATHER_LIMIT - Duration::from_micros(1);
        assert!(gathering.goes_on(2, || just_before));
        assert!(!gathering.goes_on(1, || start + GATHER_LIMIT));
        assert!(!gathering.goes_on(0, || start));
    }
}
