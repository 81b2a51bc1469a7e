//! The sink: gathers parts by serial, answers in row order, and is the one place where an infer is answered.
//!
//! Every accepted request gets exactly one final answer here: its result when the last row has come, or the error
//! that the ventilator closes it with, whichever is first. What was answered is remembered for as long as something
//! about it may still arrive, and no longer.

mod outbox;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use zmq::Socket;

use self::outbox::Outbox;
use super::guard::Guard;
use super::{Clock, tell};
use crate::error::{Error, Result};
use crate::frames;
use crate::message::{Member, Outcome, Part, ReplyTo, RequestId, Serial, Stats};
use crate::socket::{self, Waiter};
use crate::split::Gather;
use crate::tensor::{Batch, Tensor};
use crate::wire::client::{self, ClientMessage};
use crate::wire::inner::{self, Close, SinkReport, ToSink, ToVentilator};
use crate::wire::server::{self, LatencyInfo, Outputs, ServerMessage};

/// So many requests are remembered as answered. The ventilator may close a request that the sink has just answered: it
/// has not read the credit yet. Its order then lies in the sink's inbox, behind no more than other orders and the parts
/// of chunks that were out; the queue's bound (`--max-queue-requests`) is of this size.
const ANSWERED: usize = 1 << 17;
/// Messages taken from one socket before the other gets its turn.
const TURN: usize = 256;

/// What the sink is set up with.
pub(crate) struct Setup {
    /// `port_out`, bound.
    pub router: Socket,
    /// Hears from workers and ventilator, bound.
    pub inbox: Socket,
    /// Watches `port_out`.
    pub guard: Guard,
    /// Speaks to the ventilator.
    pub ventilator: Socket,
    pub clock: Clock,
    pub waiter: Waiter,
    pub workers: usize,
    pub max_client_bytes: u64,
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

struct Sink {
    router: Socket,
    inbox: Socket,
    guard: Guard,
    ventilator: Socket,
    clock: Clock,
    waiter: Waiter,
    outbox: Outbox,
    gathering: HashMap<Serial, Gathering>,
    ended: HashMap<Serial, Ended>,
    answered: Answered,
    stopped: Vec<bool>,
    latency: Histogram<u64>,
    report: SinkReport,
}

/// Runs until every worker has stopped and everything is answered.
///
/// # Errors
/// If an inner connection is gone.
pub(crate) fn run(setup: Setup) -> Result<()> {
    let mut sink = Sink::new(setup)?;
    let ended = sink.serve();
    sink.guard.end(&sink.router);
    ended
}

impl Sink {
    fn new(setup: Setup) -> Result<Sink> {
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 2)
            .map_err(|e| Error::internal(format!("the latency histogram: {e}")))?;
        Ok(Sink {
            router: setup.router,
            inbox: setup.inbox,
            guard: setup.guard,
            ventilator: setup.ventilator,
            clock: setup.clock,
            waiter: setup.waiter,
            outbox: Outbox::new(setup.max_client_bytes),
            gathering: HashMap::new(),
            ended: HashMap::new(),
            answered: Answered::default(),
            stopped: vec![false; setup.workers],
            latency,
            report: SinkReport::default(),
        })
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            let mut drained = 0;
            for _ in 0..TURN {
                let Some(message) = frames::receive(&mut self.inbox, zmq::DONTWAIT)? else {
                    drained += 1;
                    break;
                };
                self.hear(inner::read_to_sink(message)?)?;
            }
            // Before the router is drained: its descriptor tells of news only if it was not used since.
            self.flush()?;
            for _ in 0..TURN {
                let Some((message, source)) =
                    frames::receive_with_source(&mut self.router, zmq::DONTWAIT)?
                else {
                    drained += 1;
                    break;
                };
                self.guard.saw(source);
                self.greet(message);
            }
            let now_us = self.clock.now_us();
            self.guard.look(now_us)?;
            if drained < 2 {
                continue;
            }
            if self.stopped.iter().all(|stopped| *stopped) {
                return self.finish();
            }
            let look = Duration::from_micros(self.guard.due_us().saturating_sub(now_us));
            let pause = self
                .outbox
                .retry_after()
                .map_or(look, |retry| retry.min(look));
            self.waiter
                .wait(&[&self.inbox, &self.router], Some(pause))?;
        }
    }

    fn hear(&mut self, message: ToSink) -> Result<()> {
        match message {
            ToSink::Part(part) => self.take_part(*part),
            ToSink::Close(close) => self.close(&close),
            ToSink::Lost(serial, parts) => {
                if let Some(ended) = self.ended.get_mut(&serial) {
                    ended.expected = ended.expected.map(|n| n.saturating_sub(parts));
                    self.forget_if_complete(serial, u64::MAX);
                }
                Ok(())
            }
            ToSink::Report(token) => {
                let report = self.make_report();
                self.tell_ventilator(ToVentilator::Report(token, Box::new(report)))
            }
            ToSink::Finish => {
                self.stopped.fill(true);
                Ok(())
            }
            ToSink::Stopped(worker) => {
                if let Some(stopped) = self.stopped.get_mut(worker.0 as usize) {
                    *stopped = true;
                }
                Ok(())
            }
        }
    }

    fn tell_ventilator(&mut self, message: ToVentilator) -> Result<()> {
        tell(&mut self.ventilator, inner::write_to_ventilator(message))
    }

    /// A client says hello on `port_out`: from now on results can reach it. Nothing else is expected here.
    fn greet(&mut self, message: Vec<Bytes>) {
        let mut frames = message.into_iter();
        let Some(identity) = frames.next() else {
            return;
        };
        let answer = match client::read(frames.collect()) {
            Ok(ClientMessage::Hello(id)) => server::write_message(id, &ServerMessage::Welcome),
            Ok(other) => {
                let error = Error::invalid("only hello is spoken on port_out; send this to port");
                server::write_message(other.id(), &ServerMessage::Error(error))
            }
            Err(malformed) => match malformed.id {
                Some(id) => server::write_message(id, &ServerMessage::Error(malformed.error)),
                None => {
                    tracing::debug!(error = %malformed.error, "dropped a message that has no readable id");
                    self.report.undelivered += 1;
                    return;
                }
            },
        };
        let answer = std::iter::once(identity).chain(answer);
        if let Err(e) = frames::send(&mut self.router, answer, zmq::DONTWAIT) {
            tracing::debug!(%e, "a hello on port_out could not be answered");
        }
    }

    fn take_part(&mut self, part: Part) -> Result<()> {
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
            if self.take_rows(member, runs, part.compute_us)? {
                self.answered.push(serial);
            }
        }
        Ok(())
    }

    /// Takes what the runs of a member's rows gave, if they did. True if that completed the request.
    fn take_rows(
        &mut self,
        member: Member,
        runs: Option<Vec<Batch>>,
        compute_us: u64,
    ) -> Result<bool> {
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
            self.answer_result(&member, outputs, stats)?;
            return Ok(true);
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
            return Ok(false);
        }
        entry.stats.chunks += 1;
        entry.stats.compute_us += compute_us;
        let rows = entry.gather.rows();
        entry.broken |= broken;
        if entry.broken {
            return Ok(false);
        }
        if !self.outbox.has_room(member.reply, bytes) {
            return self.overflow(&member);
        }
        if !member.stream {
            entry.counted += bytes;
            self.outbox.gathered(member.reply, bytes);
        }
        let mut offset = member.offset;
        for run in sent {
            let frames = server::write_part(member.request, offset, &run);
            self.send(member.reply, frames)?;
            offset += run.tensors.first().and_then(Tensor::rows).unwrap_or(0) as u64;
        }
        if rows < member.total {
            return Ok(false);
        }
        let Some(done) = self.gathering.remove(&member.serial) else {
            return Ok(true);
        };
        if member.stream {
            let end = ServerMessage::End(member.total, done.stats);
            self.count_answer(member.arrived_us, member.total, None);
            self.send(member.reply, server::write_message(member.request, &end))?;
        } else {
            self.outbox.released(member.reply, done.counted);
            let outputs = Outputs {
                batched: true,
                parts: done.gather.into_parts(),
            };
            self.answer_result(&member, outputs, done.stats)?;
        }
        Ok(true)
    }

    /// The client's bytes are used up: this request ends with an error, others go on.
    fn overflow(&mut self, member: &Member) -> Result<bool> {
        let error = Error::exhausted(format!(
            "the results held for this client would pass {} bytes (--max-client-bytes): read results, ask for fewer rows at once, or stream",
            self.outbox.max_bytes()
        ));
        self.end_gathering(member.serial, member.reply, None, member.total);
        self.answer_error(member.reply, member.request, member.arrived_us, &error)?;
        self.tell_ventilator(ToVentilator::Abort(member.serial))?;
        // The ventilator may be closing it for a reason of its own: that must find that it was answered.
        Ok(!self.ended.contains_key(&member.serial))
    }

    /// What was gathered is dropped; what is still to come of it will be counted.
    fn end_gathering(&mut self, serial: Serial, reply: ReplyTo, expected: Option<u64>, total: u64) {
        let mut ended = Ended {
            expected,
            ..Ended::default()
        };
        if let Some(gathering) = self.gathering.remove(&serial) {
            self.outbox.released(reply, gathering.counted);
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

    fn close(&mut self, close: &Close) -> Result<()> {
        if close.answered {
            // The sink itself had ended it; now it knows how much is still to come.
            if let Some(ended) = self.ended.get_mut(&close.serial) {
                ended.expected = Some(close.chunks);
                self.forget_if_complete(close.serial, u64::MAX);
            }
            return Ok(());
        }
        if close.chunks > 0 {
            if self.answered.has(close.serial) {
                return Ok(()); // the result was faster
            }
            if let Some(ended) = self.ended.get_mut(&close.serial) {
                // So was an error of the sink's own.
                ended.expected = Some(close.chunks);
                self.forget_if_complete(close.serial, u64::MAX);
                return Ok(());
            }
            self.end_gathering(close.serial, close.reply, Some(close.chunks), u64::MAX);
        }
        let error = close.error();
        self.answer_error(close.reply, close.request, close.arrived_us, &error)
    }

    fn answer_result(&mut self, member: &Member, outputs: Outputs, stats: Stats) -> Result<()> {
        if let Err(error) = check_alike(&outputs.parts) {
            return self.answer_error(member.reply, member.request, member.arrived_us, &error);
        }
        let bytes: u64 = outputs.parts.iter().map(|p| p.payload_bytes() as u64).sum();
        if !self.outbox.has_room(member.reply, bytes) {
            let error = Error::exhausted(format!(
                "the result has {bytes} bytes, which passes what may be on its way to one client ({} bytes, --max-client-bytes)",
                self.outbox.max_bytes()
            ));
            return self.answer_error(member.reply, member.request, member.arrived_us, &error);
        }
        let frames = server::write_result(member.request, &outputs, stats);
        self.count_answer(member.arrived_us, member.total, None);
        self.send(member.reply, frames)
    }

    fn answer_error(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        arrived_us: u64,
        error: &Error,
    ) -> Result<()> {
        self.count_answer(arrived_us, 0, Some(error));
        let frames = server::write_message(request, &ServerMessage::Error(error.clone()));
        self.send(reply, frames)
    }

    fn count_answer(&mut self, arrived_us: u64, rows: u64, error: Option<&Error>) {
        self.report.requests += 1;
        self.report.rows += rows;
        match error {
            Some(error) => {
                let count = self.report.errors.entry(error.code().as_str().to_owned());
                *count.or_default() += 1;
            }
            None => {
                let us = self.clock.now_us().saturating_sub(arrived_us);
                self.latency.saturating_record(us.max(1));
            }
        }
    }

    fn send(&mut self, reply: ReplyTo, frames: Vec<Bytes>) -> Result<()> {
        if self.outbox.send(&mut self.router, reply, frames) {
            return Ok(());
        }
        self.report.undelivered += 1;
        self.tell_ventilator(ToVentilator::Gone(reply))
    }

    fn flush(&mut self) -> Result<()> {
        for gone in self.outbox.flush(&mut self.router) {
            self.report.undelivered += 1;
            self.tell_ventilator(ToVentilator::Gone(gone))?;
        }
        Ok(())
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

    /// Nothing more will come. Slow readers get a moment for what is still theirs.
    fn finish(&mut self) -> Result<()> {
        let patience = self.clock.now_us() + 1_000_000;
        while let Some(pause) = self.outbox.retry_after() {
            if self.clock.now_us() > patience {
                tracing::warn!("results were left that their clients did not read");
                break;
            }
            socket::wait(&[&self.router], Some(pause.max(Duration::from_millis(1))))?;
            self.flush()?;
        }
        self.tell_ventilator(ToVentilator::SinkStopped)
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
