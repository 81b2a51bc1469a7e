//! Reads the headers of a server's messages, by hand as [`super::header`] does: a client reads one for each request.

use super::TensorHeader;
use super::header::{field, once, tensors};
use super::msgpack::{ReadResult, Reader};
use crate::message::Stats;

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
    pub(super) rows: Option<u64>,
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
            "rows" => field(&mut header.rows, key, source, Reader::unsigned)?,
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
