//! What is answered, and with what: a pure state machine. It knows no socket and no clock; what it wants done goes to an
//! [`Outlet`].
//!
//! Every accepted request gets exactly one final answer here: its result when the last row has come, or the error
//! that the ventilator closes it with, whichever is first. What was answered is remembered for as long as something
//! about it may still arrive, and no longer.
//!
//! Each piece of a request that is given out brings exactly one part that counts, so parts can be counted. Only a lost
//! worker could break that: its parts may have come, and its rows run again. So the ventilator asks what has come of its
//! chunks before it gives them to others, and what comes of them later is refused (`recent.rs`).

mod answered;
mod bad_rows;
mod counts;
mod ends;
mod given;
mod outlet;
mod recent;
#[cfg(test)]
mod tests;

pub(crate) use self::outlet::{Action, Outlet};
use foldhash::HashMap;

use self::answered::{AnsweredSpans, Span};
use self::bad_rows::{BadRows, bytes_of};
use self::counts::Counts;
use self::ends::send_parts;
use self::given::Given;
use self::outlet::{Handling, Recipient};
use self::recent::{Recent, Standing};
use crate::error::{Error, Result};
use crate::message::{ChunkId, Member, ModelLabel, Outcome, Part, Ran, ReplyTo, Serial, Stats};
use crate::split::Gather;
use crate::wire::inner::{Arrived, Close, CloseEnd, LostWorker, ToSink, ToVentilator};
use crate::wire::result_writer::ResultRows;
use crate::wire::server::Outputs;

/// What bounds the answers.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub workers: usize,
    /// Chunks that a worker can hold, running and waiting, in both lanes.
    pub worker_chunks: usize,
    /// Bytes gathered for one client, or on their way to it.
    pub max_client_bytes: u64,
    /// Answered requests that are remembered before the ventilator is asked which of them it may still close.
    pub answered: usize,
}

/// A request whose parts are coming.
#[derive(Default)]
struct Gathering {
    /// Rows that have come. Streams have sent their parts already: theirs are empty here.
    gather: Gather,
    /// Of these rows those that failed.
    bad: BadRows,
    /// Parts that have come, those that failed or were skipped too.
    parts: u64,
    /// Its bytes that are counted in [`AnswerState::gathered`].
    counted: u64,
    /// Of the parts that have come and did not fail.
    stats: Stats,
    span: Option<Span>,
}

impl Gathering {
    /// Counts a chunk that has brought rows. Returns the chunks that have.
    fn count_chunk(&mut self, piece: &Piece<'_>) -> Span {
        let (chunk, queue_us) = (piece.chunk, piece.member.queue_us);
        let stats = &mut self.stats;
        stats.queue_us = match stats.chunks {
            0 => queue_us,
            _ => stats.queue_us.min(queue_us),
        };
        stats.chunks += 1;
        stats.compute_us += piece.compute_us;
        let span = self.span.map_or(Span::of(chunk), |span| span.with(chunk));
        *self.span.insert(span)
    }
}

/// A request that was answered although parts of it may still come.
struct Ended {
    /// Parts that have come.
    parts: u64,
    until: Until,
}

/// How it is known that nothing more comes of a request.
#[derive(Clone, Copy)]
enum Until {
    /// The ventilator has closed it, and so many parts were given out.
    Parts(u64),
    /// The sink has ended it by itself: so many rows are missing. If they do not come, the ventilator closes it.
    Rows { missing: u64, span: Span },
}

/// Rows of a request that a chunk has brought.
struct Piece<'a> {
    member: &'a Member,
    chunk: ChunkId,
    label: ModelLabel,
    compute_us: u64,
}

impl Piece<'_> {
    fn recipient(&self) -> Recipient {
        Recipient::of(self.member, self.label)
    }
}

/// The requests of which parts are coming, and what was answered.
pub(crate) struct AnswerState {
    max_client_bytes: u64,
    gathering: HashMap<Serial, Gathering>,
    /// Bytes gathered for each client.
    gathered: HashMap<ReplyTo, u64>,
    ended: HashMap<Serial, Ended>,
    answered: AnsweredSpans,
    recent: Vec<Recent>,
    stopped: Vec<bool>,
    counts: Counts,
}

impl AnswerState {
    pub(crate) fn new(bounds: &Bounds) -> Result<AnswerState> {
        let recent = (0..bounds.workers).map(|_| Recent::new(bounds.worker_chunks));
        Ok(AnswerState {
            max_client_bytes: bounds.max_client_bytes,
            gathering: HashMap::default(),
            gathered: HashMap::default(),
            ended: HashMap::default(),
            answered: AnsweredSpans::new(bounds.answered),
            recent: recent.collect(),
            stopped: vec![false; bounds.workers],
            counts: Counts::new()?,
        })
    }

    /// The sink is about to wait: what was counted is remembered from time to time.
    pub(crate) fn note(&mut self, now_us: u64) {
        self.counts.note(now_us);
    }

    /// When it has to wake for that.
    pub(crate) fn note_due_us(&self) -> Option<u64> {
        self.counts.due_us()
    }

    /// Takes a message, and has done what comes of it.
    pub(crate) fn hear(&mut self, message: ToSink, now_us: u64, outlet: &mut impl Outlet) {
        let handling = &mut Handling { now_us, outlet };
        match message {
            ToSink::Part(part) => {
                self.take_part(*part, handling);
                if self.answered.ask() {
                    handling.tell_ventilator(ToVentilator::WhatIsOut);
                }
            }
            ToSink::Close(close) => self.close(&close, handling),
            ToSink::Lost(serial, parts) => {
                if let Some(ended) = self.ended.get_mut(&serial) {
                    if let Until::Parts(expected) = &mut ended.until {
                        *expected = expected.saturating_sub(parts);
                    }
                    self.forget_if_complete(serial);
                }
            }
            ToSink::WorkerLost(lost) => self.lose_worker(&lost, handling),
            ToSink::Out(out) => self.answered.settle(&out),
            ToSink::Report(token) => {
                let report = Box::new(self.counts.report(handling.now_us));
                handling.tell_ventilator(ToVentilator::Report(token, report));
            }
            // What is gathered for it goes when the ventilator closes its requests.
            ToSink::Gone(_) => {}
            ToSink::Finish => self.stopped.fill(true),
            ToSink::Stopped(worker) => {
                if let Some(stopped) = self.stopped.get_mut(worker.0 as usize) {
                    *stopped = true;
                }
            }
        }
    }

    /// No worker will send anything any more.
    pub(crate) fn all_stopped(&self) -> bool {
        self.stopped.iter().all(|stopped| *stopped)
    }

    // ---- parts ---------------------------------------------------------------------------------------------------

    fn take_part(&mut self, part: Part, handling: &mut Handling<'_, impl Outlet>) {
        let Some(recent) = self.recent.get_mut(part.worker.0 as usize) else {
            return; // there is no such worker
        };
        if recent.take(&part) == Standing::Refused {
            return;
        }
        let Outcome::Done(done) = part.outcome else {
            // The ventilator closes what failed, and has closed what was skipped: here such a part only counts.
            for member in &part.members {
                if self.ended.contains_key(&member.serial) {
                    self.count_ended(member, None);
                } else {
                    self.gathering.entry(member.serial).or_default().parts += 1;
                }
            }
            return;
        };
        let mut rest = &part.members[..];
        for ran in done {
            let Ran {
                members,
                runs,
                failed,
            } = ran;
            let Some((own, others)) = rest.split_at_checked(members) else {
                return; // cannot happen: a worker counts its members
            };
            rest = others;
            let piece = |member| Piece {
                member,
                chunk: part.chunk,
                label: part.label,
                compute_us: part.compute_us,
            };
            match own {
                [member] => {
                    let given = match failed.is_empty() {
                        true => Given::Runs(runs),
                        false => Given::Bad(runs.into_iter().next(), failed),
                    };
                    self.take_piece(&piece(member), given, handling);
                }
                own => {
                    let Some(run) = runs.first() else {
                        return; // cannot happen: what ran has outputs
                    };
                    let mut start = 0;
                    for member in own {
                        let end = start + member.rows as usize;
                        self.take_piece(&piece(member), Given::Some(run, start..end), handling);
                        start = end;
                    }
                }
            }
        }
    }

    fn take_piece(
        &mut self,
        piece: &Piece<'_>,
        given: Given<'_>,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let Piece { member, chunk, .. } = *piece;
        if self.ended.contains_key(&member.serial) {
            self.count_ended(member, Some(chunk));
        } else if let Some(span) = self.take_rows(piece, given, handling) {
            self.answered.insert(member.serial, span);
        }
    }

    /// Takes what a member's rows gave. If those were the last of the request's rows, returns the chunks
    /// that brought them.
    fn take_rows(
        &mut self,
        piece: &Piece<'_>,
        given: Given<'_>,
        handling: &mut Handling<'_, impl Outlet>,
    ) -> Option<Span> {
        let member = piece.member;
        if member.rows == member.total && !member.stream {
            // Nothing to gather: most small requests end here.
            self.answer_alone(piece, given, handling);
            return Some(Span::of(piece.chunk));
        }
        let (runs, failed) = given.into_runs();
        let bytes = runs
            .iter()
            .map(|run| run.payload_bytes() as u64)
            .sum::<u64>();
        let bytes = bytes + bytes_of(&failed);
        let fits = self.has_room(member.reply, bytes, handling);
        let (kept, sent) = if member.stream || !fits {
            (Vec::new(), runs)
        } else {
            (runs, Vec::new())
        };
        let entry = self.gathering.entry(member.serial).or_default();
        entry.parts += 1;
        if !entry.gather.add(member.offset, member.rows, kept) {
            return None; // cannot happen: each piece brings one part that counts
        }
        let span = entry.count_chunk(piece);
        let missing = member.total.saturating_sub(entry.gather.rows());
        if !fits {
            self.overflow(piece, missing, span, handling);
            return (missing == 0).then_some(span);
        }
        if member.stream {
            if !failed.is_empty() {
                entry.bad.add_told(&failed);
            }
            send_parts(piece, sent, failed, handling);
        } else {
            entry.bad.add(failed);
            entry.counted += bytes;
            *self.gathered.entry(member.reply).or_default() += bytes;
        }
        if missing > 0 {
            return None;
        }
        if let Some(done) = self.gathering.remove(&member.serial) {
            self.complete(piece, done, handling);
        }
        Some(span)
    }

    /// Answers a request whose rows all came in one piece.
    fn answer_alone(
        &mut self,
        piece: &Piece<'_>,
        given: Given<'_>,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let member = piece.member;
        let stats = Stats {
            queue_us: member.queue_us,
            compute_us: piece.compute_us,
            chunks: 1,
        };
        if let Some((outputs, rows)) = given.as_rows(member) {
            self.answer_rows(piece, ResultRows::new(outputs, rows, stats), handling);
            return;
        }
        let (parts, failed) = given.into_runs();
        let mut bad = BadRows::default();
        bad.add(failed);
        if let Some(error) = bad.error_of_all(member.total) {
            self.answer_error(piece.recipient(), error, handling);
            return;
        }
        let outputs = Outputs {
            batched: !member.whole,
            parts,
            failed: bad.into_entries(),
        };
        self.answer_result(piece, outputs, stats, handling);
    }

    // ---- bytes ---------------------------------------------------------------------------------------------------

    /// Whether so many more bytes may be held for a client.
    fn has_room(&self, reply: ReplyTo, bytes: u64, handling: &Handling<'_, impl Outlet>) -> bool {
        let gathered = self.gathered.get(&reply).copied().unwrap_or(0);
        let held = gathered + handling.outlet.unsent_bytes(reply);
        held + bytes <= self.max_client_bytes
    }

    /// Gathered bytes are about to be sent, or were dropped.
    fn release(&mut self, reply: ReplyTo, bytes: u64) {
        if let Some(gathered) = self.gathered.get_mut(&reply) {
            *gathered = gathered.saturating_sub(bytes);
            if *gathered == 0 {
                self.gathered.remove(&reply);
            }
        }
    }

    /// The client's bytes are used up: this request ends with an error, others go on.
    fn overflow(
        &mut self,
        piece: &Piece<'_>,
        missing: u64,
        span: Span,
        handling: &mut Handling<'_, impl Outlet>,
    ) {
        let member = piece.member;
        let advice = match member.stream {
            true => "read parts sooner, or ask for fewer rows at once",
            false => "read results, ask for fewer rows at once, or stream",
        };
        let error = Error::exhausted(format!(
            "the results held for this client would pass {} bytes (--max-client-bytes): {advice}",
            self.max_client_bytes
        ));
        let gathered = self.drop_gathered(member.serial, member.reply);
        if missing > 0 {
            let ended = Ended {
                parts: gathered.parts,
                until: Until::Rows { missing, span },
            };
            self.ended.insert(member.serial, ended);
        }
        self.answer_error(piece.recipient(), error, handling);
        handling.tell_ventilator(ToVentilator::Abort(member.serial));
    }

    // ---- ends before their time ----------------------------------------------------------------------------------

    /// The ventilator ends a request, which it does at most once: with an error, unless it was answered.
    fn close(&mut self, close: &Close, handling: &mut Handling<'_, impl Outlet>) {
        if self.answered.remove(close.serial) {
            return; // the result was sent before
        }
        if let Some(ended) = self.ended.get_mut(&close.serial) {
            // The sink has ended it with an error of its own. Now it is known how many parts are still to come.
            ended.until = Until::Parts(close.chunks);
        } else if let CloseEnd::Error(error) = &close.end {
            let gathered = self.drop_gathered(close.serial, close.reply);
            if gathered.parts < close.chunks {
                let ended = Ended {
                    parts: gathered.parts,
                    until: Until::Parts(close.chunks),
                };
                self.ended.insert(close.serial, ended);
            }
            let recipient = Recipient {
                reply: close.reply,
                request: close.request,
                arrived_us: close.arrived_us,
                label: close.label,
            };
            self.answer_error(recipient, error.clone(), handling);
        }
        self.forget_if_complete(close.serial);
    }

    /// What has come of a request is dropped.
    fn drop_gathered(&mut self, serial: Serial, reply: ReplyTo) -> Gathering {
        let gathered = self.gathering.remove(&serial).unwrap_or_default();
        self.release(reply, gathered.counted);
        gathered
    }

    /// A part of a request that was answered before; where it has the rows, the chunk that brought them.
    fn count_ended(&mut self, member: &Member, brought_by: Option<ChunkId>) {
        let Some(ended) = self.ended.get_mut(&member.serial) else {
            return;
        };
        ended.parts += 1;
        if let Until::Rows { missing, span } = &mut ended.until
            && let Some(chunk) = brought_by
        {
            *missing = missing.saturating_sub(member.rows);
            *span = span.with(chunk);
            if *missing == 0 {
                // The ventilator may be closing it for a reason of its own: that must find that it was answered.
                self.answered.insert(member.serial, *span);
                self.ended.remove(&member.serial);
                return;
            }
        }
        self.forget_if_complete(member.serial);
    }

    fn forget_if_complete(&mut self, serial: Serial) {
        let complete = |ended: &Ended| match ended.until {
            Until::Parts(expected) => ended.parts >= expected,
            Until::Rows { .. } => false,
        };
        if self.ended.get(&serial).is_some_and(complete) {
            self.ended.remove(&serial);
        }
    }

    /// A worker is gone: what has come of its chunks stands, and what failed of them is tried again.
    fn lose_worker(&mut self, lost: &LostWorker, handling: &mut Handling<'_, impl Outlet>) {
        let Some(recent) = self.recent.get_mut(lost.worker.0 as usize) else {
            return; // there is no such worker
        };
        let mut chunks = Vec::with_capacity(lost.chunks.len());
        for settled in recent.lose(lost) {
            for serial in settled.bad {
                if let Some(ended) = self.ended.get_mut(&serial) {
                    ended.parts = ended.parts.saturating_sub(1);
                } else if let Some(gathering) = self.gathering.get_mut(&serial) {
                    gathering.parts = gathering.parts.saturating_sub(1);
                    if gathering.parts == 0 {
                        self.gathering.remove(&serial);
                    }
                }
            }
            chunks.push((settled.chunk, settled.good));
        }
        handling.tell_ventilator(ToVentilator::Arrived(Arrived {
            worker: lost.worker,
            chunks,
        }));
    }
}

#[cfg(test)]
impl AnswerState {
    /// What was answered, by label.
    pub(crate) fn counted(&self) -> Vec<crate::metrics::Answered> {
        self.counts.report(0).answered
    }

    /// Bytes gathered for a client.
    pub(crate) fn gathered_bytes(&self, reply: ReplyTo) -> u64 {
        self.gathered.get(&reply).copied().unwrap_or(0)
    }

    /// Answered requests that are remembered.
    pub(crate) fn answered(&self) -> usize {
        self.answered.len()
    }

    /// What is remembered of requests that are not answered, or of which something is to come.
    pub(crate) fn left(&self) -> Vec<String> {
        let gathering = self.gathering.keys().map(|s| format!("{s} gathering"));
        let ended = self.ended.keys().map(|s| format!("{s} ended"));
        let bytes = self.gathered.values().map(|bytes| format!("{bytes} bytes"));
        gathering.chain(ended).chain(bytes).collect()
    }
}
