//! What is served, coming and leaving, and what follows when one model takes the place of others.

use std::sync::Arc;

use super::known::{Known, Standing};
use super::loads::Named;
use super::lookup_cache::LookupCache;
use super::openings::Openings;
use super::room::{Last, MostModels, Room};
use crate::error::{Error, Result};
use crate::message::{ModelId, ReplyTo};
use crate::model::{Description, Key, Lookup, Name};
use crate::wire::server::LoadOutcome;

/// What has changed, for those who keep something of a model.
#[derive(Debug)]
pub(crate) enum Change {
    /// From now on this lookup leads to that model, and to no other.
    LeadsTo(Arc<Lookup>, ModelId),
    /// Nothing leads to that model any more: what did is to be looked up anew.
    NotFoundAnyMore(ModelId),
    /// Nobody needs a model any more: its sessions and its weights go.
    Dropped(ModelId),
}

/// The models, what is known to lead to them, and the room that they have.
pub(super) struct Models {
    cache: LookupCache,
    pub(super) known: Known,
    pub(super) room: Room,
    pub(super) changes: Vec<Change>,
}

impl Models {
    pub(super) fn new(most: MostModels) -> Models {
        Models {
            cache: LookupCache::default(),
            known: Known::default(),
            room: Room::new(most),
            changes: Vec::new(),
        }
    }

    /// What a lookup leads to, if that is known.
    pub(super) fn get(&mut self, lookup: &Lookup) -> Option<&Arc<Description>> {
        self.cache.get(lookup)
    }

    /// A request that held a model has ended.
    pub(super) fn release(&mut self, model: ModelId) {
        if let Last::OfLeaving = self.room.release(model) {
            self.forget(model);
        }
    }

    /// A model was read because requests wait for it: it is served, unless a state of it has been since.
    pub(super) fn take_in(
        &mut self,
        key: &Key,
        description: Arc<Description>,
        name: Option<&Name>,
    ) -> Arc<Description> {
        if let Some(known) = self.known.adopt(key, name) {
            self.turn_away(&description);
            return known;
        }
        let standing = Standing::Served;
        self.known
            .insert(key.clone(), description.clone(), standing, name);
        description
    }

    /// Whether a model that was read can be served without another's leaving.
    pub(super) fn has_room(&self, model: &Description, openings: &Openings) -> bool {
        let leaving = self.room_for(model, &[], openings);
        leaving.is_ok_and(|leaving| leaving.is_empty())
    }

    /// A model that was read is not served.
    pub(super) fn turn_away(&mut self, model: &Description) {
        self.changes.push(Change::Dropped(model.id));
    }

    /// A lookup leads to a served model, and there is room for it or is made: the next request need not wait.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is none; then the model leaves.
    pub(super) fn use_for(
        &mut self,
        client: &ReplyTo,
        named: &Named,
        model: &Arc<Description>,
        openings: &Openings,
    ) -> Result<()> {
        match self.room_for(model, &[], openings) {
            Ok(leaving) => self.make_room(&leaving),
            Err(error) => {
                self.make_room(&[model.id]);
                return Err(error);
            }
        }
        self.learn(client, &named.lookup, model);
        Ok(())
    }

    /// Requests find a loaded model from now on, and not what it replaces; what that has changed.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no room for it, `FAILED_PRECONDITION` if it has left meanwhile.
    pub(super) fn take_over(
        &mut self,
        client: &ReplyTo,
        named: &Named,
        model: &Arc<Description>,
        openings: &Openings,
    ) -> Result<LoadOutcome> {
        let name = named.name.as_ref();
        let was_served = self.known.standing(model.id) == Some(Standing::Served);
        let replaced = self.known.replaced_by(model.id, name);
        let room = self.room_for(model, &replaced.leaving, openings)?;
        if matches!(
            self.known.standing(model.id),
            None | Some(Standing::Leaving)
        ) {
            return Err(Error::precondition(format!(
                "model {} was unloaded while it was being loaded",
                model.shown()
            )));
        }
        self.known.serve(model.id, name);
        let mut all = replaced.leaving.iter().chain(&replaced.renamed);
        if all.any(|old| self.room.stays(*old)) {
            self.room.stay(model.id);
        }
        for renamed in &replaced.renamed {
            self.unlearn(*renamed);
        }
        self.leave_all(&replaced.leaving);
        self.make_room(&room);
        self.learn(client, &named.lookup, model);
        Ok(match replaced.leaving.len() + replaced.renamed.len() {
            0 if was_served => LoadOutcome::Unchanged,
            0 => LoadOutcome::Loaded,
            _ => LoadOutcome::LoadedAnew,
        })
    }

    fn learn(&mut self, client: &ReplyTo, lookup: &Arc<Lookup>, model: &Arc<Description>) {
        self.room.touch(model.id);
        self.cache.insert(client, lookup, model);
        self.changes.push(Change::LeadsTo(lookup.clone(), model.id));
    }

    /// The models that leave so that this one can be served. `replaced` leave anyway.
    fn room_for(
        &self,
        model: &Description,
        replaced: &[ModelId],
        openings: &Openings,
    ) -> Result<Vec<ModelId>> {
        let others = self.known.served().map(|served| served.id);
        let others = others.filter(|id| *id != model.id && !replaced.contains(id));
        let is_opening = |id| openings.contains(id);
        self.room
            .choose_leaving(model, others.collect(), is_opening)
    }

    fn make_room(&mut self, leaving: &[ModelId]) {
        for model in leaving {
            tracing::info!(id = model.0, "model leaves to make room");
        }
        self.leave_all(leaving);
    }

    pub(super) fn leave_all(&mut self, models: &[ModelId]) {
        models.iter().for_each(|model| self.leave(*model));
    }

    /// From now on no request finds a model, and those that have found it are still answered.
    pub(super) fn leave(&mut self, model: ModelId) {
        self.known.leave(model);
        self.unlearn(model);
        if let Last::OfLeaving = self.room.leave(model) {
            self.forget(model);
        }
    }

    fn unlearn(&mut self, model: ModelId) {
        self.cache.forget(model);
        self.changes.push(Change::NotFoundAnyMore(model));
    }

    fn forget(&mut self, model: ModelId) {
        self.known.forget(model);
        self.changes.push(Change::Dropped(model));
    }
}
