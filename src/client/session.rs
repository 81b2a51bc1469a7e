//! A session: a line to `port`, a line to `port_out`, one routing id; whatever ends one of the lines ends it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use zmq::{Context, Socket};

use super::address::Address;
use super::line::{Line, Phase};
use crate::error::{Error, ErrorCode, Result};
use crate::frames;
use crate::message::{Request, RequestId};
use crate::socket::readable;
use crate::wire::client::{ClientMessage, write_infer, write_message};
use crate::wire::server::{self, ServerMessage, Welcome};

/// What a server may take longer than a request's own time until its client gives up by itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How sessions are opened.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) context: Context,
    pub(super) address: Address,
    pub(super) port_out: Option<Address>,
    pub(super) connect_timeout: Duration,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Rows: it needs a way for results.
    Infer,
    /// Questions, which are answered where they are asked.
    Ask,
}

/// What a wait ended with.
#[derive(Debug)]
pub(super) enum Event {
    /// An answer.
    Message(RequestId, ServerMessage),
    /// The time is over.
    TimedOut,
    /// Another thread wants something.
    Woken,
}

/// An open session. It is used by one thread at a time.
pub(super) struct Session {
    port: Line,
    out: Option<Line>,
    last_id: u64,
    welcome: Welcome,
    /// Why the session is over, if it is.
    lost: Option<Error>,
}

impl Session {
    /// Opens a session, or says within the connect timeout why not.
    pub(super) fn open(settings: &Settings, purpose: Purpose) -> Result<Session> {
        let start = Instant::now();
        let deadline = start + settings.connect_timeout;
        let endpoints = settings.address.endpoints(deadline)?;
        let mut first_error = None;
        for (index, endpoint) in endpoints.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (endpoints.len() - index) as u32;
            match Session::open_at(settings, purpose, endpoint, Instant::now() + share) {
                Ok(session) => return Ok(session),
                Err(e) if e.code() == ErrorCode::Unavailable => {
                    first_error.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(first_error.unwrap_or_else(|| {
            Error::unavailable(format!("{}: no address to connect to", settings.address))
        }))
    }

    fn open_at(
        settings: &Settings,
        purpose: Purpose,
        endpoint: &str,
        deadline: Instant,
    ) -> Result<Session> {
        let routing_id = routing_id()?;
        let mut session = Session {
            port: Line::open(&settings.context, endpoint.to_owned(), &routing_id)?,
            out: None,
            last_id: 0,
            welcome: Welcome::default(),
            lost: None,
        };
        session.welcome = match session.greet(deadline)? {
            ServerMessage::HelloOk(welcome) => welcome,
            _ => {
                return Err(Error::precondition(format!(
                    "{endpoint} is where a server's results leave (its port_out): connect to its port instead"
                )));
            }
        };
        if purpose == Purpose::Ask {
            return Ok(session);
        }
        let endpoint = match &settings.port_out {
            None => settings
                .address
                .endpoint_out(endpoint, session.welcome.port_out)?,
            Some(given) => {
                let same_family =
                    |e: &String| e.starts_with("tcp://[") == endpoint.starts_with("tcp://[");
                let found = given.endpoints(deadline)?;
                let best = found.iter().find(|e| same_family(e)).or(found.first());
                best.cloned().ok_or_else(|| {
                    Error::unavailable(format!("{given}: no address to connect to"))
                })?
            }
        };
        session.out = Some(Line::open(&settings.context, endpoint, &routing_id)?);
        session
            .greet(deadline)
            .map_err(|e| e.context("where results leave (port_out)"))?;
        Ok(session)
    }

    /// Says hello on the line that was opened last, and waits for the answer.
    fn greet(&mut self, deadline: Instant) -> Result<ServerMessage> {
        let started = Instant::now();
        let id = self.next_id();
        let hello = write_message(&ClientMessage::Hello(id));
        let line = self.out.as_mut().unwrap_or(&mut self.port);
        if let Err(e) = frames::send(&mut line.socket, hello, zmq::DONTWAIT) {
            return Err(Error::unavailable(format!(
                "{}: hello cannot be sent: {e}",
                line.endpoint
            )));
        }
        loop {
            match self.next(Some(deadline), None) {
                Ok(Event::Message(_, message @ ServerMessage::HelloOk(_)))
                    if self.out.is_none() =>
                {
                    return Ok(message);
                }
                Ok(Event::Message(_, ServerMessage::Welcome)) => return Ok(ServerMessage::Welcome),
                Ok(Event::Message(_, ServerMessage::HelloOk(_))) => {
                    return Err(Error::precondition(
                        "that endpoint takes requests, expected the one where results leave",
                    ));
                }
                Ok(Event::Message(_, ServerMessage::Error(e))) => {
                    return Err(Error::precondition(format!(
                        "{}: the server refused hello: {}",
                        self.newest().endpoint,
                        e.message()
                    )));
                }
                Ok(Event::Message(..) | Event::Woken) => {}
                Ok(Event::TimedOut) => return Err(self.newest().silence(started.elapsed())),
                // What came cannot be read: a peer of another kind, or of another version.
                Err(e) if e.code() == ErrorCode::Internal => {
                    return Err(Error::precondition(e.message()));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn newest(&self) -> &Line {
        self.out.as_ref().unwrap_or(&self.port)
    }

    /// Ids ascend within a session; no two messages share one.
    fn next_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }

    /// What it was opened for.
    pub(super) fn purpose(&self) -> Purpose {
        match self.out {
            Some(_) => Purpose::Infer,
            None => Purpose::Ask,
        }
    }

    /// Whether the session can be used again, looking at nothing.
    pub(super) fn is_open(&self) -> bool {
        self.lost.is_none()
    }

    /// Whether a session that was idle can be used: drops what nobody waits for, and sees whether it was lost.
    pub(super) fn is_alive(&mut self) -> bool {
        // The monitors tell of a loss; a poll of everything would cost each request of a pool as much again.
        if self.observe().is_err() || self.lost.is_some() {
            return false;
        }
        for line in [Some(&mut self.port), self.out.as_mut()]
            .into_iter()
            .flatten()
        {
            loop {
                match frames::receive(&mut line.socket, zmq::DONTWAIT) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
        true
    }

    /// Sends an infer, after a look at the server's bound: beyond it the connection would be cut without a word.
    pub(super) fn send_infer(&mut self, request: &Request) -> Result<RequestId> {
        let id = self.next_id();
        let frames = write_infer(id, request);
        let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        let limit = self.welcome.max_request_bytes;
        if bytes > limit {
            return Err(Error::exhausted(format!(
                "the request takes {bytes} bytes, the server's limit is {limit} (max_request_bytes): send fewer rows at once"
            )));
        }
        self.send(frames)?;
        Ok(id)
    }

    /// Asks a question; the answer carries its id.
    pub(super) fn send_question(
        &mut self,
        question: impl FnOnce(RequestId) -> ClientMessage,
    ) -> Result<RequestId> {
        let id = self.next_id();
        self.send(write_message(&question(id)))?;
        Ok(id)
    }

    /// Takes a request back. That the session is lost needs no telling: the request is lost with it.
    pub(super) fn send_cancel(&mut self, id: RequestId) {
        // The next wait on this session tells of a loss.
        let _ = self.send(write_message(&ClientMessage::Cancel(id)));
    }

    fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        // Nothing blocks here: there is no mark to reach, so "try again" means that the connection is gone.
        frames::send(&mut self.port.socket, frames, zmq::DONTWAIT).map_err(|e| {
            self.lose(Error::unavailable(format!(
                "{}: the request cannot be sent: {e}",
                self.port.endpoint
            )))
        })
    }

    fn lose(&mut self, error: Error) -> Error {
        self.lost.get_or_insert(error).clone()
    }

    /// Waits for the next answer, the deadline, another thread's word, or the end of the session, which is an error.
    pub(super) fn next(
        &mut self,
        deadline: Option<Instant>,
        mut wake: Option<&mut Socket>,
    ) -> Result<Event> {
        loop {
            if self.lost.is_some() {
                return self.last_words();
            }
            // A result that is there already needs no poll, which asks four sockets.
            if let Some(line) = &mut self.out {
                let received = frames::receive(&mut line.socket, zmq::DONTWAIT);
                if let Some(event) = self.take(received)? {
                    return Ok(event);
                }
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let (out, port, events, woken) = self.poll(left, wake.as_deref())?;
            if out && self.out.is_some() {
                continue;
            }
            if port {
                let received = frames::receive(&mut self.port.socket, zmq::DONTWAIT);
                if let Some(event) = self.take(received)? {
                    return Ok(event);
                }
            }
            if events {
                self.observe()?;
                continue;
            }
            if woken && let Some(wake) = &mut wake {
                while frames::receive(wake, zmq::DONTWAIT)?.is_some() {}
                return Ok(Event::Woken);
            }
            if !port && deadline.is_some_and(|d| d <= Instant::now()) {
                return Ok(Event::TimedOut);
            }
        }
    }

    /// Waits for any of the sockets: results, answers, the monitors' events, the wake-up.
    fn poll(
        &mut self,
        left: Option<Duration>,
        wake: Option<&Socket>,
    ) -> Result<(bool, bool, bool, bool)> {
        // Without a second line its places repeat the first one's, and say the same.
        let out = self.out.as_ref().unwrap_or(&self.port);
        let (a, b) = (&self.port, out);
        let polled = match wake {
            Some(wake) => readable(&[&b.socket, &a.socket, &a.monitor, &b.monitor, wake], left),
            None => readable(&[&b.socket, &a.socket, &a.monitor, &b.monitor], left),
        };
        match polled {
            Ok([out, port, event, event_out, woken]) => Ok((out, port, event || event_out, woken)),
            Err(e) => Err(self.lose(e)),
        }
    }

    /// Reads a message off what came. What cannot be read ends the session: nobody could say whose answer it was.
    fn take(&mut self, received: zmq::Result<Option<Vec<Bytes>>>) -> Result<Option<Event>> {
        let frames = match received {
            Ok(Some(frames)) => frames,
            Ok(None) => return Ok(None),
            Err(e) => return Err(self.lose(e.into())),
        };
        match server::read(frames) {
            Ok((id, message)) => Ok(Some(Event::Message(id, message))),
            Err(e) => {
                let endpoint = &self.port.endpoint;
                let error = Error::internal(format!("{endpoint}: {}", e.message()));
                Err(self.lose(error))
            }
        }
    }

    fn observe(&mut self) -> Result<()> {
        for line in [Some(&mut self.port), self.out.as_mut()]
            .into_iter()
            .flatten()
        {
            if line.observe()? == Phase::Lost {
                let loss = line.loss();
                self.lost.get_or_insert(loss);
            }
        }
        Ok(())
    }

    /// What had come before the end counts; then the end is told.
    fn last_words(&mut self) -> Result<Event> {
        for line in [self.out.as_mut(), Some(&mut self.port)]
            .into_iter()
            .flatten()
        {
            if let Ok(Some(frames)) = frames::receive(&mut line.socket, zmq::DONTWAIT)
                && let Ok((id, message)) = server::read(frames)
            {
                return Ok(Event::Message(id, message));
            }
        }
        Err(match &self.lost {
            Some(lost) => lost.clone(),
            None => Error::unavailable("the session is over"),
        })
    }

    /// Waits for the final answer to one request; other answers are for nobody.
    pub(super) fn wait_for(
        &mut self,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Result<ServerMessage> {
        loop {
            match self.next(deadline, None)? {
                Event::Message(of, ServerMessage::Error(e)) if of == id => return Err(e),
                Event::Message(of, message) if of == id => return Ok(message),
                Event::Message(..) | Event::Woken => {}
                Event::TimedOut => {
                    return Err(Error::new(
                        ErrorCode::DeadlineExceeded,
                        format!("{}: no answer in time", self.port.endpoint),
                    ));
                }
            }
        }
    }
}

/// 16 random bytes, the first not 0: libzmq keeps those that start with 0 for itself.
fn routing_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    while id[0] == 0 {
        getrandom::fill(&mut id)
            .map_err(|e| Error::unavailable(format!("the system gives no random bytes: {e}")))?;
    }
    Ok(id)
}
