//! What status says of the last seconds, and of each model.

use super::super::Models;
use super::super::requests::Requests;
use super::Ledger;
use crate::message::WorkerId;
use crate::metrics::history::Covered;
use crate::metrics::{Answered, DURATIONS_US, ErrorCounts, Histogram};
use crate::wire::inner::{AnswerCounts, SinkReport};
use crate::wire::server::{LatencyInfo, ModelCounts, ModelRecent, RecentInfo, WorkerRecent};

/// A worker's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    chunks: u64,
    rows: u64,
    compute_us: u64,
    /// It holds a chunk, which counts above once it has ended.
    is_busy: bool,
}

/// What the workers did in a window.
pub(super) struct WorkersRecently {
    covered: Covered,
    workers: Vec<(Counted, u64)>,
}

impl WorkersRecently {
    pub(super) fn worker(&self, index: usize) -> WorkerRecent {
        let (done, busy_us) = self.workers.get(index).copied().unwrap_or_default();
        WorkerRecent {
            seconds: self.covered.seconds,
            busy: self.share(busy_us),
            chunks_per_s: self.covered.rate(done.chunks),
            rows_per_s: self.covered.rate(done.rows),
        }
    }

    /// What began before the window counts in it when it ends: never more than all of it.
    fn share(&self, busy_us: u64) -> f64 {
        (busy_us as f64 / self.covered.us as f64).min(1.0)
    }
}

impl Ledger {
    /// The ventilator is about to wait: the workers' counters are remembered from time to time.
    pub(in super::super) fn note(&mut self, now_us: u64, requests: &Requests) {
        let workers = &self.workers;
        self.history.note(now_us, || counted(workers, requests));
    }

    /// When it has to wake for that.
    pub(in super::super) fn note_due_us(&self) -> Option<u64> {
        self.history.due_us()
    }

    pub(super) fn windows(&self, now_us: u64, requests: &Requests) -> Vec<WorkersRecently> {
        let now = counted(&self.workers, requests);
        let windows = self.history.windows(now_us).map(|(covered, copies)| {
            let copies: Vec<_> = copies.collect();
            let of = |(index, now): (usize, &Counted)| {
                let of_copy = |(at_us, all): &(u64, &Vec<Counted>)| {
                    (*at_us, all.get(index).copied().unwrap_or_default())
                };
                let copies: Vec<(u64, Counted)> = copies.iter().map(of_copy).collect();
                done_since(&copies, *now, now_us, covered)
            };
            WorkersRecently {
                covered,
                workers: now.iter().enumerate().map(of).collect(),
            }
        });
        windows.collect()
    }

    /// By name: what is served, and what something was answered for.
    pub(super) fn by_model(&self, catalog: &Models, sink: &SinkReport) -> Vec<ModelCounts> {
        let none = Answered::default();
        let names = self.labels.names().iter().enumerate();
        let counts = names.filter_map(|(place, name)| {
            let answered = sink.answered.get(place).unwrap_or(&none);
            let requests = answered.results() + answered.errors();
            let is_served = || catalog.served().any(|model| model.name == *name);
            (requests > 0 || is_served()).then(|| ModelCounts {
                name: name.clone(),
                requests,
                rows: answered.rows(),
                failed_rows: answered.failed_rows(),
                errors: errors(answered),
                latency_us: latency(&answered.total),
                recent: of_model(place, sink),
            })
        });
        let mut counts: Vec<ModelCounts> = counts.collect();
        // What was opened ahead and not used yet has no label.
        for model in catalog.served() {
            if counts.iter().all(|counts| counts.name != model.name) {
                counts.push(ModelCounts {
                    name: model.name.clone(),
                    recent: of_model(usize::MAX, sink),
                    ..ModelCounts::default()
                });
            }
        }
        counts
    }
}

fn counted(workers: &[super::Worker], requests: &Requests) -> Vec<Counted> {
    let of = |(index, worker): (usize, &super::Worker)| Counted {
        chunks: worker.chunks,
        rows: worker.rows,
        compute_us: worker.compute_us,
        is_busy: requests.is_busy(WorkerId(index as u32)),
    };
    workers.iter().enumerate().map(of).collect()
}

/// What a worker did since the first of these copies, and how long it was busy: what still runs has been running since
/// the first copy, of those after its last chunk, that saw it busy.
fn done_since(
    copies: &[(u64, Counted)],
    now: Counted,
    now_us: u64,
    covered: Covered,
) -> (Counted, u64) {
    let before = copies
        .first()
        .map(|(_, before)| *before)
        .unwrap_or_default();
    let done = Counted {
        chunks: now.chunks - before.chunks,
        rows: now.rows - before.rows,
        compute_us: now.compute_us - before.compute_us,
        is_busy: now.is_busy,
    };
    let running = copies.iter().rev();
    let running = running.take_while(|(_, copy)| copy.is_busy && copy.chunks == now.chunks);
    let since_us = running.map(|(at_us, _)| *at_us).last();
    let running_us = since_us
        .filter(|_| now.is_busy)
        .map_or(0, |at_us| now_us.saturating_sub(at_us).min(covered.us));
    (done, done.compute_us + running_us)
}

/// What the server did in each window. It is all busy if the regular workers are, so many: the first ones.
pub(super) fn recent(
    workers: &[WorkersRecently],
    sink: &SinkReport,
    regular: usize,
) -> Vec<RecentInfo> {
    let of = |workers: &WorkersRecently| {
        let covered = workers.covered;
        let answered = (sink.recent.iter()).find(|of| of.covered.seconds == covered.seconds);
        let mut all = AnswerCounts::default();
        for of in answered.iter().flat_map(|of| &of.answers) {
            all.results += of.results;
            all.rows += of.rows;
            all.errors += of.errors;
            all.total.add(&of.total);
        }
        let over = answered.map_or(covered, |of| of.covered);
        let chunks = workers.workers.iter().map(|(done, _)| done.chunks).sum();
        let count = regular.max(1) as f64;
        let busy = workers.workers.iter().take(regular);
        let busy = busy.map(|(_, us)| workers.share(*us));
        RecentInfo {
            seconds: covered.seconds,
            over_ms: over.us / 1000,
            requests_per_s: over.rate(all.results + all.errors),
            rows_per_s: over.rate(all.rows),
            errors_per_s: over.rate(all.errors),
            chunks_per_s: covered.rate(chunks),
            busy: busy.sum::<f64>() / count,
            latency_us: latency(&all.total),
        }
    };
    workers.iter().map(of).collect()
}

fn of_model(place: usize, sink: &SinkReport) -> Vec<ModelRecent> {
    let none = AnswerCounts::default();
    let recent = sink.recent.iter().map(|recent| {
        let (of, covered) = (recent.answers.get(place).unwrap_or(&none), recent.covered);
        ModelRecent {
            seconds: covered.seconds,
            requests_per_s: covered.rate(of.results + of.errors),
            rows_per_s: covered.rate(of.rows),
            errors_per_s: covered.rate(of.errors),
            latency_us: latency(&of.total),
        }
    });
    recent.collect()
}

fn errors(answered: &Answered) -> std::collections::BTreeMap<String, u64> {
    let mut errors = std::collections::BTreeMap::new();
    let by_door = answered.requests.each();
    let counts = by_door.flat_map(|(_, requests)| ErrorCounts::by_code(&requests.errors));
    for (code, count) in counts.filter(|(_, count)| *count > 0) {
        *errors.entry(code.as_str().to_owned()).or_default() += count;
    }
    errors
}

fn latency(total: &Histogram) -> LatencyInfo {
    let at = |share| total.quantile(&DURATIONS_US, share);
    LatencyInfo {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn at(chunks: u64, compute_us: u64, is_busy: bool) -> Counted {
        Counted {
            chunks,
            rows: chunks * 10,
            compute_us,
            is_busy,
        }
    }

    /// A chunk's time is counted at its end: until then a worker that is busy for minutes would look idle.
    #[test]
    fn a_worker_is_busy_while_its_chunk_runs() {
        let covered = Covered {
            seconds: 10,
            us: 10 * S,
        };
        let copies = [
            (0, at(1, S, false)),
            (2 * S, at(1, S, true)),
            (3 * S, at(1, S, true)),
        ];
        let (done, busy_us) = done_since(&copies, at(1, S, true), 10 * S, covered);
        assert_eq!((done.chunks, busy_us), (0, 8 * S));
        let (done, busy_us) = done_since(&copies, at(2, 9 * S, false), 10 * S, covered);
        assert_eq!((done.chunks, done.rows, busy_us), (1, 10, 8 * S));
        // It ended, and the next runs: since when is not known yet.
        let (_, busy_us) = done_since(&copies, at(2, 9 * S, true), 10 * S, covered);
        assert_eq!(busy_us, 8 * S);
        let recent = WorkersRecently {
            covered,
            workers: vec![(done, 30 * S)],
        };
        assert_eq!(recent.worker(0).busy, 1.0);
        assert_eq!(recent.worker(0).chunks_per_s, 0.1);
    }

    /// It would never look busy else, since an express worker hardly ever is.
    #[test]
    fn a_server_is_all_busy_if_its_regular_workers_are() {
        let covered = Covered {
            seconds: 10,
            us: 10 * S,
        };
        let [full, express] = [at(3, 10 * S, false), at(5, S, false)].map(|of| (of, of.compute_us));
        let workers = WorkersRecently {
            covered,
            workers: vec![full, full, express],
        };
        let recent = recent(&[workers], &SinkReport::default(), 2);
        assert_eq!(recent[0].busy, 1.0);
        assert_eq!(recent[0].chunks_per_s, 1.1, "those of all");
    }
}
