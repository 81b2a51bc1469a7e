//! Which models requests use: how many are held for each, which was used last, and which go with the last of theirs.

use crate::message::ModelId;
use foldhash::{HashMap, HashSet};

/// Told of every request, so it is one look into a map.
#[derive(Default)]
pub(super) struct InUse {
    uses: HashMap<ModelId, Use>,
    clock: u64,
    leaving: HashSet<ModelId>,
    /// Named by --preload: they do not leave to make room.
    stays: HashSet<ModelId>,
}

#[derive(Clone, Copy, Default)]
struct Use {
    requests: usize,
    last: u64,
}

/// Whether the last request of a model that is to be forgotten has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    OfLeaving,
    Other,
}

impl InUse {
    /// A request needs the model.
    pub(super) fn hold(&mut self, model: ModelId) {
        self.touch(model);
        self.uses.entry(model).or_default().requests += 1;
    }

    /// It was used otherwise.
    pub(super) fn touch(&mut self, model: ModelId) {
        self.clock += 1;
        self.uses.entry(model).or_default().last = self.clock;
    }

    /// A request that needed it has ended.
    pub(super) fn release(&mut self, model: ModelId) -> Last {
        if let Some(used) = self.uses.get_mut(&model) {
            used.requests = used.requests.saturating_sub(1);
            if used.requests > 0 {
                return Last::Other;
            }
        }
        match self.leaving.remove(&model) {
            true => {
                self.uses.remove(&model);
                Last::OfLeaving
            }
            false => Last::Other,
        }
    }

    /// The model is to be forgotten.
    pub(super) fn leave(&mut self, model: ModelId) -> Last {
        self.stays.remove(&model);
        if self.is_busy(model) {
            self.leaving.insert(model);
            return Last::Other;
        }
        self.uses.remove(&model);
        Last::OfLeaving
    }

    /// Whether a request is held for it.
    pub(super) fn is_busy(&self, model: ModelId) -> bool {
        self.uses.get(&model).is_some_and(|used| used.requests > 0)
    }

    /// It does not leave to make room.
    pub(super) fn stay(&mut self, model: ModelId) {
        self.stays.insert(model);
    }

    pub(super) fn stays(&self, model: ModelId) -> bool {
        self.stays.contains(&model)
    }

    /// When it was used last: later uses have higher numbers.
    pub(super) fn last(&self, model: ModelId) -> u64 {
        self.uses.get(&model).map_or(0, |used| used.last)
    }
}
