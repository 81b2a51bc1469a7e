//! How a worker runs a chunk: which of its rows run at once, and what each member gets of it.

use std::collections::hash_map::Entry;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Worker, faults};
use crate::error::{Error, Result, panic_message};
use crate::message::{Chunk, Member, ModelId, Rows};
use crate::model::{Model, Run};
use crate::schedule::Lane;
use crate::tensor::{Batch, Tensor};

/// How long the first of a chunk's requests that are done wait for the next ones.
const TOGETHER_US: u64 = 1_000;

/// What came of a chunk.
#[derive(Default)]
pub(super) struct Computed {
    /// Rows whose results are on their way already.
    pub(super) sent: u64,
    /// Runs that went well.
    pub(super) runs: u64,
    pub(super) done: Vec<Done>,
    pub(super) failed: Vec<(Member, Error)>,
}

/// Members in a row, and what the runs of their rows gave: several members have one run.
pub(super) struct Done {
    pub(super) members: Vec<Member>,
    pub(super) runs: Vec<Batch>,
}

impl Done {
    /// What each member has got.
    pub(super) fn into_each(self) -> impl Iterator<Item = (Member, Batch)> {
        let joined = self.members.len() > 1;
        let (mut runs, mut start) = (self.runs, 0);
        let last = runs.pop().unwrap_or_default();
        self.members.into_iter().map(move |member| {
            let rows = member.rows as usize;
            start += rows;
            let batch = if joined {
                last.slice_rows(start - rows, rows)
            } else {
                last.clone()
            };
            (member, batch)
        })
    }
}

impl Computed {
    pub(super) fn failed(members: &[Member], error: &Error) -> Computed {
        let of = |member: &Member| (member.clone(), error.clone());
        Computed {
            failed: members.iter().map(of).collect(),
            ..Computed::default()
        }
    }
}

impl Worker {
    /// Runs a chunk; `None` if it was cancelled on the way.
    ///
    /// # Errors
    /// If the other loops are gone.
    pub(super) fn compute(&mut self, lane: Lane, chunk: &Chunk) -> Result<Option<Computed>> {
        if let ([member], [inputs]) = (&chunk.members[..], chunk.rows.batches()) {
            return self.compute_alone(lane, chunk, member, inputs);
        }
        let mut computed = Computed::default();
        let started_us = self.setup.clock.now_us();
        let mut sent_us = started_us;
        for range in together(&chunk.members, chunk.run) {
            let now_us = self.setup.clock.now_us();
            if now_us - sent_us > TOGETHER_US && !chunk.goes_on {
                computed.sent += self.send_done(chunk, &mut computed.done, now_us - started_us)?;
                sent_us = now_us;
            }
            self.compute_together(chunk, range, &mut computed);
        }
        Ok(Some(computed))
    }

    /// The rows of one request, run after run.
    fn compute_alone(
        &mut self,
        lane: Lane,
        chunk: &Chunk,
        member: &Member,
        inputs: &Batch,
    ) -> Result<Option<Computed>> {
        let mut computed = Computed::default();
        let size = chunk.run.filter(|_| !member.whole);
        let size = size.unwrap_or(member.rows).max(1);
        let mut runs = Vec::with_capacity(member.rows.div_ceil(size) as usize);
        let mut start = 0;
        while start < member.rows {
            let rows = size.min(member.rows - start);
            let result = if rows == member.rows {
                self.run(chunk, member, inputs)
            } else {
                if start > 0 {
                    if lane == Lane::Bulk {
                        self.step_aside()?;
                    }
                    if self.is_cancelled(&chunk.members) {
                        return Ok(None);
                    }
                }
                let some = inputs.slice_rows(start as usize, rows as usize);
                let piece = Member {
                    offset: member.offset + start,
                    rows,
                    ..member.clone()
                };
                self.run(chunk, &piece, &some)
            };
            match result {
                Ok(outputs) => runs.push(outputs),
                Err(error) => {
                    computed.failed.push((member.clone(), error));
                    return Ok(Some(computed));
                }
            }
            start += rows;
        }
        computed.runs = runs.len() as u64;
        if chunk.goes_on && runs.len() > 1 {
            // The next leg's runs are of another size: it gets the rows in one piece, so they have to be copied.
            match join(&runs) {
                Ok(joined) => runs = vec![joined],
                Err(error) => {
                    computed.failed.push((member.clone(), error));
                    return Ok(Some(computed));
                }
            }
        }
        computed.done.push(Done {
            members: vec![member.clone()],
            runs,
        });
        Ok(Some(computed))
    }

    /// Runs members together; if that fails, each by itself, so that one member's bad rows are not another's error.
    fn compute_together(&mut self, chunk: &Chunk, range: Range<usize>, computed: &mut Computed) {
        let members = &chunk.members[range.clone()];
        if members.len() > 1
            && let Ok(outputs) = self.run_together(chunk, range.clone())
        {
            computed.done.push(Done {
                members: members.to_vec(),
                runs: vec![outputs],
            });
            computed.runs += 1;
            return;
        }
        let rows = chunk.rows.of(&chunk.members, range);
        for (member, inputs) in std::iter::zip(members, rows.into_each(members)) {
            match self.run(chunk, member, &inputs) {
                Ok(outputs) => {
                    computed.runs += 1;
                    computed.done.push(Done {
                        members: vec![member.clone()],
                        runs: vec![outputs],
                    });
                }
                Err(error) => computed.failed.push((member.clone(), error)),
            }
        }
    }

    /// One run for one member.
    fn run(&mut self, chunk: &Chunk, member: &Member, inputs: &Batch) -> Result<Batch> {
        let outputs = self.infer(chunk, std::slice::from_ref(member), inputs);
        let outputs = outputs.map_err(|error| located(member, error))?;
        check_rows(member, &outputs)?;
        Ok(outputs)
    }

    /// One run for several members.
    fn run_together(&mut self, chunk: &Chunk, range: Range<usize>) -> Result<Batch> {
        let members = &chunk.members[range.clone()];
        let joined = match chunk.rows.of(&chunk.members, range) {
            Rows::Joined(batch) => batch,
            // The engine wants one piece of memory: the rows of several requests have to be copied into one.
            Rows::Each(batches) => join(&batches)?,
        };
        let outputs = self.infer(chunk, members, &joined)?;
        let rows: u64 = members.iter().map(|m| m.rows).sum();
        let mut tensors = outputs.tensors.iter();
        tensors.try_for_each(|tensor| check_output_rows(tensor, rows))?;
        Ok(outputs)
    }

    /// Runs a chunk's legs one after another.
    fn infer(&mut self, chunk: &Chunk, members: &[Member], batch: &Batch) -> Result<Batch> {
        // Models follow offsets wherever they lead.
        batch.must_be_checked()?;
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
        let board = self.setup.board.clone();
        let run = Run {
            params: &chunk.params,
            members,
            cancelled: &|| members.iter().all(|m| board.is_cancelled(m.serial)),
        };
        let model = self.open(chunk.model, leg)?;
        faults::running(chunk.model, leg, members);
        match catch_unwind(AssertUnwindSafe(|| model.infer_with(batch, &run))) {
            Ok(result) => result.map_err(faults::noted),
            Err(panic) => {
                // Whatever state the panic left behind must not serve the next request.
                self.models.remove(&(chunk.model, leg));
                let why = panic_message(&*panic);
                let error = Error::internal(format!("the model panicked: {why}"));
                Err(faults::noted(error))
            }
        }
    }

    /// A worker's instance of a leg, opened the first time.
    pub(super) fn open(&mut self, id: ModelId, leg: u32) -> Result<&mut Box<dyn Model>> {
        match self.models.entry((id, leg)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let (source, worker) = (&self.setup.source, self.setup.id);
                let opened = catch_unwind(AssertUnwindSafe(|| source.open(id, leg, worker)));
                let model = opened.unwrap_or_else(|panic| {
                    let why = panic_message(&*panic);
                    Err(Error::internal(format!(
                        "opening the model panicked: {why}"
                    )))
                });
                let model = model.map_err(faults::noted)?;
                Ok(entry.insert(model))
            }
        }
    }
}

/// Members in a row whose rows run at once: no more than `run` rows where a member alone has not more.
pub(super) fn together(members: &[Member], run: Option<u64>) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut rows) = (0, 0u64);
    for (index, member) in members.iter().enumerate() {
        let with = rows.saturating_add(member.rows);
        if index > start && run.is_some_and(|most| with > most) {
            ranges.push(start..index);
            (start, rows) = (index, member.rows);
        } else {
            rows = with;
        }
    }
    ranges.push(start..members.len());
    ranges
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
    let end = end.max(start + 1);
    let error = error.at_rows(start..end);
    if end == start + 1 {
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
    Err(faults::noted(Error::internal(format!(
        "output {:?} has shape {:?} for {rows} rows: the model does not keep its rows apart",
        tensor.name(),
        tensor.shape()
    ))))
}
