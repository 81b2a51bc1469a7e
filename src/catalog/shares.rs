//! How much each client has of what is bounded, so that one that asks without end leaves room for the others.

use std::collections::HashMap;
use std::hash::Hash;

use crate::error::Error;

/// So many things, of so many bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

/// The most of something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What it is, in the plural, for messages.
    pub(crate) what: &'static str,
    pub(crate) of_all: Amount,
    pub(crate) of_one: Amount,
}

/// What each client has, and all have together.
pub(crate) struct Shares<C> {
    clients: HashMap<C, Amount>,
    all: Amount,
}

impl<C> Default for Shares<C> {
    fn default() -> Shares<C> {
        Shares {
            clients: HashMap::new(),
            all: Amount::default(),
        }
    }
}

impl<C: Clone + Eq + Hash> Shares<C> {
    pub(crate) fn all(&self) -> Amount {
        self.all
    }

    pub(crate) fn of(&self, client: &C) -> Amount {
        self.clients.get(client).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, client: &C, bytes: u64) {
        let own = self.clients.entry(client.clone()).or_default();
        for amount in [own, &mut self.all] {
            amount.count += 1;
            amount.bytes += bytes;
        }
    }

    /// Takes back what was added.
    pub(crate) fn remove(&mut self, client: &C, bytes: u64) {
        let Some(own) = self.clients.get_mut(client) else {
            return;
        };
        for amount in [&mut *own, &mut self.all] {
            amount.count = amount.count.saturating_sub(1);
            amount.bytes = amount.bytes.saturating_sub(bytes);
        }
        if own.count == 0 {
            self.clients.remove(client);
        }
    }

    /// Whether a client may have one more of so many bytes. Besides the bounds: nobody has more than what is left free,
    /// so one alone gets half of all, and those who come later always find room.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, saying what to do.
    pub(crate) fn check(
        &self,
        client: &C,
        bytes: u64,
        bounds: &Bounds,
    ) -> std::result::Result<(), Error> {
        let (own, one, all) = (self.of(client), bounds.of_one, bounds.of_all);
        let what = bounds.what;
        // The first is taken whatever its size, if there is room for it at all.
        let own_is_full = own.count >= one.count || own.bytes + bytes > one.bytes;
        if own.count > 0 && own_is_full {
            return Err(Error::exhausted(format!(
                "{} {what} of this client are open, {} bytes, and one client may have {} and {} bytes; wait for some \
                 of the answers, then go on",
                own.count, own.bytes, one.count, one.bytes
            )));
        }
        let free = Amount {
            count: all.count.saturating_sub(self.all.count),
            bytes: all.bytes.saturating_sub(self.all.bytes),
        };
        if own.count >= free.count || own.bytes + bytes > free.bytes {
            return Err(Error::exhausted(format!(
                "{} {what} of all clients are open, {} bytes, and this server takes {} and {} bytes, of which nobody \
                 gets more than what is free; wait for answers, or try later",
                self.all.count, self.all.bytes, all.count, all.bytes
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    const BOUNDS: Bounds = Bounds {
        what: "things",
        of_all: Amount {
            count: 1000,
            bytes: 100_000,
        },
        of_one: Amount {
            count: 400,
            bytes: 40_000,
        },
    };

    /// Takes until it is refused: how many.
    fn fill(shares: &mut Shares<u32>, client: u32, bytes: u64) -> usize {
        for taken in 0.. {
            match shares.check(&client, bytes, &BOUNDS) {
                Ok(()) => shares.add(&client, bytes),
                Err(error) => {
                    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
                    assert!(error.message().contains("wait for"), "{error}");
                    return taken;
                }
            }
        }
        0
    }

    #[test]
    fn whatever_one_client_asks_another_finds_room() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, 0, 1), BOUNDS.of_one.count);
        assert_eq!(fill(&mut shares, 1, 1), 300, "half of what was free");
        for client in 2..7 {
            assert!(fill(&mut shares, client, 1) > 0);
        }
        assert!(shares.all().count <= BOUNDS.of_all.count);
    }

    #[test]
    fn bytes_are_shared_as_numbers_are() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, 0, 1_000), 40);
        assert_eq!(fill(&mut shares, 1, 1_000), 30);
        // One that is larger than a share, and one that is larger than all.
        assert!(shares.check(&2, 20_000, &BOUNDS).is_ok());
        assert!(shares.check(&2, 100_000, &BOUNDS).is_err());
    }

    #[test]
    fn what_was_added_and_removed_leaves_nothing_behind() {
        let mut shares = Shares::default();
        for round in 0..3 {
            for client in 0..1_000 {
                shares.add(&client, client + round);
            }
            for client in 0..1_000 {
                shares.remove(&client, client + round);
                shares.remove(&client, client + round); // it has none: no other's is taken
            }
        }
        assert_eq!(shares.all(), Amount::default());
        assert!(shares.clients.is_empty());
    }
}
