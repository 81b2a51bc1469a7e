//! gzip and deflate as headers have them: of requests as they say, of answers as they may be.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};
use hyper::{HeaderMap, StatusCode};

use super::super::inflate::Coding;
use super::super::local::Local;
use super::super::submit::Caller;
use super::reply::{Pieces, Refusal, Reply, ReplyBody};
use crate::error::Error;

/// Answers of fewer bytes are sent as they are: the headers alone are as long.
const WORTH_BYTES: u64 = 1024;
impl Coding {
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
        let mut all = headers.get_all(CONTENT_ENCODING).iter();
        let Some(said) = all.next() else {
            return Ok(None);
        };
        if all.next().is_some() {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Encoding comes more than once: a body is packed in one way, expected gzip, deflate or identity",
            ));
        }
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

    /// How answers are to be packed that are worth it, if the client takes that.
    pub(super) fn of_answers(headers: &HeaderMap) -> Option<Coding> {
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

    /// Packs an answer whose bytes are there, if it is worth it; a large one beside the runtime.
    ///
    /// # Errors
    /// 500 if it cannot be packed.
    pub(super) async fn packed(
        self,
        local: &Local,
        caller: &Caller,
        mut reply: Reply,
    ) -> Result<Reply, Refusal> {
        let ReplyBody::Pieces(pieces) = reply.body_mut() else {
            return Ok(reply);
        };
        let bytes = pieces.bytes();
        if bytes < WORTH_BYTES {
            return Ok(reply);
        }
        let (bare, held) = std::mem::take(pieces).into_parts();
        let pack = move || self.pack(bare.iter());
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let packed = local.beside(caller, bytes, pack).await??;
        *pieces = Pieces::new(vec![packed]).counted_with(held);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(self.name()));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        Ok(reply)
    }

    /// Packs pieces into one.
    fn pack<'a>(self, pieces: impl Iterator<Item = &'a Bytes>) -> Result<Bytes, Error> {
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
            assert_eq!(Coding::of_answers(&accepting(value)), coding, "{value}");
        }
        assert_eq!(Coding::of_answers(&HeaderMap::new()), None);
    }
}
