//! The connections of one door thread: each is a caller of the pipeline, and slow, stalled and idle ones are closed.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashMap;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::frames::Frames;
use super::shared::Shared;
use super::submit::Caller;
use crate::message::Protocol;

/// How many seconds connections without an answer have to end once the server has stopped, and all of them after a stop at
/// once.
const LAST_SECONDS: u32 = 2;
/// How many seconds a peer may take no byte of its last answer once the server has stopped: the silence that ends a session
/// of our own protocol.
const LAST_STALL_SECONDS: u32 = 6;
const SECOND: Duration = Duration::from_secs(1);
/// How many seconds the head of a request may take from its first byte on.
const HEAD_SECONDS: u32 = 10;
/// How many seconds a peer may take no byte of an answer.
const STALL_SECONDS: u32 = 30;
/// How many seconds a connection may lie idle.
const IDLE_SECONDS: u32 = 600;
/// How long a peer may take to close a connection of HTTP/2 that was closed here.
const LINGER: Duration = Duration::from_secs(1);
/// The bytes that a connection of HTTP/2 begins with.
const PREFACE_BYTES: usize = 24;

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// To go on.
    Open,
    /// To take no further request, and to close after the answers to those it has.
    Finish,
    /// To close.
    Close,
}

/// A connection. Its times are seconds of the thread's own count.
pub(crate) struct Connection {
    /// Who it is for the pipeline.
    pub(crate) caller: Caller,
    /// Who it is for the system.
    pub(crate) peer: SocketAddr,
    pub(super) kind: Protocol,
    clock: Rc<Cell<u32>>,
    wanted: Cell<Wanted>,
    /// Wakes what drives it when it is told something, and whatever else waits for that.
    waker: RefCell<Option<Waker>>,
    told: Notify,
    /// Requests that are being read or answered.
    open: Cell<u32>,
    /// When the head of the next request began to come.
    head_since: Cell<Option<u32>>,
    /// Since when the system takes nothing for the peer.
    stalled_since: Cell<Option<u32>>,
    /// Pieces of answers that the peer has not taken whole, and when it last took a byte of any. A peer of HTTP/2 that opens
    /// no window takes none, although the system would.
    owed: Cell<usize>,
    last_taken: Cell<u32>,
    last_read: Cell<u32>,
    speaks: Cell<Speaks>,
    frames: RefCell<Frames>,
    /// What its protocol has left behind, and whether it was done.
    left: Cell<Option<TcpStream>>,
    ended_well: Cell<bool>,
}

/// What a peer speaks, as far as its bytes matter to the time that it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// One request after the other: a byte between them begins a head.
    InTurn,
    /// HTTP/2, of whose beginning so many bytes are still to come.
    Preface(usize),
    /// HTTP/2: its streams come and go by themselves, and its frames tell when a head begins.
    Streams,
}

impl Connection {
    /// Waits a moment for the peer to close, once the last bytes of HTTP/2 were written: closing while it still tells
    /// what it has taken would reset the connection, and it would lose the rest of an answer.
    pub(super) async fn linger(&self) {
        let Some(mut stream) = self.left.take() else {
            return;
        };
        if !self.ended_well.get() || self.speaks.get() != Speaks::Streams {
            return;
        }
        let closed = async {
            let shut = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await;
            let mut rest = [0; 1024];
            while shut.is_ok() && stream.readable().await.is_ok() {
                match stream.try_read(&mut rest) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        let closed = self.unless(|wanted| wanted == Wanted::Close, closed);
        let _ = tokio::time::timeout(LINGER, closed).await; // it has had its time
    }

    /// It speaks HTTP/2, whose beginning has the time of a head to come.
    pub(super) fn expect_preface(&self) {
        self.speaks.set(Speaks::Preface(PREFACE_BYTES));
        self.head_since.set(Some(self.clock.get()));
    }

    /// A request has begun; it ends when what this gives is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> Open {
        if self.speaks.get() == Speaks::InTurn {
            self.head_since.set(None);
        }
        self.open.set(self.open.get() + 1);
        Open(self.clone())
    }

    /// Drives a connection to its end, or until it is told to close. `finish` tells it to take no further request.
    pub(super) async fn drive<C, E>(&self, connection: C, mut finish: impl FnMut(Pin<&mut C>))
    where
        C: Future<Output = Result<(), E>>,
        E: std::fmt::Display,
    {
        let mut connection = std::pin::pin!(connection);
        let mut finishing = false;
        std::future::poll_fn(|cx| {
            self.wake_by(cx);
            match self.wanted.get() {
                Wanted::Close => return Poll::Ready(()),
                Wanted::Finish if !finishing => {
                    finishing = true;
                    finish(connection.as_mut());
                }
                Wanted::Finish | Wanted::Open => {}
            }
            connection.as_mut().poll(cx).map(|ended| match ended {
                Ok(()) => self.ended_well.set(true),
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "a connection has ended");
                }
            })
        })
        .await;
    }

    /// Waits for something of this connection, unless it is told to close or to finish.
    pub(crate) async fn unless_told<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        self.unless(|wanted| wanted != Wanted::Open, what).await
    }

    async fn unless<T>(
        &self,
        is_told: impl Fn(Wanted) -> bool,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        let mut what = std::pin::pin!(what);
        let mut told = std::pin::pin!(self.told.notified());
        std::future::poll_fn(|cx| {
            while !is_told(self.wanted.get()) {
                if told.as_mut().poll(cx).is_pending() {
                    return what.as_mut().poll(cx).map(Some);
                }
                told.set(self.told.notified());
            }
            Poll::Ready(None)
        })
        .await
    }

    fn wake_by(&self, cx: &mut Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    fn tell(&self, wanted: Wanted) {
        self.wanted.set(wanted);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        self.told.notify_waiters();
    }

    /// Since when its peer has taken no byte of an answer that is there for it.
    fn owes_since(&self) -> Option<u32> {
        let taken = (self.owed.get() > 0).then(|| self.last_taken.get());
        self.stalled_since.get().or(taken)
    }

    /// Whether there is an answer for its peer, which has taken some of it lately.
    fn reads_its_answer(&self, now: u32) -> bool {
        self.owes_since()
            .is_some_and(|since| now - since <= LAST_STALL_SECONDS)
    }

    /// What is to become of it, if its peer crawls or stalls.
    fn judge(&self, now: u32) -> Wanted {
        let longer = |since: Option<u32>, limit| since.is_some_and(|since| now - since > limit);
        let owed_since = (self.owed.get() > 0).then(|| self.last_taken.get());
        if longer(self.stalled_since.get(), STALL_SECONDS) || longer(owed_since, STALL_SECONDS) {
            return Wanted::Close;
        }
        // With requests open too: over HTTP/2 the next ones come beside them.
        if longer(self.head_since.get(), HEAD_SECONDS) {
            return Wanted::Close;
        }
        if self.open.get() > 0 {
            return self.wanted.get();
        }
        if longer(Some(self.last_read.get()), IDLE_SECONDS) {
            return Wanted::Finish;
        }
        self.wanted.get()
    }

    /// These bytes were read.
    pub(super) fn note_read(&self, bytes: &[u8]) {
        let now = self.clock.get();
        self.last_read.set(now);
        match self.speaks.get() {
            Speaks::InTurn => {
                if self.open.get() == 0 && self.head_since.get().is_none() {
                    self.head_since.set(Some(now));
                }
            }
            Speaks::Preface(left) if bytes.len() < left => {
                self.speaks.set(Speaks::Preface(left - bytes.len()));
            }
            Speaks::Preface(left) => {
                self.speaks.set(Speaks::Streams);
                self.head_since.set(None);
                self.note_frames(&bytes[left..]);
            }
            Speaks::Streams => self.note_frames(bytes),
        }
    }

    fn note_frames(&self, bytes: &[u8]) {
        let mut frames = self.frames.borrow_mut();
        let was_between = frames.read(bytes);
        let since = self.head_since.get().filter(|_| !was_between);
        let since = since.unwrap_or_else(|| self.clock.get());
        self.head_since.set(frames.is_in_head().then_some(since));
    }

    /// The system has taken bytes, or would not.
    pub(super) fn note_write(&self, is_stalled: bool) {
        let since = self.stalled_since.get();
        self.stalled_since.set(match is_stalled {
            true => since.or(Some(self.clock.get())),
            false => None,
        });
    }

    /// Its protocol is done with the stream.
    pub(super) fn leave(&self, stream: Option<TcpStream>) {
        self.left.set(stream);
    }
}

/// A piece of an answer that the peer has not taken whole.
pub(super) struct Owed(Rc<Connection>);

impl Owed {
    pub(super) fn new(connection: &Rc<Connection>) -> Owed {
        let owed = connection.owed.get();
        if owed == 0 {
            connection.last_taken.set(connection.clock.get());
        }
        connection.owed.set(owed + 1);
        Owed(connection.clone())
    }

    /// Its peer has taken some of it.
    pub(super) fn note_taken(&self) {
        self.0.last_taken.set(self.0.clock.get());
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.owed.set(self.0.owed.get() - 1);
    }
}

/// A request that is being read or answered.
pub(crate) struct Open(Rc<Connection>);

impl Open {
    /// Its connection.
    pub(crate) fn connection(&self) -> &Rc<Connection> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.last_read.set(self.0.clock.get());
    }
}

/// The connections of one door thread.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    clock: Rc<Cell<u32>>,
    last: Cell<u64>,
    all: RefCell<HashMap<u64, Rc<Connection>>>,
    /// None is left.
    emptied: Notify,
}

impl Connections {
    pub(super) fn new(shared: Arc<Shared>) -> Rc<Connections> {
        Rc::new(Connections {
            shared,
            clock: Rc::default(),
            last: Cell::new(0),
            all: RefCell::default(),
            emptied: Notify::new(),
        })
    }

    /// One more, unless there are too many.
    pub(super) fn add(&self, kind: Protocol, peer: SocketAddr) -> Option<Rc<Connection>> {
        if !self.shared.add_connection(kind) {
            return None;
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        let connection = Rc::new(Connection {
            caller: Caller::new(number),
            kind,
            peer,
            clock: self.clock.clone(),
            wanted: Cell::new(Wanted::Open),
            waker: RefCell::default(),
            told: Notify::new(),
            open: Cell::new(0),
            head_since: Cell::new(None),
            stalled_since: Cell::new(None),
            owed: Cell::new(0),
            last_taken: Cell::new(0),
            last_read: Cell::new(self.clock.get()),
            speaks: Cell::new(Speaks::InTurn),
            frames: RefCell::default(),
            left: Cell::new(None),
            ended_well: Cell::new(false),
        });
        self.all.borrow_mut().insert(number, connection.clone());
        Some(connection)
    }

    pub(super) fn remove(&self, connection: &Connection) {
        let number = connection.caller.number();
        let mut all = self.all.borrow_mut();
        if all.remove(&number).is_some() {
            self.shared.remove_connection(connection.kind);
        }
        if all.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// A second has passed: ends those whose peers crawl or stall.
    pub(super) fn look(&self) {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        for connection in self.all.borrow().values() {
            let wanted = connection.judge(now);
            if wanted != connection.wanted.get() {
                tracing::debug!(peer = %connection.peer, ?wanted, "its peer is too slow, or idle");
                connection.tell(wanted);
            }
        }
    }

    /// Closes each once its answers were written. Those that still owe nothing after [`LAST_SECONDS`], as those whose
    /// request was coming, are closed then. Whoever reads its answer is waited for as long as that takes, unless the server
    /// stops `at_once`.
    pub(super) async fn finish(&self, at_once: bool) {
        if self.all.borrow().is_empty() {
            return;
        }
        self.tell_all(Wanted::Finish, |_| true);
        let begun = self.clock.get();
        loop {
            let emptied = self.emptied.notified();
            // None that was told to close a second ago is waited for.
            let is_closing = |of: &Rc<Connection>| of.wanted.get() == Wanted::Close;
            let all_close = self.all.borrow().values().all(is_closing);
            if timeout(SECOND, emptied).await.is_ok() || all_close {
                return;
            }
            self.look();
            let now = self.clock.get();
            if now - begun < LAST_SECONDS {
                continue;
            }
            let given_up = |of: &Connection| at_once || !of.reads_its_answer(now);
            if self.tell_all(Wanted::Close, given_up) {
                tracing::warn!("answers were left that their clients at a door did not read");
            }
        }
    }

    /// Tells connections what to do; whether any of them had a part of an answer left.
    fn tell_all(&self, wanted: Wanted, which: impl Fn(&Connection) -> bool) -> bool {
        let mut owed = false;
        for connection in self.all.borrow().values().filter(|of| which(of)) {
            owed |= connection.owes_since().is_some();
            connection.tell(wanted);
        }
        owed
    }
}

#[cfg(test)]
mod tests;
