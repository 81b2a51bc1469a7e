//! The ventilator: reads requests, checks and queues them, cuts chunks when workers are free, and owns deadlines,
//! cancels and the order of stopping. It never touches a file and never waits for anyone but in its poll.
//!
//! What it decides of models is in `catalog/`, and of requests in `requests.rs` and `schedule/`: pure state machines, whose
//! actions are done here. `clients.rs` knows sessions, `admission.rs` what may enter the queue, `known_headers.rs` what need
//! not be read again, `groups.rs` what may run together, `links.rs` whom it is connected to, `life.rs` how it starts and
//! stops, `says.rs` what clients say and are told, `report.rs` what status says.

mod admission;
mod clients;
mod groups;
pub(super) mod known_headers;
mod life;
mod links;
mod report;
pub(super) mod requests;
mod says;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use self::admission::Learnt;
use self::clients::Clients;
use self::life::{Life, Patience, Phase};
pub(crate) use self::links::{Lanes, Links};
use self::report::{Ledger, RanChunk};
use self::requests::{Action, Given, Requests, deadline_passed};
use super::{LAST_PATIENCE, tell};
use crate::catalog::{self, Catalog, Change, MostModels};
use crate::error::{Error, ErrorCode, Result};
use crate::frames;
use crate::message::{Credit, ModelId, Params, Request, Serial, WorkerId};
use crate::model::Lookup;
use crate::schedule::{Lane, Limits};
use crate::socket::wait_for;
use crate::wire::client::StopMode;
use crate::wire::inner::{self, ToSink, ToVentilator, ToWorker};
use crate::wire::params::RawParams;
use crate::wire::server::{ServerMessage, StopState, Welcome};

/// Messages taken from inside before clients get their turn.
const MESSAGES_PER_TURN: usize = 64;
/// How long clients' sockets may be left unread while no small request could be given out.
const LEAVE_UNREAD: Duration = Duration::from_micros(100);

/// What does not change while the server runs.
pub(crate) struct ServerInfo {
    pub welcome: Welcome,
    pub settings: std::collections::BTreeMap<String, String>,
    /// Each worker's device.
    pub devices: Vec<String>,
    pub default_timeout: Option<Duration>,
    pub limits: Limits,
    pub preload: Vec<String>,
    pub most_models: MostModels,
}

/// What the ventilator is set up with.
pub(crate) struct Setup {
    pub links: Links,
    pub info: ServerInfo,
    /// Told once, when every worker is up and every preloaded model is open, or why that failed.
    pub ready: Sender<Result<()>>,
}

/// What is known of models, and the requests that wait for one.
type Models = Catalog<Request<RawParams>>;

struct Ventilator {
    links: Links,
    info: ServerInfo,
    life: Life,
    clients: Clients,
    learnt: Learnt,
    catalog: Models,
    requests: Requests,
    ledger: Ledger,
    last_serial: u64,
}

/// Runs until the server has stopped.
///
/// # Errors
/// If an inner connection is gone.
pub(crate) fn run(setup: Setup) -> Result<()> {
    let Setup {
        mut links,
        info,
        ready,
    } = setup;
    links.router.watch(frames::descriptor(&links.inbox)?)?;
    links.router.watch(links.stop.waker())?;
    links.router.watch(links.doors.waker())?;
    let workers = links.lanes.len();
    let mut ventilator = Ventilator {
        life: Life::new(ready, workers, info.preload.clone()),
        clients: Clients::default(),
        learnt: Learnt::default(),
        catalog: Catalog::new(info.most_models),
        requests: Requests::new(info.limits.clone()),
        ledger: Ledger::new(workers),
        last_serial: 0,
        links,
        info,
    };
    ventilator.serve()
}

impl Ventilator {
    fn serve(&mut self) -> Result<()> {
        while self.life.phase != Phase::Stopped {
            self.hear_inside()?;
            let now = Instant::now();
            self.hear_clients(now)?;
            if let Some(mode) = self.links.stop.take() {
                self.stop(mode)?;
            }
            let now_us = self.links.clock.now_us();
            self.expire(now_us)?;
            self.give_out(now_us)?;
            self.links.router.tick(now);
            self.links.router.flush(now);
            self.advance_stop()?;
            if self.life.phase != Phase::Stopped {
                self.wait(now, now_us)?;
            }
        }
        let stopped = ServerMessage::TerminateOk(StopState::Stopped);
        for asker in self.life.take_stoppers() {
            self.answer_asker(&asker, &stopped);
        }
        self.links.doors.end(self.life.at_once);
        let lost = self
            .links
            .router
            .finish(self.life.at_once.then_some(LAST_PATIENCE))?;
        if lost > 0 {
            tracing::warn!(
                bytes = lost,
                "answers were left that their clients did not read"
            );
        }
        Ok(())
    }

    /// Looks for news, asleep until there is something to do.
    fn wait(&mut self, now: Instant, now_us: u64) -> Result<()> {
        self.links.doors.wake_told();
        self.ledger.note(now_us, &self.requests);
        let busy = self.requests.busy_workers();
        self.links.waiter.busy(busy);
        let awaits_credit = self.requests.small_ones_wait()
            || self.requests.only_express_are_busy()
            || self.catalog.waits_for_requests()
            || self.life.phase != Phase::Serving;
        let may_sleep = self.links.beside_bulk.may_sleep(awaits_credit);
        if !may_sleep || self.links.router.has_work() || self.links.doors.has_said() {
            self.links.router.wait(Some(Duration::ZERO))?;
            return Ok(());
        }
        let due_us = [
            self.requests.due_us(),
            self.catalog.due_us(),
            self.life.due_us(),
            self.ledger.note_due_us(),
        ];
        let due_us = due_us.into_iter().flatten().min();
        let due = due_us.map(|at| Duration::from_micros(at.saturating_sub(now_us)));
        let tick = self.links.router.due();
        let tick = tick.map(|at| at.saturating_duration_since(now));
        let pause = due.into_iter().chain(tick).min();
        if self.requests.is_full_of_small(now_us) {
            // Nothing small that is read now could run before a chunk ends, and then it is read with what else has
            // come: in fewer turns, each of which costs a wake-up.
            let fds = [
                frames::descriptor(&self.links.inbox)?,
                self.links.stop.waker().as_fd(),
            ];
            if wait_for(
                fds,
                Some(pause.map_or(LEAVE_UNREAD, |pause| pause.min(LEAVE_UNREAD))),
            )? {
                self.links.router.wait(Some(Duration::ZERO))?;
                return Ok(());
            }
        }
        let router = &mut self.links.router;
        self.links.waiter.wait_with(pause, |left| router.wait(left))
    }

    /// Takes what came from inside, until nothing is left, which the inbox's descriptor needs to tell of what comes next.
    fn hear_inside(&mut self) -> Result<()> {
        self.take_credits_left()?;
        if !self.links.router.take_inner_readable() {
            return Ok(());
        }
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = frames::receive(&mut self.links.inbox, zmq::DONTWAIT)? else {
                return Ok(());
            };
            // A worker left them before it sent what comes now.
            self.take_credits_left()?;
            self.take(inner::read_to_ventilator(message)?)?;
        }
        self.links.router.keep_inner_readable();
        Ok(())
    }

    fn new_serial(&mut self) -> Serial {
        self.last_serial += 1;
        Serial(self.last_serial)
    }

    // ---- what comes from inside ----------------------------------------------------------------------------------

    fn take(&mut self, message: ToVentilator) -> Result<()> {
        match message {
            ToVentilator::Up(worker) => {
                self.ledger.worker_up(worker);
                self.requests.worker_up(worker, self.links.clock.now_us());
                for name in self.life.worker_up(worker) {
                    let named = self.named(Lookup::of(Some(&name), &Params::new()));
                    self.catalog.preload(named);
                }
                self.act_for_catalog()
            }
            ToVentilator::Credit(credit) => self.take_credit(credit),
            ToVentilator::CreditsLeft => Ok(()), // they were taken before
            ToVentilator::Down(worker, why) => {
                tracing::warn!(
                    worker_id = worker.0,
                    why,
                    "a worker was lost; its chunks run again"
                );
                self.lose_worker(worker)?;
                // It drops what had come to its lanes before this: that is given to others now.
                let resume = inner::write_to_worker(&ToWorker::Resume);
                if let Some(lanes) = self.links.lanes.get_mut(worker.0 as usize) {
                    tell(&mut lanes.small, resume.clone())?;
                    tell(&mut lanes.bulk, resume)?;
                }
                Ok(())
            }
            ToVentilator::Opened(worker, model, error) => {
                if let Some(error) = &error {
                    tracing::warn!(worker_id = worker.0, %error, "a model could not be opened ahead");
                }
                self.catalog.sized(self.links.store.sizes());
                self.catalog.opened(worker, model, error);
                self.act_for_catalog()
            }
            ToVentilator::Loaded(ticket) => {
                let Some(answer) = self.links.loader.take(ticket) else {
                    return Ok(());
                };
                self.catalog.sized(self.links.store.sizes());
                self.catalog.answered(ticket, answer)?;
                self.act_for_catalog()
            }
            ToVentilator::Gone(reply) => self.end_session(reply),
            ToVentilator::Silent(reply) => {
                if self.links.router.is_alive(reply, Instant::now()) {
                    return Ok(()); // it may have a full queue of answers there
                }
                self.end_session(reply)
            }
            ToVentilator::Abort(serial) => {
                self.requests.answered_by_sink(serial);
                self.act()
            }
            ToVentilator::Arrived(arrived) => {
                self.requests.arrived(arrived, self.links.clock.now_us());
                self.act()
            }
            ToVentilator::WhatIsOut => {
                self.requests.tell_what_is_out();
                self.act()
            }
            ToVentilator::Report(token, report) => self.answer_questions(token, &report),
            ToVentilator::SinkStopped => {
                self.life.phase = Phase::Stopped;
                Ok(())
            }
        }
    }

    fn take_credits_left(&mut self) -> Result<()> {
        while let Some(credit) = self.links.beside_bulk.take() {
            self.take_credit(credit)?;
        }
        Ok(())
    }

    fn take_credit(&mut self, credit: Credit) -> Result<()> {
        let ran = RanChunk::of(&credit);
        self.note_broken(&credit);
        if self.requests.credit(credit, self.links.clock.now_us()) {
            self.ledger.ran(&ran);
        }
        self.act()
    }

    /// A model that a worker opens with its first chunk may turn out not to open then.
    fn note_broken(&mut self, credit: &Credit) {
        let why = credit.failed.first().map(|(_, error)| error);
        let why = why.filter(|error| error.code() == ErrorCode::FailedPrecondition);
        if why.is_some() || credit.rows > 0 {
            self.catalog.ran(credit.model, why);
        }
    }

    fn lose_worker(&mut self, worker: WorkerId) -> Result<()> {
        self.catalog.sized(self.links.store.sizes());
        self.catalog.worker_lost(worker);
        self.act_for_catalog()?;
        self.ledger.worker_lost(worker);
        self.requests.worker_down(worker);
        self.act()
    }

    /// Does what came of a change of the requests.
    fn act(&mut self) -> Result<()> {
        for action in self.requests.take_actions() {
            match action {
                Action::TellSink(message) => {
                    self.tell_sink(&message)?;
                }
                Action::Cancel(serial) => self.links.board.cancel(serial),
                Action::Ended {
                    reply,
                    request,
                    model,
                } => {
                    self.clients.end(reply, request);
                    self.catalog.release(model);
                }
            }
        }
        self.act_for_catalog()
    }

    /// Does what came of a change of the models.
    fn act_for_catalog(&mut self) -> Result<()> {
        loop {
            let actions = self.catalog.take_actions();
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                self.do_for_catalog(action)?;
            }
        }
    }

    fn do_for_catalog(&mut self, action: catalog::Action<Request<RawParams>>) -> Result<()> {
        use catalog::Action;
        match action {
            Action::AskLoader {
                client,
                ticket,
                job,
            } => self.links.loader.ask(client, ticket, job),
            Action::GoOn { ticket, job } => self.links.loader.go_on(ticket, job),
            Action::Withdraw { client, tickets } => {
                for ticket in self.links.loader.withdraw(&client, &tickets) {
                    self.catalog.withdrawn(ticket);
                }
            }
            Action::Open(model) => {
                let open = inner::write_to_worker(&ToWorker::Open(model));
                let told = self.links.tell_workers(Lane::Small, &open);
                self.catalog.told(model, told);
            }
            Action::Admit(parked, model) => return self.take_parked(parked, model),
            Action::Refuse(arrival, error) => return self.refuse_parked(&arrival, &error),
            Action::Answer(asker, answer) => self.tell_asker(&asker, answer),
            Action::Started(result) => self.life.preloaded(result),
            Action::Changed(Change::LeadsTo(lookup, model)) => {
                self.learnt.headers.forget_others(&lookup, model);
            }
            Action::Changed(Change::NotFoundAnyMore(model)) => self.learnt.headers.forget(model),
            Action::Changed(Change::Dropped(model)) => self.forget_model(model),
        }
        Ok(())
    }

    /// No request needs the model any more: the workers drop their sessions.
    fn forget_model(&mut self, model: ModelId) {
        self.requests.forget_model(model);
        self.ledger.forget_model(model);
        self.links.store.let_go(model);
        let forget = inner::write_to_worker(&ToWorker::Forget(model));
        self.links.tell_workers(Lane::Bulk, &forget);
    }

    // ---- ends before their time ----------------------------------------------------------------------------------

    /// Ends a request with an error, wherever it is.
    fn close(&mut self, serial: Serial, error: &Error) -> Result<()> {
        if let Some(parked) = self.catalog.give_up(serial) {
            return self.refuse_parked(&parked.arrival, error);
        }
        self.requests.close(serial, error);
        self.act()
    }

    fn expire(&mut self, now_us: u64) -> Result<()> {
        self.requests.expire(now_us);
        self.act()?;
        for serial in self.catalog.expired(now_us) {
            self.close(serial, &deadline_passed())?;
        }
        Ok(())
    }

    // ---- chunks --------------------------------------------------------------------------------------------------

    fn give_out(&mut self, now_us: u64) -> Result<()> {
        while let Some(given) = self.requests.next(now_us) {
            let Given {
                worker,
                lane,
                chunk,
            } = given;
            if lane == Lane::Small {
                self.links.beside_bulk.small_chunk_given(now_us);
            }
            let socket = self.links.lanes[worker.0 as usize].of(lane);
            if let Err(error) = tell(socket, inner::write_chunk(&chunk)) {
                tracing::warn!(worker_id = worker.0, %error, "a worker does not take its chunk");
                self.lose_worker(worker)?;
            }
        }
        Ok(())
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    fn pending(&self) -> u64 {
        (self.requests.waiting().requests + self.catalog.parked_count()) as u64
    }

    fn stop(&mut self, mode: StopMode) -> Result<()> {
        self.life.drain(self.pending());
        if mode == StopMode::Now {
            self.life.at_once = true;
            let error = Error::unavailable("the server was told to stop at once");
            let mut open = self.requests.open();
            open.extend(self.catalog.parked());
            for serial in open {
                self.close(serial, &error)?;
            }
            if self.life.phase == Phase::Draining {
                self.stop_workers();
            }
            if self.life.phase == Phase::Stopping {
                // A model may run for minutes, or take as long to open: nobody waits for that.
                self.tell_sink(&ToSink::Finish)?;
            }
        }
        Ok(())
    }

    fn advance_stop(&mut self) -> Result<()> {
        if self.life.phase != Phase::Draining || self.pending() > 0 {
            return Ok(());
        }
        if self.requests.is_idle() {
            self.stop_workers();
        } else if self.life.wait_for_runs(self.links.clock.now_us()) == Patience::IsOver {
            tracing::warn!("a model still runs for requests that have ended: it is not waited for");
            return self.stop(StopMode::Now);
        }
        Ok(())
    }

    /// The marker that travels behind the data: each worker passes it on to the sink.
    fn stop_workers(&mut self) {
        self.life.phase = Phase::Stopping;
        let stop = inner::write_to_worker(&ToWorker::Stop);
        for (index, lanes) in self.links.lanes.iter_mut().enumerate() {
            if let Err(error) = tell(&mut lanes.bulk, stop.clone()) {
                // It has not come up yet, or was lost, which was said.
                tracing::debug!(worker_id = index, %error, "a worker is not there to be stopped");
                let stopped = ToSink::Stopped(WorkerId(index as u32));
                if tell(&mut self.links.sink, inner::write_to_sink(&stopped)).is_err() {
                    self.life.phase = Phase::Stopped; // the sink has ended as well
                }
            }
        }
    }

    /// Tells the sink something.
    ///
    /// # Errors
    /// It is gone, although it was not told to stop.
    fn tell_sink(&mut self, message: &ToSink) -> Result<()> {
        match tell(&mut self.links.sink, inner::write_to_sink(message)) {
            // Clients come, ask and go until the very end, and it may have ended already.
            Err(error) if matches!(self.life.phase, Phase::Stopping | Phase::Stopped) => {
                tracing::debug!(%error, "the sink has ended");
                Ok(())
            }
            told => told,
        }
    }
}
