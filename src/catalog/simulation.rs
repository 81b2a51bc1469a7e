//! The catalog with clients, a loader and workers around it, all in memory: a seed decides what happens next. Files change,
//! models are loaded again under their requests and make room for each other, workers die while they open them, models are
//! unloaded while requests wait, deadlines pass and clients vanish. After each event it is checked what always holds.
//!
//! Besides the faults that its own tests put in, it has found each of these, made by hand: a model that leaves though a
//! request is held for it, or whose lookups still lead to it; no room made for a new one; two states of one model served; a
//! model that failed to open and is kept; a model that is read for nobody, or that makes another leave for nobody; a find
//! without a word on how it goes on; a withdrawn lookup that others still wait for; a lookup that is not asked again when
//! its model has left; a missed deadline; uses kept of models that are gone.
//!
//! `MDM_SEED=n cargo test --lib catalog::simulation` runs one seed again and says what happens in it; `MDM_SEEDS=n` runs so
//! many.

mod checks;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use self::world::{Folder, SimLoader, SimWorker, Word, lookup};
use super::known::Standing;
use super::loads::LoadRequest;
use super::{Action, Answer, Arrival, Asker, Catalog, Change, MostModels, Named, Parked};
use crate::error::Error;
use crate::message::{ModelId, ReplyTo, RequestId, Serial, WorkerId};
use crate::model::loader::Job;
use crate::model::{Lookup, Name};
use crate::random::Random;

/// Seeds that the test runs.
const SEEDS: u64 = 4_000;
/// A seed that is not over after so many steps never will be.
const MOST_STEPS: usize = 20_000;

/// A fault that is put in, to see that the checks find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// A request that goes on does not hold its model.
    NoHold,
    /// The loader's answers get lost now and then.
    LostAnswer,
    /// The catalog is not told that a worker was lost.
    UnheardLoss,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Infer,
    Question,
    Load,
    Unload,
    Flood,
    LoaderBegins,
    LoaderEnds,
    HearLoader,
    Opens(usize),
    HearWorker(usize),
    Die(usize),
    Cancel,
    End,
    Time,
    Vanish,
    ChangeFile,
}

/// A request that waits.
struct Waiter {
    client: ReplyTo,
    file: String,
    deadline_us: Option<u64>,
}

struct Simulation {
    random: Random,
    fault: Fault,
    trace: bool,
    now_us: u64,
    /// What is still to come of what clients do, and of deaths.
    asks: u64,
    deaths: u64,
    most: MostModels,
    catalog: Catalog<Serial>,
    folder: Folder,
    loader: SimLoader,
    workers: Vec<SimWorker>,
    clients: Vec<ReplyTo>,
    last: u64,
    waiting: BTreeMap<Serial, Waiter>,
    /// By asker, the serials of questions, and orders.
    questions: BTreeMap<(ReplyTo, RequestId), Serial>,
    orders: BTreeSet<(ReplyTo, RequestId)>,
    /// Requests in the queue, and their models.
    running: BTreeMap<Serial, ModelId>,
    /// What each request and question named.
    lookups: BTreeMap<Serial, Lookup>,
    /// As the ventilator keeps headers.
    headers: HashMap<Arc<Lookup>, ModelId>,
    starting: usize,
}

fn named(lookup: Lookup) -> Named {
    Named {
        name: Name::made_up(&lookup),
        lookup: Arc::new(lookup),
    }
}

impl Simulation {
    fn new(seed: u64, fault: Fault) -> Simulation {
        let mut random = Random::new(seed);
        let most = MostModels {
            count: 1 + random.below(4) as usize,
            bytes: [None, Some(60), Some(100)][random.below(3) as usize],
        };
        Simulation {
            fault,
            trace: std::env::var_os("MDM_SEED").is_some(),
            now_us: 0,
            asks: 5 + random.below(40),
            deaths: random.below(4),
            most,
            catalog: Catalog::new(most),
            folder: Folder::new(),
            loader: SimLoader::new(!random.one_in(4)),
            workers: (0..random.below(4)).map(|_| SimWorker::default()).collect(),
            clients: (1..4).map(|number| ReplyTo([number; 16])).collect(),
            last: 10,
            waiting: BTreeMap::new(),
            questions: BTreeMap::new(),
            orders: BTreeSet::new(),
            running: BTreeMap::new(),
            lookups: BTreeMap::new(),
            headers: HashMap::new(),
            starting: 0,
            random,
        }
    }

    fn run(&mut self) {
        if self.random.one_in(4) {
            self.starting = 1;
            let (_, lookup) = lookup(&mut self.random);
            self.catalog.preload(named(lookup));
            self.act();
        }
        for count in 0.. {
            assert!(count < MOST_STEPS, "it goes on for ever");
            let steps = self.steps();
            if steps.is_empty() {
                break;
            }
            let step = steps[self.random.below(steps.len() as u64) as usize];
            if self.trace {
                eprintln!("{step:?}");
            }
            self.step(step);
            self.act();
            checks::after_each(self);
        }
        checks::at_the_end(self);
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut when = |yes: bool, step: Step, weight: usize| {
            if yes {
                steps.extend(std::iter::repeat_n(step, weight));
            }
        };
        let asks = self.asks > 0;
        when(asks, Step::Infer, 6);
        when(asks, Step::Question, 1);
        when(asks, Step::Load, 2);
        when(asks, Step::Unload, 1);
        when(asks && self.asks.is_multiple_of(37), Step::Flood, 1);
        when(asks, Step::ChangeFile, 1);
        when(asks, Step::Vanish, 1);
        when(asks, Step::Time, 1);
        when(!self.waiting.is_empty(), Step::Cancel, 1);
        when(!self.running.is_empty(), Step::End, 2);
        when(self.loader.can_begin(), Step::LoaderBegins, 3);
        when(self.loader.can_end(), Step::LoaderEnds, 3);
        when(!self.loader.answers.is_empty(), Step::HearLoader, 3);
        for (index, worker) in self.workers.iter().enumerate() {
            when(worker.can_open(), Step::Opens(index), 2);
            when(!worker.says.is_empty(), Step::HearWorker(index), 2);
            when(self.deaths > 0 && !worker.is_down, Step::Die(index), 1);
        }
        steps
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Infer => self.infer(),
            Step::Question => self.question(),
            Step::Load | Step::Unload => self.order(step),
            Step::Flood => {
                for _ in 0..100 {
                    self.order(Step::Load);
                    self.act();
                }
            }
            Step::LoaderBegins => self.loader.begin(&mut self.random),
            Step::LoaderEnds => self.loader.end(&mut self.folder),
            Step::HearLoader => self.hear_loader(),
            Step::Opens(index) => self.workers[index].open(&self.folder, &mut self.random),
            Step::HearWorker(index) => self.hear_worker(index),
            Step::Die(index) => {
                self.deaths -= 1;
                self.workers[index].die();
            }
            Step::Cancel => {
                let at = self.random.below(self.waiting.len() as u64) as usize;
                if let Some(serial) = self.waiting.keys().nth(at).copied() {
                    self.give_up(serial);
                }
            }
            Step::End => {
                let at = self.random.below(self.running.len() as u64) as usize;
                if let Some(serial) = self.running.keys().nth(at).copied() {
                    self.end(serial);
                }
            }
            Step::Time => self.pass_time(),
            Step::Vanish => self.vanish(),
            Step::ChangeFile => self.change_file(),
        }
    }

    // ---- what clients do -----------------------------------------------------------------------------------------

    fn client(&mut self) -> ReplyTo {
        self.asks = self.asks.saturating_sub(1);
        self.clients[self.random.below(3) as usize]
    }

    fn asker(&mut self) -> Asker {
        self.last += 1;
        Asker {
            client: self.client(),
            id: RequestId(self.last),
        }
    }

    fn infer(&mut self) {
        let asker = self.asker();
        let serial = Serial(asker.id.0);
        let (file, lookup) = lookup(&mut self.random);
        // A header that came before leads to the model by itself.
        let by_header = self.headers.get(&lookup).copied();
        let known = self.catalog.known(&lookup).map(|model| model.id);
        if let Some(model) = by_header.filter(|_| self.random.one_in(2)).or(known) {
            return self.go_on(serial, model, file);
        }
        let deadline_us = self
            .random
            .one_in(3)
            .then(|| self.now_us + self.random.below(50));
        let arrival = Arrival {
            serial,
            reply: asker.client,
            request: asker.id,
            arrived_us: self.now_us,
            deadline_us,
            bytes: 10,
        };
        let parked = Parked {
            arrival,
            body: serial,
        };
        if self.catalog.park(named(lookup.clone()), parked).is_ok() {
            self.lookups.insert(serial, lookup);
            let waiter = Waiter {
                client: asker.client,
                file: file.to_owned(),
                deadline_us,
            };
            self.waiting.insert(serial, waiter);
        }
    }

    /// A request enters the queue.
    fn go_on(&mut self, serial: Serial, model: ModelId, file: &str) {
        let standing = self.catalog.models.known.standing(model);
        assert_eq!(standing, Some(Standing::Served), "{model:?}");
        assert_eq!(self.folder.held[&model].0, file, "another model's");
        if self.fault != Fault::NoHold {
            self.catalog.hold(model);
        }
        self.running.insert(serial, model);
    }

    fn question(&mut self) {
        let asker = self.asker();
        let (_, lookup) = lookup(&mut self.random);
        let serial = Serial(asker.id.0);
        if self.catalog.known(&lookup).is_none()
            && self
                .catalog
                .ask(asker, serial, named(lookup.clone()))
                .is_ok()
        {
            self.lookups.insert(serial, lookup);
            self.questions.insert((asker.client, asker.id), serial);
        }
    }

    fn order(&mut self, step: Step) {
        let asker = self.asker();
        let (_, lookup) = lookup(&mut self.random);
        let taken = match step {
            Step::Load => self.catalog.load(asker, named(lookup)),
            _ => self.catalog.unload(asker, named(lookup)),
        };
        if taken.is_ok() {
            self.orders.insert((asker.client, asker.id));
        }
    }

    fn give_up(&mut self, serial: Serial) {
        let parked = self.catalog.give_up(serial);
        assert_eq!(parked.map(|parked| parked.body), Some(serial));
        self.waiting.remove(&serial);
    }

    fn end(&mut self, serial: Serial) {
        if let Some(model) = self.running.remove(&serial) {
            let error = Error::precondition("no memory");
            let failed = self.random.one_in(4).then_some(&error);
            self.catalog.ran(model, failed);
            let marked: Vec<_> = self.catalog.failures.all().map(|of| of.model).collect();
            let is_marked = marked.contains(&Some(model));
            assert_eq!(is_marked, failed.is_some(), "the mark of {model:?}");
            self.catalog.release(model);
        }
    }

    fn pass_time(&mut self) {
        self.now_us += self.random.below(30);
        let now_us = self.now_us;
        for serial in self.catalog.expired(now_us) {
            assert!(
                self.waiting[&serial].deadline_us <= Some(now_us),
                "too early"
            );
            self.give_up(serial);
        }
        let mut deadlines = self.waiting.values().filter_map(|w| w.deadline_us);
        assert!(deadlines.all(|at| at > now_us), "a deadline was missed");
        let next = self.waiting.values().filter_map(|w| w.deadline_us).min();
        assert!(self.catalog.due_us() <= next || next.is_none());
    }

    /// A client goes, and another comes.
    fn vanish(&mut self) {
        self.asks = self.asks.saturating_sub(1);
        let at = self.random.below(3) as usize;
        self.last += 1;
        let mut address = [9; 16];
        address[8..].copy_from_slice(&self.last.to_be_bytes());
        let client = std::mem::replace(&mut self.clients[at], ReplyTo(address));
        self.forget_client(client);
    }

    fn forget_client(&mut self, client: ReplyTo) {
        let its = self
            .waiting
            .iter()
            .filter(|(_, waiter)| waiter.client == client);
        for serial in its.map(|(serial, _)| *serial).collect::<Vec<_>>() {
            self.give_up(serial);
        }
        self.questions.retain(|(of, _), _| *of != client);
        self.catalog.client_gone(&client);
    }

    fn change_file(&mut self) {
        let name = world::NAMES[self.random.below(4) as usize];
        let (is_there, is_broken) = (!self.random.one_in(6), self.random.one_in(6));
        if let Some(file) = self.folder.files.get_mut(name) {
            file.state += 1;
            (file.is_there, file.is_broken) = (is_there, is_broken);
        }
    }

    // ---- what the loader and the workers do ----------------------------------------------------------------------

    fn hear_loader(&mut self) {
        let Some((ticket, answer)) = self.loader.answers.pop_front() else {
            return;
        };
        if self.fault == Fault::LostAnswer && self.random.one_in(4) {
            return;
        }
        let is_wanted = self.is_wanted(ticket);
        let mark = checks::mark_after(self, ticket, &answer).filter(|_| is_wanted);
        let served = self.served();
        self.catalog.sized(self.folder.sizes());
        self.catalog.answered(ticket, answer).unwrap();
        let left = served.difference(&self.served()).count();
        assert!(is_wanted || left == 0, "a model leaves for nobody");
        checks::mark(self, mark);
        self.act();
        assert_ne!(self.loader.kept, Some(ticket), "nobody says how it goes on");
    }

    fn served(&self) -> BTreeSet<ModelId> {
        self.catalog.served().map(|model| model.id).collect()
    }

    /// Whether what the loader does is for an order, or for somebody who waits.
    fn is_wanted(&mut self, ticket: u64) -> bool {
        let Some(asked) = self.catalog.loads.get_mut(ticket) else {
            return false;
        };
        let LoadRequest::Describe(named) = &asked.request else {
            return true;
        };
        let mut waiting = self.waiting.keys().chain(self.questions.values());
        waiting.any(|serial| self.lookups[serial] == *named.lookup)
    }

    fn hear_worker(&mut self, index: usize) {
        self.catalog.sized(self.folder.sizes());
        let worker = WorkerId(index as u32);
        match self.workers[index].says.pop_front() {
            Some(Word::Opened(model, error)) => self.catalog.opened(worker, model, error),
            Some(Word::Down) => {
                self.workers[index].is_down = false;
                if self.fault != Fault::UnheardLoss {
                    self.catalog.worker_lost(worker);
                }
            }
            None => {}
        }
    }

    // ---- what the catalog wants done -----------------------------------------------------------------------------

    fn act(&mut self) {
        loop {
            let actions = self.catalog.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                if self.trace {
                    eprintln!("  {action:?}");
                }
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action<Serial>) {
        match action {
            Action::AskLoader {
                client,
                ticket,
                job,
            } => self.loader.ask(client, ticket, job),
            Action::GoOn { ticket, job } => {
                if let Some(Job::Read(_)) = &job {
                    assert!(self.is_wanted(ticket), "a model is read for nobody");
                }
                self.loader.go_on(ticket, job);
            }
            Action::Withdraw { client, tickets } => {
                for ticket in self.loader.withdraw(client, &tickets) {
                    self.catalog.withdrawn(ticket);
                }
            }
            Action::Open(model) => {
                self.workers
                    .iter_mut()
                    .for_each(|worker| worker.tell(model));
                let all = (0..self.workers.len()).map(|index| WorkerId(index as u32));
                self.catalog.told(model, all.collect());
            }
            Action::Admit(parked, model) => {
                let waiter = self.waiting.remove(&parked.body);
                let waiter = waiter.expect("each request goes on once");
                self.go_on(parked.body, model.id, &waiter.file);
            }
            Action::Refuse(arrival, _) => {
                let waiter = self.waiting.remove(&arrival.serial);
                assert!(waiter.is_some(), "each request ends once");
            }
            Action::Answer(asker, answer) => self.take_answer(asker, &answer),
            Action::Started(_) => {
                self.starting = self.starting.checked_sub(1).expect("it started twice");
            }
            Action::Changed(Change::LeadsTo(lookup, model)) => {
                self.headers.insert(lookup, model);
            }
            Action::Changed(Change::NotFoundAnyMore(model)) => {
                self.headers.retain(|_, leads_to| *leads_to != model);
            }
            Action::Changed(Change::Dropped(model)) => {
                let used = self.running.values().any(|of| *of == model);
                assert!(!used, "{model:?} is forgotten while it is in use");
                let held = self.folder.held.remove(&model);
                assert!(held.is_some(), "{model:?} is forgotten twice");
            }
        }
    }

    fn take_answer(&mut self, asker: Asker, answer: &Answer) {
        let key = (asker.client, asker.id);
        let is_order = self.orders.remove(&key);
        let is_question = self.questions.remove(&key).is_some();
        assert!(is_order ^ is_question, "each answer is given once");
        match answer {
            Answer::Described(model) => {
                assert!(is_question);
                let standing = self.catalog.models.known.standing(model.id);
                assert_eq!(standing, Some(Standing::Served));
            }
            Answer::Loaded(model, _) => {
                assert!(is_order);
                // Unless it was replaced in the same moment.
                let standing = self.catalog.models.known.standing(model.id);
                let is_served = standing == Some(Standing::Served);
                assert!(!is_served || self.headers.values().any(|id| *id == model.id));
            }
            Answer::Unloaded(models) => assert!(is_order && !models.is_empty()),
            Answer::Refused(_) => {}
        }
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

fn run(seeds: std::ops::Range<u64>, fault: Fault) {
    for seed in seeds {
        let guard = Seed(seed);
        Simulation::new(seed, fault).run();
        drop(guard);
    }
}

#[test]
fn whatever_changes_leaves_or_dies_everybody_has_one_answer_and_no_model_in_use_goes() {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds = match number("MDM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MDM_SEEDS").unwrap_or(SEEDS),
    };
    run(seeds, Fault::None);
}

#[test]
#[should_panic(expected = "while it is in use")]
fn the_simulation_notices_a_model_that_goes_under_a_request() {
    run(0..SEEDS, Fault::NoHold);
}

#[test]
#[should_panic(expected = "what the loader does")]
fn the_simulation_notices_those_who_wait_for_nothing() {
    run(0..SEEDS, Fault::LostAnswer);
}

#[test]
#[should_panic(expected = "orders without an answer")]
fn the_simulation_notices_a_load_that_waits_for_a_worker_that_is_gone() {
    run(0..SEEDS, Fault::UnheardLoss);
}
