//! What metrics and probes are told, of the same counters as status.

use super::{Ledger, Reported};
use crate::message::Protocol;
use crate::metrics::{ByProtocol, DoorStats, Health, ModelStats, Snapshot, WorkerStats};
use crate::wire::inner::SinkReport;

impl Ledger {
    /// What probes are told.
    pub(super) fn health(&self, server: &Reported<'_>) -> Health {
        // An express worker takes no work of its own, so that nobody is served by it alone.
        let regular = server.info.limits.regular_workers();
        let regular = &self.workers[..regular.min(self.workers.len())];
        Health {
            workers_up: regular.iter().filter(|w| w.is_up()).count() as u64,
            workers: regular.len() as u64,
            is_started: server.is_started,
            is_draining: server.is_draining,
        }
    }

    /// The counters.
    pub(super) fn snapshot(&mut self, server: &Reported<'_>, sink: &SinkReport) -> Snapshot {
        let waiting = server.requests.waiting();
        Snapshot {
            version: server.info.welcome.server_version.clone(),
            up_us: server.up_us,
            health: self.health(server),
            models: self.models(server, sink),
            models_loaded: server.catalog.served().count() as u64,
            workers: self.workers(server),
            doors: self.doors(server, sink),
            queue_requests: server.pending,
            queue_rows: waiting.rows as u64,
            queue_bytes: waiting.bytes,
            coalesced: server.requests.coalesced(),
            dropped: self.dropped + sink.undelivered,
        }
    }

    fn doors(&self, server: &Reported<'_>, sink: &SinkReport) -> ByProtocol<DoorStats> {
        let mut doors: ByProtocol<DoorStats> = ByProtocol::default();
        for (protocol, open) in server.open_doors.each() {
            *doors.of_mut(protocol) = DoorStats {
                open: *open,
                sessions: *server.sessions.of(protocol),
                refused: *self.refused.of(protocol),
                ..DoorStats::default()
            };
        }
        doors.of_mut(Protocol::Zmq).connections = server.connections + sink.connections;
        doors
    }

    /// By name: what is served, and what something was counted of.
    fn models(&mut self, server: &Reported<'_>, sink: &SinkReport) -> Vec<ModelStats> {
        let served = server.catalog.served();
        let served: Vec<_> = served.map(|model| self.label(model)).collect();
        let stats = |(place, name): (usize, &String)| {
            let answered = sink.answered.get(place).cloned().unwrap_or_default();
            let ran = self.ran.get(place).cloned().unwrap_or_default();
            let last_us = (answered.last_us > 0).then_some(answered.last_us);
            ModelStats {
                name: name.clone(),
                is_served: served.iter().any(|label| label.0 as usize == place),
                answered,
                ran,
                last_result_us_ago: last_us.map(|at| server.up_us.saturating_sub(at)),
            }
        };
        let all = self.labels.names().iter().enumerate().map(stats);
        let counts = |of: &ModelStats| {
            of.is_served || of.ran.chunks + of.answered.results() + of.answered.errors() > 0
        };
        all.filter(counts).collect()
    }

    fn workers(&self, server: &Reported<'_>) -> Vec<WorkerStats> {
        let regular = server.info.limits.regular_workers();
        let stats = |(index, worker): (usize, &super::Worker)| WorkerStats {
            id: index as u32,
            device: server.info.devices.get(index).cloned().unwrap_or_default(),
            is_express: index >= regular,
            is_up: worker.is_up(),
            busy_us: worker.compute_us,
            chunks: worker.chunks,
            rows: worker.rows,
            runs: worker.runs,
        };
        self.workers.iter().enumerate().map(stats).collect()
    }
}
