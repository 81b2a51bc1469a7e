//! Zero-copy frames: [`Bytes`] that borrow what a socket received, and messages that lend what a [`Bytes`] holds.
//!
//! libzmq can send memory that it does not own if it is given a function that is called when it is done with it
//! (`zmq_msg_init_data`). Ours drops a boxed [`Bytes`], from whichever thread libzmq calls it. The other way, a
//! received message becomes the owner behind a [`Bytes`].
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // the conversions above have no safe interface in the zmq crate

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use zmq::Socket;
use zmq_sys::zmq_msg_t;

/// Frames up to this many bytes are copied: cheaper than the allocations that lending takes, and the copy of a
/// received frame lies at an address that fits every datatype.
pub(crate) const COPY_BYTES: usize = 1024;

/// A message of libzmq's. The zmq crate's own type does not give out the pointer that lending needs.
struct Message(zmq_msg_t);

// SAFETY: a zmq_msg_t that no call is working on may be used from any thread, one at a time; the reference counts
// behind it are atomic.
unsafe impl Send for Message {}

impl Message {
    fn empty() -> Message {
        let mut raw = zmq_msg_t::default();
        // SAFETY: zmq_msg_init makes an empty message of any memory of this size, and cannot fail.
        unsafe { zmq_sys::zmq_msg_init(&raw mut raw) };
        Message(raw)
    }

    /// A message that copies the bytes.
    fn copied(bytes: &[u8]) -> zmq::Result<Message> {
        let mut raw = zmq_msg_t::default();
        // SAFETY: as above; a failure (out of memory) leaves nothing behind.
        if unsafe { zmq_sys::zmq_msg_init_size(&raw mut raw, bytes.len()) } != 0 {
            return Err(last_error());
        }
        // SAFETY: the message was just made with room for as many bytes, and nobody else knows it.
        unsafe {
            let data = zmq_sys::zmq_msg_data(&raw mut raw).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        }
        Ok(Message(raw))
    }

    /// A message that refers to the bytes until libzmq has sent them.
    fn lent(bytes: Bytes) -> zmq::Result<Message> {
        let mut raw = zmq_msg_t::default();
        let (data, size) = (bytes.as_ptr(), bytes.len());
        let owner = Box::into_raw(Box::new(bytes));
        // SAFETY: `data` stays valid until `release` runs, because `owner` keeps the Bytes alive and a Bytes never
        // moves what it refers to. libzmq only reads from it. It calls `release` exactly once, from any thread;
        // Bytes is Send.
        let rc = unsafe {
            zmq_sys::zmq_msg_init_data(
                &raw mut raw,
                data.cast_mut().cast::<c_void>(),
                size,
                Some(release),
                owner.cast::<c_void>(),
            )
        };
        if rc != 0 {
            let error = last_error();
            // SAFETY: libzmq did not take the memory (it has none itself), so the box is still ours.
            drop(unsafe { Box::from_raw(owner) });
            return Err(error);
        }
        Ok(Message(raw))
    }

    fn send(mut self, socket: &mut Socket, flags: i32) -> zmq::Result<()> {
        loop {
            // SAFETY: both are live. After a success the message is empty, and dropping it closes an empty message;
            // after a failure it is still whole, and dropping it gives its memory back.
            let rc = unsafe { zmq_sys::zmq_msg_send(&raw mut self.0, socket.as_mut_ptr(), flags) };
            if rc >= 0 {
                return Ok(());
            }
            match last_error() {
                // A signal: what came before of the same message must not be left without its end.
                zmq::Error::EINTR => {}
                error => return Err(error),
            }
        }
    }

    fn receive(socket: &mut Socket, flags: i32) -> zmq::Result<Message> {
        let mut message = Message::empty();
        // SAFETY: both are live; a failure leaves the message empty.
        let rc = unsafe { zmq_sys::zmq_msg_recv(&raw mut message.0, socket.as_mut_ptr(), flags) };
        if rc < 0 {
            Err(last_error())
        } else {
            Ok(message)
        }
    }

    fn more(&self) -> bool {
        // SAFETY: the message is live; the call reads a flag.
        unsafe { zmq_sys::zmq_msg_more(&raw const self.0) != 0 }
    }

    /// As [`Bytes`]: small ones are copied, large ones keep libzmq's own memory.
    fn into_bytes(self) -> Bytes {
        if self.as_ref().len() <= COPY_BYTES {
            Bytes::copy_from_slice(self.as_ref())
        } else {
            Bytes::from_owner(self)
        }
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        let raw = (&raw const self.0).cast_mut();
        // SAFETY: the message is live, and its bytes are where libzmq says for as long as it is neither sent nor
        // closed, both of which take it by value. (The two calls only read, though they take `*mut`.)
        unsafe {
            let size = zmq_sys::zmq_msg_size(raw);
            if size == 0 {
                return &[];
            }
            std::slice::from_raw_parts(zmq_sys::zmq_msg_data(raw).cast::<u8>(), size)
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: every Message was initialised, and is closed only here.
        unsafe { zmq_sys::zmq_msg_close(&raw mut self.0) };
    }
}

unsafe extern "C" fn release(_data: *mut c_void, owner: *mut c_void) {
    // SAFETY: `owner` came out of Box::into_raw in `lent`, and libzmq calls this once.
    drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
}

fn last_error() -> zmq::Error {
    // SAFETY: reads libzmq's errno of this thread.
    zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() })
}

/// The descriptor that becomes readable when the socket has something to receive, to be polled with others; the rules are those of [`crate::socket::Waiter::wait`].
///
/// # Errors
/// The socket's.
pub(crate) fn descriptor(socket: &Socket) -> crate::error::Result<BorrowedFd<'_>> {
    let fd = socket.get_fd()?;
    // SAFETY: libzmq keeps the descriptor open for as long as the socket lives, which is borrowed.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Receives all frames of one message. `None`: nothing is there (with DONTWAIT), or nothing came in time.
///
/// # Errors
/// The socket's error, where it is not "try again".
pub(crate) fn receive(socket: &mut Socket, flags: i32) -> zmq::Result<Option<Vec<Bytes>>> {
    let mut frames = Vec::with_capacity(4);
    loop {
        // Once the first frame is there, so are the others: libzmq hands out whole messages.
        let flags = if frames.is_empty() { flags } else { 0 };
        let message = match Message::receive(socket, flags) {
            Ok(message) => message,
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) if frames.is_empty() => return Ok(None),
            Err(zmq::Error::EINTR) => continue,
            Err(e) => return Err(e),
        };
        let more = message.more();
        frames.push(message.into_bytes());
        if !more {
            return Ok(Some(frames));
        }
    }
}

/// Sends all frames as one message. Small frames are copied, large ones lent until libzmq has sent them.
///
/// # Errors
/// The socket's error on the first frame (later frames of a message do not fail by a full queue).
pub(crate) fn send(
    socket: &mut Socket,
    frames: impl IntoIterator<Item = Bytes>,
    flags: i32,
) -> zmq::Result<()> {
    let mut frames = frames.into_iter().peekable();
    while let Some(frame) = frames.next() {
        let more = frames.peek().map_or(0, |_| zmq::SNDMORE);
        let message = if frame.len() <= COPY_BYTES {
            Message::copied(&frame)?
        } else {
            Message::lent(frame)?
        };
        message.send(socket, flags | more)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_given_back_once_it_is_sent() {
        struct Probe(std::sync::mpsc::Sender<()>, Vec<u8>);
        impl AsRef<[u8]> for Probe {
            fn as_ref(&self) -> &[u8] {
                &self.1
            }
        }
        impl Drop for Probe {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let context = zmq::Context::new();
        let mut a = context.socket(zmq::PAIR).unwrap();
        let mut b = context.socket(zmq::PAIR).unwrap();
        a.bind("inproc://lend").unwrap();
        b.connect("inproc://lend").unwrap();
        let (sender, dropped) = std::sync::mpsc::channel();
        let bytes = Bytes::from_owner(Probe(sender, vec![7; 100_000]));
        let address = bytes.as_ptr();
        send(&mut a, [bytes.slice(5..), Bytes::from_static(b"x")], 0).unwrap();
        drop(bytes);
        let frames = receive(&mut b, 0).unwrap().unwrap();
        assert_eq!(frames[0].len(), 99_995);
        assert_eq!(
            frames[0].as_ptr(),
            address.wrapping_add(5),
            "inproc is a pointer"
        );
        assert!(dropped.try_recv().is_err(), "still in use");
        drop(frames);
        dropped
            .recv_timeout(std::time::Duration::from_secs(5))
            .expect("given back");
    }
}
