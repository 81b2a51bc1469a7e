//! The ventilator's own counters, who waits for the sink's, and what status says of both. What metrics say of them is in
//! `report/snapshot.rs`, and what status says of the last seconds in `report/recent.rs`.

mod recent;
mod snapshot;

use std::collections::BTreeMap;

use self::recent::Counted;
use super::requests::Requests;
use super::{Models, ServerInfo};
use crate::catalog::Asker;
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Credit, ModelId, ModelLabel, ReplyTo, WorkerId};
use crate::metrics::history::History;
use crate::metrics::{Answered, ByProtocol, ErrorCounts, Labels, ROWS, Ran};
use crate::model::Description;
use crate::pipeline::door_queues::Question;
use crate::shares::{Bounds, Most, Shares};
use crate::wire::inner::SinkReport;
use crate::wire::server::{
    FailedModel, ModelInfo, QueueInfo, ServerMessage, Status, TotalsInfo, WorkerInfo,
};

/// Status questions that wait for the sink's report.
const QUESTIONS: Bounds = Bounds {
    what: "status questions",
    of_all: Most {
        count: 4096,
        bytes: None,
    },
    of_one: Most {
        count: 64,
        bytes: None,
    },
};

/// Who waits for the sink's report: it is asked for one at a time, whoever asks meanwhile.
#[derive(Default)]
struct Askers {
    /// They asked before the sink was asked, so its report is new enough for them.
    now: Vec<(Asker, Question)>,
    /// They asked later, and get the next.
    next: Vec<(Asker, Question)>,
    shares: Shares,
    /// Of the report that the sink was asked for last.
    token: u64,
}

impl Askers {
    /// Somebody wants to know. The token, if the sink is to be asked now.
    fn add(&mut self, asker: Asker, question: Question) -> Result<Option<u64>> {
        QUESTIONS.check(&self.shares, asker.client, 0)?;
        self.shares.add(asker.client, 0);
        self.next.push((asker, question));
        Ok(self.ask())
    }

    fn ask(&mut self) -> Option<u64> {
        if !self.now.is_empty() || self.next.is_empty() {
            return None;
        }
        self.now = std::mem::take(&mut self.next);
        self.token += 1;
        Some(self.token)
    }

    /// Those for whom a report is, and the token if the sink is to be asked again.
    fn take(&mut self, token: u64) -> (Vec<(Asker, Question)>, Option<u64>) {
        if token != self.token {
            return (Vec::new(), None);
        }
        let askers = std::mem::take(&mut self.now);
        for (asker, _) in &askers {
            self.shares.remove(asker.client, 0);
        }
        (askers, self.ask())
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum WorkerState {
    #[default]
    Starting,
    Up,
    Lost,
}

#[derive(Clone, Default)]
struct Worker {
    state: WorkerState,
    chunks: u64,
    rows: u64,
    runs: u64,
    compute_us: u64,
    model: Option<ModelId>,
}

impl Worker {
    fn is_up(&self) -> bool {
        self.state == WorkerState::Up
    }
}

/// Counters, and those who wait for the sink's.
pub(super) struct Ledger {
    workers: Vec<Worker>,
    labels: Labels,
    /// By label.
    ran: Vec<Ran>,
    /// Errors of what is no request that the sink answers.
    refused: ByProtocol<ErrorCounts>,
    pub(super) dropped: u64,
    askers: Askers,
    /// The workers' counters a while ago.
    history: History<Vec<Counted>>,
}

impl Ledger {
    pub(super) fn new(workers: usize) -> Ledger {
        Ledger {
            history: History::new(vec![Counted::default(); workers]),
            workers: vec![Worker::default(); workers],
            labels: Labels::new(),
            ran: Vec::new(),
            refused: ByProtocol::default(),
            dropped: 0,
            askers: Askers::default(),
        }
    }

    pub(super) fn count_refused(&mut self, reply: ReplyTo, error: &Error) {
        self.refused.of_mut(reply.protocol()).add(error.code());
    }

    /// Under what a served model is counted.
    pub(super) fn label(&mut self, model: &Description) -> ModelLabel {
        self.labels.of(model.id, &model.name)
    }

    /// A model is not needed any more. What was counted stays.
    pub(super) fn forget_model(&mut self, model: ModelId) {
        self.labels.forget(model);
    }

    fn change(&mut self, worker: WorkerId, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.get_mut(worker.0 as usize) {
            change(worker);
        }
    }

    pub(super) fn worker_up(&mut self, worker: WorkerId) {
        self.change(worker, |w| w.state = WorkerState::Up);
    }

    pub(super) fn worker_lost(&mut self, worker: WorkerId) {
        self.change(worker, |w| w.state = WorkerState::Lost);
    }

    /// A chunk has ended.
    pub(super) fn ran(&mut self, ran: &RanChunk) {
        self.change(ran.worker, |w| {
            w.chunks += 1;
            w.rows += ran.rows;
            w.runs += ran.runs;
            w.compute_us += ran.compute_us;
            w.model = Some(ran.model);
        });
        let place = ran.label.0 as usize;
        if place >= self.ran.len() {
            self.ran.resize_with(place + 1, Ran::default);
        }
        let of = &mut self.ran[place];
        of.chunks += 1;
        of.compute_us += ran.compute_us;
        of.runs.record_split(&ROWS, ran.rows, ran.runs);
    }

    /// Somebody asks about the server. The token of a report that the sink is to be asked for now, if it is.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many wait for one.
    pub(super) fn ask(&mut self, asker: Asker, question: Question) -> Result<Option<u64>> {
        self.askers.add(asker, question)
    }

    /// The sink's report has come: those whom it is for, and the token of another that it is to be asked for now.
    pub(super) fn take_askers(&mut self, token: u64) -> (Vec<(Asker, Question)>, Option<u64>) {
        self.askers.take(token)
    }

    /// The answers to these questions.
    pub(super) fn reports(
        &mut self,
        askers: &[(Asker, Question)],
        server: &Reported<'_>,
        sink: &SinkReport,
    ) -> Reports {
        let is_asked = |question| askers.iter().any(|(_, asked)| *asked == question);
        Reports {
            status: is_asked(Question::Status)
                .then(|| ServerMessage::StatusOk(Box::new(self.status(server, sink)))),
            metrics: is_asked(Question::Metrics)
                .then(|| ServerMessage::MetricsOk(Box::new(self.snapshot(server, sink)))),
            health: is_asked(Question::Health)
                .then(|| ServerMessage::HealthOk(self.health(server))),
        }
    }

    /// What status says.
    fn status(&self, server: &Reported<'_>, sink: &SinkReport) -> Status {
        let Reported {
            info,
            requests,
            catalog,
            ..
        } = server;
        let up_us = server.up_us.max(1);
        let windows = self.windows(up_us, requests);
        let worker = |(index, w): (usize, &Worker)| WorkerInfo {
            id: index as u32,
            device: info.devices.get(index).cloned().unwrap_or_default(),
            state: match w.state {
                WorkerState::Starting => "starting",
                WorkerState::Lost => "lost",
                WorkerState::Up if requests.is_busy(WorkerId(index as u32)) => "busy",
                WorkerState::Up => "idle",
            }
            .to_owned(),
            model: w
                .model
                .and_then(|id| catalog.describe(id))
                .map(|description| description.name.clone()),
            chunks: w.chunks,
            rows: w.rows,
            busy: w.compute_us as f64 / up_us as f64,
            extra: (info.limits.workers..info.limits.regular_workers()).contains(&index),
            recent: windows.iter().map(|window| window.worker(index)).collect(),
        };
        let mut workers: Vec<WorkerInfo> = self.workers.iter().enumerate().map(worker).collect();
        let regular = info.limits.regular_workers().min(workers.len());
        let express_workers = workers.split_off(regular);
        // Every code, so that a reader need not know which have happened.
        let none = ErrorCode::ALL.map(|code| (code.as_str().to_owned(), 0));
        let mut errors = BTreeMap::from(none);
        let answered = || sink.answered.iter().flat_map(|of| of.requests.each());
        let of_requests = answered().map(|(_, requests)| &requests.errors);
        let refused = self.refused.each().map(|(_, refused)| refused);
        for (code, count) in of_requests.chain(refused).flat_map(ErrorCounts::by_code) {
            *errors.entry(code.as_str().to_owned()).or_default() += count;
        }
        let waiting = requests.waiting();
        Status {
            version: info.welcome.server_version.clone(),
            uptime_s: up_us / 1_000_000,
            settings: info.settings.clone(),
            models: models(catalog),
            workers,
            express_workers,
            queue: QueueInfo {
                requests: server.pending,
                rows: waiting.rows as u64,
                bytes: waiting.bytes,
            },
            totals: TotalsInfo {
                requests: (sink.answered.iter().map(|of| of.results() + of.errors())).sum(),
                rows: sink.answered.iter().map(Answered::rows).sum(),
                failed_rows: sink.answered.iter().map(Answered::failed_rows).sum(),
                chunks: self.workers.iter().map(|w| w.chunks).sum(),
                coalesced: requests.coalesced(),
                dropped: self.dropped + sink.undelivered,
                errors,
            },
            latency_us: sink.latency,
            recent: recent::recent(&windows, sink, regular),
            by_model: self.by_model(catalog, sink),
            broken: broken(catalog),
        }
    }
}

/// What a chunk's credit says of the work.
pub(super) struct RanChunk {
    worker: WorkerId,
    model: ModelId,
    label: ModelLabel,
    rows: u64,
    runs: u64,
    compute_us: u64,
}

impl RanChunk {
    pub(super) fn of(credit: &Credit) -> RanChunk {
        RanChunk {
            worker: credit.worker,
            model: credit.model,
            label: credit.label,
            rows: credit.rows,
            runs: credit.runs,
            compute_us: credit.compute_us,
        }
    }
}

/// What is told besides counters comes from here.
pub(super) struct Reported<'a> {
    pub(super) info: &'a ServerInfo,
    pub(super) requests: &'a Requests,
    pub(super) catalog: &'a Models,
    pub(super) up_us: u64,
    pub(super) pending: u64,
    pub(super) is_started: bool,
    pub(super) is_draining: bool,
    /// Doors that are open; the port is one.
    pub(super) open_doors: ByProtocol<u64>,
    /// Sessions that are connected, and callers of doors.
    pub(super) sessions: ByProtocol<u64>,
    /// Connections of the port.
    pub(super) connections: u64,
}

/// The answers to questions of one moment: to each kind that was asked one, whoever asked.
pub(super) struct Reports {
    status: Option<ServerMessage>,
    metrics: Option<ServerMessage>,
    health: Option<ServerMessage>,
}

impl Reports {
    /// The answer to such a question, if it is among those that this was made for.
    pub(super) fn to(&self, question: Question) -> Option<&ServerMessage> {
        match question {
            Question::Status => self.status.as_ref(),
            Question::Metrics => self.metrics.as_ref(),
            Question::Health => self.health.as_ref(),
        }
    }
}

/// Models that do not open: each version once, by whatever it was asked for.
fn broken(catalog: &Models) -> Vec<FailedModel> {
    let mut all: Vec<FailedModel> = Vec::new();
    for (failure, served) in catalog.failures() {
        all.retain(|of| (&of.name, &of.version) != (&failure.name, &failure.version));
        all.push(FailedModel {
            name: failure.name.clone(),
            version: failure.version.clone(),
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            served_on: served.map(|model| model.version.clone()),
        });
    }
    all
}

/// Every model that requests find.
pub(super) fn models(catalog: &Models) -> Vec<ModelInfo> {
    catalog.served().map(|model| model.info()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::message::{ReplyTo, RequestId};

    const STATUS: Question = Question::Status;

    fn asker(client: u8, id: u64) -> Asker {
        Asker {
            client: ReplyTo([client; 16]),
            id: RequestId(id),
        }
    }

    fn ids(askers: &[(Asker, Question)]) -> Vec<u64> {
        askers.iter().map(|(asker, _)| asker.id.0).collect()
    }

    #[test]
    fn a_flood_of_status_questions_is_one_question_to_the_sink() {
        let mut askers = Askers::default();
        assert_eq!(askers.add(asker(0, 0), STATUS).unwrap(), Some(1));
        for id in 1..64 {
            assert_eq!(askers.add(asker(0, id), STATUS).unwrap(), None);
        }
        let refused = askers.add(asker(0, 64), STATUS).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ResourceExhausted);
        assert_eq!(
            askers.add(asker(1, 100), Question::Health).unwrap(),
            None,
            "others are heard"
        );
        // What came after the sink was asked gets a report that was made later.
        let (first, again) = askers.take(1);
        assert_eq!((ids(&first), again), (vec![0], Some(2)));
        assert_eq!(ids(&askers.take(1).0), [0; 0], "an old report");
        let (second, again) = askers.take(2);
        assert_eq!((second.len(), again), (64, None));
        assert_eq!(askers.add(asker(0, 65), STATUS).unwrap(), Some(3));
        assert_eq!(
            (ids(&askers.take(3).0), askers.shares.all().count),
            (vec![65], 0)
        );
    }

    #[test]
    fn who_waits_for_status_is_bounded_over_all_clients() {
        let mut askers = Askers::default();
        let mut taken = 0;
        for client in 0..200 {
            taken += (0..64)
                .filter(|id| askers.add(asker(client, *id), STATUS).is_ok())
                .count();
        }
        assert!((2048..=4096).contains(&taken));
        assert_eq!(askers.now.len() + askers.next.len(), taken);
    }
}
