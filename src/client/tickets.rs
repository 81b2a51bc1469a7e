//! Several requests in flight on one session, fetched by any thread in any order.
//!
//! A shared session is driven by one of the threads that wait on it, the others sleep: whoever drives files what
//! comes under the ticket that it is for, and when it has its own answer it leaves the wheel to the next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zmq::{Context, Socket, SocketType};

use super::call::Limit;
use super::line::make;
use super::response::Response;
use super::session::{Event, Session};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Request, RequestId};
use crate::wire::server::ServerMessage;

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
    changed: Condvar,
    /// Calls the thread that drives.
    bell: Mutex<Socket>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(..)")
    }
}

struct State {
    /// `None` while a thread drives.
    driver: Option<Driver>,
    /// What tickets wait for, and what has come for them.
    answers: HashMap<RequestId, Option<Result<Response>>>,
    /// For the thread that drives: requests to take back.
    cancels: Vec<RequestId>,
    lost: Option<Error>,
}

struct Driver {
    session: Session,
    bell: Socket,
}

impl State {
    fn file(&mut self, event: Result<Event>) {
        match event {
            Ok(Event::Message(id, message)) => {
                // What nobody waits for any more is dropped.
                if let Some(slot) = self.answers.get_mut(&id) {
                    *slot = Some(match message {
                        ServerMessage::Error(e) => Err(e),
                        message => Response::from_message(message),
                    });
                }
            }
            Ok(Event::TimedOut | Event::Woken) => {}
            Err(e) => {
                self.lost.get_or_insert(e);
            }
        }
    }
}

/// The wheel in one thread's hands. However that ends, the next finds it where it was.
struct Lead<'a> {
    shared: &'a Shared,
    driver: Option<Driver>,
    event: Option<Result<Event>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // One lock for both: whoever takes the wheel must see what came before.
        let mut state = self.shared.lock();
        state.driver = self.driver.take();
        if let Some(event) = self.event.take() {
            state.file(event);
        }
        self.shared.changed.notify_all();
    }
}

impl Shared {
    pub(super) fn new(context: &Context, session: Session) -> Result<Shared> {
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
                driver: Some(Driver {
                    session,
                    bell: heard,
                }),
                answers: HashMap::new(),
                cancels: Vec::new(),
                lost: None,
            }),
            changed: Condvar::new(),
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

    /// Sends a request, unless the session is lost or another thread drives it.
    pub(super) fn submit(
        self: &Arc<Shared>,
        request: &Request,
        limit: Limit,
    ) -> Option<Result<Ticket>> {
        let mut state = self.lock();
        let mut driver = state.driver.take()?;
        // Files what has come since, and sees whether the session was lost.
        while state.lost.is_none() {
            match driver.session.next(Some(Instant::now()), None) {
                Ok(Event::TimedOut) => break,
                event => state.file(event),
            }
        }
        let sent = state
            .lost
            .is_none()
            .then(|| driver.session.send_infer(request));
        state.driver = Some(driver);
        Some(sent?.map(|id| {
            state.answers.insert(id, None);
            Ticket {
                id,
                shared: self.clone(),
                deadline: limit.deadline(),
            }
        }))
    }

    fn fetch(&self, id: RequestId, deadline: Option<Instant>) -> Result<Response> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.answers.get_mut(&id).and_then(Option::take) {
                state.answers.remove(&id);
                return answer;
            }
            if let Some(lost) = &state.lost {
                return Err(lost.clone());
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                // The ticket's drop takes the request back.
                return Err(gave_up());
            }
            state = match (state.driver.take(), left) {
                (Some(driver), _) => {
                    self.drive(state, driver, deadline);
                    self.lock()
                }
                (None, None) => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                (None, Some(left)) => {
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Waits for one message, or for the bell, without the lock.
    fn drive(
        &self,
        mut state: MutexGuard<'_, State>,
        mut driver: Driver,
        deadline: Option<Instant>,
    ) {
        for id in std::mem::take(&mut state.cancels) {
            driver.session.send_cancel(id);
        }
        drop(state);
        let mut lead = Lead {
            shared: self,
            driver: Some(driver),
            event: None,
        };
        if let Some(driver) = &mut lead.driver {
            lead.event = Some(driver.session.next(deadline, Some(&mut driver.bell)));
        }
    }

    fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        match state.answers.get(&id) {
            Some(None) => {}
            // It has its answer, or was given up.
            _ => return,
        }
        self.take_back(&mut state, id);
    }

    fn take_back(&self, state: &mut State, id: RequestId) {
        if let Some(driver) = &mut state.driver {
            driver.session.send_cancel(id);
            return;
        }
        state.cancels.push(id);
        let bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only where the context has ended, and the session with it.
        let _ = bell.send(zmq::Message::new(), zmq::DONTWAIT);
    }

    fn abandon(&self, id: RequestId) {
        let mut state = self.lock();
        if let Some(None) = state.answers.remove(&id)
            && state.lost.is_none()
        {
            self.take_back(&mut state, id);
        }
    }
}

/// The error of a client that waited longer than the server should have taken.
pub(super) fn gave_up() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the server did not answer within the request's time; the request was taken back",
    )
}
