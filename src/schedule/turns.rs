//! Whose turn it is: clients take turns by the time that they were given, however much each has waiting.
//!
//! This is fair queueing by start tags (SFQ, Goyal et al. 1996). Each client has an account of the time it was given, and the turn is the
//! client's whose account is lowest. Who comes starts where the others are: nobody saves up turns by staying away, and
//! nobody loses an account by going for a moment while others wait.
//!
//! A client without an account is new, as a flow is in FQ-CoDel (RFC 8290, section 4.2), and every other turn is a new
//! client's. So what it brings is in the next chunk or the one after, however many others have a backlog; and sessions
//! that are opened one after another, to be new each time, get no more than every other turn.
//!
//! Every operation takes the logarithm of the number of clients at most.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use crate::message::ReplyTo;
use foldhash::HashMap;

/// Accounts are alike within this: then who has waited longest goes first, so that groups have the time to gather.
const ROUND_US: u64 = 4_000;
/// No account is so much above the lowest: a chunk that took far longer than usual holds its client up this long.
const MOST_AHEAD_US: u64 = 1_000_000;
/// Accounts of clients that do not wait are looked through when there are so many, and twice as many as waiting clients.
const MANY_AWAY: usize = 4096;

/// What waits of a client, by number, in turn.
#[derive(Debug, Default)]
enum Ring {
    #[default]
    Empty,
    /// As it is most of the time.
    One(u64),
    Many(Box<Many>),
}

#[derive(Debug)]
struct Many {
    keys: BTreeSet<u64>,
    last: u64,
}

impl Ring {
    fn is_empty(&self) -> bool {
        matches!(self, Ring::Empty)
    }

    fn insert(&mut self, key: u64) {
        match self {
            Ring::Empty => *self = Ring::One(key),
            Ring::One(one) if *one == key => {}
            Ring::One(one) => {
                let (keys, last) = (BTreeSet::from([*one, key]), 0);
                *self = Ring::Many(Box::new(Many { keys, last }));
            }
            Ring::Many(many) => {
                many.keys.insert(key);
            }
        }
    }

    fn remove(&mut self, key: u64) {
        let is_last = match self {
            Ring::Empty => false,
            Ring::One(one) => *one == key,
            Ring::Many(many) => many.keys.remove(&key) && many.keys.is_empty(),
        };
        if is_last {
            *self = Ring::Empty;
        }
    }

    fn next(&self) -> Option<u64> {
        match self {
            Ring::Empty => None,
            Ring::One(one) => Some(*one),
            Ring::Many(many) => {
                let behind = many.keys.range((Excluded(many.last), Unbounded)).next();
                behind.or_else(|| many.keys.first()).copied()
            }
        }
    }

    fn had_turn(&mut self, key: u64) {
        if let Ring::Many(many) = self {
            many.last = key;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It waits, and has no account.
    New,
    /// It waits, and has an account.
    Old,
    /// Nothing of it waits.
    Away,
}

#[derive(Debug)]
struct Client {
    place: Place,
    /// Time charged to this client; at or below the lowest waiting account it counts as zero.
    given_us: u64,
    /// Who began to wait first, or had no turn for longest, goes first among the new and where accounts are alike.
    number: u64,
    waiting: Ring,
}

/// The clients that wait, and the keys of what waits of each: groups in the small lane, requests in bulk.
#[derive(Debug, Default)]
pub(super) struct Turns {
    clients: HashMap<ReplyTo, Client>,
    new: BTreeMap<u64, ReplyTo>,
    old: BTreeMap<(u64, u64), ReplyTo>,
    /// The round of the old client that had the last turn: the lowest.
    round: u64,
    /// The highest round there was.
    last_round: u64,
    numbers: u64,
    new_was_last: bool,
}

/// Whether a client has more waiting of what it was just given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Waits,
    Nothing,
}

impl Client {
    /// Its place among the old: accounts that are alike are of one round.
    fn order(&self) -> (u64, u64) {
        (self.given_us / ROUND_US, self.number)
    }
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty()
    }

    /// Something of a client waits. It may be known already.
    pub(super) fn add(&mut self, client: ReplyTo, key: u64) {
        if self.clients.len() >= MANY_AWAY {
            self.forget_away();
        }
        let entry = self.clients.entry(client).or_insert(Client {
            place: Place::Away,
            given_us: 0,
            number: 0,
            waiting: Ring::Empty,
        });
        entry.waiting.insert(key);
        if entry.place != Place::Away {
            return;
        }
        self.numbers += 1;
        entry.number = self.numbers;
        if entry.given_us / ROUND_US > self.round {
            entry.place = Place::Old;
            self.old.insert(entry.order(), client);
        } else {
            entry.place = Place::New;
            self.new.insert(entry.number, client);
        }
    }

    /// That does not wait any more: it was closed.
    pub(super) fn remove(&mut self, client: ReplyTo, key: u64) {
        let Some(entry) = self.clients.get_mut(&client) else {
            return;
        };
        entry.waiting.remove(key);
        if entry.waiting.is_empty() {
            match std::mem::replace(&mut entry.place, Place::Away) {
                Place::New => self.new.remove(&entry.number),
                Place::Old => self.old.remove(&entry.order()),
                Place::Away => None,
            };
            self.settle();
        }
    }

    /// Once nobody waits, nobody is owed anything: every account is none.
    fn settle(&mut self) {
        if self.is_empty() {
            self.round = self.last_round;
        }
    }

    /// Forgets accounts that make no difference, and the others too if there are many.
    fn forget_away(&mut self) {
        let waiting = self.new.len() + self.old.len();
        if self.clients.len() < MANY_AWAY.max(2 * waiting) {
            return;
        }
        let round = self.round;
        let waits = |client: &Client| client.place != Place::Away;
        self.clients
            .retain(|_, client| waits(client) || client.given_us / ROUND_US > round);
        if self.clients.len() - waiting > MANY_AWAY / 2 {
            self.clients.retain(|_, client| waits(client));
        }
        self.clients.shrink_to(2 * MANY_AWAY);
    }

    /// The client whose turn it is, and the key whose turn it is among its own. The turn counts as taken.
    pub(super) fn next(&mut self) -> Option<(ReplyTo, u64)> {
        let new = self.new.first_key_value().map(|(_, client)| *client);
        let old = self.old.first_key_value();
        let client = match (new, old) {
            (Some(new), old) if old.is_none() || !self.new_was_last => {
                self.new_was_last = true;
                new
            }
            (_, Some(((round, _), old))) => {
                self.new_was_last = false;
                self.round = self.round.max(*round);
                *old
            }
            _ => return None,
        };
        let key = self.clients.get(&client)?.waiting.next()?;
        Some((client, key))
    }

    /// A client that waits was given so much time for what has that key.
    pub(super) fn charge(&mut self, client: ReplyTo, key: u64, us: u64, rest: Rest) {
        let Some(entry) = self.clients.get_mut(&client) else {
            return;
        };
        match entry.place {
            Place::New => self.new.remove(&entry.number),
            Place::Old => self.old.remove(&entry.order()),
            Place::Away => None,
        };
        // Nothing is free: otherwise a client with a fast model would have every turn.
        let lowest_us = self.round * ROUND_US;
        let given_us = entry.given_us.max(lowest_us) + us.max(1);
        entry.given_us = given_us.min(lowest_us + MOST_AHEAD_US);
        self.last_round = self.last_round.max(entry.given_us / ROUND_US);
        match rest {
            Rest::Waits => entry.waiting.had_turn(key),
            Rest::Nothing => entry.waiting.remove(key),
        }
        if entry.waiting.is_empty() {
            entry.place = Place::Away;
            self.settle();
        } else {
            entry.place = Place::Old;
            self.numbers += 1;
            entry.number = self.numbers;
            self.old.insert(entry.order(), client);
        }
    }

    /// Keys of what waits, and clients that wait.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let keys = self.clients.values().map(|client| match &client.waiting {
            Ring::Empty => 0,
            Ring::One(_) => 1,
            Ring::Many(many) => many.keys.len(),
        });
        self.new.len() + self.old.len() + keys.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u64) -> ReplyTo {
        ReplyTo(u128::from(number).to_be_bytes())
    }

    fn number_of(client: ReplyTo) -> u64 {
        u128::from_be_bytes(client.0) as u64
    }

    /// The clients that get the next turns, each for so long, all of them with more waiting.
    fn turns(turns: &mut Turns, count: usize, us: impl Fn(ReplyTo) -> u64) -> Vec<ReplyTo> {
        let turn = |_| {
            let (client, key) = turns.next().unwrap();
            turns.charge(client, key, us(client), Rest::Waits);
            client
        };
        (0..count).map(turn).collect()
    }

    #[test]
    fn clients_with_slow_and_fast_models_get_the_same_time() {
        let mut all = Turns::default();
        let (slow, fast) = (client(1), client(2));
        all.add(slow, 1);
        all.add(fast, 2);
        let of = turns(&mut all, 1100, |c| if c == slow { 1000 } else { 100 });
        let slow_turns = of.iter().filter(|c| **c == slow).count();
        assert!((95..=105).contains(&slow_turns), "{slow_turns}");
    }

    #[test]
    fn what_waits_of_one_client_takes_turns_too() {
        let mut all = Turns::default();
        for key in [1, 5, 9] {
            all.add(client(1), key);
        }
        let mut keys = Vec::new();
        for _ in 0..5 {
            let (client, key) = all.next().unwrap();
            all.charge(client, key, 10, Rest::Waits);
            keys.push(key);
        }
        all.remove(client(1), 9);
        keys.push(all.next().unwrap().1);
        assert_eq!(keys, [1, 5, 9, 1, 5, 1]);
    }

    #[test]
    fn a_new_client_has_the_next_turn_or_the_one_after_among_thousands() {
        let mut all = Turns::default();
        for number in 0..5000 {
            all.add(client(number), number);
        }
        // Each has had a turn.
        turns(&mut all, 12_000, |_| 100);
        for honest in 10_000..10_050 {
            all.add(client(honest), honest);
            let next = turns(&mut all, 2, |_| 100);
            assert!(next.contains(&client(honest)));
            all.remove(client(honest), honest);
        }
    }

    #[test]
    fn sessions_opened_one_after_another_get_no_more_than_every_other_turn() {
        let mut all = Turns::default();
        all.add(client(0), 0);
        turns(&mut all, 1, |_| 100);
        let mut patient = 0;
        for number in 1..=1000 {
            all.add(client(number), number);
            let next = turns(&mut all, 1, |_| 100);
            patient += usize::from(next[0] == client(0));
            // It leaves when it had its turn.
            if next[0] != client(0) {
                all.remove(next[0], number_of(next[0]));
            }
        }
        assert!(patient >= 490, "{patient} of 1000");
    }

    #[test]
    fn going_for_a_moment_makes_nobody_new() {
        let mut all = Turns::default();
        let (stays, comes_and_goes) = (client(1), client(2));
        all.add(stays, 1);
        let mut given = [0, 0];
        for _ in 0..1000 {
            all.add(comes_and_goes, 2);
            let (client, key) = all.next().unwrap();
            if client == comes_and_goes {
                all.charge(client, key, 100, Rest::Nothing);
                given[1] += 1;
            } else {
                all.charge(client, key, 100, Rest::Waits);
                all.remove(comes_and_goes, 2);
                given[0] += 1;
            }
        }
        assert!((450..=550).contains(&given[0]), "{given:?}");
    }

    #[test]
    fn an_outlier_does_not_shut_its_client_out() {
        let mut all = Turns::default();
        all.add(client(1), 1);
        all.add(client(2), 2);
        all.next();
        all.charge(client(1), 1, 1 << 40, Rest::Waits);
        let of = turns(&mut all, 10_100, |_| 100);
        assert!(of.contains(&client(1)));
    }

    #[test]
    fn clients_that_left_leave_nothing_behind() {
        let mut all = Turns::default();
        all.add(client(0), 0);
        turns(&mut all, 1, |_| 100);
        for number in 1..20_000 {
            all.add(client(number), number);
            all.charge(client(number), number, 500_000, Rest::Nothing);
            assert!(all.clients.len() <= MANY_AWAY);
        }
        all.remove(client(0), 0);
        assert_eq!(all.kept(), 0);
    }
}
