//! Whether a client may add to what it holds of the queue.
//!
//! The bounds are the server's. Within them a client may hold a multiple of what stays free (the dynamic threshold of
//! Choudhury and Hahne, 1998): a lone client gets most of the queue, k clients that want all they can get settle at equal
//! shares, and some room always stays for one that is new. Nobody counts clients for that. A client that holds nothing
//! is refused only where a bound itself is reached.

use super::Limits;
use crate::error::{Error, Result};
use crate::message::ReplyTo;
use crate::shares::{Amount, Shares};

/// Requests of a client to those that still fit: alone it may have 7/8 of the queue, and each of k has 7/(7k+1).
const REQUESTS_TO_FREE: usize = 7;
/// Bytes of a client to those that stay free: alone it may have 3/4 of the queue. The quarter that stays is, by default,
/// as much as the largest request.
const BYTES_TO_FREE: u64 = 3;

/// Whether a request of so many `bytes` fits beside all that is `held` for clients, in the queue and where requests wait
/// for a model.
pub(super) fn check_bounds(limits: &Limits, held: Amount, bytes: u64) -> Result<()> {
    if held.count >= limits.max_requests {
        return Err(Error::exhausted(format!(
            "{} requests are queued, the most that this server takes (--max-queue-requests); try later",
            held.count
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
    beside: Amount,
) -> Result<()> {
    let sum = |a: Amount, b: Amount| Amount {
        count: a.count + b.count,
        bytes: a.bytes.saturating_add(b.bytes),
    };
    let held = sum(sum(queued.all(), parked.all()), beside);
    check_bounds(limits, held, bytes)?;
    let own = sum(queued.of(client), parked.of(client));
    let free = limits.max_requests.saturating_sub(held.count);
    if own.count > 0 && own.count >= free.saturating_mul(REQUESTS_TO_FREE) {
        return Err(Error::exhausted(format!(
            "this client has {} requests queued and {free} more fit (--max-queue-requests): the rest is kept for others; \
             wait for answers first",
            own.count
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_names_the_flag_that_bounds_it() {
        let limits = Limits {
            workers: 1,
            extra_workers: 0,
            express_workers: 0,
            max_batch_rows: 1,
            priority_rows: 1,
            prefetch: 1,
            max_chunk_us: None,
            batch_delay_us: 0,
            max_requests: 2,
            max_bytes: 10,
        };
        let held = |count, bytes| Amount { count, bytes };
        let refused = |held| check_bounds(&limits, held, 5).unwrap_err().to_string();
        assert!(refused(held(2, 0)).contains("(--max-queue-requests)"));
        assert!(refused(held(1, 9)).contains("(--max-queue-bytes)"));
    }
}
