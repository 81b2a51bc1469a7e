//! Whose turn it is: clients take turns by the time that they were given, however much each has waiting.
//!
//! This is fair queueing by start tags. Each client has an account of the time it was given, and the turn is the
//! client's whose account is lowest. Who comes starts where the others are: nobody saves up turns by staying away, and
//! nobody gets rid of an account by going for a moment.
//!
//! A client without an account is new, as a flow is in FQ-CoDel (RFC 8290, section 4.2), and every other turn is a new
//! client's. So what it brings is in the next chunk or the one after, however many others have a backlog; and sessions
//! that are opened one after another, to be new each time, get no more than every other turn.
//!
//! Every operation takes the logarithm of the number of clients. Nothing stays of what was taken out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use crate::message::ReplyTo;

/// No account is so much above the lowest: a chunk that took far longer than usual holds its client up this long.
const MOST_AHEAD_US: u64 = 1_000_000;
/// Accounts that are kept of clients with nothing waiting; beyond it the lowest are forgotten first.
const MAX_RESTING: usize = 4096;

/// What waits of a client, by number, in turn.
#[derive(Debug, Default)]
struct Ring {
    keys: BTreeSet<u64>,
    last: u64,
}

impl Ring {
    fn next(&self) -> Option<u64> {
        let behind = self.keys.range((Excluded(self.last), Unbounded)).next();
        behind.or_else(|| self.keys.first()).copied()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It waits, and has no account yet.
    New,
    /// It waits, and has an account.
    Old,
    /// Nothing of it waits, and its account is above the lowest of those that wait.
    Resting,
}

#[derive(Debug)]
struct Client {
    /// Who came first goes first where accounts are alike.
    number: u64,
    given_us: u64,
    place: Place,
    waiting: Ring,
}

/// The clients that wait, and the keys of what waits of each: groups in the small lane, requests in bulk.
#[derive(Debug, Default)]
pub(super) struct Turns {
    clients: HashMap<ReplyTo, Client>,
    new: BTreeMap<u64, ReplyTo>,
    old: BTreeMap<(u64, u64), ReplyTo>,
    resting: BTreeMap<(u64, u64), ReplyTo>,
    /// The account of the old client that had the last turn: the lowest.
    now_us: u64,
    numbers: u64,
    new_was_last: bool,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty()
    }

    /// Something of a client waits.
    pub(super) fn add(&mut self, client: ReplyTo, key: u64) {
        let numbers = &mut self.numbers;
        let entry = self.clients.entry(client).or_insert_with(|| {
            *numbers += 1;
            self.new.insert(*numbers, client);
            Client {
                number: *numbers,
                given_us: self.now_us,
                place: Place::New,
                waiting: Ring::default(),
            }
        });
        entry.waiting.keys.insert(key);
        if entry.place == Place::Resting {
            entry.place = Place::Old;
            let account = (entry.given_us, entry.number);
            self.resting.remove(&account);
            self.old.insert(account, client);
        }
    }

    /// That does not wait any more: all of it was given out or closed.
    pub(super) fn remove(&mut self, client: ReplyTo, key: u64) {
        let Some(entry) = self.clients.get_mut(&client) else {
            return;
        };
        if !entry.waiting.keys.remove(&key) || !entry.waiting.keys.is_empty() {
            return;
        }
        let account = (entry.given_us, entry.number);
        match entry.place {
            Place::New => {
                self.new.remove(&entry.number);
                self.clients.remove(&client);
            }
            Place::Old => {
                entry.place = Place::Resting;
                self.old.remove(&account);
                self.resting.insert(account, client);
            }
            Place::Resting => {}
        }
        if self.is_empty() {
            // Nobody waits: nobody is owed anything.
            while self.forget_lowest() {}
        } else if self.resting.len() > MAX_RESTING {
            self.forget_lowest();
        }
    }

    fn forget_lowest(&mut self) -> bool {
        let lowest = self.resting.pop_first();
        lowest.is_some_and(|(_, client)| self.clients.remove(&client).is_some())
    }

    /// The client whose turn it is, and the key whose turn it is among its own. The turn counts as taken.
    pub(super) fn next(&mut self) -> Option<(ReplyTo, u64)> {
        let new = self.new.first_key_value().map(|(_, client)| *client);
        let old = self.old.first_key_value();
        let client = match (new, old) {
            (Some(new), None) => {
                self.new_was_last = true;
                new
            }
            (Some(new), Some(_)) if !self.new_was_last => {
                self.new_was_last = true;
                new
            }
            (_, Some(((given_us, _), old))) => {
                let (given_us, old) = (*given_us, *old);
                self.new_was_last = false;
                self.advance(given_us);
                old
            }
            (None, None) => return None,
        };
        let key = self.clients.get(&client)?.waiting.next()?;
        Some((client, key))
    }

    /// Accounts that are not above the lowest any more make no difference.
    fn advance(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        while let Some(((given_us, _), _)) = self.resting.first_key_value() {
            if *given_us > self.now_us {
                break;
            }
            self.forget_lowest();
        }
    }

    /// A client that waits was given so much time for what has that key.
    pub(super) fn charge(&mut self, client: ReplyTo, key: u64, us: u64) {
        let Some(entry) = self.clients.get_mut(&client) else {
            return;
        };
        entry.waiting.last = key;
        let before = (entry.given_us, entry.number);
        let from = entry.given_us.max(self.now_us);
        // Nothing is free: otherwise a client with a fast model would have every turn.
        entry.given_us = (from + us.max(1)).min(self.now_us + MOST_AHEAD_US);
        match entry.place {
            Place::New => self.new.remove(&entry.number),
            Place::Old => self.old.remove(&before),
            Place::Resting => self.resting.remove(&before),
        };
        entry.place = Place::Old;
        self.old.insert((entry.given_us, entry.number), client);
    }

    /// Keys and accounts that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let keys = self.clients.values().map(|c| c.waiting.keys.len());
        self.resting.len() + keys.sum::<usize>()
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
            turns.charge(client, key, us(client));
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
            all.charge(client, key, 10);
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
            all.charge(client, key, 100);
            given[usize::from(client == comes_and_goes)] += 1;
            all.remove(comes_and_goes, 2);
        }
        assert!((450..=550).contains(&given[0]), "{given:?}");
    }

    #[test]
    fn an_outlier_does_not_shut_its_client_out() {
        let mut all = Turns::default();
        all.add(client(1), 1);
        all.add(client(2), 2);
        all.next();
        all.charge(client(1), 1, 1 << 40);
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
            all.charge(client(number), number, 500_000);
            all.remove(client(number), number);
        }
        assert!(all.clients.len() <= MAX_RESTING + 1);
        all.remove(client(0), 0);
        assert_eq!((all.clients.len(), all.kept()), (0, 0));
    }
}
