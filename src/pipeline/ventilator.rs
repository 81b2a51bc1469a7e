//! The ventilator: reads requests, checks and queues them, cuts chunks when workers are free, and owns deadlines,
//! cancels and the order of stopping. It never touches a file and never waits for anyone but in its poll.
//!
//! `clients.rs` knows sessions, `intake.rs` what may enter the queue, `errands.rs` what the loader is asked,
//! `openings.rs` which models are served and which leave, `in_use.rs` which are used, `life.rs` how it starts and stops,
//! `report.rs` what status says.

mod clients;
mod errands;
mod in_use;
mod intake;
mod life;
mod openings;
mod report;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use zmq::Socket;

use self::clients::Clients;
use self::errands::{Errand, Order};
use self::in_use::{InUse, Last};
use self::intake::Intake;
use self::life::{Phase, Starting};
use self::openings::Openings;
use self::report::Ledger;
use super::guard::Guard;
use super::{CancelBoard, Clock, tell};
use crate::error::{Error, ErrorCode, Result};
use crate::frames;
use crate::message::{Chunk, Credit, Handed, Member, ReplyTo, RequestId, Serial, WorkerId};
use crate::model::loader::Loader;
use crate::model::{BatchKind, Description, Lookup, Registry};
use crate::schedule::{Assignment, Lane, Limits, Scheduler};
use crate::socket::Waiter;
use crate::tensor::Batch;
use crate::wire::client::{self, ClientMessage, StopMode};
use crate::wire::inner::{self, Close, SinkReport, ToSink, ToVentilator, ToWorker};
use crate::wire::server::{self, ServerMessage, StopState, Welcome};

/// Messages taken from one socket before the chunks that they allow are given out.
const TURN: usize = 64;

/// Things that the loader was asked and has not answered. Each takes some bytes, and a client may ask for ever.
const MAX_ERRANDS: usize = 4096;
/// Clients that are told when the server has stopped.
const MAX_STOPPERS: usize = 1024;

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
    /// `port`, bound.
    pub router: Socket,
    /// Hears from inside, bound.
    pub inbox: Socket,
    pub lanes: Vec<Lanes>,
    pub sink: Socket,
    pub guard: Guard,
    pub loader: Loader,
    pub registry: Arc<Registry>,
    pub board: Arc<CancelBoard>,
    pub clock: Clock,
    pub waiter: Waiter,
    pub facts: Facts,
    /// Told once, when every worker is up and every preloaded model is open, or why that failed.
    pub ready: Sender<Result<()>>,
}

/// A request in the queue, with its rows: they are kept until its last chunk's credit is back.
struct Held {
    reply: ReplyTo,
    request: RequestId,
    inputs: Batch,
    /// As msgpack, part of the request's header.
    params: Bytes,
    rows: usize,
    stream: bool,
    arrived_us: u64,
    model: Arc<Description>,
}

/// What an earlier leg gave for a chunk's rows.
struct Carry {
    handed: Vec<Handed>,
    spent_us: u64,
}

/// Who asked for something that takes a while, and for which number the answer is.
type Asker = (Bytes, RequestId);

struct Ventilator {
    router: Socket,
    inbox: Socket,
    lanes: Vec<Lanes>,
    sink: Socket,
    guard: Guard,
    loader: Loader,
    registry: Arc<Registry>,
    board: Arc<CancelBoard>,
    clock: Clock,
    waiter: Waiter,
    facts: Facts,
    scheduler: Scheduler<Arc<Carry>>,
    held: HashMap<Serial, Held>,
    in_use: InUse,
    openings: Openings,
    clients: Clients,
    intake: Intake,
    ledger: Ledger,
    errands: HashMap<u64, Errand>,
    next_errand: u64,
    next_serial: u64,
    starting: Starting,
    phase: Phase,
    /// When a drain that waits only for runs that nobody wants ends without them.
    give_up_us: Option<u64>,
    stoppers: Vec<Asker>,
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
    let mut ventilator = Ventilator {
        scheduler: Scheduler::new(setup.facts.limits.clone()),
        ledger: Ledger::new(setup.lanes.len()),
        router: setup.router,
        inbox: setup.inbox,
        lanes: setup.lanes,
        sink: setup.sink,
        guard: setup.guard,
        loader: setup.loader,
        registry: setup.registry,
        board: setup.board,
        clock: setup.clock,
        waiter: setup.waiter,
        facts: setup.facts,
        held: HashMap::new(),
        in_use: InUse::default(),
        openings: Openings::default(),
        clients: Clients::default(),
        intake: Intake::default(),
        errands: HashMap::new(),
        next_errand: 0,
        next_serial: 0,
        starting,
        phase: Phase::Serving,
        give_up_us: None,
        stoppers: Vec::new(),
    };
    let ended = ventilator.serve();
    ventilator.guard.end(&ventilator.router);
    ended
}

impl Ventilator {
    fn serve(&mut self) -> Result<()> {
        while self.phase != Phase::Stopped {
            let mut drained = 0;
            for _ in 0..TURN {
                let Some(message) = frames::receive(&mut self.inbox, zmq::DONTWAIT)? else {
                    drained += 1;
                    break;
                };
                self.hear_inside(inner::read_to_ventilator(message)?)?;
            }
            for _ in 0..TURN {
                let Some(message) = frames::receive_with_source(&mut self.router, zmq::DONTWAIT)?
                else {
                    drained += 1;
                    break;
                };
                let (frames, source) = message;
                self.guard.saw(source);
                self.hear_client(frames)?;
            }
            let now_us = self.clock.now_us();
            self.expire(now_us)?;
            self.give_out(now_us)?;
            self.guard.look(now_us)?;
            self.advance_stop()?;
            if drained == 2 && self.phase != Phase::Stopped {
                let due = [Some(self.guard.due_us()), self.scheduler.due_us()]
                    .into_iter()
                    .chain([self.intake.due_us(), self.give_up_us])
                    .flatten()
                    .min();
                let pause = due.map(|at| Duration::from_micros(at.saturating_sub(now_us)));
                let requests = self.scheduler.waiting().requests;
                self.waiter
                    .in_hand(requests.max(self.scheduler.chunks_out()));
                self.waiter.wait(&[&self.inbox, &self.router], pause)?;
            }
        }
        self.answer_stoppers();
        Ok(())
    }

    // ---- what clients say ----------------------------------------------------------------------------------------

    fn hear_client(&mut self, message: Vec<Bytes>) -> Result<()> {
        let mut frames = message.into_iter();
        let Some(identity) = frames.next() else {
            return Ok(());
        };
        let reply = reply_to(&identity);
        let header_bytes = frames.as_slice().first().map_or(0, Bytes::len);
        match client::read_unchecked(frames.collect()) {
            Ok(ClientMessage::Infer(id, request)) => {
                let Some(reply) = reply else {
                    let error = Error::invalid(
                        "the session has no routing id of 16 bytes whose first is not 0, so no result could reach it",
                    );
                    self.refuse_on_port(&identity, id, error);
                    return Ok(());
                };
                if let Err(error) = self.clients.begin(reply, id) {
                    self.refuse_on_port(&identity, id, error);
                    return Ok(());
                }
                self.take_infer(reply, id, *request, header_bytes)
            }
            Ok(ClientMessage::Cancel(id)) => {
                let serial = reply.and_then(|reply| self.clients.serial(reply, id));
                match serial {
                    Some(serial) => {
                        let error = Error::new(ErrorCode::Cancelled, "the client cancelled it");
                        self.close(serial, &error)
                    }
                    None => Ok(()), // it has ended, or never was
                }
            }
            Ok(ClientMessage::Hello(id)) => {
                let welcome = ServerMessage::HelloOk(self.facts.welcome.clone());
                self.answer(&identity, id, &welcome);
                Ok(())
            }
            Ok(ClientMessage::Status(id)) => {
                let token = self.ledger.ask((identity, id));
                tell(&mut self.sink, inner::write_to_sink(&ToSink::Report(token)))
            }
            Ok(ClientMessage::Models(id)) => {
                let models = ServerMessage::ModelsOk(self.registry.models());
                self.answer(&identity, id, &models);
                Ok(())
            }
            Ok(ClientMessage::Describe(id, model, params)) => {
                self.take_question((identity, id), Lookup::of(model.as_deref(), params.paths()));
                Ok(())
            }
            Ok(ClientMessage::Terminate(id, mode)) => {
                let pending = self.pending();
                let draining = ServerMessage::TerminateOk(StopState::Draining(pending));
                self.answer(&identity, id, &draining);
                if self.stoppers.len() < MAX_STOPPERS {
                    self.stoppers.push((identity, id));
                }
                self.stop(mode)
            }
            Ok(ClientMessage::Load(id, name)) => {
                self.take_order((identity, id), Order::Load, &name);
                Ok(())
            }
            Ok(ClientMessage::Unload(id, name)) => {
                self.take_order((identity, id), Order::Unload, &name);
                Ok(())
            }
            Err(malformed) => {
                match (malformed.id, reply) {
                    (Some(id), Some(reply)) if malformed.infer => {
                        // Its number is used up as well: an open request must not be mistaken for it.
                        if let Err(error) = self.clients.begin(reply, id) {
                            self.refuse_on_port(&identity, id, error);
                            return Ok(());
                        }
                        // Answered where its result would have come.
                        let serial = self.new_serial();
                        self.refuse(serial, reply, id, &malformed.error)?;
                    }
                    (Some(id), _) => self.refuse_on_port(&identity, id, malformed.error),
                    (None, _) => {
                        tracing::debug!(error = %malformed.error, "dropped a message that has no readable id");
                        self.ledger.dropped += 1;
                    }
                }
                Ok(())
            }
        }
    }

    fn answer(&mut self, identity: &Bytes, id: RequestId, message: &ServerMessage) {
        let frames = std::iter::once(identity.clone()).chain(server::write_message(id, message));
        if let Err(e) = frames::send(&mut self.router, frames, zmq::DONTWAIT) {
            tracing::debug!(%e, "an answer on port could not be sent");
            self.ledger.dropped += 1;
        }
    }

    fn refuse_on_port(&mut self, identity: &Bytes, id: RequestId, error: Error) {
        self.ledger.count_error(&error);
        self.answer(identity, id, &ServerMessage::Error(error));
    }

    /// Has the sink answer a request that never entered the queue.
    fn refuse(
        &mut self,
        serial: Serial,
        reply: ReplyTo,
        request: RequestId,
        error: &Error,
    ) -> Result<()> {
        tracing::debug!(serial = serial.0, request_id = request.0, %error, "refused");
        let now_us = self.clock.now_us();
        self.clients.end(reply, request);
        let close = Close::new(serial, reply, request, now_us, error);
        tell(&mut self.sink, inner::write_to_sink(&ToSink::Close(close)))
    }

    fn new_serial(&mut self) -> Serial {
        self.next_serial += 1;
        Serial(self.next_serial)
    }

    // ---- what comes from inside ----------------------------------------------------------------------------------

    fn hear_inside(&mut self, message: ToVentilator) -> Result<()> {
        match message {
            ToVentilator::Up(worker) => {
                self.ledger.worker_up(worker);
                self.scheduler.worker_up(worker, self.clock.now_us());
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
            ToVentilator::Gone(reply) => {
                let error = Error::new(ErrorCode::Cancelled, "its client is gone");
                for serial in self.clients.forget(reply) {
                    self.close(serial, &error)?;
                }
                Ok(())
            }
            ToVentilator::Abort(serial) => {
                let error = Error::internal("answered by the sink");
                self.close_as(serial, &error, true)
            }
            ToVentilator::Report(token, report) => {
                self.send_status(token, &report);
                Ok(())
            }
            ToVentilator::SinkStopped => {
                self.phase = Phase::Stopped;
                Ok(())
            }
            ToVentilator::Stop(now) => self.stop(if now { StopMode::Now } else { StopMode::Drain }),
        }
    }

    fn take_credit(&mut self, credit: Credit) -> Result<()> {
        if !self.scheduler.is_out(credit.chunk) {
            return Ok(()); // of a worker that was counted as lost
        }
        for (serial, error) in &credit.failed {
            tracing::debug!(serial = serial.0, %error, "a chunk failed");
        }
        self.ledger.credit(&credit);
        let ran = (credit.rows > 0).then_some((credit.rows as usize, credit.compute_us));
        // Closed before the credit is booked: a request whose last chunk failed is not finished but failed.
        for (serial, error) in &credit.failed {
            self.close(*serial, error)?;
        }
        let now_us = self.clock.now_us();
        if !credit.handed.is_empty() {
            let carry = Arc::new(Carry {
                handed: credit.handed,
                spent_us: credit.spent_us + credit.compute_us,
            });
            let closed = self.scheduler.hand_back(credit.chunk, ran, carry, now_us);
            for serial in closed {
                // What failed was sent to the sink as a part; of the others nothing will come.
                if !credit.failed.iter().any(|(failed, _)| *failed == serial) {
                    self.lost_part(serial, 1)?;
                }
            }
            return Ok(());
        }
        for serial in self.scheduler.credit(credit.chunk, ran, now_us) {
            if let Some(held) = self.held.remove(&serial) {
                self.release(&held);
            }
        }
        Ok(())
    }

    /// Forgets a request that has ended.
    fn release(&mut self, held: &Held) {
        self.clients.end(held.reply, held.request);
        if let Last::OfLeaving = self.in_use.release(held.model.id) {
            self.forget_now(held.model.id);
        }
    }

    fn lost_part(&mut self, serial: Serial, parts: u64) -> Result<()> {
        let lost = inner::write_to_sink(&ToSink::Lost(serial, parts));
        tell(&mut self.sink, lost)
    }

    fn lose_worker(&mut self, worker: WorkerId) -> Result<()> {
        self.open_without(worker);
        self.ledger.worker_lost(worker);
        let losses = self.scheduler.worker_down(worker);
        for (serial, parts) in losses.lost {
            self.lost_part(serial, parts)?;
        }
        for serial in losses.abandoned {
            let error = Error::unavailable("each worker that ran it was lost");
            self.close(serial, &error)?;
        }
        Ok(())
    }

    // ---- ends before their time ----------------------------------------------------------------------------------

    /// Ends a request with an error, wherever it is.
    fn close(&mut self, serial: Serial, error: &Error) -> Result<()> {
        self.close_as(serial, error, false)
    }

    fn close_as(&mut self, serial: Serial, error: &Error, answered: bool) -> Result<()> {
        if let Some(parked) = self.intake.give_up(serial) {
            return self.refuse(serial, parked.reply, parked.request, error);
        }
        let Some(chunks) = self.scheduler.close(serial) else {
            return Ok(()); // it has ended: its answer is on its way
        };
        let Some(held) = self.held.remove(&serial) else {
            return Ok(());
        };
        if chunks > 0 {
            self.board.cancel(serial);
        }
        self.release(&held);
        let mut close = Close::new(serial, held.reply, held.request, held.arrived_us, error);
        close.chunks = chunks;
        close.answered = answered;
        tell(&mut self.sink, inner::write_to_sink(&ToSink::Close(close)))
    }

    fn expire(&mut self, now_us: u64) -> Result<()> {
        let expired = self.scheduler.expired(now_us);
        for serial in expired.into_iter().chain(self.intake.expired(now_us)) {
            let error = Error::new(
                ErrorCode::DeadlineExceeded,
                "the deadline passed before the result was complete",
            );
            self.close(serial, &error)?;
        }
        Ok(())
    }

    // ---- chunks --------------------------------------------------------------------------------------------------

    fn give_out(&mut self, now_us: u64) -> Result<()> {
        while let Some(assignment) = self.scheduler.next(now_us) {
            let (worker, lane) = (assignment.worker, assignment.lane);
            let chunk = self.chunk(assignment, now_us);
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

    /// A chunk with the rows of an assignment, shared and not copied.
    fn chunk(&self, assignment: Assignment<Arc<Carry>>, now_us: u64) -> Chunk<Bytes> {
        let carry = assignment.carry.as_deref();
        // In the order of the pieces, of which some may have been closed since.
        let mut handed = carry.map_or(&[][..], |carry| &carry.handed).iter();
        let mut chunk = Chunk {
            id: assignment.chunk,
            leg: assignment.legs.start,
            until: assignment.legs.end,
            goes_on: false,
            spent_us: carry.map_or(0, |carry| carry.spent_us),
            attempt: assignment.attempt,
            model: assignment.model,
            run: assignment.run as u64,
            params: Bytes::new(),
            members: Vec::with_capacity(assignment.pieces.len()),
            inputs: Vec::with_capacity(assignment.pieces.len()),
        };
        for piece in &assignment.pieces {
            let Some(held) = self.held.get(&piece.serial) else {
                continue; // closed requests are not given out: every piece is held
            };
            let whole = held.model.kind == BatchKind::Whole;
            chunk.goes_on = (chunk.until as usize) < held.model.legs.len();
            chunk.members.push(Member {
                serial: piece.serial,
                reply: held.reply,
                request: held.request,
                offset: piece.offset as u64,
                rows: piece.rows as u64,
                total: held.rows as u64,
                stream: held.stream,
                whole,
                arrived_us: held.arrived_us,
                queue_us: now_us.saturating_sub(held.arrived_us),
            });
            let slice = |t: &crate::Tensor| t.slice_rows(piece.offset, piece.rows);
            let earlier = handed.find(|handed| handed.serial == piece.serial);
            chunk.inputs.push(if let Some(earlier) = earlier {
                earlier.batch.clone()
            } else if whole || piece.rows == held.rows {
                held.inputs.clone()
            } else {
                Batch {
                    tensors: held.inputs.tensors.iter().map(slice).collect(),
                }
            });
            if chunk.params.is_empty() && !held.params.is_empty() {
                chunk.params = held.params.clone(); // alike in all members of a group
            }
        }
        chunk
    }
}

fn loader_is_busy() -> Error {
    Error::exhausted(format!(
        "{MAX_ERRANDS} models are waiting to be loaded or unloaded; try later"
    ))
}

fn reply_to(identity: &Bytes) -> Option<ReplyTo> {
    let id: [u8; 16] = identity.as_ref().try_into().ok()?;
    (id[0] != 0).then_some(ReplyTo(id))
}
