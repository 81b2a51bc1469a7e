//! The bodies that are long, or long in coming, over all doors: when too much is being read, the slowest make room.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use foldhash::HashMap;

/// How fast a body comes is measured over one to two of these.
const WINDOW: Duration = Duration::from_millis(2500);
/// The least time that a body is measured over, of which little has come yet.
const LEAST_MEASURED: Duration = Duration::from_millis(500);
/// What comes with fewer bytes a second crawls: it makes room also for bytes that are not uploaded, but inflated.
const CRAWLS: u64 = 64 * 1024;

/// One of them.
struct Upload {
    began: Instant,
    /// What counts of it.
    bytes: u64,
    /// When the window began that lasts, what came in it, and in the one before.
    window: Instant,
    gained: u64,
    gained_before: u64,
    /// It was told to make room.
    closed: bool,
    waker: Option<Waker>,
}

impl Upload {
    fn note(&mut self, bytes: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.window);
        if passed >= WINDOW {
            let is_next = passed < 2 * WINDOW;
            self.gained_before = if is_next { self.gained } else { 0 };
            self.gained = 0;
            self.window = if is_next { self.window + WINDOW } else { now };
        }
        self.gained += bytes;
        self.bytes += bytes;
    }

    /// The bytes of a second, lately.
    fn rate(&mut self, now: Instant) -> u64 {
        self.note(0, now);
        let passed = now.saturating_duration_since(self.window);
        let age = now.saturating_duration_since(self.began);
        let measured = age.min(WINDOW + passed).max(LEAST_MEASURED);
        let gained = self.gained + self.gained_before;
        gained.saturating_mul(1000) / measured.as_millis().max(1) as u64
    }
}

/// All of them. The lock is taken for those alone: a body that is short and comes at once never gets here.
#[derive(Default)]
pub(super) struct Uploads(Mutex<All>);

#[derive(Default)]
struct All {
    last: u64,
    open: HashMap<u64, Upload>,
    /// Bytes of those that were told to make room, and are still there.
    leaving: u64,
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uploads({})", self.lock().open.len())
    }
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, All> {
        // No update can be cut in half, so a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, of which so many bytes have come. It is there until it is removed.
    pub(super) fn add(&self, began: Instant, bytes: u64, now: Instant) -> u64 {
        let mut all = self.lock();
        all.last += 1;
        let key = all.last;
        let upload = Upload {
            began,
            bytes,
            window: now,
            gained: bytes,
            gained_before: 0,
            closed: false,
            waker: None,
        };
        all.open.insert(key, upload);
        key
    }

    /// More of one has come; `false` if it was told to make room.
    pub(super) fn note(&self, key: u64, bytes: u64, now: Instant) -> bool {
        match self.lock().open.get_mut(&key) {
            Some(upload) if !upload.closed => {
                upload.note(bytes, now);
                true
            }
            _ => false,
        }
    }

    /// Whether one was told to make room. If not, the task is woken when it is.
    pub(super) fn poll_closed(&self, key: u64, cx: &Context<'_>) -> bool {
        let mut all = self.lock();
        let Some(upload) = all.open.get_mut(&key) else {
            return false;
        };
        if !upload.closed {
            match &mut upload.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => upload.waker = Some(cx.waker().clone()),
            }
        }
        upload.closed
    }

    pub(super) fn remove(&self, key: u64) {
        let mut all = self.lock();
        if let Some(upload) = all.open.remove(&key)
            && upload.closed
        {
            all.leaving -= upload.bytes;
        }
    }

    /// Tells the slowest to make room for so many bytes of another, if those that are slower than that have so many.
    pub(super) fn make_room(&self, bytes: u64, own: Option<u64>, now: Instant) -> bool {
        let mut all = self.lock();
        if bytes <= all.leaving {
            return true;
        }
        let bytes = bytes - all.leaving;
        let own_rate = own.and_then(|own| all.open.get_mut(&own));
        let own_rate = own_rate.map_or(CRAWLS, |upload| upload.rate(now));
        let others = all.open.iter_mut();
        let others = others.filter(|(key, upload)| !upload.closed && Some(**key) != own);
        let rated = others.map(|(key, upload)| (upload.rate(now), *key, upload.bytes));
        let mut slower: Vec<_> = rated.filter(|(rate, ..)| *rate < own_rate).collect();
        slower.sort_unstable();
        let mut room = 0;
        let enough = slower.iter().position(|(_, _, its)| {
            room += its;
            room >= bytes
        });
        let Some(enough) = enough else {
            return false;
        };
        for (_, key, bytes) in &slower[..=enough] {
            all.leaving += bytes;
            if let Some(upload) = all.open.get_mut(key) {
                upload.closed = true;
                if let Some(waker) = upload.waker.take() {
                    waker.wake();
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_make_room_for_who_is_faster_and_for_nobody_else() {
        let uploads = Uploads::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = uploads.add(start, 20_000_000, start);
        let second = uploads.add(start, 10_000_000, start);
        // Both have just been fast.
        let third = uploads.add(at(1), 300_000, at(1));
        assert!(!uploads.make_room(1000, Some(third), at(1)));
        assert!(!uploads.make_room(1000, None, at(1)));
        for second in 2..10 {
            assert!(uploads.note(first, 2, at(second)));
        }
        assert!(uploads.note(second, 1, at(9)) && uploads.note(third, 900_000, at(9)));
        // Not if all that are slower do not make enough.
        assert!(!uploads.make_room(40_000_000, Some(third), at(9)));
        assert!(uploads.make_room(1000, Some(third), at(9)));
        assert!(!uploads.note(second, 1, at(9)), "it was the slowest");
        assert!(uploads.note(first, 1, at(9)));
        // What makes room already counts.
        assert!(uploads.make_room(9_000_000, Some(third), at(9)));
        assert!(uploads.note(first, 1, at(9)));
        uploads.remove(second);
        // What is slower itself gets none, and what was not uploaded only from those that crawl.
        assert!(!uploads.make_room(1, Some(first), at(9)));
        assert!(uploads.make_room(1, None, at(9)));
        assert!(!uploads.note(first, 1, at(9)));
        uploads.remove(first);
        assert!(!uploads.make_room(1, None, at(9)));
        assert!(uploads.note(third, 1, at(9)));
    }
}
