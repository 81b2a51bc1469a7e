//! What a request is answered at its end: its result, or an error.

use super::bad_rows::Filled;
use super::outlet::{Action, Asker, Outlet, Turn};
use super::{Answers, Gathering, Piece};
use crate::error::{Error, Result};
use crate::message::{FailedRows, Stats};
use crate::tensor::{Batch, Tensor};
use crate::wire::rows::ResultRows;
use crate::wire::server::{Outputs, ServerMessage};

impl Answers {
    pub(super) fn complete(
        &mut self,
        piece: &Piece<'_>,
        done: Gathering,
        turn: &mut Turn<'_, impl Outlet>,
    ) {
        let member = piece.member;
        if done.bad.rows() > 0 {
            return self.complete_bad(piece, done, turn);
        }
        if member.stream {
            let asker = piece.asker();
            self.counts
                .result(&asker, member.total, &done.stats, turn.now_us);
            turn.answer(asker, ServerMessage::End(member.total, done.stats));
            return;
        }
        self.release(member.reply, done.counted);
        let outputs = Outputs {
            batched: true,
            parts: done.gather.into_parts(),
            failed: Vec::new(),
        };
        self.answer_result(piece, outputs, done.stats, turn);
    }

    /// All rows have come of a request of which some failed.
    fn complete_bad(
        &mut self,
        piece: &Piece<'_>,
        done: Gathering,
        turn: &mut Turn<'_, impl Outlet>,
    ) {
        let (member, asker, stats) = (piece.member, piece.asker(), done.stats);
        self.release(member.reply, done.counted);
        if let Some(error) = done.bad.error_of_all(member.total) {
            return self.answer_error(asker, error, turn);
        }
        if member.stream {
            self.counts
                .result(&asker, member.total, &stats, turn.now_us);
            self.counts.failed_rows(&asker, done.bad.rows());
            return turn.answer(asker, ServerMessage::End(member.total, stats));
        }
        let filled = Filled::of(done.gather, member.total);
        let bytes = done.counted + filled.missing_bytes();
        if !self.has_room(member.reply, bytes, turn) {
            return self.answer_error(asker, self.too_large(bytes), turn);
        }
        match filled.into_parts() {
            Ok(parts) => {
                let outputs = Outputs {
                    batched: true,
                    parts,
                    failed: done.bad.into_entries(),
                };
                self.answer_result(piece, outputs, stats, turn);
            }
            Err(error) => self.answer_error(asker, error, turn),
        }
    }

    pub(super) fn answer_result(
        &mut self,
        piece: &Piece<'_>,
        outputs: Outputs,
        stats: Stats,
        turn: &mut Turn<'_, impl Outlet>,
    ) {
        let asker = piece.asker();
        if let Err(error) = check_alike(&outputs.parts) {
            return self.answer_error(asker, error, turn);
        }
        if self.count_result(piece, outputs.bytes(), &stats, turn) {
            let failed = outputs.failed.iter().map(|failed| failed.count).sum();
            self.counts.failed_rows(&asker, failed);
            turn.answer(asker, ServerMessage::Result(outputs, stats));
        }
    }

    pub(super) fn answer_rows(
        &mut self,
        piece: &Piece<'_>,
        rows: ResultRows<'_>,
        turn: &mut Turn<'_, impl Outlet>,
    ) {
        if self.count_result(piece, rows.payload_bytes(), &rows.stats(), turn) {
            turn.outlet.perform(Action::Result {
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
        turn: &mut Turn<'_, impl Outlet>,
    ) -> bool {
        let asker = piece.asker();
        if !self.has_room(asker.reply, bytes, turn) {
            self.answer_error(asker, self.too_large(bytes), turn);
            return false;
        }
        self.counts
            .result(&asker, piece.member.total, stats, turn.now_us);
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
        asker: Asker,
        error: Error,
        turn: &mut Turn<'_, impl Outlet>,
    ) {
        self.counts.error(&asker, &error, turn.now_us);
        turn.answer(asker, ServerMessage::Error(error));
    }
}

/// Sends the runs of a stream's member, one part each. Of rows that failed there is one run, or none.
pub(super) fn send_parts(
    piece: &Piece<'_>,
    (runs, failed): (Vec<Batch>, Vec<FailedRows>),
    turn: &mut Turn<'_, impl Outlet>,
) {
    if !failed.is_empty() {
        let outputs = Outputs {
            parts: runs,
            batched: true,
            failed,
        };
        return turn.answer(
            piece.asker(),
            ServerMessage::Part(piece.member.offset, outputs),
        );
    }
    let mut offset = piece.member.offset;
    for run in runs {
        let rows = run.tensors.first().and_then(Tensor::rows).unwrap_or(0) as u64;
        let outputs = Outputs {
            parts: vec![run],
            batched: true,
            failed: Vec::new(),
        };
        turn.answer(piece.asker(), ServerMessage::Part(offset, outputs));
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
