//! What comes in: the pieces of a body, the one piece of memory that is made of them, and the count of its bytes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Incoming};

use super::shared::Shared;
use crate::error::Error;

/// What has more bytes is read, written or packed beside the runtime, which serves others meanwhile.
pub(crate) const HERE_BYTES: usize = 256 * 1024;
/// How long a body may let us wait for its next byte.
pub(crate) const NEXT_BYTE: Duration = Duration::from_secs(15);

/// Why a body cannot be had.
#[derive(Debug)]
pub(crate) enum Unread {
    /// No byte has come for so long.
    Silent(Duration),
    /// Its connection, or its stream of one, has ended.
    Broken(hyper::Error),
    /// It has more than the most that it may have: so many, if that is known.
    TooLong { bytes: Option<u64>, most: u64 },
    /// There is no room for it now, or it is not what it says.
    Refused(Error),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread::Refused(error)
    }
}

/// The next piece of a body, as it comes; trailers are passed over. Without patience it may take as long as it likes.
///
/// # Errors
/// [`Unread::Silent`] and [`Unread::Broken`].
pub(crate) async fn next(
    body: &mut Incoming,
    patience: Option<Duration>,
) -> Result<Option<Bytes>, Unread> {
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        let frame = match patience {
            None => frame.await,
            Some(patience) => tokio::time::timeout(patience, frame)
                .await
                .map_err(|_| Unread::Silent(patience))?,
        };
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(Unread::Broken(error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
    Ok(None)
}

/// How long a body may come until it counts as one that is long in coming, however few bytes it has.
const LONG_IN_COMING: Duration = Duration::from_secs(5);

/// Bytes of bodies that are being read; they count as long as this lives.
pub(crate) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
    /// Of a body that comes in pieces, until all of it has come.
    coming: Option<Coming>,
}

/// A body that comes in pieces.
struct Coming {
    began: Instant,
    /// Its number among the uploads that may have to make room, once it is large or long in coming.
    upload: Option<u64>,
}

impl Reserved {
    /// None so far.
    pub(crate) fn none(shared: &Arc<Shared>) -> Reserved {
        Reserved {
            shared: shared.clone(),
            bytes: 0,
            coming: None,
        }
    }

    /// None so far, of a body that comes in pieces.
    pub(crate) fn coming(shared: &Arc<Shared>) -> Reserved {
        let coming = Coming {
            began: Instant::now(),
            upload: None,
        };
        let mut reserved = Reserved::none(shared);
        reserved.coming = Some(coming);
        reserved
    }

    /// Counts more bytes.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there are too many over all connections, and it is not faster than others that come.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes as u64;
        let held = self.bytes + bytes;
        let upload = self.note(bytes, held)?;
        self.shared.reserve(bytes, held, upload)?;
        self.bytes = held;
        Ok(())
    }

    /// Its number among uploads, if it is one, has come in pieces, and is large or long in coming.
    fn note(&mut self, bytes: u64, held: u64) -> Result<Option<u64>, Error> {
        let Some(coming) = &mut self.coming else {
            return Ok(None);
        };
        let uploads = &self.shared.uploads;
        match coming.upload {
            Some(upload) if !uploads.note(upload, bytes, Instant::now()) => {
                return Err(self.shared.too_slow());
            }
            Some(_) => {}
            None => {
                let now = Instant::now();
                let is_long = now.saturating_duration_since(coming.began) > LONG_IN_COMING;
                if held > HERE_BYTES as u64 || is_long {
                    coming.upload = Some(uploads.add(coming.began, held, now));
                }
            }
        }
        Ok(coming.upload)
    }

    /// Ready if it has to make room for others.
    fn poll_closed(&self, cx: &Context<'_>) -> Poll<Error> {
        match self.upload() {
            Some(upload) if self.shared.uploads.poll_closed(upload, cx) => {
                Poll::Ready(self.shared.too_slow())
            }
            _ => Poll::Pending,
        }
    }

    fn upload(&self) -> Option<u64> {
        self.coming.as_ref().and_then(|coming| coming.upload)
    }

    /// All has come: it makes no room any more.
    fn finish(&mut self) {
        if let Some(upload) = self.upload() {
            self.shared.uploads.remove(upload);
        }
        self.coming = None;
    }

    /// As many of something else.
    pub(crate) fn another(&self) -> Reserved {
        Reserved::none(&self.shared)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.release(self.bytes);
        self.finish();
    }
}

/// A body, or a message of one, and the count of its bytes.
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) reserved: Reserved,
}

impl Whole {
    /// One that came in one piece: nothing is copied.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there are too many bytes over all connections.
    pub(crate) fn of(bytes: Bytes, mut reserved: Reserved) -> Result<Whole, Error> {
        reserved.add(bytes.len())?;
        Ok(Whole { bytes, reserved })
    }
}

/// How much memory is made ready at once for a body whose length was announced: what an announcement alone can cost.
const AHEAD_BYTES: usize = 1 << 20;
/// A body of up to so many bytes gets all of it: in further steps each copies what has come, and leaves free memory behind
/// that malloc gives back, which costs page faults. Until the bytes come it is addresses alone.
const AT_ONCE_BYTES: usize = 4 << 20;

/// A body that is put together: a tensor is one piece of memory. Its bytes count as they come. The memory for them grows
/// with what has come, in few steps, since each copies what is there.
pub(crate) struct Growing {
    whole: Vec<u8>,
    /// How many bytes stand ahead of the body.
    before: usize,
    most: usize,
    /// It will have `most` bytes, its client says.
    is_announced: bool,
    reserved: Reserved,
}

impl Growing {
    /// One of at most so many bytes, with so many others ahead of it in memory.
    pub(crate) fn new(reserved: Reserved, before: usize, most: u64) -> Growing {
        Growing {
            whole: Vec::new(),
            before,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            is_announced: false,
            reserved,
        }
    }

    /// One whose client says that it has so many bytes.
    pub(crate) fn announced(reserved: Reserved, before: usize, bytes: u64) -> Growing {
        Growing {
            is_announced: true,
            ..Growing::new(reserved, before, bytes)
        }
    }

    /// How many bytes have come.
    pub(crate) fn len(&self) -> usize {
        self.whole.len().saturating_sub(self.before)
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// [`Unread::TooLong`]; `RESOURCE_EXHAUSTED` if there are too many bytes over all connections, or no memory.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Unread> {
        let needed = self.len() + piece.len();
        if needed > self.most {
            let most = self.most as u64;
            return Err(Unread::TooLong { bytes: None, most });
        }
        self.reserved.add(piece.len())?;
        if self.before + needed > self.whole.capacity() {
            let room = match self.is_announced {
                true if self.most <= AT_ONCE_BYTES => self.most,
                true => needed.saturating_mul(4).max(needed + AHEAD_BYTES),
                false => needed.saturating_mul(2),
            };
            self.make_room(room.min(self.most))
                .or_else(|_| self.make_room(needed))?;
        }
        self.whole.extend_from_slice(piece);
        Ok(())
    }

    /// The next piece of a body that is put together here, as it comes.
    ///
    /// # Errors
    /// As [`next`]; `RESOURCE_EXHAUSTED` if it has to make room for others.
    pub(crate) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Unread> {
        let mut piece = pin!(next(body, Some(NEXT_BYTE)));
        poll_fn(|cx| match self.reserved.poll_closed(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error.into())),
            Poll::Pending => piece.as_mut().poll(cx),
        })
        .await
    }

    fn make_room(&mut self, room: usize) -> Result<(), Error> {
        let missing = (self.before + room).saturating_sub(self.whole.len());
        self.whole.try_reserve_exact(missing).map_err(|error| {
            Error::exhausted(format!(
                "{room} bytes of a request find no memory: {error}; try later"
            ))
        })?;
        if self.whole.is_empty() {
            self.whole.resize(self.before, 0);
        }
        Ok(())
    }

    /// All of it has come.
    pub(crate) fn finish(mut self) -> Whole {
        self.reserved.finish();
        self.whole.shrink_to_fit();
        let start = self.before.min(self.whole.len());
        Whole {
            bytes: Bytes::from(self.whole).slice(start..),
            reserved: self.reserved,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What doors share that were opened with these flags.
    pub(crate) fn shared(flags: &[&str]) -> Arc<Shared> {
        let words = std::iter::once("p").chain(flags.iter().copied());
        let config =
            crate::config::Config::from_command_line(words.map(Into::into), |_| None).unwrap();
        let crate::config::Asked::Run(config) = config else {
            panic!("settings")
        };
        Arc::new(Shared::new(&config))
    }

    /// Whether so many bytes are free, and no more.
    pub(crate) fn has_free(shared: &Shared, bytes: u64) -> bool {
        let is_free = shared.reserve(bytes, u64::MAX, None).is_ok();
        if is_free {
            shared.release(bytes);
        }
        is_free && shared.reserve(bytes + 1, u64::MAX, None).is_err()
    }

    #[test]
    fn memory_grows_with_what_has_come_and_each_byte_counts() {
        let shared = shared(&["--max-unfinished-bytes=1000"]);
        let mut growing = Growing::new(Reserved::none(&shared), 7, 900);
        growing.push(&[1; 10]).unwrap();
        assert_eq!(growing.whole.capacity(), 7 + 20);
        assert!(has_free(&shared, 990));
        growing.push(&[2; 490]).unwrap();
        // Not beyond what it may have.
        assert_eq!(growing.whole.capacity(), 7 + 900);
        let whole = growing.finish();
        assert_eq!(whole.bytes, [&[1; 10][..], &[2; 490]].concat());
        assert!(has_free(&shared, 500));
        let mut second = Growing::new(whole.reserved.another(), 0, 900);
        second.push(&[3; 400]).unwrap();
        assert!(has_free(&shared, 100));
        // Small ones may have an eighth more.
        assert!(matches!(second.push(&[3; 226]), Err(Unread::Refused(_))));
        assert!(matches!(
            second.push(&[3; 501]),
            Err(Unread::TooLong { most: 900, .. })
        ));
        drop((whole, second));
        assert!(has_free(&shared, 1000));
        let none = Growing::new(Reserved::none(&shared), 5, 9);
        assert!(none.finish().bytes.is_empty());
    }

    #[test]
    fn an_announced_length_is_made_room_for_in_few_steps_and_never_far_ahead() {
        let length: usize = 64 << 20;
        let shared = shared(&["--max-unfinished-bytes=100000000"]);
        let mut growing = Growing::announced(Reserved::none(&shared), 3, length as u64);
        let piece = vec![1; 64 << 10];
        let mut steps = 0;
        let mut room = 0;
        while growing.len() < length {
            growing.push(&piece).unwrap();
            let capacity = growing.whole.capacity();
            assert!(capacity <= 3 + growing.len() + AHEAD_BYTES.max(3 * growing.len()));
            steps += u32::from(capacity != room);
            room = capacity;
        }
        assert_eq!((steps, room), (4, 3 + length));
        // A short one is made room for at once.
        let mut short = Growing::announced(Reserved::none(&shared), 0, 3_000_000);
        short.push(&[1; 8]).unwrap();
        assert_eq!(short.whole.capacity(), 3_000_000);
    }
}
