//! The connections of one door thread: each is a caller of the pipeline, and none may crawl, stall or outstay the server.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pipeline::Caller;
use super::shared::Shared;
use crate::message::DoorKind;

/// How many seconds the head of a request may take from its first byte on.
const HEAD_SECONDS: u32 = 10;
/// How many seconds a peer may take no byte of an answer.
const STALL_SECONDS: u32 = 30;
/// How many seconds a connection may lie idle.
const IDLE_SECONDS: u32 = 600;
/// How long a peer may take to close a connection of HTTP/2 that was closed here.
const LINGER: Duration = Duration::from_secs(1);
/// How often a stop looks whether the connections have ended.
const FINISH_EVERY: Duration = Duration::from_millis(5);

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
    kind: DoorKind,
    clock: Rc<Cell<u32>>,
    wanted: Cell<Wanted>,
    waker: RefCell<Option<Waker>>,
    /// Requests that are being read or answered.
    open: Cell<u32>,
    /// When the head of the next request began to come.
    head_since: Cell<Option<u32>>,
    /// Since when the peer has taken nothing.
    stalled_since: Cell<Option<u32>>,
    last_read: Cell<u32>,
    /// Its streams come and go by themselves: no byte means that a head begins.
    multiplexed: Cell<bool>,
    /// What its protocol has left behind.
    left: Cell<Option<TcpStream>>,
}

impl Connection {
    /// Waits a moment for the peer to close, once the last bytes of HTTP/2 were written: closing while it still tells
    /// what it has taken would reset the connection, and it would lose the rest of an answer.
    pub(super) async fn linger(&self) {
        let Some(mut stream) = self.left.take() else {
            return;
        };
        if !self.multiplexed.get() {
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
        let _ = tokio::time::timeout(LINGER, closed).await; // it has had its time
    }

    /// It speaks HTTP/2.
    pub(crate) fn set_multiplexed(&self) {
        self.multiplexed.set(true);
        self.head_since.set(None);
    }

    /// A request has begun; it ends when what this gives is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> Open {
        self.head_since.set(None);
        self.open.set(self.open.get() + 1);
        Open(self.clone())
    }

    /// Drives a connection to its end, or until it is told to close. `finish` tells it to take no further request.
    pub(crate) async fn drive<C, E>(&self, connection: C, mut finish: impl FnMut(Pin<&mut C>))
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
            connection.as_mut().poll(cx).map(|ended| {
                if let Err(error) = ended {
                    tracing::debug!(peer = %self.peer, %error, "a connection has ended");
                }
            })
        })
        .await;
    }

    /// Waits for something of this connection, unless it is told to close or to finish.
    pub(crate) async fn unless_told<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = std::pin::pin!(what);
        std::future::poll_fn(|cx| {
            self.wake_by(cx);
            if self.wanted.get() != Wanted::Open {
                return Poll::Ready(None);
            }
            what.as_mut().poll(cx).map(Some)
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
    }

    /// What is to become of it, if its peer crawls or stalls.
    fn judge(&self, now: u32) -> Wanted {
        let longer = |since: Option<u32>, limit| since.is_some_and(|since| now - since > limit);
        if longer(self.stalled_since.get(), STALL_SECONDS) {
            return Wanted::Close;
        }
        if self.open.get() > 0 {
            return self.wanted.get();
        }
        if longer(self.head_since.get(), HEAD_SECONDS) {
            return Wanted::Close;
        }
        if longer(Some(self.last_read.get()), IDLE_SECONDS) {
            return Wanted::Finish;
        }
        self.wanted.get()
    }

    fn note_read(&self) {
        let now = self.clock.get();
        self.last_read.set(now);
        if self.open.get() == 0 && !self.multiplexed.get() && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
    }

    fn note_write(&self, is_stalled: bool) {
        let since = self.stalled_since.get();
        self.stalled_since.set(match is_stalled {
            true => since.or(Some(self.clock.get())),
            false => None,
        });
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

/// A stream of bytes that notes when its peer was last heard of, and since when it takes nothing.
pub(crate) struct Watched {
    /// It is there until this is dropped.
    stream: Option<TcpStream>,
    connection: Rc<Connection>,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, connection: Rc<Connection>) -> Watched {
        Watched {
            stream: Some(stream),
            connection,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connection.left.set(self.stream.take());
    }
}

/// What is asked of a stream that is no longer there.
fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return gone();
        };
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.note_read();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return gone();
        };
        let written = Pin::new(stream).poll_write(cx, bytes);
        self.connection.note_write(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return gone();
        };
        let written = Pin::new(stream).poll_write_vectored(cx, slices);
        self.connection.note_write(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => gone(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => gone(),
        }
    }
}

/// The connections of one door thread.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    clock: Rc<Cell<u32>>,
    last: Cell<u64>,
    all: RefCell<HashMap<u64, Rc<Connection>>>,
}

impl Connections {
    pub(super) fn new(shared: Arc<Shared>) -> Rc<Connections> {
        Rc::new(Connections {
            shared,
            clock: Rc::default(),
            last: Cell::new(0),
            all: RefCell::default(),
        })
    }

    /// One more, unless there are too many.
    pub(super) fn add(&self, kind: DoorKind, peer: SocketAddr) -> Option<Rc<Connection>> {
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
            open: Cell::new(0),
            head_since: Cell::new(None),
            stalled_since: Cell::new(None),
            last_read: Cell::new(self.clock.get()),
            multiplexed: Cell::new(false),
            left: Cell::new(None),
        });
        self.all.borrow_mut().insert(number, connection.clone());
        Some(connection)
    }

    pub(super) fn remove(&self, connection: &Connection) {
        let number = connection.caller.number();
        if self.all.borrow_mut().remove(&number).is_some() {
            self.shared.remove_connection(connection.kind);
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

    /// Closes each once its answers were written; after so long it is closed at once.
    pub(super) async fn finish(&self, within: Duration) {
        let tell_all = |wanted| {
            for connection in self.all.borrow().values() {
                connection.tell(wanted);
            }
        };
        tell_all(Wanted::Finish);
        let deadline = tokio::time::Instant::now() + within;
        while !self.all.borrow().is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(FINISH_EVERY).await;
        }
        tell_all(Wanted::Close);
    }
}
