//! The requests and questions that wait for a model to be described, within bounds, and for whom the loader was asked.

use std::sync::Arc;

use foldhash::HashMap;

use crate::deadlines::Deadlines;
use crate::error::Result;
use crate::message::{ReplyTo, RequestId, Serial};
use crate::model::Lookup;
use crate::shares::{Amount, Bounds, Most, Shares};

/// Questions about models that are not described yet. What they name counts with what the loader is asked.
const QUESTIONS: Bounds = Bounds {
    what: "questions about models",
    of_all: Most {
        count: 4096,
        bytes: Some(4096 * QUESTION_BYTES),
    },
    of_one: Most {
        count: 256,
        bytes: Some(256 * QUESTION_BYTES),
    },
};
pub(crate) const QUESTION_BYTES: u64 = 256;

/// So many more numbers of requests that have ended than of open ones may wait for models.
const MIN_ENDED: usize = 1024;

/// Who asked for something that takes a while, and for which number the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) client: ReplyTo,
    pub(crate) id: RequestId,
}

/// A request that waits for its model to be described.
#[derive(Debug)]
pub(crate) struct Parked<P> {
    pub(crate) arrival: Arrival,
    pub(crate) body: P,
}

/// A request that there is room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) serial: Serial,
    pub(crate) reply: ReplyTo,
    pub(crate) request: RequestId,
    pub(crate) arrived_us: u64,
    pub(crate) deadline_us: Option<u64>,
    /// What is held for it.
    pub(crate) bytes: u64,
}

impl Arrival {
    /// Who sent it.
    pub(crate) fn asker(&self) -> Asker {
        Asker {
            client: self.reply,
            id: self.request,
        }
    }
}

/// Those who wait for what a lookup leads to.
#[derive(Default)]
struct Queue {
    /// Requests and questions, in the order in which they came.
    serials: Vec<Serial>,
    /// What the loader was asked for each client that has any of them, so that each waits for its own turn at most.
    tickets: HashMap<ReplyTo, u64>,
}

/// The requests and questions that wait.
pub(super) struct Waiting<P> {
    queues: HashMap<Arc<Lookup>, Queue>,
    parked: HashMap<Serial, Parked<P>>,
    /// What is held of `parked`, by client.
    parked_shares: Shares,
    questions: HashMap<Serial, Asker>,
    question_shares: Shares,
    /// Numbers in `queues` of requests and questions that have ended.
    ended: usize,
    deadlines: Deadlines,
}

impl<P> Default for Waiting<P> {
    fn default() -> Waiting<P> {
        Waiting {
            queues: HashMap::default(),
            parked: HashMap::default(),
            parked_shares: Shares::default(),
            questions: HashMap::default(),
            question_shares: Shares::default(),
            ended: 0,
            deadlines: Deadlines::default(),
        }
    }
}

impl<P> Waiting<P> {
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn serials(&self) -> Vec<Serial> {
        self.parked.keys().copied().collect()
    }

    /// Takes out a parked request that ends before its model is described, if it is one.
    pub(super) fn give_up(&mut self, serial: Serial) -> Option<Parked<P>> {
        let parked = self.unpark(serial)?;
        self.note_ended();
        Some(parked)
    }

    /// A request or a question that is still in `queues` has ended.
    fn note_ended(&mut self) {
        self.ended += 1;
        if self.ended > self.parked.len() + self.questions.len() + MIN_ENDED {
            // A loader may be busy for long, and clients come and go meanwhile.
            let (parked, questions) = (&self.parked, &self.questions);
            for Queue { serials, .. } in self.queues.values_mut() {
                serials.retain(|s| parked.contains_key(s) || questions.contains_key(s));
                serials.shrink_to(2 * serials.len());
            }
            self.ended = 0;
        }
    }

    /// Those who waited for a lookup and still do, in the order in which they came, and the tickets that the loader has
    /// for them.
    pub(super) fn take_waiting(&mut self, lookup: &Lookup) -> (Vec<Serial>, HashMap<ReplyTo, u64>) {
        let Queue {
            mut serials,
            tickets,
        } = self.queues.remove(lookup).unwrap_or_default();
        let before = serials.len();
        // Others were cancelled, or their deadline passed.
        serials.retain(|s| self.parked.contains_key(s) || self.questions.contains_key(s));
        self.ended = self.ended.saturating_sub(before - serials.len());
        (serials, tickets)
    }

    pub(super) fn unpark(&mut self, serial: Serial) -> Option<Parked<P>> {
        let parked = self.parked.remove(&serial)?;
        let Arrival { reply, bytes, .. } = parked.arrival;
        self.parked_shares.remove(reply, bytes);
        Some(parked)
    }

    pub(super) fn take_question(&mut self, serial: Serial) -> Option<Asker> {
        let asker = self.questions.remove(&serial)?;
        self.question_shares.remove(asker.client, QUESTION_BYTES);
        Some(asker)
    }

    /// Nobody is there any more to hear the answers.
    pub(super) fn forget_questions(&mut self, client: &ReplyTo) {
        if self.question_shares.of(*client).count == 0 {
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
        let Some(queue) = self.queues.get_mut(lookup) else {
            return;
        };
        if queue.tickets.get(client) == Some(&ticket) {
            queue.tickets.remove(client);
        }
        if queue.tickets.is_empty() {
            // Whoever waits has a ticket: these have ended.
            let ended = queue.serials.len();
            self.queues.remove(lookup);
            self.ended = self.ended.saturating_sub(ended);
        }
    }

    /// A question waits as requests do, in the bounds of its own.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many of this client's or of all do.
    pub(super) fn check_question(&self, client: &ReplyTo) -> Result<()> {
        QUESTIONS.check(&self.question_shares, *client, QUESTION_BYTES)
    }

    pub(super) fn park_question(&mut self, serial: Serial, asker: Asker) {
        self.question_shares.add(asker.client, QUESTION_BYTES);
        self.questions.insert(serial, asker);
    }

    /// A lookup as it is kept, and whether the loader has been asked for that client.
    pub(super) fn waited_for(&self, client: &ReplyTo, lookup: Arc<Lookup>) -> (Arc<Lookup>, bool) {
        match self.queues.get_key_value(&lookup) {
            Some((kept, queue)) => (kept.clone(), queue.tickets.contains_key(client)),
            None => (lookup, false),
        }
    }

    /// The loader was asked for that client.
    pub(super) fn asked(&mut self, client: &ReplyTo, lookup: &Arc<Lookup>, ticket: u64) {
        let queue = self.queues.entry(lookup.clone()).or_default();
        queue.tickets.insert(*client, ticket);
    }

    /// What is held of parked requests, by client.
    pub(super) fn parked_shares(&self) -> &Shares {
        &self.parked_shares
    }

    /// What is held of all questions.
    pub(super) fn questions_held(&self) -> Amount {
        self.question_shares.all()
    }

    /// A request waits for what a lookup leads to; [`Waiting::wait`] says for which.
    pub(super) fn park(&mut self, parked: Parked<P>) {
        let Arrival {
            serial,
            reply,
            deadline_us,
            bytes,
            ..
        } = parked.arrival;
        if let Some(deadline) = deadline_us {
            self.deadlines.push(deadline, serial);
        }
        self.parked_shares.add(reply, bytes);
        self.parked.insert(serial, parked);
    }

    /// A request or a question of a client for which the loader was asked.
    pub(super) fn wait(&mut self, lookup: Arc<Lookup>, serial: Serial) {
        self.queues.entry(lookup).or_default().serials.push(serial);
    }

    /// Whether anybody who waits for a lookup has not ended since.
    pub(super) fn is_waited_for(&self, lookup: &Lookup) -> bool {
        let waits = |s: &Serial| self.parked.contains_key(s) || self.questions.contains_key(s);
        let queue = self.queues.get(lookup);
        queue.is_some_and(|queue| queue.serials.iter().any(waits))
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.deadlines.due_us()
    }

    /// Parked requests whose deadline has passed.
    pub(super) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        let parked = &self.parked;
        let waits = |serial| parked.contains_key(&serial);
        self.deadlines.expired(now_us, parked.len(), waits)
    }

    /// Whether nothing at all is kept.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let held = self.parked.len() + self.questions.len() + self.queues.len();
        let counted = self.parked_shares.all().count + self.question_shares.all().count;
        held + counted + self.ended == 0
    }

    /// Everybody who waits.
    #[cfg(test)]
    pub(super) fn everybody(&self) -> Vec<Serial> {
        self.parked
            .keys()
            .chain(self.questions.keys())
            .copied()
            .collect()
    }

    /// The tickets of each queue in which somebody waits.
    #[cfg(test)]
    pub(super) fn tickets(&self) -> Vec<Vec<u64>> {
        let queues = self.queues.values();
        queues
            .map(|queue| queue.tickets.values().copied().collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many wait here, and their bytes besides what they name.
    fn held(waiting: &Waiting<()>) -> (usize, u64) {
        let (parked, questions) = (waiting.parked_shares.all(), waiting.question_shares.all());
        (
            parked.count + questions.count,
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

    fn park(waiting: &mut Waiting<()>, reply: ReplyTo, lookup: &Lookup, serial: u64) {
        waiting.park(Parked {
            arrival: Arrival {
                serial: Serial(serial),
                reply,
                request: RequestId(serial),
                arrived_us: 0,
                deadline_us: None,
                bytes: 1,
            },
            body: (),
        });
        wait(waiting, reply, lookup, serial);
    }

    fn ask(waiting: &mut Waiting<()>, reply: ReplyTo, lookup: &Lookup, serial: u64) {
        let asker = Asker {
            client: reply,
            id: RequestId(serial),
        };
        waiting.park_question(Serial(serial), asker);
        wait(waiting, reply, lookup, serial);
    }

    /// The ticket of a client is its first byte.
    fn wait(waiting: &mut Waiting<()>, client: ReplyTo, lookup: &Lookup, serial: u64) {
        let (lookup, asked) = waiting.waited_for(&client, Arc::new(lookup.clone()));
        if !asked {
            waiting.asked(&client, &lookup, client.0[0].into());
        }
        waiting.wait(lookup, Serial(serial));
    }

    #[test]
    fn parked_requests_that_have_ended_leave_no_numbers_behind() {
        let mut waiting = Waiting::<()>::default();
        let lookup = named("m");
        park(&mut waiting, client(1), &lookup, 0);
        for serial in 1..10_000 {
            park(&mut waiting, client(1), &lookup, serial);
            assert!(waiting.give_up(Serial(serial)).is_some());
        }
        assert!(waiting.queues[&lookup].serials.len() <= 2 * MIN_ENDED);
        let (serials, _) = waiting.take_waiting(&lookup);
        assert_eq!((serials, waiting.ended), (vec![Serial(0)], 0));
        assert!(waiting.unpark(Serial(0)).is_some());
        assert_eq!(held(&waiting), (0, 0));
    }

    #[test]
    fn questions_of_a_client_that_is_gone_leave_nothing_behind() {
        let mut waiting = Waiting::<()>::default();
        for serial in 0..100 {
            ask(
                &mut waiting,
                client(1),
                &named(&format!("{serial}")),
                serial,
            );
        }
        ask(&mut waiting, client(2), &named("0"), 100);
        park(&mut waiting, client(2), &named("1"), 101);
        assert_eq!(held(&waiting).1, 101 * QUESTION_BYTES + 1);
        waiting.forget_questions(&client(1));
        for name in 0..100 {
            waiting.not_asked(&client(1), 1, &named(&format!("{name}")));
        }
        assert_eq!(held(&waiting).1, QUESTION_BYTES + 1);
        assert_eq!((waiting.queues.len(), waiting.ended), (2, 2));
        for (name, serial) in [("0", 100), ("1", 101)] {
            let (serials, tickets) = waiting.take_waiting(&named(name));
            assert_eq!(serials, [Serial(serial)]);
            assert_eq!(tickets.len(), 1);
        }
        assert_eq!(waiting.ended, 0);
    }
}
