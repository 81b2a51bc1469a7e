//! What a loop is told from outside the pipeline: that it should stop. What that takes is made at the start, so that it
//! works when no descriptor is left.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::waker::Waker;
use crate::wire::client::StopMode;

/// An order to stop that a polling loop cannot miss.
#[derive(Debug)]
pub(crate) struct StopOrder {
    waker: Waker,
    wanted: AtomicU8,
    /// Held while an order is given or taken: one that is woken for after it was taken would wake the loop for ever.
    turn: Mutex<()>,
}

const NOTHING: u8 = 0;
const DRAIN: u8 = 1;
const NOW: u8 = 2;

impl StopOrder {
    /// # Errors
    /// `UNAVAILABLE` if no descriptor is left.
    pub(crate) fn new() -> Result<StopOrder> {
        Ok(StopOrder {
            waker: Waker::new()?,
            wanted: AtomicU8::new(NOTHING),
            turn: Mutex::default(),
        })
    }

    /// What the loop polls.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Orders a stop; one at once is never taken back by one that drains.
    pub(crate) fn give(&self, mode: StopMode) {
        let wanted = match mode {
            StopMode::Drain => DRAIN,
            StopMode::Now => NOW,
        };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_max(wanted, Ordering::Relaxed);
        self.waker.wake();
    }

    /// The order that was given last, once.
    pub(crate) fn take(&self) -> Option<StopMode> {
        if self.wanted.load(Ordering::Relaxed) == NOTHING {
            return None;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.waker.clear();
        match self.wanted.swap(NOTHING, Ordering::Relaxed) {
            DRAIN => Some(StopMode::Drain),
            NOW => Some(StopMode::Now),
            _ => None,
        }
    }
}
