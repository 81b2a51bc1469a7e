//! Pieces of an answer that count for their caller until they were written.

use std::sync::Arc;

use bytes::Bytes;

use super::submit::Held;

/// A piece of at least so many bytes counts until it was written, a smaller one until it was handed to the connection,
/// which holds few of them.
pub(crate) const COUNTED_PIECE_BYTES: usize = 64 * 1024;

/// Has the large ones of an answer's pieces count as long as they lie anywhere.
pub(crate) fn count_until_written(pieces: &mut [Bytes], held: &Arc<Held>) {
    for piece in pieces {
        if piece.len() >= COUNTED_PIECE_BYTES {
            let counted = CountedPiece {
                bytes: std::mem::take(piece),
                _held: held.clone(),
            };
            *piece = Bytes::from_owner(counted);
        }
    }
}

/// A piece, and the count that it is part of.
struct CountedPiece {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for CountedPiece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
