//! How much each client has of what is bounded, and all of them together. The bounds themselves are where the things are:
//! `schedule/shares.rs` for the queue, `catalog/bounds.rs` for what else waits.

use std::collections::hash_map::Entry;

use foldhash::HashMap;

use crate::message::ReplyTo;

/// So many things, of so many bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

/// What each client has, and all have together.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: Amount,
    clients: HashMap<ReplyTo, Amount>,
}

impl Shares {
    /// What all clients have.
    pub(crate) fn all(&self) -> Amount {
        self.all
    }

    pub(crate) fn of(&self, client: ReplyTo) -> Amount {
        self.clients.get(&client).copied().unwrap_or_default()
    }

    /// A client has one more, of so many bytes.
    pub(crate) fn add(&mut self, client: ReplyTo, bytes: u64) {
        for amount in [&mut self.all, self.clients.entry(client).or_default()] {
            amount.count += 1;
            amount.bytes += bytes;
        }
    }

    /// One that was added has gone, with its bytes.
    pub(crate) fn remove(&mut self, client: ReplyTo, bytes: u64) {
        self.take(client, Amount { count: 1, bytes });
    }

    /// One that was added has ended. Its bytes are held until [`Shares::free`].
    pub(crate) fn end(&mut self, client: ReplyTo) {
        self.take(client, Amount { count: 1, bytes: 0 });
    }

    /// The bytes of one that has ended have gone.
    pub(crate) fn free(&mut self, client: ReplyTo, bytes: u64) {
        self.take(client, Amount { count: 0, bytes });
    }

    fn take(&mut self, client: ReplyTo, gone: Amount) {
        let Entry::Occupied(mut own) = self.clients.entry(client) else {
            return; // nothing of it was added
        };
        for amount in [&mut self.all, own.get_mut()] {
            amount.count -= gone.count;
            amount.bytes -= gone.bytes;
        }
        if *own.get() == Amount::default() {
            own.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_removed_leaves_nothing_behind() {
        let mut shares = Shares::default();
        let client = |number: u8| ReplyTo([number; 16]);
        for round in 0..3 {
            for number in 0..=u8::MAX {
                shares.add(client(number), u64::from(number) + round);
            }
            for number in 0..=u8::MAX {
                let bytes = u64::from(number) + round;
                shares.end(client(number));
                shares.free(client(number), bytes);
                shares.remove(client(number), bytes); // it has none: no other's is taken
            }
        }
        assert_eq!(shares.all(), Amount::default());
        assert!(shares.clients.is_empty());
    }
}
