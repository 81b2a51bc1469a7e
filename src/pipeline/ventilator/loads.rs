//! What the loader is asked for, by whom and how much of it, and what is done with its answers.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::clients::Asker;
use super::in_use::Last;
use super::intake::Arrival;
use super::intake::{QUESTION_BYTES, lookup_bytes};
use super::openings::LoadedFor;
use super::shares::{Amount, Bounds, Shares};
use super::{Phase, Ventilator};
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, ReplyTo, Serial, WorkerId};
use crate::model::loader::{Answer, Job};
use crate::model::{Description, Lookup};
use crate::pipeline::tell;
use crate::schedule::Lane;
use crate::wire::inner::{self, ToWorker};
use crate::wire::server::ServerMessage;

/// What the loader was asked and has not answered. Those of requests and questions count as waiting bytes too.
const LOADS: Bounds = Bounds {
    what: "models and paths to look up, load or unload",
    of_all: Amount {
        count: 4096,
        bytes: 32 << 20,
    },
    of_one: Amount {
        count: 2048,
        bytes: 8 << 20,
    },
};
/// Loads and unloads of one client that are not done.
const MAX_ORDERS_OF_ONE: usize = 64;
/// Loads and unloads that are not done, and other things that the loader was asked.
const MAX_ORDERS: usize = LOADS.of_all.count;
/// Of each besides its lookup: a job, a ticket, a client's turn and a list of those who wait.
const LOAD_BYTES: u64 = 512;

/// What the loader was asked, and what for.
pub(super) enum LoadRequest {
    /// Requests and questions wait for what the lookup leads to.
    Describe(Arc<Lookup>),
    /// Somebody wants it loaded, and open on every worker.
    Load(LoadedFor),
    Unload(Asker),
}

/// A load request that the loader has not answered.
pub(super) struct Asked {
    pub(super) request: LoadRequest,
    /// In whose turn it is done.
    pub(super) client: ReplyTo,
    bytes: u64,
}

/// What the loader was asked and has not answered.
#[derive(Default)]
pub(super) struct Loads {
    asked: HashMap<u64, Asked>,
    last_ticket: u64,
    shares: Shares<ReplyTo>,
}

impl Loads {
    /// How much it is, of all clients.
    pub(super) fn all(&self) -> Amount {
        self.shares.all()
    }

    /// Whether that client may ask for that too.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if it, or all together, have asked for as much as they may.
    pub(super) fn check(&self, client: &ReplyTo, lookup: &Lookup) -> Result<()> {
        self.shares.check(client, load_bytes(lookup), &LOADS)
    }

    fn add(&mut self, client: &ReplyTo, request: LoadRequest, bytes: u64) -> u64 {
        self.shares.add(client, bytes);
        self.last_ticket += 1;
        let client = *client;
        let asked = Asked {
            request,
            client,
            bytes,
        };
        self.asked.insert(self.last_ticket, asked);
        self.last_ticket
    }

    /// It is answered, or needs no answer any more.
    pub(super) fn finish(&mut self, ticket: u64) -> Option<Asked> {
        let asked = self.asked.remove(&ticket)?;
        self.shares.remove(&asked.client, asked.bytes);
        Some(asked)
    }
}

/// Roughly the memory of a lookup while the loader is asked about it.
pub(super) fn load_bytes(lookup: &Lookup) -> u64 {
    LOAD_BYTES + lookup_bytes(lookup)
}

/// What an operator wants done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Load,
    Unload,
}

impl Ventilator {
    /// Asks the loader, in the turn of that client. Whoever may be refused was checked before.
    pub(super) fn ask_loader(
        &mut self,
        client: &ReplyTo,
        request: LoadRequest,
        lookup: Arc<Lookup>,
    ) -> u64 {
        let bytes = load_bytes(&lookup);
        let job = match &request {
            LoadRequest::Describe(_) => Job::Resolve(lookup),
            LoadRequest::Load(_) => Job::Load(lookup),
            LoadRequest::Unload(_) => Job::Unload(lookup),
        };
        let ticket = self.loads.add(client, request, bytes);
        self.loader.ask(*client, ticket, job);
        ticket
    }

    /// A load or an unload has arrived.
    pub(super) fn take_order(&mut self, asker: Asker, order: Order, name: &str) {
        let lookup = Arc::new(Lookup::of(Some(name), &Params::new()));
        if let Err(error) = self.check_order(&asker.client, &lookup) {
            return self.refuse_asker(&asker, error);
        }
        let client = asker.client;
        let request = match order {
            Order::Load => LoadRequest::Load(LoadedFor::Operator(asker, lookup.clone())),
            Order::Unload => LoadRequest::Unload(asker),
        };
        self.ask_loader(&client, request, lookup);
    }

    fn check_order(&self, client: &ReplyTo, lookup: &Lookup) -> Result<()> {
        let (all, own) = self.openings.orders(client);
        if own + self.loads.shares.of(client).count >= MAX_ORDERS_OF_ONE {
            return Err(Error::exhausted(format!(
                "this client waits for {MAX_ORDERS_OF_ONE} models to be loaded, unloaded or looked up, the most that                  one may when it orders more; wait for some of the answers"
            )));
        }
        if all + self.loads.all().count >= MAX_ORDERS {
            return Err(Error::exhausted(format!(
                "{MAX_ORDERS} models are waiting to be loaded or unloaded; try later"
            )));
        }
        self.loads.check(client, lookup)
    }

    /// Somebody asks what a request would get. It is found as for a request: what is loaded is not loaded anew.
    pub(super) fn take_question(&mut self, asker: Asker, lookup: Lookup) {
        if self.phase != Phase::Serving {
            let error = Error::unavailable("the server is shutting down");
            self.refuse_asker(&asker, error);
        } else if let Some(description) = self.intake.known(&lookup).cloned() {
            self.answer_question(&asker, &description);
        } else if let Err(error) = self.park_question(asker, lookup) {
            self.refuse_asker(&asker, error);
        }
    }

    fn answer_question(&mut self, asker: &Asker, description: &Description) {
        let models = ServerMessage::ModelsOk(vec![description.info()]);
        self.answer_asker(asker, &models);
    }

    pub(super) fn answer_asker(&mut self, asker: &Asker, message: &ServerMessage) {
        self.answer(asker.client, asker.id, message);
    }

    pub(super) fn refuse_asker(&mut self, asker: &Asker, error: Error) {
        self.refuse_on_port(asker.client, asker.id, error);
    }

    /// The model is not described yet: the question waits as a request does.
    fn park_question(&mut self, asker: Asker, lookup: Lookup) -> Result<()> {
        let bytes = QUESTION_BYTES + load_bytes(&lookup);
        let parked = self.intake.parked_shares();
        let scheduler = &self.requests.scheduler;
        scheduler.check_room(asker.client, bytes, parked, self.beside())?;
        self.intake.check_question(&asker.client)?;
        let serial = self.new_serial();
        self.await_lookup(&asker.client, serial, lookup)?;
        self.intake.park_question(serial, asker);
        Ok(())
    }

    /// Has the loader look at what somebody names in the turn of that client, if it was not asked to yet. Whoever else
    /// waits for the same goes on with the first answer.
    pub(super) fn await_lookup(
        &mut self,
        client: &ReplyTo,
        serial: Serial,
        lookup: Lookup,
    ) -> Result<()> {
        let (lookup, asked) = self.intake.waited_for(client, lookup);
        if !asked {
            self.loads.check(client, &lookup)?;
            self.describe(client, &lookup);
        }
        self.intake.wait(lookup, serial);
        Ok(())
    }

    fn describe(&mut self, client: &ReplyTo, lookup: &Arc<Lookup>) {
        let request = LoadRequest::Describe(lookup.clone());
        let ticket = self.ask_loader(client, request, lookup.clone());
        self.intake.asked(client, lookup, ticket);
    }

    pub(super) fn take_loaded(&mut self, ticket: u64) -> Result<()> {
        let (Some(asked), Some(answer)) = (self.loads.finish(ticket), self.loader.take(ticket))
        else {
            return Ok(());
        };
        match (asked.request, answer) {
            (LoadRequest::Describe(lookup), Answer::Described(result)) => {
                self.settle(&asked.client, lookup, result)
            }
            (LoadRequest::Load(wanted), Answer::Described(Ok(description))) => {
                self.open_everywhere(description, wanted);
                Ok(())
            }
            (LoadRequest::Load(wanted), Answer::Described(Err(error))) => {
                self.load_failed(wanted, error);
                Ok(())
            }
            (LoadRequest::Unload(asker), Answer::Unloaded(Ok(models))) => {
                self.forget_models(&models);
                self.answer_asker(&asker, &ServerMessage::UnloadOk);
                Ok(())
            }
            (LoadRequest::Unload(asker), Answer::Unloaded(Err(error))) => {
                self.refuse_asker(&asker, error);
                Ok(())
            }
            (_, _) => Err(Error::internal("the loader answered what it was not asked")),
        }
    }

    /// The loader has described a model, or says why it cannot: those who waited go on.
    fn settle(
        &mut self,
        client: &ReplyTo,
        lookup: Arc<Lookup>,
        result: Result<Arc<Description>>,
    ) -> Result<()> {
        let Some(result) = self.take_up(client, &lookup, result) else {
            if self.intake.is_waited_for(&lookup) {
                self.describe(client, &lookup);
            }
            return Ok(());
        };
        let (serials, tickets) = self.intake.take_waiting(&lookup);
        for (client, ticket) in tickets {
            if self.loader.withdraw(&client, ticket) {
                self.loads.finish(ticket);
            }
        }
        for serial in serials {
            if let Some(parked) = self.intake.unpark(serial) {
                let Arrival { reply, request, .. } = parked.arrival;
                let entered = match &result {
                    Ok(description) => self.enqueue(parked, description.clone()),
                    Err(error) => Err(error.clone()),
                };
                if let Err(error) = entered {
                    self.refuse(reply, request, &error)?;
                }
            } else if let Some(asker) = self.intake.take_question(serial) {
                match &result {
                    Ok(description) => self.answer_question(&asker, description),
                    Err(error) => self.refuse_asker(&asker, error.clone()),
                }
            }
        }
        Ok(())
    }

    /// The loader has described a model, and there is room for it or is made. `None`: it left between the loader's
    /// answer and now, so the loader is to be asked again.
    fn take_up(
        &mut self,
        client: &ReplyTo,
        lookup: &Arc<Lookup>,
        result: Result<Arc<Description>>,
    ) -> Option<Result<Arc<Description>>> {
        let description = match result {
            Ok(description) => description,
            Err(error) => return Some(Err(error)),
        };
        if !self.registry.is_served(description.id) {
            return None;
        }
        match self.room_for(&description, &[]) {
            Ok(leaving) => self.make_room(&leaving),
            Err(error) => {
                self.make_room(&[description.id]);
                return Some(Err(error));
            }
        }
        self.in_use.touch(description.id);
        self.intake.learn(client, lookup, &description);
        Some(Ok(description))
    }

    /// A client is gone, and its requests are closed: what only it asked about is not looked up any more. What it
    /// wanted loaded or unloaded is done all the same.
    pub(super) fn forget_asker(&mut self, client: &ReplyTo) {
        self.intake.forget_questions(client);
        if self.loads.shares.of(client).count == 0 {
            return;
        }
        for ticket in self.loader.withdraw_lookups(client) {
            let asked = self.loads.finish(ticket);
            if let Some(LoadRequest::Describe(lookup)) = asked.map(|asked| asked.request) {
                self.intake.not_asked(client, ticket, &lookup);
            }
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
        self.requests.scheduler.forget(model);
        self.registry.let_go(model);
        let forget = inner::write_to_worker(&ToWorker::Forget(model));
        self.tell_workers(Lane::Bulk, &forget);
    }
}
