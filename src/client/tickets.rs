//! Several requests in flight on one session, of any threads, fetched in any order.
//!
//! ```text
//! submit ─▶ outgoing ─┐                     ┌─▶ the slot of its request ─▶ the thread that waits for it
//! submit ─▶ outgoing ─┴─▶ whoever is at the ┴─▶ …
//! cancel ─▶ cancels ──┘   wheel: session
//! ```
//! One of the threads that wait is at the wheel: it sends what others want sent and files what comes, until it has its
//! own answer; then the next one is woken to take over. Under load it finds much to do each time, so that
//! many requests share what waking up costs, on this side and at the server. Where nobody waits, whoever submits
//! sends by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zmq::{Context, Socket, SocketType};

use super::call::Limit;
use super::line::make;
use super::response::Response;
use super::session::{Event, Session};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Request, RequestId};
use crate::wire::server::ServerMessage;

/// Answers that are read before those that wait for them are woken.
const TURN: usize = 64;

/// A request in flight; [`Client::fetch`](super::Client::fetch) turns it into its answer. Dropping it takes the
/// request back.
#[derive(Debug)]
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket {
    id: RequestId,
    shared: Arc<Shared>,
    deadline: Option<Instant>,
}

impl Ticket {
    pub(super) fn fetch(self) -> Result<Response> {
        self.shared.fetch(self.id, self.deadline)
    }

    pub(super) fn cancel(&self) {
        self.shared.cancel(self.id);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.abandon(self.id);
    }
}

/// A session that several tickets belong to.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Calls the thread at the wheel.
    bell: Mutex<Socket>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(..)")
    }
}

#[derive(Default)]
struct State {
    /// `None` while a thread is at the wheel.
    wheel: Option<Wheel>,
    last_id: u64,
    slots: HashMap<RequestId, Slot>,
    /// For the thread at the wheel: requests to send, in the order of their ids, and to take back.
    outgoing: Vec<(RequestId, Request)>,
    cancels: Vec<RequestId>,
    /// The thread at the wheel sleeps, and has to be called.
    sleeping: bool,
    lost: Option<Error>,
}

/// Wakes one thread that waits with the state. (Not `Thread::unpark`: that would use up what the program's own code
/// wants to be woken by.)
type Waiter = Arc<Condvar>;

/// A request that was not taken back.
#[derive(Default)]
struct Slot {
    answer: Option<Result<Response>>,
    /// Who sleeps until the answer is there.
    waiter: Option<Waiter>,
}

struct Wheel {
    session: Session,
    bell: Socket,
}

/// What there is to do for whoever is at the wheel.
type Duties = (Vec<(RequestId, Request)>, Vec<RequestId>);

impl Wheel {
    /// Gives the answers of those that could not be sent.
    fn send(&mut self, (outgoing, cancels): Duties) -> Vec<(RequestId, Result<Response>)> {
        let mut failed = Vec::new();
        for (id, request) in outgoing {
            if let Err(e) = self.session.send_infer_as(id, &request) {
                failed.push((id, Err(e)));
            }
        }
        for id in cancels {
            self.session.send_cancel(id);
        }
        failed
    }
}

impl State {
    fn new_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }

    /// Files what came. Gives the thread that waits for it.
    fn file(&mut self, event: Result<Event>) -> Option<Waiter> {
        match event {
            Ok(Event::Message(id, message)) => {
                let answer = match message {
                    ServerMessage::Error(e) => Err(e),
                    message => Response::from_message(message),
                };
                self.answer(id, answer)
            }
            Ok(Event::TimedOut | Event::Woken) => None,
            Err(e) => {
                self.lost.get_or_insert(e);
                None
            }
        }
    }

    fn answer(&mut self, id: RequestId, answer: Result<Response>) -> Option<Waiter> {
        // What nobody waits for any more is dropped.
        let slot = self.slots.get_mut(&id)?;
        slot.answer = Some(answer);
        slot.waiter.take()
    }

    fn is_over(&self, id: RequestId) -> bool {
        self.lost.is_some() || self.slots.get(&id).is_none_or(|slot| slot.answer.is_some())
    }

    fn duties(&mut self) -> Duties {
        (
            std::mem::take(&mut self.outgoing),
            std::mem::take(&mut self.cancels),
        )
    }

    /// If nobody is at the wheel, one of those who wait has to take it. If the session is lost, all have to know.
    fn pass_on(&self) {
        let mut waiters = self.slots.values().filter(|slot| slot.answer.is_none());
        if self.lost.is_some() {
            waiters
                .filter_map(|slot| slot.waiter.as_ref())
                .for_each(wake);
        } else if self.wheel.is_some()
            && let Some(next) = waiters.find_map(|slot| slot.waiter.as_ref())
        {
            wake(next);
        }
    }
}

/// The wheel in one thread's hands. However that ends, the next finds it where it was.
struct Lead<'a> {
    shared: &'a Shared,
    wheel: Option<Wheel>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.sleeping = false;
        if let Some(mut wheel) = self.wheel.take() {
            // What others wanted sent meanwhile: the next to send may do so by itself, and must not be before them.
            let duties = state.duties();
            let answered = wheel.send(duties);
            for (id, answer) in answered {
                if let Some(waiter) = state.answer(id, answer) {
                    wake(&waiter);
                }
            }
            state.wheel = Some(wheel);
        }
        state.pass_on();
    }
}

impl Shared {
    pub(super) fn new(context: &Context, mut session: Session) -> Result<Shared> {
        static BELLS: AtomicU64 = AtomicU64::new(0);

        let name = BELLS.fetch_add(1, Ordering::Relaxed);
        let name = format!("inproc://mdm-client-bell-{name}");
        let (heard, rung) = (
            make(context, SocketType::PAIR)?,
            make(context, SocketType::PAIR)?,
        );
        heard.bind(&name)?;
        rung.connect(&name)?;
        Ok(Shared {
            state: Mutex::new(State {
                last_id: session.next_id().0,
                wheel: Some(Wheel {
                    session,
                    bell: heard,
                }),
                ..State::default()
            }),
            bell: Mutex::new(rung),
        })
    }

    /// The state is consistent between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    /// Requests that have no answer yet.
    pub(super) fn in_flight(&self) -> usize {
        self.lock().slots.len()
    }

    /// Sends a request, or has it sent.
    ///
    /// # Errors
    /// The request, if the session is lost; else what is wrong with it.
    pub(super) fn submit(
        self: &Arc<Shared>,
        request: Request,
        limit: Limit,
    ) -> std::result::Result<Result<Ticket>, Request> {
        let mut state = self.lock();
        if let Some(mut wheel) = state.wheel.take() {
            // Files what has come since, and sees whether the session was lost.
            let mut waiters = Vec::new();
            while state.lost.is_none() {
                match wheel.session.next(Some(Instant::now()), None) {
                    Ok(Event::TimedOut) => break,
                    event => waiters.extend(state.file(event)),
                }
            }
            let sent = state.lost.is_none().then(|| {
                let id = state.new_id();
                wheel.session.send_infer_as(id, &request).map(|()| id)
            });
            state.wheel = Some(wheel);
            waiters.iter().for_each(wake);
            return match sent {
                None => {
                    state.pass_on();
                    Err(request)
                }
                Some(Ok(id)) => Ok(Ok(self.ticket(state, id, limit))),
                Some(Err(e)) => Ok(Err(e)),
            };
        }
        if state.lost.is_some() {
            return Err(request);
        }
        let id = state.new_id();
        state.outgoing.push((id, request));
        let asleep = std::mem::take(&mut state.sleeping);
        let ticket = self.ticket(state, id, limit);
        if asleep {
            self.ring();
        }
        Ok(Ok(ticket))
    }

    fn ticket(
        self: &Arc<Shared>,
        mut state: MutexGuard<'_, State>,
        id: RequestId,
        limit: Limit,
    ) -> Ticket {
        state.slots.insert(id, Slot::default());
        Ticket {
            id,
            shared: self.clone(),
            deadline: limit.deadline(),
        }
    }

    fn fetch(&self, id: RequestId, deadline: Option<Instant>) -> Result<Response> {
        let mut state = self.lock();
        loop {
            let answer = state.slots.get_mut(&id).and_then(|slot| {
                slot.waiter = None;
                slot.answer.take()
            });
            let over = match (answer, &state.lost) {
                (Some(answer), _) => {
                    state.slots.remove(&id);
                    Some(answer)
                }
                (None, Some(lost)) => Some(Err(lost.clone())),
                // The drop of its ticket takes the request back.
                (None, None) if is_past(deadline) => Some(Err(gave_up())),
                (None, None) => None,
            };
            if let Some(answer) = over {
                // It may have been woken to take the wheel.
                state.pass_on();
                return answer;
            }
            if let Some(wheel) = state.wheel.take() {
                drop(state);
                self.drive(wheel, id, deadline);
                state = self.lock();
                continue;
            }
            let waiter = Waiter::default();
            if let Some(slot) = state.slots.get_mut(&id) {
                slot.waiter = Some(waiter.clone());
            }
            state = match left(deadline) {
                None => waiter.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = waiter.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Sends and files for all, until this request has its answer or no time left.
    fn drive(&self, wheel: Wheel, id: RequestId, deadline: Option<Instant>) {
        let mut lead = Lead {
            shared: self,
            wheel: Some(wheel),
        };
        let Some(wheel) = &mut lead.wheel else {
            return;
        };
        let mut nothing_came = false;
        let mut events = Vec::new();
        let mut failed = Vec::new();
        let mut waiters = Vec::new();
        loop {
            let mut state = self.lock();
            state.sleeping = false;
            for event in events.drain(..) {
                waiters.extend(state.file(event));
            }
            for (id, answer) in failed.drain(..) {
                waiters.extend(state.answer(id, answer));
            }
            if state.is_over(id) || is_past(deadline) {
                drop(state);
                waiters.iter().for_each(wake);
                return;
            }
            let duties = state.duties();
            let idle = nothing_came && duties.0.is_empty() && duties.1.is_empty();
            state.sleeping = idle;
            drop(state);
            waiters.drain(..).for_each(|waiter| wake(&waiter));
            if idle {
                let Wheel { session, bell } = wheel;
                events.push(session.next(deadline, Some(bell)));
                nothing_came = false;
                continue;
            }
            failed = wheel.send(duties);
            while events.len() < TURN
                && let Some(event) = wheel.session.try_next().transpose()
            {
                events.push(event);
            }
            nothing_came = events.is_empty() && failed.is_empty();
        }
    }

    fn ring(&self) {
        let bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only where the context has ended, and the session with it.
        let _ = bell.send(zmq::Message::new(), zmq::DONTWAIT);
    }

    fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        match state.slots.get(&id) {
            Some(slot) if slot.answer.is_none() => {}
            // It has its answer, or was given up.
            _ => return,
        }
        self.take_back(&mut state, id);
    }

    fn take_back(&self, state: &mut State, id: RequestId) {
        if let Some(wheel) = &mut state.wheel {
            wheel.session.send_cancel(id);
            return;
        }
        state.cancels.push(id);
        if std::mem::take(&mut state.sleeping) {
            self.ring();
        }
    }

    fn abandon(&self, id: RequestId) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.remove(&id)
            && slot.answer.is_none()
            && state.lost.is_none()
        {
            self.take_back(&mut state, id);
        }
    }
}

fn wake(waiter: &Waiter) {
    waiter.notify_one();
}

fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|d| d.saturating_duration_since(Instant::now()))
}

fn is_past(deadline: Option<Instant>) -> bool {
    left(deadline).is_some_and(|left| left.is_zero())
}

/// The error of a client that waited longer than the server should have taken.
pub(super) fn gave_up() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the server did not answer within the request's time; the request was taken back",
    )
}
