//! Which lane a worker reads next: small first, but bulk never starves.

use super::Lane;

/// So long may small chunks run in a row while a bulk chunk waits at the same worker. Twice the time a bulk chunk aims at
/// (`pace.rs`), so that small requests keep most of a worker that both want.
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

    /// A small chunk ran for so long, though a bulk chunk was there to run instead.
    pub(crate) fn overtook_bulk(&mut self, us: u64) {
        self.small_us += us;
    }

    /// A bulk chunk ran, or none waits.
    pub(crate) fn bulk_had_its_turn(&mut self) {
        self.small_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_gets_its_turn_under_a_stream_of_small_chunks() {
        let mut choice = LaneChoice::default();
        for _ in 0..19 {
            choice.overtook_bulk(1000);
            assert_eq!(choice.first(), Lane::Small);
        }
        choice.overtook_bulk(1000);
        assert_eq!(choice.first(), Lane::Bulk);
        choice.bulk_had_its_turn();
        assert_eq!(choice.first(), Lane::Small);
    }
}
