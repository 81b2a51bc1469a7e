//! Non-blocking streams and listeners, TCP and local.

use std::fmt;
use std::io::{self, Read, Write};
#[cfg(feature = "server")]
use std::net::TcpListener;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(feature = "server")]
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::net::sockopt;

use super::{HEARTBEAT, SILENCE};

/// A connected stream.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Local(UnixStream),
}

impl Stream {
    /// Sets up a stream that was accepted or connected: non-blocking, without Nagle's delay, and with TCP keepalive, which
    /// notices when the peer's host is gone.
    fn tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, HEARTBEAT)?;
        sockopt::set_tcp_keepintvl(&stream, HEARTBEAT)?;
        sockopt::set_tcp_keepcnt(&stream, (SILENCE.as_secs() / HEARTBEAT.as_secs()) as u32)?;
        Ok(Stream::Tcp(stream))
    }

    fn local(stream: UnixStream) -> io::Result<Stream> {
        stream.set_nonblocking(true)?;
        Ok(Stream::Local(stream))
    }

    /// Begins to connect. The stream becomes writable when that is done; then [`Stream::error`] says whether it failed.
    ///
    /// # Errors
    /// What is known at once: no such network, no descriptor.
    pub(crate) fn connect_tcp(address: SocketAddr) -> io::Result<Stream> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

        let family = if address.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        match connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Stream::tcp(TcpStream::from(socket))
    }

    /// Connects to a local socket, which is done at once or not at all.
    ///
    /// # Errors
    /// The system's: nothing listens there, or the path is not a socket's. `WouldBlock` if the listener's backlog is full.
    pub(crate) fn connect_local(path: &Path) -> io::Result<Stream> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Stream::Local(UnixStream::from(socket)))
    }

    /// The result of a connection that was begun.
    pub(crate) fn error(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(self)??)
    }

    /// Reads into the vector's spare capacity, which need not be zeroed for that.
    pub(crate) fn read_into(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        Ok(rustix::io::read(self, spare_capacity(buffer))?)
    }

    /// Nothing more will be written.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Local(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Local(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Local(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Local(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write_vectored(slices),
            Stream::Local(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stream::Tcp(_) => f.write_str("tcp"),
            Stream::Local(_) => f.write_str("ipc"),
        }
    }
}

/// Where streams are accepted.
#[cfg(feature = "server")]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Local(UnixListener),
}

#[cfg(feature = "server")]
impl Listener {
    pub(crate) fn tcp(addresses: &[SocketAddr]) -> io::Result<Listener> {
        let listener = TcpListener::bind(addresses)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(listener))
    }

    /// Listens at a path. A file that an earlier server left there is removed, so the path must be this server's own.
    pub(crate) fn local(path: &Path) -> io::Result<Listener> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Local(listener))
    }

    /// The port that a TCP listener has.
    pub(crate) fn port(&self) -> io::Result<u16> {
        match self {
            Listener::Tcp(listener) => Ok(listener.local_addr()?.port()),
            Listener::Local(_) => Ok(0),
        }
    }

    /// The next connection, if one has come.
    ///
    /// # Errors
    /// Why this connection failed, or that no descriptor is left.
    pub(crate) fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = match self {
            Listener::Tcp(listener) => listener.accept().and_then(|(s, _)| Stream::tcp(s)),
            Listener::Local(listener) => listener.accept().and_then(|(s, _)| Stream::local(s)),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(feature = "server")]
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Local(listener) => listener.as_fd(),
        }
    }
}

/// Whether an error of `accept` concerns that one connection, and not accepting as such.
pub(super) fn is_connection_error(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::InvalidInput
    )
}
