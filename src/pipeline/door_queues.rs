//! What passes between doors, which are clients inside this process, and the pipeline: messages, not frames.
//!
//! ```text
//! Door ── Said ──▶ Doors, one queue ──▶ ventilator        ventilator, sink ── Told ──▶ the door's own queue ──▶ Door
//! ```
//! Both kinds of queue have a descriptor that wakes who polls. It is set once for all that was put in, when whoever puts in
//! has nothing more to add for now: on another core each message would be a wake-up of its own otherwise. And they have
//! bounds: a caller's answers are bounded by `--max-client-bytes` as a session's are, what a door says by [`MAX_SAID`], what
//! it has open by [`MAX_OPEN`], and callers by [`MAX_CALLERS`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::message::{Protocol, ReplyTo, RequestId};
use crate::metrics::ByProtocol;
use crate::waker::Waker;
use crate::wire::client::ClientMessage;
use crate::wire::params::RawParams;
use crate::wire::server::ServerMessage;
use foldhash::HashMap;

/// Messages of all doors that the ventilator has not taken yet.
const MAX_SAID: usize = 65_536;
/// Callers of one door that have requests open or answers waiting.
pub(crate) const MAX_CALLERS: usize = 65_536;
/// Requests and questions of one door whose last answer it has not taken: more than `--max-queue-requests` is by
/// default. Each may have left an error, which no caller's bytes bound.
pub(crate) const MAX_OPEN: usize = 131_072;
/// What an answer takes besides its rows.
const ANSWER_BYTES: u64 = 256;

/// What doors say.
#[derive(Debug)]
pub(crate) enum Said {
    Message(ReplyTo, ClientMessage<RawParams>),
    /// A question that only doors ask.
    Question(ReplyTo, RequestId, Question),
    /// The door was dropped: its callers are gone.
    Closed(u32),
}

/// What is asked of the server as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Sessions ask this too, in the protocol's words.
    Status,
    Metrics,
    Health,
}

/// What a caller is told.
#[derive(Debug)]
pub(crate) struct Told {
    pub caller: u64,
    pub id: RequestId,
    pub message: ServerMessage,
}

/// The doors of a server, and what they have said.
#[derive(Debug)]
pub(crate) struct Doors {
    waker: Waker,
    said: Mutex<Heard>,
    open: Mutex<Open>,
    /// Some door was told something since doors were last woken.
    has_told: AtomicBool,
    /// The server has stopped without waiting for anybody.
    at_once: AtomicBool,
}

/// What waits for the ventilator.
#[derive(Debug, Default)]
struct Heard {
    queue: VecDeque<Said>,
    /// The descriptor can be read.
    is_set: bool,
    /// The server has stopped: nothing is taken any more, and no door is opened.
    over: bool,
}

#[derive(Debug, Default)]
struct Open {
    doors: HashMap<u32, (Protocol, Arc<AnswerQueue>)>,
    last: u32,
}

/// No update can be cut in half, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Doors {
    /// # Errors
    /// `UNAVAILABLE` if no descriptor is left.
    pub(crate) fn new() -> Result<Doors> {
        Ok(Doors {
            waker: Waker::new()?,
            said: Mutex::default(),
            open: Mutex::default(),
            has_told: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
        })
    }

    /// Wakes the ventilator.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// A new door's number, and where its answers come.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the server has stopped, or no descriptor is left.
    pub(crate) fn open(&self, kind: Protocol) -> Result<(u32, Arc<AnswerQueue>)> {
        let answers = Arc::new(AnswerQueue {
            waker: Waker::new()?,
            told: Mutex::default(),
        });
        let mut open = lock(&self.open);
        // Under the lock of the doors, of which `end` tells those that are open.
        if lock(&self.said).over {
            return Err(Error::unavailable("the server has stopped"));
        }
        open.last += 1;
        let number = open.last;
        open.doors.insert(number, (kind, answers.clone()));
        Ok((number, answers))
    }

    /// How many doors of each protocol are open.
    pub(crate) fn count(&self) -> ByProtocol<u64> {
        let mut counts = ByProtocol::default();
        for (kind, _) in lock(&self.open).doors.values() {
            *counts.of_mut(*kind) += 1;
        }
        counts
    }

    /// The door was dropped.
    pub(crate) fn close(&self, door: u32) {
        lock(&self.open).doors.remove(&door);
        lock(&self.said).queue.push_back(Said::Closed(door));
        self.wake();
    }

    /// Queues a message or a question for the ventilator, which takes it when it looks, or at the next
    /// [`Doors::wake`].
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too much waits for it, `UNAVAILABLE` if it has stopped.
    pub(crate) fn say(&self, what: Said) -> Result<()> {
        let mut said = lock(&self.said);
        if said.over {
            return Err(Error::unavailable("the server has stopped"));
        }
        if said.queue.len() >= MAX_SAID {
            return Err(Error::exhausted(format!(
                "{MAX_SAID} messages of doors wait to be read; try later"
            )));
        }
        said.queue.push_back(what);
        Ok(())
    }

    /// Wakes the ventilator if it has not taken all that was said.
    pub(crate) fn wake(&self) {
        let mut said = lock(&self.said);
        if !said.queue.is_empty() && !std::mem::replace(&mut said.is_set, true) {
            // While the queue is locked, or it could come after the ventilator has taken all and cleared it.
            self.waker.wake();
        }
    }

    /// For the ventilator: what was said first.
    pub(crate) fn next(&self) -> Option<Said> {
        let mut said = lock(&self.said);
        let next = said.queue.pop_front();
        // Asked each turn, and mostly in vain: that must not cost a system call.
        if said.queue.is_empty() && std::mem::take(&mut said.is_set) {
            self.waker.clear();
        }
        next
    }

    /// Whether something waits for the ventilator.
    pub(crate) fn has_said(&self) -> bool {
        !lock(&self.said).queue.is_empty()
    }

    fn of(&self, to: ReplyTo) -> Option<(Arc<AnswerQueue>, u64)> {
        let (door, caller) = to.caller()?;
        let (_, answers) = lock(&self.open).doors.get(&door)?.clone();
        Some((answers, caller))
    }

    /// Queues an answer for a caller, which its door takes when it looks, or at the next [`Doors::wake_told`]; `false`
    /// if its door is gone.
    pub(crate) fn tell(&self, to: ReplyTo, id: RequestId, message: ServerMessage) -> bool {
        let Some((answers, caller)) = self.of(to) else {
            return false;
        };
        let bytes = bytes_of(&message);
        let mut told = lock(&answers.told);
        *told.bytes.entry(caller).or_default() += bytes;
        told.queue.push_back((
            Told {
                caller,
                id,
                message,
            },
            bytes,
        ));
        drop(told);
        self.has_told.store(true, Ordering::Release);
        true
    }

    /// Wakes the doors that have not taken all that they were told. The loops that tell do so at the end of a turn.
    pub(crate) fn wake_told(&self) {
        // Asked each turn, and mostly in vain.
        if !self.has_told.load(Ordering::Relaxed) || !self.has_told.swap(false, Ordering::Acquire) {
            return;
        }
        for (_, answers) in lock(&self.open).doors.values() {
            let mut told = lock(&answers.told);
            if !told.queue.is_empty() && !std::mem::replace(&mut told.is_set, true) {
                // While the queue is locked, as for what is said.
                answers.waker.wake();
            }
        }
    }

    /// Bytes of answers that a caller has not taken.
    pub(crate) fn waiting_bytes(&self, to: ReplyTo) -> u64 {
        let Some((answers, caller)) = self.of(to) else {
            return 0;
        };
        let told = lock(&answers.told);
        told.bytes.get(&caller).copied().unwrap_or(0)
    }

    /// Whether the server has stopped without waiting for anybody.
    pub(crate) fn has_ended_at_once(&self) -> bool {
        self.at_once.load(Ordering::Acquire)
    }

    /// The server has stopped, at once or after a drain: every door learns it.
    pub(crate) fn end(&self, at_once: bool) {
        self.at_once.store(at_once, Ordering::Release);
        let open = lock(&self.open);
        lock(&self.said).over = true;
        for (_, answers) in open.doors.values() {
            let mut told = lock(&answers.told);
            told.over = true;
            told.is_set = true;
            answers.waker.wake();
        }
    }
}

/// The answers of one door.
#[derive(Debug)]
pub(crate) struct AnswerQueue {
    waker: Waker,
    told: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<(Told, u64)>,
    /// By caller; none for callers that have taken all.
    bytes: HashMap<u64, u64>,
    /// The descriptor can be read.
    is_set: bool,
    over: bool,
}

impl AnswerQueue {
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// The answer that came first.
    ///
    /// # Errors
    /// `UNAVAILABLE` once all were taken and the server has stopped.
    pub(crate) fn next(&self) -> Result<Option<Told>> {
        let mut told = lock(&self.told);
        let Some((next, bytes)) = told.queue.pop_front() else {
            return match told.over {
                // The descriptor stays readable: there is nothing to wait for.
                true => Err(Error::unavailable("the server has stopped")),
                false => Ok(None),
            };
        };
        if let Some(left) = told.bytes.get_mut(&next.caller) {
            *left -= bytes;
            if *left == 0 {
                told.bytes.remove(&next.caller);
            }
        }
        if told.queue.is_empty() && !told.over && std::mem::take(&mut told.is_set) {
            self.waker.clear();
        }
        Ok(Some(next))
    }
}

fn bytes_of(message: &ServerMessage) -> u64 {
    let rows = match message {
        ServerMessage::Result(outputs, _) | ServerMessage::Part(_, outputs) => outputs.bytes(),
        _ => 0,
    };
    ANSWER_BYTES + rows
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::message::Protocol;

    fn is_set(waker: &Waker) -> bool {
        let mut fds = [PollFd::new(waker, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn doors() -> (Doors, ReplyTo, Arc<AnswerQueue>) {
        let doors = Doors::new().unwrap();
        let (number, answers) = doors.open(Protocol::Http).unwrap();
        (
            doors,
            ReplyTo::of_caller(Protocol::Http, number, 7),
            answers,
        )
    }

    #[test]
    fn the_ventilator_is_woken_once_for_all_that_was_said_and_not_for_what_it_has_taken() {
        let (doors, reply, _) = doors();
        let say = |id| {
            let question = Said::Question(reply, RequestId(id), Question::Health);
            doors.say(question).unwrap();
        };
        say(1);
        say(2);
        assert!(!is_set(doors.waker()) && doors.has_said());
        doors.wake();
        assert!(is_set(doors.waker()));
        assert!(doors.next().is_some() && is_set(doors.waker()));
        say(3);
        doors.wake();
        assert!(doors.next().is_some() && doors.next().is_some());
        assert!(!is_set(doors.waker()) && doors.next().is_none());
        say(4);
        assert!(doors.next().is_some());
        doors.wake();
        assert!(!is_set(doors.waker()));
        doors.close(1);
        assert!(is_set(doors.waker()));
    }

    #[test]
    fn a_door_is_woken_once_for_all_that_it_was_told_and_stays_awake_when_the_server_has_stopped() {
        let (doors, reply, answers) = doors();
        let tell = |id| {
            let error = ServerMessage::Error(Error::unavailable("no"));
            assert!(doors.tell(reply, RequestId(id), error));
        };
        tell(1);
        tell(2);
        assert!(!is_set(answers.waker()));
        doors.wake_told();
        assert!(is_set(answers.waker()));
        assert!(answers.next().unwrap().is_some() && is_set(answers.waker()));
        assert!(answers.next().unwrap().is_some() && !is_set(answers.waker()));
        tell(3);
        assert!(answers.next().unwrap().is_some() && answers.next().unwrap().is_none());
        doors.wake_told();
        assert!(!is_set(answers.waker()));
        tell(4);
        doors.end(false);
        assert!(is_set(answers.waker()));
        assert!(answers.next().unwrap().is_some() && is_set(answers.waker()));
        assert!(answers.next().is_err() && is_set(answers.waker()));
    }
}
