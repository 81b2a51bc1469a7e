//! Which session a small request shares with others, when there are many at once.
//!
//! They share one while they are few. Of many, those on each core have one of their own: the thread that reads for all
//! wakes the others, and to wake a thread on another core, and to hand it its answer, takes both cores several times
//! what it takes on the same core.

use std::sync::Arc;

use super::shared_place::SharedPlace;
use super::tickets::SharedSession;
use crate::error::Result;

/// Calls at once that are worth a further session. With fewer in each, requests travel alone more often than that saves.
const CALLS_FOR_A_SESSION: usize = 16;

/// The sessions of small requests: one for all, and at most one for each core.
pub(super) struct SmallSessions {
    places: Box<[SharedPlace]>,
    cores: CoreNumbers,
}

impl SmallSessions {
    pub(super) fn new(cores: usize) -> SmallSessions {
        SmallSessions {
            places: (0..cores.max(1)).map(|_| SharedPlace::default()).collect(),
            cores: CoreNumbers::of_this_process(),
        }
    }

    /// The session for a request of this thread, of so many `calls` at once; `open` opens one.
    ///
    /// # Errors
    /// Why the session for all could not be opened. That a further one could not is none: a server may refuse it
    /// (`--max-sessions`), and the one for all serves too.
    pub(super) fn get(
        &self,
        calls: usize,
        open: impl Fn() -> Result<SharedSession>,
    ) -> Result<Arc<SharedSession>> {
        let place = self.place(calls, self.cores.current());
        let further = (place > 0).then(|| self.places[place].get_if_possible(&open));
        match further.flatten() {
            Some(session) => Ok(session),
            None => self.places[0].get(open),
        }
    }

    /// Whether the session for all is open.
    pub(super) fn has_any(&self) -> bool {
        self.places[0].find().is_some()
    }

    /// Which place serves the requests of a core; the first one is for all.
    fn place(&self, calls: usize, core: usize) -> usize {
        // Rounded: of calls that are always as many, a few are between two requests.
        let worth = (calls + CALLS_FOR_A_SESSION / 2) / CALLS_FOR_A_SESSION;
        core % worth.clamp(1, self.places.len())
    }
}

/// The system's numbers of the cores that this process may use, in order: a process that has every second core of a
/// machine (some number those of two sockets in turn) is to use all of its sessions.
#[derive(Default)]
struct CoreNumbers(Vec<usize>);

impl CoreNumbers {
    #[cfg(target_os = "linux")]
    fn of_this_process() -> CoreNumbers {
        use rustix::thread::{CpuSet, sched_getaffinity};

        // Of a machine with more cores than the set can name, each has the system's number.
        let cores = sched_getaffinity(None).unwrap_or_default();
        let all = 0..CpuSet::MAX_CPU;
        CoreNumbers(all.filter(|core| cores.is_set(*core)).collect())
    }

    #[cfg(not(target_os = "linux"))]
    fn of_this_process() -> CoreNumbers {
        CoreNumbers::default()
    }

    /// How many of this process's cores come before the one that this thread runs on. It may be another one by the time
    /// that this is used, which costs time only.
    fn current(&self) -> usize {
        #[cfg(target_os = "linux")]
        return self.before(rustix::thread::sched_getcpu());
        #[cfg(not(target_os = "linux"))]
        return 0;
    }

    fn before(&self, core: usize) -> usize {
        self.0.binary_search(&core).unwrap_or(core)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_core_has_a_session_of_its_own_where_calls_are_many() {
        let small = SmallSessions::new(3);
        let places = |calls| [0, 1, 2, 3].map(|core| small.place(calls, core));
        for few in [0, 1, 16, 23] {
            assert_eq!(places(few), [0; 4], "{few} calls");
        }
        assert_eq!(places(24), [0, 1, 0, 1]);
        assert_eq!(places(39), [0, 1, 0, 1]);
        assert_eq!(places(40), [0, 1, 2, 0]);
        assert_eq!(places(10_000), [0, 1, 2, 0]);
        assert_eq!(SmallSessions::new(1).place(10_000, 5), 0);
    }

    #[test]
    fn a_process_that_has_every_second_core_counts_its_own() {
        let cores = CoreNumbers(vec![1, 3, 5]);
        assert_eq!([1, 3, 5].map(|core| cores.before(core)), [0, 1, 2]);
        // It was given another core since.
        assert_eq!(cores.before(4), 4);
    }
}
