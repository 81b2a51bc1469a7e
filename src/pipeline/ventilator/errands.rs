//! What the loader is asked for, and what is done with its answers.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{Asker, Ventilator};
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, WorkerId};
use crate::model::Lookup;
use crate::model::loader::{Answer, Job};
use crate::pipeline::tell;
use crate::schedule::Lane;
use crate::wire::inner::{self, ToWorker};
use crate::wire::server::ServerMessage;

/// What the loader was asked, and for whom.
pub(super) enum Errand {
    /// Requests wait for it.
    Infer(Lookup),
    /// An operator wants it loaded.
    Load(Asker),
    Unload(Asker),
    /// It was named by --preload.
    Preload(String),
}

impl Ventilator {
    pub(super) fn send_errand(&mut self, errand: Errand, job: Job) {
        self.next_errand += 1;
        self.errands.insert(self.next_errand, errand);
        self.loader.ask(self.next_errand, job);
    }

    pub(super) fn take_loaded(&mut self, ticket: u64) -> Result<()> {
        let (Some(errand), Some(answer)) = (self.errands.remove(&ticket), self.loader.take(ticket))
        else {
            return Ok(());
        };
        let retired = self.registry.take_retired();
        self.forget_models(&retired);
        match (errand, answer) {
            (Errand::Infer(lookup), Answer::Described(result)) => self.settle(&lookup, result),
            (Errand::Load((identity, id)), Answer::Described(Ok(description))) => {
                self.open_everywhere(description.id);
                let info = ServerMessage::LoadOk(Box::new(description.info()));
                self.answer(&identity, id, &info);
                Ok(())
            }
            (Errand::Unload((identity, id)), Answer::Unloaded(Ok(models))) => {
                self.forget_models(&models);
                self.answer(&identity, id, &ServerMessage::UnloadOk);
                Ok(())
            }
            (Errand::Preload(name), Answer::Described(Ok(description))) => {
                self.starting.models_missing -= 1;
                // Its first request need not wait for the loader.
                let lookup = Lookup::of(Some(&name), &Params::new());
                self.settle(&lookup, Ok(description.clone()))?;
                for number in 0..self.lanes.len() {
                    let open = (WorkerId(number as u32), description.id);
                    self.starting.opens_missing.insert(open);
                }
                self.open_everywhere(description.id);
                Ok(())
            }
            (Errand::Preload(name), Answer::Described(Err(error))) => {
                self.fail_start(error.context(format_args!("--preload {name}")));
                Ok(())
            }
            (
                Errand::Load((identity, id)) | Errand::Unload((identity, id)),
                Answer::Described(Err(error)) | Answer::Unloaded(Err(error)),
            ) => {
                self.refuse_on_port(&identity, id, error);
                Ok(())
            }
            (_, _) => Err(Error::internal("the loader answered what it was not asked")),
        }
    }

    /// Has every worker open a model before its first chunk comes.
    fn open_everywhere(&mut self, model: ModelId) {
        let open = inner::write_to_worker(&ToWorker::Open(model));
        self.tell_workers(Lane::Small, &open);
    }

    fn tell_workers(&mut self, lane: Lane, message: &[Bytes]) {
        for (index, lanes) in self.lanes.iter_mut().enumerate() {
            let socket = match lane {
                Lane::Small => &mut lanes.small,
                Lane::Bulk => &mut lanes.bulk,
            };
            // A worker that was lost and is coming up again has no sessions, and opens those that its chunks need.
            if let Err(error) = tell(socket, message.to_vec()) {
                tracing::debug!(worker_id = index, %error, "a worker is not there to be told of a model");
            }
        }
    }

    /// Forgets models: from now on no request finds them, and those that have found them are still answered.
    fn forget_models(&mut self, models: &[ModelId]) {
        for model in models {
            self.intake.forget(*model);
            if let Last::OfLeaving = self.in_use.leave(*model) {
                self.forget_now(*model);
            }
        }
    }

    /// No request needs the model any more: the workers drop their sessions.
    pub(super) fn forget_now(&mut self, model: ModelId) {
        self.scheduler.forget(model);
        self.registry.let_go(model);
        let forget = inner::write_to_worker(&ToWorker::Forget(model));
        self.tell_workers(Lane::Bulk, &forget);
    }
}

/// How many requests are held for each model, and which models go with the last of theirs.
#[derive(Default)]
pub(super) struct InUse {
    requests: HashMap<ModelId, usize>,
    leaving: HashSet<ModelId>,
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
        *self.requests.entry(model).or_default() += 1;
    }

    /// A request that needed it has ended.
    pub(super) fn release(&mut self, model: ModelId) -> Last {
        match self.requests.get_mut(&model) {
            Some(requests) if *requests > 1 => {
                *requests -= 1;
                return Last::Other;
            }
            _ => self.requests.remove(&model),
        };
        match self.leaving.remove(&model) {
            true => Last::OfLeaving,
            false => Last::Other,
        }
    }

    /// The model is to be forgotten.
    pub(super) fn leave(&mut self, model: ModelId) -> Last {
        if !self.requests.contains_key(&model) {
            return Last::OfLeaving;
        }
        self.leaving.insert(model);
        Last::Other
    }
}
