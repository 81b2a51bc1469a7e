//! Reads the headers of a server's messages, by hand as [`super::header`] does: a client reads one for each request.

use super::TensorHeader;
use super::header::{field, once, tensors};
use super::msgpack::{Item, ReadResult, Reader};
use crate::error::ErrorCode;
use crate::message::{FailedRows, Stats};

/// A header's fields: every field that any type of message may have.
#[derive(Default)]
pub(super) struct Header<'a> {
    pub(super) v: Option<u64>,
    pub(super) kind: Option<&'a str>,
    pub(super) id: Option<u64>,
    pub(super) outputs: Option<Vec<TensorHeader<'a>>>,
    pub(super) parts: Option<Vec<u64>>,
    pub(super) stats: Option<Stats>,
    pub(super) offset: Option<u64>,
    pub(super) rows: Option<Rows>,
    pub(super) failed: Option<Vec<FailedRows>>,
    pub(super) code: Option<&'a str>,
    pub(super) message: Option<&'a str>,
    pub(super) state: Option<&'a str>,
    pub(super) pending: Option<u64>,
}

/// Reads a header that fills all the bytes, or says what is wrong with it.
pub(super) fn read_header(bytes: &[u8]) -> ReadResult<Header<'_>> {
    let source = &mut Reader::new(bytes);
    let mut header = Header::default();
    for _ in 0..source.map()? {
        let key = source.text().map_err(|e| format!("a key: {e}"))?;
        match key {
            "v" => field(&mut header.v, key, source, Reader::unsigned)?,
            "type" => field(&mut header.kind, key, source, Reader::text)?,
            "id" => field(&mut header.id, key, source, Reader::unsigned)?,
            // Not bounded here: how many outputs there are is the model's choice.
            "outputs" => field(&mut header.outputs, key, source, |source| {
                tensors(source, usize::MAX)
            })?,
            "parts" => field(&mut header.parts, key, source, numbers)?,
            "stats" => field(&mut header.stats, key, source, stats)?,
            "offset" => field(&mut header.offset, key, source, Reader::unsigned)?,
            "rows" => field(&mut header.rows, key, source, Rows::read)?,
            "failed" => field(&mut header.failed, key, source, failed)?,
            "code" => field(&mut header.code, key, source, Reader::text)?,
            "message" => field(&mut header.message, key, source, Reader::text)?,
            "state" => field(&mut header.state, key, source, Reader::text)?,
            "pending" => field(&mut header.pending, key, source, Reader::unsigned)?,
            _ => source.skip()?,
        }
    }
    source.check_end()?;
    Ok(header)
}

/// What a key `rows` says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    /// At the end of a stream how many there were.
    Count(u64),
    /// In an error those that are to blame.
    Blamed(std::ops::Range<usize>),
    /// Something else.
    Other,
}

impl Rows {
    fn read(source: &mut Reader<'_>) -> ReadResult<Rows> {
        Ok(match source.item()? {
            Item::Unsigned(count) => Rows::Count(count),
            Item::Array(2) => match (single(source)?, single(source)?) {
                (Some(first), Some(count)) => match first.checked_add(count) {
                    Some(end) => Rows::Blamed(first..end),
                    None => Rows::Other,
                },
                _ => Rows::Other,
            },
            other => {
                source.skip_inside(other)?;
                Rows::Other
            }
        })
    }
}

/// A number that can count rows, or something else, which is passed over.
fn single(source: &mut Reader<'_>) -> ReadResult<Option<usize>> {
    let item = source.item()?;
    source.skip_inside(item)?;
    Ok(match item {
        Item::Unsigned(number) => usize::try_from(number).ok(),
        _ => None,
    })
}

fn failed(source: &mut Reader<'_>) -> ReadResult<Vec<FailedRows>> {
    // Not sized by what the header promises.
    let mut all = Vec::new();
    for _ in 0..source.array()? {
        let (mut first, mut count, mut code, mut message) = (None, None, None, None);
        for _ in 0..source.map()? {
            match source.text()? {
                key @ "first" => once(&mut first, key, source.unsigned())?,
                key @ "count" => once(&mut count, key, source.unsigned())?,
                key @ "code" => once(&mut code, key, source.text())?,
                key @ "message" => once(&mut message, key, source.text())?,
                _ => source.skip()?,
            }
        }
        let missing = |name: &str| format!("missing field `{name}`");
        let first: u64 = first.ok_or_else(|| missing("first"))?;
        let count = count.ok_or_else(|| missing("count"))?;
        if first.checked_add(count).is_none() {
            return Err(format!("{count} rows from row {first} on"));
        }
        all.push(FailedRows {
            first,
            count,
            code: ErrorCode::parse(code.unwrap_or("INTERNAL")),
            message: message.unwrap_or("the server gave no message").to_owned(),
        });
    }
    Ok(all)
}

fn numbers(source: &mut Reader<'_>) -> ReadResult<Vec<u64>> {
    // Not sized by what the header promises.
    let mut numbers = Vec::new();
    for _ in 0..source.array()? {
        numbers.push(source.unsigned()?);
    }
    Ok(numbers)
}

fn stats(source: &mut Reader<'_>) -> ReadResult<Stats> {
    let (mut queue_us, mut compute_us, mut chunks) = (None, None, None);
    for _ in 0..source.map()? {
        match source.text()? {
            key @ "queue_us" => once(&mut queue_us, key, source.unsigned())?,
            key @ "compute_us" => once(&mut compute_us, key, source.unsigned())?,
            key @ "chunks" => once(&mut chunks, key, source.unsigned())?,
            _ => source.skip()?,
        }
    }
    let missing = |name: &str| format!("missing field `{name}`");
    Ok(Stats {
        queue_us: queue_us.ok_or_else(|| missing("queue_us"))?,
        compute_us: compute_us.ok_or_else(|| missing("compute_us"))?,
        chunks: chunks.ok_or_else(|| missing("chunks"))?,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::{Error, Result};
    use crate::message::RequestId;
    use crate::wire::server::{self, Outputs, ServerMessage};

    fn read(header: &Value, payload: &[&[u8]]) -> Result<ServerMessage> {
        let mut frames = vec![Bytes::from(rmp_serde::to_vec(header).unwrap())];
        frames.extend(payload.iter().map(|frame| Bytes::copy_from_slice(frame)));
        server::read(frames).map(|(id, message)| {
            assert_eq!(id, RequestId(3));
            message
        })
    }

    fn error(rows: &Value) -> Error {
        let header = json!({"v": 1, "type": "error", "id": 3, "code": "INTERNAL", "message": "m", "rows": rows});
        match read(&header, &[]) {
            Ok(ServerMessage::Error(error)) => error,
            other => panic!("{rows}: {other:?}"),
        }
    }

    #[test]
    fn an_error_says_which_rows_are_to_blame_and_odd_rows_do_not_spoil_it() {
        assert_eq!(error(&json!([7, 2])).rows(), Some(7..9));
        assert_eq!(error(&json!([0, 0])).rows(), Some(0..0));
        for odd in [
            json!(null),
            json!(7),
            json!(-7),
            json!("7"),
            json!([]),
            json!([1]),
            json!([1, 2, 3]),
            json!([-1, 2]),
            json!([1, -2]),
            json!([1.5, 2]),
            json!([[1], {"a": [2]}]),
            json!({"first": 1, "count": 2}),
            json!([u64::MAX, 1]),
        ] {
            let error = error(&odd);
            assert_eq!((error.message(), error.rows()), ("m", None), "{odd}");
        }
    }

    /// Four rows of one number, as a result or a part, with these failed.
    fn failed(kind: &str, failed: &Value) -> Result<Outputs> {
        let mut header = json!({
            "v": 1, "type": kind, "id": 3, "failed": failed,
            "outputs": [{"name": "y", "dtype": "UINT8", "shape": [4]}],
        });
        match kind {
            "part" => header["offset"] = json!(10),
            _ => header["parts"] = json!([1, 3]),
        }
        let payload: &[&[u8]] = match kind {
            "part" => &[&[1, 2, 3, 4]],
            _ => &[&[1], &[2, 3, 4]],
        };
        match read(&header, payload)? {
            ServerMessage::Part(10, outputs) | ServerMessage::Result(outputs, _) => Ok(outputs),
            other => panic!("{other:?}"),
        }
    }

    fn entry(first: u64, count: u64) -> Value {
        json!({"first": first, "count": count, "code": "INVALID_ARGUMENT", "message": "bad", "later": [1]})
    }

    #[test]
    fn failed_rows_are_read_and_must_be_among_the_answers_rows() {
        for (kind, offset) in [("result", 0), ("part", 10)] {
            assert_eq!(failed(kind, &json!(null)).unwrap().failed, []);
            assert_eq!(failed(kind, &json!([])).unwrap().failed, []);
            let two = json!([entry(offset, 1), entry(offset + 2, 2)]);
            let read = failed(kind, &two).unwrap();
            let rows: Vec<_> = read.failed.iter().map(FailedRows::rows).collect();
            assert_eq!(rows, [offset..offset + 1, offset + 2..offset + 4]);
            assert_eq!(read.failed[0].code, ErrorCode::InvalidArgument);
            assert_eq!(read.failed[0].message, "bad");
            let bare = failed(kind, &json!([{"first": offset, "count": 1}])).unwrap();
            assert_eq!(bare.failed[0].code, ErrorCode::Internal);
            for odd in [
                json!(3),
                json!("all"),
                json!({"first": offset}),
                json!([offset]),
                json!([{"first": offset}]),
                json!([{"count": 1}]),
                json!([{"first": -1, "count": 1}]),
                json!([{"first": offset, "count": 1.5}]),
                json!([{"first": offset, "count": 1, "code": 5}]),
                json!([{"first": offset, "count": 1, "message": null}]),
                json!([entry(offset + 4, 1)]),
                json!([entry(offset, 5)]),
                json!([entry(offset, u64::MAX)]),
                json!([entry(u64::MAX, 1)]),
                json!([entry(offset + 2, 1), entry(offset, 1)]),
                json!([entry(offset, 2), entry(offset + 1, 1)]),
            ] {
                let error = failed(kind, &odd).unwrap_err();
                assert!(error.message().contains("`failed`"), "{odd}: {error}");
            }
        }
        assert!(failed("part", &json!([entry(9, 1)])).is_err());
    }

    #[test]
    fn a_part_of_failed_rows_alone_has_as_many_rows_as_failed() {
        let part = |failed: Value| {
            let header = json!({"v": 1, "type": "part", "id": 3, "offset": 10, "outputs": [], "failed": failed});
            read(&header, &[])
        };
        let read = part(json!([entry(10, 1), entry(11, 3)])).unwrap();
        let ServerMessage::Part(10, outputs) = &read else {
            panic!("{read:?}")
        };
        assert_eq!(outputs.rows(), 4);
        assert_eq!(
            server::read(server::write_message(RequestId(3), &read)),
            Ok((RequestId(3), read))
        );
        for odd in [
            json!([entry(10, 1), entry(12, 1)]),
            json!([entry(11, 1)]),
            json!([entry(10, u64::MAX - 10), entry(10, u64::MAX - 10)]),
        ] {
            assert!(part(odd).is_err());
        }
    }
}
