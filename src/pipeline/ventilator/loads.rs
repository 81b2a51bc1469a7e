//! What the loader is asked for, and what is done with its answers.

use bytes::Bytes;

use super::in_use::Last;
use super::openings::Awaiter;
use super::{Asker, MAX_ERRANDS, Phase, Ventilator, loader_is_busy};
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
    /// Somebody asks what it is.
    Describe(Asker, Lookup),
    /// Somebody wants it loaded, and open on every worker.
    Load(Awaiter),
    Unload(Asker),
}

/// What an operator wants done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Load,
    Unload,
}

impl Ventilator {
    pub(super) fn send_errand(&mut self, errand: Errand, job: Job) {
        self.next_errand += 1;
        self.errands.insert(self.next_errand, errand);
        self.loader.ask(self.next_errand, job);
    }

    /// A load or an unload has arrived.
    pub(super) fn take_order(&mut self, asker: Asker, order: Order, name: &str) {
        if self.errands.len() + self.openings.awaiters() >= MAX_ERRANDS {
            let (identity, id) = asker;
            self.refuse_on_port(&identity, id, loader_is_busy());
            return;
        }
        let lookup = Lookup::of(Some(name), &Params::new());
        match order {
            Order::Load => {
                let awaiter = Awaiter::Operator(asker, lookup.clone());
                self.send_errand(Errand::Load(awaiter), Job::Load(lookup));
            }
            Order::Unload => self.send_errand(Errand::Unload(asker), Job::Unload(lookup)),
        }
    }

    /// Somebody asks what a request would get. It is found as for a request: what is loaded is not loaded anew.
    pub(super) fn take_question(&mut self, asker: Asker, lookup: Lookup) {
        let (identity, id) = &asker;
        if self.phase != Phase::Serving {
            let error = Error::unavailable("the server is shutting down");
            self.refuse_on_port(identity, *id, error);
        } else if let Some(description) = self.intake.known(&lookup) {
            let models = ServerMessage::ModelsOk(vec![description.info()]);
            self.answer(identity, *id, &models);
        } else if self.errands.len() >= MAX_ERRANDS {
            self.refuse_on_port(identity, *id, loader_is_busy());
        } else {
            let job = Job::Resolve(lookup.clone());
            self.send_errand(Errand::Describe(asker, lookup), job);
        }
    }

    pub(super) fn take_loaded(&mut self, ticket: u64) -> Result<()> {
        let (Some(errand), Some(answer)) = (self.errands.remove(&ticket), self.loader.take(ticket))
        else {
            return Ok(());
        };
        match (errand, answer) {
            (Errand::Infer(lookup), Answer::Described(result)) => self.settle(lookup, result),
            (Errand::Describe(asker, lookup), Answer::Described(result)) => {
                let (identity, id) = &asker;
                match self.take_up(&lookup, result) {
                    Some(Ok(description)) => {
                        let models = ServerMessage::ModelsOk(vec![description.info()]);
                        self.answer(identity, *id, &models);
                    }
                    Some(Err(error)) => self.refuse_on_port(identity, *id, error),
                    None => self.take_question(asker, lookup),
                }
                Ok(())
            }
            (Errand::Load(awaiter), Answer::Described(Ok(description))) => {
                self.open_everywhere(description, awaiter);
                Ok(())
            }
            (Errand::Load(awaiter), Answer::Described(Err(error))) => {
                self.load_failed(awaiter, error);
                Ok(())
            }
            (Errand::Unload((identity, id)), Answer::Unloaded(Ok(models))) => {
                self.forget_models(&models);
                self.answer(&identity, id, &ServerMessage::UnloadOk);
                Ok(())
            }
            (Errand::Unload((identity, id)), Answer::Unloaded(Err(error))) => {
                self.refuse_on_port(&identity, id, error);
                Ok(())
            }
            (_, _) => Err(Error::internal("the loader answered what it was not asked")),
        }
    }

    /// Tells every worker that is there, and says which were.
    pub(super) fn tell_workers(&mut self, lane: Lane, message: &[Bytes]) -> Vec<WorkerId> {
        let mut told = Vec::new();
        for (index, lanes) in self.lanes.iter_mut().enumerate() {
            let socket = match lane {
                Lane::Small => &mut lanes.small,
                Lane::Bulk => &mut lanes.bulk,
            };
            // A worker that was lost and is coming up again has no sessions, and opens those that its chunks need.
            match tell(socket, message.to_vec()) {
                Ok(()) => told.push(WorkerId(index as u32)),
                Err(error) => {
                    tracing::debug!(worker_id = index, %error, "a worker is not there to be told of a model");
                }
            }
        }
        told
    }

    /// Forgets models: from now on no request finds them, and those that have found them are still answered.
    pub(super) fn forget_models(&mut self, models: &[ModelId]) {
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
