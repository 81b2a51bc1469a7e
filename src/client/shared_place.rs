//! A place for a session that any number of calls use at once: opened when it is first needed, and again after a loss.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::tickets::SharedSession;
use crate::error::{Error, Result};

/// After a session that was not needed could not be opened, none is asked for during this time.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Where the calls find the session that they share.
#[derive(Default)]
pub(super) struct SharedPlace {
    session: Mutex<Option<Arc<SharedSession>>>,
    /// Locked while a thread opens a session; those that need it wait here.
    opening: Mutex<Option<Failure>>,
}

/// Why a session could not be opened, and when.
struct Failure {
    at: Instant,
    error: Error,
}

impl SharedPlace {
    /// The session, opened by `open` if it has to be. Of several threads one opens it for all.
    ///
    /// # Errors
    /// Why it could not be opened.
    pub(super) fn get(
        &self,
        open: impl FnOnce() -> Result<SharedSession>,
    ) -> Result<Arc<SharedSession>> {
        if let Some(session) = self.find() {
            return Ok(session);
        }
        let start = Instant::now();
        let mut opening = lock(&self.opening);
        if let Some(session) = self.find() {
            return Ok(session);
        }
        // A server that does not answer is waited for once, not by each thread in turn.
        match &*opening {
            Some(failure) if failure.at >= start => Err(failure.error.clone()),
            _ => self.open(&mut opening, open),
        }
    }

    /// The session, if it is there or can be opened now: none while another thread opens it, and for a while after it could
    /// not be opened.
    pub(super) fn get_if_possible(
        &self,
        open: impl FnOnce() -> Result<SharedSession>,
    ) -> Option<Arc<SharedSession>> {
        if let Some(session) = self.find() {
            return Some(session);
        }
        let mut opening = match self.opening.try_lock() {
            Ok(opening) => opening,
            Err(TryLockError::Poisoned(opening)) => opening.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if let Some(failure) = &*opening
            && failure.at.elapsed() < RETRY_AFTER
        {
            return None;
        }
        self.open(&mut opening, open).ok()
    }

    /// The session that is there, unless it is lost.
    pub(super) fn find(&self) -> Option<Arc<SharedSession>> {
        let session = lock(&self.session);
        session
            .as_ref()
            .filter(|session| !session.is_lost())
            .cloned()
    }

    fn open(
        &self,
        opening: &mut Option<Failure>,
        open: impl FnOnce() -> Result<SharedSession>,
    ) -> Result<Arc<SharedSession>> {
        match open() {
            Ok(session) => {
                let session = Arc::new(session);
                *lock(&self.session) = Some(session.clone());
                *opening = None;
                Ok(session)
            }
            Err(error) => {
                *opening = Some(Failure {
                    at: Instant::now(),
                    error: error.clone(),
                });
                Err(error)
            }
        }
    }
}

/// A poisoned lock is used on: what it holds is consistent between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn failed(place: &SharedPlace, at: Instant) {
        let error = Error::unavailable("nobody there");
        *lock(&place.opening) = Some(Failure { at, error });
    }

    #[test]
    fn a_failure_answers_those_who_waited_for_it_and_no_others() {
        let place = SharedPlace::default();
        let start = Instant::now();
        // As for a thread that came before the failure.
        failed(&place, start + Duration::from_secs(1000));
        let answer = place.get(|| panic!("opened again"));
        assert_eq!(answer.err().unwrap().message(), "nobody there");
        failed(&place, start);
        let answer = place.get(|| Err(Error::unavailable("still nobody")));
        assert_eq!(answer.err().unwrap().message(), "still nobody");
    }

    #[test]
    fn of_many_threads_one_opens_the_session_at_a_time() {
        let place = SharedPlace::default();
        let opening = AtomicUsize::new(0);
        let get = || {
            place.get(|| {
                assert_eq!(opening.fetch_add(1, Ordering::SeqCst), 0);
                thread::yield_now();
                assert_eq!(opening.fetch_sub(1, Ordering::SeqCst), 1);
                Err(Error::unavailable("nobody there"))
            })
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
            for thread in threads {
                assert!(thread.join().unwrap().is_err());
            }
        });
    }

    #[test]
    fn a_session_that_is_not_needed_is_not_waited_for() {
        let place = SharedPlace::default();
        let refuse = || Err(Error::unavailable("too many"));
        let never = || -> Result<SharedSession> { panic!("asked again") };
        let got = place.get_if_possible(|| {
            // Another thread that comes meanwhile does without.
            assert!(place.get_if_possible(never).is_none());
            refuse()
        });
        assert!(got.is_none());
        assert!(place.get_if_possible(never).is_none());
        if let Some(long_ago) = Instant::now().checked_sub(RETRY_AFTER) {
            failed(&place, long_ago);
        }
        let mut asked = false;
        let got = place.get_if_possible(|| {
            asked = true;
            refuse()
        });
        assert!(asked && got.is_none());
    }
}
