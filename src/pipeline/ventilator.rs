//! The ventilator: reads requests, checks and queues them, cuts chunks when workers are free, and owns deadlines,
//! cancels and the order of stopping. It never touches a file and never waits for anyone but in its poll.
//!
//! `clients.rs` knows sessions, `admission.rs` what may enter the queue, `known_headers.rs` what need not be read again,
//! `intake.rs` who waits for a model, `requests.rs` what becomes of what is queued, `loads.rs` what the loader is asked,
//! `lookup_cache.rs` what it need not be asked again, `shares.rs` how much of it each client may
//! have, `openings.rs` which models are served and which leave, `in_use.rs` which are used, `life.rs` how it starts and
//! stops, `says.rs` what clients say and are told, `report.rs` what status says.

mod admission;
#[cfg(test)]
mod allocations;
mod clients;
mod in_use;
mod intake;
mod known_headers;
mod life;
mod loads;
mod lookup_cache;
mod openings;
mod report;
pub(super) mod requests;
mod says;
mod shares;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use zmq::Socket;

use self::clients::Clients;
use self::in_use::{InUse, Last};
use self::intake::{Arrival, Intake};
use self::life::{Phase, Starting, Stoppers};
use self::loads::Loads;
use self::openings::Openings;
use self::report::Ledger;
use self::requests::{Action, Answered, Given, Requests, deadline_passed};
use super::control::StopOrder;
use super::doors::Doors;
use super::{CancelBoard, Clock, tell};
use crate::error::{Error, Result};
use crate::frames;
use crate::message::{Credit, Serial, WorkerId};
use crate::model::Registry;
use crate::model::loader::Loader;
use crate::schedule::{Lane, Limits};
use crate::socket::{Waiter, wait_for};
use crate::wire::inner::{self, SinkReport, ToVentilator, ToWorker};
use crate::wire::server::Welcome;
use crate::zmtp::router::Router;

/// Messages taken from inside before clients get their turn.
const TURN: usize = 64;
/// How long clients' sockets may be left unread while no small request could be given out.
const GATHER: Duration = Duration::from_micros(100);
/// How long an end at once waits for answers that are leaving.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A worker's two lanes.
pub(crate) struct Lanes {
    pub small: Socket,
    pub bulk: Socket,
}

/// What does not change while the server runs.
pub(crate) struct Facts {
    pub welcome: Welcome,
    pub settings: std::collections::BTreeMap<String, String>,
    /// Each worker's device.
    pub devices: Vec<String>,
    pub default_timeout: Option<Duration>,
    pub limits: Limits,
    pub preload: Vec<String>,
    pub max_models: usize,
    /// Of the files of all that are loaded.
    pub max_model_bytes: Option<u64>,
}

/// What the ventilator is set up with.
pub(crate) struct Setup {
    /// `port`, listening.
    pub router: Router,
    /// Hears from inside, bound.
    pub inbox: Socket,
    pub lanes: Vec<Lanes>,
    pub sink: Socket,
    pub doors: Arc<Doors>,
    pub stop: Arc<StopOrder>,
    pub loader: Loader,
    pub registry: Arc<Registry>,
    pub board: Arc<CancelBoard>,
    pub clock: Clock,
    pub waiter: Waiter,
    pub facts: Facts,
    /// Told once, when every worker is up and every preloaded model is open, or why that failed.
    pub ready: Sender<Result<()>>,
}

struct Ventilator {
    router: Router,
    inbox: Socket,
    lanes: Vec<Lanes>,
    sink: Socket,
    doors: Arc<Doors>,
    stop: Arc<StopOrder>,
    loader: Loader,
    registry: Arc<Registry>,
    board: Arc<CancelBoard>,
    clock: Clock,
    waiter: Waiter,
    facts: Facts,
    requests: Requests,
    in_use: InUse,
    openings: Openings,
    clients: Clients,
    intake: Intake,
    ledger: Ledger,
    loads: Loads,
    next_serial: u64,
    starting: Starting,
    phase: Phase,
    /// It stops at once: nobody is waited for.
    at_once: bool,
    /// When a drain that waits only for runs that nobody wants ends without them.
    give_up_us: Option<u64>,
    stoppers: Stoppers,
}

/// Runs until the server has stopped.
///
/// # Errors
/// If an inner connection is gone.
pub(crate) fn run(setup: Setup) -> Result<()> {
    let workers = (0..setup.lanes.len()).map(|i| WorkerId(i as u32));
    let starting = Starting {
        ready: Some(setup.ready),
        workers_missing: workers.collect(),
        models_missing: setup.facts.preload.len(),
        preload: setup.facts.preload.clone(),
    };
    let mut router = setup.router;
    router.watch(frames::descriptor(&setup.inbox)?)?;
    router.watch(setup.stop.waker())?;
    router.watch(setup.doors.waker())?;
    let mut ventilator = Ventilator {
        requests: Requests::new(setup.facts.limits.clone()),
        ledger: Ledger::new(setup.lanes.len()),
        router,
        inbox: setup.inbox,
        lanes: setup.lanes,
        sink: setup.sink,
        doors: setup.doors,
        stop: setup.stop,
        loader: setup.loader,
        registry: setup.registry,
        board: setup.board,
        clock: setup.clock,
        waiter: setup.waiter,
        facts: setup.facts,
        in_use: InUse::default(),
        openings: Openings::default(),
        clients: Clients::default(),
        intake: Intake::default(),
        loads: Loads::default(),
        next_serial: 0,
        starting,
        phase: Phase::Serving,
        at_once: false,
        give_up_us: None,
        stoppers: Stoppers::default(),
    };
    ventilator.serve()
}

impl Ventilator {
    fn serve(&mut self) -> Result<()> {
        while self.phase != Phase::Stopped {
            self.hear_inside()?;
            let now = Instant::now();
            self.hear_clients(now)?;
            if let Some(mode) = self.stop.take() {
                self.stop(mode)?;
            }
            let now_us = self.clock.now_us();
            self.expire(now_us)?;
            self.give_out(now_us)?;
            self.router.tick(now);
            self.router.flush(now);
            self.advance_stop()?;
            if self.phase != Phase::Stopped {
                self.wait(now, now_us)?;
            }
        }
        self.answer_stoppers();
        self.doors.end();
        let lost = self.router.finish(self.at_once.then_some(LAST_PATIENCE))?;
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
        let busy = self.requests.scheduler.busy_workers();
        self.waiter.busy(busy);
        if self.router.has_work() || self.doors.has_said() {
            self.router.wait(Some(Duration::ZERO))?;
            return Ok(());
        }
        let due_us = [
            self.requests.scheduler.due_us(),
            self.intake.due_us(),
            self.give_up_us,
        ];
        let due_us = due_us.into_iter().flatten().min();
        let due = due_us.map(|at| Duration::from_micros(at.saturating_sub(now_us)));
        let tick = self.router.due();
        let tick = tick.map(|at| at.saturating_duration_since(now));
        let pause = due.into_iter().chain(tick).min();
        if self.requests.scheduler.is_full_of_small() {
            // Nothing small that is read now could run before a chunk ends, and then it is read with what else has
            // come: in fewer turns, each of which costs a wake-up.
            let fds = [frames::descriptor(&self.inbox)?, self.stop.waker().as_fd()];
            if wait_for(fds, Some(pause.map_or(GATHER, |pause| pause.min(GATHER))))? {
                self.router.wait(Some(Duration::ZERO))?;
                return Ok(());
            }
        }
        let router = &mut self.router;
        self.waiter.wait_with(pause, |left| router.wait(left))
    }

    /// Takes what came from inside, until nothing is left, which the inbox's descriptor needs to tell of what comes next.
    fn hear_inside(&mut self) -> Result<()> {
        if !self.router.take_inner_readable() {
            return Ok(());
        }
        for _ in 0..TURN {
            let Some(message) = frames::receive(&mut self.inbox, zmq::DONTWAIT)? else {
                return Ok(());
            };
            self.take(inner::read_to_ventilator(message)?)?;
        }
        self.router.keep_inner_readable();
        Ok(())
    }

    fn new_serial(&mut self) -> Serial {
        self.next_serial += 1;
        Serial(self.next_serial)
    }

    // ---- what comes from inside ----------------------------------------------------------------------------------

    fn take(&mut self, message: ToVentilator) -> Result<()> {
        match message {
            ToVentilator::Up(worker) => {
                self.ledger.worker_up(worker);
                self.requests.worker_up(worker, self.clock.now_us());
                self.starting.workers_missing.remove(&worker);
                if self.starting.workers_missing.is_empty() {
                    self.preload();
                }
                self.check_ready();
                Ok(())
            }
            ToVentilator::Credit(credit) => self.take_credit(credit),
            ToVentilator::Down(worker, why) => {
                tracing::warn!(
                    worker_id = worker.0,
                    why,
                    "a worker was lost; its chunks run again"
                );
                self.lose_worker(worker)?;
                // It drops what had come to its lanes before this: that is given to others now.
                let resume = inner::write_to_worker(&ToWorker::Resume);
                if let Some(lanes) = self.lanes.get_mut(worker.0 as usize) {
                    tell(&mut lanes.small, resume.clone())?;
                    tell(&mut lanes.bulk, resume)?;
                }
                Ok(())
            }
            ToVentilator::Opened(worker, model, error) => {
                self.take_opened(worker, model, error);
                Ok(())
            }
            ToVentilator::Loaded(ticket) => self.take_loaded(ticket),
            ToVentilator::Gone(reply) => self.end_session(reply),
            ToVentilator::Silent(reply) => {
                if self.router.is_alive(reply, Instant::now()) {
                    return Ok(()); // it may have a full queue of answers there
                }
                self.end_session(reply)
            }
            ToVentilator::Abort(serial) => {
                let error = Error::internal("answered by the sink");
                self.requests.close(serial, &error, Answered::BySink);
                self.act()
            }
            ToVentilator::Arrived(arrived) => {
                self.requests.arrived(arrived, self.clock.now_us());
                self.act()
            }
            ToVentilator::WhatIsOut => {
                self.requests.tell_what_is_out();
                self.act()
            }
            ToVentilator::Report(token, report) => self.send_status(token, &report),
            ToVentilator::SinkStopped => {
                self.phase = Phase::Stopped;
                Ok(())
            }
        }
    }

    fn take_credit(&mut self, credit: Credit) -> Result<()> {
        let (worker, model) = (credit.worker, credit.model);
        let (rows, compute_us) = (credit.rows, credit.compute_us);
        if self.requests.credit(credit, self.clock.now_us()) {
            self.ledger.ran(worker, model, rows, compute_us);
        }
        self.act()
    }

    fn lose_worker(&mut self, worker: WorkerId) -> Result<()> {
        self.open_without(worker);
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
                Action::Cancel(serial) => self.board.cancel(serial),
                Action::Ended {
                    reply,
                    request,
                    model,
                } => {
                    self.clients.end(reply, request);
                    if let Last::OfLeaving = self.in_use.release(model) {
                        self.forget_now(model);
                    }
                }
            }
        }
        Ok(())
    }

    // ---- ends before their time ----------------------------------------------------------------------------------

    /// Ends a request with an error, wherever it is.
    fn close(&mut self, serial: Serial, error: &Error) -> Result<()> {
        if let Some(parked) = self.intake.give_up(serial) {
            let Arrival { reply, request, .. } = parked.arrival;
            return self.refuse(reply, request, error);
        }
        self.requests.close(serial, error, Answered::Not);
        self.act()
    }

    fn expire(&mut self, now_us: u64) -> Result<()> {
        self.requests.expire(now_us);
        self.act()?;
        for serial in self.intake.expired(now_us) {
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
            let lanes = &mut self.lanes[worker.0 as usize];
            let socket = match lane {
                Lane::Small => &mut lanes.small,
                Lane::Bulk => &mut lanes.bulk,
            };
            if let Err(error) = tell(socket, inner::write_chunk(&chunk)) {
                tracing::warn!(worker_id = worker.0, %error, "a worker does not take its chunk");
                self.lose_worker(worker)?;
            }
        }
        Ok(())
    }
}
