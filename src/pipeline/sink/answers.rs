//! What is answered, and with what: a pure state machine. It knows no socket and no clock; what it wants done goes to an
//! [`Outlet`].
//!
//! Every accepted request gets exactly one final answer here: its result when the last row has come, or the error
//! that the ventilator closes it with, whichever is first. What was answered is remembered for as long as something
//! about it may still arrive, and no longer.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use hdrhistogram::Histogram;

use crate::error::{Error, Result};
use crate::message::{Member, Outcome, Part, ReplyTo, RequestId, Serial, Stats};
use crate::split::Gather;
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::{Close, SinkReport, ToSink, ToVentilator};
use crate::wire::server::{LatencyInfo, Outputs, ServerMessage};

/// So many requests are remembered as answered. The ventilator may close a request that the sink has just answered: it
/// has not read the credit yet. Its order then lies in the sink's inbox, behind no more than other orders and the parts
/// of chunks that were out; the queue's bound (`--max-queue-requests`) is of this size.
const ANSWERED: usize = 1 << 17;

/// What is to be done, at once.
#[derive(Debug)]
pub(crate) enum Action {
    /// Tell a client.
    Answer {
        reply: ReplyTo,
        request: RequestId,
        message: ServerMessage,
    },
    TellVentilator(ToVentilator),
}

/// Whoever does what is to be done, and knows what waits for clients.
pub(crate) trait Outlet {
    /// Bytes that were given to [`Outlet::perform`] for a client and have not left yet.
    fn unsent_bytes(&self, reply: ReplyTo) -> u64;

    fn perform(&mut self, action: Action);
}

/// A request whose parts are coming.
#[derive(Default)]
struct Gathering {
    /// Streams have sent their parts already: theirs are empty here.
    gather: Gather,
    /// A part failed or was skipped: the ventilator's close is on its way.
    broken: bool,
    /// Bytes of it that the client's account has.
    counted: u64,
    stats: Stats,
}

/// A request that was answered although parts of it may still come.
#[derive(Default)]
struct Ended {
    /// Parts that have come.
    parts: u64,
    /// Rows that have come.
    rows: u64,
    /// Parts that were given out, once the ventilator has said so.
    expected: Option<u64>,
}

/// The requests that were answered last.
#[derive(Default)]
struct Answered {
    serials: HashSet<Serial>,
    order: VecDeque<Serial>,
}

impl Answered {
    fn push(&mut self, serial: Serial) {
        if self.order.len() == ANSWERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.serials.remove(&oldest);
        }
        self.serials.insert(serial);
        self.order.push_back(serial);
    }

    fn has(&self, serial: Serial) -> bool {
        self.serials.contains(&serial)
    }
}

/// The requests of which parts are coming, and what was answered.
pub(crate) struct Answers {
    max_client_bytes: u64,
    gathering: HashMap<Serial, Gathering>,
    /// Bytes gathered for each client.
    gathered: HashMap<ReplyTo, u64>,
    ended: HashMap<Serial, Ended>,
    answered: Answered,
    stopped: Vec<bool>,
    latency: Histogram<u64>,
    report: SinkReport,
}

impl Answers {
    pub(crate) fn new(workers: usize, max_client_bytes: u64) -> Result<Answers> {
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 2)
            .map_err(|e| Error::internal(format!("the latency histogram: {e}")))?;
        Ok(Answers {
            max_client_bytes,
            gathering: HashMap::new(),
            gathered: HashMap::new(),
            ended: HashMap::new(),
            answered: Answered::default(),
            stopped: vec![false; workers],
            latency,
            report: SinkReport::default(),
        })
    }

    pub(crate) fn hear(&mut self, message: ToSink, now_us: u64, outlet: &mut impl Outlet) {
        match message {
            ToSink::Part(part) => self.take_part(*part, now_us, outlet),
            ToSink::Close(close) => self.close(&close, now_us, outlet),
            ToSink::Lost(serial, parts) => {
                if let Some(ended) = self.ended.get_mut(&serial) {
                    ended.expected = ended.expected.map(|n| n.saturating_sub(parts));
                    self.forget_if_complete(serial, u64::MAX);
                }
            }
            ToSink::Report(token) => {
                let report = Box::new(self.make_report());
                outlet.perform(Action::TellVentilator(ToVentilator::Report(token, report)));
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

    /// Bytes gathered for a client.
    #[cfg(test)]
    pub(crate) fn gathered_bytes(&self, reply: ReplyTo) -> u64 {
        self.gathered.get(&reply).copied().unwrap_or(0)
    }

    /// What is remembered of requests that are not answered, or of which something is to come.
    #[cfg(test)]
    pub(crate) fn left(&self) -> String {
        let mut left = String::new();
        for (serial, _) in &self.gathering {
            left += &format!("{serial} gathering, ");
        }
        for (serial, _) in &self.ended {
            left += &format!("{serial} ended, ");
        }
        for (_, bytes) in &self.gathered {
            left += &format!("{bytes} bytes, ");
        }
        left
    }

    fn take_part(&mut self, part: Part, now_us: u64, outlet: &mut impl Outlet) {
        let done = match part.outcome {
            Outcome::Done(done) => done.into_iter().map(Some).collect(),
            // The ventilator closes what failed, and has closed what was skipped: here such a part only counts.
            Outcome::Skipped | Outcome::Failed => vec![None; part.members.len()],
        };
        for (member, runs) in part.members.into_iter().zip(done) {
            if part.attempt > 0 && self.answered.has(member.serial) {
                continue; // the worker was lost after the part and before the credit: it came twice
            }
            if self.ended.contains_key(&member.serial) {
                self.count_ended(&member);
                continue;
            }
            let serial = member.serial;
            if self.take_rows(member, runs, part.compute_us, now_us, outlet) {
                self.answered.push(serial);
            }
        }
    }

    /// Takes what the runs of a member's rows gave, if they did. True if that completed the request.
    fn take_rows(
        &mut self,
        member: Member,
        runs: Option<Vec<Batch>>,
        compute_us: u64,
        now_us: u64,
        outlet: &mut impl Outlet,
    ) -> bool {
        let broken = runs.is_none();
        let runs = runs.unwrap_or_default();
        let whole_request = member.rows == member.total && !member.stream;
        if whole_request && !broken {
            // Nothing to gather: most small requests end here.
            let stats = Stats {
                queue_us: member.queue_us,
                compute_us,
                chunks: 1,
            };
            let outputs = Outputs {
                batched: !member.whole,
                parts: runs,
            };
            self.answer_result(&member, outputs, stats, now_us, outlet);
            return true;
        }
        let entry = self.gathering.entry(member.serial).or_default();
        let first = entry.stats.chunks == 0;
        entry.stats.queue_us = if first {
            member.queue_us
        } else {
            entry.stats.queue_us.min(member.queue_us)
        };
        let bytes = runs.iter().map(|run| run.payload_bytes() as u64).sum();
        let (kept, sent) = if member.stream {
            (Vec::new(), runs)
        } else {
            (runs, Vec::new())
        };
        if !entry.gather.add(member.offset, member.rows, kept) {
            return false;
        }
        entry.stats.chunks += 1;
        entry.stats.compute_us += compute_us;
        let rows = entry.gather.rows();
        entry.broken |= broken;
        if entry.broken {
            return false;
        }
        if !self.has_room(member.reply, bytes, outlet) {
            return self.overflow(&member, now_us, outlet);
        }
        if !member.stream
            && let Some(entry) = self.gathering.get_mut(&member.serial)
        {
            entry.counted += bytes;
            *self.gathered.entry(member.reply).or_default() += bytes;
        }
        let mut offset = member.offset;
        for run in sent {
            let rows = run.tensors.first().and_then(Tensor::rows).unwrap_or(0) as u64;
            let outputs = Outputs {
                parts: vec![run],
                batched: true,
            };
            outlet.perform(Action::Answer {
                reply: member.reply,
                request: member.request,
                message: ServerMessage::Part(offset, outputs),
            });
            offset += rows;
        }
        if rows < member.total {
            return false;
        }
        let Some(done) = self.gathering.remove(&member.serial) else {
            return true;
        };
        if member.stream {
            self.count_answer(member.arrived_us, member.total, None, now_us);
            outlet.perform(Action::Answer {
                reply: member.reply,
                request: member.request,
                message: ServerMessage::End(member.total, done.stats),
            });
        } else {
            self.release(member.reply, done.counted);
            let outputs = Outputs {
                batched: true,
                parts: done.gather.into_parts(),
            };
            self.answer_result(&member, outputs, done.stats, now_us, outlet);
        }
        true
    }

    /// Whether so many more bytes may be held for a client.
    fn has_room(&self, reply: ReplyTo, bytes: u64, outlet: &impl Outlet) -> bool {
        let gathered = self.gathered.get(&reply).copied().unwrap_or(0);
        gathered + outlet.unsent_bytes(reply) + bytes <= self.max_client_bytes
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
    fn overflow(&mut self, member: &Member, now_us: u64, outlet: &mut impl Outlet) -> bool {
        let error = Error::exhausted(format!(
            "the results held for this client would pass {} bytes (--max-client-bytes): read results, ask for fewer rows at once, or stream",
            self.max_client_bytes
        ));
        self.end_gathering(member.serial, member.reply, None, member.total);
        self.answer_error(
            member.reply,
            member.request,
            member.arrived_us,
            error,
            now_us,
            outlet,
        );
        outlet.perform(Action::TellVentilator(ToVentilator::Abort(member.serial)));
        // The ventilator may be closing it for a reason of its own: that must find that it was answered.
        !self.ended.contains_key(&member.serial)
    }

    /// What was gathered is dropped; what is still to come of it will be counted.
    fn end_gathering(&mut self, serial: Serial, reply: ReplyTo, expected: Option<u64>, total: u64) {
        let mut ended = Ended {
            expected,
            ..Ended::default()
        };
        if let Some(gathering) = self.gathering.remove(&serial) {
            self.release(reply, gathering.counted);
            ended.parts = gathering.stats.chunks;
            ended.rows = gathering.gather.rows();
        }
        self.ended.insert(serial, ended);
        self.forget_if_complete(serial, total);
    }

    fn count_ended(&mut self, member: &Member) {
        if let Some(ended) = self.ended.get_mut(&member.serial) {
            ended.parts += 1;
            ended.rows += member.rows;
        }
        self.forget_if_complete(member.serial, member.total);
    }

    fn forget_if_complete(&mut self, serial: Serial, total: u64) {
        let complete = |e: &Ended| e.rows >= total || e.expected.is_some_and(|n| e.parts >= n);
        if self.ended.get(&serial).is_some_and(complete) {
            self.ended.remove(&serial);
        }
    }

    fn close(&mut self, close: &Close, now_us: u64, outlet: &mut impl Outlet) {
        if close.answered {
            // The sink itself had ended it; now it knows how much is still to come.
            if let Some(ended) = self.ended.get_mut(&close.serial) {
                ended.expected = Some(close.chunks);
                self.forget_if_complete(close.serial, u64::MAX);
            }
            return;
        }
        if close.chunks > 0 {
            if self.answered.has(close.serial) {
                return; // the result was faster
            }
            if let Some(ended) = self.ended.get_mut(&close.serial) {
                // So was an error of the sink's own.
                ended.expected = Some(close.chunks);
                self.forget_if_complete(close.serial, u64::MAX);
                return;
            }
            self.end_gathering(close.serial, close.reply, Some(close.chunks), u64::MAX);
        }
        self.answer_error(
            close.reply,
            close.request,
            close.arrived_us,
            close.error(),
            now_us,
            outlet,
        );
    }

    fn answer_result(
        &mut self,
        member: &Member,
        outputs: Outputs,
        stats: Stats,
        now_us: u64,
        outlet: &mut impl Outlet,
    ) {
        if let Err(error) = check_alike(&outputs.parts) {
            return self.answer_error(
                member.reply,
                member.request,
                member.arrived_us,
                error,
                now_us,
                outlet,
            );
        }
        let bytes: u64 = outputs.parts.iter().map(|p| p.payload_bytes() as u64).sum();
        if !self.has_room(member.reply, bytes, outlet) {
            let error = Error::exhausted(format!(
                "the result has {bytes} bytes, which passes what may be on its way to one client ({} bytes, --max-client-bytes)",
                self.max_client_bytes
            ));
            return self.answer_error(
                member.reply,
                member.request,
                member.arrived_us,
                error,
                now_us,
                outlet,
            );
        }
        self.count_answer(member.arrived_us, member.total, None, now_us);
        outlet.perform(Action::Answer {
            reply: member.reply,
            request: member.request,
            message: ServerMessage::Result(outputs, stats),
        });
    }

    fn answer_error(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        arrived_us: u64,
        error: Error,
        now_us: u64,
        outlet: &mut impl Outlet,
    ) {
        self.count_answer(arrived_us, 0, Some(&error), now_us);
        outlet.perform(Action::Answer {
            reply,
            request,
            message: ServerMessage::Error(error),
        });
    }

    fn count_answer(&mut self, arrived_us: u64, rows: u64, error: Option<&Error>, now_us: u64) {
        self.report.requests += 1;
        self.report.rows += rows;
        match error {
            Some(error) => {
                let count = self.report.errors.entry(error.code().as_str().to_owned());
                *count.or_default() += 1;
            }
            None => {
                let us = now_us.saturating_sub(arrived_us);
                self.latency.saturating_record(us.max(1));
            }
        }
    }

    fn make_report(&self) -> SinkReport {
        let at = |q| self.latency.value_at_quantile(q);
        let mut report = self.report.clone();
        if !self.latency.is_empty() {
            report.latency = LatencyInfo {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
            };
        }
        // Every code, so that a reader need not know which have happened.
        let all: BTreeMap<_, _> = crate::ErrorCode::ALL
            .iter()
            .map(|code| (code.as_str().to_owned(), 0))
            .collect();
        report.errors = all.into_iter().chain(report.errors).collect();
        report
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
