//! What is counted of requests and runs, as it is told at a door.

use std::collections::{BTreeMap, HashMap};

use mdm::message::Protocol;
use mdm::metrics::{Health, MAX_NAMES, Requests, Snapshot, UNKNOWN};
use mdm::server::Door;
use mdm::wire::client::StopMode;
use mdm::wire::server::ServerMessage;
use mdm::{DataType, ErrorCode, Params};

use crate::LIMIT;
use crate::common::{eventually, onnx, within};
use crate::door::{Inside, code, floats, keep_busy, next, slow, status, with_inside};
use crate::raw::{echo, receive, send};

fn metrics(door: &mut Door) -> Snapshot {
    let id = door.metrics(9).expect("a question");
    let answer = next(door);
    assert_eq!((answer.caller, answer.id), (9, id));
    assert!(answer.is_final());
    match answer.message {
        ServerMessage::MetricsOk(snapshot) => *snapshot,
        other => panic!("expected the counters, got {other:?}"),
    }
}

fn health(door: &mut Door) -> Health {
    door.health(9).expect("a question");
    match next(door).message {
        ServerMessage::HealthOk(health) => health,
        other => panic!("expected the health, got {other:?}"),
    }
}

fn requests(snapshot: &Snapshot, model: &str, door: Protocol) -> Requests {
    let model = snapshot.model(model);
    model.map_or_else(Requests::default, |model| *model.answered.requests.of(door))
}

/// Results, rows, and the errors that there were.
fn counted(snapshot: &Snapshot, model: &str, door: Protocol) -> (u64, u64, Vec<(ErrorCode, u64)>) {
    let of = requests(snapshot, model, door);
    let errors = of.errors.by_code().filter(|(_, count)| *count > 0);
    (of.results, of.rows, errors.collect())
}

#[test]
fn every_answer_is_counted_once_under_its_model_and_door() {
    within(LIMIT, || {
        let preload = ["echo", "busy", "slow"].map(|name| ["--preload", name]);
        let inside = Inside::start(preload.as_flattened());
        let mut http = inside.server.door_for(Protocol::Http).expect("a door");
        let mut own = inside.door();
        let (mut good, mut bad) = (0, 0);
        let mut take = |door: &mut Door, count: usize| {
            for _ in 0..count {
                match code(&next(door).message) {
                    None => good += 1,
                    Some(_) => bad += 1,
                }
            }
        };
        for round in 0..10 {
            let rows = floats("echo", &[3, 4], round as f32);
            http.submit(round, rows).expect("there is room");
        }
        for _ in 0..2 {
            let misfit = floats("echo", &[1, 5], 0.0);
            http.submit(1, misfit).expect("there is room");
        }
        take(&mut http, 12);
        let described = http.describe(1, Some("none".to_owned()), &Params::new());
        described.expect("a question");
        assert_eq!(code(&next(&mut http).message), Some(ErrorCode::NotFound));
        for round in 0..4 {
            own.submit(round, floats("echo", &[1, 4], 0.0))
                .expect("there is room");
        }
        take(&mut own, 4);
        // Two of three are taken back while the only worker runs something else.
        http.submit(1, keep_busy(300_000)).expect("there is room");
        let waiting = [0, 1, 2].map(|_| http.submit(2, slow(8)).expect("there is room"));
        http.cancel(waiting[0]);
        http.cancel(waiting[2]);
        take(&mut http, 4);
        assert_eq!((good, bad), (16, 4));
        // And a session on the ports.
        let mut raw = inside.session();
        for _ in 0..5 {
            let asked = raw.id();
            send(&raw.port, &echo(asked, &[[1.0; 4]; 2]));
            receive(&raw.out);
        }

        let snapshot = metrics(&mut own);
        let none = Vec::new();
        let misfits = vec![(ErrorCode::InvalidArgument, 2)];
        let of = |model, door| counted(&snapshot, model, door);
        assert_eq!(of("echo", Protocol::Http), (10, 30, misfits));
        assert_eq!(of("echo", Protocol::Inside), (4, 4, none.clone()));
        assert_eq!(of("echo", Protocol::Zmq), (5, 10, none.clone()));
        let cancelled = vec![(ErrorCode::Cancelled, 2)];
        assert_eq!(of("slow", Protocol::Http), (1, 8, cancelled));
        assert_eq!(of("busy", Protocol::Http).0, 1);
        assert_eq!(of(UNKNOWN, Protocol::Http), (0, 0, none));
        let refused = &snapshot.doors.of(Protocol::Http).refused;
        let asked = (ErrorCode::NotFound, 1);
        assert!(refused.by_code().any(|count| count == asked));
        assert_eq!(refused.all(), 1);
        let open = |kind| snapshot.doors.of(kind).open;
        assert_eq!(Protocol::ALL.map(open), [1, 1, 0, 1]);
        assert_eq!(snapshot.doors.of(Protocol::Zmq).sessions, 1);

        // Each result has its times, and the parts are no longer than the whole.
        let model = snapshot.model("echo").expect("it is served");
        assert!(model.is_served && model.last_result_us_ago.is_some());
        let answered = &model.answered;
        for times in [&answered.queue, &answered.compute, &answered.total] {
            assert_eq!(times.count(), 19);
        }
        assert!(answered.queue.sum() + answered.compute.sum() <= answered.total.sum());
        let busy = snapshot.model("busy").expect("it is served");
        assert!(busy.answered.compute.sum() > 10_000, "{busy:?}");
        assert_eq!(snapshot.models_loaded, 3);

        // What workers have said of their chunks is there soon: the answers were faster.
        let mut ran = || {
            let snapshot = metrics(&mut own);
            let echo = snapshot.model("echo").expect("it is served").ran.clone();
            let of_workers: u64 = snapshot.workers.iter().map(|worker| worker.rows).sum();
            (echo.chunks, echo.runs.count(), echo.runs.sum(), of_workers)
        };
        eventually("all runs are counted", || ran().2 == 44);
        let (chunks, runs, _, of_workers) = ran();
        // Some may have shared one.
        assert!((3..=19).contains(&chunks) && (3..=19).contains(&runs));
        assert!(of_workers >= 44 + 8, "{of_workers}");

        // Status counts the same.
        let snapshot = metrics(&mut own);
        let status = status(&mut own, 1);
        let all = |of: fn(&mdm::metrics::ModelStats) -> u64| -> u64 {
            snapshot.models.iter().map(of).sum()
        };
        let requests = all(|model| model.answered.results() + model.answered.errors());
        assert_eq!((status.totals.requests, requests), (25, 25));
        assert_eq!(status.totals.rows, all(|model| model.answered.rows()));
        let mut errors: BTreeMap<String, u64> = BTreeMap::new();
        for code in ErrorCode::ALL {
            errors.insert(code.as_str().to_owned(), 0);
        }
        errors.insert("INVALID_ARGUMENT".to_owned(), 2);
        errors.insert("CANCELLED".to_owned(), 2);
        errors.insert("NOT_FOUND".to_owned(), 1);
        assert_eq!(status.totals.errors, errors);
        inside.stop(StopMode::Drain);
    });
}

#[test]
fn names_that_clients_make_up_are_no_labels() {
    with_inside(&["--preload", "echo"], |inside| {
        let mut door = inside.server.door_for(Protocol::Grpc).expect("a door");
        for round in 0..2_000 {
            let asked = floats(&format!("made-up-{round}"), &[1, 4], 0.0);
            door.submit(round, asked).expect("there is room");
            assert_eq!(code(&next(&mut door).message), Some(ErrorCode::NotFound));
        }
        let snapshot = metrics(&mut door);
        let names: Vec<&str> = snapshot.models.iter().map(|of| &*of.name).collect();
        assert_eq!(names, [UNKNOWN, "echo"]);
        assert_eq!(
            counted(&snapshot, UNKNOWN, Protocol::Grpc),
            (0, 0, vec![(ErrorCode::NotFound, 2_000)])
        );
        #[cfg(feature = "gateway")]
        {
            let text = mdm::metrics::text(&snapshot, &mdm::metrics::Outside::default());
            let text = text.expect("a text");
            assert!(!text.contains("made-up"), "{text}");
            let line = "mdm_request_errors_total{model=\"unknown\",door=\"grpc\",code=\"NOT_FOUND\"} 2000\n";
            assert!(text.contains(line), "{text}");
        }
    });
}

/// However many models come and go, what is kept of them is bounded.
#[test]
fn models_beyond_the_bound_are_counted_together() {
    within(LIMIT, || {
        let more = 3;
        let inside = Inside::start(&["--max-models", "8"]);
        let model = onnx::echo(DataType::Fp32, &[4]);
        let mut door = inside.door();
        for number in 0..MAX_NAMES + more {
            let name = format!("m{number}");
            std::fs::write(inside.models().join(format!("{name}.onnx")), &model).expect("a file");
            let asked = floats(&name, &[1, 4], 0.0);
            door.submit(1, asked).expect("there is room");
            assert_eq!(code(&next(&mut door).message), None, "{name}");
        }
        let snapshot = metrics(&mut door);
        assert_eq!(snapshot.models.len(), MAX_NAMES + 1);
        let results = |name: &str| counted(&snapshot, name, Protocol::Inside).0;
        assert_eq!((results("m0"), results("m255")), (1, 1));
        assert_eq!((results("m256"), results("other")), (0, more as u64));
        assert!(!snapshot.model("m0").expect("it was served").is_served);
        assert!(snapshot.models_loaded <= 8);
        inside.stop(StopMode::Drain);
    });
}

#[test]
fn a_model_that_is_reloaded_or_unloaded_keeps_its_counters() {
    with_inside(&[], |inside| {
        let mut door = inside.door();
        let infer = |door: &mut Door, width: usize| {
            door.submit(1, floats("echo", &[1, width], 0.0))
                .expect("there is room");
            code(&next(door).message)
        };
        assert_eq!(infer(&mut door, 4), None);
        let other = onnx::echo(DataType::Fp32, &[5]);
        std::fs::write(inside.models().join("echo.onnx"), other).expect("a file");
        door.load(1, "echo").expect("a question");
        assert_eq!(code(&next(&mut door).message), None);
        assert_eq!(infer(&mut door, 5), None, "it is the new one");
        assert_eq!(infer(&mut door, 4), Some(ErrorCode::InvalidArgument));
        let misfit = vec![(ErrorCode::InvalidArgument, 1)];
        let expected = (2, 2, misfit);
        let snapshot = metrics(&mut door);
        assert_eq!(counted(&snapshot, "echo", Protocol::Inside), expected);
        assert_eq!(snapshot.models_loaded, 1);
        door.unload(1, "echo").expect("a question");
        assert_eq!(code(&next(&mut door).message), None);
        let snapshot = metrics(&mut door);
        assert_eq!(counted(&snapshot, "echo", Protocol::Inside), expected);
        assert!(!snapshot.model("echo").expect("it was served").is_served);
        assert_eq!(snapshot.models_loaded, 0);
    });
}

#[test]
fn small_requests_that_share_a_chunk_are_counted_as_such() {
    with_inside(&["--preload", "echo", "--preload", "busy"], |inside| {
        let mut door = inside.door();
        door.submit(1, keep_busy(300_000)).expect("there is room");
        for caller in 0..40 {
            door.submit(caller, floats("echo", &[1, 4], 0.0))
                .expect("there is room");
        }
        for _ in 0..41 {
            assert_eq!(code(&next(&mut door).message), None);
        }
        let mut ran = || {
            let snapshot = metrics(&mut door);
            let echo = snapshot.model("echo").expect("it is served").ran.clone();
            (echo, snapshot.coalesced)
        };
        eventually("all runs are counted", || ran().0.runs.sum() == 40);
        let (echo, coalesced) = ran();
        assert!(coalesced >= 30, "{coalesced} of 40");
        assert!(echo.chunks <= 11, "{echo:?}");
        assert!((echo.chunks..=40).contains(&echo.runs.count()), "{echo:?}");
        assert_eq!(status(&mut door, 1).totals.coalesced, coalesced);
    });
}

#[test]
fn a_server_that_drains_is_alive_and_not_ready() {
    with_inside(&["--preload", "busy", "--num-worker", "2"], |inside| {
        let mut door = inside.door();
        let serving = health(&mut door);
        assert!(serving.is_ready(), "{serving:?}");
        assert_eq!((serving.workers_up, serving.workers), (2, 2));
        // An express worker is counted apart.
        let workers = metrics(&mut door).workers;
        let kinds: Vec<bool> = workers.iter().map(|worker| worker.is_express).collect();
        assert_eq!(kinds, [false, false, true]);
        let running = door.submit(1, keep_busy(1_000_000)).expect("room");
        eventually("it runs", || metrics(&mut door).queue_requests == 1);
        inside.server.stopper().stop(StopMode::Drain);
        let mut answers = HashMap::new();
        let draining = loop {
            // The order may be read later than the question.
            let asked = door.health(9).expect("a question");
            let answer = loop {
                let answer = next(&mut door);
                if answer.id == asked {
                    break answer.message;
                }
                answers.insert(answer.id, answer.message);
            };
            match answer {
                ServerMessage::HealthOk(health) if health.is_draining => break health,
                ServerMessage::HealthOk(_) => {}
                other => panic!("expected the health, got {other:?}"),
            }
        };
        assert!(draining.is_started && !draining.is_ready(), "{draining:?}");
        while !answers.contains_key(&running) {
            let answer = next(&mut door);
            answers.insert(answer.id, answer.message);
        }
        assert_eq!(code(&answers[&running]), None);
    });
}
