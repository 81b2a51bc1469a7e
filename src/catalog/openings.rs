//! The models that every worker is opening before requests find them, and who wants each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::loads::{OpeningOrders, Wanted};
use crate::error::Error;
use crate::message::{ModelId, ReplyTo, WorkerId};
use crate::model::Description;

/// The models that workers are opening.
#[derive(Default)]
pub(super) struct Openings(BTreeMap<ModelId, Opening>);

pub(super) struct Opening {
    pub(super) description: Arc<Description>,
    missing: HashSet<WorkerId>,
    /// The first that a worker had.
    pub(super) error: Option<Error>,
    pub(super) wanted: Vec<Wanted>,
}

impl Openings {
    /// How many want a model that is being opened: all of them, and that client's.
    pub(super) fn orders(&self, client: &ReplyTo) -> OpeningOrders {
        let wanted = || self.0.values().flat_map(|opening| &opening.wanted);
        let own = wanted().filter(|wanted| wanted.is_of(client));
        OpeningOrders {
            of_all: wanted().count(),
            of_client: own.count(),
        }
    }

    pub(super) fn contains(&self, model: ModelId) -> bool {
        self.0.contains_key(&model)
    }

    pub(super) fn models(&self) -> Vec<ModelId> {
        self.0.keys().copied().collect()
    }

    /// Somebody wants a model, which every worker is to be told to open.
    pub(super) fn add(&mut self, description: Arc<Description>, wanted: Wanted) {
        let opening = self.0.entry(description.id).or_insert_with(|| Opening {
            description,
            missing: HashSet::new(),
            error: None,
            wanted: Vec::new(),
        });
        opening.wanted.push(wanted);
    }

    /// These workers were told to open it. Returns the opening if nobody is left to wait for.
    pub(super) fn told(&mut self, model: ModelId, workers: Vec<WorkerId>) -> Option<Opening> {
        self.0.get_mut(&model)?.missing.extend(workers);
        self.take_complete(model)
    }

    /// A worker has opened a model, or has none to open any more. Returns the opening if that was the last one.
    pub(super) fn opened(
        &mut self,
        worker: WorkerId,
        model: ModelId,
        error: Option<Error>,
    ) -> Option<Opening> {
        let opening = self.0.get_mut(&model)?;
        if opening.missing.remove(&worker) && opening.error.is_none() {
            opening.error = error;
        }
        self.take_complete(model)
    }

    fn take_complete(&mut self, model: ModelId) -> Option<Opening> {
        let is_complete = self.0.get(&model)?.missing.is_empty();
        is_complete.then(|| self.0.remove(&model)).flatten()
    }
}
