//! How a worker runs a chunk: which of its rows run at once, and what each member gets of it.

use std::collections::hash_map::Entry;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::bad_row_search::{BadRowSearch, Before, Budget};
use super::blank::{Fill, filled, repeated, with_earlier};
use super::{Worker, faults};
use crate::error::{Error, Result, panic_message};
use crate::message::{Chunk, FailedRows, Handed, Member, ModelId, OnBadRow, Rows};
use crate::model::{Model, Run};
use crate::schedule::Lane;
use crate::tensor::{Batch, Tensor};

/// How long the first of a chunk's requests that are done wait for the next ones.
const TOGETHER_US: u64 = 1_000;

/// What came of a chunk.
#[derive(Default)]
pub(in crate::pipeline) struct Computed {
    /// Rows whose results are on their way already.
    pub(super) sent: u64,
    /// Runs that went well.
    pub(super) runs: u64,
    pub(in crate::pipeline) done: Vec<Done>,
    pub(in crate::pipeline) failed: Vec<(Member, Error)>,
    /// Cancelled between two runs, while others of the chunk were not.
    pub(in crate::pipeline) skipped: Vec<Member>,
    /// What is left of the bound on further runs.
    budget: Budget,
}

/// Members in a row, and what the runs of their rows gave: several members have one run.
#[derive(Default)]
pub(in crate::pipeline) struct Done {
    pub(in crate::pipeline) members: Vec<Member>,
    /// None if all rows failed.
    pub(in crate::pipeline) runs: Vec<Batch>,
    /// The rows that failed, of one member that reports them and has its rows in one run.
    pub(in crate::pipeline) failed: Vec<FailedRows>,
}

/// Rows of one member while they run.
struct Running<'a> {
    lane: Lane,
    chunk: &'a Chunk,
    member: &'a Member,
    inputs: &'a Batch,
    /// What those gave that did not fail, in their order.
    runs: Vec<Batch>,
    failed: Vec<FailedRows>,
}

/// Why a run gave nothing.
enum RunError {
    /// The model says so of its batch.
    Batch(Error),
    /// What it gave are no rows: which of them is bad cannot be told from that.
    Outputs(Error),
}

impl From<Error> for RunError {
    fn from(error: Error) -> RunError {
        match error.is_about_row_count() {
            true => RunError::Outputs(error),
            false => RunError::Batch(error),
        }
    }
}

/// What becomes of a member when a run of its rows has failed.
enum Verdict {
    /// The rows that failed are known, and all others have run.
    GoesOn,
    Cancelled,
    Fails(Error),
}

impl Done {
    /// What each member has got; nothing if all of its rows failed.
    pub(super) fn into_each(
        self,
    ) -> impl Iterator<Item = (Member, Option<Batch>, Vec<FailedRows>)> {
        let joined = self.members.len() > 1;
        let (mut runs, mut failed, mut start) = (self.runs, self.failed, 0);
        let last = runs.pop();
        self.members.into_iter().map(move |member| {
            let rows = member.rows as usize;
            start += rows;
            let batch = match &last {
                Some(last) if joined => Some(last.slice_rows(start - rows, rows)),
                last => last.clone(),
            };
            (member, batch, std::mem::take(&mut failed))
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

    /// Takes what members have got. Rows that failed in an earlier leg count as failed.
    pub(in crate::pipeline) fn add(&mut self, chunk: &Chunk, done: Done) {
        if chunk.failed.is_empty() {
            self.done.push(done);
            return;
        }
        for (member, batch, failed) in done.into_each() {
            match with_earlier(chunk, member.clone(), (batch, failed)) {
                Ok(done) => self.done.push(done),
                Err(error) => self.failed.push((member, error)),
            }
        }
    }

    /// What goes on to the next leg: something for each member that is done, or nothing if every row has failed; then what is
    /// done is for the sink.
    pub(in crate::pipeline) fn hand_on(&mut self) -> Vec<Handed> {
        self.fill_in();
        let mut handed = Vec::with_capacity(self.done.len());
        if self.done.iter().any(|done| !done.runs.is_empty()) {
            let each = self.done.drain(..).flat_map(Done::into_each);
            handed.extend(each.filter_map(|(member, batch, failed)| {
                Some(Handed {
                    serial: member.serial,
                    rows: member.rows,
                    batch: batch?,
                    failed,
                })
            }));
        }
        handed
    }

    /// Puts other rows in place of a member's that all failed, if there are any: a chunk goes on with all of its members or
    /// with none.
    fn fill_in(&mut self) {
        if self.done.iter().all(|done| !done.runs.is_empty()) {
            return;
        }
        let mut runs = self.done.iter().flat_map(|done| &done.runs);
        let Some(like) = runs.next().cloned() else {
            return;
        };
        for mut done in std::mem::take(&mut self.done) {
            if done.runs.is_empty() {
                match repeated(&like, member_rows(&done.members)) {
                    Ok(rows) => done.runs.push(rows),
                    Err(error) => {
                        let members = done.members.into_iter();
                        self.failed
                            .extend(members.map(|member| (member, error.clone())));
                        continue;
                    }
                }
            }
            self.done.push(done);
        }
    }
}

fn member_rows(members: &[Member]) -> u64 {
    members.iter().map(|member| member.rows).sum()
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
            self.compute_together(lane, chunk, range, &mut computed)?;
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
        let mut running = Running {
            lane,
            chunk,
            member,
            inputs,
            runs: Vec::with_capacity(member.rows.div_ceil(size) as usize),
            failed: Vec::new(),
        };
        let mut start = 0;
        while start < member.rows {
            let rows = size.min(member.rows - start);
            if start > 0 {
                if lane == Lane::Bulk {
                    self.step_aside()?;
                }
                if self.is_cancelled(&chunk.members) {
                    return Ok(None);
                }
            }
            let rows = start..start + rows;
            match self.run_rows(&mut running, rows.clone(), &mut computed.budget)? {
                Verdict::GoesOn => {}
                Verdict::Cancelled => return Ok(None),
                Verdict::Fails(error) => {
                    computed.failed.push((member.clone(), error));
                    return Ok(Some(computed));
                }
            }
            start = rows.end;
        }
        computed.runs = running.runs.len() as u64;
        match running.finish() {
            Ok(done) => computed.add(chunk, done),
            Err(error) => computed.failed.push((member.clone(), error)),
        }
        Ok(Some(computed))
    }

    /// Runs some rows of a member. If they fail and the member reports such rows, finds out which of them do.
    ///
    /// # Errors
    /// If the other loops are gone.
    fn run_rows(
        &mut self,
        running: &mut Running<'_>,
        rows: Range<u64>,
        budget: &mut Budget,
    ) -> Result<Verdict> {
        let (chunk, member) = (running.chunk, running.member);
        let error = match self.run(running, &rows) {
            Ok(outputs) => {
                running.runs.push(outputs);
                return Ok(Verdict::GoesOn);
            }
            Err(RunError::Outputs(error)) => return Ok(Verdict::Fails(error)),
            Err(RunError::Batch(error)) => error,
        };
        if member.on_bad_row == OnBadRow::Fail || member.whole {
            return Ok(Verdict::Fails(located(&running.piece(&rows), error)));
        }
        let mut search = BadRowSearch::new(member.offset);
        let mut before = self.state_after_failure(chunk);
        search.ran_and_failed(rows, &error, before);
        while let Some(rows) = search.next() {
            if running.lane == Lane::Bulk {
                self.step_aside()?;
            }
            if self.is_cancelled(std::slice::from_ref(member)) {
                return Ok(Verdict::Cancelled);
            }
            // A model that cannot be opened again says nothing of rows.
            let mut legs = chunk.leg..chunk.until;
            let may_run = budget
                .take(before)
                .and_then(|()| legs.try_for_each(|leg| self.open(chunk.model, leg).map(drop)));
            if let Err(error) = may_run {
                search.give_up(rows, &error);
                break;
            }
            before = Before::Intact;
            match self.run(running, &rows) {
                Ok(outputs) => running.runs.push(outputs),
                Err(RunError::Outputs(error)) => return Ok(Verdict::Fails(error)),
                Err(RunError::Batch(error)) => {
                    before = self.state_after_failure(chunk);
                    search.ran_and_failed(rows, &error, before);
                }
            }
        }
        for failed in search.into_failed() {
            failed.push_to(&mut running.failed);
        }
        Ok(Verdict::GoesOn)
    }

    /// Whether the model has to be opened anew after the run that failed.
    fn state_after_failure(&self, chunk: &Chunk) -> Before {
        let mut legs = chunk.leg..chunk.until;
        let is_intact = |leg| {
            let model = self.models.get(&(chunk.model, leg));
            model.is_some_and(|model| !model.is_broken())
        };
        match legs.all(is_intact) {
            true => Before::Intact,
            false => Before::Panicked,
        }
    }

    /// Runs members together; if that fails, each by itself, so that one member's bad rows are not another's error.
    ///
    /// # Errors
    /// If the other loops are gone.
    fn compute_together(
        &mut self,
        lane: Lane,
        chunk: &Chunk,
        range: Range<usize>,
        computed: &mut Computed,
    ) -> Result<()> {
        let members = &chunk.members[range.clone()];
        if members.len() > 1
            && let Ok(outputs) = self.run_together(chunk, range.clone())
        {
            computed.runs += 1;
            let done = Done {
                members: members.to_vec(),
                runs: vec![outputs],
                failed: Vec::new(),
            };
            computed.add(chunk, done);
            return Ok(());
        }
        let rows = chunk.rows.of(&chunk.members, range);
        for (member, inputs) in std::iter::zip(members, rows.into_each(members)) {
            let mut running = Running {
                lane,
                chunk,
                member,
                inputs: &inputs,
                runs: Vec::with_capacity(1),
                failed: Vec::new(),
            };
            match self.run_rows(&mut running, 0..member.rows, &mut computed.budget)? {
                Verdict::GoesOn => {
                    computed.runs += running.runs.len() as u64;
                    match running.finish() {
                        Ok(done) => computed.add(chunk, done),
                        Err(error) => computed.failed.push((member.clone(), error)),
                    }
                }
                Verdict::Cancelled => computed.skipped.push(member.clone()),
                Verdict::Fails(error) => computed.failed.push((member.clone(), error)),
            }
        }
        Ok(())
    }

    /// One run for some rows of one member.
    fn run(&mut self, running: &Running<'_>, rows: &Range<u64>) -> Result<Batch, RunError> {
        let piece = running.piece(rows);
        let some;
        let inputs = if piece.rows == running.member.rows {
            running.inputs
        } else {
            some = running
                .inputs
                .slice_rows(rows.start as usize, piece.rows as usize);
            &some
        };
        let outputs = self.infer(running.chunk, std::slice::from_ref(&piece), inputs)?;
        check_rows(&piece, &outputs)?;
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
            Ok(result) => result.map_err(|e| faults::noted(faults::of_its_rows(e, members))),
            Err(panic) => {
                // Whatever state the panic left behind must not serve the next request.
                self.models.remove(&(chunk.model, leg));
                let why = panic_message(&*panic);
                let error = Error::internal(format!("the model panicked: {why}"));
                Err(faults::noted_panic(error))
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
                let model = match opened {
                    Ok(opened) => opened.map_err(faults::noted)?,
                    Err(panic) => {
                        let why = panic_message(&*panic);
                        let error = Error::internal(format!("opening the model panicked: {why}"));
                        return Err(faults::noted_panic(error));
                    }
                };
                Ok(entry.insert(model))
            }
        }
    }
}

impl Running<'_> {
    /// Some of the rows, as a member of their own.
    fn piece(&self, rows: &Range<u64>) -> Member {
        Member {
            offset: self.member.offset + rows.start,
            rows: rows.end - rows.start,
            ..self.member.clone()
        }
    }

    /// What the member has got.
    ///
    /// # Errors
    /// `INTERNAL` if its rows have to be in one piece, and the runs' outputs are not alike.
    fn finish(self) -> Result<Done> {
        let (mut runs, failed) = (self.runs, self.failed);
        if !failed.is_empty() {
            let filled = filled(self.member, &runs, &failed, Fill::of(self.chunk))?;
            runs = filled.into_iter().collect();
        } else if runs.len() > 1 && (self.chunk.goes_on || !self.chunk.failed.is_empty()) {
            // The next leg's runs are of another size: it gets the rows in one piece, so they have to be copied.
            runs = vec![join(&runs)?];
        }
        Ok(Done {
            members: vec![self.member.clone()],
            runs,
            failed,
        })
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

pub(super) fn join(batches: &[Batch]) -> Result<Batch> {
    let Some(first) = batches.first() else {
        return Ok(Batch::default());
    };
    if let Some(other) = batches.iter().find(|batch| !batch.is_like(first)) {
        // A model gave them, each in a run of its own.
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
    let first = match member.whole {
        true => 0,
        false => member.offset as usize,
    };
    let start = first.saturating_add(rows.start);
    let end = first.saturating_add(rows.end).max(start.saturating_add(1));
    let error = error.at_rows(start..end);
    if end - start <= 1 {
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
    Err(faults::noted(
        Error::internal(format!(
            "output {:?} has shape {:?} for {rows} rows: the model does not keep its rows apart",
            tensor.name(),
            tensor.shape()
        ))
        .about_row_count(),
    ))
}
