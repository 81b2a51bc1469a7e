//! Several requests in flight on one session, of any threads, fetched in any order.
//!
//! ```text
//! submit ─▶ backlog ─┐                  ┌─▶ the seat of the thread that waits for it, which reads it
//! submit ─▶ backlog ─┴─▶ the driver: ───┴─▶ the slot of its request, until somebody asks
//! cancel ─▶ backlog ─┘   session
//! ```
//! One of the threads that wait is the driver: it sends what others have queued and hands out what comes, until it has
//! its own answer; then the next one is told to drive. Under load it finds much to do each time, so that
//! many requests share what waking up costs, on this side and at the server. Where nobody waits, whoever submits
//! sends by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::HashMap;

use super::call::{Limit, gave_up};
use super::encoded::Encoded;
use super::response::Response;
use super::session::{News, Session, check_size};
use crate::error::{Error, Result};
use crate::message::RequestId;
use crate::waker::Waker;
use crate::wire::client::{ClientMessage, write_message};
use crate::wire::{id, server};
use crate::zmtp::outgoing::Outgoing;

/// How often those who submit look for answers where nobody waits for any: what nobody reads, the server has to hold.
const LOOK: Duration = Duration::from_millis(1);

/// A request in flight; [`Client::fetch`](super::Client::fetch) turns it into its answer. Dropping it takes the
/// request back.
#[derive(Debug)]
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket {
    id: RequestId,
    shared: Arc<Shared>,
    deadline: Option<Instant>,
    /// Its answer was fetched: there is nothing to take back.
    settled: bool,
}

impl Ticket {
    pub(super) fn fetch(mut self) -> Result<Response> {
        let frames = self.shared.await_answer(self.id, self.deadline)?;
        self.settled = true;
        // Read here, and not by the driver, who has to go on.
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
        if !self.settled {
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

/// A session that several tickets belong to.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver.
    waker: Waker,
    max_request_bytes: u64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(..)")
    }
}

/// An answer as it came.
type Answer = Vec<Bytes>;

struct State {
    /// `None` while a thread drives.
    session: Option<Session>,
    last_id: u64,
    /// Requests whose ticket is still there, and the answers of those that nobody was waiting for when they came.
    slots: HashMap<RequestId, Option<Answer>>,
    /// Those who wait. None of them is the driver, and none has its answer.
    waiting: BTreeMap<RequestId, Arc<Seat>>,
    /// For the driver to send: requests in the order of their ids, and cancels.
    backlog: Outgoing,
    /// The driver sleeps, and has to be woken.
    sleeping: bool,
    /// Somebody was told to drive, and is about to.
    told_to_drive: bool,
    looked: Instant,
    lost: Option<Error>,
}

/// Where one thread waits, with nobody else. (Not `thread::park`: that would use up what the program's own code wants to
/// be woken by.)
#[derive(Default)]
struct Seat {
    word: Mutex<Option<Word>>,
    said: Condvar,
}

enum Word {
    Answer(Answer),
    /// The session is over.
    Lost(Error),
    /// Nobody drives.
    Drive,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Option<Word>> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a word there. Its thread has to be notified then, once no lock is held that it would wait for.
    fn put(&self, word: Word) {
        *self.lock() = Some(word);
    }

    fn wait(&self, deadline: Option<Instant>) -> Option<Word> {
        let mut word = self.lock();
        while word.is_none() {
            word = match left(deadline) {
                None => self.said.wait(word).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    let woken = self.said.wait_timeout(word, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        word.take()
    }
}

/// Threads that have a word waiting for them.
type Told = Vec<Arc<Seat>>;

fn notify(told: &mut Told) {
    for seat in told.drain(..) {
        seat.said.notify_one();
    }
}

impl State {
    fn new_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }

    /// Hands out what has come.
    fn hand_out(&mut self, session: &mut Session, told: &mut Told) {
        while let Some(frames) = session.take_message() {
            let id = frames.first().and_then(|header| id::look(header));
            // A header of another make is read in full here, and once more by whoever gets it.
            let id = id.map_or_else(|| server::read(frames.clone()).map(|(id, _)| id), Ok);
            match id {
                Ok(id) => self.answer(id, frames, told),
                Err(e) => {
                    let error = session.lose_unreadable(&e);
                    self.lose(error, told);
                }
            }
        }
    }

    fn answer(&mut self, id: RequestId, answer: Answer, told: &mut Told) {
        if let Some(seat) = self.waiting.remove(&id) {
            self.slots.remove(&id);
            seat.put(Word::Answer(answer));
            told.push(seat);
        } else if let Some(slot) = self.slots.get_mut(&id) {
            *slot = Some(answer);
        } // what nobody waits for any more is dropped
    }

    fn lose(&mut self, error: Error, told: &mut Told) {
        let error = self.lost.get_or_insert(error);
        for (_, seat) in std::mem::take(&mut self.waiting) {
            seat.put(Word::Lost(error.clone()));
            told.push(seat);
        }
    }

    /// What came before the session's end, and the end.
    fn hear_the_end(&mut self, session: &mut Session, told: &mut Told) {
        while self.lost.is_none() {
            match session.wait(None, None) {
                Ok(_) => self.hand_out(session, told),
                Err(e) => self.lose(e, told),
            }
        }
    }

    /// If nobody drives, one of those who wait has to. The one whose request is the newest may do so for longest.
    fn pass_on(&mut self, told: &mut Told) {
        if self.session.is_some()
            && self.lost.is_none()
            && !self.told_to_drive
            && let Some((_, seat)) = self.waiting.pop_last()
        {
            self.told_to_drive = true;
            seat.put(Word::Drive);
            told.push(seat);
        }
    }

    fn has_sent_all(&self, session: &Session) -> bool {
        self.backlog.is_empty() && !session.has_unwritten()
    }

    fn has_answer(&self, id: RequestId) -> bool {
        self.slots.get(&id).is_none_or(Option::is_some)
    }
}

/// What a thread drives for.
#[derive(Clone, Copy)]
enum Goal {
    /// Its request's answer.
    Answer(RequestId),
    /// All that was queued has left.
    Written,
}

/// The session in the driver's hands. However the driver ends, the next finds it where it was.
struct Driver<'a> {
    shared: &'a Shared,
    session: Option<Session>,
}

impl Driver<'_> {
    /// Another thread may drive now. Once the session is back, nothing of the driver's state is this one's to touch.
    fn give_back(&mut self, state: &mut State, told: &mut Told) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        state.sleeping = false;
        // What others queued meanwhile: the next to send may do so by itself, and must not be before them.
        if !state.backlog.is_empty() {
            session.send_backlog(&mut state.backlog);
        }
        state.session = Some(session);
        state.pass_on(told);
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if self.session.is_none() {
            return;
        }
        let shared = self.shared;
        let mut told = Told::new();
        let mut state = shared.lock();
        self.give_back(&mut state, &mut told);
        drop(state);
        notify(&mut told);
    }
}

impl Shared {
    pub(super) fn new(mut session: Session) -> Result<Shared> {
        Ok(Shared {
            waker: Waker::new()?,
            max_request_bytes: session.max_request_bytes(),
            state: Mutex::new(State {
                last_id: session.next_id().0,
                session: Some(session),
                slots: HashMap::default(),
                waiting: BTreeMap::new(),
                backlog: Outgoing::default(),
                sleeping: false,
                told_to_drive: false,
                looked: Instant::now(),
                lost: None,
            }),
        })
    }

    /// The state is consistent between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    /// Sends a request, or has it sent.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub(super) fn submit(
        self: &Arc<Shared>,
        mut request: Encoded<'static>,
        limit: Limit,
    ) -> Result<Submitted> {
        check_size(&request, self.max_request_bytes)?;
        let now = Instant::now();
        let mut told = Told::new();
        let mut state = self.lock();
        if now.saturating_duration_since(state.looked) >= LOOK {
            state.looked = now;
            self.look(&mut state, &mut told);
        }
        if state.lost.is_some() {
            drop(state);
            notify(&mut told);
            return Ok(Submitted::Lost(request));
        }
        let id = state.new_id();
        request.set_id(id);
        request.push_to(&mut state.backlog);
        state.slots.insert(id, None);
        self.send(state, &mut told, limit.end());
        Ok(Submitted::Ticket(Ticket {
            id,
            shared: self.clone(),
            deadline: limit.deadline(),
            settled: false,
        }))
    }

    /// Where nobody drives: hands out what has come, and notices if the session is lost.
    fn look(&self, state: &mut State, told: &mut Told) {
        if let Some(mut session) = state.session.take() {
            while session.look() {
                state.hand_out(&mut session, told);
            }
            if session.loss().is_some() {
                state.hear_the_end(&mut session, told);
            }
            state.session = Some(session);
        }
    }

    /// Sends the backlog, or has the driver do so. What there is no room for yet is written before this returns: nothing
    /// would write it while nobody waits for an answer. Where there is no room until the deadline, whoever waits or submits
    /// next goes on.
    fn send(&self, mut state: MutexGuard<'_, State>, told: &mut Told, deadline: Option<Instant>) {
        let Some(session) = state.session.take() else {
            let wake = std::mem::take(&mut state.sleeping);
            drop(state);
            notify(told);
            if wake {
                self.waker.wake();
            }
            return;
        };
        let mut backlog = std::mem::take(&mut state.backlog);
        drop(state);
        notify(told);
        // Not under the lock: a write takes as long as all that others do there.
        let mut driver = Driver {
            shared: self,
            session: Some(session),
        };
        if let Some(session) = &mut driver.session {
            session.send_backlog(&mut backlog);
        }
        self.drive(driver, Goal::Written, deadline);
    }

    /// Waits for one answer, and forgets its request. An error leaves the request where it is.
    fn await_answer(&self, id: RequestId, deadline: Option<Instant>) -> Result<Answer> {
        let mut told = Told::new();
        let mut state = self.lock();
        let answer = loop {
            if let Some(answer) = state.slots.get_mut(&id).and_then(Option::take) {
                state.slots.remove(&id);
                break Ok(answer);
            }
            if let Some(lost) = &state.lost {
                break Err(lost.clone());
            }
            if is_past(deadline) {
                // The drop of its ticket takes the request back.
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
            let seat = Arc::<Seat>::default();
            state.waiting.insert(id, seat.clone());
            drop(state);
            match seat.wait(deadline) {
                Some(Word::Answer(answer)) => return Ok(answer),
                Some(Word::Lost(error)) => return Err(error),
                Some(Word::Drive) => {
                    state = self.lock();
                    state.told_to_drive = false;
                    continue;
                }
                None => {}
            }
            state = self.lock();
            // A word is put there under the lock, so now it is there, or will never be.
            if state.waiting.remove(&id).is_none() {
                match seat.lock().take() {
                    Some(Word::Answer(answer)) => break Ok(answer),
                    Some(Word::Drive) => state.told_to_drive = false,
                    Some(Word::Lost(_)) | None => {}
                }
            }
        };
        // It may have been told to drive.
        state.pass_on(&mut told);
        drop(state);
        notify(&mut told);
        answer
    }

    /// Sends and hands out for all, until the goal is reached or no time left.
    fn drive(&self, mut driver: Driver<'_>, goal: Goal, deadline: Option<Instant>) {
        let Some(session) = &mut driver.session else {
            return;
        };
        let mut told = Told::new();
        let mut backlog = Outgoing::default();
        let mut end = None;
        let mut wrote_last = false;
        loop {
            let mut state = self.lock();
            state.sleeping = false;
            state.hand_out(session, &mut told);
            if let Some(error) = end.take() {
                state.lose(error, &mut told);
            }
            let is_done = match goal {
                // With nobody to pass the rest on to, it would wait.
                Goal::Answer(id) if state.has_answer(id) => {
                    !state.waiting.is_empty() || state.has_sent_all(session)
                }
                Goal::Answer(_) => false,
                // The end of the session is heard here, and told to those who wait.
                Goal::Written => state.has_sent_all(session) && session.loss().is_none(),
            };
            if is_done || state.lost.is_some() || is_past(deadline) {
                // Under the same lock: what is queued from now on, its own thread sends.
                driver.give_back(&mut state, &mut told);
                drop(state);
                notify(&mut told);
                return;
            }
            std::mem::swap(&mut backlog, &mut state.backlog);
            let idle = backlog.is_empty() && told.is_empty();
            state.sleeping = idle;
            drop(state);
            if !told.is_empty() {
                notify(&mut told);
                if backlog.is_empty() {
                    // Who has its answer is likely to ask for the next: what they queue now leaves in one write.
                    thread::yield_now();
                    continue;
                }
            }
            let until = if idle {
                deadline
            } else {
                session.send_backlog(&mut backlog);
                Some(Instant::now())
            };
            // Right after a request there is no answer; but whoever submits without end must not keep those that wait.
            if !idle && !wrote_last && session.loss().is_none() {
                wrote_last = true;
                continue;
            }
            wrote_last = !idle;
            match session.wait(until, Some(&self.waker)) {
                Ok(News::Messages | News::Written | News::TimedOut | News::Woken) => {}
                Err(e) => end = Some(e),
            }
        }
    }

    fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        // Else it has its answer, or was given up.
        if let Some(None) = state.slots.get(&id) {
            push_cancel(&mut state, id);
            self.send(state, &mut Told::new(), Some(Instant::now()));
        }
    }

    fn abandon(&self, id: RequestId) {
        let mut state = self.lock();
        if let Some(None) = state.slots.remove(&id)
            && state.lost.is_none()
        {
            push_cancel(&mut state, id);
            self.send(state, &mut Told::new(), Some(Instant::now()));
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
