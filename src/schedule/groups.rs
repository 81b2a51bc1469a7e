//! Small requests that wait, in groups that may run as one batch.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::message::Serial;

/// Closed requests may stay in a queue until there are more of them than of open ones, and more than this.
pub(super) const MOST_CLOSED: usize = 64;

#[derive(Debug, Default)]
struct Group {
    waiting: VecDeque<Serial>,
    /// Of those that wait, the closed.
    closed: usize,
    /// Rows of those that are still open.
    rows: usize,
}

/// All groups, in the order of their oldest request.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: HashMap<u64, Group>,
    heads: BTreeMap<Serial, u64>,
}

impl Groups {
    pub(super) fn push(&mut self, id: u64, serial: Serial, rows: usize) {
        let group = self.groups.entry(id).or_default();
        if group.waiting.is_empty() {
            self.heads.insert(serial, id);
        }
        group.waiting.push_back(serial);
        group.rows += rows;
    }

    /// The groups by their oldest request, and how many rows wait in each.
    pub(super) fn oldest(&self) -> impl Iterator<Item = (Serial, u64, usize)> {
        self.heads
            .iter()
            .map(|(head, id)| (*head, *id, self.groups.get(id).map_or(0, |g| g.rows)))
    }

    /// Takes requests off the front of a group: at least one, and no more once they have `most` rows together.
    /// `rows_of` is `None` for those that were closed meanwhile.
    pub(super) fn take(
        &mut self,
        id: u64,
        most: usize,
        rows_of: impl Fn(Serial) -> Option<usize>,
    ) -> Vec<(Serial, usize)> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Vec::new();
        };
        if let Some(head) = group.waiting.front() {
            self.heads.remove(head);
        }
        let mut taken = Vec::with_capacity(group.waiting.len().min(16));
        let mut together = 0;
        while let Some(&serial) = group.waiting.front() {
            if let Some(rows) = rows_of(serial) {
                if !taken.is_empty() && together + rows > most {
                    break;
                }
                together += rows;
                taken.push((serial, rows));
            } else {
                group.closed = group.closed.saturating_sub(1);
            }
            group.waiting.pop_front();
        }
        group.rows -= together;
        self.settle(id, rows_of);
        taken
    }

    /// A waiting request was closed. It goes at once if it is the oldest, else when its turn comes or many others of
    /// the group were closed too.
    pub(super) fn close(
        &mut self,
        id: u64,
        serial: Serial,
        rows: usize,
        rows_of: impl Fn(Serial) -> Option<usize>,
    ) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.rows -= rows;
        group.closed += 1;
        if group.closed > MOST_CLOSED.max(group.waiting.len() / 2) {
            if let Some(head) = group.waiting.front() {
                self.heads.remove(head);
            }
            compact(&mut group.waiting, |serial| rows_of(serial).is_some());
            group.closed = 0;
            self.settle(id, rows_of);
        } else if group.waiting.front() == Some(&serial) {
            self.heads.remove(&serial);
            self.settle(id, rows_of);
        }
    }

    /// Finds the group's new oldest request, behind any that were closed.
    fn settle(&mut self, id: u64, rows_of: impl Fn(Serial) -> Option<usize>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        while let Some(&next) = group.waiting.front() {
            if rows_of(next).is_some() {
                self.heads.insert(next, id);
                return;
            }
            group.waiting.pop_front();
            group.closed = group.closed.saturating_sub(1);
        }
        self.groups.remove(&id);
    }

    /// Numbers that are kept, of open and of closed requests.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.groups.values().map(|group| group.waiting.len()).sum()
    }
}

/// Takes the closed requests out of a queue, and gives back the room that they had.
pub(super) fn compact(waiting: &mut VecDeque<Serial>, is_open: impl Fn(Serial) -> bool) {
    waiting.retain(|serial| is_open(*serial));
    waiting.shrink_to(2 * waiting.len());
}
