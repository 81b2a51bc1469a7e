//! A session: a line to `port`, a line to `port_out`, one routing id; whatever ends one of the lines ends it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use zmq::{Context, Socket};

use super::address::Address;
use super::line::{Line, Phase};
use crate::error::{Error, ErrorCode, Result};
use crate::frames;
use crate::message::{Request, RequestId};
use crate::socket::wait;
use crate::wire::client::{ClientMessage, write_infer, write_message};
use crate::wire::server::{self, ServerMessage, Welcome};

/// What a server may take longer than a request's own time until its client gives up by itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What one line may still bring after the other was lost: a server that stops closes both, and the answers that it
/// gave last are to count whichever end is seen first.
const LAST_WORDS: Duration = Duration::from_millis(100);

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
    lost: Option<Loss>,
}

/// Why a session is over, and until when answers that were under way may still come.
struct Loss {
    error: Error,
    until: Instant,
}

impl Session {
    /// Opens a session, or says within the connect timeout why not.
    pub(super) fn open(settings: &Settings, purpose: Purpose) -> Result<Session> {
        let deadline = after(settings.connect_timeout);
        let endpoints = settings.address.endpoints(deadline)?;
        let mut first_error = None;
        for (index, endpoint) in endpoints.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (endpoints.len() - index) as u32;
            match Session::open_at(settings, purpose, endpoint, after(share)) {
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
    pub(super) fn next_id(&mut self) -> RequestId {
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

    /// Whether a session that was idle can be used, or was lost meanwhile. Answers that nobody waits for any more are
    /// dropped, here or at the next wait.
    pub(super) fn is_alive(&mut self) -> bool {
        // No news from either monitor: the usual case, at the price of one system call.
        let (port, out) = (&self.port, self.out.as_ref().unwrap_or(&self.port));
        let news = wait(&[&port.monitor, &out.monitor], Some(Duration::ZERO));
        if news.is_ok_and(|ready| ready.iter().all(|ready| !ready)) {
            return self.is_open();
        }
        loop {
            match self.next(Some(Instant::now()), None) {
                Ok(Event::Message(..) | Event::Woken) => {}
                Ok(Event::TimedOut) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Sends an infer, after a look at the server's bound: beyond it the connection would be cut without a word.
    pub(super) fn send_infer(&mut self, request: &Request) -> Result<RequestId> {
        let id = self.next_id();
        self.send_infer_as(id, request)?;
        Ok(id)
    }

    /// As [`Session::send_infer`], with an id of [`Session::next_id`]; those have to be sent in their order.
    pub(super) fn send_infer_as(&mut self, id: RequestId, request: &Request) -> Result<()> {
        let frames = write_infer(id, request);
        let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        let limit = self.welcome.max_request_bytes;
        if bytes > limit {
            return Err(Error::exhausted(format!(
                "the request takes {bytes} bytes, the server's limit is {limit} (max_request_bytes): send fewer rows at once"
            )));
        }
        self.send(frames)
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
            return Err(lost.error.clone());
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
        let until = Instant::now();
        let lost = self.lost.get_or_insert(Loss { error, until });
        lost.error.clone()
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
            // An answer that is there already needs no poll, which asks four sockets. And a send on `port` may have
            // taken its descriptor's news: both are read before each wait.
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let (out, port, events, woken) = self.poll(left, wake.as_deref())?;
            if events {
                self.observe()?;
                continue;
            }
            if woken && let Some(wake) = &mut wake {
                while frames::receive(wake, zmq::DONTWAIT)?.is_some() {}
                return Ok(Event::Woken);
            }
            if !(out || port) && deadline.is_some_and(|d| d <= Instant::now()) {
                return Ok(Event::TimedOut);
            }
        }
    }

    /// An answer that has come.
    pub(super) fn try_next(&mut self) -> Result<Option<Event>> {
        if let Some(line) = &mut self.out {
            let received = frames::receive(&mut line.socket, zmq::DONTWAIT);
            if let Some(event) = self.take(received)? {
                return Ok(Some(event));
            }
        }
        let received = frames::receive(&mut self.port.socket, zmq::DONTWAIT);
        self.take(received)
    }

    /// Waits for any of the sockets: results, answers, the monitors' events, the wake-up.
    fn poll(
        &mut self,
        left: Option<Duration>,
        wake: Option<&Socket>,
    ) -> Result<(bool, bool, bool, bool)> {
        // Without a second line its places repeat the first one's, and say the same.
        let (port, out) = (&self.port, self.out.as_ref().unwrap_or(&self.port));
        let sockets = [
            &out.socket,
            &port.socket,
            &port.monitor,
            &out.monitor,
            wake.unwrap_or(&port.monitor),
        ];
        let count = if wake.is_some() { 5 } else { 4 };
        match wait(&sockets[..count], left) {
            Ok([out, port, news, news_out, woken]) => Ok((out, port, news || news_out, woken)),
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

    fn lines(&mut self) -> impl Iterator<Item = &mut Line> {
        self.out.iter_mut().chain([&mut self.port])
    }

    /// Reads what the monitors have to tell. True if every line is lost.
    fn observe(&mut self) -> Result<bool> {
        let mut loss = None;
        let mut all = true;
        for line in self.lines() {
            if line.observe()? == Phase::Lost {
                loss = Some(line.loss());
            } else {
                all = false;
            }
        }
        if let Some(error) = loss {
            let until = Instant::now() + LAST_WORDS;
            self.lost.get_or_insert(Loss { error, until });
        }
        Ok(all)
    }

    /// What had come before the end counts; then the end is told.
    fn last_words(&mut self) -> Result<Event> {
        loop {
            // In this order: a line that is lost has brought all that it will.
            let all = self.observe()?;
            for line in self.lines() {
                if let Ok(Some(frames)) = frames::receive(&mut line.socket, zmq::DONTWAIT)
                    && let Ok((id, message)) = server::read(frames)
                {
                    return Ok(Event::Message(id, message));
                }
            }
            let Some(lost) = &self.lost else {
                return Err(Error::unavailable("the session is over"));
            };
            let left = lost.until.saturating_duration_since(Instant::now());
            if all || left.is_zero() {
                return Err(lost.error.clone());
            }
            self.poll(Some(left), None)?;
        }
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

/// When that time is over. What no clock can hold is for ever: some years.
pub(super) fn after(time: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(1 << 30);

    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + FOR_EVER)
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
