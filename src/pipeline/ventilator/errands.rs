//! What the loader is asked for, and what is done with its answers.

use super::{Asker, Ventilator};
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, WorkerId};
use crate::model::Lookup;
use crate::model::loader::{Answer, Job};
use crate::pipeline::tell;
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
        self.forget_models(&retired)?;
        match (errand, answer) {
            (Errand::Infer(lookup), Answer::Described(result)) => self.settle(&lookup, result),
            (Errand::Load((identity, id)), Answer::Described(Ok(description))) => {
                self.open_everywhere(description.id)?;
                let info = ServerMessage::LoadOk(Box::new(description.info()));
                self.answer(&identity, id, &info);
                Ok(())
            }
            (Errand::Unload((identity, id)), Answer::Unloaded(Ok(models))) => {
                self.forget_models(&models)?;
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
                self.open_everywhere(description.id)
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
    pub(super) fn open_everywhere(&mut self, model: ModelId) -> Result<()> {
        let open = inner::write_to_worker(&ToWorker::Open(model));
        for lanes in &mut self.lanes {
            tell(&mut lanes.small, open.clone())?;
        }
        Ok(())
    }

    pub(super) fn forget_models(&mut self, models: &[ModelId]) -> Result<()> {
        for model in models {
            self.intake.forget(*model);
            self.scheduler.forget(*model);
            let forget = inner::write_to_worker(&ToWorker::Forget(*model));
            for lanes in &mut self.lanes {
                tell(&mut lanes.bulk, forget.clone())?;
            }
        }
        Ok(())
    }
}
