//! What clients say, on `port` and through doors, and what they are told there.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Ventilator;
use super::admission::Origin;
use super::known_headers::Sight;
use super::life::Phase;
use super::report::{Reported, models};
use crate::catalog::{Answer, Asker, QUESTION_BYTES, load_bytes};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{ModelLabel, Params, Protocol, ReplyTo, RequestId};
use crate::model::Lookup;
use crate::pipeline::door_queues::{Question, Said};
use crate::wire::client::{self, ClientMessage, Malformed};
use crate::wire::inner::{Close, CloseEnd, SinkReport, ToSink};
use crate::wire::params::RawParams;
use crate::wire::server::{self, ServerMessage, StopState};
use crate::zmtp::router::Incoming;

/// What an operator wants done with a model.
#[derive(Clone, Copy)]
enum Order {
    Load,
    Unload,
}

/// How long messages are read before the chunks that they allow are given out.
const READ_TIME: Duration = Duration::from_micros(500);

impl Ventilator {
    /// Takes what clients have said, for as long as a turn is.
    pub(super) fn hear_clients(&mut self, now: Instant) -> Result<()> {
        let end = now + READ_TIME;
        while let Some(incoming) = self.links.router.next(now) {
            match incoming {
                Incoming::Message(reply, frames) => self.hear_frames(reply, frames)?,
                Incoming::Closed(reply) => self.forget_client(reply)?,
                Incoming::Silent(reply) => self.end_session(reply)?,
            }
            if Instant::now() >= end {
                break;
            }
        }
        // A turn of their own: neither side can keep the other from being heard.
        let end = Instant::now() + READ_TIME;
        while let Some(said) = self.links.doors.next() {
            match said {
                Said::Message(reply, message) => self.hear(reply, message, Origin::default())?,
                Said::Question(client, id, question) => {
                    self.take_question_of_all(Asker { client, id }, question)?;
                }
                Said::Closed(door) => {
                    for reply in self.clients.of_door(door) {
                        self.forget_client(reply)?;
                    }
                }
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    fn hear_frames(&mut self, reply: ReplyTo, frames: Vec<Bytes>) -> Result<()> {
        let header = frames.first().cloned().unwrap_or_default();
        let sight = self.learnt.headers.find(&header);
        if let Sight::Known(request, known) = &sight
            && reply.is_session()
            && let Some(inputs) = known.inputs(&frames)
        {
            return self.take_known(reply, *request, known, inputs);
        }
        let again = matches!(sight, Sight::Again);
        match client::read_unchecked(frames) {
            Ok(message) => self.hear(reply, message, Origin { header, again }),
            Err(malformed) => self.hear_malformed(reply, malformed),
        }
    }

    fn hear(
        &mut self,
        reply: ReplyTo,
        message: ClientMessage<RawParams>,
        origin: Origin,
    ) -> Result<()> {
        let asker = Asker {
            client: reply,
            id: message.id(),
        };
        match message {
            ClientMessage::Infer(id, request) => {
                if !reply.is_session() {
                    let error = Error::invalid(
                        "the session has no routing id of 16 bytes whose first is not 0, so no result could reach it",
                    );
                    self.refuse_on_port(reply, id, error);
                    return Ok(());
                }
                if let Err(error) = self.clients.begin(reply, id) {
                    self.refuse_on_port(reply, id, error);
                    return Ok(());
                }
                self.take_infer(reply, id, *request, origin)
            }
            ClientMessage::Cancel(id) => match self.clients.serial(reply, id) {
                Some(serial) => {
                    let error = Error::new(ErrorCode::Cancelled, "the client cancelled it");
                    self.close(serial, &error)
                }
                None => Ok(()), // it has ended, or never was
            },
            ClientMessage::Hello(id) => {
                let welcome = ServerMessage::HelloOk(self.info.welcome.clone());
                self.answer(reply, id, &welcome);
                Ok(())
            }
            ClientMessage::Status(_) => self.take_question_of_all(asker, Question::Status),
            ClientMessage::Models(id) => {
                let models = ServerMessage::ModelsOk(models(&self.catalog));
                self.answer(reply, id, &models);
                Ok(())
            }
            ClientMessage::Describe(_, model, params) => {
                self.take_question(asker, Lookup::of(model.as_deref(), params.paths()))
            }
            ClientMessage::Terminate(_, mode) => {
                let draining = StopState::Draining(self.pending());
                self.answer(reply, asker.id, &ServerMessage::TerminateOk(draining));
                // It stops either way.
                if let Err(error) = self.life.tell_at_the_end(&asker) {
                    self.refuse_asker(&asker, error);
                }
                self.stop(mode)
            }
            ClientMessage::Load(_, name) => self.take_order(asker, Order::Load, &name),
            ClientMessage::Unload(_, name) => self.take_order(asker, Order::Unload, &name),
        }
    }

    /// Somebody asks what a request would get. It is found as for a request: what is loaded is not loaded anew.
    fn take_question(&mut self, asker: Asker, lookup: Lookup) -> Result<()> {
        if self.life.phase != Phase::Serving {
            let error = Error::unavailable("the server is shutting down");
            self.refuse_asker(&asker, error);
        } else if let Some(description) = self.catalog.known(&lookup).cloned() {
            self.tell_asker(&asker, Answer::Described(description));
        } else if let Err(error) = self.park_question(asker, lookup) {
            self.refuse_asker(&asker, error);
        }
        self.act_for_catalog()
    }

    fn park_question(&mut self, asker: Asker, lookup: Lookup) -> Result<()> {
        self.check_room(asker.client, QUESTION_BYTES + load_bytes(&lookup))?;
        let serial = self.new_serial();
        let named = self.named(lookup);
        self.catalog.ask(asker, serial, named)
    }

    /// A load or an unload has arrived.
    fn take_order(&mut self, asker: Asker, order: Order, name: &str) -> Result<()> {
        if self.life.phase != Phase::Serving {
            self.refuse_asker(&asker, Error::unavailable("the server is shutting down"));
            return Ok(());
        }
        let named = self.named(Lookup::of(Some(name), &Params::new()));
        let taken = match order {
            Order::Load => self.catalog.load(asker, named),
            Order::Unload => self.catalog.unload(asker, named),
        };
        if let Err(error) = taken {
            self.refuse_asker(&asker, error);
        }
        self.act_for_catalog()
    }

    /// A question has arrived that the counters of both loops answer.
    fn take_question_of_all(&mut self, asker: Asker, question: Question) -> Result<()> {
        match self.ledger.ask(asker, question) {
            Ok(token) => self.ask_sink(token),
            Err(error) => {
                self.refuse_asker(&asker, error);
                Ok(())
            }
        }
    }

    /// Has the sink report, if it is asked now.
    fn ask_sink(&mut self, token: Option<u64>) -> Result<()> {
        token.map_or(Ok(()), |token| self.tell_sink(&ToSink::Report(token)))
    }

    /// The sink's report has come: those who wait for it are answered.
    pub(super) fn answer_questions(&mut self, token: u64, sink: &SinkReport) -> Result<()> {
        let (askers, again) = self.ledger.take_askers(token);
        if !askers.is_empty() {
            // Its own protocol has one way in, the port, and its sessions are the port's connections.
            let (mut open_doors, mut sessions) = (self.links.doors.count(), self.clients.callers());
            *open_doors.of_mut(Protocol::Zmq) = 1;
            *sessions.of_mut(Protocol::Zmq) = self.links.router.connected() as u64;
            let server = Reported {
                info: &self.info,
                requests: &self.requests,
                catalog: &self.catalog,
                up_us: self.links.clock.now_us(),
                pending: self.pending(),
                is_started: self.life.is_started(),
                is_draining: self.life.phase != Phase::Serving,
                open_doors,
                sessions,
                connections: self.links.router.connections() as u64,
            };
            let reports = self.ledger.reports(&askers, &server, sink);
            for (asker, question) in askers {
                if let Some(report) = reports.to(question) {
                    self.answer_asker(&asker, report);
                }
            }
        }
        self.ask_sink(again)
    }

    /// Tells somebody what the catalog has for them.
    pub(super) fn tell_asker(&mut self, asker: &Asker, answer: Answer) {
        let message = match answer {
            Answer::Described(model) => ServerMessage::ModelsOk(vec![model.info()]),
            Answer::Loaded(model, outcome) => {
                ServerMessage::LoadOk(Box::new(model.info()), Some(outcome))
            }
            Answer::Unloaded(models) => {
                ServerMessage::UnloadOk(models.iter().map(|model| model.info()).collect())
            }
            Answer::Refused(error) => return self.refuse_asker(asker, error),
        };
        self.answer_asker(asker, &message);
    }

    pub(super) fn answer_asker(&mut self, asker: &Asker, message: &ServerMessage) {
        self.answer(asker.client, asker.id, message);
    }

    pub(super) fn refuse_asker(&mut self, asker: &Asker, error: Error) {
        self.refuse_on_port(asker.client, asker.id, error);
    }

    fn hear_malformed(&mut self, reply: ReplyTo, malformed: Malformed) -> Result<()> {
        match malformed.id {
            Some(id) if malformed.infer && reply.is_session() => {
                // Its number is used up as well: an open request must not be mistaken for it.
                if let Err(error) = self.clients.begin(reply, id) {
                    self.refuse_on_port(reply, id, error);
                    return Ok(());
                }
                // Answered where its result would have come.
                self.refuse(
                    Asker { client: reply, id },
                    ModelLabel::default(),
                    &malformed.error,
                )
            }
            Some(id) => {
                self.refuse_on_port(reply, id, malformed.error);
                Ok(())
            }
            None => {
                tracing::debug!(error = %malformed.error, "dropped a message that has no readable id");
                self.ledger.dropped += 1;
                Ok(())
            }
        }
    }

    /// Answers where questions are asked.
    pub(super) fn answer(&mut self, reply: ReplyTo, id: RequestId, message: &ServerMessage) {
        let is_sent = match reply.caller() {
            Some(_) => self.links.doors.tell(reply, id, message.clone()),
            None => {
                let frames = server::write_message(id, message);
                self.links.router.send(reply, frames).is_ok()
            }
        };
        if !is_sent {
            tracing::debug!("who asked on port has left before the answer");
            self.ledger.dropped += 1;
        }
    }

    pub(super) fn refuse_on_port(&mut self, reply: ReplyTo, id: RequestId, error: Error) {
        self.ledger.count_refused(reply, &error);
        self.answer(reply, id, &ServerMessage::Error(error));
    }

    /// Has the sink answer a request that never entered the queue. The label says for which model it was, if that
    /// is known.
    pub(super) fn refuse(&mut self, asker: Asker, label: ModelLabel, error: &Error) -> Result<()> {
        // The sink has not heard of it, by whatever number.
        let serial = self.new_serial();
        tracing::debug!(serial = serial.0, request_id = asker.id.0, %error, "refused");
        let now_us = self.links.clock.now_us();
        let Asker { client, id } = asker;
        self.clients.end(client, id);
        self.tell_sink(&ToSink::Close(Close {
            serial,
            reply: client,
            request: id,
            label,
            chunks: 0,
            arrived_us: now_us,
            end: CloseEnd::Error(error.clone()),
        }))
    }

    /// Ends a session, whichever of its connections is left. What has come on `port` in full is heard before.
    pub(super) fn end_session(&mut self, reply: ReplyTo) -> Result<()> {
        if self.links.router.is_connected(reply) {
            self.links.router.close(reply, Instant::now());
            return Ok(()); // its end comes behind its last messages
        }
        self.forget_client(reply)
    }

    /// A session is over: its work is cancelled, and its other connection closed.
    fn forget_client(&mut self, reply: ReplyTo) -> Result<()> {
        let error = Error::new(ErrorCode::Cancelled, "its client is gone");
        for serial in self.clients.forget(reply) {
            self.close(serial, &error)?;
        }
        self.catalog.client_gone(&reply);
        self.act_for_catalog()?;
        self.tell_sink(&ToSink::Gone(reply))
    }
}
