//! What the ventilator and the workers share of small chunks that run between two runs of a bulk chunk.
//!
//! Their credits are left here without waking the ventilator, which has a core to itself least of all then: it takes them when
//! it is awake for something else, the bulk chunk's own credit at the latest. Only while it waits for such a credit does the
//! worker tell it that one is here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::message::Credit;

/// Credits that may lie here; what comes beyond goes the usual way.
const PLACES: usize = 1024;
/// After a small chunk others are expected for so long.
const SMALL_COME_US: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct BesideBulk {
    leave: Sender<Credit>,
    left: Receiver<Credit>,
    /// The ventilator waits for one of them.
    is_awaited: AtomicBool,
    /// When a small chunk was given out last; 0: never.
    small_us: AtomicU64,
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
    pub(crate) fn new() -> BesideBulk {
        let (leave, left) = bounded(PLACES);
        BesideBulk {
            leave,
            left,
            is_awaited: AtomicBool::new(false),
            small_us: AtomicU64::new(0),
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
