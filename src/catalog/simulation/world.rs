//! What is around the catalog in the simulation: files that change, a loader, and workers that open models or die.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Random;
use crate::error::{Error, Result};
use crate::message::{ModelId, Params, ReplyTo, Role};
use crate::model::loader::{Answer, Job, Reading};
use crate::model::{BatchKind, Description, Empty, FoundModel, Lookup, Read, Takes};

/// A model's file.
#[derive(Clone, Copy)]
pub(super) struct File {
    pub(super) state: u64,
    pub(super) is_there: bool,
    pub(super) is_broken: bool,
}

/// The files by the model's name, and what was read of them.
pub(super) struct Folder {
    pub(super) files: BTreeMap<&'static str, File>,
    /// File and state of each model that is held.
    pub(super) held: BTreeMap<ModelId, (String, u64)>,
}

pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A lookup of a model: the name in one of three spellings, of which the last is another name, and maybe another path.
pub(super) fn lookup(random: &mut Random) -> (&'static str, Lookup) {
    let name = NAMES[random.below(4) as usize];
    let spelt = match random.below(4) {
        0 => format!("./{name}"),
        1 => format!("{name}.onnx"),
        _ => name.to_owned(),
    };
    let mut params = Params::new();
    if random.one_in(3) {
        let path = if random.one_in(4) { "denied" } else { "words" };
        params.insert("words_path".to_owned(), path.into());
    }
    (name, Lookup::of(Some(&spelt), &params))
}

/// The bytes of a model's file, in every state.
pub(super) fn bytes_of(file: &str) -> u64 {
    match file {
        "a" => 40,
        "b" => 30,
        _ => 10,
    }
}

fn is_denied(lookup: &Lookup) -> bool {
    let (_, mut values) = lookup.held();
    values.any(|value| value == "denied")
}

fn file_of(lookup: &Lookup) -> &str {
    let name = lookup.name().trim_start_matches("./");
    name.trim_end_matches(".onnx")
}

impl Folder {
    pub(super) fn new() -> Folder {
        let file = File {
            state: 1,
            is_there: true,
            is_broken: false,
        };
        Folder {
            files: NAMES.into_iter().map(|name| (name, file)).collect(),
            held: BTreeMap::new(),
        }
    }

    pub(super) fn sizes(&self) -> Vec<(ModelId, u64)> {
        let held = self.held.iter();
        held.map(|(id, (file, _))| (*id, bytes_of(file))).collect()
    }

    fn run(&mut self, job: &Job) -> Answer {
        match job {
            Job::Check(lookup) => Answer::Checked(check(lookup)),
            Job::Find(lookup) => Answer::Found(self.find(lookup)),
            Job::Read(reading) => Answer::Read(self.read(reading)),
        }
    }

    fn find(&self, lookup: &Lookup) -> Result<Arc<FoundModel>> {
        check(lookup)?;
        let name = file_of(lookup);
        let file = self.files[name];
        if !file.is_there {
            return Err(Error::not_found(name));
        }
        if file.is_broken && file.state.is_multiple_of(2) {
            return Err(Error::precondition(name)); // what it names is missing
        }
        Ok(Arc::new(FoundModel::made_up(name, file.state)))
    }

    fn read(&mut self, reading: &Reading) -> Result<Read> {
        let name = reading.found.name();
        let file = self.files[name];
        let is_same = |id: &&ModelId| self.held.get(id).is_some_and(|held| held.1 == file.state);
        if let Some(same) = reading.unless.iter().find(is_same) {
            return Ok(Read::Unchanged(*same));
        }
        if file.is_broken || !file.is_there {
            return Err(Error::precondition(name));
        }
        let before = self.held.insert(reading.id, (name.to_owned(), file.state));
        assert!(before.is_none(), "a number is used again");
        Ok(Read::New(Arc::new(Description {
            id: reading.id,
            name: name.to_owned(),
            version: "1".to_owned(),
            kind: BatchKind::Batched,
            takes: Takes::Anything,
            inputs: Vec::new(),
            outputs: Vec::new(),
            legs: [Role::Main].into(),
            express: false,
            empty: Empty::Allowed,
            has_versions: false,
            unproven_rows: None,
        })))
    }
}

fn check(lookup: &Lookup) -> Result<()> {
    match is_denied(lookup) {
        true => Err(Error::invalid("denied")),
        false => Ok(()),
    }
}

/// The loader's thread, a step at a time.
#[derive(Default)]
pub(super) struct SimLoader {
    /// Whether it keeps the turn of a lookup that it has found, as the real one does but where it cannot.
    keeps_turns: bool,
    waiting: VecDeque<(ReplyTo, u64, Job)>,
    going_on: VecDeque<(u64, Job)>,
    at_hand: Option<(u64, Job)>,
    pub(super) kept: Option<u64>,
    pub(super) answers: VecDeque<(u64, Answer)>,
}

impl SimLoader {
    pub(super) fn new(keeps_turns: bool) -> SimLoader {
        SimLoader {
            keeps_turns,
            ..SimLoader::default()
        }
    }

    pub(super) fn ask(&mut self, client: ReplyTo, ticket: u64, job: Job) {
        self.waiting.push_back((client, ticket, job));
    }

    pub(super) fn go_on(&mut self, ticket: u64, job: Option<Job>) {
        if self.kept == Some(ticket) {
            self.kept = None;
        }
        self.going_on.extend(job.map(|job| (ticket, job)));
    }

    pub(super) fn withdraw(&mut self, client: ReplyTo, tickets: &[u64]) -> Vec<u64> {
        assert!(tickets.is_sorted());
        let mut gone = Vec::new();
        self.waiting.retain(|(its, ticket, _)| {
            let goes = *its == client && tickets.binary_search(ticket).is_ok();
            if goes {
                gone.push(*ticket);
            }
            !goes
        });
        gone
    }

    pub(super) fn can_begin(&self) -> bool {
        let may_take = self.kept.is_none() && !self.waiting.is_empty();
        self.at_hand.is_none() && (may_take || !self.going_on.is_empty())
    }

    pub(super) fn begin(&mut self, random: &mut Random) {
        self.at_hand = self.going_on.pop_front().or_else(|| {
            let at = random.below(self.waiting.len() as u64) as usize;
            let (_, ticket, job) = self.waiting.remove(at)?;
            Some((ticket, job))
        });
    }

    pub(super) fn can_end(&self) -> bool {
        self.at_hand.is_some()
    }

    pub(super) fn end(&mut self, folder: &mut Folder) {
        if let Some((ticket, job)) = self.at_hand.take() {
            let answer = folder.run(&job);
            if self.keeps_turns && matches!(answer, Answer::Found(_)) {
                self.kept = Some(ticket);
            }
            self.answers.push_back((ticket, answer));
        }
    }

    /// What it was asked and has not answered, or nobody has heard the answer of.
    pub(super) fn tickets(&self) -> BTreeSet<u64> {
        let waiting = self.waiting.iter().map(|(_, ticket, _)| *ticket);
        let going_on = self.going_on.iter().map(|(ticket, _)| *ticket);
        let answered = self.answers.iter().map(|(ticket, _)| *ticket);
        let at_hand = self.at_hand.iter().map(|(ticket, _)| *ticket);
        let all = waiting.chain(going_on).chain(answered);
        all.chain(at_hand).collect()
    }

    /// Models that were read, and of which the catalog has not heard.
    pub(super) fn unheard(&self) -> BTreeSet<ModelId> {
        let read = |(_, answer): &(u64, Answer)| match answer {
            Answer::Read(Ok(Read::New(description))) => Some(description.id),
            _ => None,
        };
        self.answers.iter().filter_map(read).collect()
    }
}

/// What a worker says.
pub(super) enum Word {
    Opened(ModelId, Option<Error>),
    Down,
}

/// A worker, as far as models are concerned.
#[derive(Default)]
pub(super) struct SimWorker {
    to_open: VecDeque<ModelId>,
    pub(super) says: VecDeque<Word>,
    /// It drops what it is told until its end was heard.
    pub(super) is_down: bool,
}

impl SimWorker {
    pub(super) fn tell(&mut self, model: ModelId) {
        if !self.is_down {
            self.to_open.push_back(model);
        }
    }

    pub(super) fn can_open(&self) -> bool {
        !self.to_open.is_empty()
    }

    pub(super) fn open(&mut self, folder: &Folder, random: &mut Random) {
        let Some(model) = self.to_open.pop_front() else {
            return;
        };
        let error = match folder.held.contains_key(&model) {
            true if random.one_in(6) => Some(Error::precondition("no memory")),
            true => None,
            false => Some(Error::not_found("it was forgotten")),
        };
        self.says.push_back(Word::Opened(model, error));
    }

    pub(super) fn die(&mut self) {
        self.to_open.clear();
        self.is_down = true;
        self.says.push_back(Word::Down);
    }
}
