//! The id of a header, without the rest of it: written into a finished header, and read from one that another thread
//! will read in full.
//!
//! Headers of this crate begin with `v`, `type` and `id`, in this order. The protocol allows any order: if the id is not
//! found here, the header has to be read in full.

use super::VERSION;
use crate::message::RequestId;

/// Keeps the place of an id that is not known yet: written, it takes as many bytes as any id may need.
pub(crate) const UNKNOWN: RequestId = RequestId(u64::MAX);

/// `{v: 1, type:` behind the map's own first bytes.
const START: &[u8] = &[0xa1, b'v', VERSION as u8, 0xa4, b't', b'y', b'p', b'e'];
/// `id:`
const KEY: &[u8] = &[0xa2, b'i', b'd'];
/// What stands before the eight bytes of a number.
const U64: u8 = 0xcf;

/// Where the id begins, with the byte that says how long it is.
fn position(header: &[u8]) -> Option<usize> {
    let map = match header.first()? {
        0x80..=0x8f => 1,
        0xde => 3,
        0xdf => 5,
        _ => return None,
    };
    let rest = header.get(map..)?.strip_prefix(START)?;
    let kind = match rest.first()? {
        text @ 0xa0..=0xbf => 1 + usize::from(text & 0x1f),
        _ => return None,
    };
    rest.get(kind..)?.strip_prefix(KEY)?;
    Some(map + START.len() + kind + KEY.len())
}

/// The id of an answer.
pub(crate) fn look(header: &[u8]) -> Option<RequestId> {
    split(header).map(|(_, id, _)| id)
}

/// What stands before the id, the id, and what stands behind it.
pub(crate) fn split(header: &[u8]) -> Option<(&[u8], RequestId, &[u8])> {
    let (before, id) = header.split_at_checked(position(header)?)?;
    let (first, rest) = id.split_first()?;
    let bytes = match first {
        0..=0x7f => return Some((before, RequestId(u64::from(*first)), rest)),
        0xcc => 1,
        0xcd => 2,
        0xce => 4,
        &U64 => 8,
        _ => return None,
    };
    let (number, behind) = rest.split_at_checked(bytes)?;
    let number = number.iter();
    let id = number.fold(0, |id, byte| id << 8 | u64::from(*byte));
    Some((before, RequestId(id), behind))
}

/// Where the eight bytes of an id begin that was [`UNKNOWN`] when the header was written.
pub(crate) fn place(header: &[u8]) -> Option<usize> {
    let at = position(header)?;
    (header.get(at) == Some(&U64)).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::message::{Request, Stats};
    use crate::tensor::{Batch, Tensor};
    use crate::wire::client::{self, ClientMessage, write_infer};
    use crate::wire::server::{ServerMessage, Welcome, write_message};

    #[test]
    fn every_answers_id_is_found_without_reading_it() {
        let messages = [
            ServerMessage::Welcome,
            ServerMessage::HelloOk(Welcome::default()),
            ServerMessage::StatusOk(Box::default()),
            ServerMessage::Result(Default::default(), Stats::default()),
            ServerMessage::End(7, Stats::default()),
            ServerMessage::Error(Error::internal("x")),
        ];
        for message in messages {
            for id in [
                0,
                0x7f,
                0x80,
                0xff,
                0x100,
                0xffff,
                1 << 16,
                1 << 32,
                u64::MAX,
            ] {
                let header = &write_message(RequestId(id), &message)[0];
                assert_eq!(look(header), Some(RequestId(id)), "{message:?}");
                for cut in 0..header.len().min(40) {
                    let _ = look(&header[..cut]);
                }
            }
        }
        assert_eq!(look(&[0x81, 0xa2, b'i', b'd', 1]), None);
    }

    #[test]
    fn an_id_that_is_put_in_later_is_the_one_that_is_read() {
        let request = Request {
            model: Some("m".to_owned()),
            inputs: Batch {
                tensors: vec![Tensor::from_slice("x", vec![1], &[1f32]).unwrap()],
            },
            timeout_ms: Some(5),
            stream: true,
            ..Request::default()
        };
        let mut frames = write_infer(UNKNOWN, &request);
        let mut header = frames[0].to_vec();
        let at = place(&header).unwrap();
        header[at..at + 8].copy_from_slice(&77u64.to_be_bytes());
        frames[0] = header.into();
        let read = client::read(frames).unwrap();
        assert_eq!(read, ClientMessage::Infer(RequestId(77), Box::new(request)));
    }
}
