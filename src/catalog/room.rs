//! Room for models: which are in use, which were used last, and which leave when there is no room for another.

use std::collections::HashMap as StdMap;

use foldhash::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::message::ModelId;
use crate::model::Description;

/// How many models may be served, and of how many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MostModels {
    pub(crate) count: usize,
    /// Of the files of all; `None` is no bound.
    pub(crate) bytes: Option<u64>,
}

/// Told of every request, so it is one look into a map.
pub(super) struct Room {
    most: MostModels,
    uses: HashMap<ModelId, Use>,
    /// Later uses have higher numbers.
    last_use: u64,
    leaving: HashSet<ModelId>,
    /// Named by --preload: they do not leave to make room.
    stays: HashSet<ModelId>,
    /// The bytes of their files, of those that are held in the store.
    sizes: StdMap<ModelId, u64>,
}

#[derive(Clone, Copy, Default)]
struct Use {
    requests: usize,
    last: u64,
}

/// Whether the last request of a model that is leaving has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    OfLeaving,
    Other,
}

impl Room {
    pub(super) fn new(most: MostModels) -> Room {
        Room {
            most,
            uses: HashMap::default(),
            last_use: 0,
            leaving: HashSet::default(),
            stays: HashSet::default(),
            sizes: StdMap::new(),
        }
    }

    /// A request needs the model.
    pub(super) fn hold(&mut self, model: ModelId) {
        self.last_use += 1;
        let used = self.uses.entry(model).or_default();
        used.last = self.last_use;
        used.requests += 1;
    }

    /// It was used otherwise.
    pub(super) fn touch(&mut self, model: ModelId) {
        self.last_use += 1;
        self.uses.entry(model).or_default().last = self.last_use;
    }

    /// Whether a model leaves as soon as its last request has ended.
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
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

    /// The bytes of the files of all models that are held.
    pub(super) fn sized(&mut self, sizes: Vec<(ModelId, u64)>) {
        self.sizes.clear();
        self.sizes.extend(sizes);
    }

    fn size(&self, model: ModelId) -> u64 {
        self.sizes.get(&model).copied().unwrap_or_default()
    }

    /// The models that leave so that this one can be served beside `others`: those that were used longest ago, never one
    /// that a request is held for, that was preloaded, or that is `kept` for another reason.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if that is not enough.
    pub(super) fn choose_leaving(
        &self,
        new: &Description,
        mut others: Vec<ModelId>,
        is_kept: impl Fn(ModelId) -> bool,
    ) -> Result<Vec<ModelId>> {
        let own_bytes = self.size(new.id);
        let mut count = others.len() + 1;
        let mut bytes = own_bytes + others.iter().map(|id| self.size(*id)).sum::<u64>();
        let MostModels {
            count: most,
            bytes: most_bytes,
        } = self.most;
        let fits = |count, bytes| count <= most && most_bytes.is_none_or(|most| bytes <= most);
        others.retain(|id| !self.is_busy(*id) && !self.stays(*id) && !is_kept(*id));
        let last = |id| self.uses.get(&id).map_or(0, |used| used.last);
        others.sort_by_key(|id| (last(*id), *id));
        let mut leaving = Vec::new();
        for id in others {
            if fits(count, bytes) {
                break;
            }
            count -= 1;
            bytes -= self.size(id);
            leaving.push(id);
        }
        if fits(count, bytes) {
            return Ok(leaving);
        }
        let why = if count > most {
            format!("{count} models would be loaded, and {most} is the most (--max-models)")
        } else {
            format!(
                "it has {own_bytes} bytes of files, with which {bytes} would be loaded, and {} is the most \
                 (--max-model-bytes)",
                most_bytes.unwrap_or_default()
            )
        };
        Err(Error::exhausted(format!(
            "model {}: {why}; the others have requests in flight or were preloaded: try later, unload one, or raise \
             the bound",
            new.shown()
        )))
    }

    /// The models of which something is kept here.
    #[cfg(test)]
    pub(super) fn kept(&self) -> Vec<ModelId> {
        let all = self.uses.keys().chain(&self.leaving).chain(&self.stays);
        all.copied().collect()
    }
}
