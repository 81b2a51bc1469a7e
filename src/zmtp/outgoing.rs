//! The bytes that wait to be written on one connection: small frames are copied together, large ones written in place.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;

use super::codec::push_head;

/// Frames of up to so many bytes are copied behind what waits already; larger ones are written from where they lie.
pub(crate) const COPY_BYTES: usize = 4096;
/// A piece of copied frames gets no further frame once it has so many bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Most pieces of one vectored write; systems take no more than 1,024.
pub(crate) const MOST_SLICES: usize = 64;
/// Memory that an idle connection may keep for its next small answers.
const KEPT_BYTES: usize = 512;
/// Pieces that an idle connection keeps room for.
const KEPT_PIECES: usize = 8;
/// Most bytes that one connection writes before others get their turn: a peer that reads as fast as we write would never
/// make us stop, and a small answer to another peer waits while these are copied.
const TURN_BYTES: usize = 256 * 1024;

enum Piece {
    Copied(Vec<u8>),
    Lent(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Copied(bytes) => bytes,
            Piece::Lent(bytes) => bytes,
        }
    }
}

/// The bytes that one connection has still to write.
#[derive(Default)]
pub(crate) struct Outgoing {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were written.
    written: usize,
    bytes: u64,
    /// The memory of a small piece that was written, for the next one.
    spare: Vec<u8>,
}

impl Outgoing {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a message.
    pub(crate) fn push_message(&mut self, frames: impl IntoIterator<Item = Bytes>) {
        let mut frames = frames.into_iter().peekable();
        while let Some(frame) = frames.next() {
            let more = frames.peek().is_some();
            let small = frame.len() <= COPY_BYTES;
            self.push_small(|piece| {
                push_head(piece, frame.len(), more);
                if small {
                    piece.extend_from_slice(&frame);
                }
            });
            if !small {
                self.push_lent(frame);
            }
        }
    }

    /// Appends bytes that the caller has encoded: heads, and frames.
    pub(crate) fn push_encoded(&mut self, bytes: Vec<u8>) {
        if bytes.len() <= COPY_BYTES {
            self.push_small(|piece| piece.extend_from_slice(&bytes));
        } else {
            self.bytes += bytes.len() as u64;
            self.pieces.push_back(Piece::Copied(bytes));
        }
    }

    /// Appends the body of a frame whose head was appended before, without a copy.
    pub(crate) fn push_lent(&mut self, body: Bytes) {
        // Writing an empty piece returns 0, which means an error.
        if !body.is_empty() {
            self.bytes += body.len() as u64;
            self.pieces.push_back(Piece::Lent(body));
        }
    }

    /// Appends all that waits in another, which is empty afterwards.
    pub(crate) fn append(&mut self, other: &mut Outgoing) {
        if self.is_empty() {
            // The two swap their memory, so that both are used again.
            std::mem::swap(self, other);
        } else if other.written == 0 {
            self.bytes += std::mem::take(&mut other.bytes);
            self.pieces.append(&mut other.pieces);
        }
    }

    /// Appends what `write` writes: a command, or the handshake.
    pub(crate) fn push_small(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let has_room =
            matches!(self.pieces.back(), Some(Piece::Copied(piece)) if piece.len() < PIECE_BYTES);
        if !has_room {
            let piece = std::mem::take(&mut self.spare);
            self.pieces.push_back(Piece::Copied(piece));
        }
        if let Some(Piece::Copied(piece)) = self.pieces.back_mut() {
            let before = piece.len();
            write(piece);
            self.bytes += (piece.len() - before) as u64;
        }
    }

    /// Writes as much as `writer` takes, up to [`TURN_BYTES`]. Returns whether nothing is left.
    ///
    /// # Errors
    /// The writer's, but for `WouldBlock` and `Interrupted`.
    pub(crate) fn write_to(&mut self, writer: &mut impl io::Write) -> io::Result<bool> {
        let mut turn = TURN_BYTES;
        while self.bytes > 0 {
            if turn == 0 {
                return Ok(false);
            }
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let (mut count, mut left) = (0, turn);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                let skip = if count == 0 { self.written } else { 0 };
                let rest = &piece.bytes()[skip..];
                let rest = &rest[..rest.len().min(left)];
                *slice = IoSlice::new(rest);
                count += 1;
                left -= rest.len();
                if left == 0 {
                    break;
                }
            }
            match writer.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    turn -= bytes;
                    self.advance(bytes);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes -= bytes as u64;
        self.written += bytes;
        while let Some(piece) = self.pieces.front() {
            let length = piece.bytes().len();
            if self.written < length {
                return;
            }
            self.written -= length;
            if let Some(Piece::Copied(mut piece)) = self.pieces.pop_front()
                && piece.capacity() <= KEPT_BYTES
            {
                piece.clear();
                self.spare = piece;
            }
        }
        if self.pieces.capacity() > KEPT_PIECES {
            self.pieces = VecDeque::new();
        }
    }

    /// Whether a piece that begins at that address is to be written in place.
    #[cfg(test)]
    pub(crate) fn lends(&self, memory: *const u8) -> bool {
        let is_there =
            |piece: &Piece| matches!(piece, Piece::Lent(body) if body.as_ptr() == memory);
        self.pieces.iter().any(is_there)
    }

    /// Memory that is held besides what waits.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.spare.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }

    /// Forgets all that waits.
    pub(crate) fn clear(&mut self) {
        *self = Outgoing::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes at once, and nothing every other time.
    struct Slow {
        taken: Vec<u8>,
        most: usize,
        full: bool,
    }

    impl io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.full = !self.full;
            if self.full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.most);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Always takes the first piece.
    struct Greedy(usize);

    impl io::Write for Greedy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_as_fast_as_we_write_does_not_keep_others_waiting() {
        let mut outgoing = Outgoing::default();
        let frame = Bytes::from(vec![5; 1 << 20]);
        for _ in 0..4 {
            outgoing.push_message([frame.clone()]);
        }
        let (mut greedy, mut turns) = (Greedy(0), 1);
        while !outgoing.write_to(&mut greedy).unwrap() {
            assert_eq!(greedy.0, turns * TURN_BYTES);
            turns += 1;
        }
        // What the heads take more is a turn of its own.
        assert_eq!((turns, greedy.0), (17, 4 * (frame.len() + 9)));
    }

    #[test]
    fn whatever_the_connection_takes_at_once_all_bytes_leave_in_order() {
        for most in [1, 7, 4096, 1 << 20] {
            let mut outgoing = Outgoing::default();
            let mut expected = Vec::new();
            for bytes in [0, 1, 255, 256, COPY_BYTES, COPY_BYTES + 1, 200_000, 3] {
                let frames = [vec![1; bytes], vec![2; 3]];
                push_head(&mut expected, bytes, true);
                expected.extend_from_slice(&frames[0]);
                push_head(&mut expected, 3, false);
                expected.extend_from_slice(&frames[1]);
                outgoing.push_message(frames.map(Bytes::from));
            }
            assert_eq!(outgoing.bytes(), expected.len() as u64);
            let mut slow = Slow {
                taken: Vec::new(),
                most,
                full: false,
            };
            while !outgoing.write_to(&mut slow).unwrap() {}
            assert!(slow.taken == expected, "most {most}");
            assert!(outgoing.is_empty() && outgoing.pieces.is_empty());
        }
    }

    #[test]
    fn what_is_appended_leaves_behind_what_was_there() {
        let mut first = Outgoing::default();
        for round in 0..3u8 {
            let mut second = Outgoing::default();
            second.push_encoded(vec![round; 3]);
            second.push_encoded(vec![round; COPY_BYTES + 1]);
            second.push_lent(Bytes::new());
            second.push_lent(Bytes::from(vec![round; 5]));
            first.append(&mut second);
            assert!(second.is_empty());
        }
        let mut taken = Vec::new();
        assert!(first.write_to(&mut taken).unwrap());
        let expected: Vec<u8> = (0..3)
            .flat_map(|round| vec![round; COPY_BYTES + 9])
            .collect();
        assert!(taken == expected);
    }
}
