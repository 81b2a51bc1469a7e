//! Small requests that wait, in groups that may run as one batch, and by client within each group.
//!
//! The turn goes by client ([`Turns`]); it says which group is next, and the batch is filled up from that group by one
//! request per client in turn. So a client with thousands of requests fills what others leave of a batch, and keeps
//! nobody's request out of it.
//!
//! A group takes part once it has company enough, or has waited for it as long as it should. What is left of it then
//! does not wait again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use super::turns::Turns;
use crate::message::{ReplyTo, Serial};

#[derive(Debug, Default)]
struct Group {
    /// The rows of each request, oldest first, by client.
    clients: BTreeMap<ReplyTo, BTreeMap<Serial, usize>>,
    rows: usize,
    /// Whose request filled up a batch last.
    last: ReplyTo,
    /// Until when it waits for company; `None`: it takes part in the turns.
    due_us: Option<u64>,
}

impl Group {
    fn after(&self, client: ReplyTo) -> Option<ReplyTo> {
        let behind = self.clients.range((Excluded(client), Unbounded)).next();
        let (next, _) = behind.or_else(|| self.clients.first_key_value())?;
        Some(*next)
    }
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
    /// Takes a client's oldest request if there is one and it has no more than `room` rows.
    fn take(&mut self, group: &mut Group, client: ReplyTo, room: usize) -> Took {
        let requests = group.clients.get_mut(&client);
        let Some(oldest) = requests.and_then(|requests| requests.first_entry()) else {
            return Took::Nothing;
        };
        if *oldest.get() > room {
            return Took::TooLarge;
        }
        let (serial, rows) = oldest.remove_entry();
        group.rows -= rows;
        self.rows += rows;
        self.requests.push((serial, rows));
        Took::Rows(rows)
    }
}

enum Took {
    Rows(usize),
    Nothing,
    TooLarge,
}

/// All groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// How long a group waits for company.
    delay_us: u64,
    /// Company enough.
    full_rows: usize,
    groups: HashMap<u64, Group>,
    turns: Turns,
    /// The groups that wait for company, by when they stop.
    due: BTreeSet<(u64, u64)>,
}

impl Groups {
    pub(super) fn new(delay_us: u64, full_rows: usize) -> Groups {
        Groups {
            delay_us,
            full_rows,
            groups: HashMap::new(),
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
        group.rows += rows;
        let requests = group.clients.entry(client).or_default();
        let first = requests.is_empty();
        requests.insert(serial, rows);
        let waits_until = group.due_us;
        match waits_until {
            None if first => self.turns.add(client, id),
            None => {}
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
            for client in group.clients.keys() {
                self.turns.add(*client, id);
            }
        }
    }

    /// Whose turn it is, and for which group. The turn counts as taken.
    pub(super) fn next(&mut self, now_us: u64) -> Option<Turn> {
        while let Some((due_us, id)) = self.due.first().copied()
            && due_us <= now_us
        {
            self.stop_waiting(id);
        }
        let (client, id) = self.turns.next()?;
        let group = self.groups.get(&id)?;
        let (oldest, _) = group.clients.get(&client)?.first_key_value()?;
        Some(Turn {
            client,
            group: id,
            oldest: *oldest,
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
        // The first is taken whatever its size; then one request per client, going on where the last batch stopped.
        let (mut client, mut room) = (turn.client, usize::MAX);
        while let Took::Rows(rows) = taken.take(group, client, room) {
            taken.clients.push((client, rows));
            if client != turn.client {
                group.last = client;
            }
            room = most.saturating_sub(taken.rows);
            let everyone = taken.clients.len() == group.clients.len();
            let next = group.after(group.last).filter(|c| *c != turn.client);
            match next.or_else(|| group.after(turn.client)) {
                Some(next) if room > 0 && !everyone => client = next,
                _ => break,
            }
        }
        // Everyone had one and there is room: one more each, as long as they have any.
        if taken.clients.len() == group.clients.len() && group.rows > 0 {
            let mut again: VecDeque<usize> = (0..taken.clients.len()).collect();
            while let Some(index) = again.pop_front() {
                let (client, _) = taken.clients[index];
                match taken.take(group, client, room) {
                    Took::Rows(rows) => {
                        taken.clients[index].1 += rows;
                        room = most.saturating_sub(taken.rows);
                        again.push_back(index);
                    }
                    Took::Nothing => {}
                    Took::TooLarge => break,
                }
            }
        }
        for (client, rows) in &taken.clients {
            let us = (*rows as f64 * row_us) as u64;
            self.turns.charge(*client, turn.group, us);
            self.settle(turn.group, *client);
        }
        taken
    }

    /// Takes out a waiting request that was closed.
    pub(super) fn close(&mut self, id: u64, client: ReplyTo, serial: Serial) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let requests = group.clients.get_mut(&client);
        if let Some(rows) = requests.and_then(|requests| requests.remove(&serial)) {
            group.rows -= rows;
            self.settle(id, client);
        }
    }

    /// Forgets a client in a group, and the group, if nothing of theirs waits any more.
    fn settle(&mut self, id: u64, client: ReplyTo) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        if group.clients.get(&client).is_none_or(|r| !r.is_empty()) {
            return;
        }
        group.clients.remove(&client);
        self.turns.remove(client, id);
        if group.clients.is_empty() {
            if let Some(due_us) = group.due_us {
                self.due.remove(&(due_us, id));
            }
            self.groups.remove(&id);
        }
    }

    /// Numbers that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let groups = self.groups.values();
        let requests = groups.flat_map(|group| group.clients.values());
        requests.map(BTreeMap::len).sum::<usize>() + self.turns.kept() + self.due.len()
    }
}
