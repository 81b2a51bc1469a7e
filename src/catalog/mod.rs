//! The life of a model as a pure state machine: which models are served, coming and leaving, what names lead to them, who
//! waits for one, and which leave when there is no room. Events go in, [`Action`]s come out.
//!
//! It does no input or output and reads no clock, so that it can be simulated (`simulation.rs`).
//!
//! ```text
//! park, ask  ─▶ a request or a question waits: the loader is to check, or to find where its lookup leads ─▶ AskLoader
//! load, unload ─▶ an operator's order: the same                                                         ─▶ AskLoader
//! answered   ─▶ found: known by another name, or to be read                                             ─▶ GoOn
//!            ─▶ read for those who wait: served, if there is room ─▶ Admit, Refuse, Answer
//!            ─▶ read, and nobody waits any more: served, if no other has to leave for it
//!            ─▶ read for an order: coming ─▶ Open: every worker opens it ─ told, opened, worker_lost ─▶ served ─▶ Answer
//! release    ─▶ the last request of a model that is leaving has ended ─▶ Forget
//! ```
//! A model that is served in place of another, that is unloaded, or that makes room for another is *leaving*: no request
//! finds it any more, those that had found it end with it, and then it is forgotten.
//! What is absent: files, sockets, rows, the time. Deadlines are numbers that whoever has the clock compares.

mod action;
mod failures;
mod known;
mod loads;
mod lookup_cache;
mod models;
mod openings;
mod report;
mod room;
#[cfg(test)]
mod simulation;
mod waiting;

use std::sync::Arc;

pub(crate) use self::action::{Action, Answer};
use self::failures::{AskedFor, Failures};
use self::known::Standing;
use self::loads::{LoadRequest, Loads, Wanted};
pub(crate) use self::loads::{Named, load_bytes};
pub(crate) use self::models::Change;
use self::models::Models;
use self::openings::{Opening, Openings};
pub(crate) use self::room::MostModels;
use self::waiting::Waiting;
pub(crate) use self::waiting::{Arrival, Asker, Parked, QUESTION_BYTES};
use crate::error::{Error, Result};
use crate::message::{ModelId, ReplyTo, Serial, WorkerId};
use crate::model::loader::{self, Job, Reading};
use crate::model::{Description, FoundModel, Lookup, Read};
use crate::shares::{Amount, Shares};

/// What becomes of a lookup that the loader has looked at.
enum Next {
    /// The model is served: its other paths are to be checked.
    Check,
    /// It is to be read, unless it is as one of these was.
    Read(Arc<FoundModel>, Vec<ModelId>),
    Settled(Result<Arc<Description>>),
}

/// The models, and who waits for one. `P` is what is kept of a request that waits.
pub(crate) struct Catalog<P> {
    models: Models,
    openings: Openings,
    waiting: Waiting<P>,
    loads: Loads,
    failures: Failures,
    actions: Vec<Action<P>>,
}

impl<P> Catalog<P> {
    pub(crate) fn new(most: MostModels) -> Catalog<P> {
        Catalog {
            models: Models::new(most),
            openings: Openings::default(),
            waiting: Waiting::default(),
            loads: Loads::default(),
            failures: Failures::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done now, in this order, before anything else is told to the catalog.
    pub(crate) fn take_actions(&mut self) -> Vec<Action<P>> {
        let mut actions = std::mem::take(&mut self.actions);
        if !self.models.changes.is_empty() {
            // Whom it concerns is to know before a request goes on.
            let changes = self.models.changes.drain(..).map(Action::Changed);
            actions.splice(0..0, changes);
        }
        actions
    }

    // ---- requests whose model is known ---------------------------------------------------------------------------

    /// What a lookup leads to, if that is known.
    pub(crate) fn known(&mut self, lookup: &Lookup) -> Option<&Arc<Description>> {
        self.models.get(lookup)
    }

    /// A request needs a model that is served.
    pub(crate) fn hold(&mut self, model: ModelId) {
        self.models.room.hold(model);
    }

    /// A request that held a model has ended.
    pub(crate) fn release(&mut self, model: ModelId) {
        self.models.release(model);
    }

    /// Whether something goes on once a request has ended.
    pub(crate) fn waits_for_requests(&self) -> bool {
        self.models.room.has_leaving() || self.parked_count() > 0
    }

    // ---- those who wait ------------------------------------------------------------------------------------------

    /// A request names a model that is not known: it waits.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if its client, or all together, have asked for as much as they may.
    pub(crate) fn park(&mut self, named: Named, parked: Parked<P>) -> Result<()> {
        let Arrival { reply, serial, .. } = parked.arrival;
        self.wait(&reply, serial, named)?;
        self.waiting.park(parked);
        Ok(())
    }

    /// Somebody asks what a request would get, and that is not known: the question waits as a request does.
    ///
    /// # Errors
    /// As [`Catalog::park`], in bounds of its own.
    pub(crate) fn ask(&mut self, asker: Asker, serial: Serial, named: Named) -> Result<()> {
        self.waiting.check_question(&asker.client)?;
        self.wait(&asker.client, serial, named)?;
        self.waiting.park_question(serial, asker);
        Ok(())
    }

    /// Has the loader look at what somebody names in the turn of that client, if it was not asked to yet. Whoever else
    /// waits for the same goes on with the first answer.
    fn wait(&mut self, client: &ReplyTo, serial: Serial, mut named: Named) -> Result<()> {
        let (lookup, asked) = self.waiting.waited_for(client, named.lookup);
        named.lookup = lookup.clone();
        if !asked {
            self.loads.check(client, &lookup)?;
            self.look_up(client, named);
        }
        self.waiting.wait(lookup, serial);
        Ok(())
    }

    fn look_up(&mut self, client: &ReplyTo, named: Named) {
        let lookup = named.lookup.clone();
        // What is served stays as it was loaded: its files are not looked at.
        let job = match self.models.known.by_name(named.name.as_ref()) {
            Some(_) => Job::Check(lookup.clone()),
            None => Job::Find(lookup.clone()),
        };
        let ticket = self.ask_loader(client, LoadRequest::Describe(named), job);
        self.waiting.asked(client, &lookup, ticket);
    }

    fn ask_loader(&mut self, client: &ReplyTo, request: LoadRequest, job: Job) -> u64 {
        let ticket = self.loads.add(client, request);
        let client = *client;
        self.actions.push(Action::AskLoader {
            client,
            ticket,
            job,
        });
        ticket
    }

    /// A request ends before its model is described, if it is one that waits.
    pub(crate) fn give_up(&mut self, serial: Serial) -> Option<Parked<P>> {
        self.waiting.give_up(serial)
    }

    /// When the next deadline of those who wait is.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.waiting.due_us()
    }

    /// Requests that wait and whose deadline has passed: they are to be given up.
    pub(crate) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        self.waiting.expired(now_us)
    }

    /// A client is gone, and its requests were given up: what only it asked about is not looked up any more. What it
    /// wanted loaded or unloaded is done all the same.
    pub(crate) fn client_gone(&mut self, client: &ReplyTo) {
        self.waiting.forget_questions(client);
        let tickets = self.loads.lookups_of(client);
        if !tickets.is_empty() {
            let client = *client;
            self.actions.push(Action::Withdraw { client, tickets });
        }
    }

    /// The loader had not begun with that, and never will.
    pub(crate) fn withdrawn(&mut self, ticket: u64) {
        let Some(asked) = self.loads.finish(ticket) else {
            return;
        };
        if let LoadRequest::Describe(named) = asked.request {
            self.waiting.not_asked(&asked.client, ticket, &named.lookup);
        }
    }

    /// The requests that wait.
    pub(crate) fn parked(&self) -> Vec<Serial> {
        self.waiting.serials()
    }

    /// How many requests wait.
    pub(crate) fn parked_count(&self) -> usize {
        self.waiting.parked()
    }

    /// What is held of requests that wait, by client.
    pub(crate) fn parked_shares(&self) -> &Shares {
        self.waiting.parked_shares()
    }

    /// What counts in the bounds of the queue besides requests: questions whose models are to be read, and what is named
    /// to the loader.
    pub(crate) fn beside(&self) -> Amount {
        let questions = self.waiting.questions_held();
        Amount {
            count: questions.count,
            bytes: questions.bytes + self.loads.all().bytes,
        }
    }

    // ---- orders --------------------------------------------------------------------------------------------------

    /// An operator wants a model loaded.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many wait for that.
    pub(crate) fn load(&mut self, asker: Asker, named: Named) -> Result<()> {
        self.check_order(&asker.client, &named.lookup)?;
        self.start_load(Wanted::Operator(asker, named));
        Ok(())
    }

    /// A model is to be there when the server is ready.
    pub(crate) fn preload(&mut self, named: Named) {
        self.start_load(Wanted::Start(named));
    }

    fn start_load(&mut self, wanted: Wanted) {
        let job = Job::Find(wanted.named().lookup.clone());
        self.ask_loader(&wanted.client(), LoadRequest::Load(wanted), job);
    }

    /// An operator wants a model unloaded.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub(crate) fn unload(&mut self, asker: Asker, named: Named) -> Result<()> {
        self.check_order(&asker.client, &named.lookup)?;
        let job = Job::Find(named.lookup.clone());
        self.ask_loader(&asker.client, LoadRequest::Unload(asker, named), job);
        Ok(())
    }

    fn check_order(&self, client: &ReplyTo, lookup: &Lookup) -> Result<()> {
        let opening = self.openings.orders(client);
        self.loads.check_order(client, lookup, opening)
    }

    // ---- what the loader answers ---------------------------------------------------------------------------------

    /// The bytes of the files of all models that are held. It counts when there has to be room for another.
    pub(crate) fn sized(&mut self, sizes: Vec<(ModelId, u64)>) {
        self.models.room.sized(sizes);
    }

    /// The loader has done what it was asked.
    ///
    /// # Errors
    /// It was not asked that.
    pub(crate) fn answered(&mut self, ticket: u64, answer: loader::Answer) -> Result<()> {
        match answer {
            loader::Answer::Found(found) => {
                let job = self.take_found(ticket, found);
                self.actions.push(Action::GoOn { ticket, job });
                Ok(())
            }
            loader::Answer::Checked(checked) => self.take_checked(ticket, checked),
            loader::Answer::Read(read) => self.take_read(ticket, read),
        }
    }

    /// What the loader does next in that turn.
    fn take_found(&mut self, ticket: u64, found: Result<Arc<FoundModel>>) -> Option<Job> {
        let request = self.loads.get_mut(ticket)?.request.clone();
        if let LoadRequest::Describe(named) = &request
            && !self.waiting.is_waited_for(&named.lookup)
        {
            // Another's turn has settled it, or who waited is gone: nothing is read for nobody.
            self.loads.finish(ticket);
            self.stop_waiting(&named.lookup);
            return None;
        }
        match &found {
            Ok(found) => self.failures.found(request.named(), found.key()),
            Err(error) => self.failures.not_found(request.named(), error),
        }
        let next = match (&request, found) {
            (LoadRequest::Describe(named), found) => self.next_of_lookup(named, found),
            (LoadRequest::Load(_), Ok(found)) => {
                let same = self.models.known.of_state(found.key());
                Next::Read(found, same)
            }
            (LoadRequest::Load(_), Err(error)) => Next::Settled(Err(error)),
            (LoadRequest::Unload(asker, named), found) => {
                self.loads.finish(ticket);
                let answer = self.take_unload(named, found);
                self.actions.push(Action::Answer(*asker, answer));
                return None;
            }
        };
        let result = match next {
            Next::Check => return Some(Job::Check(request.named().lookup.clone())),
            Next::Read(found, unless) => {
                let id = self.models.known.next_id();
                self.loads.get_mut(ticket)?.reading = Some(found.clone());
                return Some(Job::Read(Reading { id, found, unless }));
            }
            Next::Settled(result) => result,
        };
        let client = self.loads.finish(ticket)?.client;
        match (request, result) {
            (LoadRequest::Load(wanted), Err(error)) => self.load_failed(&wanted, error),
            (request, result) => self.settle(&client, request.named(), result),
        }
        None
    }

    fn next_of_lookup(&mut self, named: &Named, found: Result<Arc<FoundModel>>) -> Next {
        let name = named.name.as_ref();
        match (self.models.known.by_name(name), found) {
            (Some(description), Ok(_)) => Next::Settled(Ok(description)),
            // It was served since, and its files are gone or another's: what matters is the rest of the lookup.
            (Some(_), Err(_)) => Next::Check,
            (None, Ok(found)) => match self.models.known.adopt(found.key(), name) {
                Some(description) => Next::Settled(Ok(description)),
                None => Next::Read(found, Vec::new()),
            },
            (None, Err(error)) => Next::Settled(Err(error)),
        }
    }

    /// From now on no request finds what is named.
    fn take_unload(&mut self, named: &Named, found: Result<Arc<FoundModel>>) -> Answer {
        self.failures.forget(named);
        // The file may be gone, or another version be the highest; the name is still known.
        let origin = found.as_ref().ok().map(|found| found.key().origin());
        let models = self.models.known.named(named.name.as_ref(), origin);
        match (models.is_empty(), found) {
            (true, Err(error)) => Answer::Refused(error),
            (true, Ok(found)) => Answer::Refused(Error::not_found(format!(
                "model {} is not loaded",
                found.shown()
            ))),
            (false, _) => {
                for key in models.iter().filter_map(|id| self.models.known.key(*id)) {
                    self.failures.forget_model(key);
                }
                let known = |id: &ModelId| self.models.known.get(*id).cloned();
                let unloaded = models.iter().filter_map(known).collect();
                self.models.leave_all(&models);
                Answer::Unloaded(unloaded)
            }
        }
    }

    fn take_checked(&mut self, ticket: u64, checked: Result<()>) -> Result<()> {
        let Some(asked) = self.loads.finish(ticket) else {
            return Ok(());
        };
        let LoadRequest::Describe(named) = asked.request else {
            return Err(not_asked());
        };
        match (checked, self.models.known.by_name(named.name.as_ref())) {
            (Err(error), _) => self.settle(&asked.client, &named, Err(error)),
            (Ok(()), Some(model)) => self.settle(&asked.client, &named, Ok(model)),
            // It has left meanwhile.
            (Ok(()), None) if self.waiting.is_waited_for(&named.lookup) => {
                self.look_up(&asked.client, named);
            }
            (Ok(()), None) => {
                self.stop_waiting(&named.lookup);
            }
        }
        Ok(())
    }

    fn take_read(&mut self, ticket: u64, read: Result<Read>) -> Result<()> {
        let Some(asked) = self.loads.finish(ticket) else {
            return Ok(());
        };
        let Some(found) = asked.reading else {
            return Err(not_asked());
        };
        let named = asked.request.named();
        match &read {
            Err(error) => self.failures.unreadable(named, &found, error),
            Ok(Read::New(_)) if matches!(asked.request, LoadRequest::Describe(_)) => {
                self.failures.opens(named, found.key());
            }
            // Not before the workers have opened it.
            Ok(_) => {}
        }
        match (asked.request, read) {
            (LoadRequest::Describe(named), Ok(Read::New(description))) => {
                let is_waited_for = self.waiting.is_waited_for(&named.lookup);
                if !is_waited_for && !self.models.has_room(&description, &self.openings) {
                    // Who waited is gone: no model that others use leaves for it.
                    self.models.turn_away(&description);
                    self.stop_waiting(&named.lookup);
                    return Ok(());
                }
                let name = named.name.as_ref();
                let model = self.models.take_in(found.key(), description, name);
                self.settle(&asked.client, &named, Ok(model));
            }
            (LoadRequest::Describe(named), Err(error)) => {
                self.settle(&asked.client, &named, Err(error));
            }
            (LoadRequest::Load(wanted), Ok(Read::New(description))) => {
                let key = found.key().clone();
                self.models
                    .known
                    .insert(key, description.clone(), Standing::Coming, None);
                self.open(description, wanted);
            }
            (LoadRequest::Load(wanted), Ok(Read::Unchanged(model))) => {
                let standing = self.models.known.standing(model);
                match self.models.known.get(model).cloned() {
                    Some(known) if standing != Some(Standing::Leaving) => self.open(known, wanted),
                    // It has left while it was looked at.
                    _ => self.start_load(wanted),
                }
            }
            (LoadRequest::Load(wanted), Err(error)) => self.load_failed(&wanted, error),
            (LoadRequest::Describe(_), Ok(Read::Unchanged(_))) | (LoadRequest::Unload(..), _) => {
                return Err(not_asked());
            }
        }
        Ok(())
    }

    /// It is known what a lookup leads to, or why to nothing: those who waited for it go on.
    fn settle(&mut self, client: &ReplyTo, named: &Named, result: Result<Arc<Description>>) {
        let result = result.and_then(|model| {
            let openings = &self.openings;
            self.models.use_for(client, named, &model, openings)?;
            Ok(model)
        });
        for serial in self.stop_waiting(&named.lookup) {
            if let Some(parked) = self.waiting.unpark(serial) {
                self.actions.push(match &result {
                    Ok(description) => Action::Admit(parked, description.clone()),
                    Err(error) => Action::Refuse(parked.arrival, error.clone()),
                });
            } else if let Some(asker) = self.waiting.take_question(serial) {
                let answer = match &result {
                    Ok(description) => Answer::Described(description.clone()),
                    Err(error) => Answer::Refused(error.clone()),
                };
                self.actions.push(Action::Answer(asker, answer));
            }
        }
    }

    /// Nothing more is looked up for those who wait for a lookup; who they are.
    fn stop_waiting(&mut self, lookup: &Lookup) -> Vec<Serial> {
        let (serials, tickets) = self.waiting.take_waiting(lookup);
        for (client, ticket) in tickets {
            let tickets = vec![ticket];
            self.actions.push(Action::Withdraw { client, tickets });
        }
        serials
    }

    // ---- opening ahead -------------------------------------------------------------------------------------------

    /// Every worker opens a model; it is served once they have.
    fn open(&mut self, description: Arc<Description>, wanted: Wanted) {
        let model = description.id;
        self.openings.add(description, wanted);
        self.actions.push(Action::Open(model));
    }

    /// These workers were told to open a model. One that was lost and is coming up again opens what its chunks need.
    pub(crate) fn told(&mut self, model: ModelId, workers: Vec<WorkerId>) {
        if let Some(opening) = self.openings.told(model, workers) {
            self.finish_opening(opening);
        }
    }

    /// A worker has opened a model, or could not.
    pub(crate) fn opened(&mut self, worker: WorkerId, model: ModelId, error: Option<Error>) {
        if let Some(opening) = self.openings.opened(worker, model, error) {
            self.finish_opening(opening);
        }
    }

    /// A worker that was lost has no sessions, and opens those that its chunks need.
    pub(crate) fn worker_lost(&mut self, worker: WorkerId) {
        for model in self.openings.models() {
            self.opened(worker, model, None);
        }
    }

    fn finish_opening(&mut self, opening: Opening) {
        let model = opening.description.id;
        let key = self.models.known.key(model).cloned();
        for wanted in opening.wanted {
            match (&opening.error, &key) {
                (Some(error), Some(key)) => {
                    let (asked, of) = (AskedFor::of(wanted.named()), &opening.description);
                    self.failures.unopened(asked, of, key, error);
                }
                (None, Some(key)) => self.failures.opens(wanted.named(), key),
                (_, None) => {} // it was unloaded meanwhile
            }
            let served = match &opening.error {
                Some(error) => Err(error.clone()),
                None => {
                    let (client, named) = (wanted.client(), wanted.named());
                    let openings = &self.openings;
                    self.models
                        .take_over(&client, named, &opening.description, openings)
                }
            };
            match (served, wanted) {
                (Err(error), wanted) => self.load_failed(&wanted, error),
                (Ok(outcome), Wanted::Operator(asker, _)) => {
                    let loaded = Answer::Loaded(opening.description.clone(), outcome);
                    self.actions.push(Action::Answer(asker, loaded));
                }
                (Ok(_), Wanted::Start(_)) => {
                    self.models.room.stay(model);
                    self.actions.push(Action::Started(Ok(())));
                }
            }
        }
        // What was served before goes on being served.
        if self.models.known.standing(model) == Some(Standing::Coming) {
            self.models.leave(model);
        }
    }

    fn load_failed(&mut self, wanted: &Wanted, error: Error) {
        self.actions.push(match wanted {
            Wanted::Operator(asker, _) => Action::Answer(*asker, Answer::Refused(error)),
            Wanted::Start(named) => {
                let name = named.lookup.name();
                Action::Started(Err(error.context(format_args!("--preload {name}"))))
            }
        });
    }
}

fn not_asked() -> Error {
    Error::internal("the loader answered what it was not asked")
}
