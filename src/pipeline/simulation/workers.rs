//! Simulated workers: as `worker.rs`, but each message that one sends is a step of its own, and it may die between any
//! two.

use std::collections::{HashSet, VecDeque};

use super::Random;
use crate::error::{Error, ErrorCode};
use crate::message::{
    Chunk, Credit, FailedRows, Member, OnBadRow, Outcome, Part, Ran, Rows, Serial, WorkerId,
};
use crate::pipeline::worker::blank::{Fill, filled};
use crate::pipeline::worker::run::{Computed, Done};
use crate::schedule::Lane;
use crate::tensor::Batch;
use crate::wire::inner::{ToSink, ToVentilator, ToWorker};

/// A message on its way out.
pub(super) enum Sent {
    ToSink(ToSink),
    ToVentilator(ToVentilator),
}

/// What a worker knows of the world.
pub(super) struct Place<'a> {
    pub(super) id: WorkerId,
    /// A member fails one time in so many; 0: never.
    pub(super) failures: u64,
    pub(super) cancelled: &'a HashSet<Serial>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum State {
    #[default]
    Starting,
    Up,
    /// Drops what comes by this lane until it is told to resume.
    Down(Lane),
    Ended,
}

/// A chunk that runs, or what is still to be sent of it.
struct Task {
    lane: Lane,
    chunk: Chunk,
    to_send: Option<VecDeque<Sent>>,
}

#[derive(Default)]
pub(super) struct SimWorker {
    pub(super) small: VecDeque<ToWorker>,
    pub(super) bulk: VecDeque<ToWorker>,
    pub(super) to_sink: VecDeque<ToSink>,
    pub(super) to_ventilator: VecDeque<ToVentilator>,
    state: State,
    /// A small chunk runs on top of the bulk chunk that has stepped aside for it.
    tasks: Vec<Task>,
}

impl SimWorker {
    pub(super) fn can_work(&self) -> bool {
        match self.state {
            State::Starting => true,
            State::Up => !self.tasks.is_empty() || !self.small.is_empty() || !self.bulk.is_empty(),
            State::Down(Lane::Small) => !self.small.is_empty(),
            State::Down(Lane::Bulk) => !self.bulk.is_empty(),
            State::Ended => false,
        }
    }

    pub(super) fn can_die(&self) -> bool {
        self.state == State::Up
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whatever it was about to say is never said. `lanes_too`: what it had not read is lost as well.
    pub(super) fn die(&mut self, lanes_too: bool) {
        self.tasks.clear();
        self.state = State::Down(Lane::Small);
        if lanes_too {
            for lane in [&mut self.small, &mut self.bulk] {
                lane.retain(|message| !matches!(message, ToWorker::Chunk(_)));
            }
        }
    }

    /// Does the next thing. Returns the members that failed, and those of which rows were left, with what they may end with.
    pub(super) fn work(
        &mut self,
        place: &Place<'_>,
        random: &mut Random,
    ) -> Vec<(Serial, ErrorCode)> {
        match self.state {
            State::Starting => {
                self.to_ventilator.push_back(ToVentilator::Up(place.id));
                self.state = State::Up;
            }
            State::Down(lane) => {
                let message = match lane {
                    Lane::Small => self.small.pop_front(),
                    Lane::Bulk => self.bulk.pop_front(),
                };
                match (message, lane) {
                    (Some(ToWorker::Resume), Lane::Small) => self.state = State::Down(Lane::Bulk),
                    (Some(ToWorker::Resume), Lane::Bulk) => self.state = State::Starting,
                    (Some(ToWorker::Stop), _) => self.end(place),
                    _ => {} // given to others
                }
            }
            State::Up => return self.go_on(place, random),
            State::Ended => {}
        }
        Vec::new()
    }

    fn end(&mut self, place: &Place<'_>) {
        self.to_sink.push_back(ToSink::Stopped(place.id));
        self.state = State::Ended;
    }

    fn go_on(&mut self, place: &Place<'_>, random: &mut Random) -> Vec<(Serial, ErrorCode)> {
        let deep = self.tasks.len();
        let Some(task) = self.tasks.last_mut() else {
            self.take_up(place, random);
            return Vec::new();
        };
        if let Some(to_send) = &mut task.to_send {
            match to_send.pop_front() {
                Some(Sent::ToSink(message)) => self.to_sink.push_back(message),
                Some(Sent::ToVentilator(message)) => self.to_ventilator.push_back(message),
                None => {}
            }
            if to_send.is_empty() {
                self.tasks.pop();
            }
            return Vec::new();
        }
        let small_waits = matches!(self.small.front(), Some(ToWorker::Chunk(_)));
        if task.lane == Lane::Bulk && deep == 1 && small_waits && random.one_in(2) {
            if let Some(ToWorker::Chunk(chunk)) = self.small.pop_front() {
                self.tasks.push(Task {
                    lane: Lane::Small,
                    chunk: chunk.check().0,
                    to_send: None,
                });
            }
            return Vec::new();
        }
        let (sent, failed) = compute(&task.chunk, place, random);
        task.to_send = Some(sent);
        failed
    }

    fn take_up(&mut self, place: &Place<'_>, random: &mut Random) {
        let bulk_first = self.small.is_empty() || !self.bulk.is_empty() && random.one_in(4);
        let (lane, message) = match bulk_first {
            true => (Lane::Bulk, self.bulk.pop_front()),
            false => (Lane::Small, self.small.pop_front()),
        };
        match message {
            Some(ToWorker::Chunk(chunk)) => self.tasks.push(Task {
                lane,
                chunk: chunk.check().0,
                to_send: None,
            }),
            Some(ToWorker::Stop) => self.end(place),
            _ => {}
        }
    }
}

/// What a worker says of a chunk, in its order, and which members failed or had rows left.
fn compute(
    chunk: &Chunk,
    place: &Place<'_>,
    random: &mut Random,
) -> (VecDeque<Sent>, Vec<(Serial, ErrorCode)>) {
    let mut sent = VecDeque::new();
    let mut part = |members: Vec<Member>, outcome: Outcome| {
        sent.push_back(Sent::ToSink(ToSink::Part(Box::new(Part {
            chunk: chunk.id,
            worker: place.id,
            label: chunk.label,
            compute_us: 1,
            members,
            outcome,
        }))));
    };
    let mut credit = Credit {
        worker: place.id,
        chunk: chunk.id,
        model: chunk.model,
        label: chunk.label,
        rows: 0,
        runs: 0,
        compute_us: 0,
        spent_us: chunk.spent_us,
        failed: Vec::new(),
        handed: Vec::new(),
    };
    let cancelled = |member: &Member| place.cancelled.contains(&member.serial);
    if chunk.members.iter().all(cancelled) {
        part(chunk.members.clone(), Outcome::Skipped);
        sent.push_back(Sent::ToVentilator(ToVentilator::Credit(credit)));
        return (sent, Vec::new());
    }
    let mut computed = Computed::default();
    let (mut failed, mut codes) = (Vec::new(), Vec::new());
    let mut alone = &chunk.members[..];
    if let Rows::Joined(batch) = &chunk.rows
        && random.one_in(2)
    {
        // Some of the first run together, and well.
        let some = 2 + random.below(alone.len() as u64 - 1) as usize;
        let (together, rest) = alone.split_at(some);
        let rows: u64 = together.iter().map(|member| member.rows).sum();
        let run = batch.slice_rows(0, rows as usize);
        let reports = together
            .iter()
            .any(|member| member.on_bad_row == OnBadRow::Report);
        // Of these nobody knows whose the bad rows are: all would run again.
        if !reports || bad_rows(chunk, &run).is_empty() {
            credit.rows += rows;
            credit.compute_us += rows;
            let done = Done {
                members: together.to_vec(),
                runs: vec![run],
                failed: Vec::new(),
            };
            computed.add(chunk, done);
            alone = rest;
        }
    }
    let first = chunk.members.len() - alone.len();
    let rows = chunk.rows.of(&chunk.members, first..chunk.members.len());
    for (member, inputs) in std::iter::zip(alone, rows.into_each(alone)) {
        if place.failures > 0 && random.one_in(place.failures) {
            credit
                .failed
                .push((member.serial, Error::internal("it failed")));
            failed.push(member.clone());
            codes.push((member.serial, ErrorCode::Internal));
            continue;
        }
        credit.rows += member.rows;
        credit.compute_us += member.rows;
        let reports = member.on_bad_row == OnBadRow::Report;
        if reports && cancelled(member) && random.one_in(2) {
            computed.skipped.push(member.clone()); // while its rows ran again
            continue;
        }
        let bad = bad_rows(chunk, &inputs);
        let done = if reports && !bad.is_empty() {
            // The bound on further runs may be reached behind any row that is bad.
            let behind = bad[0] + 1;
            let left = match random.one_in(3) {
                true => behind + random.below(member.rows - bad[0]),
                false => member.rows,
            };
            if left < member.rows {
                codes.push((member.serial, LEFT));
            }
            of_bad_rows(chunk, member, (&inputs, &bad, left))
        } else {
            let pieces = !chunk.goes_on && chunk.failed.is_empty();
            Done {
                members: vec![member.clone()],
                runs: match pieces {
                    true => runs_of(member, &inputs, random),
                    false => vec![inputs],
                },
                failed: Vec::new(),
            }
        };
        computed.add(chunk, done);
    }
    if chunk.goes_on {
        credit.handed = computed.hand_on();
    }
    assert!(computed.failed.is_empty(), "alike rows can be joined");
    let mut done = match credit.handed.is_empty() {
        true => computed.done,
        false => Vec::new(),
    };
    while !done.is_empty() {
        // Those that were done first may go ahead of the others.
        let some = 1 + random.below(done.len() as u64) as usize;
        let (mut members, mut all) = (Vec::new(), Vec::new());
        for done in done.drain(..some) {
            all.push(Ran {
                members: done.members.len(),
                runs: done.runs,
                failed: done.failed,
            });
            members.extend(done.members);
        }
        part(members, Outcome::Done(all));
    }
    if credit.handed.is_empty() && !computed.skipped.is_empty() {
        part(computed.skipped, Outcome::Skipped);
    }
    if !failed.is_empty() {
        part(failed, Outcome::Failed);
    }
    sent.push_back(Sent::ToVentilator(ToVentilator::Credit(credit)));
    (sent, codes)
}

/// What rows end with that fail.
pub(super) const BAD: ErrorCode = ErrorCode::FailedPrecondition;

/// And rows that were not run again.
pub(super) const LEFT: ErrorCode = ErrorCode::ResourceExhausted;

/// In which leg a row fails, if its request reports such rows and its model has that leg.
pub(super) fn bad_in(value: u64) -> Option<u32> {
    let random = Random::new(value).below(10);
    (random < 3).then_some(random as u32)
}

/// Which rows of a chunk's fail in the legs that it runs.
fn bad_rows(chunk: &Chunk, inputs: &Batch) -> Vec<u64> {
    let values = inputs.tensors[0].to_vec::<u64>().unwrap();
    let fails =
        |value: u64| bad_in(value).is_some_and(|leg| (chunk.leg..chunk.until).contains(&leg));
    let bad = (0..).zip(values).filter(|(_, value)| fails(*value));
    bad.map(|(row, _)| row).collect()
}

/// What a member has got of whose rows some are bad, and those from `left` on were not run again.
fn of_bad_rows(chunk: &Chunk, member: &Member, (inputs, bad, left): (&Batch, &[u64], u64)) -> Done {
    let (mut runs, mut failed) = (Vec::new(), Vec::new());
    for row in 0..member.rows {
        if row < left && !bad.contains(&row) {
            runs.push(inputs.slice_rows(row as usize, 1));
            continue;
        }
        let entry = FailedRows {
            first: member.offset + row,
            count: 1,
            code: if row < left { BAD } else { LEFT },
            message: "bad".to_owned(),
        };
        entry.push_to(&mut failed);
    }
    let run = filled(member, &runs, &failed, Fill::of(chunk)).unwrap();
    Done {
        members: vec![member.clone()],
        runs: run.into_iter().collect(),
        failed,
    }
}

/// The rows of a member as they came, in one run or in two.
fn runs_of(member: &Member, inputs: &Batch, random: &mut Random) -> Vec<Batch> {
    if member.whole || member.rows < 2 || random.one_in(2) {
        return vec![inputs.clone()];
    }
    let rows = member.rows as usize;
    let first = 1 + random.below(member.rows - 1) as usize;
    vec![
        inputs.slice_rows(0, first),
        inputs.slice_rows(first, rows - first),
    ]
}
