//! gzip and deflate of what comes in: it counts while it is inflated, so that a few bytes which become many are stopped.

use std::io::Read;

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::incoming::{Growing, Unread, Whole};
use super::local::Local;
use super::submit::Caller;
use crate::error::Error;

/// How many bytes are inflated between two looks at the bounds.
const STEP_BYTES: usize = 64 * 1024;
/// What has more bytes is inflated beside the runtime: each may become a thousand.
const INFLATE_HERE_BYTES: usize = 256;
/// Inflating a byte is at most as much work as reading so many: each may become a thousand, which takes less time than reading
/// them.
const WORK_OF_A_BYTE: usize = 64;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    /// zlib's form, or the bare one that some clients send under the same name.
    Deflate,
}

impl Coding {
    /// What both protocols call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
        }
    }

    /// A body of at most so many bytes that comes packed, with so many others ahead of it in memory.
    ///
    /// # Errors
    /// [`Unread::TooLong`] as soon as it is longer than that; `RESOURCE_EXHAUSTED` if too much is being read for
    /// others; `INVALID_ARGUMENT` for bytes that are not packed so.
    pub(crate) async fn inflate(
        self,
        local: &Local,
        caller: &Caller,
        packed: Whole,
        before: usize,
        most: u64,
    ) -> Result<Whole, Unread> {
        let bytes = packed.bytes.len();
        // The count goes along: a request that is cancelled meanwhile leaves its bytes in a queue.
        let inflate = move || inflate(self, &packed, before, most);
        if bytes <= INFLATE_HERE_BYTES {
            return inflate();
        }
        let bytes = bytes.saturating_mul(WORK_OF_A_BYTE);
        local.threads.begin(caller, bytes, inflate).await?
    }
}

fn inflate(coding: Coding, packed: &Whole, before: usize, most: u64) -> Result<Whole, Unread> {
    let bytes: &Bytes = &packed.bytes;
    let mut source: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(MultiGzDecoder::new(&bytes[..])),
        Coding::Deflate if is_zlib(bytes) => Box::new(ZlibDecoder::new(&bytes[..])),
        Coding::Deflate => Box::new(DeflateDecoder::new(&bytes[..])),
    };
    let mut whole = Growing::new(packed.reserved.another(), before, most);
    let mut step = vec![0; STEP_BYTES];
    loop {
        let read = source.read(&mut step).map_err(|e| {
            Error::invalid(format!(
                "what was sent is not {} as it says: {e}",
                coding.name()
            ))
        })?;
        if read == 0 {
            return Ok(whole.finish());
        }
        whole.push(&step[..read])?;
    }
}

/// Whether bytes begin as zlib's form does: the method, and a sum over both bytes.
fn is_zlib(bytes: &[u8]) -> bool {
    match bytes {
        [first, second, ..] => {
            first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::super::incoming::Reserved;
    use super::super::incoming::tests::{has_free, shared};
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn what_is_packed_unpacks_and_counts_while_it_does() {
        let shared = shared(&["--max-unfinished-bytes=1MiB"]);
        let whole = |bytes: &[u8]| {
            let bytes = Bytes::copy_from_slice(bytes);
            Whole::of(bytes, Reserved::none(&shared)).unwrap()
        };
        let text = vec![7u8; 200_000];
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(&text).unwrap();
        for (coding, packed) in [
            (Coding::Gzip, gzip(&text)),
            (Coding::Gzip, [gzip(&text[..7]), gzip(&text[7..])].concat()),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, bare.finish().unwrap()),
        ] {
            let inflated = inflate(coding, &whole(&packed), 10, 200_000).unwrap();
            assert_eq!(inflated.bytes, text);
            assert!(has_free(&shared, (1 << 20) - 200_000));
            drop(inflated);
            let too_long = inflate(coding, &whole(&packed), 0, 199_999);
            assert!(matches!(too_long, Err(Unread::TooLong { .. })));
            let cut_off = inflate(coding, &whole(&packed[..50]), 0, 200_000);
            assert!(matches!(cut_off, Err(Unread::Refused(_))));
        }
        let odd = inflate(Coding::Gzip, &whole(b"no gzip at all"), 0, 1000);
        assert!(matches!(odd, Err(Unread::Refused(_))));
        // Stopped by what all have together, long before it is too long by itself.
        let bomb = gzip(&vec![0; 64 << 20]);
        match inflate(Coding::Gzip, &whole(&bomb), 0, u64::MAX) {
            Err(Unread::Refused(error)) => {
                assert!(
                    error.message().contains("--max-unfinished-bytes"),
                    "{error}"
                );
            }
            other => panic!("{:?}", other.map(|whole| whole.bytes.len())),
        }
        assert!(has_free(&shared, 1 << 20));
    }
}
