//! The ventilator's requests and the sink's answers with workers between them, over queues in memory: a seed decides
//! which message moves next, what fails, who dies and when, and what is asked and taken back meanwhile.
//!
//! `MDM_SEED=n cargo test --lib pipeline::simulation` runs one seed again and says what happens in it; `MDM_SEEDS=n` runs
//! so many.

mod asking;
mod ledger;
mod plan;
mod workers;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use self::ledger::{Clients, Ledger};
use self::plan::Plan;
use self::workers::{Place, SimWorker};
use super::sink::answers::{Action as Answering, AnswerState, Bounds, Outlet};
use super::ventilator::requests::{Action, Requests};
use crate::error::{Error, ErrorCode};
use crate::message::{ReplyTo, RequestId, Serial, WorkerId};
use crate::model::Description;
use crate::random::Random;
use crate::schedule::{Lane, Waiting, most_held};
use crate::wire::chunk::UncheckedChunk;
use crate::wire::inner::{ToSink, ToVentilator, ToWorker};

/// Seeds that the test runs.
const SEEDS: u64 = 10_000;
/// A seed that is not over after so many steps never will be.
const MOST_STEPS: usize = 50_000;

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    WorkerToSink(usize),
    WorkerToVentilator(usize),
    Work(usize),
    VentilatorToSink,
    SinkToVentilator,
    /// What is told of a worker by others than itself.
    ToldOfWorker,
    GiveOut,
    Die(usize),
    Time,
    Ask,
    TakeBack,
    Vanish,
    Read,
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

struct Simulation<'a> {
    random: Random,
    plan: Plan,
    now_us: u64,
    models: &'a [Arc<Description>],
    requests: Requests,
    answers: AnswerState,
    workers: Vec<SimWorker>,
    /// The cancel board.
    cancelled: HashSet<Serial>,
    to_sink: VecDeque<ToSink>,
    told_of_worker: VecDeque<ToVentilator>,
    exit: Exit,
    /// The ventilator's sessions.
    open: HashMap<Serial, (ReplyTo, RequestId)>,
    last_serial: u64,
    phase: Phase,
    finished: bool,
    trace: bool,
}

/// The sink's way out.
struct Exit {
    clients: Clients,
    ledger: Ledger,
    to_ventilator: VecDeque<ToVentilator>,
}

impl Outlet for Exit {
    fn unsent_bytes(&self, reply: ReplyTo) -> u64 {
        self.clients.unsent_bytes(reply)
    }

    fn perform(&mut self, action: Answering<'_>) {
        let (reply, request, message) = match action {
            Answering::Result {
                reply,
                request,
                rows,
            } => (reply, request, rows.to_message()),
            Answering::Answer {
                reply,
                request,
                message,
            } => (reply, request, message),
            Answering::TellVentilator(message) => return self.to_ventilator.push_back(message),
        };
        self.ledger.answered(reply, request, &message);
        if !self.clients.send(reply, &message) {
            self.to_ventilator.push_back(ToVentilator::Gone(reply));
        }
    }
}

impl Simulation<'_> {
    fn new(seed: u64, models: &[Arc<Description>]) -> Simulation<'_> {
        let mut random = Random::new(seed);
        let limits = plan::limits(&mut random);
        let plan = Plan::new(&mut random);
        let workers = limits.all_workers();
        let models = match limits.extra_workers {
            0 => &models[..plan::ONE_LEG],
            _ => models,
        };
        Simulation {
            now_us: 1,
            models,
            requests: Requests::new(limits.clone()),
            answers: AnswerState::new(&Bounds {
                workers,
                worker_chunks: most_held(limits.prefetch),
                max_client_bytes: plan.max_client_bytes,
                answered: 1,
            })
            .unwrap(),
            workers: (0..workers).map(|_| SimWorker::default()).collect(),
            cancelled: HashSet::new(),
            to_sink: VecDeque::new(),
            told_of_worker: VecDeque::new(),
            exit: Exit {
                clients: Clients::new(2),
                ledger: Ledger::default(),
                to_ventilator: VecDeque::new(),
            },
            open: HashMap::new(),
            last_serial: 0,
            phase: Phase::Serving,
            finished: false,
            trace: std::env::var_os("MDM_SEED").is_some(),
            plan,
            random,
        }
    }

    fn run(&mut self) {
        let mut steps = Vec::new();
        for count in 0.. {
            assert!(count < MOST_STEPS, "it goes on for ever");
            steps.clear();
            self.list_steps(&mut steps);
            let all: u64 = steps.iter().map(|(_, weight)| weight).sum();
            if all == 0 {
                // Nothing moves by itself any more.
                let before = self.requests.chunks_out();
                self.give_out();
                if self.requests.chunks_out() > before {
                    continue;
                }
                if self.phase == Phase::Serving {
                    self.stop();
                    self.advance_stop();
                    continue;
                }
                break;
            }
            let mut at = self.random.below(all);
            let step = steps.iter().find(|(_, weight)| {
                let found = at < *weight;
                at = at.saturating_sub(*weight);
                found
            });
            let (step, _) =
                *step.expect("a number below the sum of all weights falls on one of them");
            self.step(step);
            self.check_bounds();
        }
        self.check_end();
    }

    fn list_steps(&self, steps: &mut Vec<(Step, u64)>) {
        let pace = &self.plan.pace;
        let mut when = |yes: bool, step: Step, weight: u64| {
            if yes {
                steps.push((step, weight));
            }
        };
        for (index, worker) in self.workers.iter().enumerate() {
            when(
                !worker.to_sink.is_empty(),
                Step::WorkerToSink(index),
                pace[0],
            );
            when(
                !worker.to_ventilator.is_empty(),
                Step::WorkerToVentilator(index),
                pace[1],
            );
            when(worker.can_work(), Step::Work(index), pace[2]);
            when(
                self.plan.deaths > 0 && worker.can_die(),
                Step::Die(index),
                1,
            );
        }
        when(!self.to_sink.is_empty(), Step::VentilatorToSink, pace[3]);
        when(
            !self.exit.to_ventilator.is_empty(),
            Step::SinkToVentilator,
            pace[4],
        );
        when(!self.told_of_worker.is_empty(), Step::ToldOfWorker, pace[5]);
        when(self.exit.clients.any_waits(), Step::Read, pace[6]);
        let serving = self.phase == Phase::Serving;
        when(serving && self.plan.asks > 0, Step::Ask, pace[7]);
        when(
            self.plan.cancels > 0 && !self.open.is_empty(),
            Step::TakeBack,
            1,
        );
        when(self.plan.vanishing > 0, Step::Vanish, 1);
        let more = steps
            .iter()
            .any(|(step, _)| !matches!(step, Step::Die(_) | Step::TakeBack | Step::Vanish));
        let mut when = |yes: bool, step: Step, weight: u64| {
            if yes {
                steps.push((step, weight));
            }
        };
        when(self.plan.deadlines && more, Step::Time, 1);
        when(more, Step::GiveOut, 4);
        when(
            serving && self.plan.stop_now && self.plan.asks < 3 && more,
            Step::Stop,
            1,
        );
    }

    fn step(&mut self, step: Step) {
        if self.trace {
            eprintln!("{step:?}");
        }
        match step {
            Step::WorkerToSink(index) => {
                let message = self.workers[index].to_sink.pop_front();
                self.sink_hears(message);
            }
            Step::VentilatorToSink => {
                let message = self.to_sink.pop_front();
                self.sink_hears(message);
            }
            Step::WorkerToVentilator(index) => {
                let message = self.workers[index].to_ventilator.pop_front();
                self.ventilator_hears(message);
            }
            Step::SinkToVentilator => {
                let message = self.exit.to_ventilator.pop_front();
                self.ventilator_hears(message);
            }
            Step::ToldOfWorker => {
                let message = self.told_of_worker.pop_front();
                self.ventilator_hears(message);
            }
            Step::Work(index) => self.work(index),
            Step::GiveOut => self.give_out(),
            Step::Die(index) => self.die(index),
            Step::Time => {
                self.now_us += self.random.below(40);
                self.requests.expire(self.now_us);
                self.act();
            }
            Step::Ask => self.ask(),
            Step::TakeBack => self.take_back(),
            Step::Vanish => {
                self.plan.vanishing -= 1;
                let client = self.random.below(2);
                self.exit.clients.vanish(client);
            }
            Step::Read => self.exit.clients.read(&mut self.random),
            Step::Stop => self.stop(),
        }
        self.advance_stop();
    }

    // ---- the sink ------------------------------------------------------------------------------------------------

    fn sink_hears(&mut self, message: Option<ToSink>) {
        let message = message.expect("only queues that hold something move");
        if self.trace {
            eprintln!("  sink hears {message:?}");
        }
        self.finished |= matches!(message, ToSink::Finish);
        self.now_us += 1;
        self.answers.hear(message, self.now_us, &mut self.exit);
    }

    // ---- the ventilator ------------------------------------------------------------------------------------------

    fn ventilator_hears(&mut self, message: Option<ToVentilator>) {
        let message = message.expect("only queues that hold something move");
        if self.trace {
            eprintln!("  ventilator hears {message:?}");
        }
        self.now_us += 1;
        match message {
            ToVentilator::Up(worker) => self.requests.worker_up(worker, self.now_us),
            ToVentilator::Credit(credit) => {
                self.requests.credit(credit, self.now_us);
            }
            ToVentilator::Down(worker, _) => {
                self.requests.worker_down(worker);
                let worker = &mut self.workers[worker.0 as usize];
                worker.small.push_back(ToWorker::Resume);
                worker.bulk.push_back(ToWorker::Resume);
            }
            ToVentilator::Gone(reply) => {
                let open = self.open.iter().filter(|(_, (of, _))| *of == reply);
                let mut serials: Vec<Serial> = open.map(|(serial, _)| *serial).collect();
                serials.sort();
                for serial in serials {
                    self.exit.ledger.may_end_with(serial, ErrorCode::Cancelled);
                    self.close(serial, ErrorCode::Cancelled);
                }
            }
            ToVentilator::Abort(serial) => {
                self.requests.answered_by_sink(serial);
            }
            ToVentilator::Arrived(arrived) => {
                self.requests.arrived(arrived, self.now_us);
            }
            ToVentilator::WhatIsOut => self.requests.tell_what_is_out(),
            other => panic!("nobody says {other:?} here"),
        }
        self.act();
        if self.random.one_in(2) {
            self.give_out();
        }
    }

    fn close(&mut self, serial: Serial, code: ErrorCode) {
        self.requests.close(serial, &Error::new(code, "closed"));
    }

    fn act(&mut self) {
        for action in self.requests.take_actions() {
            if self.trace {
                eprintln!("  {action:?}");
            }
            match action {
                Action::TellSink(message) => self.to_sink.push_back(message),
                Action::Cancel(serial) => {
                    self.cancelled.insert(serial);
                }
                Action::Ended { reply, request, .. } => {
                    let before = self.open.len();
                    self.open.retain(|_, open| *open != (reply, request));
                    assert_eq!(self.open.len() + 1, before, "{request} has ended twice");
                }
            }
        }
    }

    fn give_out(&mut self) {
        while let Some(given) = self.requests.next(self.now_us) {
            if self.trace {
                eprintln!("  given {given:?}");
            }
            assert!(!given.chunk.members.is_empty(), "a chunk of nobody's rows");
            let worker = &mut self.workers[given.worker.0 as usize];
            let lane = match given.lane {
                Lane::Small => &mut worker.small,
                Lane::Bulk => &mut worker.bulk,
            };
            lane.push_back(ToWorker::Chunk(Box::new(UncheckedChunk::of(given.chunk))));
        }
    }

    fn stop(&mut self) {
        self.phase = Phase::Draining;
        if !self.plan.stop_now {
            return;
        }
        for serial in self.requests.open() {
            self.exit
                .ledger
                .may_end_with(serial, ErrorCode::Unavailable);
            self.close(serial, ErrorCode::Unavailable);
        }
        self.act();
        self.phase = Phase::Stopping;
        self.stop_workers();
        self.to_sink.push_back(ToSink::Finish);
    }

    fn advance_stop(&mut self) {
        if self.phase == Phase::Draining && self.requests.is_idle() {
            self.phase = Phase::Stopping;
            self.stop_workers();
        }
    }

    fn stop_workers(&mut self) {
        for worker in &mut self.workers {
            worker.bulk.push_back(ToWorker::Stop);
        }
    }

    // ---- workers -------------------------------------------------------------------------------------------------

    fn work(&mut self, index: usize) {
        let place = Place {
            id: WorkerId(index as u32),
            failures: self.plan.failures,
            cancelled: &self.cancelled,
        };
        let failed = self.workers[index].work(&place, &mut self.random);
        for (serial, code) in failed {
            self.exit.ledger.may_end_with(serial, code);
        }
    }

    fn die(&mut self, index: usize) {
        self.plan.deaths -= 1;
        self.exit.ledger.deaths += 1;
        let down = ToVentilator::Down(WorkerId(index as u32), "simulated".to_owned());
        let kind = self.random.below(3);
        if self.trace {
            eprintln!("  of kind {kind}");
        }
        match (kind, self.workers[index].die(kind > 0)) {
            (2, ()) => self.told_of_worker.push_back(down), // before its last credits are read, or long after
            _ => self.workers[index].to_ventilator.push_back(down),
        }
    }

    // ---- clients -------------------------------------------------------------------------------------------------

    fn take_back(&mut self) {
        self.plan.cancels -= 1;
        let mut serials: Vec<Serial> = self.open.keys().copied().collect();
        serials.sort();
        let serial = serials[self.random.below(serials.len() as u64) as usize];
        self.exit.ledger.may_end_with(serial, ErrorCode::Cancelled);
        self.close(serial, ErrorCode::Cancelled);
        self.act();
    }

    // ---- what must hold ------------------------------------------------------------------------------------------

    fn check_bounds(&self) {
        for client in 0..2 {
            let gathered = self.answers.gathered_bytes(Clients::reply(client));
            assert!(
                gathered <= self.plan.max_client_bytes,
                "{gathered} bytes gathered"
            );
        }
        let most = self.plan.max_client_bytes;
        assert!(
            self.exit.clients.most_result_bytes() <= most,
            "too many bytes wait"
        );
    }

    fn check_end(&self) {
        assert!(self.open.is_empty(), "never ended: {:?}", self.open);
        self.exit.ledger.check_end(&self.exit.clients);
        assert!(
            self.workers.iter().all(SimWorker::has_ended),
            "a worker was not stopped"
        );
        assert!(self.answers.all_stopped());
        let counted = self.answers.counted();
        let counted = counted.iter().map(|of| of.results() + of.errors());
        let counted: u64 = counted.sum();
        assert_eq!(counted, self.exit.ledger.answers(), "answers are counted");
        assert_eq!(self.requests.held(), 0, "rows are held");
        if !self.finished {
            // Else chunks of closed requests may be out, which nobody waits for.
            assert!(self.requests.is_idle());
            assert_eq!(self.requests.waiting(), Waiting::default());
        }
        let left = self.answers.left();
        // After a stop at once, what was out of requests that were closed never comes.
        let of_no_use = |left: &&String| !(self.finished && left.ends_with("ended"));
        let left: Vec<&String> = left.iter().filter(of_no_use).collect();
        assert!(left.is_empty(), "the sink remembers {left:?}");
    }
}

/// Says which seed it was if the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it fails with MDM_SEED={}", self.0);
        }
    }
}

#[test]
fn every_request_has_one_answer_whatever_dies_fails_or_is_taken_back() {
    let models = plan::models();
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds = match number("MDM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MDM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let guard = Seed(seed);
        Simulation::new(seed, &models).run();
        drop(guard);
    }
}
