//! What a request is answered at its end: its result, or an error.

use super::bad_rows::Filled;
use super::outlet::{Action, Handling, Outlet, Recipient};
use super::{AnswerState, Gathering, Piece};
use crate::error::{Error, Result};
use crate::message::{FailedRows, Stats};
use crate::tensor::Batch;
use crate::wire::result_writer::ResultRows;
use crate::wire::server::{Outputs, ServerMessage};

impl AnswerState {
    pub(super) fn complete(
        &mut self,
        piece: &Piece<'_>,
        done: Gathering,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let member = piece.member;
        if done.bad.rows() > 0 {
            return self.complete_bad(piece, done, handling);
        }
        if member.stream {
            let recipient = piece.recipient();
            self.counts
                .result(&recipient, member.total, &done.stats, handling.now_us);
            handling.answer(recipient, ServerMessage::End(member.total, done.stats));
            return;
        }
        self.release(member.reply, done.counted);
        let outputs = Outputs {
            batched: true,
            parts: done.gather.into_parts(),
            failed: Vec::new(),
        };
        self.answer_result(piece, outputs, done.stats, handling);
    }

    /// All rows have come of a request of which some failed.
    fn complete_bad(
        &mut self,
        piece: &Piece<'_>,
        done: Gathering,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let (member, recipient, stats) = (piece.member, piece.recipient(), done.stats);
        self.release(member.reply, done.counted);
        if let Some(error) = done.bad.error_of_all(member.total) {
            return self.answer_error(recipient, error, handling);
        }
        if member.stream {
            self.counts
                .result(&recipient, member.total, &stats, handling.now_us);
            self.counts.failed_rows(&recipient, done.bad.rows());
            return handling.answer(recipient, ServerMessage::End(member.total, stats));
        }
        let filled = Filled::of(done.gather, member.total);
        let bytes = done.counted + filled.missing_bytes();
        if !self.has_room(member.reply, bytes, handling) {
            return self.answer_error(recipient, self.too_large(bytes), handling);
        }
        match filled.into_parts() {
            Ok(parts) => {
                let outputs = Outputs {
                    batched: true,
                    parts,
                    failed: done.bad.into_entries(),
                };
                self.answer_result(piece, outputs, stats, handling);
            }
            Err(error) => self.answer_error(recipient, error, handling),
        }
    }

    pub(super) fn answer_result(
        &mut self,
        piece: &Piece<'_>,
        outputs: Outputs,
        stats: Stats,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let recipient = piece.recipient();
        if let Err(error) = check_alike(&outputs.parts) {
            return self.answer_error(recipient, error, handling);
        }
        if self.count_result(piece, outputs.bytes(), &stats, handling) {
            let failed = outputs.failed.iter().map(|failed| failed.count).sum();
            self.counts.failed_rows(&recipient, failed);
            handling.answer(recipient, ServerMessage::Result(outputs, stats));
        }
    }

    pub(super) fn answer_rows(
        &mut self,
        piece: &Piece<'_>,
        rows: ResultRows<'_>,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        if self.count_result(piece, rows.payload_bytes(), &rows.stats(), handling) {
            handling.outlet.perform(Action::Result {
                reply: piece.member.reply,
                request: piece.member.request,
                rows,
            });
        }
    }

    /// Counts a result that is about to leave. False if there is no room for it: then its error has left.
    fn count_result(
        &mut self,
        piece: &Piece<'_>,
        bytes: u64,
        stats: &Stats,
        handling: &mut Handling<'_, impl Outlet>,
    ) -> bool {
        let recipient = piece.recipient();
        if !self.has_room(recipient.reply, bytes, handling) {
            self.answer_error(recipient, self.too_large(bytes), handling);
            return false;
        }
        self.counts
            .result(&recipient, piece.member.total, stats, handling.now_us);
        true
    }

    fn too_large(&self, bytes: u64) -> Error {
        Error::exhausted(format!(
            "the result has {bytes} bytes, which passes what may be on its way to one client ({} bytes, \
             --max-client-bytes)",
            self.max_client_bytes
        ))
    }

    pub(super) fn answer_error(
        &mut self,
        recipient: Recipient,
        error: Error,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        self.counts.error(&recipient, &error, handling.now_us);
        handling.answer(recipient, ServerMessage::Error(error));
    }
}

/// Sends the runs of a stream's member, one part each. Of rows that failed there is one run, or none.
pub(super) fn send_parts(
    piece: &Piece<'_>,
    runs: Vec<Batch>,
    failed: Vec<FailedRows>,
    handling: &mut Handling<'_, impl Outlet>,
) {
    if !failed.is_empty() {
        let outputs = Outputs {
            parts: runs,
            batched: true,
            failed,
        };
        return handling.answer(
            piece.recipient(),
            ServerMessage::Part(piece.member.offset, outputs),
        );
    }
    let mut offset = piece.member.offset;
    for run in runs {
        let rows = run.row_count().unwrap_or(0) as u64;
        let outputs = Outputs {
            parts: vec![run],
            batched: true,
            failed: Vec::new(),
        };
        handling.answer(piece.recipient(), ServerMessage::Part(offset, outputs));
        offset += rows;
    }
}

/// Whether parts make one result, whose header says what each output is.
fn check_alike(parts: &[Batch]) -> Result<()> {
    let Some((first, rest)) = parts.split_first() else {
        return Ok(());
    };
    match rest.iter().find(|part| !part.is_like(first)) {
        None => Ok(()),
        Some(other) => Err(Error::internal(format!(
            "the model's outputs differ from chunk to chunk: {} here and {} there; ask for parts (stream), or serve the \
             model with \"rows\":\"whole\"",
            first.kinds(),
            other.kinds()
        ))),
    }
}
