//! Counts in fixed places: recording is a few comparisons and three additions, and never allocates.

use serde::{Deserialize, Serialize};

/// The number of bounds that every histogram has.
pub const BOUNDS: usize = 20;

/// Upper bounds of a histogram's places, each included; beyond the last is one more place.
pub type Bounds = [u64; BOUNDS];

/// For times, in microseconds: from 50 microseconds to five minutes.
pub const DURATIONS_US: Bounds = [
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// For numbers of rows: powers of two.
pub const ROWS: Bounds = {
    let mut bounds = [1; BOUNDS];
    let mut place = 1;
    while place < BOUNDS {
        bounds[place] = 2 * bounds[place - 1];
        place += 1;
    }
    bounds
};

/// How often values fell between bounds, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    places: [u64; BOUNDS + 1],
    sum: u64,
}

impl Histogram {
    /// Values of `each` came so many times. The bounds are the same each time.
    pub(crate) fn record(&mut self, bounds: &Bounds, each: u64, times: u64) {
        self.places[bounds.partition_point(|bound| *bound < each)] += times;
        self.sum += each * times;
    }

    /// So many values came of which only the sum is known: each counts as their mean, rounded so that the sum stays.
    pub(crate) fn record_split(&mut self, bounds: &Bounds, sum: u64, times: u64) {
        if let (Some(mean), Some(rest)) = (sum.checked_div(times), sum.checked_rem(times)) {
            self.record(bounds, mean, times - rest);
            self.record(bounds, mean + 1, rest);
        }
    }

    /// How many values came.
    pub fn count(&self) -> u64 {
        self.places.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// What came since an earlier state of this histogram.
    #[must_use]
    pub(crate) fn since(&self, earlier: &Histogram) -> Histogram {
        Histogram {
            places: std::array::from_fn(|place| {
                self.places[place].saturating_sub(earlier.places[place])
            }),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// Takes in the values of another with the same bounds.
    pub(crate) fn add(&mut self, other: &Histogram) {
        for (place, more) in self.places.iter_mut().zip(other.places) {
            *place += more;
        }
        self.sum += other.sum;
    }

    /// About the value that this share of all values does not pass, as if values lay evenly between two bounds; beyond
    /// the last bound it is that bound. 0 if there are none.
    pub(crate) fn quantile(&self, bounds: &Bounds, share: f64) -> u64 {
        let rank = (share * self.count() as f64).ceil().max(1.0);
        let mut before = 0.0;
        for (place, count) in self.places.iter().map(|count| *count as f64).enumerate() {
            if count > 0.0 && before + count >= rank {
                let lower = place.checked_sub(1).map_or(0, |below| bounds[below]);
                let upper = bounds.get(place).copied().unwrap_or(lower);
                let within = (rank - before) / count;
                return lower + ((upper - lower) as f64 * within).round() as u64;
            }
            before += count;
        }
        0
    }

    /// For each bound, how many values were not above it.
    pub fn cumulative(&self) -> [u64; BOUNDS] {
        let mut count = 0;
        std::array::from_fn(|place| {
            count += self.places[place];
            count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_which_only_the_sum_is_known_keep_their_sum() {
        let mut histogram = Histogram::default();
        histogram.record_split(&ROWS, 30, 4);
        assert_eq!((histogram.sum(), histogram.count()), (30, 4));
        assert_eq!(histogram.cumulative()[2..4], [0, 4]);
        histogram.record_split(&ROWS, 0, 0);
        assert_eq!((histogram.sum(), histogram.count()), (30, 4));
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_place() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(&DURATIONS_US, 0.5), 0);
        histogram.record(&DURATIONS_US, 400, 90);
        let before = histogram.clone();
        histogram.record(&DURATIONS_US, 40_000, 10);
        let at = |share| histogram.quantile(&DURATIONS_US, share);
        assert!((250..=500).contains(&at(0.5)), "{}", at(0.5));
        assert_eq!(at(0.9), 500);
        assert!((25_000..=50_000).contains(&at(0.99)), "{}", at(0.99));
        let mut late = histogram.since(&before);
        assert_eq!((late.count(), late.sum()), (10, 400_000));
        assert!(late.quantile(&DURATIONS_US, 0.1) > 25_000);
        late.add(&before);
        assert_eq!(late, histogram);
        histogram.record(&DURATIONS_US, 1 << 40, 1000);
        assert_eq!(histogram.quantile(&DURATIONS_US, 0.99), DURATIONS_US[19]);
    }

    #[test]
    fn a_value_counts_up_to_the_bound_that_it_does_not_pass() {
        for bounds in [&DURATIONS_US, &ROWS] {
            assert!(bounds.is_sorted());
            let mut histogram = Histogram::default();
            for value in [0, bounds[0], bounds[0] + 1, bounds[19], bounds[19] + 1] {
                histogram.record(bounds, value, 1);
            }
            let cumulative = histogram.cumulative();
            assert_eq!(
                (cumulative[0], cumulative[1], cumulative[18], cumulative[19]),
                (2, 3, 3, 4)
            );
            assert_eq!(histogram.count(), 5);
            assert_eq!(histogram.sum(), 2 * bounds[0] + 2 * bounds[19] + 2);
        }
    }
}
