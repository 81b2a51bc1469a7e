//! A socket without a runtime: what would block is told, and whoever drives the connection waits for it.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One end of a connection, which the HTTP/2 code above it and its driver share.
pub struct Socket {
    stream: TcpStream,
    /// There is something to write, and the system did not take it.
    full: AtomicBool,
}

impl Socket {
    pub fn connect(authority: &str) -> io::Result<Arc<Socket>> {
        let stream = TcpStream::connect(authority)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Arc::new(Socket {
            stream,
            full: AtomicBool::new(false),
        }))
    }

    /// Waits until something came, or can go, or for so long.
    pub fn wait(&self, longest: Option<Duration>) -> io::Result<()> {
        let mut flags = PollFlags::IN;
        if self.full.load(Ordering::Relaxed) {
            flags |= PollFlags::OUT;
        }
        // A time that the system cannot hold is as good as no end.
        let longest = longest.and_then(|longest| Timespec::try_from(longest).ok());
        match poll(&mut [PollFd::new(&self.stream, flags)], longest.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn written(&self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        let is_full = result.as_ref().is_err_and(is_blocked);
        self.full.store(is_full, Ordering::Relaxed);
        ready(result)
    }
}

fn is_blocked(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn ready<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(e) if is_blocked(&e) => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// What the HTTP/2 code reads and writes.
pub struct Stream(pub Arc<Socket>);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = (&self.0.stream).read(into.initialize_unfilled());
        ready(read.map(|count| into.advance(count)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.written((&self.0.stream).write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.written((&self.0.stream).write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.stream.shutdown(std::net::Shutdown::Write))
    }
}

/// Whether something changed since it was last asked, so that there is something to look at before waiting.
#[derive(Default)]
pub struct Woken(AtomicBool);

impl Woken {
    pub fn waker(self: &Arc<Woken>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Whether it did; asking forgets it.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
