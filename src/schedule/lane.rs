//! Which lane a worker reads next: small first, but bulk never starves.

use super::Lane;

/// So long may small chunks run in a row while a bulk chunk waits at the same worker. Several times a bulk chunk's
/// usual time (`backlog.rs`), so that small requests keep most of a worker that both want.
const SMALL_RUN_US: u64 = 20_000;

/// A worker's memory of what it ran.
#[derive(Debug, Default)]
pub(crate) struct LaneChoice {
    small_us: u64,
}

impl LaneChoice {
    /// Which lane to look at first.
    pub(crate) fn first(&self) -> Lane {
        if self.small_us >= SMALL_RUN_US {
            Lane::Bulk
        } else {
            Lane::Small
        }
    }

    /// A chunk of that lane ran for so long. `bulk_waits`: a bulk chunk was there to run instead.
    pub(crate) fn ran(&mut self, lane: Lane, us: u64, bulk_waits: bool) {
        self.small_us = match lane {
            Lane::Small if bulk_waits => self.small_us + us,
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_gets_its_turn_under_a_stream_of_small_chunks() {
        let mut choice = LaneChoice::default();
        for _ in 0..19 {
            choice.ran(Lane::Small, 1000, true);
            assert_eq!(choice.first(), Lane::Small);
        }
        choice.ran(Lane::Small, 1000, true);
        assert_eq!(choice.first(), Lane::Bulk);
        choice.ran(Lane::Bulk, 20_000, true);
        assert_eq!(choice.first(), Lane::Small);
    }
}
