//! A session: a connection to `port`, one to `port_out`, one routing id; whatever ends one of them ends it.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::address::Address;
use super::call::gave_up;
use super::encoded::Encoded;
use crate::error::{Error, ErrorCode, Result};
use crate::message::RequestId;
use crate::waker::Waker;
use crate::wire::client::{ClientMessage, write_message};
use crate::wire::server::{self, ServerMessage, Welcome};
use crate::zmtp::dealer::{Dealer, Endpoint, Inbox, Phase};
use crate::zmtp::outgoing::Outgoing;

/// What a server may take longer than a request's own time until its client gives up by itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What one connection may still bring after the other was lost: a server that stops closes both, and the answers that
/// it gave last are to count whichever end is seen first.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How often those who wait look whether the server still gives signs of life.
const CHECK: Duration = Duration::from_secs(1);

/// How sessions are opened.
#[derive(Clone)]
pub(super) struct Settings {
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

/// What a wait for an answer ended with.
#[derive(Debug)]
pub(super) enum Event {
    Message(RequestId, ServerMessage),
    /// The time is over.
    TimedOut,
}

/// What a wait for anything ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Answers have come: [`Session::take_message`] has them.
    Messages,
    /// The time is over.
    TimedOut,
    /// Another thread wants something.
    Woken,
}

/// An open session. It is used by one thread at a time.
pub(super) struct Session {
    port: Dealer,
    out: Option<Dealer>,
    inbox: Inbox,
    last_id: u64,
    welcome: Welcome,
    lost: Option<Loss>,
    /// When somebody last waited for what may come.
    waited: Instant,
    check_at: Instant,
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
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Session> {
        let routing_id = routing_id()?;
        let now = Instant::now();
        let mut session = Session {
            port: Dealer::open(endpoint.clone(), &routing_id, deadline)?,
            out: None,
            inbox: Inbox::default(),
            last_id: 0,
            welcome: Welcome::default(),
            lost: None,
            waited: now,
            check_at: now + CHECK,
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
            None => Address::endpoint_out(endpoint, session.welcome.port_out)?,
            Some(given) => {
                let is_v6 = |e: &Endpoint| matches!(e, Endpoint::Tcp(a) if a.is_ipv6());
                let found = given.endpoints(deadline)?;
                let same_family = found.iter().find(|e| is_v6(e) == is_v6(endpoint));
                same_family.or(found.first()).cloned().ok_or_else(|| {
                    Error::unavailable(format!("{given}: no address to connect to"))
                })?
            }
        };
        let out = |e: Error| e.context("where results leave (port_out)");
        session.out = Some(Dealer::open(endpoint, &routing_id, deadline).map_err(out)?);
        session.greet(deadline).map_err(out)?;
        Ok(session)
    }

    /// Says hello on the connection that was opened last, and waits for the answer.
    fn greet(&mut self, deadline: Instant) -> Result<ServerMessage> {
        let started = Instant::now();
        // libzmq's ROUTER refuses messages that come before it has said its own part of the handshake.
        while self.newest().phase() != Phase::Open {
            if let Some(lost) = &self.lost {
                return Err(lost.error.clone());
            }
            if self.waited >= deadline {
                return Err(self.newest().silence(started.elapsed()));
            }
            self.turn(Some(deadline), None)?;
        }
        let id = self.next_id();
        let hello = write_message(&ClientMessage::Hello(id));
        let newest = self.out.as_mut().unwrap_or(&mut self.port);
        newest.outgoing().push_message(hello);
        self.write();
        loop {
            match self.next(Some(deadline)) {
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
                        self.newest().endpoint(),
                        e.message()
                    )));
                }
                Ok(Event::Message(..)) => {}
                Ok(Event::TimedOut) => return Err(self.newest().silence(started.elapsed())),
                // What came cannot be read: a peer of another kind, or of another version.
                Err(e) if e.code() == ErrorCode::Internal => {
                    return Err(Error::precondition(e.message()));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn newest(&self) -> &Dealer {
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

    /// The most bytes that the server takes in one request.
    pub(super) fn max_request_bytes(&self) -> u64 {
        self.welcome.max_request_bytes
    }

    /// Why it is over.
    pub(super) fn loss(&self) -> Option<&Error> {
        self.lost.as_ref().map(|lost| &lost.error)
    }

    /// Whether the session can serve another call, looking at nothing. What waits unwritten would be before that call.
    pub(super) fn is_reusable(&self) -> bool {
        self.lost.is_none() && !self.port.has_unwritten()
    }

    /// Whether a session that was idle can be used, or was lost meanwhile. Answers that nobody waits for any more are
    /// dropped. Where nothing has come, the usual case, it takes one system call.
    pub(super) fn is_alive(&mut self) -> bool {
        while self.lost.is_none() && self.look() {}
        self.inbox.messages.clear();
        self.lost.is_none()
    }

    /// Reads and writes what can be at once. `false`: there was nothing to read.
    pub(super) fn look(&mut self) -> bool {
        self.inbox.came = false;
        // A failure is a loss, which is noted.
        let _ = self.turn(Some(self.waited), None);
        self.inbox.came
    }

    /// Sends a request from where its bytes lie, and returns when all of them are out.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for more than the server takes at once, `DEADLINE_EXCEEDED`, and the session's end. A request
    /// that was given up half way ends the session.
    pub(super) fn send_now(
        &mut self,
        mut request: Encoded<'_>,
        deadline: Option<Instant>,
    ) -> Result<RequestId> {
        check_size(&request, self.welcome.max_request_bytes)?;
        let id = self.next_id();
        request.set_id(id);
        request.with_slices(|slices| self.send_slices(slices, deadline))?;
        Ok(id)
    }

    fn send_slices(&mut self, slices: &mut [IoSlice<'_>], deadline: Option<Instant>) -> Result<()> {
        let mut rest = slices;
        let mut now = Instant::now();
        loop {
            let done = self.port.write_lent(&mut rest, now, &mut self.inbox);
            self.note_losses(now);
            if let Some(lost) = &self.lost {
                return Err(lost.error.clone());
            }
            if done {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                let error = gave_up();
                if self.port.give_up_lent() {
                    self.lose(error.clone());
                }
                return Err(error);
            }
            // What comes meanwhile is read: a server that waits for us to read would not go on reading either.
            self.turn(deadline, None)?;
            now = self.waited;
        }
    }

    /// Queues a request and writes what there is room for; whoever waits on this session writes the rest.
    ///
    /// # Errors
    /// As [`Session::send_now`], but for the time.
    pub(super) fn send_owned(&mut self, mut request: Encoded<'static>) -> Result<RequestId> {
        check_size(&request, self.welcome.max_request_bytes)?;
        let id = self.next_id();
        request.set_id(id);
        request.push_to(self.port.outgoing());
        self.write_or_loss()?;
        Ok(id)
    }

    /// Writes what others have queued elsewhere, as far as there is room.
    pub(super) fn send_backlog(&mut self, backlog: &mut Outgoing) {
        self.port.outgoing().append(backlog);
        self.write();
    }

    /// Asks a question; the answer carries its id.
    pub(super) fn send_question(
        &mut self,
        question: impl FnOnce(RequestId) -> ClientMessage,
    ) -> Result<RequestId> {
        let id = self.next_id();
        self.port
            .outgoing()
            .push_message(write_message(&question(id)));
        self.write_or_loss()?;
        Ok(id)
    }

    /// Takes a request back. That the session is lost needs no telling: the request is lost with it.
    pub(super) fn send_cancel(&mut self, id: RequestId) {
        let cancel = write_message(&ClientMessage::Cancel(id));
        self.port.outgoing().push_message(cancel);
        self.write();
    }

    fn write_or_loss(&mut self) -> Result<()> {
        self.write();
        match &self.lost {
            Some(lost) => Err(lost.error.clone()),
            None => Ok(()),
        }
    }

    fn write(&mut self) {
        let now = Instant::now();
        for dealer in self.out.iter_mut().chain([&mut self.port]) {
            if dealer.has_unwritten() {
                dealer.write(now, &mut self.inbox);
            }
        }
        self.note_losses(now);
    }

    fn lose(&mut self, error: Error) -> Error {
        let until = Instant::now();
        let lost = self.lost.get_or_insert(Loss { error, until });
        lost.error.clone()
    }

    /// Waits for the next answer, the deadline, or the end of the session, which is an error.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Result<Event> {
        loop {
            if let Some(frames) = self.take_message() {
                return match server::read(frames) {
                    Ok((id, message)) => Ok(Event::Message(id, message)),
                    Err(e) => Err(self.lose_unreadable(&e)),
                };
            }
            if self.wait(deadline, None)? == News::TimedOut {
                return Ok(Event::TimedOut);
            }
        }
    }

    /// What cannot be read ends the session: nobody could say whose answer it was.
    pub(super) fn lose_unreadable(&mut self, error: &Error) -> Error {
        let endpoint = self.port.endpoint();
        let error = Error::internal(format!("{endpoint}: {}", error.message()));
        self.lose(error)
    }

    /// An answer that has come.
    pub(super) fn take_message(&mut self) -> Option<Vec<Bytes>> {
        self.inbox.messages.pop_front()
    }

    /// Waits until an answer has come, another thread wants something, or the time is over. The end of the session is an
    /// error; what had come before it counts, and is given first.
    pub(super) fn wait(
        &mut self,
        deadline: Option<Instant>,
        waker: Option<&Waker>,
    ) -> Result<News> {
        loop {
            if !self.inbox.messages.is_empty() {
                return Ok(News::Messages);
            }
            let limit = match &self.lost {
                Some(lost) if self.is_all_lost() || lost.until <= Instant::now() => {
                    return Err(lost.error.clone());
                }
                Some(lost) => Some(lost.until),
                None => deadline,
            };
            if self.turn(limit, waker)? && self.inbox.messages.is_empty() {
                return Ok(News::Woken);
            }
            let is_over = deadline.is_some_and(|deadline| deadline <= self.waited);
            if is_over && self.inbox.messages.is_empty() && self.lost.is_none() {
                return Ok(News::TimedOut);
            }
        }
    }

    fn is_all_lost(&self) -> bool {
        let is_lost = |dealer: &Dealer| dealer.phase() == Phase::Lost;
        is_lost(&self.port) && self.out.as_ref().is_none_or(is_lost)
    }

    /// Waits once, until `limit` or until there is something to do, and does it: reads what has come, writes what there
    /// is room for, asks for signs of life. True if another thread asked for this one.
    fn turn(&mut self, limit: Option<Instant>, waker: Option<&Waker>) -> Result<bool> {
        let start = Instant::now();
        self.skip(start);
        let until = limit.map_or(self.check_at, |limit| limit.min(self.check_at));
        let seen = self.poll(until.saturating_duration_since(start), waker)?;
        let now = Instant::now();
        self.waited = now;
        let [port, out, woken] = seen;
        if let Some(dealer) = &mut self.out {
            dealer.go_on(out, now, &mut self.inbox);
        }
        self.port.go_on(port, now, &mut self.inbox);
        if now >= self.check_at {
            self.check_at = now + CHECK;
            for dealer in self.out.iter_mut().chain([&mut self.port]) {
                dealer.check(now, &mut self.inbox);
            }
        }
        self.note_losses(now);
        let is_woken = !woken.is_empty();
        if let Some(waker) = waker
            && is_woken
        {
            waker.clear();
        }
        Ok(is_woken)
    }

    /// The time since the last wait: nobody would have heard the server.
    fn skip(&mut self, now: Instant) {
        let idle = now.saturating_duration_since(self.waited);
        self.check_at += idle;
        for dealer in self.out.iter_mut().chain([&mut self.port]) {
            dealer.not_heard(idle, now);
        }
    }

    /// What is to be seen at `port`, `port_out` and the waker, at the latest when the time is over.
    fn poll(&mut self, timeout: Duration, waker: Option<&Waker>) -> Result<[PollFlags; 3]> {
        // A connection that is lost would always have its end to tell.
        let open = |dealer: &Dealer| dealer.phase() != Phase::Lost;
        let dealers = [Some(&self.port), self.out.as_ref()];
        let [port, out] = dealers.map(|dealer| dealer.filter(|dealer| open(dealer)));
        let wanted: [Option<(BorrowedFd<'_>, PollFlags)>; 3] = [
            port.map(|port| (port.as_fd(), port.interest())),
            out.map(|out| (out.as_fd(), out.interest())),
            waker.map(|waker| (waker.as_fd(), PollFlags::IN)),
        ];
        let unused = || PollFd::from_borrowed_fd(self.port.as_fd(), PollFlags::empty());
        let mut fds = [unused(), unused(), unused()];
        let mut count = 0;
        for (fd, flags) in wanted.into_iter().flatten() {
            fds[count] = PollFd::from_borrowed_fd(fd, flags);
            count += 1;
        }
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as _,
            tv_nsec: timeout.subsec_nanos() as _,
        };
        match poll(&mut fds[..count], Some(&timeout)) {
            Ok(_) => {}
            // A signal: there is nothing to see this time.
            Err(rustix::io::Errno::INTR) => return Ok([PollFlags::empty(); 3]),
            Err(e) => {
                let error = Error::unavailable(format!("{}: poll: {e}", self.port.endpoint()));
                return Err(self.lose(error));
            }
        }
        let mut seen = fds[..count].iter().map(PollFd::revents);
        Ok(wanted.map(|wanted| match wanted {
            Some(_) => seen.next().unwrap_or(PollFlags::empty()),
            None => PollFlags::empty(),
        }))
    }

    fn note_losses(&mut self, now: Instant) {
        if self.lost.is_some() {
            return;
        }
        let mut dealers = self.out.iter().chain([&self.port]);
        if let Some(lost) = dealers.find(|dealer| dealer.phase() == Phase::Lost) {
            self.lost = Some(Loss {
                error: lost.loss(),
                until: now + LAST_WORDS,
            });
        }
    }

    /// Waits for the final answer to one request; other answers are for nobody.
    pub(super) fn wait_for(
        &mut self,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Result<ServerMessage> {
        loop {
            match self.next(deadline)? {
                Event::Message(of, ServerMessage::Error(e)) if of == id => return Err(e),
                Event::Message(of, message) if of == id => return Ok(message),
                Event::Message(..) => {}
                Event::TimedOut => {
                    return Err(Error::new(
                        ErrorCode::DeadlineExceeded,
                        format!("{}: no answer in time", self.port.endpoint()),
                    ));
                }
            }
        }
    }
}

/// Beyond the server's bound the connection would be cut without a word.
pub(super) fn check_size(request: &Encoded<'_>, limit: u64) -> Result<()> {
    let bytes = request.frame_bytes();
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::exhausted(format!(
        "the request takes {bytes} bytes, the server's limit is {limit} (max_request_bytes): send fewer rows at once"
    )))
}

/// When that time is over. What no clock can hold is for ever: some years.
pub(super) fn after(time: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(1 << 30);

    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + FOR_EVER)
}

/// 16 random bytes, the first not 0: ids that start with 0 are those that a ROUTER makes itself.
fn routing_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    while id[0] == 0 {
        getrandom::fill(&mut id)
            .map_err(|e| Error::unavailable(format!("the system gives no random bytes: {e}")))?;
    }
    Ok(id)
}
