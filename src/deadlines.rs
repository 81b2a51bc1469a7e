//! When requests run out of time: a heap that forgets those that have ended when it gets to them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::message::Serial;

/// So many more deadlines than twice the open requests may be kept.
const MIN_ENDED: usize = 1024;

/// Deadlines of requests, of which some may have ended since.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(u64, Serial)>>,
}

impl Deadlines {
    pub(crate) fn push(&mut self, deadline_us: u64, serial: Serial) {
        self.heap.push(Reverse((deadline_us, serial)));
    }

    /// When to ask [`Deadlines::expired`] next. It may be the deadline of a request that has ended.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((us, _))| *us)
    }

    /// The open requests whose deadline has passed; each is told once. `open` is the number of open requests.
    pub(crate) fn expired(
        &mut self,
        now_us: u64,
        open: usize,
        is_open: impl Fn(Serial) -> bool,
    ) -> Vec<Serial> {
        if self.heap.len() > 2 * open + MIN_ENDED {
            // Behind one that runs long, the deadlines of those that have ended would stay.
            self.heap.retain(|Reverse((_, serial))| is_open(*serial));
            self.heap.shrink_to(2 * self.heap.len());
        }
        let mut expired = Vec::new();
        while let Some(Reverse((deadline_us, serial))) = self.heap.peek().copied() {
            let open = is_open(serial);
            if open && deadline_us > now_us {
                break;
            }
            self.heap.pop();
            if open {
                expired.push(serial);
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_of_requests_that_have_ended_leave_nothing_behind() {
        let mut deadlines = Deadlines::default();
        deadlines.push(5, Serial(0));
        for number in 1..100_000 {
            deadlines.push(1_000, Serial(number));
            assert_eq!(deadlines.expired(0, 1, |serial| serial.0 == 0), []);
        }
        assert!(deadlines.heap.len() <= MIN_ENDED + 3);
        assert_eq!(deadlines.due_us(), Some(5));
        assert_eq!(deadlines.expired(5, 1, |s| s.0 == 0), [Serial(0)]);
        assert_eq!(deadlines.expired(2_000, 0, |_| false), []);
        assert_eq!(deadlines.due_us(), None);
    }
}
