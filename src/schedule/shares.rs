//! Who holds how much of the queue, and whether a client may add to it.
//!
//! The bounds are the server's. Within them a client may hold a multiple of what stays free (the dynamic threshold of
//! Choudhury and Hahne, 1998): a lone client gets most of the queue, k clients that want all they can get settle at equal
//! shares, and some room always stays for one that is new. Nobody counts clients for that. A client that holds nothing
//! is refused only where a bound itself is reached.

use std::collections::hash_map::Entry;

use super::Limits;
use crate::error::{Error, Result};
use crate::message::ReplyTo;
use foldhash::HashMap;

/// Requests of a client to those that still fit: alone it may have 7/8 of the queue, and each of k has 7/(7k+1).
const REQUESTS_TO_FREE: usize = 7;
/// Bytes of a client to those that stay free: alone it may have 3/4 of the queue. The quarter that stays is, by default,
/// as much as the largest request.
const BYTES_TO_FREE: u64 = 3;

/// What is held for a client, or for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub requests: usize,
    pub bytes: u64,
}

/// What is held for each client that has something waiting.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: Share,
    clients: HashMap<ReplyTo, Share>,
}

impl Shares {
    /// What is held in all.
    pub(crate) fn all(&self) -> Share {
        self.all
    }

    fn of(&self, client: ReplyTo) -> Share {
        self.clients.get(&client).copied().unwrap_or_default()
    }

    /// Another request of a client is held.
    pub(crate) fn add(&mut self, client: ReplyTo, bytes: u64) {
        for share in [&mut self.all, self.clients.entry(client).or_default()] {
            share.requests += 1;
            share.bytes += bytes;
        }
    }

    /// A request that was added has gone, with its bytes.
    pub(crate) fn remove(&mut self, client: ReplyTo, bytes: u64) {
        self.take(client, Share { requests: 1, bytes });
    }

    /// A request that was added has ended. Its bytes are held until [`Shares::free`].
    pub(super) fn end(&mut self, client: ReplyTo) {
        self.take(
            client,
            Share {
                requests: 1,
                bytes: 0,
            },
        );
    }

    /// The bytes of a request that has ended have gone.
    pub(super) fn free(&mut self, client: ReplyTo, bytes: u64) {
        self.take(client, Share { requests: 0, bytes });
    }

    fn take(&mut self, client: ReplyTo, gone: Share) {
        let Entry::Occupied(mut own) = self.clients.entry(client) else {
            return; // nothing of it was added
        };
        for share in [&mut self.all, own.get_mut()] {
            share.requests -= gone.requests;
            share.bytes -= gone.bytes;
        }
        if *own.get() == Share::default() {
            own.remove();
        }
    }
}

/// Whether a request of so many bytes fits beside all that is `queued` and `parked`.
pub(super) fn check_bounds(limits: &Limits, held: Share, bytes: u64) -> Result<()> {
    if held.requests >= limits.max_requests {
        return Err(Error::exhausted(format!(
            "{} requests are queued, the most that this server takes; try later",
            held.requests
        )));
    }
    // A lone request is taken whatever its size: max_request_bytes bounds it.
    if held.bytes > 0 && held.bytes.saturating_add(bytes) > limits.max_bytes {
        return Err(Error::exhausted(format!(
            "{} bytes are queued and the request has {bytes} more; the server holds at most {} (--max-queue-bytes); try later",
            held.bytes, limits.max_bytes
        )));
    }
    Ok(())
}

/// As [`check_bounds`], and whether the client may add to what it holds in both places. What is `beside` is nobody's.
pub(super) fn check_room(
    limits: &Limits,
    client: ReplyTo,
    bytes: u64,
    [queued, parked]: [&Shares; 2],
    beside: Share,
) -> Result<()> {
    let sum = |a: Share, b: Share| Share {
        requests: a.requests + b.requests,
        bytes: a.bytes.saturating_add(b.bytes),
    };
    let held = sum(sum(queued.all, parked.all), beside);
    check_bounds(limits, held, bytes)?;
    let own = sum(queued.of(client), parked.of(client));
    let free = limits.max_requests.saturating_sub(held.requests);
    if own.requests > 0 && own.requests >= free.saturating_mul(REQUESTS_TO_FREE) {
        return Err(Error::exhausted(format!(
            "this client has {} requests queued and {free} more fit (--max-queue-requests): the rest is kept for others; \
             wait for answers first",
            own.requests
        )));
    }
    let stays = limits.max_bytes.saturating_sub(held.bytes + bytes);
    let would_hold = own.bytes.saturating_add(bytes);
    if own.bytes > 0 && would_hold > stays.saturating_mul(BYTES_TO_FREE) {
        return Err(Error::exhausted(format!(
            "this client has {} bytes queued and the request has {bytes} more, of {} in all (--max-queue-bytes): \
             the rest is kept for others; wait for answers first",
            own.bytes, limits.max_bytes
        )));
    }
    Ok(())
}
