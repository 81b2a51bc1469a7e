//! What is written of a snapshot, judged by Prometheus' rules.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Sample, check};
use super::*;
use crate::error::ErrorCode;
use crate::metrics::{Health, UNKNOWN};

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        version: "1.2.3".to_owned(),
        up_us: 5_000_000,
        health: Health {
            is_started: true,
            is_draining: false,
            workers_up: 1,
            workers: 2,
        },
        models_loaded: 1,
        workers: [(true, false), (false, false), (true, true)]
            .into_iter()
            .enumerate()
            .map(|(id, (is_up, is_express))| WorkerStats {
                is_express,
                id: id as u32,
                device: "cpu".to_owned(),
                is_up,
                busy_us: 1_500_000,
                chunks: 3,
                rows: 4,
                runs: 2,
            })
            .collect(),
        queue_requests: 5,
        queue_rows: 6,
        queue_bytes: 7,
        coalesced: 8,
        dropped: 9,
        ..Snapshot::default()
    };
    snapshot.doors.of_mut(Protocol::Zmq).open = 1;
    snapshot.doors.of_mut(Protocol::Zmq).sessions = 2;
    snapshot.doors.of_mut(Protocol::Zmq).connections = 4;
    let refused = &mut snapshot.doors.of_mut(Protocol::Http).refused;
    refused.add(ErrorCode::NotFound);
    let mut model = ModelStats {
        // Whatever a file system takes for a name.
        name: "a\"b\\c\nd{}=,é".to_owned(),
        is_served: true,
        ..ModelStats::default()
    };
    let requests = model.answered.requests.of_mut(Protocol::Zmq);
    (requests.results, requests.rows, requests.failed_rows) = (3, 30, 4);
    requests.errors.add(ErrorCode::Internal);
    for (us, histogram) in [(40, 0), (1_000_000, 1), (u64::from(u32::MAX), 2)] {
        let of = &mut model.answered;
        let all = [&mut of.queue, &mut of.compute, &mut of.total];
        for one in all.into_iter().skip(histogram) {
            one.record(&DURATIONS_US, us, 1);
        }
    }
    model.ran.chunks = 3;
    model.ran.compute_us = 2_500_000;
    model.ran.runs.record(&ROWS, 10, 3);
    let unknown = ModelStats {
        name: UNKNOWN.to_owned(),
        ..ModelStats::default()
    };
    snapshot.models = vec![unknown, model];
    snapshot
}

fn outside() -> Outside {
    Outside {
        connections: vec![(Protocol::Http, 11)],
        responses: vec![(Protocol::Http, "413".to_owned(), 5)],
        process: Process::now(),
    }
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        sample.name == name
            && labels
                .iter()
                .all(|(label, value)| sample.labels.get(*label).is_some_and(|has| has == value))
    };
    let found: Vec<&Sample> = samples.iter().filter(has).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].value
}

#[test]
fn every_line_keeps_prometheus_rules() {
    for snapshot in [snapshot(), Snapshot::default()] {
        for outside in [outside(), Outside::default()] {
            let text = text(&snapshot, &outside).unwrap();
            let (samples, wrong) = check(&text);
            assert_eq!(wrong, [""; 0], "{text}");
            assert!(samples.len() >= 9, "{text}");
        }
    }
}

#[test]
fn what_was_counted_is_what_is_written() {
    let snapshot = snapshot();
    let (samples, _) = check(&text(&snapshot, &outside()).unwrap());
    let name = &*snapshot.models[1].name;
    let of = |what: &str, labels: &[(&str, &str)]| value(&samples, what, labels);
    let (model, zmq) = (("model", name), ("door", "zmq"));
    assert_eq!(of("mdm_requests_total", &[model, zmq]), 4.0);
    assert_eq!(of("mdm_rows_total", &[model, zmq]), 30.0);
    assert_eq!(of("mdm_failed_rows_total", &[model, zmq]), 4.0);
    let too_large = [("door", "http"), ("status", "413")];
    assert_eq!(of("mdm_responses_total", &too_large), 5.0);
    let errors = |code| of("mdm_request_errors_total", &[model, zmq, ("code", code)]);
    assert_eq!((errors("INTERNAL"), errors("CANCELLED")), (1.0, 0.0));
    assert_eq!(of("mdm_requests_total", &[("model", UNKNOWN), zmq]), 0.0);
    let bucket = |le| of("mdm_request_duration_seconds_bucket", &[model, ("le", le)]);
    assert_eq!(
        ["0.00005", "0.5", "1", "300", "+Inf"].map(bucket),
        [1.0, 1.0, 2.0, 2.0, 3.0]
    );
    assert_eq!(of("mdm_request_queue_seconds_count", &[model]), 1.0);
    assert_eq!(of("mdm_request_compute_seconds_sum", &[model]), 1.00004);
    assert_eq!(of("mdm_run_rows_count", &[model]), 3.0);
    assert_eq!(of("mdm_run_rows_sum", &[model]), 30.0);
    assert_eq!(of("mdm_run_rows_bucket", &[model, ("le", "8")]), 0.0);
    assert_eq!(of("mdm_run_rows_bucket", &[model, ("le", "16")]), 3.0);
    assert_eq!(of("mdm_compute_seconds_total", &[model]), 2.5);
    let worker = |id| of("mdm_worker_up", &[("worker", id), ("device", "cpu")]);
    assert_eq!((worker("0"), worker("1")), (1.0, 0.0));
    assert_eq!(of("mdm_worker_busy_seconds_total", &[("worker", "1")]), 1.5);
    assert_eq!(worker("2"), 1.0);
    let express = [("worker", "2"), ("device", "cpu")];
    assert_eq!(of("mdm_express_worker_busy_seconds_total", &express), 1.5);
    let is_busy = |sample: &&Sample| sample.name.ends_with("worker_busy_seconds_total");
    assert_eq!(
        samples.iter().filter(is_busy).count(),
        3,
        "each of them once"
    );
    assert_eq!(of("mdm_queue_bytes", &[]), 7.0);
    assert_eq!(of("mdm_sessions", &[zmq]), 2.0);
    assert_eq!(of("mdm_connections", &[("door", "http")]), 11.0);
    assert_eq!(of("mdm_connections", &[zmq]), 4.0);
    let worker = [("worker", "0"), ("device", "cpu")];
    assert_eq!(of("mdm_worker_runs_total", &worker), 2.0);
    let refused = [("door", "http"), ("code", "NOT_FOUND")];
    assert_eq!(of("mdm_refused_messages_total", &refused), 1.0);
    assert_eq!(of("mdm_ready", &[]), 1.0);
    assert_eq!(of("mdm_build_info", &[("version", "1.2.3")]), 1.0);
    assert!(of("process_resident_memory_bytes", &[]) > 1e5);
    // Doors that are not there have no series.
    let doors = samples
        .iter()
        .filter_map(|sample| sample.labels.get("door"));
    assert!(!doors.into_iter().any(|door| door == "grpc"));
}

#[test]
fn the_guide_has_every_name_and_no_other_with_its_kind_and_labels() {
    let text = text(&snapshot(), &outside()).unwrap();
    let mut written = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|of| of.split_once(' '))
        {
            written.insert(name, (kind, BTreeSet::new()));
        }
    }
    for sample in check(&text).0 {
        let of = |suffix: &&str| written.contains_key(sample.name.trim_end_matches(*suffix));
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find(of);
        let name = sample.name.trim_end_matches(suffix.unwrap_or_default());
        let labels = &mut written.get_mut(name).expect("a family").1;
        labels.extend(sample.labels.into_keys().filter(|label| label != "le"));
    }
    let guide = include_str!("../../guide/metrics.md");
    let mut told = BTreeMap::new();
    for row in guide.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        told.insert(cells[0].trim_end_matches('`'), (cells[1], labels));
    }
    assert_eq!(told, written);
}

/// The judge itself can say no.
#[test]
fn what_promtool_refuses_is_refused() {
    for (text, why) in [
        ("a_total 1\n", "is not below its type"),
        ("# TYPE a_total counter\na_total 1\n", "no help before it"),
        ("# HELP a A.\n# TYPE a counter\na 1\n", "ends in _total"),
        (
            "# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n",
            "only a counter",
        ),
        ("# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1\n", "base units"),
        (
            "# HELP a_seconds_b A.\n# TYPE a_seconds_b gauge\na_seconds_b 1\n",
            "unit comes last",
        ),
        (
            "# HELP a A.\n# TYPE a gauge\na{b=\"1\"} 1\na{b=\"1\"} 2\n",
            "twice",
        ),
        (
            "# HELP a A.\n# TYPE a gauge\na{b=\"1} 1\n",
            "cannot be read",
        ),
        ("# HELP a A.\n# TYPE a gauge\na 1", "does not end"),
        (
            "# HELP a A.\n# TYPE a gauge\na 1\n# HELP a A.\n# TYPE a gauge\na 2\n",
            "comes twice",
        ),
        (
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 3\na_bucket{le=\"+Inf\"} 2\na_sum 1\na_count 2\n",
            "buckets rise",
        ),
        (
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_bucket{le=\"+Inf\"} 2\na_sum 1\na_count 3\n",
            "is the count",
        ),
        (
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
            "+Inf",
        ),
    ] {
        let (_, wrong) = check(text);
        assert!(
            wrong.iter().any(|said| said.contains(why)),
            "{text}: {wrong:?}"
        );
    }
}
