//! What was counted a while ago, so that rates can be told over the last seconds and not only since the start.
//!
//! A loop that counts keeps a copy of its counters from once a second at most, taken before it waits: nothing is added
//! where rows pass. After a turn within a second of the last copy the loop wakes once more, when that second is over; so
//! an idle loop sleeps on, and it is still known that nothing happened meanwhile.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The lengths of the windows that rates are told over, in seconds.
pub(crate) const WINDOWS_S: [u32; 3] = [1, 10, 60];

/// Between two copies, in microseconds.
const SPACING_US: u64 = 1_000_000;

/// Counters as they were for some time.
#[derive(Debug)]
struct Entry<T> {
    from_us: u64,
    /// They are known to have stood so until then.
    until_us: u64,
    counted: T,
}

/// Copies of counters, the oldest first: those that the longest window needs.
#[derive(Debug)]
pub(crate) struct History<T> {
    entries: VecDeque<Entry<T>>,
    looked_us: u64,
    /// Something may have been counted since.
    is_pending: bool,
}

/// What a window covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Covered {
    /// Its name: one of [`WINDOWS_S`].
    pub(crate) seconds: u32,
    /// The time that it really covers: less if the server is younger, up to a second more.
    pub(crate) us: u64,
}

impl Covered {
    /// How often something came each second that came so many times. Less than a second counts as one.
    pub(crate) fn rate(self, count: u64) -> f64 {
        count as f64 * 1e6 / self.us.max(1_000_000) as f64
    }
}

impl<T: PartialEq> History<T> {
    /// Of a loop that starts with these counters at the server's time 0.
    pub(crate) fn new(counted: T) -> History<T> {
        let first = Entry {
            from_us: 0,
            until_us: 0,
            counted,
        };
        History {
            entries: VecDeque::from([first]),
            looked_us: 0,
            is_pending: false,
        }
    }

    /// The loop has done its work and is about to wait.
    pub(crate) fn note(&mut self, now_us: u64, counted: impl FnOnce() -> T) {
        if now_us < self.looked_us + SPACING_US {
            self.is_pending = true;
            return;
        }
        self.looked_us = now_us;
        self.is_pending = false;
        let counted = counted();
        if let Some(last) = self.entries.back_mut() {
            if last.counted == counted {
                last.until_us = now_us;
                return;
            }
            // Turns earlier than that would have been followed by a look.
            last.until_us = last.until_us.max(now_us.saturating_sub(SPACING_US));
        }
        self.entries.push_back(Entry {
            from_us: now_us,
            until_us: now_us,
            counted,
        });
        let longest = WINDOWS_S.iter().max().copied().unwrap_or_default();
        let oldest_us = now_us.saturating_sub(u64::from(longest) * 1_000_000);
        while let Some(second) = self.entries.get(1)
            && second.from_us <= oldest_us
        {
            self.entries.pop_front();
        }
    }

    /// When the loop has to wake for [`History::note`], if it would not for anything else.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.is_pending.then_some(self.looked_us + SPACING_US)
    }

    /// Each window that ends now: what it covers, and the copies in it, the first of which is from its beginning. A
    /// window that would cover no time is left out.
    pub(crate) fn windows(
        &self,
        now_us: u64,
    ) -> impl Iterator<Item = (Covered, impl Iterator<Item = (u64, &T)>)> {
        WINDOWS_S.into_iter().filter_map(move |seconds| {
            let begin_us = now_us.saturating_sub(u64::from(seconds) * 1_000_000);
            let later = self.entries.partition_point(|e| e.from_us <= begin_us);
            let first = later.saturating_sub(1);
            let base = self.entries.get(first)?;
            let until_us = match first + 1 == self.entries.len() && !self.is_pending {
                true => now_us, // there was no turn since but the one that asks
                false => base.until_us,
            };
            let begin_us = begin_us.clamp(base.from_us, until_us.max(base.from_us));
            let us = now_us.saturating_sub(begin_us);
            let copies = self.entries.range(first..);
            let copies = copies.map(|entry| (entry.from_us, &entry.counted));
            (us > 0).then_some((Covered { seconds, us }, copies))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    /// For each window what came in it, and its rate.
    fn told(history: &History<u64>, now_us: u64, counted: u64) -> Vec<(u32, u64, f64)> {
        let windows = history.windows(now_us).map(|(covered, mut copies)| {
            let came = counted - copies.next().expect("its beginning").1;
            (covered.seconds, came, covered.rate(came))
        });
        windows.collect()
    }

    /// Wakes as a loop does: for each event, and when it is due.
    fn live(events: &[u64], until_us: u64) -> (History<u64>, u64, usize) {
        let (mut history, mut counted, mut wakes) = (History::new(0), 0, 0);
        let mut events = events.iter().copied().peekable();
        loop {
            let due = history.due_us().into_iter();
            let Some(now_us) = due
                .chain(events.peek().copied())
                .min()
                .filter(|t| *t <= until_us)
            else {
                return (history, counted, wakes);
            };
            wakes += 1;
            while events.next_if(|at| *at <= now_us).is_some() {
                counted += 1;
            }
            history.note(now_us, || counted);
        }
    }

    #[test]
    fn a_steady_rate_is_told_in_every_window() {
        let events: Vec<u64> = (1..=12_000).map(|i| i * S / 100).collect();
        let (history, counted, _) = live(&events, 120 * S);
        for (seconds, came, rate) in told(&history, 120 * S, counted) {
            assert!((95.0..105.0).contains(&rate), "{seconds} s: {rate}");
            assert!(came >= u64::from(seconds) * 100, "{seconds} s: {came}");
        }
        assert!(history.entries.len() <= 62, "{}", history.entries.len());
    }

    /// With copies from the last turn alone, a burst would be told again with the first request after an idle hour.
    #[test]
    fn what_came_before_an_idle_time_is_in_no_window_after_it() {
        let mut events: Vec<u64> = (0..500).map(|i| 10 * S + i * 1800).collect();
        let (history, counted, wakes) = live(&events, 3600 * S);
        assert!(
            wakes <= events.len() + 2,
            "{wakes}: it does not wake when idle"
        );
        assert_eq!(told(&history, 12 * S, counted)[1].1, 500);
        assert!(told(&history, 3600 * S, counted).iter().all(|w| w.1 == 0));
        for (covered, _) in history.windows(3600 * S) {
            assert_eq!(covered.us, u64::from(covered.seconds) * S, "of an hour");
        }
        events.push(3600 * S);
        let (history, counted, _) = live(&events, 3600 * S);
        for (seconds, came, rate) in told(&history, 3600 * S + 1, counted) {
            assert_eq!(came, 1, "{seconds} s");
            assert!(rate <= 1.01 / f64::from(seconds), "{seconds} s: {rate}");
        }
    }

    #[test]
    fn a_young_server_tells_of_the_time_that_it_has_been_there() {
        let (history, counted, _) = live(&[S / 2, 2 * S], 4 * S);
        let told = told(&history, 4 * S, counted);
        assert_eq!(told[2], (60, 2, 0.5));
        assert_eq!(told[0].1, 0);
        assert_eq!(History::new(0).windows(0).count(), 0);
    }
}
