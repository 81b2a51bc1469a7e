//! The sink: hears from workers and the ventilator, answers clients, and lets them say hello on `port_out`.
//!
//! What is answered, and with what, is decided in `answers.rs`. Here is the loop, and where answers leave: over
//! `port_out`, or through a door of this process.

pub(super) mod answers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zmq::Socket;

use self::answers::{Action, AnswerState, Bounds, Outlet};
use super::control::StopOrder;
use super::door_queues::Doors;
use super::{Clock, LAST_PATIENCE, tell};
use crate::error::{Error, Result};
use crate::frames;
use crate::message::{ReplyTo, RequestId};
use crate::socket::Waiter;
use crate::wire::client::{self, ClientMessage};
use crate::wire::inner::{self, ToSink, ToVentilator};
use crate::wire::result_writer::{ResultRows, ResultWriter};
use crate::wire::server::{self, ServerMessage};
use crate::zmtp::router::{CLOSE_EVERY, Closing, Incoming, NotConnected, Router};

/// Messages taken from one side before the other gets its turn.
const MESSAGES_PER_TURN: usize = 256;
/// Errors may wait for a client beyond `--max-client-bytes`, since they say that it was reached; so many bytes of them.
const ERROR_BYTES: u64 = 1 << 20;

/// So many answered requests are remembered before the sink asks which of them may still be closed.
const ANSWERED: usize = 1 << 14;

/// What the sink is set up with.
pub(crate) struct Setup {
    /// `port_out`, listening.
    pub router: Router,
    /// Hears from workers and ventilator, bound.
    pub inbox: Socket,
    /// Speaks to the ventilator.
    pub ventilator: Socket,
    pub doors: Arc<Doors>,
    pub stop: Arc<StopOrder>,
    pub clock: Clock,
    pub waiter: Waiter,
    pub workers: usize,
    /// Chunks that a worker can hold, running and waiting, in both lanes.
    pub worker_chunks: usize,
    pub max_client_bytes: u64,
}

/// Where answers leave: over `port_out` or through doors; and what the ventilator is told.
struct Exit {
    router: Router,
    writer: ResultWriter,
    doors: Arc<Doors>,
    ventilator: Socket,
    max_client_bytes: u64,
    /// Answers that nobody was there to read.
    undelivered: u64,
    /// Why the ventilator could not be told something.
    failed: Option<Error>,
}

impl Outlet for Exit {
    fn unsent_bytes(&self, reply: ReplyTo) -> u64 {
        match reply.caller() {
            Some(_) => self.doors.waiting_bytes(reply),
            None => self.router.waiting_bytes(reply),
        }
    }

    fn perform(&mut self, action: Action<'_>) {
        match action {
            Action::Result {
                reply,
                request,
                rows,
            } => self.give(reply, request, &rows),
            Action::Answer {
                reply,
                request,
                message,
            } => self.answer(reply, request, message),
            Action::TellVentilator(ToVentilator::Report(token, mut report)) => {
                report.undelivered += self.undelivered;
                report.connections = self.router.connections() as u64;
                self.tell_ventilator(ToVentilator::Report(token, report));
            }
            Action::TellVentilator(message) => self.tell_ventilator(message),
        }
    }
}

impl Exit {
    fn give(&mut self, reply: ReplyTo, request: RequestId, rows: &ResultRows<'_>) {
        if reply.caller().is_some() {
            return self.tell_caller(reply, request, rows.to_message());
        }
        let writer = &mut self.writer;
        let sent = self
            .router
            .send_with(reply, |outgoing| writer.write(request, rows, outgoing));
        self.after_send(reply, sent);
    }

    fn answer(&mut self, reply: ReplyTo, request: RequestId, message: ServerMessage) {
        if reply.caller().is_some() {
            return self.tell_caller(reply, request, message);
        }
        let frames = server::write_message(request, &message);
        let sent = self.router.send(reply, frames);
        self.after_send(reply, sent);
    }

    fn tell_caller(&mut self, caller: ReplyTo, request: RequestId, message: ServerMessage) {
        if !self.doors.tell(caller, request, message) {
            self.undelivered += 1; // its door is gone, and the ventilator knows
        }
    }

    /// An answer was sent, or could not be.
    fn after_send(&mut self, reply: ReplyTo, sent: Result<(), NotConnected>) {
        if sent.is_err() {
            // Its connection ended while this was on its way here, or it never said hello.
            self.undelivered += 1;
            self.tell_ventilator(ToVentilator::Gone(reply));
        } else if self.router.waiting_bytes(reply) > self.max_client_bytes + ERROR_BYTES {
            tracing::warn!(
                "a client does not read even the errors that say that it reads too little; its session was ended"
            );
            self.undelivered += 1;
            self.end_session(reply);
        }
    }

    /// What waits for a client is dropped, and it learns by the end of its connections.
    fn end_session(&mut self, reply: ReplyTo) {
        self.router.close(reply, Instant::now());
        self.tell_ventilator(ToVentilator::Gone(reply));
    }

    fn tell_ventilator(&mut self, message: ToVentilator) {
        let told = tell(&mut self.ventilator, inner::write_to_ventilator(&message));
        if let Err(error) = told {
            self.failed.get_or_insert(error);
        }
    }

    /// # Errors
    /// If the ventilator could not be told something since.
    fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

struct Sink {
    inbox: Socket,
    stop: Arc<StopOrder>,
    clock: Clock,
    waiter: Waiter,
    answers: AnswerState,
    exit: Exit,
    /// Everything is answered, and on its way.
    leaving: Option<Closing>,
    /// The server stops at once: nobody is waited for.
    at_once: bool,
}

/// Runs until every worker has stopped and every answer has left.
///
/// # Errors
/// If an inner connection is gone.
pub(crate) fn run(setup: Setup) -> Result<()> {
    Sink::new(setup)?.serve()
}

impl Sink {
    fn new(setup: Setup) -> Result<Sink> {
        let mut router = setup.router;
        router.watch(frames::descriptor(&setup.inbox)?)?;
        router.watch(setup.stop.waker())?;
        Ok(Sink {
            inbox: setup.inbox,
            stop: setup.stop,
            clock: setup.clock,
            waiter: setup.waiter,
            answers: AnswerState::new(&Bounds {
                workers: setup.workers,
                worker_chunks: setup.worker_chunks,
                max_client_bytes: setup.max_client_bytes,
                answered: ANSWERED,
            })?,
            exit: Exit {
                router,
                writer: ResultWriter::default(),
                doors: setup.doors,
                ventilator: setup.ventilator,
                max_client_bytes: setup.max_client_bytes,
                undelivered: 0,
                failed: None,
            },
            leaving: None,
            at_once: false,
        })
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            self.hear_inside()?;
            let now = Instant::now();
            for _ in 0..MESSAGES_PER_TURN {
                let Some(incoming) = self.exit.router.next(now) else {
                    break;
                };
                self.hear_client(incoming);
            }
            self.exit.router.tick(now);
            self.exit.router.flush(now);
            self.exit.check()?;
            if self.stop.take().is_some() {
                self.hear(ToSink::Finish)?;
            }
            self.exit.doors.wake_told();
            if self.answers.all_stopped() && self.leave(now)? {
                return Ok(());
            }
            self.answers.note(self.clock.at_us(now));
            if self.exit.router.has_work() {
                self.exit.router.wait(Some(Duration::ZERO))?;
                continue;
            }
            let look = self.leaving.as_ref().map(|_| now + CLOSE_EVERY);
            let note = self.answers.note_due_us().map(|at| self.clock.instant(at));
            let due = look.into_iter().chain(note);
            let due = due.chain(self.exit.router.due()).min();
            let pause = due.map(|at| at.saturating_duration_since(now));
            let router = &mut self.exit.router;
            self.waiter.wait_with(pause, |left| router.wait(left))?;
        }
    }

    /// Takes what came from inside, until nothing is left, which the inbox's descriptor needs to tell of what comes next.
    fn hear_inside(&mut self) -> Result<()> {
        if !self.exit.router.take_inner_readable() {
            return Ok(());
        }
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = frames::receive(&mut self.inbox, zmq::DONTWAIT)? else {
                return Ok(());
            };
            self.hear(inner::read_to_sink(message)?)?;
        }
        self.exit.router.keep_inner_readable();
        Ok(())
    }

    fn hear(&mut self, message: ToSink) -> Result<()> {
        match message {
            ToSink::Gone(reply) => self.exit.router.close(reply, Instant::now()),
            message => {
                self.at_once |= matches!(message, ToSink::Finish);
                let now_us = self.clock.now_us();
                self.answers.hear(message, now_us, &mut self.exit);
            }
        }
        self.exit.check()
    }

    fn hear_client(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Message(reply, frames) => self.greet(reply, frames),
            // Connections are being closed from this side. Who asked for the stop is told on `port` once that is done.
            Incoming::Closed(_) | Incoming::Silent(_) if self.leaving.is_some() => {}
            Incoming::Closed(reply) => self.exit.tell_ventilator(ToVentilator::Gone(reply)),
            // The ventilator knows whether the client's other connection is alive.
            Incoming::Silent(reply) => self.exit.tell_ventilator(ToVentilator::Silent(reply)),
        }
    }

    /// A client says hello on `port_out`: from now on results can reach it. Nothing else is expected here.
    fn greet(&mut self, reply: ReplyTo, frames: Vec<Bytes>) {
        let answer = match client::read(frames) {
            Ok(ClientMessage::Hello(id)) => server::write_message(id, &ServerMessage::Welcome),
            Ok(other) => {
                let error = Error::invalid("only hello is spoken on port_out; send this to port");
                server::write_message(other.id(), &ServerMessage::Error(error))
            }
            Err(malformed) => match malformed.id {
                Some(id) => server::write_message(id, &ServerMessage::Error(malformed.error)),
                None => {
                    tracing::debug!(error = %malformed.error, "dropped a message that has no readable id");
                    self.exit.undelivered += 1;
                    return;
                }
            },
        };
        if self.exit.router.send(reply, answer).is_err() {
            tracing::debug!("a hello on port_out could not be answered: the peer has left");
        }
    }

    /// Nothing more will come. True once everything has left, or was given up.
    fn leave(&mut self, now: Instant) -> Result<bool> {
        let router = &mut self.exit.router;
        let leaving = self
            .leaving
            .get_or_insert_with(|| router.begin_closing(now));
        if self.at_once {
            leaving.give_up_at(now + LAST_PATIENCE);
        }
        let Some(lost) = router.close_step(leaving, now) else {
            return Ok(false);
        };
        if lost > 0 {
            tracing::warn!(
                bytes = lost,
                "results were left that their clients did not read"
            );
        }
        self.exit.tell_ventilator(ToVentilator::SinkStopped);
        self.exit.check()?;
        Ok(true)
    }
}
