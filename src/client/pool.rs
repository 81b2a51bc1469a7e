//! The sessions of one client: idle ones, which the next call takes, and those that calls share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::encoded::Encoded;
use super::session::{Purpose, Session, Settings};
use super::shared_place::SharedPlace;
use super::small_sessions::SmallSessions;
use super::tickets::SharedSession;
use crate::error::Result;

/// Requests and results above this do not share a session: the small ones behind them would wait for all their bytes.
const SHARED_BYTES: usize = 64 * 1024;

/// After a large result, the next small requests have sessions of their own: this many.
const UNSHARED_AFTER_LARGE: usize = 1024;

/// A client's sessions.
pub(super) struct Pool {
    settings: Settings,
    /// Sessions that no call uses, of either purpose.
    idle: Mutex<Vec<Session>>,
    /// The session of all tickets.
    tickets: SharedPlace,
    /// The sessions of small requests when there are many at once. Not the tickets' one: tickets' requests may be large.
    small: SmallSessions,
    load: Load,
}

impl Pool {
    pub(super) fn new(settings: Settings) -> Pool {
        let load = Load::new();
        Pool {
            settings,
            idle: Mutex::default(),
            tickets: SharedPlace::default(),
            small: SmallSessions::new(load.cores),
            load,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An idle session that is still alive, or a new one.
    ///
    /// # Errors
    /// Why none can be opened.
    pub(super) fn take(&self, purpose: Purpose) -> Result<Session> {
        // Not `while let`: its lock would last through the body.
        loop {
            let idle = {
                let mut idle = lock(&self.idle);
                let newest = idle.iter().rposition(|s| s.purpose() == purpose);
                newest.map(|index| idle.swap_remove(index))
            };
            let Some(mut session) = idle else {
                return Session::open(&self.settings, purpose);
            };
            if session.is_alive() {
                return Ok(session);
            }
        }
    }

    /// Keeps a session for the next call, unless it is lost.
    pub(super) fn give_back(&self, session: Session) {
        if session.is_reusable() {
            lock(&self.idle).push(session);
        }
    }

    /// The session of all tickets, opened if it has to be.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(super) fn for_tickets(&self) -> Result<Arc<SharedSession>> {
        self.tickets.get(|| self.take_to_share())
    }

    /// The session for this thread's small request, of so many `calls` at once.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(super) fn for_small(&self, calls: usize) -> Result<Arc<SharedSession>> {
        self.small.get(calls, || self.take_to_share())
    }

    /// Whether small requests share a session already.
    pub(super) fn has_small(&self) -> bool {
        self.small.has_any()
    }

    fn take_to_share(&self) -> Result<SharedSession> {
        SharedSession::new(self.take(Purpose::Infer)?)
    }

    /// Which session a request should use. The call counts as under way until the returned value is dropped.
    pub(super) fn session_for(&self, request: &Encoded<'_>) -> SessionFor<'_> {
        self.load.session_for(request.frame_bytes() as usize)
    }

    /// Notes the size of a small request's result: after a large one, requests share less.
    pub(super) fn note_result(&self, bytes: usize) {
        self.load.note_result(bytes);
    }
}

/// How many calls are under way at once, and whether the next should share a session.
struct Load {
    cores: usize,
    /// Calls that have a session of their own.
    alone: AtomicUsize,
    /// Calls that share sessions.
    sharing: AtomicUsize,
    /// How many more small requests are to have sessions of their own, because a result was large.
    kept_apart: AtomicUsize,
}

/// Which session a call uses. The call is counted until this is dropped.
pub(super) enum SessionFor<'a> {
    /// One of its own.
    Alone { _calls: Counted<'a> },
    /// One with other small requests.
    Sharing(Counted<'a>),
}

impl Load {
    fn new() -> Load {
        Load {
            // Asked once: each time reads files of the system.
            cores: thread::available_parallelism().map_or(1, usize::from),
            alone: AtomicUsize::new(0),
            sharing: AtomicUsize::new(0),
            kept_apart: AtomicUsize::new(0),
        }
    }

    /// Small requests share a session while there are more calls than cores, and while others already share one.
    fn session_for(&self, bytes: usize) -> SessionFor<'_> {
        let calls = Counted::new(&self.alone);
        let many = calls.before >= self.cores || self.sharing.load(Ordering::Relaxed) > 0;
        if bytes > SHARED_BYTES || !many || self.is_kept_apart() {
            return SessionFor::Alone { _calls: calls };
        }
        SessionFor::Sharing(Counted::new(&self.sharing))
    }

    fn is_kept_apart(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        let left = &self.kept_apart;
        left.load(Ordering::Relaxed) > 0
            && left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
    }

    fn note_result(&self, bytes: usize) {
        if bytes > SHARED_BYTES {
            self.kept_apart
                .store(UNSHARED_AFTER_LARGE, Ordering::Relaxed);
        }
    }
}

/// Raises a counter by one until it is dropped.
pub(super) struct Counted<'a> {
    count: &'a AtomicUsize,
    /// What the counter was before.
    pub(super) before: usize,
}

impl Counted<'_> {
    fn new(count: &AtomicUsize) -> Counted<'_> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        Counted { count, before }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A poisoned lock is used on: the lists are consistent between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of so many small requests, all under way at once with others, shares a session.
    fn shares(load: &Load, requests: usize) -> Vec<bool> {
        let company: Vec<_> = (0..load.cores)
            .map(|_| load.session_for(SHARED_BYTES + 1))
            .collect();
        let requests = (0..requests).map(|_| load.session_for(100));
        let shares = requests.map(|session| matches!(session, SessionFor::Sharing(_)));
        let shares = shares.collect();
        drop(company);
        shares
    }

    #[test]
    fn small_requests_share_a_session_once_there_are_more_than_cores() {
        let load = Load::new();
        let alone = load.session_for(1);
        assert!(matches!(alone, SessionFor::Alone { .. }));
        drop(alone);
        assert_eq!(shares(&load, 3), [true; 3]);
        assert!(matches!(load.session_for(1), SessionFor::Alone { .. }));
        assert!(load.alone.into_inner() == 0 && load.sharing.into_inner() == 0);
    }

    #[test]
    fn one_large_result_does_not_keep_small_requests_apart_for_ever() {
        let load = Load::new();
        load.note_result(SHARED_BYTES);
        assert_eq!(shares(&load, 1), [true]);
        load.note_result(SHARED_BYTES + 1);
        let shares = shares(&load, UNSHARED_AFTER_LARGE + 1);
        assert_eq!(shares.iter().filter(|shares| **shares).count(), 1);
        assert!(shares[UNSHARED_AFTER_LARGE]);
    }
}
