//! A worker: takes chunks from its two lanes, runs them, sends the parts to the sink and a credit to the ventilator.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use zmq::{Context, Socket};

use super::{CancelBoard, Clock, TO_SINK, TO_VENTILATOR, lane_endpoint, tell};
use crate::error::{Error, Result};
use crate::frames;
use crate::message::{
    Chunk, Credit, Handed, Member, ModelId, Outcome, Part, Role, Serial, WorkerId,
};
use crate::model::loader::panic_message;
use crate::model::{Model, ModelSource, Run};
use crate::schedule::Lane;
use crate::schedule::lane::LaneChoice;
use crate::socket::{self, Vigil, Waiter};
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::{self, ToSink, ToVentilator, ToWorker};

/// What a worker is given: endpoints and a source of models, no reference into the server.
#[derive(Clone)]
pub(crate) struct Seat {
    pub id: WorkerId,
    pub role: Role,
    pub source: Arc<dyn ModelSource>,
    pub board: Arc<CancelBoard>,
    pub clock: Clock,
    pub vigil: Vigil,
}

struct Worker {
    seat: Seat,
    small: Socket,
    bulk: Socket,
    sink: Socket,
    ventilator: Socket,
    /// By model and leg.
    models: HashMap<(ModelId, u32), Box<dyn Model>>,
    choice: LaneChoice,
    waiter: Waiter,
}

/// Runs until the ventilator says stop. A panic outside the model costs the chunks that were here: the ventilator is
/// told, gives them to others, and this worker starts afresh.
///
/// # Errors
/// If the other loops are gone.
pub(crate) fn run(context: &Context, seat: Seat) -> Result<()> {
    let mut worker = Worker::connect(context, seat)?;
    loop {
        match catch_unwind(AssertUnwindSafe(|| worker.serve())) {
            Ok(result) => return result,
            Err(panic) => {
                let why = panic_message(&*panic).to_owned();
                tracing::error!(
                    worker_id = worker.seat.id.0,
                    why,
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
    fn connect(context: &Context, seat: Seat) -> Result<Worker> {
        let pull =
            |lane| socket::inner_connected(context, zmq::PULL, &lane_endpoint(seat.id, lane));
        Ok(Worker {
            small: pull(Lane::Small)?,
            bulk: pull(Lane::Bulk)?,
            sink: socket::inner_connected(context, zmq::PUSH, TO_SINK)?,
            ventilator: socket::inner_connected(context, zmq::PUSH, TO_VENTILATOR)?,
            models: HashMap::new(),
            choice: LaneChoice::default(),
            waiter: Waiter::new(seat.vigil.clone()),
            seat,
        })
    }

    /// After a panic: the ventilator gives what was here to others, and what had come to the lanes until it did so is
    /// dropped. The sockets stay: a chunk that was pushed to a closing one would be lost.
    fn recover(&mut self, why: String) -> Result<Recovery> {
        self.models.clear();
        self.choice = LaneChoice::default();
        self.tell_ventilator(ToVentilator::Down(self.seat.id, why))?;
        for lane in [Lane::Small, Lane::Bulk] {
            loop {
                let socket = match lane {
                    Lane::Small => &mut self.small,
                    Lane::Bulk => &mut self.bulk,
                };
                match frames::receive(socket, 0)?.map(inner::read_to_worker) {
                    Some(Ok(ToWorker::Resume)) => break,
                    Some(Ok(ToWorker::Stop)) => {
                        self.tell_sink(&ToSink::Stopped(self.seat.id))?;
                        return Ok(Recovery::Stopped);
                    }
                    _ => {} // given to others
                }
            }
        }
        Ok(Recovery::Resumed)
    }

    fn tell_ventilator(&mut self, message: ToVentilator) -> Result<()> {
        tell(&mut self.ventilator, inner::write_to_ventilator(message))
    }

    fn tell_sink(&mut self, message: &ToSink) -> Result<()> {
        tell(&mut self.sink, inner::write_to_sink(message))
    }

    fn serve(&mut self) -> Result<()> {
        self.tell_ventilator(ToVentilator::Up(self.seat.id))?;
        loop {
            let (lane, message) = self.receive()?;
            match message {
                ToWorker::Chunk(chunk) => self.run_chunk(lane, *chunk)?,
                ToWorker::Open(model) => {
                    let error = self.open_all(model).err();
                    self.tell_ventilator(ToVentilator::Opened(self.seat.id, model, error))?;
                }
                ToWorker::Resume => {} // only a worker that is down waits for it
                ToWorker::Forget(model) => {
                    let before = self.models.len();
                    self.models.retain(|(of, _), _| *of != model);
                    if self.models.len() < before {
                        // malloc keeps what a session had.
                        frames::trim_heaps();
                    }
                }
                ToWorker::Stop => {
                    let stopped = ToSink::Stopped(self.seat.id);
                    return self.tell_sink(&stopped);
                }
            }
        }
    }

    /// The next message: from the small lane first, unless bulk has waited long enough.
    fn receive(&mut self) -> Result<(Lane, ToWorker)> {
        loop {
            let mut lanes = [(Lane::Small, &mut self.small), (Lane::Bulk, &mut self.bulk)];
            if self.choice.first() == Lane::Bulk {
                lanes.reverse();
            }
            for (lane, socket) in lanes {
                if let Some(message) = frames::receive(socket, zmq::DONTWAIT)? {
                    return Ok((lane, inner::read_to_worker(message)?));
                }
            }
            self.waiter.wait(&[&self.small, &self.bulk], None)?;
        }
    }

    fn run_chunk(&mut self, lane: Lane, chunk: Chunk) -> Result<()> {
        let board = &self.seat.board;
        if chunk.members.iter().all(|m| board.is_cancelled(m.serial)) {
            let members = chunk.members.clone();
            self.send_part(&chunk, members, 0, Outcome::Skipped)?;
            return self.send_credit(&chunk, 0, 0, Vec::new(), Vec::new());
        }
        // Opened before the clock runs: how fast the model is must not count it.
        let opened =
            (chunk.leg..chunk.until).try_for_each(|leg| self.open(chunk.model, leg).map(drop));
        let started_us = self.seat.clock.now_us();
        let (done, failed) = match opened {
            Ok(()) => self.compute(&chunk),
            Err(error) => {
                let of = |member: &Member| (member.clone(), error.clone());
                (Vec::new(), chunk.members.iter().map(of).collect())
            }
        };
        let compute_us = self.seat.clock.now_us() - started_us;
        let bulk_waits =
            matches!(lane, Lane::Small) && self.bulk.get_events()?.contains(zmq::POLLIN);
        self.choice.ran(lane, compute_us, bulk_waits);
        let (members, batches): (Vec<Member>, Vec<Batch>) = done.into_iter().unzip();
        let rows = members.iter().map(|m| m.rows).sum();
        let mut handed = Vec::new();
        // The parts go out before the credit: whoever sees the credit may forget the rows.
        if chunk.goes_on {
            handed = std::iter::zip(members, batches)
                .map(|(member, batch)| Handed {
                    serial: member.serial,
                    rows: member.rows,
                    batch,
                })
                .collect();
        } else if !members.is_empty() {
            self.send_part(&chunk, members, compute_us, Outcome::Done(batches))?;
        }
        let mut errors = Vec::with_capacity(failed.len());
        if !failed.is_empty() {
            let mut members = Vec::with_capacity(failed.len());
            for (member, error) in failed {
                errors.push((member.serial, error));
                members.push(member);
            }
            self.send_part(&chunk, members, compute_us, Outcome::Failed)?;
        }
        self.send_credit(&chunk, rows, compute_us, errors, handed)
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
            worker: self.seat.id,
            attempt: chunk.attempt,
            compute_us: chunk.spent_us + compute_us,
            members,
            outcome,
        };
        self.tell_sink(&ToSink::Part(Box::new(part)))
    }

    fn send_credit(
        &mut self,
        chunk: &Chunk,
        rows: u64,
        compute_us: u64,
        failed: Vec<(Serial, Error)>,
        handed: Vec<Handed>,
    ) -> Result<()> {
        self.tell_ventilator(ToVentilator::Credit(Credit {
            worker: self.seat.id,
            chunk: chunk.id,
            model: chunk.model,
            rows,
            compute_us,
            spent_us: chunk.spent_us,
            failed,
            handed,
        }))
    }

    /// Runs a chunk's members together; if that fails, each by itself, so that one member's bad rows are not
    /// another's error.
    #[allow(clippy::type_complexity)] // two lists of what they are
    fn compute(&mut self, chunk: &Chunk) -> (Vec<(Member, Batch)>, Vec<(Member, Error)>) {
        let members = &chunk.members;
        match self.run_together(chunk, 0..members.len()) {
            Ok(batches) => (members.iter().cloned().zip(batches).collect(), Vec::new()),
            Err(error) if members.len() == 1 => {
                let member = members[0].clone();
                let error = located(&member, error);
                (Vec::new(), vec![(member, error)])
            }
            Err(_) => {
                let mut done = Vec::new();
                let mut failed = Vec::new();
                for (index, member) in members.iter().enumerate() {
                    match self.run_together(chunk, index..index + 1) {
                        Ok(batches) => {
                            done.extend(batches.into_iter().map(|b| (member.clone(), b)));
                        }
                        Err(error) => failed.push((member.clone(), located(member, error))),
                    }
                }
                (done, failed)
            }
        }
    }

    fn run_together(&mut self, chunk: &Chunk, range: std::ops::Range<usize>) -> Result<Vec<Batch>> {
        let (members, inputs) = (&chunk.members[range.clone()], &chunk.inputs[range]);
        let joined;
        let batch = match inputs {
            [one] => one,
            many => {
                // The engine wants one piece of memory: the rows of several requests have to be copied into one.
                joined = join(many)?;
                &joined
            }
        };
        let outputs = self.infer(chunk, members, batch)?;
        if let [one] = members {
            check_rows(one, &outputs)?;
            return Ok(vec![outputs]);
        }
        let mut offset = 0;
        let rows: u64 = members.iter().map(|m| m.rows).sum();
        members
            .iter()
            .map(|member| {
                let tensors = outputs
                    .tensors
                    .iter()
                    .map(|tensor| {
                        check_output_rows(tensor, rows)?;
                        Ok(tensor.slice_rows(offset, member.rows as usize))
                    })
                    .collect::<Result<Vec<_>>>()?;
                offset += member.rows as usize;
                Ok(Batch { tensors })
            })
            .collect()
    }

    /// Runs a chunk's legs one after another.
    fn infer(&mut self, chunk: &Chunk, members: &[Member], batch: &Batch) -> Result<Batch> {
        let mut outputs = self.infer_leg(chunk, chunk.leg, members, batch)?;
        for leg in chunk.leg + 1..chunk.until {
            outputs = self.infer_leg(chunk, leg, members, &outputs)?;
        }
        Ok(outputs)
    }

    fn infer_leg(
        &mut self,
        chunk: &Chunk,
        leg: u32,
        members: &[Member],
        batch: &Batch,
    ) -> Result<Batch> {
        let board = self.seat.board.clone();
        let run = Run {
            params: &chunk.params,
            members,
            cancelled: &|| members.iter().all(|m| board.is_cancelled(m.serial)),
        };
        let model = self.open(chunk.model, leg)?;
        match catch_unwind(AssertUnwindSafe(|| model.infer_with(batch, &run))) {
            Ok(result) => result,
            Err(panic) => {
                // Whatever state the panic left behind must not serve the next request.
                self.models.remove(&(chunk.model, leg));
                let why = panic_message(&*panic);
                Err(Error::internal(format!("the model panicked: {why}")))
            }
        }
    }

    /// Opens every leg of a model that may come here.
    fn open_all(&mut self, model: ModelId) -> Result<()> {
        let legs = self.seat.source.legs(model)?;
        for (leg, role) in legs.iter().enumerate() {
            if self.seat.role == Role::Main || *role == Role::Extra {
                self.open(model, leg as u32)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, id: ModelId, leg: u32) -> Result<&mut Box<dyn Model>> {
        use std::collections::hash_map::Entry;
        match self.models.entry((id, leg)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let (source, worker) = (&self.seat.source, self.seat.id);
                let opened = catch_unwind(AssertUnwindSafe(|| source.open(id, leg, worker)));
                let model = opened.unwrap_or_else(|panic| {
                    let why = panic_message(&*panic);
                    Err(Error::internal(format!(
                        "opening the model panicked: {why}"
                    )))
                })?;
                Ok(entry.insert(model))
            }
        }
    }
}

fn join(batches: &[Batch]) -> Result<Batch> {
    let Some(first) = batches.first() else {
        return Ok(Batch::default());
    };
    if let Some(other) = batches.iter().find(|batch| !batch.is_like(first)) {
        // An earlier leg gave them, each in a run of its own.
        return Err(Error::internal(format!(
            "rows of {} and of {} cannot run together",
            first.kinds(),
            other.kinds()
        )));
    }
    let columns = first.tensors.len();
    let tensors = (0..columns)
        .map(|column| {
            let pieces: Vec<Tensor> = batches.iter().map(|b| b.tensors[column].clone()).collect();
            Tensor::concat(&pieces)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Batch { tensors })
}

/// Tells a client the rows that the model blames by their numbers in its own request. The member ran by itself, so
/// the batch had its rows and no others.
fn located(member: &Member, error: Error) -> Error {
    let Some(rows) = error.rows() else {
        return error;
    };
    let first = member.offset as usize;
    let (start, end) = if member.whole {
        (rows.start, rows.end)
    } else {
        let last = member.rows as usize;
        (first + rows.start.min(last), first + rows.end.min(last))
    };
    if end <= start + 1 {
        error.context(format_args!("row {start}"))
    } else {
        error.context(format_args!("rows {start} to {}", end - 1))
    }
}

fn check_rows(member: &Member, outputs: &Batch) -> Result<()> {
    if member.whole {
        return Ok(());
    }
    outputs
        .tensors
        .iter()
        .try_for_each(|tensor| check_output_rows(tensor, member.rows))
}

fn check_output_rows(tensor: &Tensor, rows: u64) -> Result<()> {
    if tensor.rows() == Some(rows as usize) {
        return Ok(());
    }
    Err(Error::internal(format!(
        "output {:?} has shape {:?} for {rows} rows: the model does not keep its rows apart",
        tensor.name(),
        tensor.shape()
    )))
}
