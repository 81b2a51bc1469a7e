//! Which requests may run in one batch: those of one group.

use foldhash::HashMap;

use crate::message::ModelId;

/// Different groups that have numbers. When they are forgotten, requests of before and after do not share a batch.
const MAX_GROUPS: usize = 4096;
/// Longest parameters and dimensions of a group that has a number.
const MAX_GROUP_BYTES: usize = 4096;

/// What requests have in common that may run in one batch: the same model, parameters and dimensions.
#[derive(Hash, PartialEq, Eq)]
struct GroupKey {
    model: ModelId,
    dims: Vec<usize>,
    params: Box<[u8]>,
}

/// The numbers of groups.
#[derive(Default)]
pub(super) struct Groups {
    numbers: HashMap<GroupKey, u64>,
    last: u64,
}

impl Groups {
    /// Whether the next new group makes all earlier ones be forgotten.
    pub(super) fn are_full(&self) -> bool {
        self.numbers.len() >= MAX_GROUPS
    }

    /// The number of a group. Parameters are the same if their bytes are.
    pub(super) fn number(&mut self, model: ModelId, dims: Vec<usize>, params: &[u8]) -> u64 {
        if params.len() + size_of_val(&*dims) > MAX_GROUP_BYTES {
            // Too long to be kept in case it comes again: it runs alone.
            self.last += 1;
            return self.last;
        }
        if self.are_full() {
            self.numbers.clear();
        }
        let key = GroupKey {
            model,
            dims,
            params: params.into(),
        };
        let last = &mut self.last;
        *self.numbers.entry(key).or_insert_with(|| {
            *last += 1;
            *last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_not_kept_with_groups() {
        let mut groups = Groups::default();
        let ids = [0, 1].map(|_| groups.number(ModelId(1), vec![7; 100_000], &[]));
        assert_ne!(ids[0], ids[1]);
        assert!(groups.numbers.is_empty());
    }

    #[test]
    fn groups_without_end_take_no_more_than_their_places() {
        let mut groups = Groups::default();
        let first = groups.number(ModelId(1), vec![0], &[]);
        assert_eq!(groups.number(ModelId(1), vec![0], &[]), first);
        for dim in 0..2 * MAX_GROUPS {
            groups.number(ModelId(1), vec![dim], &[]);
            assert!(groups.numbers.len() <= MAX_GROUPS);
        }
        assert_ne!(groups.number(ModelId(1), vec![0], &[]), first);
    }
}
