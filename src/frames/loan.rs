//! Memory that is lent for the length of a call: the one way to send what a caller only lent us without a copy.

use std::cell::OnceCell;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Smaller pieces are cheaper to copy than to keep account of.
const LEND_BYTES: usize = 64 * 1024;

/// What [`lending`] gives out. `'env` is how long the memory is there: longer than the call of [`lending`].
pub struct Loan<'env> {
    allowed: bool,
    /// Made by the first piece: most calls lend nothing.
    counter: OnceCell<Arc<Counter>>,
    /// Invariant: neither a longer nor a shorter life will do.
    env: PhantomData<&'env mut &'env ()>,
}

#[derive(Default)]
struct Counter {
    pieces: Mutex<usize>,
    returned: Condvar,
}

impl Counter {
    /// A number is whole between any two statements.
    fn pieces(&self) -> MutexGuard<'_, usize> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `body`, and returns when all that it was lent has been given back: every [`Bytes`] made by [`Loan::lend`] is
/// dropped, by whomever. Without `allowed` nothing is lent, and everything copied.
///
/// What `body` returns must not hold such a [`Bytes`], and what it passed them to must be gone by then or let go of
/// them by itself: the wait has no end otherwise.
pub(crate) fn lending<'env, T>(allowed: bool, body: impl FnOnce(&Loan<'env>) -> T) -> T {
    /// Waits even if the body panics.
    struct Return<'a>(&'a OnceCell<Arc<Counter>>);

    impl Drop for Return<'_> {
        fn drop(&mut self) {
            let Some(counter) = self.0.get() else {
                return;
            };
            let mut pieces = counter.pieces();
            while *pieces > 0 {
                pieces = counter
                    .returned
                    .wait(pieces)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    let loan = Loan {
        allowed,
        counter: OnceCell::new(),
        env: PhantomData,
    };
    let _returned = Return(&loan.counter);
    body(&loan)
}

impl<'env> Loan<'env> {
    /// The bytes, without a copy if they are many.
    pub(crate) fn lend(&self, bytes: &'env [u8]) -> Bytes {
        if !self.allowed || bytes.len() < LEND_BYTES {
            return Bytes::copy_from_slice(bytes);
        }
        let counter = self.counter.get_or_init(Arc::default);
        *counter.pieces() += 1;
        Bytes::from_owner(Piece {
            data: bytes.as_ptr(),
            len: bytes.len(),
            counter: counter.clone(),
        })
    }

    /// Whether something has not been given back.
    pub(crate) fn is_out(&self) -> bool {
        self.counter
            .get()
            .is_some_and(|counter| *counter.pieces() > 0)
    }
}

/// Lent memory, which is given back by dropping this.
struct Piece {
    data: *const u8,
    len: usize,
    counter: Arc<Counter>,
}

// SAFETY: the memory is a shared slice of bytes, which any thread may read; `lending` keeps it there until this is
// dropped.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: made of a slice that lives for 'env, which outlives the call of `lending`; that call ends only when
        // every Piece is dropped, and a Loan cannot be had outside of such a call.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        *self.counter.pieces() -= 1;
        self.counter.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn it_returns_when_all_is_given_back_and_not_before() {
        let data = vec![3u8; LEND_BYTES];
        let returned = AtomicBool::new(false);
        let (sender, receiver) = std::sync::mpsc::channel::<Bytes>();
        std::thread::scope(|scope| {
            let returned = &returned;
            scope.spawn(move || {
                let piece = receiver.recv().unwrap();
                let part = piece.slice(10..);
                drop(piece);
                assert!(!returned.load(Ordering::SeqCst), "it did not wait");
                assert_eq!(part[0], 3);
            });
            lending(true, |loan| {
                let piece = loan.lend(&data);
                assert_eq!(piece.as_ptr(), data.as_ptr(), "no copy");
                assert!(loan.is_out());
                sender.send(piece).unwrap();
            });
            returned.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn little_and_what_is_not_allowed_is_copied() {
        let data = vec![3u8; LEND_BYTES];
        for (allowed, bytes) in [(true, &data[1..]), (false, &data[..])] {
            let copy = lending(allowed, |loan| {
                let copy = loan.lend(bytes);
                assert!(!loan.is_out());
                copy
            });
            assert_ne!(copy.as_ptr(), bytes.as_ptr());
            assert_eq!(copy, bytes);
        }
    }
}
