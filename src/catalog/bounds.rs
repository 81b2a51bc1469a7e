//! How much a client may have of what waits, so that one that asks without end leaves room for the others.

use crate::error::{Error, Result};
use crate::message::ReplyTo;
use crate::shares::{Amount, Shares};

/// The most of something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What it is, in the plural, for messages.
    pub(crate) what: &'static str,
    pub(crate) of_all: Amount,
    pub(crate) of_one: Amount,
}

impl Bounds {
    /// Whether a client may have one more of so many bytes. Besides the bounds: nobody has more than what is left free,
    /// so one alone gets half of all, and those who come later always find room.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, saying what to do.
    pub(crate) fn check(&self, held: &Shares, client: ReplyTo, bytes: u64) -> Result<()> {
        let (own, one, all) = (held.of(client), self.of_one, self.of_all);
        let (what, held) = (self.what, held.all());
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
            count: all.count.saturating_sub(held.count),
            bytes: all.bytes.saturating_sub(held.bytes),
        };
        if own.count >= free.count || own.bytes + bytes > free.bytes {
            return Err(Error::exhausted(format!(
                "{} {what} of all clients are open, {} bytes, and this server takes {} and {} bytes, of which nobody \
                 gets more than what is free; wait for answers, or try later",
                held.count, held.bytes, all.count, all.bytes
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
}
