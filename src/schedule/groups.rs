//! Small requests that wait, in groups that may run as one batch, and by client within each group.
//!
//! The turn goes by client ([`Turns`]); it says which group is next, and the batch is filled up from that group by one
//! request per client in turn. So a client with thousands of requests fills what others leave of a batch, and keeps
//! nobody's request out of it.
//!
//! A group takes part once it has company enough, or has waited for it as long as it should. What is left of it then
//! does not wait again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::turns::{Rest, Turns};
use crate::message::{ReplyTo, Serial};
use foldhash::HashMap;

/// A request that waits: whose it is, and which.
type Key = (ReplyTo, Serial);

#[derive(Debug, Default)]
struct Group {
    /// The rows of each request, by client, oldest first.
    requests: BTreeMap<Key, usize>,
    rows: usize,
    /// Whose request filled up a batch last.
    last: ReplyTo,
    /// Until when it waits for company; `None`: it takes part in the turns.
    due_us: Option<u64>,
}

impl Group {
    fn oldest_of(&self, client: ReplyTo) -> Option<(Key, usize)> {
        let from = (Included((client, Serial(0))), Unbounded);
        let (key, rows) = self.requests.range(from).next()?;
        (key.0 == client).then_some((*key, *rows))
    }

    /// The oldest request of the next client behind this one.
    fn oldest_behind(&self, client: ReplyTo) -> Option<(Key, usize)> {
        let from = (Excluded((client, Serial(u64::MAX))), Unbounded);
        let (key, rows) = self.requests.range(from).next()?;
        Some((*key, *rows))
    }

    /// The oldest request of the client that follows, round and round until it is behind `end` once more.
    fn oldest_of_next(&self, client: ReplyTo, end: ReplyTo, lap: &mut Lap) -> Option<(Key, usize)> {
        if *lap == Lap::First {
            if let Some(found) = self.oldest_behind(client) {
                return Some(found);
            }
            *lap = Lap::Second;
            let (key, rows) = self.requests.first_key_value()?;
            return (key.0 <= end).then_some((*key, *rows));
        }
        self.oldest_behind(client).filter(|((c, _), _)| *c <= end)
    }

    /// Takes the first client's oldest request, whatever its size, then one of each other client, going on where the
    /// last batch stopped, then one more of each that has any: until the next would make more than `most` rows.
    fn fill(&mut self, first: ReplyTo, most: usize, taken: &mut Taken) {
        let Some((key, rows)) = self.oldest_of(first) else {
            return;
        };
        self.requests.remove(&key);
        taken.add(key, rows);
        let (end, mut lap) = (self.last, Lap::First);
        while let Some((key, rows)) = self.oldest_of_next(self.last, end, &mut lap) {
            let (client, _) = key;
            if client != first {
                if taken.rows + rows > most {
                    return;
                }
                self.requests.remove(&key);
                taken.add(key, rows);
            }
            self.last = client;
        }
        let mut again: VecDeque<usize> = (0..taken.clients.len()).collect();
        while let Some(index) = again.pop_front() {
            let (client, _) = taken.clients[index];
            let Some((key, rows)) = self.oldest_of(client) else {
                continue;
            };
            if taken.rows + rows > most {
                return;
            }
            self.requests.remove(&key);
            taken.add_to(index, key, rows);
            again.push_back(index);
        }
    }

    fn rest_of(&self, client: ReplyTo) -> Rest {
        match self.oldest_of(client) {
            Some(_) => Rest::Waits,
            None => Rest::Nothing,
        }
    }
}

/// From the client behind the last one to the end, and from the start to that one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lap {
    First,
    Second,
}

/// A group whose turn it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub client: ReplyTo,
    pub group: u64,
    /// The client's oldest request in the group.
    pub oldest: Serial,
    /// Rows that wait in the group.
    pub rows: usize,
}

/// What was taken out of a group to run together.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub requests: Vec<(Serial, usize)>,
    pub rows: usize,
    /// The rows of each client.
    clients: Vec<(ReplyTo, usize)>,
}

impl Taken {
    /// Another request of the client that was added last, or of a client of which there is none yet.
    fn add(&mut self, key: Key, rows: usize) {
        if self.clients.last().is_none_or(|(last, _)| *last != key.0) {
            self.clients.push((key.0, 0));
        }
        self.add_to(self.clients.len() - 1, key, rows);
    }

    fn add_to(&mut self, index: usize, (_, serial): Key, rows: usize) {
        self.rows += rows;
        self.requests.push((serial, rows));
        self.clients[index].1 += rows;
    }
}

/// All groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// How long a group waits for company.
    delay_us: u64,
    /// Company enough.
    full_rows: usize,
    groups: HashMap<u64, Group>,
    /// Of all groups together.
    rows: usize,
    turns: Turns,
    /// The groups that wait for company, by when they stop.
    due: BTreeSet<(u64, u64)>,
}

impl Groups {
    pub(super) fn new(delay_us: u64, full_rows: usize) -> Groups {
        Groups {
            delay_us,
            full_rows,
            groups: HashMap::default(),
            rows: 0,
            turns: Turns::default(),
            due: BTreeSet::new(),
        }
    }

    pub(super) fn push(
        &mut self,
        id: u64,
        client: ReplyTo,
        (serial, rows): (Serial, usize),
        arrived_us: u64,
    ) {
        let due_us = arrived_us.saturating_add(self.delay_us);
        let group = self.groups.entry(id).or_insert_with(|| {
            let due_us = (self.delay_us > 0).then_some(due_us);
            self.due.extend(due_us.map(|due_us| (due_us, id)));
            Group {
                due_us,
                ..Group::default()
            }
        });
        self.rows += rows;
        group.rows += rows;
        group.requests.insert((client, serial), rows);
        let waits_until = group.due_us;
        match waits_until {
            None => self.turns.add(client, id),
            Some(_) if group.rows >= self.full_rows => self.stop_waiting(id),
            // It came earlier, and waited for its model.
            Some(latest) if due_us < latest => {
                group.due_us = Some(due_us);
                self.due.remove(&(latest, id));
                self.due.insert((due_us, id));
            }
            Some(_) => {}
        }
    }

    /// Whether one waits that has company enough, or has waited for it.
    pub(super) fn has_turn(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Rows that wait, in all groups.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// When the next group stops waiting for company.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.due.first().map(|(due_us, _)| *due_us)
    }

    fn stop_waiting(&mut self, id: u64) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        if let Some(due_us) = group.due_us.take() {
            self.due.remove(&(due_us, id));
            for (client, _) in group.requests.keys() {
                self.turns.add(*client, id);
            }
        }
    }

    /// Groups that have waited for company for long enough take part from now on.
    pub(super) fn end_waiting(&mut self, now_us: u64) {
        while let Some((due_us, id)) = self.due.first().copied()
            && due_us <= now_us
        {
            self.stop_waiting(id);
        }
    }

    /// Whose turn it is, and for which group. The turn counts as taken.
    pub(super) fn next(&mut self) -> Option<Turn> {
        let (client, id) = self.turns.next()?;
        let group = self.groups.get(&id)?;
        let ((_, oldest), _) = group.oldest_of(client)?;
        Some(Turn {
            client,
            group: id,
            oldest,
            rows: group.rows,
        })
    }

    /// Takes requests out of the group whose turn it is: at least one, and no more once they have `most` rows together.
    /// Their clients' accounts grow by `row_us` for each row.
    pub(super) fn take(&mut self, turn: Turn, most: usize, row_us: f64) -> Taken {
        let mut taken = Taken::default();
        let Some(group) = self.groups.get_mut(&turn.group) else {
            return taken;
        };
        if group.rows <= most {
            for (key, rows) in std::mem::take(&mut group.requests) {
                taken.add(key, rows);
            }
        } else {
            group.fill(turn.client, most, &mut taken);
        }
        group.rows -= taken.rows;
        self.rows -= taken.rows;
        for (client, rows) in &taken.clients {
            let us = (*rows as f64 * row_us) as u64;
            let rest = group.rest_of(*client);
            self.turns.charge(*client, turn.group, us, rest);
        }
        if group.requests.is_empty() {
            self.groups.remove(&turn.group);
        }
        taken
    }

    /// Takes out a waiting request that was closed.
    pub(super) fn close(&mut self, id: u64, client: ReplyTo, serial: Serial) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let Some(rows) = group.requests.remove(&(client, serial)) else {
            return;
        };
        group.rows -= rows;
        self.rows -= rows;
        if group.rest_of(client) == Rest::Nothing {
            self.turns.remove(client, id);
        }
        if group.requests.is_empty() {
            if let Some(due_us) = group.due_us {
                self.due.remove(&(due_us, id));
            }
            self.groups.remove(&id);
        }
    }

    /// Numbers that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let requests = self.groups.values().map(|group| group.requests.len());
        requests.sum::<usize>() + self.turns.kept() + self.due.len()
    }
}
