//! gzip and deflate: of requests as they say, of answers as they may be.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use hyper::{HeaderMap, StatusCode};

use super::body::{self, Whole};
use super::reply::Refusal;
use crate::error::Error;

/// Answers of fewer bytes are sent as they are: the headers alone are as long.
const WORTH_BYTES: u64 = 1024;
/// How many bytes are inflated between two looks at the bounds.
const STEP_BYTES: usize = 64 * 1024;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// zlib's form, or the bare one that some clients send under the same name.
    Deflate,
}

impl Coding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
        }
    }

    fn of(name: &str) -> Option<Coding> {
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }

    /// How a request is packed, if it is.
    ///
    /// # Errors
    /// 415 for any other way.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>, Refusal> {
        let Some(said) = headers.get(CONTENT_ENCODING) else {
            return Ok(None);
        };
        let name = said.to_str().unwrap_or_default().trim();
        if name.is_empty() || name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Coding::of(name).map(Some).ok_or_else(|| {
            Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("Content-Encoding {name:?}: expected gzip, deflate or identity"),
            )
        })
    }

    /// How an answer of so many bytes is to be packed, if the client takes it and it is worth it.
    pub(super) fn of_answer(headers: &HeaderMap, bytes: u64) -> Option<Coding> {
        if bytes < WORTH_BYTES {
            return None;
        }
        let mut best: Option<(f32, Coding)> = None;
        for entry in list(headers, ACCEPT_ENCODING.as_str()) {
            let Some(coding) = Coding::of(entry.name) else {
                continue;
            };
            if entry.weight > best.map_or(0.0, |(weight, _)| weight) {
                best = Some((entry.weight, coding));
            }
        }
        best.map(|(_, coding)| coding)
    }

    /// Packs pieces into one.
    pub(super) fn pack<'a>(self, pieces: impl Iterator<Item = &'a Bytes>) -> Result<Bytes, Error> {
        let failed =
            |e: std::io::Error| Error::internal(format!("an answer cannot be packed: {e}"));
        let level = Compression::fast();
        let packed = match self {
            Coding::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), level);
                for piece in pieces {
                    out.write_all(piece).map_err(failed)?;
                }
                out.finish()
            }
            Coding::Deflate => {
                let mut out = ZlibEncoder::new(Vec::new(), level);
                for piece in pieces {
                    out.write_all(piece).map_err(failed)?;
                }
                out.finish()
            }
        };
        packed.map(Bytes::from).map_err(failed)
    }

    /// Unpacks a body. `json_bytes` is as for [`body::read`].
    ///
    /// # Errors
    /// 413 as soon as it is longer than a request may be, 429 if too much is being read for others, 400 for bytes that are
    /// not packed so.
    pub(super) fn unpack(
        self,
        packed: Whole,
        json_bytes: Option<usize>,
        most: u64,
    ) -> Result<Whole, Refusal> {
        let Whole {
            bytes,
            mut reserved,
        } = packed;
        let mut source: Box<dyn Read + '_> = match self {
            Coding::Gzip => Box::new(MultiGzDecoder::new(&bytes[..])),
            Coding::Deflate if is_zlib(&bytes) => Box::new(ZlibDecoder::new(&bytes[..])),
            Coding::Deflate => Box::new(DeflateDecoder::new(&bytes[..])),
        };
        let before = body::padding(json_bytes);
        let mut whole = vec![0; before];
        loop {
            let had = whole.len();
            let step = source.by_ref().take(STEP_BYTES as u64);
            let read = { step }.read_to_end(&mut whole).map_err(|e| {
                Error::invalid(format!("the body is not {} as it says: {e}", self.name()))
            })?;
            if read == 0 {
                break;
            }
            if (whole.len() - before) as u64 > most {
                return Err(body::too_long(most, None));
            }
            reserved.add(whole.len() - had)?;
        }
        drop(source);
        Ok(Whole {
            bytes: Bytes::from(whole).slice(before..),
            reserved,
        })
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

/// An entry of a header that lists what a client takes.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    /// 0 for what it does not take.
    pub(super) weight: f32,
}

/// The entries of such a header, in its order.
pub(super) fn list<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = Entry<'a>> {
    let lines = headers.get_all(name).into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        Entry {
            name,
            weight: weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)),
        }
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn an_answer_is_packed_as_the_client_likes_best() {
        for (value, coding) in [
            ("gzip, deflate", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip;q=0.1, deflate;q=0.9", Some(Coding::Deflate)),
            ("gzip;q=0", None),
            ("br, zstd", None),
            ("identity", None),
            ("GZIP;q=1.0", Some(Coding::Gzip)),
        ] {
            assert_eq!(
                Coding::of_answer(&accepting(value), 10_000),
                coding,
                "{value}"
            );
        }
        assert_eq!(Coding::of_answer(&accepting("gzip"), 100), None);
        assert_eq!(Coding::of_answer(&HeaderMap::new(), 10_000), None);
    }

    #[test]
    fn what_is_packed_unpacks() {
        let text = Bytes::from(vec![7u8; 100_000]);
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = coding.pack([&text, &text].into_iter()).unwrap();
            assert!(packed.len() < 2000);
            let whole = coding
                .unpack(Whole::of(packed.clone()), Some(10), 200_000)
                .unwrap();
            assert_eq!(whole.bytes.len(), 200_000);
            assert!(
                coding
                    .unpack(Whole::of(packed.clone()), None, 199_999)
                    .is_err()
            );
            assert!(
                coding
                    .unpack(Whole::of(packed.slice(..50)), None, 200_000)
                    .is_err()
            );
        }
        let odd = Whole::of(Bytes::from_static(b"no gzip at all"));
        assert!(Coding::Gzip.unpack(odd, None, 1000).is_err());
    }
}
