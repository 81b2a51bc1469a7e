//! Numbers to lines: medians, ratios of pairs, the table.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use super::Plan;
use super::sides::Sides;

/// What a ratio of ours to the baseline should be, or a figure of ours in its own unit.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Ours is a rate.
    AtLeast(f64),
    /// Ours is a time or a size.
    AtMost(f64),
    /// There is nothing to hold it to.
    None,
}

impl Bar {
    /// The last two cells of a line: the bar as `text` writes it, and whether the value meets it.
    fn cells(self, value: f64, text: impl Fn(f64) -> String) -> [String; 2] {
        let (bar, met) = match self {
            Bar::AtLeast(bar) => (format!("≥ {}", text(bar)), value >= bar),
            Bar::AtMost(bar) => (format!("≤ {}", text(bar)), value <= bar),
            Bar::None => return ["-".to_owned(), String::new()],
        };
        [bar, if met { "met" } else { "missed" }.to_owned()]
    }
}

/// Measurements that were taken in turn: ours, the baseline, ours, the baseline …
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    ours: Vec<f64>,
    baseline: Vec<f64>,
}

impl Pairs {
    /// Takes as many as planned.
    pub fn measure(
        plan: &Plan,
        mut ours: impl FnMut() -> Result<f64>,
        mut baseline: impl FnMut() -> Result<f64>,
    ) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        while plan.goes_on(pairs.count()) {
            pairs.push(ours()?, baseline()?);
        }
        Ok(pairs)
    }

    /// Adds one.
    pub fn push(&mut self, ours: f64, baseline: f64) {
        self.ours.push(ours);
        self.baseline.push(baseline);
    }

    /// The same in another unit.
    pub fn scale(&mut self, by: f64) {
        for value in self.ours.iter_mut().chain(&mut self.baseline) {
            *value *= by;
        }
    }

    /// Adds one of ours and one of the other server, if there is one.
    pub fn push_sides(&mut self, sides: Sides<f64>) {
        if let Some(other) = sides.other {
            self.push(sides.ours, other);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ours.len()
    }

    /// The middle one of ours.
    pub fn ours(&self) -> f64 {
        median(self.ours.clone())
    }

    /// The middle one of the baseline.
    pub fn baseline(&self) -> f64 {
        median(self.baseline.clone())
    }

    fn ratios(&self) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.baseline);
        // Nothing beside nothing is alike.
        let ratio = |(ours, baseline): (&f64, &f64)| match ours == baseline {
            true => 1.0,
            false => ours / baseline,
        };
        pairs.map(ratio).collect()
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// The least and the greatest.
fn extremes(values: &[f64]) -> (f64, f64) {
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    let wider = |(least, most): (f64, f64), &value: &f64| (least.min(value), most.max(value));
    values.iter().fold(none, wider)
}

/// The value that the given share of them does not exceed.
pub fn quantile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or_default()
}

/// In microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A number with three digits that count, and a unit.
pub fn show(value: f64, unit: &str) -> String {
    let (value, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {prefix}{unit}")
}

struct Line {
    cells: [String; 6],
}

/// What is printed in the end.
#[derive(Default)]
pub struct Table {
    lines: Vec<Line>,
    notes: Vec<String>,
}

impl Table {
    /// A line of the table.
    pub fn add(&mut self, what: &str, pairs: &Pairs, unit: &str, bar: Bar) {
        let ratios = pairs.ratios();
        let ratio = median(ratios.clone());
        let (least, most) = extremes(&ratios);
        let [bar, verdict] = bar.cells(ratio, |bar| format!("{bar:.2}"));
        let count = pairs.count();
        self.lines.push(Line {
            cells: [
                what.to_owned(),
                show(pairs.ours(), unit),
                show(pairs.baseline(), unit),
                format!("{ratio:.2} ({least:.2}..{most:.2} of {count})"),
                bar,
                verdict,
            ],
        });
    }

    /// A line about the other server, if there is one: its numbers are the baseline. `what` says which of several.
    pub fn add_server(&mut self, what: &str, pairs: &Pairs, unit: &str, bar: Bar) {
        if pairs.count() > 0 {
            let comma = if what.is_empty() { "" } else { ", " };
            self.add(&format!("  {what}{comma}to SERVER"), pairs, unit, bar);
        }
    }

    /// A line of ours that has no baseline: the middle one, and the least and the greatest.
    pub fn add_alone(&mut self, what: &str, values: &[f64], unit: &str) {
        self.add_figure(what, values, unit, Bar::None);
    }

    /// The same with a bar in the figure's own unit.
    pub fn add_figure(&mut self, what: &str, values: &[f64], unit: &str, bar: Bar) {
        let middle = median(values.to_vec());
        let (least, most) = extremes(values);
        let (least, most, count) = (show(least, unit), show(most, unit), values.len());
        let [bar, verdict] = bar.cells(middle, |bar| show(bar, unit));
        self.lines.push(Line {
            cells: [
                what.to_owned(),
                show(middle, unit),
                "-".to_owned(),
                format!("({least}..{most} of {count})"),
                bar,
                verdict,
            ],
        });
    }

    /// Something that the table has no column for.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// A part that could not be measured.
    pub fn failed(&mut self, part: &str, error: &anyhow::Error) {
        self.note(format!("{part}: NOT MEASURED: {error:#}"));
    }

    /// Prints the table, and under it the notes.
    pub fn print(&self, took: Duration, of_it: &str) {
        let head = Line {
            cells: ["what", "ours", "baseline", "ratio", "bar", ""].map(str::to_owned),
        };
        let lines: Vec<&Line> = std::iter::once(&head).chain(&self.lines).collect();
        let mut widths = [0; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(&line.cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for line in lines {
            for (column, (width, cell)) in widths.iter().zip(&line.cells).enumerate() {
                let width = *width;
                // Names to the left, numbers to the right.
                let _ = match column {
                    0 | 5 => write!(text, "{cell:<width$}  "),
                    _ => write!(text, "{cell:>width$}  "),
                }; // writing to a String does not fail
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        println!("\n{text}");
        for note in &self.notes {
            println!("{note}");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!(
            "ratio: the median (least..most) of pairs taken in turn; {cores} cores, {:.0} s{of_it}",
            took.as_secs_f64()
        );
    }
}
