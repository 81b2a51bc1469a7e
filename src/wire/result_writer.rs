//! Writes the results of small requests that ran together: some rows of a shared batch, straight to a connection's queue.
//!
//! The headers of such results differ only in the id and the times, so the rest of the last one is kept as bytes.

use std::ops::Range;

use bytes::Bytes;

use super::server::{Outputs, ServerMessage};
use super::{TensorHeader, VERSION, append};
use crate::message::{RequestId, Stats};
use crate::tensor::{Batch, Data, Tensor};
use crate::zmtp::codec::push_head;
use crate::zmtp::outgoing::{COPY_BYTES, Outgoing};

/// The result of a request whose rows may lie among those of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResultRows<'a> {
    outputs: &'a Batch,
    start: usize,
    rows: usize,
    stats: Stats,
}

impl<'a> ResultRows<'a> {
    /// Those of `rows` that are in the outputs.
    pub(crate) fn new(outputs: &'a Batch, rows: Range<usize>, stats: Stats) -> ResultRows<'a> {
        ResultRows {
            outputs,
            start: rows.start,
            rows: rows.len(),
            stats,
        }
    }

    fn is_all_of(&self, tensor: &Tensor) -> bool {
        self.start == 0 && tensor.rows() == Some(self.rows)
    }

    fn of(&self, tensor: &Tensor) -> Tensor {
        let own = tensor.slice_rows(self.start, self.rows);
        // Copied: a client that does not read its answer would otherwise keep the whole batch in memory.
        if self.is_all_of(tensor) {
            own
        } else {
            own.detached()
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    pub(crate) fn payload_bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| tensor.bytes_of_rows(self.start, self.rows) as u64;
        self.outputs.tensors.iter().map(bytes).sum()
    }

    /// The same as a message of its own.
    pub(crate) fn to_message(self) -> ServerMessage {
        let tensors = self.outputs.tensors.iter().map(|tensor| self.of(tensor));
        let outputs = Outputs {
            parts: vec![Batch {
                tensors: tensors.collect(),
            }],
            batched: true,
            failed: Vec::new(),
        };
        ServerMessage::Result(outputs, self.stats)
    }
}

/// Writes results, and keeps the encoded description of the last outputs for the next.
#[derive(Default)]
pub(crate) struct ResultWriter {
    /// The outputs, without their rows.
    like: Batch,
    rows: usize,
    /// What stands behind the id and before the times.
    middle: Vec<u8>,
    header: Vec<u8>,
}

impl ResultWriter {
    /// Appends a result as the frames that [`super::server::write_result`] writes. Large outputs are lent.
    pub(crate) fn write(&mut self, id: RequestId, result: &ResultRows<'_>, out: &mut Outgoing) {
        if self.middle.is_empty() || result.rows != self.rows || !self.like.is_like(result.outputs)
        {
            self.describe(result);
        }
        let header = &mut self.header;
        header.clear();
        header.push(0x86); // six fields
        append(header, &"v");
        append(header, &VERSION);
        append(header, &"type");
        append(header, &"result");
        append(header, &"id");
        append(header, &id);
        header.extend_from_slice(&self.middle);
        append(header, &result.stats);
        let tensors = &result.outputs.tensors;
        out.push_small(|piece| {
            push_head(piece, header.len(), !tensors.is_empty());
            piece.extend_from_slice(header);
        });
        for (index, tensor) in tensors.iter().enumerate() {
            let more = index + 1 < tensors.len();
            match tensor.data() {
                Data::Fixed(bytes) => {
                    let own = tensor.fixed_range(result.start, result.rows);
                    if own.len() <= COPY_BYTES {
                        push_copied(out, &bytes[own], more);
                    } else if result.is_all_of(tensor) {
                        push_lent(out, bytes.clone(), more);
                    } else {
                        push_lent(out, Bytes::copy_from_slice(&bytes[own]), more);
                    }
                }
                Data::Variable { .. } => {
                    if let Data::Variable { offsets, values } = result.of(tensor).data() {
                        push(out, offsets, true);
                        push(out, values, more);
                    }
                }
            }
        }
    }

    fn describe(&mut self, result: &ResultRows<'_>) {
        let outputs = result.outputs.tensors.iter();
        let headers: Vec<TensorHeader<'_>> = outputs
            .map(|tensor| {
                let mut header = TensorHeader::of(tensor);
                if let Some(first) = header.shape.first_mut() {
                    *first = result.rows as u64;
                }
                header
            })
            .collect();
        self.middle.clear();
        append(&mut self.middle, &"outputs");
        append(&mut self.middle, &headers);
        append(&mut self.middle, &"parts");
        // A result of no outputs has no rows either.
        let rows = if headers.is_empty() { 0 } else { result.rows };
        append(&mut self.middle, &[rows as u64]);
        append(&mut self.middle, &"stats");
        self.like = result.outputs.without_rows();
        self.rows = result.rows;
    }
}

fn push(out: &mut Outgoing, body: &Bytes, more: bool) {
    if body.len() <= COPY_BYTES {
        push_copied(out, body, more);
    } else {
        push_lent(out, body.clone(), more);
    }
}

fn push_copied(out: &mut Outgoing, body: &[u8], more: bool) {
    out.push_small(|piece| {
        push_head(piece, body.len(), more);
        piece.extend_from_slice(body);
    });
}

fn push_lent(out: &mut Outgoing, body: Bytes, more: bool) {
    out.push_small(|piece| push_head(piece, body.len(), more));
    out.push_lent(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::server::write_message;

    fn outputs(rows: usize, wide: usize) -> Batch {
        let numbers: Vec<f32> = (0..rows * wide).map(|i| i as f32).collect();
        let texts: Vec<String> = (0..rows).map(|i| "x".repeat(i * 700)).collect();
        Batch {
            tensors: vec![
                Tensor::from_slice("y", vec![rows, wide], &numbers).unwrap(),
                Tensor::from_strings("text", None, &texts).unwrap(),
            ],
        }
    }

    /// All that leaves, which a message written the usual way has to be the same as.
    fn bytes_of(out: &mut Outgoing) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(out.write_to(&mut bytes).unwrap());
        bytes
    }

    #[test]
    fn a_result_is_written_as_any_other_message() {
        let mut writer = ResultWriter::default();
        let batches = [
            outputs(9, 1),
            outputs(9, 1),
            outputs(4, 3),
            outputs(9, 2000),
        ];
        for (batch, big) in batches.iter().zip([0, 1 << 20, u64::MAX, 200]) {
            for (start, rows) in [(0, 1), (1, 1), (2, 2), (0, batch.rows().unwrap()), (3, 0)] {
                let stats = Stats {
                    queue_us: big,
                    compute_us: start as u64,
                    chunks: 1,
                };
                let result = ResultRows::new(batch, start..start + rows, stats);
                let message = result.to_message();
                let ServerMessage::Result(outputs, _) = &message else {
                    panic!("{message:?}")
                };
                assert_eq!(outputs.parts[0], batch.slice_rows(start, rows));
                let payload = outputs.parts[0].payload_bytes() as u64;
                assert_eq!(result.payload_bytes(), payload);
                for id in [0, 200, u64::MAX].map(RequestId) {
                    let (mut ours, mut usual) = (Outgoing::default(), Outgoing::default());
                    writer.write(id, &result, &mut ours);
                    usual.push_message(write_message(id, &message));
                    assert!(bytes_of(&mut ours) == bytes_of(&mut usual));
                }
            }
        }
    }

    #[test]
    fn large_outputs_are_lent_if_they_are_nobody_elses() {
        let batch = outputs(2, 3000);
        let Data::Fixed(bytes) = batch.tensors[0].data() else {
            panic!("numbers have one size")
        };
        let written = |rows: Range<usize>| {
            let mut out = Outgoing::default();
            let result = ResultRows::new(&batch, rows, Stats::default());
            ResultWriter::default().write(RequestId(1), &result, &mut out);
            out
        };
        // A lent output is queued at its own address, a copied one is not.
        let (all, half) = (written(0..2), written(0..1));
        assert!(all.lends(bytes.as_ptr()));
        assert!(!half.lends(bytes.as_ptr()));
    }
}
