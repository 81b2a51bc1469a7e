//! The client's control calls: hello, status, models, describe, load, unload, stop.
//!
//! They are answered on `port`, so they need no way for results: a server whose `port_out` cannot be reached can
//! still be asked and stopped.

use std::time::{Duration, Instant};

use super::session::{Next, Purpose, Session, after};
use super::{Call, Client};
use crate::error::{Error, ErrorCode, Result};
use crate::message::RequestId;
use crate::wire::client::{ClientMessage, StopMode};
use crate::wire::server::{LoadOutcome, ModelInfo, ServerMessage, Status, StopState, Welcome};

/// How an order to stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// The server said that it answered everything and stopped.
    Stopped,
    /// The server had begun to stop, and the connection ended before it confirmed that it had stopped.
    ConnectionEnded,
    /// The timeout passed; this many requests are still to be answered.
    StillDraining(u64),
}

impl Client {
    /// The server's version and bounds.
    ///
    /// # Errors
    /// `UNAVAILABLE` without a server, `DEADLINE_EXCEEDED` if it does not answer within the connect timeout.
    pub fn hello(&self) -> Result<Welcome> {
        let limit = Some(self.pool.settings().connect_timeout);
        match self.ask(ClientMessage::Hello, limit)? {
            ServerMessage::HelloOk(welcome) => Ok(welcome),
            other => Err(unexpected("hello", &other)),
        }
    }

    /// The server's settings, models, workers, queue, totals and latency.
    ///
    /// # Errors
    /// As [`Client::hello`].
    pub fn status(&self) -> Result<Status> {
        let limit = Some(self.pool.settings().connect_timeout);
        match self.ask(ClientMessage::Status, limit)? {
            ServerMessage::StatusOk(status) => Ok(*status),
            other => Err(unexpected("status", &other)),
        }
    }

    /// The models that are loaded.
    ///
    /// # Errors
    /// As [`Client::hello`].
    pub fn models(&self) -> Result<Vec<ModelInfo>> {
        let limit = Some(self.pool.settings().connect_timeout);
        match self.ask(ClientMessage::Models, limit)? {
            ServerMessage::ModelsOk(models) => Ok(models),
            other => Err(unexpected("models", &other)),
        }
    }

    /// The model that an infer with this call would get: its kind, its inputs and outputs. If it is not loaded, its
    /// file is read; what is loaded is not loaded anew. Takes at most the call's timeout, or else the client's.
    ///
    /// # Errors
    /// The server's, naming the model, where an infer with this call would fail in the same way.
    pub fn describe(&self, call: impl Into<Call>) -> Result<ModelInfo> {
        let (model, params, timeout) = call.into().into_describe()?;
        let question = |id| ClientMessage::Describe(id, model, params);
        match self.ask(question, timeout.or(self.timeout))? {
            ServerMessage::ModelsOk(mut models) if models.len() == 1 => Ok(models.remove(0)),
            ServerMessage::ModelsOk(_) => Err(Error::precondition(
                "the server does not describe single models: it is older than this client",
            )),
            other => Err(unexpected("models", &other)),
        }
    }

    /// Loads a model before anyone asks for it, for as long as the client's timeout (by default as it takes).
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` and others of the server's, naming the model.
    pub fn load(&self, model: &str) -> Result<ModelInfo> {
        Ok(self.reload(model)?.0)
    }

    /// As [`Client::load`], with what that has changed; `None` from a server that does not say it, an older one.
    ///
    /// # Errors
    /// As there.
    pub fn reload(&self, model: &str) -> Result<(ModelInfo, Option<LoadOutcome>)> {
        let question = |id| ClientMessage::Load(id, model.to_owned());
        match self.ask(question, self.timeout)? {
            ServerMessage::LoadOk(info, outcome) => Ok((*info, outcome)),
            other => Err(unexpected("load", &other)),
        }
    }

    /// Makes the server forget a model.
    ///
    /// # Errors
    /// The server's, naming the model.
    pub fn unload(&self, model: &str) -> Result<()> {
        self.unload_versions(model).map(|_| ())
    }

    /// As [`Client::unload`], with the models that went: the version that the name stood for, or all methods of a file.
    /// Empty from a server that does not say it, an older one.
    ///
    /// # Errors
    /// As there.
    pub fn unload_versions(&self, model: &str) -> Result<Vec<ModelInfo>> {
        let question = |id| ClientMessage::Unload(id, model.to_owned());
        match self.ask(question, self.timeout)? {
            ServerMessage::UnloadOk(models) => Ok(models),
            other => Err(unexpected("unload", &other)),
        }
    }

    /// Stops the server, and waits until it confirms that it has stopped, for at most `timeout` (connecting
    /// included). `progress` is called with the number of requests that are still to be answered.
    ///
    /// # Errors
    /// `UNAVAILABLE` if there is no server, or it was lost before it confirmed the order.
    pub fn terminate(
        &self,
        mode: StopMode,
        timeout: Duration,
        mut progress: impl FnMut(u64),
    ) -> Result<StopOutcome> {
        let deadline = after(timeout);
        let mut settings = self.pool.settings().clone();
        settings.connect_timeout = settings.connect_timeout.min(timeout);
        // A session of its own that is not pooled: no call can follow on it.
        let mut session = Session::open(&settings, Purpose::Ask)?;
        let order = session.send_question(|id| ClientMessage::Terminate(id, mode))?;
        // The last part of the time is kept for asking how many requests are left.
        let last_question = deadline - (timeout / 4).min(Duration::from_millis(500));
        let mut pending: Option<u64> = None;
        let mut question: Option<RequestId> = None;
        loop {
            let until = question.map_or(last_question, |_| deadline);
            match session.next(Some(until)) {
                Ok(Next::Message(id, ServerMessage::TerminateOk(state))) if id == order => {
                    match state {
                        StopState::Stopped => return Ok(StopOutcome::Stopped),
                        StopState::Draining(left) => {
                            pending = Some(left);
                            progress(left);
                        }
                    }
                }
                Ok(Next::Message(id, ServerMessage::Error(e))) if id == order => return Err(e),
                Ok(Next::Message(id, ServerMessage::StatusOk(status))) if Some(id) == question => {
                    pending = Some(status.queue.requests);
                }
                Ok(Next::Message(..)) => {}
                Ok(Next::TimedOut) if question.is_none() => {
                    // If the question cannot be sent, the next wait returns the error.
                    question = Some(
                        session
                            .send_question(ClientMessage::Status)
                            .unwrap_or_default(),
                    );
                }
                Ok(Next::TimedOut) => {
                    return match pending {
                        Some(left) => Ok(StopOutcome::StillDraining(left)),
                        None => Err(Error::new(
                            ErrorCode::DeadlineExceeded,
                            format!(
                                "{}: the server did not confirm the order to stop",
                                settings.address
                            ),
                        )),
                    };
                }
                Err(_) if pending.is_some() => return Ok(StopOutcome::ConnectionEnded),
                Err(e) => return Err(e),
            }
        }
    }

    fn ask(
        &self,
        question: impl FnOnce(RequestId) -> ClientMessage,
        limit: Option<Duration>,
    ) -> Result<ServerMessage> {
        let mut session = self.pool.take(Purpose::Ask)?;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let answer = session
            .send_question(question)
            .and_then(|id| session.wait_for(id, deadline));
        self.pool.give_back(session);
        answer
    }
}

fn unexpected(question: &str, answer: &ServerMessage) -> Error {
    let kind = answer.kind();
    Error::internal(format!("the server answered {question} with {kind}"))
}
