//! Where a peer of HTTP/2 is in its frames ([RFC 9113, section 4](https://www.rfc-editor.org/rfc/rfc9113#section-4)): whether
//! the head of a request has begun to come and is not whole. The rest of the protocol is hyper's.

/// The bytes ahead of a frame's payload: its length, kind, flags and stream.
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// The flag of the last frame of a head.
const END_HEADERS: u8 = 4;

/// The place in a stream of frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What has come of the present frame's first bytes.
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Bytes of its payload that are still to come.
    left: usize,
    /// Headers have come, and not their last frame.
    is_open: bool,
}

impl Frames {
    /// Reads on. Whether it was somewhere between two heads meanwhile.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut was_between = !self.is_in_head();
        while !bytes.is_empty() {
            if self.have < HEAD_BYTES {
                let some = bytes.len().min(HEAD_BYTES - self.have);
                self.head[self.have..][..some].copy_from_slice(&bytes[..some]);
                self.have += some;
                bytes = &bytes[some..];
                if self.have < HEAD_BYTES {
                    break;
                }
                let [a, b, c, kind, flags, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.is_open = flags & END_HEADERS == 0;
                }
            }
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            if self.left == 0 {
                self.have = 0;
            }
            was_between |= !self.is_in_head();
        }
        was_between
    }

    /// Whether a head, or a frame that is no piece of a body, has begun and is not whole.
    pub(super) fn is_in_head(&self) -> bool {
        let is_data = self.have == HEAD_BYTES && self.head[3] == DATA;
        self.is_open || (self.have > 0 && !is_data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &[0, 0, 0, 1]].concat();
        [head, payload.to_vec()].concat()
    }

    #[test]
    fn a_head_lasts_from_its_first_byte_to_the_last_of_its_last_frame() {
        let (whole, ping) = (
            frame(HEADERS, END_HEADERS | 1, b"abc"),
            frame(6, 0, b"12345678"),
        );
        let (begun, more) = (frame(HEADERS, 0, b"ab"), frame(CONTINUATION, 0, b""));
        let end = frame(CONTINUATION, END_HEADERS, b"c");
        let (data, empty) = (frame(DATA, 0, b"a body"), frame(4, 0, b""));
        // What comes, and of how many bytes of it the last is in a head.
        for (all, in_head) in [
            (vec![&whole], 1..12),
            (vec![&ping], 1..17),
            (vec![&empty], 1..9),
            (vec![&begun, &more, &end], 1..11 + 9 + 10),
            // Its kind is not known before its ninth byte.
            (vec![&data], 1..9),
        ] {
            let bytes = all.into_iter().flatten().copied().collect::<Vec<u8>>();
            for cut in 0..=bytes.len() {
                let mut at_once = Frames::default();
                at_once.read(&bytes[..cut]);
                let mut by_byte = Frames::default();
                bytes[..cut].iter().for_each(|byte| {
                    by_byte.read(&[*byte]);
                });
                let expected = in_head.contains(&cut);
                assert_eq!(at_once.is_in_head(), expected, "{cut} of {bytes:?}");
                assert_eq!(by_byte.is_in_head(), expected, "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn one_head_after_the_other_is_not_one_long_head() {
        let head = frame(HEADERS, END_HEADERS, b"abc");
        let mut frames = Frames::default();
        assert!(frames.read(&head[..5]));
        assert!(!frames.read(&head[5..10]));
        // The rest of it, and some of the next one.
        assert!(frames.read(&[&head[10..], &head[..5]].concat()));
        assert!(frames.is_in_head());
        assert!(!frames.read(&head[5..8]));
    }
}
