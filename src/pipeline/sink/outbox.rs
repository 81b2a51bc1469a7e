//! Answers on their way to clients: sent without blocking, counted until they have left, bounded for each client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use zmq::Socket;

use crate::frames;
use crate::message::ReplyTo;

/// Answers of fewer bytes are not counted one by one: the socket's high-water mark bounds how many there are.
const UNCOUNTED_BYTES: u64 = 4096;
/// Answers that wait for a client whose connection takes no more right now.
const MAX_BACKLOG: usize = 65_536;
/// How soon a full connection is tried again. libzmq does not tell when one of a ROUTER's connections has room.
const RETRY: Duration = Duration::from_millis(2);

const SWEEP: usize = 64;

/// A client that has more than small change outstanding.
#[derive(Default)]
struct Account {
    /// Bytes handed to the socket and not yet sent.
    leaving: Arc<AtomicU64>,
    backlog: VecDeque<(Vec<Bytes>, u64)>,
    backlog_bytes: u64,
}

impl Account {
    fn bytes(&self) -> u64 {
        self.backlog_bytes + self.leaving.load(Ordering::Relaxed)
    }

    fn is_settled(&self) -> bool {
        self.bytes() == 0 && self.backlog.is_empty()
    }
}

/// The last frame of an answer; when libzmq lets go of it, the answer has left.
struct Leaving {
    frame: Bytes,
    bytes: u64,
    account: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Leaving {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Everything on its way out.
#[derive(Default)]
pub(super) struct Outbox {
    accounts: HashMap<ReplyTo, Account>,
    /// Clients with a backlog.
    waiting: Vec<ReplyTo>,
    /// Accounts are looked through for settled ones when there are more than this, and than [`SWEEP`].
    sweep_at: usize,
}

enum Attempt {
    Sent,
    Full,
    Gone,
}

impl Outbox {
    /// Bytes that wait for a client or are on their way to it.
    pub(super) fn bytes(&self, reply: ReplyTo) -> u64 {
        self.accounts.get(&reply).map_or(0, Account::bytes)
    }

    /// Sends an answer, or keeps it if the client's connection is full. False if the client is gone, or has let too
    /// many answers wait.
    pub(super) fn send(&mut self, router: &mut Socket, reply: ReplyTo, frames: Vec<Bytes>) -> bool {
        // All of it: headers and errors are held as long as rows are.
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        let waits = self
            .accounts
            .get(&reply)
            .is_some_and(|a| !a.backlog.is_empty());
        if !waits {
            match self.attempt(router, reply, &frames, bytes) {
                Attempt::Sent => return true,
                Attempt::Full => {}
                Attempt::Gone => {
                    self.drop_client(reply);
                    return false;
                }
            }
        }
        let account = self.accounts.entry(reply).or_default();
        if account.backlog.len() >= MAX_BACKLOG {
            self.drop_client(reply);
            return false;
        }
        if account.backlog.is_empty() {
            self.waiting.push(reply);
        }
        account.backlog_bytes += bytes;
        account.backlog.push_back((frames, bytes));
        true
    }

    fn attempt(
        &mut self,
        router: &mut Socket,
        reply: ReplyTo,
        frames: &[Bytes],
        bytes: u64,
    ) -> Attempt {
        let identity = Bytes::copy_from_slice(&reply.0);
        let all = std::iter::once(identity).chain(frames.iter().cloned());
        let sent = if bytes < UNCOUNTED_BYTES {
            frames::send(router, all, zmq::DONTWAIT)
        } else {
            let account = self.accounts.entry(reply).or_default();
            account.leaving.fetch_add(bytes, Ordering::Relaxed);
            let last = Bytes::from_owner(Leaving {
                frame: frames.last().cloned().unwrap_or_default(),
                bytes,
                account: account.leaving.clone(),
            });
            frames::send_tracked(router, all.take(frames.len()), last, zmq::DONTWAIT)
        };
        match sent {
            Ok(()) => Attempt::Sent,
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => Attempt::Full,
            Err(_) => Attempt::Gone,
        }
    }

    /// Forgets a client that is gone. What it left in the socket counts itself off.
    fn drop_client(&mut self, reply: ReplyTo) {
        self.accounts.remove(&reply);
        self.waiting.retain(|waiting| *waiting != reply);
    }

    /// When to call [`Outbox::flush`], if something waits or an account may be settled.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(RETRY)
    }

    /// Tries again what waits. Returns the clients that turned out to be gone.
    pub(super) fn flush(&mut self, router: &mut Socket) -> Vec<ReplyTo> {
        let mut gone = Vec::new();
        for reply in std::mem::take(&mut self.waiting) {
            while let Some(account) = self.accounts.get_mut(&reply) {
                let Some((frames, bytes)) = account.backlog.pop_front() else {
                    break;
                };
                account.backlog_bytes -= bytes;
                match self.attempt(router, reply, &frames, bytes) {
                    Attempt::Sent => {}
                    Attempt::Full => {
                        let account = self.accounts.entry(reply).or_default();
                        account.backlog_bytes += bytes;
                        account.backlog.push_front((frames, bytes));
                        self.waiting.push(reply);
                        break;
                    }
                    Attempt::Gone => {
                        self.accounts.remove(&reply);
                        gone.push(reply);
                        break;
                    }
                }
            }
        }
        if self.accounts.len() > self.sweep_at.max(SWEEP) {
            self.accounts.retain(|_, account| !account.is_settled());
            self.sweep_at = SWEEP.max(2 * self.accounts.len());
        }
        gone
    }
}
