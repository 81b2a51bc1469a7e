//! An infer as it goes out: all bytes of it but its id, which is put in when it is sent.
//!
//! All the work is done before a session's lock is taken; under the lock the id is written and the bytes are queued. Small
//! frames are copied behind the header; large ones are not copied, and borrowed arrays are written from the caller's
//! memory: copying a large request costs as much as all the rest of its way.

use std::io::IoSlice;

use bytes::Bytes;

use super::inputs::{Column, LentInputs};
use crate::message::RequestId;
use crate::tensor::Data;
use crate::wire::client::InferHeader;
use crate::wire::{self, TensorHeader, id};
use crate::zmtp::codec::{HEAD_BYTES, push_head};
use crate::zmtp::outgoing::{COPY_BYTES, Outgoing};

/// The bytes of one request, as pieces for one vectored write.
pub(super) struct Encoded<'a> {
    /// The header's frame, and those behind it up to the first large one.
    start: Vec<u8>,
    /// Where in `start` the id is.
    id_at: usize,
    rest: Vec<Piece<'a>>,
    frame_bytes: u64,
}

enum Piece<'a> {
    /// Frame heads and small frames.
    Copied(Vec<u8>),
    Own(Bytes),
    Lent(&'a [u8]),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Copied(bytes) => bytes,
            Piece::Own(bytes) => bytes,
            Piece::Lent(bytes) => bytes,
        }
    }
}

/// About what a header of few inputs and no parameters takes.
const USUAL_HEADER_BYTES: usize = 160;

impl<'a> Encoded<'a> {
    /// Encodes a request; the id in its header is [`id::UNKNOWN`] until [`Encoded::set_id`].
    #[expect(
        clippy::expect_used,
        reason = "the header was just written, with an id in it"
    )]
    pub(super) fn infer(header: InferHeader<'_>, inputs: LentInputs<'a>) -> Encoded<'a> {
        let mut header = header;
        header.inputs = inputs.columns.iter().map(describe).collect();
        let small = |column: &Column<'_>| match column {
            Column::Own(tensor) => tensor.payload_bytes(),
            Column::Lent { bytes, .. } => bytes.len(),
        };
        let small: usize = inputs
            .columns
            .iter()
            .map(small)
            .filter(|b| *b <= COPY_BYTES)
            .sum();
        let mut written = Vec::with_capacity(USUAL_HEADER_BYTES);
        wire::append(&mut written, &header);

        let mut start = Vec::with_capacity(written.len() + small + 4 * HEAD_BYTES);
        push_head(&mut start, written.len(), !inputs.columns.is_empty());
        let place = id::place(&written);
        let id_at = start.len()
            + place.expect("a header's third field is its id, in eight bytes while it is unknown");
        start.extend_from_slice(&written);
        let mut encoded = Encoded {
            start,
            id_at,
            rest: Vec::new(),
            frame_bytes: written.len() as u64,
        };
        drop(header);
        let mut columns = inputs.columns.into_iter().peekable();
        while let Some(column) = columns.next() {
            let more = columns.peek().is_some();
            match column {
                Column::Own(tensor) => match tensor.data() {
                    Data::Fixed(bytes) => encoded.push(Piece::Own(bytes.clone()), more),
                    Data::Variable { offsets, values } => {
                        encoded.push(Piece::Own(offsets.clone()), true);
                        encoded.push(Piece::Own(values.clone()), more);
                    }
                },
                Column::Lent { bytes, .. } => encoded.push(Piece::Lent(bytes), more),
            }
        }
        encoded
    }

    fn push(&mut self, frame: Piece<'a>, more: bool) {
        let bytes = frame.bytes().len();
        self.frame_bytes += bytes as u64;
        let stays = bytes > COPY_BYTES;
        let layout = match self.rest.last_mut() {
            Some(Piece::Copied(layout)) => layout,
            // Every large frame is followed by a piece for heads: there is none only while `rest` is empty.
            _ => &mut self.start,
        };
        push_head(layout, bytes, more);
        if stays {
            self.rest.push(frame);
            if more {
                self.rest.push(Piece::Copied(Vec::new()));
            }
        } else {
            layout.extend_from_slice(frame.bytes());
        }
    }

    /// The bytes of its frames, which the server bounds.
    pub(super) fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    pub(super) fn set_id(&mut self, id: RequestId) {
        self.start[self.id_at..self.id_at + 8].copy_from_slice(&id.0.to_be_bytes());
    }

    /// Calls `write` with all its bytes where they lie.
    pub(super) fn with_slices<T>(&self, write: impl FnOnce(&mut [IoSlice<'_>]) -> T) -> T {
        let start = IoSlice::new(&self.start);
        if self.rest.is_empty() {
            return write(&mut [start]);
        }
        let rest = self.rest.iter().map(|piece| IoSlice::new(piece.bytes()));
        let mut slices: Vec<_> = std::iter::once(start).chain(rest).collect();
        write(&mut slices)
    }

    /// The same, with nothing lent in it.
    pub(super) fn into_owned(self) -> Encoded<'static> {
        let own = |piece| match piece {
            Piece::Copied(bytes) => Piece::Copied(bytes),
            Piece::Own(bytes) => Piece::Own(bytes),
            Piece::Lent(bytes) => Piece::Own(Bytes::copy_from_slice(bytes)),
        };
        Encoded {
            start: self.start,
            id_at: self.id_at,
            rest: self.rest.into_iter().map(own).collect(),
            frame_bytes: self.frame_bytes,
        }
    }
}

impl Encoded<'static> {
    /// Appends it to what waits to be written.
    pub(super) fn push_to(self, outgoing: &mut Outgoing) {
        outgoing.push_encoded(self.start);
        for piece in self.rest {
            match piece {
                Piece::Copied(bytes) => outgoing.push_encoded(bytes),
                Piece::Own(bytes) => outgoing.push_lent(bytes),
                Piece::Lent(bytes) => outgoing.push_lent(Bytes::from_static(bytes)),
            }
        }
    }
}

fn describe<'a>(column: &'a Column<'_>) -> TensorHeader<'a> {
    match column {
        Column::Own(tensor) => TensorHeader::of(tensor),
        Column::Lent {
            name,
            datatype,
            shape,
            ..
        } => TensorHeader {
            name: (&**name).into(),
            dtype: datatype.name().into(),
            shape: shape.iter().map(|&d| d as u64).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Call, Inputs, IntoInputs};
    use crate::wire::client::{ClientMessage, Delivery, read, write_infer};
    use crate::zmtp::codec::{Decoder, Event, Limits};
    use crate::zmtp::mechanism::{Mechanism, Null, SocketType};

    /// What a server reads of these bytes.
    fn read_back(bytes: &[u8]) -> Vec<Bytes> {
        let limits = Limits {
            message_bytes: u64::MAX,
            frames: 100,
        };
        let null = || Null::new(SocketType::Router, Bytes::new());
        let mut decoder = Decoder::new(Box::new(null()), limits);
        let mut stream = crate::zmtp::codec::greeting(0, "NULL").to_vec();
        let mut peer = Null::new(SocketType::Dealer, Bytes::new());
        crate::zmtp::codec::push_command(&mut stream, &peer.first());
        stream.extend_from_slice(bytes);
        let mut rest = &stream[..];
        loop {
            match decoder.feed(&mut rest).unwrap() {
                Some(Event::Message(frames)) => {
                    assert!(rest.is_empty());
                    return frames;
                }
                Some(_) => {}
                None => panic!("no whole message"),
            }
        }
    }

    #[test]
    fn whatever_stays_where_it_is_the_server_reads_the_same_message() {
        let large = vec![7u8; COPY_BYTES + 1];
        let text = "x".repeat(COPY_BYTES);
        let cases = [
            Inputs::new().with("a", &[1i64]),
            Inputs::new().with("a", &large[..]).with("b", &[1i64]),
            Inputs::new().with("b", &[1f32]).with("a", &large[..]),
            Inputs::new()
                .with("t", &[text.as_str(), "y"])
                .with("e", &[""]),
            Inputs::new().with("a", &large[..]).with("b", &large[1..]),
            Inputs::new().with("a", &large[..0]),
            Inputs::new(),
        ];
        for inputs in cases {
            let batch = inputs.clone().into_inputs().unwrap();
            let call = || Call::model("m").param("p", "x".repeat(300)).high_priority();
            let encode = |inputs| call().encode(inputs, None, Delivery::Parts).unwrap().0;
            let mut encoded = encode(inputs.lend_inputs().unwrap());
            encoded.set_id(RequestId(5));
            let slices = |slices: &mut [IoSlice<'_>]| {
                slices.iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>()
            };
            let bytes = encoded.with_slices(slices);
            let frames = read_back(&bytes);
            let total: usize = frames.iter().map(Bytes::len).sum();
            assert_eq!(encoded.frame_bytes(), total as u64);
            if !batch.tensors.is_empty() {
                let Ok(ClientMessage::Infer(id, request)) = read(frames.clone()) else {
                    panic!("no infer")
                };
                assert_eq!((id, &request.inputs), (RequestId(5), &batch));
                // But for the width of the id it is what the wire's own writer makes.
                assert_eq!(write_infer(id, &request)[1..], frames[1..]);
            }
            let mut outgoing = Outgoing::default();
            encoded.into_owned().push_to(&mut outgoing);
            let mut written = Vec::new();
            assert!(outgoing.write_to(&mut written).unwrap());
            assert!(written == bytes);
        }
    }

    #[test]
    fn a_lent_array_is_written_from_where_it_lies() {
        let large = vec![7u8; COPY_BYTES + 1];
        let inputs = ("a", &large[..]).lend_inputs().unwrap();
        let (encoded, _) = Call::model("m")
            .encode(inputs, None, Delivery::Whole)
            .unwrap();
        encoded.with_slices(|slices| {
            assert_eq!(slices.len(), 2);
            assert_eq!(slices[1].as_ptr(), large.as_ptr());
        });
    }
}
