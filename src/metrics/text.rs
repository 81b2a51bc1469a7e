//! A snapshot as Prometheus' text: names, units and labels. Pure: what is not in the snapshot is handed in.
//!
//! The text is that of version 0.0.4, which every scraper reads and `promtool check metrics` judges, written by the
//! `prometheus` crate's encoder. `prometheus-client`, the other kept-up crate, writes OpenMetrics alone, where a
//! counter's HELP and TYPE lack the `_total` of its samples: promtool takes those for two things.

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType,
};

use super::{
    Bounds, DURATIONS_US, Histogram, ModelStats, Process, ROWS, Requests, Snapshot, WorkerStats,
};
use crate::error::{Error, Result};
use crate::message::Protocol;

/// What the text is, for the header of a response.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In a second. Values are divided by it: 50 times 1e-6 is not the number that is written 0.00005.
const MICROS: f64 = 1e6;

/// What is told besides a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Connections that are open, by the kind of door that has them.
    pub connections: Vec<(Protocol, u64)>,
    /// Answers that doors gave, by kind and by status in the words of the door's protocol.
    pub responses: Vec<(Protocol, String, u64)>,
    /// What the system says of this process.
    pub process: Process,
}

/// Writes a snapshot.
///
/// # Errors
/// `INTERNAL`, if the encoder refuses what it is given.
pub fn text(snapshot: &Snapshot, outside: &Outside) -> Result<String> {
    let mut page = Page::default();
    page.server(snapshot);
    page.requests(snapshot);
    page.runs(snapshot);
    page.queue(snapshot);
    page.workers(snapshot);
    page.doors(snapshot, outside);
    page.process(&outside.process);
    TextEncoder::new()
        .encode_to_string(&page.families)
        .map_err(|e| Error::internal(format!("metrics could not be written: {e}")))
}

/// One of a model's histograms.
type HistogramOf = fn(&ModelStats) -> &Histogram;

/// A name with its value.
type Label<'a> = (&'static str, &'a str);

#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    fn server(&mut self, snapshot: &Snapshot) {
        let health = &snapshot.health;
        self.gauge(
            "mdm_build_info",
            "The server's version, as a label; always 1.",
            [sample(&[("version", &snapshot.version)], 1.0)],
        );
        self.gauge(
            "mdm_ready",
            "1 if requests are taken: the server has started, a worker takes work, and it does not drain.",
            [sample(&[], flag(health.is_ready()))],
        );
        self.gauge(
            "mdm_draining",
            "1 once the server was told to stop.",
            [sample(&[], flag(health.is_draining))],
        );
        self.gauge(
            "mdm_models_loaded",
            "Models that requests find without reading a file, each version by itself.",
            [sample(&[], snapshot.models_loaded as f64)],
        );
    }

    /// Requests for rows, by model and door.
    fn requests(&mut self, snapshot: &Snapshot) {
        let mut all = Vec::new();
        let mut rows = Vec::new();
        let mut failed_rows = Vec::new();
        let mut errors = Vec::new();
        for model in &snapshot.models {
            for (kind, requests) in model.answered.requests.each() {
                let count = requests.results + requests.errors.all();
                if count == 0 && snapshot.doors.of(kind).open == 0 {
                    continue; // nobody can come that way
                }
                let labels = [("model", &*model.name), ("door", kind.as_str())];
                all.push(sample(&labels, count as f64));
                rows.push(sample(&labels, requests.rows as f64));
                failed_rows.push(sample(&labels, requests.failed_rows as f64));
                errors.extend(errors_of(&labels, requests));
            }
        }
        self.counter(
            "mdm_requests_total",
            "Requests for rows that were answered, with a result or with an error.",
            all,
        );
        self.counter(
            "mdm_rows_total",
            "Rows of requests that ended with a result.",
            rows,
        );
        self.counter(
            "mdm_failed_rows_total",
            "Of these rows those that failed: their requests have their bad rows reported.",
            failed_rows,
        );
        self.counter(
            "mdm_request_errors_total",
            "Requests for rows that ended with an error, by its code.",
            errors,
        );
        let times: [(_, _, HistogramOf); 3] = [
            (
                "mdm_request_duration_seconds",
                "From the arrival of a request until its result left.",
                |model| &model.answered.total,
            ),
            (
                "mdm_request_queue_seconds",
                "From the arrival of a request that ended with a result until a worker was given its first chunk.",
                |model| &model.answered.queue,
            ),
            (
                "mdm_request_compute_seconds",
                "Inside the model for a request that ended with a result, summed over its chunks; a run that several \
                 requests share counts for each.",
                |model| &model.answered.compute,
            ),
        ];
        for (name, help, of) in times {
            self.histogram(name, help, snapshot, |model| {
                buckets(of(model), &DURATIONS_US, MICROS)
            });
        }
        self.counter(
            "mdm_coalesced_requests_total",
            "Small requests that shared a chunk with others.",
            [sample(&[], snapshot.coalesced as f64)],
        );
    }

    /// What workers ran, by model.
    fn runs(&mut self, snapshot: &Snapshot) {
        let of = |count: fn(&ModelStats) -> f64| {
            let models = snapshot.models.iter();
            models.map(move |model| sample(&[("model", &model.name)], count(model)))
        };
        self.counter(
            "mdm_chunks_total",
            "Chunks that ended, those that failed or were cancelled too.",
            of(|model| model.ran.chunks as f64),
        );
        self.histogram(
            "mdm_run_rows",
            "Rows of a run; the runs of one chunk count with their mean.",
            snapshot,
            |model| buckets(&model.ran.runs, &ROWS, 1.0),
        );
        self.counter(
            "mdm_compute_seconds_total",
            "Time that workers spent inside the model.",
            of(|model| model.ran.compute_us as f64 / MICROS),
        );
    }

    fn queue(&mut self, snapshot: &Snapshot) {
        for (name, help, value) in [
            (
                "mdm_queue_requests",
                "Requests that were accepted and are not finished.",
                snapshot.queue_requests,
            ),
            (
                "mdm_queue_rows",
                "Rows of accepted requests that no worker has yet.",
                snapshot.queue_rows,
            ),
            (
                "mdm_queue_bytes",
                "Bytes held for accepted requests.",
                snapshot.queue_bytes,
            ),
        ] {
            self.gauge(name, help, [sample(&[], value as f64)]);
        }
    }

    fn workers(&mut self, snapshot: &Snapshot) {
        let sample_of = |worker: &WorkerStats, value| {
            let id = worker.id.to_string();
            sample(&[("worker", &id), ("device", &worker.device)], value)
        };
        let of = |value: fn(&WorkerStats) -> f64| {
            let workers = snapshot.workers.iter();
            workers.map(move |worker| sample_of(worker, value(worker)))
        };
        // Apart, since an average that has the express workers in it would never say that all others are busy.
        let busy = |is_express: bool| {
            let workers = snapshot.workers.iter();
            let workers = workers.filter(move |worker| worker.is_express == is_express);
            workers.map(move |worker| sample_of(worker, worker.busy_us as f64 / MICROS))
        };
        self.gauge(
            "mdm_worker_up",
            "1 if the worker takes work, 0 while it starts or is lost.",
            of(|worker| flag(worker.is_up)),
        );
        self.counter(
            "mdm_worker_busy_seconds_total",
            "Time that the worker spent inside models; its rate is the share of the time that it is busy.",
            busy(false),
        );
        self.counter(
            "mdm_express_worker_busy_seconds_total",
            "The same of workers that run small requests beside bulk only.",
            busy(true),
        );
        self.counter(
            "mdm_worker_chunks_total",
            "Chunks that ended on the worker.",
            of(|worker| worker.chunks as f64),
        );
        self.counter(
            "mdm_worker_rows_total",
            "Rows that ran on the worker.",
            of(|worker| worker.rows as f64),
        );
        self.counter(
            "mdm_worker_runs_total",
            "Runs of models on the worker; its rows by its runs are the rows of each.",
            of(|worker| worker.runs as f64),
        );
    }

    fn doors(&mut self, snapshot: &Snapshot, outside: &Outside) {
        let mut sessions = Vec::new();
        let mut refused = Vec::new();
        for (kind, door) in snapshot.doors.each() {
            if door.open == 0 && door.refused.all() == 0 {
                continue;
            }
            let own = ("door", kind.as_str());
            sessions.push(sample(&[own], door.sessions as f64));
            refused.extend(
                door.refused
                    .by_code()
                    .map(|(code, count)| sample(&[own, ("code", code.as_str())], count as f64)),
            );
        }
        let zmq = snapshot.doors.of(Protocol::Zmq);
        let own = (zmq.open > 0).then_some((Protocol::Zmq, zmq.connections));
        let connections = own.iter().chain(&outside.connections);
        let connections = connections
            .map(|(kind, count)| sample(&[("door", kind.as_str())], *count as f64))
            .collect::<Vec<_>>();
        self.gauge(
            "mdm_sessions",
            "Sessions that are connected; of doors other than ZeroMQ's, callers that have requests open.",
            sessions,
        );
        self.gauge("mdm_connections", "Connections that are open.", connections);
        let responses = outside.responses.iter();
        let responses = responses
            .map(|(kind, status, count)| {
                let labels = [("door", kind.as_str()), ("status", status)];
                sample(&labels, *count as f64)
            })
            .collect::<Vec<_>>();
        self.counter(
            "mdm_responses_total",
            "Answers of the doors for HTTP and gRPC, to whatever was asked, by their status.",
            responses,
        );
        self.counter(
            "mdm_refused_messages_total",
            "Questions, orders and requests without a usable number that were answered with an error, by its code.",
            refused,
        );
        self.counter(
            "mdm_dropped_messages_total",
            "Messages that could not be answered, and answers that nobody was there to read.",
            [sample(&[], snapshot.dropped as f64)],
        );
    }

    /// By the names that Prometheus' own libraries give.
    fn process(&mut self, process: &Process) {
        let count = |count: Option<u64>| count.map(|count| count as f64);
        if let Some(seconds) = process.cpu_seconds {
            self.counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                [sample(&[], seconds)],
            );
        }
        for (name, help, value) in [
            (
                "process_open_fds",
                "Number of open file descriptors.",
                count(process.open_fds),
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                count(process.max_fds),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                count(process.virtual_bytes),
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                count(process.resident_bytes),
            ),
            (
                "process_threads",
                "Number of OS threads in the process.",
                count(process.threads),
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                process.start_seconds,
            ),
        ] {
            self.gauge(name, help, value.map(|value| sample(&[], value)));
        }
    }

    // ---- families ------------------------------------------------------------------------------------------------

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<LabelPair>, f64)>,
    ) {
        let metric = |(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(labels);
            metric.set_counter(counter);
            metric
        };
        let metrics = samples.into_iter().map(metric).collect();
        self.family(MetricType::COUNTER, name, help, metrics);
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<LabelPair>, f64)>,
    ) {
        let metric = |(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(labels);
            metric.set_gauge(gauge);
            metric
        };
        let metrics = samples.into_iter().map(metric).collect();
        self.family(MetricType::GAUGE, name, help, metrics);
    }

    /// One for each model.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        snapshot: &Snapshot,
        of: impl Fn(&ModelStats) -> Buckets,
    ) {
        let metric = |model: &ModelStats| {
            let mut metric = Metric::from_label(pairs(&[("model", &model.name)]));
            metric.set_histogram(of(model));
            metric
        };
        let metrics = snapshot.models.iter().map(metric).collect();
        self.family(MetricType::HISTOGRAM, name, help, metrics);
    }

    fn family(&mut self, kind: MetricType, name: &str, help: &str, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return; // the encoder refuses a family without samples
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

fn errors_of<'a>(
    labels: &'a [Label<'a>; 2],
    requests: &'a Requests,
) -> impl Iterator<Item = (Vec<LabelPair>, f64)> + 'a {
    let [model, door] = *labels;
    let errors = requests.errors.by_code();
    errors.map(move |(code, count)| sample(&[model, door, ("code", code.as_str())], count as f64))
}

fn sample(labels: &[Label<'_>], value: f64) -> (Vec<LabelPair>, f64) {
    (pairs(labels), value)
}

fn pairs(labels: &[Label<'_>]) -> Vec<LabelPair> {
    let pair = |(name, value): &Label<'_>| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

/// A histogram in Prometheus' units, each of which is so many of ours.
fn buckets(histogram: &Histogram, bounds: &Bounds, unit: f64) -> Buckets {
    let bucket = |(bound, count): (&u64, u64)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / unit);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut buckets = Buckets::default();
    buckets.set_bucket(
        std::iter::zip(bounds, histogram.cumulative())
            .map(bucket)
            .collect(),
    );
    buckets.set_sample_count(histogram.count());
    buckets.set_sample_sum(histogram.sum() as f64 / unit);
    buckets
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
