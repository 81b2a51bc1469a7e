//! A worker: takes chunks from its two lanes, runs them, sends the parts to the sink and a credit to the ventilator.

mod bad_row_search;
pub(super) mod blank;
mod faults;
pub(super) mod run;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Sender;
use foldhash::HashMap;
use zmq::{Context, Socket};

use self::run::{Computed, Done};
use super::beside_bulk::{BesideBulk, Left};
use super::{CancelBoard, Clock, TO_SINK, TO_VENTILATOR, lane_endpoint, report_opened, tell};
use crate::error::{Error, Result, panic_message};
use crate::message::{
    Chunk, Credit, Handed, Member, ModelId, Outcome, Part, Ran, Role, Serial, WorkerId,
};
use crate::model::{Model, ModelSource};
use crate::schedule::Lane;
use crate::schedule::lane::LaneChoice;
use crate::socket::{self, BusyPoll, Waiter};
use crate::thread_priority::Slice;
use crate::wire::chunk::UncheckedChunk;
use crate::wire::inner::{self, ToSink, ToVentilator, ToWorker};
use crate::{frames, heap};

/// What a worker is given: endpoints and a source of models, no reference into the server.
#[derive(Clone)]
pub(crate) struct Setup {
    pub id: WorkerId,
    pub role: Role,
    pub source: Arc<dyn ModelSource>,
    pub board: Arc<CancelBoard>,
    pub beside_bulk: Arc<BesideBulk>,
    pub clock: Clock,
    pub busy_poll: BusyPoll,
}

/// What a chunk's credit says of its runs.
#[derive(Clone, Copy, Default)]
struct RowsRan {
    rows: u64,
    runs: u64,
    compute_us: u64,
}

struct Worker {
    setup: Setup,
    small: Socket,
    bulk: Socket,
    sink: Socket,
    ventilator: Socket,
    /// By model and leg.
    models: HashMap<(ModelId, u32), Box<dyn Model>>,
    choice: LaneChoice,
    /// A bulk chunk has stepped aside for small ones.
    in_bulk: bool,
    /// How long bulk chunks have, in all.
    aside_us: u64,
    /// When the run of a bulk chunk began, and how long the one before it took.
    run_started_us: u64,
    run_us: u64,
    /// Since when no small chunk may pass here.
    none_passed_since_us: Option<u64>,
    /// What came to the small lane meanwhile and is no chunk.
    later: Option<ToWorker>,
    waiter: Waiter,
}

/// Runs until the ventilator says stop. A panic outside the model costs the chunks that were here: the ventilator is
/// told, gives them to others, and this worker starts afresh. `opened` is told first whether its sockets could be opened.
///
/// # Errors
/// No socket is left, or the other loops are gone.
pub(crate) fn run(context: &Context, setup: Setup, opened: Sender<Result<()>>) -> Result<()> {
    faults::begin(setup.id, setup.source.clone());
    let mut worker = report_opened(opened, Worker::connect(context, setup))?;
    loop {
        match catch_unwind(AssertUnwindSafe(|| worker.serve())) {
            Ok(result) => {
                crate::faults::flush(crate::faults::Flush::Everything);
                return result;
            }
            Err(panic) => {
                let why = panic_message(&*panic).to_owned();
                tracing::error!(
                    worker_id = worker.setup.id.0,
                    why,
                    place = crate::faults::take_place(),
                    "worker lost, starting it again"
                );
                if worker.recover(why)? == Recovery::Stopped {
                    return Ok(());
                }
            }
        }
    }
}

/// What came of starting afresh.
#[derive(PartialEq, Eq)]
enum Recovery {
    Resumed,
    Stopped,
}

impl Worker {
    fn connect(context: &Context, setup: Setup) -> Result<Worker> {
        let pull =
            |lane| socket::inner_connected(context, zmq::PULL, &lane_endpoint(setup.id, lane));
        Ok(Worker {
            small: pull(Lane::Small)?,
            bulk: pull(Lane::Bulk)?,
            sink: socket::inner_connected(context, zmq::PUSH, TO_SINK)?,
            ventilator: socket::inner_connected(context, zmq::PUSH, TO_VENTILATOR)?,
            models: HashMap::default(),
            choice: LaneChoice::default(),
            in_bulk: false,
            aside_us: 0,
            run_started_us: 0,
            run_us: 0,
            none_passed_since_us: None,
            later: None,
            waiter: setup.busy_poll.worker_waiter(match setup.role {
                Role::Main | Role::Extra => Slice::Usual,
                Role::Express => Slice::Short,
            }),
            setup,
        })
    }

    /// After a panic: the ventilator gives what was here to others, and what had come to the lanes until it did so is
    /// dropped. The sockets stay: a chunk that was pushed to a closing one would be lost.
    fn recover(&mut self, why: String) -> Result<Recovery> {
        self.models.clear();
        self.choice = LaneChoice::default();
        self.in_bulk = false;
        self.later = None;
        self.tell_ventilator(ToVentilator::Down(self.setup.id, why))?;
        for lane in [Lane::Small, Lane::Bulk] {
            loop {
                let socket = match lane {
                    Lane::Small => &mut self.small,
                    Lane::Bulk => &mut self.bulk,
                };
                match frames::receive(socket, 0)?.map(inner::read_to_worker) {
                    Some(Ok(ToWorker::Resume)) => break,
                    Some(Ok(ToWorker::Stop)) => {
                        self.tell_sink(&ToSink::Stopped(self.setup.id))?;
                        return Ok(Recovery::Stopped);
                    }
                    _ => {} // given to others
                }
            }
        }
        Ok(Recovery::Resumed)
    }

    fn tell_ventilator(&mut self, message: ToVentilator) -> Result<()> {
        tell(&mut self.ventilator, inner::write_to_ventilator(&message))
    }

    fn tell_sink(&mut self, message: &ToSink) -> Result<()> {
        tell(&mut self.sink, inner::write_to_sink(message))
    }

    fn serve(&mut self) -> Result<()> {
        self.tell_ventilator(ToVentilator::Up(self.setup.id))?;
        loop {
            let (lane, message) = self.receive()?;
            match message {
                ToWorker::Chunk(chunk) => self.run_chunk(lane, *chunk)?,
                ToWorker::Open(model) => {
                    let error = self.open_all(model).err();
                    self.tell_ventilator(ToVentilator::Opened(self.setup.id, model, error))?;
                }
                ToWorker::Resume => {} // only a worker that is down waits for it
                ToWorker::Forget(model) => {
                    let before = self.models.len();
                    self.models.retain(|(of, _), _| *of != model);
                    if self.models.len() < before {
                        // malloc keeps what a session had.
                        heap::trim();
                    }
                }
                ToWorker::Stop => {
                    let stopped = ToSink::Stopped(self.setup.id);
                    return self.tell_sink(&stopped);
                }
            }
        }
    }

    /// The next message: from the small lane first, unless bulk has waited long enough.
    fn receive(&mut self) -> Result<(Lane, ToWorker)> {
        if self.is_express() {
            return self.receive_beside_bulk();
        }
        if let Some(message) = self.later.take() {
            return Ok((Lane::Small, message));
        }
        loop {
            let bulk_first = self.choice.first() == Lane::Bulk || !self.small_may_pass();
            let mut lanes = [(Lane::Small, &mut self.small), (Lane::Bulk, &mut self.bulk)];
            if bulk_first {
                lanes.reverse();
            }
            for (lane, socket) in lanes {
                if let Some(message) = frames::receive(socket, zmq::DONTWAIT)? {
                    return Ok((lane, inner::read_to_worker(message)?));
                }
            }
            crate::faults::flush(crate::faults::Flush::Due);
            let due = crate::faults::due();
            self.waiter.wait([&self.small, &self.bulk], due)?;
        }
    }

    /// The next message of an express worker. Where every core is inside a model, bulk has them for a while after what ran last,
    /// and what comes meanwhile runs together.
    fn receive_beside_bulk(&mut self) -> Result<(Lane, ToWorker)> {
        loop {
            for (lane, socket) in [(Lane::Small, &mut self.small), (Lane::Bulk, &mut self.bulk)] {
                if let Some(message) = frames::receive(socket, zmq::DONTWAIT)? {
                    return Ok((lane, inner::read_to_worker(message)?));
                }
            }
            let left = match self.setup.busy_poll.has_a_core() {
                true => None,
                false => self
                    .setup
                    .beside_bulk
                    .left_to_bulk(self.setup.clock.now_us()),
            };
            if let Some(left) = left {
                std::thread::sleep(left);
                continue;
            }
            crate::faults::flush(crate::faults::Flush::Due);
            let due = crate::faults::due();
            self.waiter.wait([&self.small, &self.bulk], due)?;
        }
    }

    fn is_express(&self) -> bool {
        self.setup.role == Role::Express
    }

    /// Whether the chunk that runs is small and a bulk chunk runs meanwhile, here or in every other worker.
    fn is_beside_bulk(&self) -> bool {
        self.in_bulk || self.is_express()
    }

    fn run_chunk(&mut self, lane: Lane, chunk: UncheckedChunk) -> Result<()> {
        if self.is_cancelled(chunk.members()) {
            return self.skip(&chunk.discard(), Vec::new());
        }
        // Checked before the clock runs, as the model is opened: neither is the model's speed.
        let (chunk, refused) = chunk.check();
        faults::running(chunk.model, chunk.leg, &chunk.members);
        // Opened before the clock runs: how fast the model is must not count it.
        let opened =
            (chunk.leg..chunk.until).try_for_each(|leg| self.open(chunk.model, leg).map(drop));
        let (started_us, aside_us) = (self.setup.clock.now_us(), self.aside_us);
        if lane == Lane::Bulk {
            self.run_started_us = started_us;
        }
        let computed = match opened {
            _ if chunk.members.is_empty() => Some(Computed::default()),
            Ok(()) => self.compute(lane, &chunk)?,
            Err(error) => Some(Computed::failed(&chunk.members, &error)),
        };
        // Small chunks that it stepped aside for had their own.
        let aside_us = self.aside_us - aside_us;
        let compute_us = (self.setup.clock.now_us() - started_us).saturating_sub(aside_us);
        let bulk_waits = matches!(lane, Lane::Small)
            && (self.is_beside_bulk() || self.bulk.get_events()?.contains(zmq::POLLIN));
        match bulk_waits {
            true => {
                self.choice.overtook_bulk(compute_us);
                self.setup.beside_bulk.passed(self.setup.clock.now_us());
            }
            false => self.choice.bulk_had_its_turn(),
        }
        let Some(mut computed) = computed else {
            return self.skip(&chunk, refused);
        };
        let (rows, runs) = (
            computed.sent + rows_with_result(&computed.done),
            computed.runs,
        );
        let ran = RowsRan {
            rows,
            runs,
            compute_us,
        };
        let handed = match chunk.goes_on {
            true => computed.hand_on(),
            false => Vec::new(),
        };
        let Computed {
            mut done,
            mut failed,
            skipped,
            ..
        } = computed;
        failed.extend(refused);
        // The parts go out before the credit: whoever sees the credit may forget the rows.
        if handed.is_empty() {
            self.send_done(&chunk, &mut done, compute_us)?;
            // Where others go on to the next leg, the ventilator tells the sink that nothing comes of these.
            if !skipped.is_empty() {
                self.send_part(&chunk, skipped, 0, Outcome::Skipped)?;
            }
        }
        let errors = self.send_failed(&chunk, failed, compute_us)?;
        self.send_credit(&chunk, ran, errors, handed)
    }

    fn is_cancelled(&self, members: &[Member]) -> bool {
        let board = &self.setup.board;
        members.iter().all(|m| board.is_cancelled(m.serial))
    }

    /// Nobody wants it any more. Members that were refused are not among the chunk's.
    fn skip(&mut self, chunk: &Chunk, refused: Vec<(Member, Error)>) -> Result<()> {
        self.send_part(chunk, chunk.members.clone(), 0, Outcome::Skipped)?;
        let errors = self.send_failed(chunk, refused, 0)?;
        self.send_credit(chunk, RowsRan::default(), errors, Vec::new())
    }

    /// Whether small chunks may go before bulk now.
    fn small_may_pass(&mut self) -> bool {
        if self.setup.busy_poll.has_a_core() {
            return true;
        }
        let now_us = self.setup.clock.now_us();
        let since_us = now_us - *self.none_passed_since_us.get_or_insert(now_us);
        let beside = &self.setup.beside_bulk;
        let may = beside.may_pass(now_us, self.run_us, since_us);
        if may {
            self.none_passed_since_us = None;
        }
        may
    }

    /// Between two runs of a bulk chunk: small chunks that have come do not wait for the rest of it.
    fn step_aside(&mut self) -> Result<()> {
        let started_us = self.setup.clock.now_us();
        self.run_us = started_us.saturating_sub(self.run_started_us);
        let result = self.let_small_pass(started_us);
        self.run_started_us = self.setup.clock.now_us();
        self.aside_us += self.run_started_us - started_us;
        result
    }

    fn let_small_pass(&mut self, now_us: u64) -> Result<()> {
        let small_come = self.setup.beside_bulk.small_chunks_come(now_us);
        if small_come && !self.setup.busy_poll.has_a_core() {
            // The ventilator, the sink or a client may be ready to run on this core and have had more than their part of it
            // when it was given to this thread. The system would look at that again at its next tick, in up to 4 ms.
            std::thread::yield_now();
            if !self.small_may_pass() {
                return Ok(());
            }
        }
        self.in_bulk = true;
        while self.later.is_none() && self.choice.first() == Lane::Small {
            let Some(message) = frames::receive(&mut self.small, zmq::DONTWAIT)? else {
                break;
            };
            match inner::read_to_worker(message)? {
                ToWorker::Chunk(chunk) => self.run_chunk(Lane::Small, *chunk)?,
                other => self.later = Some(other),
            }
        }
        self.in_bulk = false;
        Ok(())
    }

    /// Sends what members have got, and gives the number of their rows.
    fn send_done(&mut self, chunk: &Chunk, done: &mut Vec<Done>, compute_us: u64) -> Result<u64> {
        let rows = rows_with_result(done);
        if !done.is_empty() {
            let mut members = Vec::with_capacity(chunk.members.len());
            let mut all = Vec::with_capacity(done.len());
            for done in done.drain(..) {
                let Done {
                    members: of,
                    runs,
                    failed,
                } = done;
                all.push(Ran {
                    members: of.len(),
                    runs,
                    failed,
                });
                members.extend(of);
            }
            self.send_part(chunk, members, compute_us, Outcome::Done(all))?;
        }
        Ok(rows)
    }

    /// Sends that members have failed, and gives what the credit says of them.
    fn send_failed(
        &mut self,
        chunk: &Chunk,
        failed: Vec<(Member, Error)>,
        compute_us: u64,
    ) -> Result<Vec<(Serial, Error)>> {
        if failed.is_empty() {
            return Ok(Vec::new());
        }
        let mut errors = Vec::with_capacity(failed.len());
        let mut members = Vec::with_capacity(failed.len());
        for (member, error) in failed {
            errors.push((member.serial, error));
            members.push(member);
        }
        self.send_part(chunk, members, compute_us, Outcome::Failed)?;
        Ok(errors)
    }

    fn send_part(
        &mut self,
        chunk: &Chunk,
        members: Vec<Member>,
        compute_us: u64,
        outcome: Outcome,
    ) -> Result<()> {
        let part = Part {
            chunk: chunk.id,
            worker: self.setup.id,
            label: chunk.label,
            compute_us: chunk.spent_us + compute_us,
            members,
            outcome,
        };
        self.tell_sink(&ToSink::Part(Box::new(part)))
    }

    fn send_credit(
        &mut self,
        chunk: &Chunk,
        ran: RowsRan,
        failed: Vec<(Serial, Error)>,
        handed: Vec<Handed>,
    ) -> Result<()> {
        let credit = Credit {
            worker: self.setup.id,
            chunk: chunk.id,
            model: chunk.model,
            label: chunk.label,
            rows: ran.rows,
            runs: ran.runs,
            compute_us: ran.compute_us,
            spent_us: chunk.spent_us,
            failed,
            handed,
        };
        // What is to run again or to go on is waited for, as is the end of what runs by itself.
        if !self.is_beside_bulk() || !credit.failed.is_empty() || !credit.handed.is_empty() {
            return self.tell_ventilator(ToVentilator::Credit(credit));
        }
        match self.setup.beside_bulk.leave(credit) {
            Left::Quietly => Ok(()),
            Left::Awaited => self.tell_ventilator(ToVentilator::CreditsLeft),
            Left::Not(credit) => self.tell_ventilator(ToVentilator::Credit(*credit)),
        }
    }

    /// Opens every leg of a model that may come here.
    fn open_all(&mut self, model: ModelId) -> Result<()> {
        let legs = self.setup.source.legs(model)?;
        for (leg, role) in legs.iter().enumerate() {
            let runs_here = match self.setup.role {
                Role::Main => true,
                Role::Extra => *role == Role::Extra,
                Role::Express => self.setup.source.is_express(model),
            };
            if runs_here {
                faults::running(model, leg as u32, &[]);
                self.open(model, leg as u32)?;
            }
        }
        Ok(())
    }
}

/// The rows that have a result.
fn rows_with_result(done: &[Done]) -> u64 {
    let members = done.iter().flat_map(|done| &done.members);
    let failed = done.iter().flat_map(|done| &done.failed);
    let failed: u64 = failed.map(|failed| failed.count).sum();
    members.map(|member| member.rows).sum::<u64>() - failed
}
