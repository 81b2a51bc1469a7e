//! How much each client has of what is bounded, and all of them together, and whether it may have more. How much that is
//! stands where the things are; the queue has a rule of its own, `schedule/shares.rs`.

use std::collections::hash_map::Entry;
use std::fmt;

use foldhash::HashMap;

use crate::error::{Error, Result};
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

/// The most of something that one client may have, and all together, so that one that asks without end leaves room for the
/// others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What it is, in the plural, for messages.
    pub(crate) what: &'static str,
    pub(crate) of_all: Most,
    pub(crate) of_one: Most,
}

/// The most of something, for one client or for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) count: usize,
    /// `None` for what has no bytes to speak of.
    pub(crate) bytes: Option<u64>,
}

impl Bounds {
    /// Whether a client may have one more of so many `bytes`. Besides the bounds: nobody has more than what is left free,
    /// so one alone gets half of all, and those who come later always find room.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, saying what to do.
    pub(crate) fn check(&self, held: &Shares, client: ReplyTo, bytes: u64) -> Result<()> {
        let (own, one, all) = (held.of(client), self.of_one, self.of_all);
        let (what, held) = (self.what, held.all());
        // The first is taken whatever its size, if there is room for it at all.
        let own_bytes = own.bytes + bytes;
        let own_is_full = own.count >= one.count || one.bytes.is_some_and(|most| own_bytes > most);
        if own.count > 0 && own_is_full {
            return Err(Error::exhausted(format!(
                "{} {what} of this client are open{}, and one client may have {one}; wait for some of the answers, then \
                 go on",
                own.count,
                one.held_bytes(own)
            )));
        }
        let free_count = all.count.saturating_sub(held.count);
        let free_bytes = all.bytes.map(|most| most.saturating_sub(held.bytes));
        if own.count >= free_count || free_bytes.is_some_and(|free| own_bytes > free) {
            return Err(Error::exhausted(format!(
                "{} {what} of all clients are open{}, and this server takes {all}, of which nobody gets more than what is \
                 free; wait for answers, or try later",
                held.count,
                all.held_bytes(held)
            )));
        }
        Ok(())
    }
}

impl Most {
    /// How many bytes are held, for a message, where bytes are bounded.
    fn held_bytes(&self, held: Amount) -> String {
        match self.bytes {
            Some(_) => format!(", {} bytes", held.bytes),
            None => String::new(),
        }
    }
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            Some(bytes) => write!(f, "{} and {bytes} bytes", self.count),
            None => write!(f, "{}", self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    const BOUNDS: Bounds = Bounds {
        what: "things",
        of_all: Most {
            count: 1000,
            bytes: Some(100_000),
        },
        of_one: Most {
            count: 400,
            bytes: Some(40_000),
        },
    };

    fn client(number: u8) -> ReplyTo {
        ReplyTo([number; 16])
    }

    /// Takes until it is refused: how many.
    fn fill(shares: &mut Shares, number: u8, bytes: u64) -> usize {
        for taken in 0.. {
            match BOUNDS.check(shares, client(number), bytes) {
                Ok(()) => shares.add(client(number), bytes),
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
        for number in 2..7 {
            assert!(fill(&mut shares, number, 1) > 0);
        }
        assert!(shares.all().count <= BOUNDS.of_all.count);
    }

    #[test]
    fn bytes_are_shared_as_numbers_are() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, 0, 1_000), 40);
        assert_eq!(fill(&mut shares, 1, 1_000), 30);
        // One that is larger than a share, and one that is larger than all.
        assert!(BOUNDS.check(&shares, client(2), 20_000).is_ok());
        assert!(BOUNDS.check(&shares, client(2), 100_000).is_err());
    }

    #[test]
    fn what_has_no_bytes_is_refused_without_a_word_of_bytes() {
        let most = |count| Most { count, bytes: None };
        let bounds = Bounds {
            what: "confirmations",
            of_all: most(3),
            of_one: most(1),
        };
        let mut shares = Shares::default();
        let mut ask = |number| {
            bounds.check(&shares, client(number), 0)?;
            shares.add(client(number), 0);
            Ok::<(), Error>(())
        };
        ask(0).unwrap();
        let refused = ask(0).unwrap_err();
        assert_eq!(
            refused.message(),
            "1 confirmations of this client are open, and one client may have 1; wait for some of the answers, then go on"
        );
        ask(1).unwrap();
        ask(2).unwrap();
        let refused = ask(3).unwrap_err();
        assert!(
            refused.message().contains("this server takes 3, of which"),
            "{refused}"
        );
        assert!(!refused.message().contains("bytes"), "{refused}");
    }

    #[test]
    fn what_was_added_and_removed_leaves_nothing_behind() {
        let mut shares = Shares::default();
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
