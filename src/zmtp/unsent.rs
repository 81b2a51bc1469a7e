//! How many written bytes the system still holds for a stream. (No crate wraps these two system calls.)
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written to a stream and have not arrived at its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Unsent {
    /// All that the peer's system has not confirmed.
    pub bytes: u64,
    /// Those of them that were sent. The rest waits because the peer's buffer is full: it is there and does not read.
    pub on_the_way: u64,
}

/// What the system still holds for a stream; 0 if the system does not say.
#[cfg(target_os = "linux")]
pub(crate) fn unsent(stream: &impl AsFd) -> Unsent {
    let ask = |request: libc::c_ulong| {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one int for these requests; the descriptor is open while it is borrowed.
        let rc = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), request as _, &raw mut bytes) };
        (rc == 0).then(|| u64::try_from(bytes).unwrap_or(0))
    };
    /// `SIOCOUTQNSD` of linux/sockios.h, which libc does not have: bytes that were never sent.
    const NOT_SENT: libc::c_ulong = 0x894b;

    let bytes = ask(libc::TIOCOUTQ).unwrap_or(0);
    // A local stream has no bytes on the way: they are in the peer's queue at once.
    let not_sent = ask(NOT_SENT).unwrap_or(bytes);
    Unsent {
        bytes,
        on_the_way: bytes.saturating_sub(not_sent),
    }
}

/// What the system still holds is not known on this platform.
#[cfg(not(target_os = "linux"))]
pub(crate) fn unsent(_stream: &impl AsFd) -> Unsent {
    Unsent::default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_nobody_reads_is_counted_until_it_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        assert_eq!(unsent(&near).bytes, 0);
        near.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(bytes) = near.write(&[0; 65536]) {
            written += bytes;
        }
        assert!(unsent(&near).bytes > 0);
        let mut buffer = vec![0; written];
        far.read_exact(&mut buffer).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while unsent(&near).bytes > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
