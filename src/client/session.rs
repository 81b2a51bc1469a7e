//! A client's session: one connection to `port` and one to `port_out`, under one routing id. It ends when either of them ends.

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
use crate::zmtp::dealer::{ConnectionState, Dealer, Endpoint, Inbox};
use crate::zmtp::outgoing::Outgoing;

/// How much longer than the request's own time the client waits: the server is to report the timeout first.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// How long one connection is still read after the other was lost. A server that stops closes both, and its last answers
/// must be read whichever end is noticed first.
const READ_AFTER_LOSS: Duration = Duration::from_millis(100);

/// How often a waiting thread checks that the server is still alive.
const HEARTBEAT_CHECK: Duration = Duration::from_secs(1);

/// What is needed to open a session.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) address: Address,
    pub(super) port_out: Option<Address>,
    pub(super) connect_timeout: Duration,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Requests with rows: it connects to `port_out` too, where results leave.
    Infer,
    /// Questions, which are answered on `port`.
    Ask,
}

/// What [`Session::next`] returns.
#[derive(Debug)]
pub(super) enum Next {
    Message(RequestId, ServerMessage),
    /// The deadline has passed.
    TimedOut,
}

/// Why [`Session::wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitEnd {
    /// Answers have arrived: [`Session::take_message`] returns them.
    Messages,
    /// The deadline has passed.
    TimedOut,
    /// Another thread used the waker.
    Woken,
    /// All that was queued is written.
    Written,
}

/// An open session. It is used by one thread at a time.
pub(super) struct Session {
    port: Dealer,
    out: Option<Dealer>,
    inbox: Inbox,
    last_id: u64,
    welcome: Welcome,
    lost: Option<Loss>,
    /// When a thread last polled the connections.
    polled_at: Instant,
    check_at: Instant,
}

/// Why a session is over, and until when its other connection is still read.
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
            polled_at: now,
            check_at: now + HEARTBEAT_CHECK,
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
        // libzmq's ROUTER refuses messages that arrive before it has sent its own part of the handshake.
        while self.newest().state() != ConnectionState::Open {
            if let Some(lost) = &self.lost {
                return Err(lost.error.clone());
            }
            if self.polled_at >= deadline {
                return Err(self.newest().hello_timeout(started.elapsed()));
            }
            self.poll_once(Some(deadline), None)?;
        }
        let id = self.next_id();
        let hello = write_message(&ClientMessage::Hello(id));
        let newest = self.out.as_mut().unwrap_or(&mut self.port);
        newest.outgoing().push_message(hello);
        self.write();
        loop {
            match self.next(Some(deadline)) {
                Ok(Next::Message(_, message @ ServerMessage::HelloOk(_))) if self.out.is_none() => {
                    return Ok(message);
                }
                Ok(Next::Message(_, ServerMessage::Welcome)) => return Ok(ServerMessage::Welcome),
                Ok(Next::Message(_, ServerMessage::HelloOk(_))) => {
                    return Err(Error::precondition(
                        "that endpoint takes requests, expected the one where results leave",
                    ));
                }
                Ok(Next::Message(_, ServerMessage::Error(e))) => {
                    return Err(Error::precondition(format!(
                        "{}: the server refused hello: {}",
                        self.newest().endpoint(),
                        e.message()
                    )));
                }
                Ok(Next::Message(..)) => {}
                Ok(Next::TimedOut) => return Err(self.newest().hello_timeout(started.elapsed())),
                // The answer cannot be decoded: a peer of another kind or version.
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

    /// What the session was opened for.
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

    /// Why the session is over, if it is.
    pub(super) fn loss(&self) -> Option<&Error> {
        self.lost.as_ref().map(|lost| &lost.error)
    }

    /// Whether another call may use the session, as far as that is known without a system call. Unwritten bytes would
    /// leave before that call's.
    pub(super) fn is_reusable(&self) -> bool {
        self.lost.is_none() && !self.port.has_unwritten()
    }

    /// Whether a session that was idle is still open. Late answers to earlier calls are dropped. Where nothing has
    /// arrived, the usual case, this takes one system call.
    pub(super) fn is_alive(&mut self) -> bool {
        while self.lost.is_none() && self.read_available() {}
        self.inbox.messages.clear();
        self.lost.is_none()
    }

    /// Reads and writes what is possible without waiting. Returns whether bytes were read.
    pub(super) fn read_available(&mut self) -> bool {
        self.inbox.has_read = false;
        // An error is recorded as the session's loss.
        let _ = self.poll_once(Some(self.polled_at), None);
        self.inbox.has_read
    }

    /// Sends a request from the caller's memory, and returns when all of it is written.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for more than the server takes at once, `DEADLINE_EXCEEDED`, and the session's loss. A
    /// request that was given up when it was written in part ends the session.
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
            // Answers are read meanwhile: a server stops reading from a client that does not read.
            self.poll_once(deadline, None)?;
            now = self.polled_at;
        }
    }

    /// Sends a request that owns its bytes, and returns when all of it is written: no other thread would write the rest.
    ///
    /// # Errors
    /// As [`Session::send_now`]; the rest of a request that was given up is written when the session is used again.
    pub(super) fn send_owned(
        &mut self,
        mut request: Encoded<'static>,
        deadline: Option<Instant>,
    ) -> Result<RequestId> {
        check_size(&request, self.welcome.max_request_bytes)?;
        let id = self.next_id();
        request.set_id(id);
        request.push_to(self.port.outgoing());
        self.write_or_loss()?;
        while self.has_unwritten() {
            self.poll_once(deadline, None)?;
            if let Some(lost) = &self.lost {
                return Err(lost.error.clone());
            }
            if deadline.is_some_and(|deadline| deadline <= self.polled_at) {
                return Err(gave_up());
            }
        }
        Ok(id)
    }

    /// Whether queued bytes are not written yet.
    pub(super) fn has_unwritten(&self) -> bool {
        self.lost.is_none() && self.port.has_unwritten()
    }

    /// Takes over what other threads have queued, and writes as much as the connection takes.
    pub(super) fn send_backlog(&mut self, backlog: &mut Outgoing) {
        self.port.outgoing().append(backlog);
        self.write();
    }

    /// Sends a question. The answer has the same id.
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

    /// Cancels a request. No error: where the session is lost, the request is too.
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

    /// Waits for the next answer or the deadline. The loss of the session is an error.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Result<Next> {
        loop {
            if let Some(frames) = self.take_message() {
                return match server::read(frames) {
                    Ok((id, message)) => Ok(Next::Message(id, message)),
                    Err(e) => Err(self.lose_unreadable(&e)),
                };
            }
            if self.wait(deadline, None)? == WaitEnd::TimedOut {
                return Ok(Next::TimedOut);
            }
        }
    }

    /// Ends the session because of an answer that cannot be decoded: it is not known which request it is for.
    pub(super) fn lose_unreadable(&mut self, error: &Error) -> Error {
        let endpoint = self.port.endpoint();
        let error = Error::internal(format!("{endpoint}: {}", error.message()));
        self.lose(error)
    }

    /// The next answer that has arrived.
    pub(super) fn take_message(&mut self) -> Option<Vec<Bytes>> {
        self.inbox.messages.pop_front()
    }

    /// Waits until an answer has arrived, all that was queued is written, another thread uses the waker, or the deadline has
    /// passed. The loss of the session is an error; answers that arrived before it are returned first.
    pub(super) fn wait(
        &mut self,
        deadline: Option<Instant>,
        waker: Option<&Waker>,
    ) -> Result<WaitEnd> {
        let had_unwritten = self.has_unwritten();
        loop {
            if !self.inbox.messages.is_empty() {
                return Ok(WaitEnd::Messages);
            }
            if had_unwritten && self.lost.is_none() && !self.has_unwritten() {
                return Ok(WaitEnd::Written);
            }
            let limit = match &self.lost {
                Some(lost) if self.is_all_lost() || lost.until <= Instant::now() => {
                    return Err(lost.error.clone());
                }
                Some(lost) => Some(lost.until),
                None => deadline,
            };
            if self.poll_once(limit, waker)? && self.inbox.messages.is_empty() {
                return Ok(WaitEnd::Woken);
            }
            let is_over = deadline.is_some_and(|deadline| deadline <= self.polled_at);
            if is_over && self.inbox.messages.is_empty() && self.lost.is_none() {
                return Ok(WaitEnd::TimedOut);
            }
        }
    }

    fn is_all_lost(&self) -> bool {
        let is_lost = |dealer: &Dealer| dealer.state() == ConnectionState::Lost;
        is_lost(&self.port) && self.out.as_ref().is_none_or(is_lost)
    }

    /// Polls once, until `limit` at the latest, and then reads, writes, and sends heartbeats where they are due. Returns
    /// whether the waker was used.
    fn poll_once(&mut self, limit: Option<Instant>, waker: Option<&Waker>) -> Result<bool> {
        let start = Instant::now();
        self.skip_idle_time(start);
        let until = limit.map_or(self.check_at, |limit| limit.min(self.check_at));
        let events = self.poll(until.saturating_duration_since(start), waker)?;
        let now = Instant::now();
        self.polled_at = now;
        let [port, out, woken] = events;
        if let Some(dealer) = &mut self.out {
            dealer.handle(out, now, &mut self.inbox);
        }
        self.port.handle(port, now, &mut self.inbox);
        if now >= self.check_at {
            self.check_at = now + HEARTBEAT_CHECK;
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

    /// Leaves the time since the last poll out of the heartbeats: nothing was read in it.
    fn skip_idle_time(&mut self, now: Instant) {
        let idle = now.saturating_duration_since(self.polled_at);
        self.check_at += idle;
        for dealer in self.out.iter_mut().chain([&mut self.port]) {
            dealer.not_read_for(idle, now);
        }
    }

    /// The poll events of `port`, `port_out` and the waker; none of them after the timeout.
    fn poll(&mut self, timeout: Duration, waker: Option<&Waker>) -> Result<[PollFlags; 3]> {
        // A lost connection is left out: it would be ready at once, each time.
        let open = |dealer: &Dealer| dealer.state() != ConnectionState::Lost;
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
            // A signal ended the wait: no events this time.
            Err(rustix::io::Errno::INTR) => return Ok([PollFlags::empty(); 3]),
            Err(e) => {
                let error = Error::unavailable(format!("{}: poll: {e}", self.port.endpoint()));
                return Err(self.lose(error));
            }
        }
        let mut events = fds[..count].iter().map(PollFd::revents);
        Ok(wanted.map(|wanted| match wanted {
            Some(_) => events.next().unwrap_or(PollFlags::empty()),
            None => PollFlags::empty(),
        }))
    }

    fn note_losses(&mut self, now: Instant) {
        if self.lost.is_some() {
            return;
        }
        let mut dealers = self.out.iter().chain([&self.port]);
        if let Some(lost) = dealers.find(|dealer| dealer.state() == ConnectionState::Lost) {
            self.lost = Some(Loss {
                error: lost.loss(),
                until: now + READ_AFTER_LOSS,
            });
        }
    }

    /// Waits for the final answer to one request; other answers are late ones, and are dropped.
    pub(super) fn wait_for(
        &mut self,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Result<ServerMessage> {
        loop {
            match self.next(deadline)? {
                Next::Message(of, ServerMessage::Error(e)) if of == id => return Err(e),
                Next::Message(of, message) if of == id => return Ok(message),
                Next::Message(..) => {}
                Next::TimedOut => {
                    return Err(Error::new(
                        ErrorCode::DeadlineExceeded,
                        format!("{}: no answer in time", self.port.endpoint()),
                    ));
                }
            }
        }
    }
}

/// Checks a request against the server's bound: the server closes a connection that sends more, without an error.
pub(super) fn check_size(request: &Encoded<'_>, limit: u64) -> Result<()> {
    let bytes = request.frame_bytes();
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::exhausted(format!(
        "the request takes {bytes} bytes, the server's limit is {limit} (max_request_bytes): send fewer rows at once"
    )))
}

/// The instant so much later; about 34 years from now for more than an `Instant` can hold.
pub(super) fn after(time: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(1 << 30);

    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + FOR_EVER)
}

/// 16 random bytes, the first not 0: ZMTP keeps ids that begin with 0 for those that a ROUTER assigns.
fn routing_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    while id[0] == 0 {
        getrandom::fill(&mut id)
            .map_err(|e| Error::unavailable(format!("the system gives no random bytes: {e}")))?;
    }
    Ok(id)
}
