//! The life of a model: versions, loaded anew under its requests, leaving to make room, warmed, and kept from what
//! would end the server.

use std::fs;

use mdm::client::{Call, Client};
use mdm::wire::server::ServerMessage;
use mdm::{DataType, ErrorCode, Tensor};
use serde_json::json;

use crate::behind::{FOR_EVER, Session, busy, keep_busy, output, request};
use crate::common::{PATIENCE, Server, command, eventually, models, onnx, within};
use crate::models::BUSY_ROWS;
use crate::refused;

/// Gives its rows back.
fn same() -> Vec<u8> {
    onnx::echo(DataType::Fp32, &[4])
}

/// Gives its rows with the other sign.
fn negative() -> Vec<u8> {
    onnx::dynamic_unnamed()
}

fn rows(count: usize) -> Tensor {
    Tensor::from_vec("x", vec![count, 4], vec![2f32; 4 * count]).unwrap()
}

fn first(client: &Client, call: impl Into<Call>) -> mdm::Result<f32> {
    let response = client.infer(rows(3), call)?;
    Ok(response.array::<f32>("y")?[[0, 0]])
}

/// As [`first`], until the server has also booked the request's end: an answer may arrive a moment before.
fn alone(client: &Client, call: impl Into<Call>) -> f32 {
    let answer = first(client, call).unwrap();
    eventually("its end is booked", || {
        client.status().unwrap().queue.requests == 0
    });
    answer
}

fn loaded(client: &Client) -> Vec<String> {
    let models = client.models().unwrap();
    models
        .iter()
        .map(|m| format!("{} {}", m.name, m.version))
        .collect()
}

#[test]
fn a_version_is_asked_for_by_name_or_parameter_and_a_new_one_comes_with_a_load() {
    within(PATIENCE, || {
        let dir = models(&[("v/1/model.onnx", negative()), ("v/2/model.onnx", same())]);
        let server = Server::start(dir, &[]);
        let client = server.client();
        let version = |version| {
            let params = json!({ "model_version": version });
            Call::model("v").params(params.as_object().unwrap().clone())
        };
        assert_eq!(first(&client, "v").unwrap(), 2.0);
        assert_eq!(first(&client, "v/1").unwrap(), -2.0);
        assert_eq!(first(&client, version(json!(1))).unwrap(), -2.0);
        assert_eq!(first(&client, version(json!("2"))).unwrap(), 2.0);
        refused(
            first(&client, "v/3"),
            ErrorCode::NotFound,
            &["version 3; there are 1, 2"],
        );
        refused(
            first(&client, version(json!(3))),
            ErrorCode::NotFound,
            &["version 3; there are 1, 2"],
        );
        assert_eq!(loaded(&client), ["v 2", "v 1"]);
        let folder = server.models().join("v/3");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("model.onnx"), negative()).unwrap();
        assert_eq!(first(&client, "v").unwrap(), 2.0);
        assert_eq!(client.load("v").unwrap().version, "3");
        assert_eq!(first(&client, "v").unwrap(), -2.0);
        assert_eq!(first(&client, "v/2").unwrap(), 2.0);
        let status = client.status().unwrap();
        assert!(
            status
                .models
                .iter()
                .any(|m| (m.name.as_str(), m.version.as_str()) == ("v", "3"))
        );
    });
}

/// The requests are queued behind one that keeps the only worker busy, when the file changes and is loaded.
#[test]
fn requests_in_flight_end_with_the_model_that_they_found() {
    within(PATIENCE, || {
        for count in [
            100_000, 400_000, 1_600_000, 1_600_000, 6_400_000, 6_400_000, 25_000_000,
        ] {
            let dir = models(&[
                ("busy.onnx", crate::models::busy()),
                ("busy.proxy", crate::models::busy_rows("busy")),
                ("m.onnx", negative()),
            ]);
            let server = Server::start(dir, &["--preload", "busy", "--preload", "m"]);
            let mut session = Session::open(&server);
            let runs = keep_busy(&mut session, count);
            let queued: Vec<_> = [1, 40, 300, 2, 5000]
                .iter()
                .map(|n| session.infer(&request("m", rows(*n))))
                .collect();
            if session.status().queue.requests != 1 + queued.len() as u64 {
                continue; // the first has ended already, or a small one went before it
            }
            let file = server.models().join("m.onnx");
            fs::write(server.models().join("new"), same()).unwrap();
            fs::rename(server.models().join("new"), &file).unwrap();
            let client = server.client();
            let before = session.infer(&request("m", rows(7)));
            client.load("m").unwrap();
            let after = session.infer(&request("m", rows(9)));
            for _ in 0..queued.len() + 3 {
                let (id, answer) = session.next();
                assert!(matches!(answer, ServerMessage::Result(..)), "{answer:?}");
                let sign = if id == after { 2.0 } else { -2.0 };
                if id != runs {
                    let numbers = output(&answer).to_vec::<f32>().unwrap();
                    assert!(numbers.iter().all(|y| *y == sign), "{id:?}");
                }
            }
            assert!(before < after);
            assert_eq!(loaded(&client), ["busy 1", "m 1"]);
            // One that cannot be loaded: what is served goes on.
            fs::write(&file, b"noise").unwrap();
            refused(client.load("m"), ErrorCode::FailedPrecondition, &["m.onnx"]);
            assert_eq!(first(&client, "m").unwrap(), 2.0);
            assert!(settled_errors(&client).is_empty());
            return;
        }
        panic!("the worker was never busy for long enough");
    });
}

/// Errors of requests, by code.
fn settled_errors(client: &Client) -> Vec<String> {
    let errors = crate::settled(client).totals.errors;
    // The load that was refused.
    let own = errors
        .into_iter()
        .filter(|(code, n)| *n > 0 && code != "FAILED_PRECONDITION");
    own.map(|(code, _)| code).collect()
}

#[test]
fn clients_that_go_on_asking_never_see_an_error_while_a_model_is_loaded_anew() {
    within(PATIENCE, || {
        let dir = models(&[("m.onnx", negative())]);
        let server = Server::start(dir, &["--num-worker", "2", "--preload", "m"]);
        let client = server.client();
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let askers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut asked = 0;
                        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                            let y = client.infer(rows(100), "m").unwrap();
                            let y = y.array::<f32>("y").unwrap();
                            // Every row of a request by the same model.
                            assert!(y.iter().all(|y| *y == 2.0) || y.iter().all(|y| *y == -2.0));
                            asked += 1;
                        }
                        asked
                    })
                })
                .collect();
            for round in 0..20 {
                let file = server.models().join("m.onnx");
                fs::write(&file, if round % 2 == 0 { same() } else { negative() }).unwrap();
                let output = command("mdm-model")
                    .args([
                        "reload",
                        "m",
                        "--ip",
                        "127.0.0.1",
                        "--port",
                        &server.port.to_string(),
                    ])
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{output:?}");
                let expected = if round % 2 == 0 { 2.0 } else { -2.0 };
                assert_eq!(first(&client, "m").unwrap(), expected);
            }
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            for asker in askers {
                assert!(asker.join().unwrap() > 0);
            }
        });
    });
}

#[test]
fn the_models_that_were_used_longest_ago_make_room() {
    within(PATIENCE, || {
        let files = ["a", "b", "c", "d"].map(|name| (format!("{name}.onnx"), same()));
        let files: Vec<_> = files.iter().map(|(n, f)| (n.as_str(), f.clone())).collect();
        let server = Server::start(models(&files), &["--max-models", "2"]);
        let client = server.client();
        assert_eq!(client.status().unwrap().settings["max_models"], "2");
        for name in ["a", "b", "a", "c"] {
            assert_eq!(alone(&client, name), 2.0);
        }
        // By use, not by the order in which they came.
        assert_eq!(loaded(&client), ["a 1", "c 1"]);
        assert_eq!(alone(&client, "a"), 2.0);
        client.load("d").unwrap();
        assert_eq!(loaded(&client), ["a 1", "d 1"]);
        assert_eq!(alone(&client, "b"), 2.0);
        assert_eq!(loaded(&client), ["d 1", "b 1"]);

        let server = Server::start(models(&files), &["--max-models", "2", "--preload", "a"]);
        let client = server.client();
        for name in ["b", "c"] {
            assert_eq!(alone(&client, name), 2.0);
        }
        assert_eq!(loaded(&client), ["a 1", "c 1"]);
        fs::copy(
            server.models().join("b.onnx"),
            server.models().join("a.onnx"),
        )
        .unwrap();
        client.load("a").unwrap();
        alone(&client, "b");
        assert_eq!(
            loaded(&client),
            ["a 1", "b 1"],
            "loaded anew, it still stays"
        );
        client.unload("a").unwrap();
        alone(&client, "c");
        assert_eq!(loaded(&client), ["b 1", "c 1"]);
    });
}

#[test]
fn a_model_with_requests_in_flight_does_not_make_room() {
    within(PATIENCE, || {
        let dir = models(&[
            ("busy.onnx", crate::models::busy()),
            ("busy.proxy", crate::models::busy_rows("busy")),
            ("m.onnx", same()),
        ]);
        let server = Server::start(dir, &["--max-models", "1"]);
        let client = server.client();
        let mut session = Session::open(&server);
        let runs = session.infer(&busy(FOR_EVER, BUSY_ROWS));
        eventually("it runs", || {
            client.status().unwrap().workers[0].state == "busy"
        });
        refused(
            first(&client, "m"),
            ErrorCode::ResourceExhausted,
            &["\"m\"", "--max-models", "try later"],
        );
        assert_eq!(loaded(&client), ["busy 1"]);
        session.cancel(runs);
        assert_eq!(session.next().0, runs);
        session.infer(&request("m", rows(1)));
        eventually("the other is there", || loaded(&client) == ["m 1"]);

        // More than there is room for cannot be preloaded.
        let dir = models(&[("a.onnx", same()), ("b.onnx", same())]);
        let output = command("mdm-server-start")
            .args([
                "--max-models=1",
                "--preload=a",
                "--preload=b",
                "--port=0",
                "--port-out=0",
            ])
            .args(["--run-script-dir", "models"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("--preload") && said.contains("--max-models"),
            "{said}"
        );
    });
}

#[test]
fn the_bytes_of_models_are_bounded() {
    within(PATIENCE, || {
        let mlp = onnx::mlp();
        let dir = models(&[
            ("a.onnx", mlp.clone()),
            ("b.onnx", mlp.clone()),
            ("m.onnx", same()),
        ]);
        let bound = (mlp.len() + mlp.len() / 2).to_string();
        let server = Server::start(dir, &["--max-model-bytes", &bound]);
        let client = server.client();
        let images = || Tensor::from_vec("x", vec![2, 64], vec![0f32; 128]).unwrap();
        client.infer(images(), "a").unwrap();
        first(&client, "m").unwrap();
        assert_eq!(loaded(&client), ["a 1", "m 1"]);
        client.infer(images(), "b").unwrap();
        assert_eq!(loaded(&client), ["m 1", "b 1"]);
        fs::write(server.models().join("big.onnx"), onnx::matmul_weights(4)).unwrap();
        let words = ["\"big\"", &bound, "--max-model-bytes"];
        refused(first(&client, "big"), ErrorCode::ResourceExhausted, &words);
        refused(client.load("big"), ErrorCode::ResourceExhausted, &words);
        assert_eq!(loaded(&client), ["m 1", "b 1"]);
    });
}

#[test]
fn a_sample_warms_a_model_and_one_that_does_not_fit_is_an_error_at_the_load() {
    within(PATIENCE, || {
        let proxy = |sample: &str| {
            format!(r#"{{"mdm":1,"onnx":"table.onnx","warm_up":{sample}}}"#).into_bytes()
        };
        let dir = models(&[
            ("table.onnx", onnx::failing_at_run()),
            ("good.proxy", proxy(r#"{"x":[1,2,3]}"#)),
            ("fails.proxy", proxy(r#"{"x":[99]}"#)),
            ("empty.proxy", proxy(r#"{"x":[]}"#)),
            ("type.proxy", proxy(r#"{"x":[1.5]}"#)),
            ("name.proxy", proxy(r#"{"z":[1]}"#)),
            ("shape.proxy", proxy(r#"{"x":[[1]]}"#)),
        ]);
        let server = Server::start(dir, &["--num-worker", "2", "--preload", "good"]);
        let client = server.client();
        for (name, words) in [
            ("fails", ["\"fails\": warm_up: ", "99"]),
            ("empty", ["warm_up: ", "\"x\" has no rows"]),
            ("type", ["warm_up: ", "\"x\": expected INT64, got 1.5"]),
            ("name", ["warm_up: ", "\"x\" is missing"]),
            ("shape", ["warm_up: ", "\"x\""]),
        ] {
            refused(client.load(name), ErrorCode::FailedPrecondition, &words);
            assert_eq!(loaded(&client), ["good 1"]);
        }
        assert!(client.infer(&[1i64, 2], "good").is_ok());
        let output = command("mdm-server-start")
            .args([
                "--preload=fails",
                "--port=0",
                "--port-out=0",
                "--run-script-dir",
            ])
            .arg(server.models())
            .arg("--logger")
            .arg(server.dir.path().join("other.txt"))
            .arg("--zeromq-sock-tmp-dir")
            .arg(server.dir.path().join("other"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("--preload fails") && said.contains("warm_up"),
            "{said}"
        );
    });
}

#[test]
fn however_a_model_is_warmed_its_short_runs_get_a_session_of_one_thread() {
    within(PATIENCE, || {
        let dir = models(&[
            ("plain.onnx", same()),
            (
                "sampled.proxy",
                br#"{"mdm":1,"onnx":"plain.onnx","warm_up":{"x":[[1,2,3,4]]}}"#.to_vec(),
            ),
            (
                "chain.proxy",
                br#"{"mdm":1,"stages":[{"onnx":"plain.onnx"},{"onnx":"other.onnx"}],"warm_up":{"x":[[1,2,3,4]]}}"#
                    .to_vec(),
            ),
            ("other.onnx", negative()),
        ]);
        let flags = ["--num-worker", "1", "--intra-op-threads", "2"];
        let server = Server::start_logging("debug", dir, &flags);
        let client = server.client();
        let made = || server.log().matches("short runs have a session").count();
        for (name, stages) in [("plain", 1), ("sampled", 1), ("chain", 2)] {
            // The machine may be too busy for a short run at one time, not at all times.
            eventually(name, || {
                let before = made();
                client.load(name).unwrap();
                let since = made() - before;
                client.unload(name).unwrap();
                assert!(since <= stages, "{name}: {since}");
                since == stages
            });
        }
    });
}

/// ONNX Runtime ends the process when such a layer gets a batch of size 0.
#[test]
fn an_empty_dimension_does_not_reach_a_recurrent_layer() {
    within(PATIENCE, || {
        let dir = models(&[
            ("plain.onnx", onnx::recurrent(onnx::Place::Top)),
            ("nested.onnx", onnx::recurrent(onnx::Place::InBranches)),
            ("chain.proxy", br#"{"mdm":1,"rows":"whole","stages":[{"onnx":"copy.onnx"},{"onnx":"nested.onnx"}]}"#.to_vec()),
            ("copy.onnx", onnx::any_rank()),
        ]);
        let server = Server::start(dir, &[]);
        let client = server.client();
        let x = |shape: [usize; 3]| {
            let count = shape.iter().product();
            Tensor::from_vec("x", shape.to_vec(), vec![1f32; count]).unwrap()
        };
        for (model, code) in [
            ("plain", ErrorCode::InvalidArgument),
            ("nested", ErrorCode::InvalidArgument),
            ("chain", ErrorCode::Internal),
        ] {
            for shape in [[3, 0, 4], [0, 3, 4], [0, 0, 4]] {
                let words = ["has shape", &format!("{shape:?}"), "recurrent"];
                refused(client.infer(x(shape), model), code, &words);
            }
            let response = client.infer(x([3, 2, 4]), model).unwrap();
            assert_eq!(response.view::<f32>("h").unwrap().shape(), [1, 2, 2]);
        }
        // Others keep theirs.
        let empty = client.infer(x([3, 0, 4]), "copy").unwrap();
        assert_eq!(empty.view::<f32>("y").unwrap().shape(), [3, 0, 4]);
    });
}
