//! The sink: hears from workers and the ventilator, answers clients, and lets them say hello on `port_out`.
//!
//! What is answered, and with what, is decided in `answers.rs`; `outbox.rs` holds what has not left yet. Here is the
//! loop, and the sockets.

pub(super) mod answers;
mod outbox;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use zmq::Socket;

use self::answers::{Action, Answers, Bounds, Outlet};
use self::outbox::Outbox;
use super::guard::Guard;
use super::{Clock, tell};
use crate::error::{Error, Result};
use crate::frames;
use crate::message::ReplyTo;
use crate::socket::{self, Waiter};
use crate::wire::client::{self, ClientMessage};
use crate::wire::inner::{self, ToVentilator};
use crate::wire::server::{self, ServerMessage};

/// Messages taken from one socket before the other gets its turn.
const TURN: usize = 256;

/// So many answered requests are remembered before the sink asks which of them may still be closed.
const ANSWERED: usize = 1 << 14;

/// What the sink is set up with.
pub(crate) struct Setup {
    /// `port_out`, bound.
    pub router: Socket,
    /// Hears from workers and ventilator, bound.
    pub inbox: Socket,
    /// Watches `port_out`.
    pub guard: Guard,
    /// Speaks to the ventilator.
    pub ventilator: Socket,
    pub clock: Clock,
    pub waiter: Waiter,
    pub workers: usize,
    /// Chunks that a worker can hold, running and waiting, in both lanes.
    pub worker_chunks: usize,
    pub max_client_bytes: u64,
}

/// Where everything leaves.
struct Exit {
    router: Socket,
    ventilator: Socket,
    outbox: Outbox,
    /// Answers that nobody was there to read.
    undelivered: u64,
    /// Why the ventilator could not be told something.
    failed: Option<Error>,
}

impl Outlet for Exit {
    fn unsent_bytes(&self, reply: ReplyTo) -> u64 {
        self.outbox.bytes(reply)
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Answer {
                reply,
                request,
                message,
            } => {
                let frames = server::write_message(request, &message);
                if !self.outbox.send(&mut self.router, reply, frames) {
                    self.undelivered += 1;
                    self.tell_ventilator(ToVentilator::Gone(reply));
                }
            }
            Action::TellVentilator(ToVentilator::Report(token, mut report)) => {
                report.undelivered += self.undelivered;
                self.tell_ventilator(ToVentilator::Report(token, report));
            }
            Action::TellVentilator(message) => self.tell_ventilator(message),
        }
    }
}

impl Exit {
    fn tell_ventilator(&mut self, message: ToVentilator) {
        let told = tell(&mut self.ventilator, inner::write_to_ventilator(message));
        if let Err(error) = told {
            self.failed.get_or_insert(error);
        }
    }

    /// # Errors
    /// If the ventilator could not be told something since.
    fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn flush(&mut self) {
        for gone in self.outbox.flush(&mut self.router) {
            self.undelivered += 1;
            self.tell_ventilator(ToVentilator::Gone(gone));
        }
    }
}

struct Sink {
    inbox: Socket,
    guard: Guard,
    clock: Clock,
    waiter: Waiter,
    answers: Answers,
    exit: Exit,
}

/// Runs until every worker has stopped and everything is answered.
///
/// # Errors
/// If an inner connection is gone.
pub(crate) fn run(setup: Setup) -> Result<()> {
    let mut sink = Sink::new(setup)?;
    let ended = sink.serve();
    sink.guard.end(&sink.exit.router);
    ended
}

impl Sink {
    fn new(setup: Setup) -> Result<Sink> {
        Ok(Sink {
            inbox: setup.inbox,
            guard: setup.guard,
            clock: setup.clock,
            waiter: setup.waiter,
            answers: Answers::new(&Bounds {
                workers: setup.workers,
                worker_chunks: setup.worker_chunks,
                max_client_bytes: setup.max_client_bytes,
                answered: ANSWERED,
            })?,
            exit: Exit {
                router: setup.router,
                ventilator: setup.ventilator,
                outbox: Outbox::default(),
                undelivered: 0,
                failed: None,
            },
        })
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            let mut drained = 0;
            for _ in 0..TURN {
                let Some(message) = frames::receive(&mut self.inbox, zmq::DONTWAIT)? else {
                    drained += 1;
                    break;
                };
                self.hear(message)?;
            }
            // Before the router is drained: its descriptor tells of news only if it was not used since.
            self.exit.flush();
            self.exit.check()?;
            for _ in 0..TURN {
                let Some((message, source)) =
                    frames::receive_with_source(&mut self.exit.router, zmq::DONTWAIT)?
                else {
                    drained += 1;
                    break;
                };
                self.guard.saw(source);
                self.greet(message);
            }
            let now_us = self.clock.now_us();
            self.guard.look(now_us)?;
            if drained < 2 {
                continue;
            }
            if self.answers.all_stopped() {
                return self.finish();
            }
            let look = Duration::from_micros(self.guard.due_us().saturating_sub(now_us));
            let pause = self
                .exit
                .outbox
                .retry_after()
                .map_or(look, |retry| retry.min(look));
            self.waiter
                .wait(&[&self.inbox, &self.exit.router], Some(pause))?;
        }
    }

    fn hear(&mut self, message: Vec<Bytes>) -> Result<()> {
        let message = inner::read_to_sink(message)?;
        let now_us = self.clock.now_us();
        self.answers.hear(message, now_us, &mut self.exit);
        self.exit.check()
    }

    /// A client says hello on `port_out`: from now on results can reach it. Nothing else is expected here.
    fn greet(&mut self, message: Vec<Bytes>) {
        let mut frames = message.into_iter();
        let Some(identity) = frames.next() else {
            return;
        };
        let answer = match client::read(frames.collect()) {
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
        let answer = std::iter::once(identity).chain(answer);
        if let Err(e) = frames::send(&mut self.exit.router, answer, zmq::DONTWAIT) {
            tracing::debug!(%e, "a hello on port_out could not be answered");
        }
    }

    /// Nothing more will come. Slow readers get a moment for what is still theirs.
    fn finish(&mut self) -> Result<()> {
        let patience = self.clock.now_us() + 1_000_000;
        while let Some(pause) = self.exit.outbox.retry_after() {
            if self.clock.now_us() > patience {
                tracing::warn!("results were left that their clients did not read");
                break;
            }
            socket::wait(
                &[&self.exit.router],
                Some(pause.max(Duration::from_millis(1))),
            )?;
            self.exit.flush();
        }
        self.exit.tell_ventilator(ToVentilator::SinkStopped);
        self.exit.check()
    }
}
