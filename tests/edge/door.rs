//! Doors: clients of the pipeline in the server's own process.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mdm::config::Config;
use mdm::message::RequestId;
use mdm::server::{Door, DoorAnswer, Server};
use mdm::wire::client::StopMode;
use mdm::wire::server::{ServerMessage, Status};
use mdm::{Batch, DataType, ErrorCode, Params, Request, Tensor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::built;
use crate::common::{PATIENCE, eventually, models, onnx, within};
use crate::models::{BUSY_ROWS, busy, busy_rows};
use crate::raw::{Raw, dealer, echo, receive, routing_id, send};
use crate::{LIMIT, WIDTH};

/// A server in this process, and the folder that it serves.
pub struct Inside {
    pub server: Server,
    folder: TempDir,
}

impl Inside {
    pub fn start(flags: &[&str]) -> Inside {
        let folder = models(&[
            ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
            ("wide.onnx", onnx::echo(DataType::Fp32, &[WIDTH])),
            ("slow.onnx", onnx::bilstm()),
            ("busy.onnx", busy()),
            ("busy.proxy", busy_rows("busy")),
        ]);
        Inside::over(folder, flags, |_| {})
    }

    /// Over a folder to which something is added first.
    fn over(folder: TempDir, flags: &[&str], add: impl FnOnce(&Path)) -> Inside {
        add(folder.path());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut all = vec!["--port".to_owned(), "0".to_owned()];
        all.extend(["--port-out", "0"].map(str::to_owned));
        all.extend(["--run-script-dir".to_owned(), at("models")]);
        all.extend(["--zeromq-sock-tmp-dir".to_owned(), at("s")]);
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let config = Config::parse_from(all).expect("good flags");
        Inside {
            server: Server::start(config).expect("a server"),
            folder,
        }
    }

    pub fn door(&self) -> Door {
        self.server.door().expect("a door")
    }

    /// A session at its ports, which has said hello.
    pub fn session(&self) -> Raw {
        let (context, id) = (zmq::Context::new(), routing_id());
        let connect = |port| dealer(&context, &format!("tcp://127.0.0.1:{port}"), Some(&id));
        let ports = (connect(self.server.port()), connect(self.server.port_out()));
        let mut raw = Raw::of(context, ports.0, ports.1);
        raw.greet();
        raw
    }

    /// The folder that is served.
    pub fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    pub fn stop(self, mode: StopMode) {
        self.server.stopper().stop(mode);
        self.server.wait().expect("an end in order");
    }
}

/// Runs a test of a server in this process with these flags, and drains it in the end.
pub fn with_inside(flags: &'static [&'static str], test: impl FnOnce(&Inside) + Send + 'static) {
    within(LIMIT, move || {
        let inside = Inside::start(flags);
        test(&inside);
        inside.stop(StopMode::Drain);
    });
}

/// Whether the door's descriptor can be read within that time.
fn is_readable(door: &Door, within: Duration) -> bool {
    let mut fds = [PollFd::new(door, PollFlags::IN)];
    let timeout = Timespec::try_from(within).expect("a time");
    poll(&mut fds, Some(&timeout)).expect("a poll") == 1
}

/// The next answer, once the descriptor says that there is one.
pub fn next(door: &mut Door) -> DoorAnswer {
    assert!(is_readable(door, PATIENCE), "no answer in time");
    let answer = door.try_next().expect("the server runs");
    answer.expect("an answer, since the descriptor can be read")
}

/// A request for rows.
fn request(model: &str, rows: Tensor) -> Request {
    Request {
        model: Some(model.to_owned()),
        inputs: Batch {
            tensors: vec![rows],
        },
        ..Request::default()
    }
}

pub fn floats(model: &str, shape: &[usize], from: f32) -> Request {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|number| from + number as f32).collect();
    request(
        model,
        Tensor::from_vec::<f32>("x", shape.to_vec(), values).expect("a tensor"),
    )
}

pub fn slow(rows: usize) -> Request {
    let ids = Tensor::from_vec("ids", vec![rows, 64], vec![1i64; rows * 64]);
    request("slow", ids.expect("a tensor"))
}

/// Keeps a worker busy: a million in about a second.
pub fn keep_busy(count: i64) -> Request {
    let counts = Tensor::from_vec("x", vec![BUSY_ROWS], vec![count; BUSY_ROWS]);
    request("busy", counts.expect("a tensor"))
}

/// The rows of a result.
fn output(message: &ServerMessage) -> Tensor {
    let ServerMessage::Result(outputs, _) = message else {
        panic!("expected a result, got {message:?}");
    };
    let parts: Vec<Tensor> = outputs.parts.iter().map(|p| p.tensors[0].clone()).collect();
    Tensor::concat(&parts).expect("one tensor")
}

pub fn code(message: &ServerMessage) -> Option<ErrorCode> {
    match message {
        ServerMessage::Error(error) => Some(error.code()),
        _ => None,
    }
}

pub fn status(door: &mut Door, caller: u64) -> Status {
    let id = door.status(caller).expect("a question");
    match next(door) {
        answer if answer.id != id => panic!("an answer to something else: {answer:?}"),
        answer => match answer.message {
            ServerMessage::StatusOk(status) => *status,
            other => panic!("expected a status, got {other:?}"),
        },
    }
}

#[test]
fn many_callers_each_get_their_own_results_in_row_order() {
    with_inside(&["--num-worker", "2", "--max-batch-size", "64"], |inside| {
        // A door can be used from another thread than the one that made it.
        let mut doors = [inside.door(), inside.door()];
        std::thread::scope(|scope| {
            for door in &mut doors {
                scope.spawn(move || {
                    let mut open = HashMap::new();
                    for round in 0..4 {
                        for caller in 0..200u64 {
                            let rows = if caller % 50 == 0 { 1_000 } else { 3 };
                            let from = (caller * 10 + round) as f32;
                            let id = door.submit(caller, floats("echo", &[rows, 4], from));
                            let id = id.expect("there is room");
                            open.insert(id, (caller, rows, from));
                        }
                    }
                    while !open.is_empty() {
                        let answer = next(door);
                        let (caller, rows, from) =
                            open.remove(&answer.id).expect("one that is open");
                        assert_eq!(answer.caller, caller);
                        assert!(answer.is_final());
                        let values = output(&answer.message).to_vec::<f32>().expect("floats");
                        let expected = (0..rows * 4).map(|number| from + number as f32);
                        assert!(values.into_iter().eq(expected));
                    }
                    assert!(!is_readable(door, Duration::ZERO));
                    assert!(door.try_next().expect("it runs").is_none());
                });
            }
        });
    });
}

/// What is handed in is what the model sees, and what it gives is what comes out.
#[test]
fn tensors_cross_a_door_whole() {
    with_inside(&[], |inside| {
        let mut door = inside.door();
        let rows = 1024;
        let sent = floats("wide", &[rows, WIDTH], 0.5);
        door.submit(1, sent.clone()).expect("there is room");
        let answer = next(&mut door);
        let got = output(&answer.message);
        assert_eq!(got.shape(), [rows, WIDTH]);
        assert_eq!(
            got.as_slice::<f32>(),
            sent.inputs.tensors[0].as_slice::<f32>()
        );
    });
}

/// The rows that a model sees lie where its caller has them, and so do those that come back.
#[test]
fn tensors_cross_a_door_uncopied() {
    let plugin = built::profile().join("examples/libecho_plugin.so");
    if !plugin.is_file() {
        println!("skipped: `cargo build --example echo_plugin` builds what it needs");
        return;
    }
    within(LIMIT, move || {
        let proxy = br#"{"mdm":1,"plugin":"libecho.so","entry":"echo"}"#;
        let files = [("same.proxy", proxy.to_vec())];
        let inside = Inside::over(models(&files), &["--num-worker", "2"], |folder| {
            std::fs::copy(&plugin, folder.join("models/libecho.so")).expect("a copy");
        });
        let mut door = inside.door();
        // One chunk, and many.
        for rows in [16, 40_000] {
            let sent = floats("same", &[rows, 64], 0.0);
            let lies = sent.inputs.tensors[0].as_slice::<f32>().expect("floats");
            let lies = lies.as_ptr_range();
            door.submit(1, sent.clone()).expect("there is room");
            let answer = next(&mut door);
            let ServerMessage::Result(outputs, _) = &answer.message else {
                panic!("expected a result, got {answer:?}");
            };
            let mut at = lies.start;
            for part in &outputs.parts {
                let part = part.tensors[0].as_slice::<f32>().expect("floats");
                assert_eq!(part.as_ptr(), at, "a part of {rows} rows was copied");
                at = part.as_ptr_range().end;
            }
            assert_eq!(at, lies.end);
        }
        inside.stop(StopMode::Drain);
    });
}

#[test]
fn a_request_that_is_cancelled_ends_and_others_go_on() {
    with_inside(&["--preload", "busy"], |inside| {
        let mut door = inside.door();
        let first = door.submit(1, keep_busy(500_000)).expect("there is room");
        let taken_back = door.submit(1, slow(4_000)).expect("there is room");
        let kept = door
            .submit(2, floats("echo", &[1, 4], 1.0))
            .expect("there is room");
        door.cancel(taken_back);
        door.cancel(RequestId(77)); // there is none
        let mut seen = HashMap::new();
        for _ in 0..3 {
            let answer = next(&mut door);
            seen.insert(answer.id, answer.message);
        }
        assert_eq!(code(&seen[&taken_back]), Some(ErrorCode::Cancelled));
        assert_eq!(output(&seen[&first]).shape(), [BUSY_ROWS]);
        assert_eq!(output(&seen[&kept]).shape(), [1, 4]);
        // It has ended: there is nothing to take back.
        door.cancel(kept);
        assert!(!is_readable(&door, Duration::from_millis(200)));
    });
}

#[test]
fn a_stream_comes_in_parts_and_ends() {
    with_inside(
        &["--num-worker", "2", "--max-batch-size", "100"],
        |inside| {
            let mut door = inside.door();
            let rows = 2_000;
            let mut asked = floats("echo", &[rows, 4], 0.0);
            asked.stream = true;
            let id = door.submit(5, asked).expect("there is room");
            let mut got = vec![f32::NAN; rows * 4];
            let mut parts = 0;
            loop {
                let answer = next(&mut door);
                assert_eq!((answer.caller, answer.id), (5, id));
                let is_final = answer.is_final();
                match answer.message {
                    ServerMessage::Part(offset, outputs) => {
                        assert!(!is_final);
                        let mut at = offset as usize * 4;
                        for part in outputs.parts {
                            for value in part.tensors[0].to_vec::<f32>().expect("floats") {
                                got[at] = value;
                                at += 1;
                            }
                        }
                        parts += 1;
                    }
                    ServerMessage::End(of, _) => {
                        assert!(is_final);
                        assert_eq!(of, rows as u64);
                        break;
                    }
                    other => panic!("expected a part, got {other:?}"),
                }
            }
            assert!(parts > 1);
            assert!(got.into_iter().eq((0..rows * 4).map(|n| n as f32)));
            assert!(!is_readable(&door, Duration::ZERO));
        },
    );
}

#[test]
fn questions_are_answered_at_a_door_as_on_port() {
    with_inside(&[], |inside| {
        let mut door = inside.door();
        assert_eq!(status(&mut door, 1).workers.len(), 1);

        let id = door.load(1, "wide").expect("a question");
        let answer = next(&mut door);
        assert_eq!(answer.id, id);
        assert!(
            matches!(&answer.message, ServerMessage::LoadOk(model, _) if model.name == "wide"),
            "{answer:?}"
        );
        door.models(2).expect("a question");
        let answer = next(&mut door);
        assert_eq!(answer.caller, 2);
        assert!(
            matches!(&answer.message, ServerMessage::ModelsOk(models) if models.len() == 1),
            "{answer:?}"
        );
        let described = door.describe(3, Some("echo".to_owned()), &Params::new());
        described.expect("a question");
        let answer = next(&mut door);
        assert!(
            matches!(&answer.message, ServerMessage::ModelsOk(models) if models[0].name == "echo"),
            "{answer:?}"
        );
        door.unload(1, "wide").expect("a question");
        let answer = next(&mut door);
        assert!(
            matches!(&answer.message, ServerMessage::UnloadOk(models) if models[0].name == "wide"),
            "{answer:?}"
        );
        // What is wrong with a request is its answer.
        for (asked, expected) in [
            (floats("none", &[1, 4], 0.0), ErrorCode::NotFound),
            (floats("echo", &[1, 5], 0.0), ErrorCode::InvalidArgument),
        ] {
            door.submit(4, asked).expect("there is room");
            assert_eq!(code(&next(&mut door).message), Some(expected));
        }
    });
}

#[test]
fn a_door_that_is_dropped_takes_its_work_with_it() {
    with_inside(&["--preload", "slow"], |inside| {
        let (mut dropped, mut stays) = (inside.door(), inside.door());
        for caller in 0..4 {
            dropped.submit(caller, slow(8_000)).expect("there is room");
        }
        let mut queue = || status(&mut stays, 1).queue.requests;
        eventually("it is accepted", || queue() == 4);
        drop(dropped);
        eventually("it is gone", || queue() == 0);
        let rows = |status: Status| status.workers.iter().map(|w| w.rows).sum::<u64>();
        eventually("the worker is idle", || {
            status(&mut stays, 1).workers[0].state == "idle"
        });
        let run = rows(status(&mut stays, 1));
        assert!(run < 16_000, "{run} of 32000 rows were run");
        stays
            .submit(1, floats("echo", &[2, 4], 3.0))
            .expect("there is room");
        assert_eq!(output(&next(&mut stays).message).shape(), [2, 4]);
    });
}

/// Once it said that there was something, and there was nothing, a program that polls it never slept again.
#[test]
fn a_doors_descriptor_is_readable_when_an_answer_is_there_and_not_otherwise() {
    with_inside(&["--num-worker", "2"], |inside| {
        let mut door = inside.door();
        assert!(!is_readable(&door, Duration::ZERO));
        for round in 0..3_000u64 {
            for caller in 0..1 + round % 3 {
                let asked = floats("echo", &[1, 4], round as f32);
                door.submit(caller, asked).expect("there is room");
            }
            for _ in 0..1 + round % 3 {
                next(&mut door);
            }
            assert!(!is_readable(&door, Duration::ZERO), "after round {round}");
        }
    });
}

#[test]
fn each_caller_of_a_door_has_bounds_of_its_own() {
    with_inside(&["--max-client-bytes", "1MiB"], |inside| {
        let mut door = inside.door();
        let mut of_greedy = HashSet::new();
        // Results of 256 KiB that nobody takes.
        for _ in 0..20 {
            let id = door.submit(1, floats("wide", &[16, WIDTH], 0.0));
            of_greedy.insert(id.expect("there is room"));
        }
        let mut other = inside.door();
        eventually("all are answered", || {
            status(&mut other, 9).totals.requests == 20
        });
        let of_modest = door.submit(2, floats("wide", &[16, WIDTH], 0.0));
        let of_modest = of_modest.expect("there is room");
        let (mut results, mut refused) = (0, 0);
        while !of_greedy.is_empty() {
            let answer = next(&mut door);
            if answer.id == of_modest {
                panic!("it was submitted last");
            }
            assert!(of_greedy.remove(&answer.id), "answered twice");
            match code(&answer.message) {
                None => results += 1,
                Some(code) => {
                    assert_eq!(code, ErrorCode::ResourceExhausted);
                    refused += 1;
                }
            }
        }
        assert!(0 < results && results <= 4, "{results} results");
        assert_eq!(results + refused, 20);
        let answer = next(&mut door);
        assert_eq!(answer.caller, 2);
        assert_eq!(output(&answer.message).shape(), [16, WIDTH]);
        // It took them: there is room again.
        let again = door.submit(1, floats("wide", &[16, WIDTH], 0.0));
        again.expect("there is room");
        assert_eq!(output(&next(&mut door).message).shape(), [16, WIDTH]);
    });
}

/// Each left an answer that nobody took.
#[test]
fn a_door_that_submits_and_never_takes_is_refused_in_the_end() {
    within(LIMIT, || {
        let inside = Inside::start(&[]);
        let mut door = inside.door();
        let refused = (0..2_000_000u64).find_map(|caller| {
            let asked = floats("none", &[1, 4], 0.0);
            let error = door.submit(caller % 1_000, asked).err()?;
            // The server has to read them, too.
            match error.message().contains("wait to be read") {
                true => {
                    std::thread::sleep(Duration::from_millis(1));
                    None
                }
                false => Some((caller, error)),
            }
        });
        let (count, error) = refused.expect("a bound");
        assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}");
        println!("refused at {count}: {error}");
        // One that is taken makes room for one.
        next(&mut door);
        eventually(
            "there is room, once the server has read what waits",
            || match door.submit(0, floats("none", &[1, 4], 0.0)) {
                Ok(_) => true,
                Err(error) => {
                    assert!(error.message().contains("wait to be read"), "{error}");
                    false
                }
            },
        );
        inside.stop(StopMode::Now);
    });
}

#[test]
fn a_stopped_server_says_so_at_its_doors() {
    within(LIMIT, || {
        let inside = Inside::start(&["--preload", "busy"]);
        let (mut door, mut idle) = (inside.door(), inside.door());
        let running = door.submit(1, keep_busy(300_000_000)).expect("room");
        let waiting = door.submit(2, slow(4)).expect("room");
        eventually("both are accepted", || {
            status(&mut idle, 1).queue.requests == 2
        });
        inside.stop(StopMode::Now);
        for _ in 0..2 {
            let answer = next(&mut door);
            assert!([running, waiting].contains(&answer.id));
            assert_eq!(code(&answer.message), Some(ErrorCode::Unavailable));
        }
        for door in [&mut door, &mut idle] {
            assert!(is_readable(door, PATIENCE), "it learns that it is over");
            let over = door.try_next().expect_err("it is over");
            assert_eq!(over.code(), ErrorCode::Unavailable);
            let refused = door.submit(3, floats("echo", &[1, 4], 0.0));
            assert_eq!(
                refused.expect_err("it is over").code(),
                ErrorCode::Unavailable
            );
        }
    });
}

/// What was accepted is answered before the end, at a door as everywhere.
#[test]
fn a_drain_answers_what_doors_have_asked() {
    within(LIMIT, || {
        let inside = Inside::start(&["--preload", "busy"]);
        let mut door = inside.door();
        door.submit(1, keep_busy(300_000)).expect("room");
        for _ in 0..20 {
            door.submit(2, floats("echo", &[1, 4], 0.0)).expect("room");
        }
        // The server has read all of them: what comes later is refused.
        let mut other = inside.door();
        eventually("all are accepted", || {
            let status = status(&mut other, 1);
            status.queue.requests + status.totals.requests == 21
        });
        inside.stop(StopMode::Drain);
        for _ in 0..21 {
            assert_eq!(code(&next(&mut door).message), None);
        }
        let over = door.try_next().expect_err("it is over");
        assert_eq!(over.code(), ErrorCode::Unavailable);
    });
}

#[test]
fn doors_and_connections_are_served_side_by_side() {
    with_inside(&[], |inside| {
        let (mut door, mut raw) = (inside.door(), inside.session());
        for round in 0..50 {
            let rows = [[round as f32; 4]];
            let asked = raw.id();
            send(&raw.port, &echo(asked, &rows));
            door.submit(1, floats("echo", &[1, 4], round as f32))
                .expect("there is room");
            let got = output(&next(&mut door).message).to_vec::<f32>();
            let expected: Vec<f32> = (0..4).map(|n| (round + n) as f32).collect();
            assert_eq!(got.expect("floats"), expected);
            assert_eq!(receive(&raw.out).floats(), rows.concat());
        }
    });
}
