//! What was answered, counted for status and metrics.

use hdrhistogram::Histogram;

use super::outlet::Recipient;
use crate::error::{Error, Result};
use crate::message::{ModelLabel, Stats};
use crate::metrics::history::History;
use crate::metrics::{Answered, DURATIONS_US};
use crate::wire::inner::{AnswerCounts, AnsweredRecently, SinkReport};
use crate::wire::server::LatencyInfo;

/// The counters, and how long answers took.
pub(super) struct Counts {
    /// From arrival to result, in microseconds: up to an hour, to a hundredth.
    latency: Histogram<u64>,
    /// By the label of the models.
    answered: Vec<Answered>,
    /// The same a while ago.
    history: History<Vec<AnswerCounts>>,
}

impl Counts {
    pub(super) fn new() -> Result<Counts> {
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 2)
            .map_err(|e| Error::internal(format!("the latency histogram: {e}")))?;
        Ok(Counts {
            latency,
            answered: Vec::new(),
            history: History::new(Vec::new()),
        })
    }

    /// The sink is about to wait.
    pub(super) fn note(&mut self, now_us: u64) {
        let answered = &self.answered;
        self.history
            .note(now_us, || answered.iter().map(AnswerCounts::of).collect());
    }

    /// When it has to wake for that.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.history.due_us()
    }

    fn recent(&self, now_us: u64) -> Vec<AnsweredRecently> {
        let now: Vec<AnswerCounts> = self.answered.iter().map(AnswerCounts::of).collect();
        let windows = self.history.windows(now_us);
        let windows = windows.map(|(covered, mut copies)| {
            let (_, before) = copies.next().unzip();
            let none = AnswerCounts::default();
            let before = |place| before.and_then(|of: &Vec<AnswerCounts>| of.get(place));
            let since =
                |(place, now): (usize, &AnswerCounts)| now.since(before(place).unwrap_or(&none));
            AnsweredRecently {
                covered,
                answers: now.iter().enumerate().map(since).collect(),
            }
        });
        windows.collect()
    }

    /// The counters of `label`, made at first use; the ventilator bounds the labels.
    fn of(&mut self, label: ModelLabel) -> &mut Answered {
        let place = label.0 as usize;
        if place >= self.answered.len() {
            self.answered.resize_with(place + 1, Answered::default);
        }
        &mut self.answered[place]
    }

    /// A result of so many rows leaves.
    pub(super) fn result(&mut self, recipient: &Recipient, rows: u64, stats: &Stats, now_us: u64) {
        let total_us = now_us.saturating_sub(recipient.arrived_us);
        self.latency.saturating_record(total_us.max(1));
        let of = self.of(recipient.label);
        let requests = of.requests.of_mut(recipient.reply.protocol());
        requests.results += 1;
        requests.rows += rows;
        of.queue.record(&DURATIONS_US, stats.queue_us, 1);
        of.compute.record(&DURATIONS_US, stats.compute_us, 1);
        of.total.record(&DURATIONS_US, total_us, 1);
        of.last_us = now_us;
    }

    /// Of the rows of a result so many have failed.
    pub(super) fn failed_rows(&mut self, recipient: &Recipient, rows: u64) {
        let of = self.of(recipient.label);
        of.requests.of_mut(recipient.reply.protocol()).failed_rows += rows;
    }

    /// An error leaves.
    pub(super) fn error(&mut self, recipient: &Recipient, error: &Error, now_us: u64) {
        let of = self.of(recipient.label);
        let requests = of.requests.of_mut(recipient.reply.protocol());
        requests.errors.add(error.code());
        of.failed_us += now_us.saturating_sub(recipient.arrived_us);
    }

    pub(super) fn report(&self, now_us: u64) -> SinkReport {
        let at = |q| self.latency.value_at_quantile(q);
        let latency = match self.latency.is_empty() {
            true => LatencyInfo::default(),
            false => LatencyInfo {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
            },
        };
        SinkReport {
            answered: self.answered.clone(),
            undelivered: 0,
            connections: 0,
            latency,
            recent: self.recent(now_us),
        }
    }
}
