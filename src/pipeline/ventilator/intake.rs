//! Who waits for a model to be described, within bounds, and what was learnt: lookups, headers, groups.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::clients::Asker;
use super::known_headers::KnownHeaders;
use super::lookup_cache::LookupCache;
use super::shares::{Amount, Bounds, Shares};
use foldhash::HashMap;
use serde_json::Value;

use crate::error::Result;
use crate::message::{ModelId, ReplyTo, Request, RequestId, Serial};
use crate::model::Description;
use crate::model::Lookup;
use crate::schedule::Shares as QueueShares;
use crate::wire::params::RawParams;

/// Questions about models that are not described yet. What they name counts with what the loader is asked.
const QUESTIONS: Bounds = Bounds {
    what: "questions about models",
    of_all: Amount {
        count: 4096,
        bytes: 4096 * QUESTION_BYTES,
    },
    of_one: Amount {
        count: 256,
        bytes: 256 * QUESTION_BYTES,
    },
};
pub(super) const QUESTION_BYTES: u64 = 256;
/// Different groups that have numbers. When they are forgotten, requests of before and after do not share a batch.
const MAX_GROUPS: usize = 4096;

/// A value of a parameter.
const VALUE_BYTES: u64 = 64;
/// An input besides its bytes.
pub(super) const TENSOR_BYTES: u64 = 256;
/// Of each lookup besides its texts.
const LOOKUP_BYTES: u64 = 128;
/// Longest parameters and dimensions of a group that has a number.
const MAX_GROUP_BYTES: usize = 4096;

/// So many more numbers of requests that have ended than of open ones may wait for models.
const MIN_ENDED: usize = 1024;

/// A request that waits for its model to be described.
pub(super) struct Parked {
    pub(super) arrival: Arrival,
    pub(super) body: Request<RawParams>,
}

/// A request that there is room for.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) serial: Serial,
    pub(super) reply: ReplyTo,
    pub(super) request: RequestId,
    pub(super) arrived_us: u64,
    pub(super) deadline_us: Option<u64>,
    /// What is held for it.
    pub(super) bytes: u64,
}

/// Requests of one group may run in one batch: the same model, parameters and dimensions.
#[derive(Hash, PartialEq, Eq)]
struct GroupKey {
    model: ModelId,
    dims: Vec<usize>,
    params: Box<[u8]>,
}

/// Those who wait for what a lookup leads to.
#[derive(Default)]
struct Waiting {
    /// Requests and questions, in the order in which they came.
    serials: Vec<Serial>,
    /// What the loader was asked for each client that has any of them, so that each waits for its own turn at most.
    tickets: HashMap<ReplyTo, u64>,
}

/// The requests on their way into the queue, the questions about models, and what was learnt about those.
#[derive(Default)]
pub(super) struct Intake {
    known: LookupCache,
    pub(super) headers: KnownHeaders,
    waiting: HashMap<Arc<Lookup>, Waiting>,
    parked: HashMap<Serial, Parked>,
    /// What is held of `parked`, by client.
    parked_shares: QueueShares,
    questions: HashMap<Serial, Asker>,
    question_shares: Shares<ReplyTo>,
    /// Numbers in `waiting` of requests and questions that have ended.
    ended: usize,
    deadlines: BinaryHeap<Reverse<(u64, Serial)>>,
    groups: HashMap<GroupKey, u64>,
    next_group: u64,
}

impl Intake {
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn serials(&self) -> Vec<Serial> {
        self.parked.keys().copied().collect()
    }

    /// Takes out a parked request that ends before its model is described, if it is one.
    pub(super) fn give_up(&mut self, serial: Serial) -> Option<Parked> {
        let parked = self.unpark(serial)?;
        self.note_ended();
        Some(parked)
    }

    /// A request or a question that is still in `waiting` has ended.
    fn note_ended(&mut self) {
        self.ended += 1;
        if self.ended > self.parked.len() + self.questions.len() + MIN_ENDED {
            // A loader may be busy for long, and clients come and go meanwhile.
            let (parked, questions) = (&self.parked, &self.questions);
            for Waiting { serials, .. } in self.waiting.values_mut() {
                serials.retain(|s| parked.contains_key(s) || questions.contains_key(s));
                serials.shrink_to(2 * serials.len());
            }
            self.ended = 0;
        }
    }

    /// Those who waited for a lookup and still do, in the order in which they came, and the tickets that the loader has
    /// for them.
    pub(super) fn take_waiting(&mut self, lookup: &Lookup) -> (Vec<Serial>, HashMap<ReplyTo, u64>) {
        let Waiting {
            mut serials,
            tickets,
        } = self.waiting.remove(lookup).unwrap_or_default();
        let before = serials.len();
        // Others were cancelled, or their deadline passed.
        serials.retain(|s| self.parked.contains_key(s) || self.questions.contains_key(s));
        self.ended = self.ended.saturating_sub(before - serials.len());
        (serials, tickets)
    }

    pub(super) fn unpark(&mut self, serial: Serial) -> Option<Parked> {
        let parked = self.parked.remove(&serial)?;
        let Arrival { reply, bytes, .. } = parked.arrival;
        self.parked_shares.remove(reply, bytes);
        Some(parked)
    }

    pub(super) fn take_question(&mut self, serial: Serial) -> Option<Asker> {
        let asker = self.questions.remove(&serial)?;
        self.question_shares.remove(&asker.client, QUESTION_BYTES);
        Some(asker)
    }

    /// Nobody is there any more to hear the answers.
    pub(super) fn forget_questions(&mut self, client: &ReplyTo) {
        if self.question_shares.of(client).count == 0 {
            return;
        }
        let its = |(serial, asker): (&Serial, &Asker)| (asker.client == *client).then_some(*serial);
        let gone: Vec<Serial> = self.questions.iter().filter_map(its).collect();
        for serial in gone {
            self.take_question(serial);
            self.note_ended();
        }
    }

    /// The loader is not asked for that client any more, of whose requests and questions none is left.
    pub(super) fn not_asked(&mut self, client: &ReplyTo, ticket: u64, lookup: &Lookup) {
        let Some(waiting) = self.waiting.get_mut(lookup) else {
            return;
        };
        if waiting.tickets.get(client) == Some(&ticket) {
            waiting.tickets.remove(client);
        }
        if waiting.tickets.is_empty() {
            // Whoever waits has a ticket: these have ended.
            let ended = waiting.serials.len();
            self.waiting.remove(lookup);
            self.ended = self.ended.saturating_sub(ended);
        }
    }

    /// A question waits as requests do, in the bounds of its own.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many of this client's or of all do.
    pub(super) fn check_question(&self, client: &ReplyTo) -> Result<()> {
        self.question_shares
            .check(client, QUESTION_BYTES, &QUESTIONS)
    }

    pub(super) fn park_question(&mut self, serial: Serial, asker: Asker) {
        self.question_shares.add(&asker.client, QUESTION_BYTES);
        self.questions.insert(serial, asker);
    }

    /// A lookup as it is kept, and whether the loader has been asked for that client.
    pub(super) fn waited_for(&self, client: &ReplyTo, lookup: Lookup) -> (Arc<Lookup>, bool) {
        match self.waiting.get_key_value(&lookup) {
            Some((kept, waiting)) => (kept.clone(), waiting.tickets.contains_key(client)),
            None => (Arc::new(lookup), false),
        }
    }

    /// The loader was asked for that client.
    pub(super) fn asked(&mut self, client: &ReplyTo, lookup: &Arc<Lookup>, ticket: u64) {
        let waiting = self.waiting.entry(lookup.clone()).or_default();
        waiting.tickets.insert(*client, ticket);
    }

    /// What is held of parked requests, by client.
    pub(super) fn parked_shares(&self) -> &QueueShares {
        &self.parked_shares
    }

    /// What is held of all questions.
    pub(super) fn questions_held(&self) -> Amount {
        self.question_shares.all()
    }

    /// A request waits for what a lookup leads to; [`Intake::wait`] says for which.
    pub(super) fn park(&mut self, parked: Parked) {
        let Arrival {
            serial,
            reply,
            deadline_us,
            bytes,
            ..
        } = parked.arrival;
        if let Some(deadline) = deadline_us {
            self.deadlines.push(Reverse((deadline, serial)));
        }
        self.parked_shares.add(reply, bytes);
        self.parked.insert(serial, parked);
    }

    /// A request or a question of a client for which the loader was asked.
    pub(super) fn wait(&mut self, lookup: Arc<Lookup>, serial: Serial) {
        self.waiting.entry(lookup).or_default().serials.push(serial);
    }

    pub(super) fn is_waited_for(&self, lookup: &Lookup) -> bool {
        self.waiting.contains_key(lookup)
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((us, _))| *us)
    }

    /// Parked requests whose deadline has passed.
    pub(super) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        if self.deadlines.len() > 2 * self.parked.len() + 1024 {
            // Behind one that waits long, those that have ended would stay.
            let parked = &self.parked;
            self.deadlines
                .retain(|Reverse((_, serial))| parked.contains_key(serial));
        }
        let mut expired = Vec::new();
        while let Some(Reverse((deadline, serial))) = self.deadlines.peek().copied() {
            let parked = self.parked.contains_key(&serial);
            if parked && deadline > now_us {
                break;
            }
            self.deadlines.pop();
            if parked {
                expired.push(serial);
            }
        }
        expired
    }

    /// The next request with that lookup need not wait for the loader, which has looked it up for that client.
    pub(super) fn learn(
        &mut self,
        client: &ReplyTo,
        lookup: &Arc<Lookup>,
        description: &Arc<Description>,
    ) {
        self.known.insert(client, lookup, description);
        self.headers.learn(lookup, description.id);
    }

    /// A model was unloaded: the next request asks the loader again.
    pub(super) fn forget(&mut self, model: ModelId) {
        self.known.forget(model);
        self.headers.forget(model);
    }

    /// What is known of the model that a lookup leads to, if that was learnt.
    pub(super) fn known(&mut self, lookup: &Lookup) -> Option<&Arc<Description>> {
        self.known.get(lookup)
    }

    /// Parameters are the same if their bytes are.
    pub(super) fn group(&mut self, model: ModelId, dims: Vec<usize>, params: &[u8]) -> u64 {
        if params.len() + size_of_val(&*dims) > MAX_GROUP_BYTES {
            // Too long to be kept in case it comes again: it runs alone.
            self.next_group += 1;
            return self.next_group;
        }
        if self.groups.len() >= MAX_GROUPS {
            self.groups.clear();
            self.headers.clear();
        }
        let key = GroupKey {
            model,
            dims,
            params: params.into(),
        };
        let next = &mut self.next_group;
        *self.groups.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

/// Roughly the memory that a value takes.
fn value_bytes(value: &Value) -> u64 {
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() as u64,
        // Of arrays and maps nothing but that they are is kept: wire/params.rs.
        Value::Array(_) | Value::Object(_) => 0,
    };
    VALUE_BYTES + inner
}

/// Roughly the memory that a lookup takes.
pub(super) fn lookup_bytes(lookup: &Lookup) -> u64 {
    let (texts, values) = lookup.held();
    LOOKUP_BYTES
        + texts.map(|text| text.len() as u64).sum::<u64>()
        + values.map(|v| VALUE_BYTES + value_bytes(v)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many wait here, and their bytes besides what they name.
    fn held(intake: &Intake) -> (usize, u64) {
        let (parked, questions) = (intake.parked_shares.all(), intake.question_shares.all());
        (
            parked.requests + questions.count,
            parked.bytes + questions.bytes,
        )
    }
    use crate::message::Params;

    fn client(number: u8) -> ReplyTo {
        ReplyTo([number; 16])
    }

    fn named(name: &str) -> Lookup {
        Lookup::of(Some(name), &Params::new())
    }

    fn park(intake: &mut Intake, reply: ReplyTo, lookup: &Lookup, serial: u64) {
        intake.park(Parked {
            arrival: Arrival {
                serial: Serial(serial),
                reply,
                request: RequestId(serial),
                arrived_us: 0,
                deadline_us: None,
                bytes: 1,
            },
            body: Request::default(),
        });
        wait(intake, reply, lookup, serial);
    }

    fn ask(intake: &mut Intake, reply: ReplyTo, lookup: &Lookup, serial: u64) {
        let asker = Asker {
            client: reply,
            id: RequestId(serial),
        };
        intake.park_question(Serial(serial), asker);
        wait(intake, reply, lookup, serial);
    }

    /// The ticket of a client is its first byte.
    fn wait(intake: &mut Intake, client: ReplyTo, lookup: &Lookup, serial: u64) {
        let (lookup, asked) = intake.waited_for(&client, lookup.clone());
        if !asked {
            intake.asked(&client, &lookup, client.0[0].into());
        }
        intake.wait(lookup, Serial(serial));
    }

    #[test]
    fn parked_requests_that_have_ended_leave_no_numbers_behind() {
        let mut intake = Intake::default();
        let lookup = named("m");
        park(&mut intake, client(1), &lookup, 0);
        for serial in 1..10_000 {
            park(&mut intake, client(1), &lookup, serial);
            assert!(intake.give_up(Serial(serial)).is_some());
        }
        assert!(intake.waiting[&lookup].serials.len() <= 2 * MIN_ENDED);
        let (serials, _) = intake.take_waiting(&lookup);
        assert_eq!((serials, intake.ended), (vec![Serial(0)], 0));
        assert!(intake.unpark(Serial(0)).is_some());
        assert_eq!(held(&intake), (0, 0));
    }

    #[test]
    fn questions_of_a_client_that_is_gone_leave_nothing_behind() {
        let mut intake = Intake::default();
        for serial in 0..100 {
            ask(&mut intake, client(1), &named(&format!("{serial}")), serial);
        }
        ask(&mut intake, client(2), &named("0"), 100);
        park(&mut intake, client(2), &named("1"), 101);
        assert_eq!(held(&intake).1, 101 * QUESTION_BYTES + 1);
        intake.forget_questions(&client(1));
        for name in 0..100 {
            intake.not_asked(&client(1), 1, &named(&format!("{name}")));
        }
        assert_eq!(held(&intake).1, QUESTION_BYTES + 1);
        assert_eq!((intake.waiting.len(), intake.ended), (2, 2));
        for (name, serial) in [("0", 100), ("1", 101)] {
            let (serials, tickets) = intake.take_waiting(&named(name));
            assert_eq!(serials, [Serial(serial)]);
            assert_eq!(tickets.len(), 1);
        }
        assert_eq!(intake.ended, 0);
    }

    #[test]
    fn long_names_are_not_kept_with_groups() {
        let mut intake = Intake::default();
        let ids = [0, 1].map(|_| intake.group(ModelId(1), vec![7; 100_000], &[]));
        assert_ne!(ids[0], ids[1]);
        assert!(intake.groups.is_empty());
    }
}
