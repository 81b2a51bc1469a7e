//! What the ventilator and the workers share of small chunks that run between two runs of a bulk chunk.
//!
//! Their credits are left here without waking the ventilator, which has a core to itself least of all then: it takes them when
//! it is awake for something else, the bulk chunk's own credit at the latest. Only while it waits for such a credit does the
//! worker tell it that one is here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::message::Credit;

/// Credits that may lie here; what comes beyond goes the usual way.
const PLACES: usize = 1024;
/// After a small chunk others are expected for so long.
const SMALL_COME_US: u64 = 1_000_000;
/// Processor time that bulk has, on all cores together, between two times that small chunks pass. To let them pass costs bulk
/// about a tenth of that where every core is busy, however short they are: ventilator, sink and client are woken for it, and
/// the model's rows leave the core's cache.
const BETWEEN_US: u64 = 1_000;
/// The same where express workers run them, which wait for no run to end: the next time is never further than this, so it may be
/// further than between two runs, whose ends are chance.
pub(crate) const EXPRESS_BETWEEN_US: u64 = 2_400;
/// No worker lets small chunks wait for longer than this and a run, though others let some pass all the time.
const LONGEST_US: u64 = 1_000;
/// Between longer runs than this small chunks always pass: there are few such times, and the next is far.
const LONG_RUN_US: u64 = 2_000;

#[derive(Debug)]
pub(crate) struct BesideBulk {
    leave: Sender<Credit>,
    left: Receiver<Credit>,
    /// The ventilator waits for one of them.
    is_awaited: AtomicBool,
    /// When a small chunk was given out last; 0: never.
    small_us: AtomicU64,
    /// When one last ran between two runs of a bulk chunk.
    passed_us: AtomicU64,
    /// How long bulk has all cores between two such times, if it has them all.
    between_us: u64,
    /// The same before an express worker runs some.
    express_between_us: u64,
}

/// What became of a credit that was to be left.
#[derive(Debug)]
pub(crate) enum Left {
    /// The ventilator takes it when it is awake.
    Quietly,
    /// The ventilator waits for it and is to be told.
    Awaited,
    /// There is no place.
    Not(Box<Credit>),
}

impl BesideBulk {
    pub(crate) fn new(cores: usize) -> BesideBulk {
        let (leave, left) = bounded(PLACES);
        BesideBulk {
            leave,
            left,
            is_awaited: AtomicBool::new(false),
            small_us: AtomicU64::new(0),
            passed_us: AtomicU64::new(0),
            between_us: BETWEEN_US / cores.max(1) as u64,
            express_between_us: EXPRESS_BETWEEN_US / cores.max(1) as u64,
        }
    }

    // ---- the worker's side ---------------------------------------------------------------------------------------

    pub(crate) fn leave(&self, credit: Credit) -> Left {
        if let Err(refused) = self.leave.try_send(credit) {
            return Left::Not(Box::new(refused.into_inner()));
        }
        // Either this sees that it is awaited, or the ventilator, which says so first, sees the credit.
        fence(Ordering::SeqCst);
        match self.is_awaited.load(Ordering::Relaxed) {
            true => Left::Awaited,
            false => Left::Quietly,
        }
    }

    /// Whether small chunks were given out lately, to any worker.
    pub(crate) fn small_chunks_come(&self, now_us: u64) -> bool {
        let last_us = self.small_us.load(Ordering::Relaxed);
        last_us > 0 && now_us.saturating_sub(last_us) < SMALL_COME_US
    }

    /// Where all cores are inside models: whether bulk has had them for long enough to let small chunks pass once more, at any
    /// worker. `run_us` is how long a run of the worker that asks takes, as they would wait for another one, and `since_us` for
    /// how long it has let none pass. Where more small requests wait than have a place, one pass is for many of them.
    pub(crate) fn may_pass(&self, now_us: u64, run_us: u64, since_us: u64) -> bool {
        let passed_us = self.passed_us.load(Ordering::Relaxed);
        now_us.saturating_sub(passed_us) >= self.between_us
            || run_us > LONG_RUN_US
            || since_us >= LONGEST_US
            || self.is_awaited.load(Ordering::Relaxed)
    }

    /// How long bulk has all cores from now on before an express worker runs small chunks; `None` if it has had them for long enough.
    pub(crate) fn left_to_bulk(&self, now_us: u64) -> Option<Duration> {
        let due_us = self.passed_us.load(Ordering::Relaxed) + self.express_between_us;
        let left_us = due_us.saturating_sub(now_us).min(self.express_between_us);
        (left_us > 0).then(|| Duration::from_micros(left_us))
    }

    /// Small chunks have passed.
    pub(crate) fn passed(&self, now_us: u64) {
        self.passed_us.store(now_us, Ordering::Relaxed);
    }

    // ---- the ventilator's side -----------------------------------------------------------------------------------

    pub(crate) fn take(&self) -> Option<Credit> {
        self.left.try_recv().ok()
    }

    /// Says before the ventilator sleeps whether it waits for a credit. False if it does and one has come already.
    pub(crate) fn may_sleep(&self, awaits: bool) -> bool {
        self.is_awaited.store(awaits, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !awaits || self.left.is_empty()
    }

    /// A small chunk was given out.
    pub(crate) fn small_chunk_given(&self, now_us: u64) {
        self.small_us.store(now_us.max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ChunkId, ModelId, ModelLabel, WorkerId};

    fn credit(chunk: u64) -> Credit {
        Credit {
            worker: WorkerId(0),
            chunk: ChunkId(chunk),
            model: ModelId(1),
            label: ModelLabel(0),
            rows: 1,
            runs: 1,
            compute_us: 1,
            spent_us: 0,
            failed: Vec::new(),
            handed: Vec::new(),
        }
    }

    #[test]
    fn a_credit_that_is_awaited_is_never_left_untold() {
        let beside = BesideBulk::new(2);
        assert!(beside.may_sleep(false));
        assert!(matches!(beside.leave(credit(1)), Left::Quietly));
        // It came before the ventilator began to wait: it must look once more.
        assert!(!beside.may_sleep(true));
        assert_eq!(beside.take(), Some(credit(1)));
        assert!(beside.may_sleep(true));
        assert!(matches!(beside.leave(credit(2)), Left::Awaited));
        // Nobody waits any more.
        assert!(beside.may_sleep(false));
        assert!(matches!(beside.leave(credit(3)), Left::Quietly));
        assert_eq!(
            [beside.take(), beside.take(), beside.take()],
            [Some(credit(2)), Some(credit(3)), None]
        );
    }

    #[test]
    fn what_finds_no_place_is_given_back() {
        let beside = BesideBulk::new(2);
        for chunk in 0..PLACES as u64 {
            assert!(matches!(beside.leave(credit(chunk)), Left::Quietly));
        }
        match beside.leave(credit(5000)) {
            Left::Not(refused) => assert_eq!(*refused, credit(5000)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bulk_has_the_cores_between_two_times_that_small_chunks_pass() {
        for cores in [1, 2, 64] {
            let (beside, between) = (BesideBulk::new(cores), BETWEEN_US / cores as u64);
            let now = 1_000_000;
            assert!(beside.may_pass(now, 300, 0));
            beside.passed(now);
            assert!(!beside.may_pass(now + between - 1, LONG_RUN_US, LONGEST_US - 1));
            assert!(beside.may_pass(now + between, 300, 0));
            // The end of a long run is too far to wait for.
            assert!(beside.may_pass(now, LONG_RUN_US + 1, 0));
            // Another worker's small chunks do not keep this one's waiting for ever.
            assert!(beside.may_pass(now, 300, LONGEST_US));
            // Many wait.
            assert!(beside.may_sleep(true));
            assert!(beside.may_pass(now, 300, 0));
        }
    }

    #[test]
    fn bulk_has_the_cores_for_a_while_after_an_express_worker() {
        for cores in [1, 2, 64] {
            let (beside, between) = (BesideBulk::new(cores), EXPRESS_BETWEEN_US / cores as u64);
            let now = 1_000_000;
            assert_eq!(beside.left_to_bulk(now), None);
            beside.passed(now);
            let left = Duration::from_micros(between);
            assert_eq!(beside.left_to_bulk(now), Some(left));
            assert_eq!(
                beside.left_to_bulk(now - 10),
                Some(left),
                "another core's clock"
            );
            assert_eq!(
                beside.left_to_bulk(now + between - 1),
                Some(Duration::from_micros(1))
            );
            assert_eq!(beside.left_to_bulk(now + between), None);
        }
    }

    #[test]
    fn small_chunks_are_expected_for_a_second_after_one() {
        let beside = BesideBulk::new(2);
        assert!(!beside.small_chunks_come(10));
        beside.small_chunk_given(10);
        assert!(beside.small_chunks_come(10));
        assert!(beside.small_chunks_come(9), "another core's clock");
        assert!(!beside.small_chunks_come(10 + SMALL_COME_US));
    }
}
