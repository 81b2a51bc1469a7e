//! How far the work is and how long it took, for a person.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::read::Progress;

/// Steps of the bar.
const STEPS: u64 = 1000;

/// What the time went into.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Until the server and the model were known.
    pub starting: Duration,
    /// Reading the file, and making tensors of it.
    pub reading: Duration,
    /// Sending, and waiting for results.
    pub server: Duration,
    pub writing: Duration,
}

/// Adds the time that something takes.
pub fn timed<T>(time: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    *time += start.elapsed();
    done
}

impl Times {
    /// `0.012 s starting, …`
    pub fn shown(&self) -> String {
        let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f64());
        format!(
            "{} starting, {} reading, {} for the server, {} writing",
            seconds(self.starting),
            seconds(self.reading),
            seconds(self.server),
            seconds(self.writing)
        )
    }
}

/// `12.3 k rows/s`: three digits, as people write them.
pub fn rate(rows: u64, time: Duration) -> String {
    let rate = rows as f64 / time.as_secs_f64().max(1e-9);
    let (value, unit) = match rate {
        1e9.. => (rate / 1e9, "G "),
        1e6.. => (rate / 1e6, "M "),
        1e3.. => (rate / 1e3, "k "),
        _ => (rate, ""),
    };
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}rows/s")
}

/// `2 h 5 min`, `3 min 20 s` or `12 s`.
fn time_left(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A bar on a terminal, nothing elsewhere.
pub struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    /// A bar for work that begins now.
    pub fn new() -> Bar {
        let bar = match stderr().is_terminal() {
            true => ProgressBar::new(STEPS),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {msg}") {
            bar.set_style(style);
        }
        Bar {
            bar,
            start: Instant::now(),
        }
    }

    /// So many rows are answered; `read` was read of the file, and of that so many rows.
    pub fn show(&self, rows: u64, read: Progress, rows_read: u64) {
        if self.bar.is_hidden() {
            return;
        }
        let said = said(rows, read, rows_read, self.start.elapsed());
        self.bar.set_message(said.words);
        self.bar.set_position((said.share * STEPS as f64) as u64);
    }
}

impl Bar {
    /// Says something above the bar.
    pub fn above<T>(&self, say: impl FnOnce() -> T) -> T {
        self.bar.suspend(say)
    }
}

/// The bar is gone at the end, however that comes.
impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

struct Said {
    share: f64,
    words: String,
}

/// Rows, rate and an estimate. Before the first answer nothing is known that could be told.
fn said(rows: u64, read: Progress, rows_read: u64, elapsed: Duration) -> Said {
    // What was read and is not answered yet counts by its rows.
    let share = read.share.map(|share| match read.rows {
        Some(all) => rows as f64 / all.max(1) as f64,
        None => share * rows as f64 / rows_read.max(1) as f64,
    });
    let share = share.map(|share| share.min(1.0));
    let count = indicatif::HumanCount(rows);
    let mut words = match read.rows {
        Some(all) => format!("{count}/{} rows", indicatif::HumanCount(all)),
        None => format!("{count} rows"),
    };
    if rows > 0 {
        words += &format!(", {}", rate(rows, elapsed));
        if let Some(share) = share.filter(|share| *share > 0.0) {
            let left = elapsed.mul_f64((1.0 - share) / share);
            words += &format!(", {} left", time_left(left));
        }
    }
    Said {
        share: share.unwrap_or(0.0),
        words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_people_write_them() {
        let of = |rows| rate(rows, Duration::from_secs(10));
        assert_eq!(of(1), "0.10 rows/s");
        assert_eq!(of(123), "12.3 rows/s");
        assert_eq!(of(123_000), "12.3 k rows/s");
        assert_eq!(of(9_990_000), "999 k rows/s");
        assert_eq!(of(12_340_000), "1.23 M rows/s");
    }

    #[test]
    fn an_estimate_begins_when_something_is_known() {
        let (of_rows, of_bytes, pipe) = (
            Progress {
                rows: Some(4000),
                share: Some(0.5),
            },
            Progress {
                rows: None,
                share: Some(0.5),
            },
            Progress {
                rows: None,
                share: None,
            },
        );
        let words = |rows, read| said(rows, read, 2000, Duration::from_secs(100)).words;
        assert_eq!(words(0, of_rows), "0/4,000 rows");
        assert_eq!(
            words(1000, of_rows),
            "1,000/4,000 rows, 10.0 rows/s, 5 min 0 s left"
        );
        assert_eq!(
            words(1000, of_bytes),
            "1,000 rows, 10.0 rows/s, 5 min 0 s left"
        );
        assert_eq!(words(1000, pipe), "1,000 rows, 10.0 rows/s");
        assert_eq!(time_left(Duration::from_millis(11_200)), "12 s");
        assert_eq!(time_left(Duration::from_secs(7500)), "2 h 5 min");
    }
}
