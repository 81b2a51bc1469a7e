//! Models that are loaded before anyone asks for them: open on every worker first, then served in place of what they
//! replace. And the room for them: which models leave when a bound is reached.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Ventilator;
use super::clients::{Asker, the_server};
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, ReplyTo, WorkerId};
use crate::model::{Description, Lookup};
use crate::schedule::Lane;
use crate::wire::inner::{self, ToWorker};
use crate::wire::server::ServerMessage;

/// Who wants a model loaded.
pub(super) enum LoadedFor {
    Operator(Asker, Arc<Lookup>),
    /// It was named by --preload.
    Start(String),
}

impl LoadedFor {
    fn lookup(&self) -> Arc<Lookup> {
        match self {
            LoadedFor::Operator(_, lookup) => lookup.clone(),
            LoadedFor::Start(name) => Arc::new(Lookup::of(Some(name), &Params::new())),
        }
    }

    fn client(&self) -> ReplyTo {
        match self {
            LoadedFor::Operator(asker, _) => asker.client,
            LoadedFor::Start(_) => the_server(),
        }
    }

    fn is_of(&self, client: &ReplyTo) -> bool {
        matches!(self, LoadedFor::Operator(asker, _) if asker.client == *client)
    }
}

/// The models that workers are opening.
#[derive(Default)]
pub(super) struct Openings(HashMap<ModelId, Opening>);

struct Opening {
    description: Arc<Description>,
    missing: HashSet<WorkerId>,
    /// The first that a worker had.
    error: Option<Error>,
    wanted: Vec<LoadedFor>,
}

impl Openings {
    /// How many want a model that is being opened: all of them, and that client's.
    pub(super) fn orders(&self, client: &ReplyTo) -> (usize, usize) {
        let wanted = || self.0.values().flat_map(|opening| &opening.wanted);
        let own = wanted().filter(|wanted| wanted.is_of(client));
        (wanted().count(), own.count())
    }

    /// A worker has opened a model, or has none to open any more.
    fn opened(
        &mut self,
        worker: WorkerId,
        model: ModelId,
        error: Option<Error>,
    ) -> Option<Opening> {
        let opening = self.0.get_mut(&model)?;
        if opening.missing.remove(&worker) && opening.error.is_none() {
            opening.error = error;
        }
        let complete = opening.missing.is_empty();
        complete.then(|| self.0.remove(&model)).flatten()
    }
}

impl Ventilator {
    /// Has every worker open a model; it is served once they have.
    pub(super) fn open_everywhere(&mut self, description: Arc<Description>, wanted: LoadedFor) {
        let model = description.id;
        let open = inner::write_to_worker(&ToWorker::Open(model));
        let told = self.tell_workers(Lane::Small, &open);
        let opening = self.openings.0.entry(model).or_insert_with(|| Opening {
            description,
            missing: HashSet::new(),
            error: None,
            wanted: Vec::new(),
        });
        opening.wanted.push(wanted);
        opening.missing.extend(told);
        if opening.missing.is_empty()
            && let Some(opening) = self.openings.0.remove(&model)
        {
            self.finish_opening(opening);
        }
    }

    pub(super) fn take_opened(&mut self, worker: WorkerId, model: ModelId, error: Option<Error>) {
        if let Some(error) = &error {
            tracing::warn!(worker_id = worker.0, %error, "a model could not be opened ahead");
        }
        if let Some(opening) = self.openings.opened(worker, model, error) {
            self.finish_opening(opening);
        }
    }

    /// A worker that was lost has no sessions, and opens those that its chunks need.
    pub(super) fn open_without(&mut self, worker: WorkerId) {
        let models: Vec<ModelId> = self.openings.0.keys().copied().collect();
        for model in models {
            if let Some(opening) = self.openings.opened(worker, model, None) {
                self.finish_opening(opening);
            }
        }
    }

    fn finish_opening(&mut self, opening: Opening) {
        let model = opening.description.id;
        for wanted in opening.wanted {
            let result = match &opening.error {
                Some(error) => Err(error.clone()),
                None => self.take_over(&opening.description, &wanted),
            };
            if let Err(error) = result {
                self.load_failed(wanted, error);
                continue;
            }
            match wanted {
                LoadedFor::Operator(asker, _) => {
                    let info = ServerMessage::LoadOk(Box::new(opening.description.info()));
                    self.answer_asker(&asker, &info);
                }
                LoadedFor::Start(_) => {
                    self.in_use.stay(model);
                    self.starting.models_missing -= 1;
                    self.check_ready();
                }
            }
        }
        // What was served before goes on being served.
        if self.registry.abandon(model) {
            self.forget_models(&[model]);
        }
    }

    /// Requests find the model from now on, and not what it replaces.
    fn take_over(&mut self, description: &Arc<Description>, wanted: &LoadedFor) -> Result<()> {
        let (model, lookup) = (description.id, wanted.lookup());
        let replaced = self.registry.replaced_by(model, &lookup);
        let room = self.room_for(description, &replaced.leaving)?;
        if !self.registry.serve(model, &lookup) {
            return Err(Error::precondition(format!(
                "model {:?} was unloaded while it was being loaded",
                description.name
            )));
        }
        let mut all = replaced.leaving.iter().chain(&replaced.renamed);
        if all.any(|old| self.in_use.stays(*old)) {
            self.in_use.stay(model);
        }
        for renamed in &replaced.renamed {
            self.intake.forget(*renamed);
        }
        self.forget_models(&replaced.leaving);
        self.make_room(&room);
        self.in_use.touch(model);
        self.intake.learn(&wanted.client(), &lookup, description);
        Ok(())
    }

    pub(super) fn load_failed(&mut self, wanted: LoadedFor, error: Error) {
        match wanted {
            LoadedFor::Operator(asker, _) => self.refuse_asker(&asker, error),
            LoadedFor::Start(name) => {
                self.fail_start(error.context(format_args!("--preload {name}")));
            }
        }
    }

    /// The models that leave so that this one can stay: those that were used longest ago, never one that a request is
    /// held for, that is being opened, or that was preloaded. `replaced` leave anyway.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if that is not enough.
    pub(super) fn room_for(
        &self,
        description: &Description,
        replaced: &[ModelId],
    ) -> Result<Vec<ModelId>> {
        let new = description.id;
        let mut others = self.registry.sizes();
        others.retain(|(id, _)| *id != new && !replaced.contains(id));
        let own_bytes = self.registry.size(new);
        let mut count = others.len() + 1;
        let mut bytes = own_bytes + others.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let (most, most_bytes) = (self.facts.max_models, self.facts.max_model_bytes);
        let fits = |count, bytes| count <= most && most_bytes.is_none_or(|most| bytes <= most);
        others.retain(|(id, _)| {
            let busy = self.in_use.is_busy(*id) || self.openings.0.contains_key(id);
            !busy && !self.in_use.stays(*id)
        });
        others.sort_by_key(|(id, _)| (self.in_use.last(*id), *id));
        let mut leaving = Vec::new();
        for (id, its_bytes) in others {
            if fits(count, bytes) {
                break;
            }
            count -= 1;
            bytes -= its_bytes;
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
            "model {:?}: {why}; the others have requests in flight or were preloaded: try later, unload one, or raise \
             the bound",
            description.name
        )))
    }

    pub(super) fn make_room(&mut self, leaving: &[ModelId]) {
        for model in leaving {
            tracing::info!(id = model.0, "model leaves to make room");
            self.registry.forget(*model);
        }
        self.forget_models(leaving);
    }
}
