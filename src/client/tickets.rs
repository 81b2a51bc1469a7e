//! Several requests in flight on one session, of any threads, fetched in any order.
//!
//! ```text
//! submit ─▶ backlog ─┐                  ┌─▶ the mailbox of the thread that waits for that answer
//! submit ─▶ backlog ─┴─▶ the driver: ───┴─▶ `pending`, where no thread waits for it yet
//! cancel ─▶ backlog ─┘   session
//! ```
//! One of the waiting threads is the driver: it alone reads and writes the session. It sends what others have queued and
//! delivers what arrives until it has its own answer; then it makes another waiting thread the driver. Under load each
//! wakeup handles many requests, here and at the server. While no thread waits, the thread that submits sends.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

use super::call::{TimeLimit, gave_up};
use super::encoded::Encoded;
use super::gathering::{Gathering, Step};
use super::response::Response;
use super::session::{Session, WaitEnd, check_size};
use crate::error::{Error, Result};
use crate::message::RequestId;
use crate::waker::Waker;
use crate::wire::client::{ClientMessage, write_message};
use crate::wire::{id, server};
use crate::zmtp::outgoing::Outgoing;

/// While no thread waits, a thread that submits also reads what has arrived, at most this often: answers that are not
/// read take memory at the server.
const READ_WHILE_SUBMITTING: Duration = Duration::from_millis(1);

/// A request in flight; [`Client::fetch`](super::Client::fetch) turns it into its answer. Dropping it takes the
/// request back.
#[derive(Debug)]
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket {
    id: RequestId,
    shared: Arc<SharedSession>,
    deadline: Option<Instant>,
    /// Its answer was fetched: dropping the ticket need not cancel the request.
    fetched: bool,
}

impl Ticket {
    pub(super) fn fetch(mut self) -> Result<Response> {
        let frames = self.shared.await_answer(self.id, self.deadline)?;
        self.fetched = true;
        // Decoded in this thread, so that the driver can go on with other answers.
        let (_, message) = server::read(frames)
            .map_err(|e| Error::internal(format!("the answer cannot be read: {}", e.message())))?;
        Response::from_message(message)
    }

    pub(super) fn cancel(&self) {
        self.shared.cancel(self.id);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.fetched {
            self.shared.abandon(self.id);
        }
    }
}

/// What became of a request that was to be submitted.
pub(super) enum Submitted {
    Ticket(Ticket),
    /// The session is lost; the request was not sent.
    Lost(Encoded<'static>),
}

/// A session that several threads use at once.
pub(super) struct SharedSession {
    state: Mutex<State>,
    /// Wakes the driver.
    waker: Waker,
    max_request_bytes: u64,
}

impl std::fmt::Debug for SharedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSession(..)")
    }
}

/// An answer's frames, not decoded yet.
type Frames = Vec<Bytes>;

struct State {
    /// `None` while a driver has it.
    session: Option<Session>,
    last_id: u64,
    /// Requests whose ticket still exists, with the answer if it arrived before a thread waited for it.
    pending: HashMap<RequestId, Option<Frames>>,
    /// The threads that wait, by request. The driver is not among them, nor is a thread whose answer has arrived.
    waiting: BTreeMap<RequestId, Arc<Mailbox>>,
    /// For the driver to send: requests in the order of their ids, and cancels.
    backlog: Outgoing,
    /// The driver sleeps in `poll`: whoever adds to the backlog has to wake it.
    driver_sleeps: bool,
    /// A waiting thread was made the driver and has not taken the session yet.
    driver_chosen: bool,
    /// Threads that were woken with their answers and have sent no request since: most programs send the next one at once.
    expected: usize,
    /// When a thread last read while it submitted.
    last_read: Instant,
    lost: Option<Error>,
}

/// Where one thread waits for its notice. (Not `thread::park`, whose token the program's own code may depend on.)
#[derive(Default)]
struct Mailbox {
    notice: Mutex<Option<Notice>>,
    filled: Condvar,
}

/// What a waiting thread is woken with.
enum Notice {
    Answer(Frames),
    /// The session is over.
    Lost(Error),
    /// There is no driver: this thread has to be it.
    BecomeDriver,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Option<Notice>> {
        self.notice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a notice. The thread is woken by [`wake_all`], after the locks that it would wait for were released.
    fn put(&self, notice: Notice) {
        *self.lock() = Some(notice);
    }

    fn wait(&self, deadline: Option<Instant>) -> Option<Notice> {
        let mut notice = self.lock();
        while notice.is_none() {
            notice = match left(deadline) {
                None => {
                    let woken = self.filled.wait(notice);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    let woken = self.filled.wait_timeout(notice, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        notice.take()
    }
}

/// Threads whose mailbox was filled and that are still to be woken.
type ToWake = Vec<Arc<Mailbox>>;

fn wake_all(to_wake: &mut ToWake) {
    for mailbox in to_wake.drain(..) {
        mailbox.filled.notify_one();
    }
}

impl State {
    fn new_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }

    /// Delivers the answers that have arrived.
    fn deliver(&mut self, session: &mut Session, to_wake: &mut ToWake) {
        while let Some(frames) = session.take_message() {
            let id = frames.first().and_then(|header| id::look(header));
            // `look` knows the usual header only. Another one is decoded here in full, and again by the thread that gets it.
            let id = id.map_or_else(|| server::read(frames.clone()).map(|(id, _)| id), Ok);
            match id {
                Ok(id) => self.answer(id, frames, to_wake),
                Err(e) => {
                    let error = session.lose_unreadable(&e);
                    self.lose(error, to_wake);
                }
            }
        }
    }

    fn answer(&mut self, id: RequestId, answer: Frames, to_wake: &mut ToWake) {
        if let Some(mailbox) = self.waiting.remove(&id) {
            self.pending.remove(&id);
            mailbox.put(Notice::Answer(answer));
            to_wake.push(mailbox);
            self.expected += 1;
        } else if let Some(slot) = self.pending.get_mut(&id) {
            *slot = Some(answer);
        } // otherwise its ticket was dropped, and the answer is not wanted
    }

    fn lose(&mut self, error: Error, to_wake: &mut ToWake) {
        let error = self.lost.get_or_insert(error);
        for (_, mailbox) in std::mem::take(&mut self.waiting) {
            mailbox.put(Notice::Lost(error.clone()));
            to_wake.push(mailbox);
        }
    }

    /// Delivers what arrived before the session was lost, and then the loss.
    fn deliver_loss(&mut self, session: &mut Session, to_wake: &mut ToWake) {
        while self.lost.is_none() {
            match session.wait(None, None) {
                Ok(_) => self.deliver(session, to_wake),
                Err(e) => self.lose(e, to_wake),
            }
        }
    }

    /// Makes a waiting thread the driver if there is none: the one with the newest request, which is likely to wait longest.
    fn choose_driver(&mut self, to_wake: &mut ToWake) {
        if self.session.is_some()
            && self.lost.is_none()
            && !self.driver_chosen
            && let Some((_, mailbox)) = self.waiting.pop_last()
        {
            self.driver_chosen = true;
            mailbox.put(Notice::BecomeDriver);
            to_wake.push(mailbox);
        }
    }

    fn has_sent_all(&self, session: &Session) -> bool {
        self.backlog.is_empty() && !session.has_unwritten()
    }

    fn has_answer(&self, id: RequestId) -> bool {
        self.pending.get(&id).is_none_or(Option::is_some)
    }
}

/// Until when a thread stays the driver.
#[derive(Clone, Copy)]
enum Goal {
    /// Its own answer has arrived.
    Answer(RequestId),
    /// All that was queued is written.
    Written,
}

/// The session while one thread drives it. It is given back however that thread ends, by a panic too.
struct Driver<'a> {
    shared: &'a SharedSession,
    session: Option<Session>,
}

impl Driver<'_> {
    /// Puts the session back, for the next driver.
    fn give_back(&mut self, state: &mut State, to_wake: &mut ToWake) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        state.driver_sleeps = false;
        // What others queued meanwhile leaves first: the next thread that submits may write at once.
        if !state.backlog.is_empty() {
            session.send_backlog(&mut state.backlog);
        }
        state.session = Some(session);
        state.choose_driver(to_wake);
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if self.session.is_none() {
            return;
        }
        let shared = self.shared;
        let mut to_wake = ToWake::new();
        let mut state = shared.lock();
        self.give_back(&mut state, &mut to_wake);
        drop(state);
        wake_all(&mut to_wake);
    }
}

impl SharedSession {
    pub(super) fn new(mut session: Session) -> Result<SharedSession> {
        Ok(SharedSession {
            waker: Waker::new()?,
            max_request_bytes: session.max_request_bytes(),
            state: Mutex::new(State {
                last_id: session.next_id().0,
                session: Some(session),
                pending: HashMap::default(),
                waiting: BTreeMap::new(),
                backlog: Outgoing::default(),
                driver_sleeps: false,
                driver_chosen: false,
                expected: 0,
                last_read: Instant::now(),
                lost: None,
            }),
        })
    }

    /// A poisoned lock is used on: the state is consistent between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    /// Sends a request, or queues it for the driver.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub(super) fn submit(
        self: &Arc<SharedSession>,
        mut request: Encoded<'static>,
        limit: TimeLimit,
    ) -> Result<Submitted> {
        check_size(&request, self.max_request_bytes)?;
        let now = Instant::now();
        let mut to_wake = ToWake::new();
        let mut state = self.lock();
        if now.saturating_duration_since(state.last_read) >= READ_WHILE_SUBMITTING {
            state.last_read = now;
            self.read_available(&mut state, &mut to_wake);
        }
        if state.lost.is_some() {
            drop(state);
            wake_all(&mut to_wake);
            return Ok(Submitted::Lost(request));
        }
        let id = state.new_id();
        request.set_id(id);
        request.push_to(&mut state.backlog);
        state.expected = state.expected.saturating_sub(1);
        state.pending.insert(id, None);
        self.send(state, &mut to_wake, limit.end());
        Ok(Submitted::Ticket(Ticket {
            id,
            shared: self.clone(),
            deadline: limit.deadline(),
            fetched: false,
        }))
    }

    /// While there is no driver: delivers what has arrived, and notices if the session is lost.
    fn read_available(&self, state: &mut State, to_wake: &mut ToWake) {
        if let Some(mut session) = state.session.take() {
            while session.read_available() {
                state.deliver(&mut session, to_wake);
            }
            if session.loss().is_some() {
                state.deliver_loss(&mut session, to_wake);
            }
            state.session = Some(session);
        }
    }

    /// Sends the backlog, or wakes the driver to do so. Without a driver this returns only when all of it is written, or at
    /// the deadline; then the next thread that waits or submits writes the rest.
    fn send(
        &self,
        mut state: MutexGuard<'_, State>,
        to_wake: &mut ToWake,
        deadline: Option<Instant>,
    ) {
        let Some(session) = state.session.take() else {
            let wake = std::mem::take(&mut state.driver_sleeps);
            drop(state);
            wake_all(to_wake);
            if wake {
                self.waker.wake();
            }
            return;
        };
        let mut backlog = Outgoing::default();
        // Otherwise this thread, as the driver, waits for more before it writes.
        if state.expected == 0 {
            std::mem::swap(&mut backlog, &mut state.backlog);
        }
        drop(state);
        wake_all(to_wake);
        // Not under the lock: other threads would wait for as long as the write takes.
        let mut driver = Driver {
            shared: self,
            session: Some(session),
        };
        if let Some(session) = &mut driver.session {
            session.send_backlog(&mut backlog);
        }
        self.drive(driver, Goal::Written, deadline);
    }

    /// Waits for one answer and removes its request from `pending`; after an error the request stays there.
    fn await_answer(&self, id: RequestId, deadline: Option<Instant>) -> Result<Frames> {
        let mut to_wake = ToWake::new();
        let mut state = self.lock();
        let answer = loop {
            if let Some(answer) = state.pending.get_mut(&id).and_then(Option::take) {
                state.pending.remove(&id);
                break Ok(answer);
            }
            if let Some(lost) = &state.lost {
                break Err(lost.clone());
            }
            if is_past(deadline) {
                // Dropping its ticket cancels the request.
                break Err(gave_up());
            }
            if let Some(session) = state.session.take() {
                drop(state);
                let driver = Driver {
                    shared: self,
                    session: Some(session),
                };
                self.drive(driver, Goal::Answer(id), deadline);
                state = self.lock();
                continue;
            }
            let mailbox = Arc::<Mailbox>::default();
            state.waiting.insert(id, mailbox.clone());
            drop(state);
            match mailbox.wait(deadline) {
                Some(Notice::Answer(answer)) => return Ok(answer),
                Some(Notice::Lost(error)) => return Err(error),
                Some(Notice::BecomeDriver) => {
                    state = self.lock();
                    state.driver_chosen = false;
                    continue;
                }
                None => {}
            }
            state = self.lock();
            // Notices are left under this lock: one is there by now, or none will come.
            if state.waiting.remove(&id).is_none() {
                match mailbox.lock().take() {
                    Some(Notice::Answer(answer)) => break Ok(answer),
                    Some(Notice::BecomeDriver) => state.driver_chosen = false,
                    Some(Notice::Lost(_)) | None => {}
                }
            }
        };
        // This thread may have been chosen as the driver.
        state.choose_driver(&mut to_wake);
        drop(state);
        wake_all(&mut to_wake);
        answer
    }

    /// Sends and delivers for all threads, until the goal is reached or the deadline has passed.
    fn drive(&self, mut driver: Driver<'_>, goal: Goal, deadline: Option<Instant>) {
        let Some(session) = &mut driver.session else {
            return;
        };
        let mut to_wake = ToWake::new();
        let mut backlog = Outgoing::default();
        let mut loss = None;
        let mut wrote_last = false;
        let mut gathering = Gathering::default();
        loop {
            let mut state = self.lock();
            state.driver_sleeps = false;
            state.deliver(session, &mut to_wake);
            if let Some(error) = loss.take() {
                state.lose(error, &mut to_wake);
            }
            let is_done = match goal {
                // If no other thread can drive, what is still to be written is written first.
                Goal::Answer(id) if state.has_answer(id) => {
                    !state.waiting.is_empty() || state.has_sent_all(session)
                }
                Goal::Answer(_) => false,
                // A loss is read to its end here, so that the waiting threads learn of it.
                Goal::Written => state.has_sent_all(session) && session.loss().is_none(),
            };
            if is_done || state.lost.is_some() || is_past(deadline) {
                // Under the same lock: whoever queues something from now on sends it.
                driver.give_back(&mut state, &mut to_wake);
                drop(state);
                wake_all(&mut to_wake);
                return;
            }
            match gathering.next(state.expected, Instant::now) {
                Step::Yield => {
                    drop(state);
                    wake_all(&mut to_wake);
                    thread::yield_now();
                    continue;
                }
                Step::Send => {}
                Step::GiveUp => state.expected = 0,
            }
            gathering = Gathering::default();
            std::mem::swap(&mut backlog, &mut state.backlog);
            let idle = backlog.is_empty() && to_wake.is_empty();
            state.driver_sleeps = idle;
            drop(state);
            wake_all(&mut to_wake);
            let until = if idle {
                deadline
            } else {
                session.send_backlog(&mut backlog);
                Some(Instant::now())
            };
            // There is no answer right after a write, so the queue is looked at again first. Not twice in a row: threads that
            // submit all the time must not keep others from their answers.
            if !idle && !wrote_last && session.loss().is_none() {
                wrote_last = true;
                continue;
            }
            wrote_last = !idle;
            match session.wait(until, Some(&self.waker)) {
                Ok(WaitEnd::Messages | WaitEnd::Written | WaitEnd::TimedOut | WaitEnd::Woken) => {}
                Err(e) => loss = Some(e),
            }
        }
    }

    fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        // Otherwise it has its answer, or its ticket is gone.
        if let Some(None) = state.pending.get(&id) {
            push_cancel(&mut state, id);
            self.send(state, &mut ToWake::new(), Some(Instant::now()));
        }
    }

    fn abandon(&self, id: RequestId) {
        let mut state = self.lock();
        if let Some(None) = state.pending.remove(&id)
            && state.lost.is_none()
        {
            push_cancel(&mut state, id);
            self.send(state, &mut ToWake::new(), Some(Instant::now()));
        }
    }
}

fn push_cancel(state: &mut State, id: RequestId) {
    let cancel = write_message(&ClientMessage::Cancel(id));
    state.backlog.push_message(cancel);
}

fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|d| d.saturating_duration_since(Instant::now()))
}

fn is_past(deadline: Option<Instant>) -> bool {
    left(deadline).is_some_and(|left| left.is_zero())
}
