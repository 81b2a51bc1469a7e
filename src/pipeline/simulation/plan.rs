//! What differs from seed to seed: how many workers there are and what they can hold, and what will happen.

use std::sync::Arc;

use crate::message::Role;
use crate::model::mock::{Behaviour, MockSource};
use crate::model::{BatchKind, Description};
use crate::random::Random;
use crate::schedule::Limits;

/// What differs from seed to seed.
pub(super) struct Plan {
    /// Requests that are still to come, cancels, clients that vanish, deaths.
    pub(super) asks: u64,
    pub(super) cancels: u64,
    pub(super) vanishing: u64,
    pub(super) deaths: u64,
    /// A member fails one time in so many; 0: never.
    pub(super) failures: u64,
    pub(super) deadlines: bool,
    pub(super) stop_now: bool,
    pub(super) max_client_bytes: u64,
    /// How often each queue moves, by its number.
    pub(super) pace: [u64; 8],
}

impl Plan {
    pub(super) fn new(random: &mut Random) -> Plan {
        let small_bound = random.one_in(3);
        Plan {
            asks: 1 + random.below(6),
            cancels: random.below(3),
            vanishing: u64::from(random.one_in(4)),
            deaths: random.below(5),
            failures: [0, 0, 5, 12][random.below(4) as usize],
            deadlines: random.one_in(3),
            stop_now: random.one_in(6),
            max_client_bytes: if small_bound {
                40 + random.below(200)
            } else {
                1 << 20
            },
            pace: std::array::from_fn(|_| [1, 4, 4, 16][random.below(4) as usize]),
        }
    }
}

/// Few places for little, so that all of them are full at times.
pub(super) fn limits(random: &mut Random) -> Limits {
    Limits {
        workers: 1 + random.below(3) as usize,
        extra_workers: random.below(2) as usize,
        express_workers: random.below(2) as usize,
        max_batch_rows: 2 + random.below(6) as usize,
        priority_rows: 1 + random.below(3) as usize,
        prefetch: random.below(3) as usize,
        max_chunk_us: random.one_in(2).then_some(20),
        batch_delay_us: 0,
        max_requests: 1000,
        max_bytes: u64::MAX,
    }
}

/// Those that have one leg come first.
pub(super) fn models() -> Vec<Arc<Description>> {
    let source = MockSource::default();
    let staged = |roles: &[Role]| roles.iter().map(|role| (*role, Behaviour::Echo)).collect();
    let (main, extra) = (Role::Main, Role::Extra);
    vec![
        source.add("batched", Behaviour::Echo),
        source.add_kind("whole", BatchKind::Whole, Behaviour::Echo),
        source.add_kind("fixed", BatchKind::Fixed(2), Behaviour::Echo),
        source.add_legs("two", BatchKind::Batched, staged(&[extra, main])),
        source.add_legs("three", BatchKind::Batched, staged(&[extra, main, extra])),
    ]
}

/// So many of them have one leg.
pub(super) const ONE_LEG: usize = 3;
