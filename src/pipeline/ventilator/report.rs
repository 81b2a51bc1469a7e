//! What status says: the ventilator's own counters, joined with the sink's.

use std::collections::{BTreeMap, HashMap};

use super::{Asker, SinkReport, Ventilator};
use crate::error::Error;
use crate::message::{ModelId, WorkerId};
use crate::wire::server::{QueueInfo, ServerMessage, Status, TotalsInfo, WorkerInfo};

#[derive(Clone, Default)]
struct Worker {
    up: bool,
    lost: bool,
    chunks: u64,
    rows: u64,
    compute_us: u64,
    model: Option<ModelId>,
}

/// Counters, and those who wait for the sink's.
pub(super) struct Ledger {
    workers: Vec<Worker>,
    errors: BTreeMap<String, u64>,
    pub(super) dropped: u64,
    askers: HashMap<u64, Asker>,
    next_token: u64,
}

impl Ledger {
    pub(super) fn new(workers: usize) -> Ledger {
        Ledger {
            workers: vec![Worker::default(); workers],
            errors: BTreeMap::new(),
            dropped: 0,
            askers: HashMap::new(),
            next_token: 0,
        }
    }

    /// Somebody wants to know; the token finds them again when the sink has answered.
    pub(super) fn ask(&mut self, asker: Asker) -> u64 {
        self.next_token += 1;
        self.askers.insert(self.next_token, asker);
        self.next_token
    }

    pub(super) fn count_error(&mut self, error: &Error) {
        let count = self.errors.entry(error.code().as_str().to_owned());
        *count.or_default() += 1;
    }

    fn change(&mut self, worker: WorkerId, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.get_mut(worker.0 as usize) {
            change(worker);
        }
    }

    pub(super) fn worker_up(&mut self, worker: WorkerId) {
        self.change(worker, |w| (w.up, w.lost) = (true, false));
    }

    pub(super) fn worker_lost(&mut self, worker: WorkerId) {
        self.change(worker, |w| (w.up, w.lost) = (false, true));
    }

    /// A worker ran a chunk of so many rows for so long.
    pub(super) fn ran(&mut self, worker: WorkerId, model: ModelId, rows: u64, compute_us: u64) {
        self.change(worker, |w| {
            w.chunks += 1;
            w.rows += rows;
            w.compute_us += compute_us;
            w.model = Some(model);
        });
    }
}

impl Ventilator {
    pub(super) fn send_status(&mut self, token: u64, sink: &SinkReport) {
        let Some((identity, id)) = self.ledger.askers.remove(&token) else {
            return;
        };
        let status = ServerMessage::StatusOk(Box::new(self.status(sink)));
        self.answer(&identity, id, &status);
    }

    fn status(&self, sink: &SinkReport) -> Status {
        let up_us = self.clock.now_us().max(1);
        let registry = &self.registry;
        let worker = |(index, w): (usize, &Worker)| WorkerInfo {
            id: index as u32,
            device: self.facts.devices.get(index).cloned().unwrap_or_default(),
            state: match (w.up, w.lost) {
                (_, true) => "lost",
                (false, false) => "starting",
                _ if self.requests.scheduler.held(WorkerId(index as u32)) > 0 => "busy",
                _ => "idle",
            }
            .to_owned(),
            model: w
                .model
                .and_then(|id| registry.describe(id))
                .map(|description| description.name.clone()),
            chunks: w.chunks,
            rows: w.rows,
            busy: w.compute_us as f64 / up_us as f64,
        };
        let mut errors = sink.errors.clone();
        for (code, count) in &self.ledger.errors {
            *errors.entry(code.clone()).or_default() += count;
        }
        let waiting = self.requests.scheduler.waiting();
        Status {
            version: self.facts.welcome.server_version.clone(),
            uptime_s: up_us / 1_000_000,
            settings: self.facts.settings.clone(),
            models: registry.models(),
            workers: self.ledger.workers.iter().enumerate().map(worker).collect(),
            queue: QueueInfo {
                requests: self.pending(),
                rows: waiting.rows as u64,
                bytes: waiting.bytes,
            },
            totals: TotalsInfo {
                requests: sink.requests,
                rows: sink.rows,
                chunks: self.ledger.workers.iter().map(|w| w.chunks).sum(),
                coalesced: self.requests.scheduler.coalesced(),
                dropped: self.ledger.dropped + sink.undelivered,
                errors,
            },
            latency_us: sink.latency,
        }
    }
}
