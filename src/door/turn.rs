//! The order of whole answers on one stream, and how much of what is open there they may be expected to have.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Which part of what a connection may leave unread the answers of one stream may be expected to have.
const SHARE: u64 = 2;
/// Which part of it one answer is expected to have before any has come.
const FIRST_SHARE: u64 = 64;

/// Whether a turn is over, so that the next one's has come.
#[derive(Default)]
pub(crate) struct Ended {
    is_over: Cell<bool>,
    /// Of what waits for the next turn.
    waker: Cell<Option<Waker>>,
}

impl Ended {
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

/// When a whole answer may leave: when that of the request before has left. It is over when this is dropped.
pub(crate) struct Turn {
    before: Option<Rc<Ended>>,
    own: Rc<Ended>,
}

impl Turn {
    /// The turn behind the last one, which it becomes.
    pub(crate) fn behind(last: &mut Option<Rc<Ended>>) -> Turn {
        let own = Rc::new(Ended::default());
        let before = last.replace(own.clone());
        Turn { before, own }
    }

    /// The turn before this.
    pub(crate) fn before(&self) -> Option<Rc<Ended>> {
        self.before.clone()
    }

    /// Waits until it has come.
    pub(crate) async fn come(&mut self) {
        let Some(before) = self.before.take() else {
            return;
        };
        poll_fn(|cx| match before.is_over() {
            true => Poll::Ready(()),
            false => {
                before.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }

    /// Lets the next one come as soon as the one before is over.
    pub(crate) fn pass(mut self) {
        if self.before.is_some() {
            tokio::task::spawn_local(async move { self.come().await });
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.own.is_over.set(true);
        if let Some(waker) = self.own.waker.take() {
            waker.wake();
        }
    }
}

/// What the answers of a stream are expected to have that are still to leave, so that few wait for those before them: the
/// client cannot read what is held back for the order.
pub(crate) struct Window {
    most: u64,
    expected: Cell<u64>,
    /// What an answer has, by those that have come lately.
    usual: Cell<u64>,
    /// Of what waits for room.
    waker: Cell<Option<Waker>>,
}

impl Window {
    /// Of a connection that may leave so many bytes unread.
    pub(crate) fn new(max_client_bytes: u64) -> Rc<Window> {
        Rc::new(Window {
            most: max_client_bytes / SHARE,
            expected: Cell::new(0),
            usual: Cell::new(max_client_bytes / FIRST_SHARE),
            waker: Cell::new(None),
        })
    }

    /// Waits until the answers that are to leave have less than may be expected at once.
    pub(crate) async fn has_room(&self) {
        poll_fn(|cx| match self.expected.get() {
            expected if expected == 0 || expected < self.most => Poll::Ready(()),
            _ => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }

    /// Expects the answer to a request of so many bytes.
    pub(crate) fn expect(self: &Rc<Self>, request_bytes: usize) -> Expected {
        let bytes = self.usual.get().max(request_bytes as u64);
        self.expected.set(self.expected.get() + bytes);
        Expected {
            window: self.clone(),
            bytes,
        }
    }
}

/// An answer that is expected. It has left, or will never come, when this is dropped.
pub(crate) struct Expected {
    window: Rc<Window>,
    bytes: u64,
}

impl Expected {
    /// It has come, and has so many bytes.
    pub(crate) fn has_come(&mut self, bytes: u64) {
        let usual = self.window.usual.get();
        self.window.usual.set(bytes.max(usual - usual / 8));
        self.set(bytes);
    }

    fn set(&mut self, bytes: u64) {
        let others = self.window.expected.get() - self.bytes;
        self.window.expected.set(others + bytes);
        self.bytes = bytes;
        if let Some(waker) = self.window.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn is_ready(what: impl Future<Output = ()>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        pin!(what).as_mut().poll(&mut cx).is_ready()
    }

    #[test]
    fn a_turn_comes_when_the_one_before_is_over() {
        let mut last = None;
        let (mut first, second) = (Turn::behind(&mut last), Turn::behind(&mut last));
        let mut third = Turn::behind(&mut last);
        assert!(is_ready(first.come()));
        let before = third.before().unwrap();
        drop(first);
        assert!(!before.is_over() && !is_ready(third.come()));
        drop(second);
        assert!(before.is_over());
    }

    #[test]
    fn room_is_told_by_what_requests_have_and_what_answers_had() {
        let window = Window::new(6400);
        let mut all: Vec<Expected> = (0..31).map(|_| window.expect(7)).collect();
        assert!(is_ready(window.has_room()));
        all.push(window.expect(7));
        assert!(!is_ready(window.has_room()));
        // Small answers make room for many requests.
        for expected in &mut all {
            expected.has_come(1);
        }
        assert!(window.usual.get() < 10);
        assert!(is_ready(window.has_room()));
        all[0].has_come(5000);
        assert!(!is_ready(window.has_room()));
        drop(all);
        // One is let in, however large.
        assert!(is_ready(window.has_room()));
        let _large = window.expect(100_000);
        assert!(!is_ready(window.has_room()));
    }
}
