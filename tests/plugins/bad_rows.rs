//! Rows that fail: which they are is told, and all others are answered where that is asked for.

use std::ops::Range;
use std::time::{Duration, Instant};

use mdm::client::{Call, Client, FailedRows, Part, Response};
use mdm::{ErrorCode, Tensor};
use serde_json::{Value, json};

use crate::common::{PATIENCE, Server, command, eventually, onnx, within};
use crate::{build_sample, folder, refused, serve};

const SHOUT: &str = r#"{"mdm":1,"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}"#;
const FAULTY: &str = r#"{"mdm":1,"plugin":"libecho.so","entry":"faulty"}"#;
const WHOLE: &str = r#"{"mdm":1,"rows":"whole","stages":[{"plugin":"libecho.so","entry":"echo"}]}"#;

fn rows_of(failed: &[FailedRows]) -> Vec<Range<u64>> {
    failed.iter().map(FailedRows::rows).collect()
}

/// So many texts, of which these are empty, which the model "shout" takes for bad rows.
fn texts(count: usize, bad: &[usize]) -> Vec<String> {
    let text = |row| match bad.contains(&row) {
        true => String::new(),
        false => format!("text {row}"),
    };
    (0..count).map(text).collect()
}

fn check_shouted(response: &Response, count: usize, bad: &[usize]) {
    let rows: Vec<Value> = response.json_rows("shouted").unwrap();
    assert_eq!(rows.len(), count);
    for (row, shouted) in rows.iter().enumerate() {
        match bad.contains(&row) {
            true => assert_eq!(*shouted, Value::Null, "row {row}"),
            false => assert_eq!(shouted["text"], format!("text {row}")),
        }
    }
    let expected: Vec<u64> = bad.iter().map(|row| *row as u64).collect();
    let told: Vec<u64> = response
        .failed()
        .iter()
        .flat_map(FailedRows::rows)
        .collect();
    assert_eq!(told, expected);
}

fn stream(client: &Client, texts: &[String]) -> mdm::Result<Response> {
    let call = Call::model("shout").report_bad_rows();
    let mut stream = client.infer_stream(("text", texts), call)?;
    let parts: Vec<Part> = stream.by_ref().collect::<mdm::Result<_>>()?;
    let stats = stream.stats().expect("the stream has ended");
    Response::from_stream(parts, stats)
}

#[test]
fn bad_rows_that_a_model_blames_are_told_and_all_others_are_answered() {
    within(PATIENCE, || {
        let server = serve(
            &[("shout.proxy", SHOUT), ("whole.proxy", WHOLE)],
            &[
                "--num-worker",
                "2",
                "--max-chunk-ms",
                "0",
                "--max-batch-size",
                "64",
            ],
        );
        let client = server.client();
        let shout = || Call::model("shout").report_bad_rows();
        // Without the choice the first of them ends the request, and is told by its number.
        let error = client
            .infer(("text", &texts(500, &[333])), "shout")
            .unwrap_err();
        assert_eq!(error.rows(), Some(333..334), "{error}");
        for bad in [
            vec![],
            vec![3, 333],
            vec![0, 1, 2, 499],
            (100..300).collect(),
        ] {
            let sent = texts(500, &bad);
            let response = client.infer(("text", &sent), shout()).unwrap();
            check_shouted(&response, 500, &bad);
            check_shouted(&stream(&client, &sent).unwrap(), 500, &bad);
        }
        let response = client.infer(("text", &texts(500, &[3])), shout()).unwrap();
        let failed = &response.failed()[0];
        assert_eq!(failed.code, ErrorCode::InvalidArgument);
        assert!(
            failed.message.ends_with("there is nothing to shout"),
            "{failed}"
        );
        assert!(!failed.message.contains("row 3"), "{failed}");
        // What is no UTF-8 is an error about no row in particular: halves tell.
        let mut bytes: Vec<&[u8]> = vec![b"good"; 200];
        bytes[150] = b"\xff";
        let tensor = Tensor::from_strings("text", None, &bytes).unwrap();
        let response = client.infer(tensor, shout()).unwrap();
        assert_eq!(rows_of(response.failed()), vec![150..151]);
        // Nothing is left to answer.
        let all: Vec<usize> = (0..200).collect();
        let told = [
            client.infer(("text", &texts(200, &all)), shout()),
            stream(&client, &texts(200, &all)),
        ];
        for told in told {
            let error = told.unwrap_err();
            assert_eq!(error.rows(), Some(0..200), "{error}");
            refused::<()>(
                Err(error),
                ErrorCode::InvalidArgument,
                &["all 200 rows failed", "row 0", "nothing to shout"],
            );
        }
        let error = client.infer(&[""], shout()).unwrap_err();
        assert!(error.message().starts_with("row 0: "), "{error}");
        refused(
            client.infer(&[1f32], Call::model("whole").report_bad_rows()),
            ErrorCode::InvalidArgument,
            &["on_bad_row", "whole"],
        );
    });
}

#[test]
fn of_requests_that_run_together_some_report_and_some_fail() {
    within(PATIENCE, || {
        let server = serve(&[("shout.proxy", SHOUT)], &["--num-worker", "1"]);
        let client = server.client();
        let small = |n: usize| match n % 3 {
            0 => texts(3, &[]),
            _ => texts(3, &[n % 2]),
        };
        let call = |n: usize| match n % 2 {
            0 => Call::model("shout").report_bad_rows(),
            _ => Call::model("shout"),
        };
        for _ in 0..5 {
            let tickets: Vec<_> = (0..300)
                .map(|n| client.submit(("text", &small(n)), call(n)).unwrap())
                .collect();
            for (n, answer) in client.fetch_all(tickets).into_iter().enumerate() {
                match (n % 3, n % 2) {
                    (0, _) => check_shouted(&answer.unwrap(), 3, &[]),
                    (_, 0) => check_shouted(&answer.unwrap(), 3, &[0]),
                    _ => assert_eq!(answer.unwrap_err().rows(), Some(1..2)),
                }
            }
        }
        let totals = client.status().unwrap().totals;
        assert!(totals.coalesced > 0, "{totals:?}");
    });
}

/// Numbers, of which these rows are below 0.
fn numbers(count: usize, bad: &[usize]) -> Vec<f32> {
    let number = |row| if bad.contains(&row) { -1.0 } else { 1.0 };
    (0..count).map(number).collect()
}

fn faulty(what: &str) -> Call {
    Call::model("faulty").param("do", what).report_bad_rows()
}

#[test]
fn a_model_that_panics_at_a_row_answers_the_others_and_is_not_opened_for_ever() {
    within(PATIENCE, || {
        let flags = ["--num-worker", "1", "--max-chunk-ms", "0"];
        let server = serve(&[("faulty.proxy", FAULTY)], &flags);
        let client = server.client();
        let response = client
            .infer(numbers(100, &[41]), faulty("panic below 0"))
            .unwrap();
        assert_eq!(rows_of(response.failed()), vec![41..42]);
        assert!(response.failed()[0].message.contains("a number is below 0"));
        let runs = response.array::<i64>("runs").unwrap();
        let blank: Vec<usize> = (0..100).filter(|row| runs[[*row]] == 0).collect();
        assert_eq!(blank, [41]);
        // Too many: what is not run again is one entry, which says so.
        let bad: Vec<usize> = (1..100).collect();
        let response = client
            .infer(numbers(100, &bad), faulty("panic below 0"))
            .unwrap();
        let last = response.failed().last().unwrap();
        assert_eq!(
            (last.rows().end, last.code),
            (100, ErrorCode::ResourceExhausted)
        );
        assert!(last.message.contains("8 further runs"), "{last}");
        assert!(client.infer(numbers(3, &[]), "faulty").is_ok());
    });
}

#[test]
fn one_row_that_panics_costs_no_other_row_of_hundreds() {
    within(PATIENCE, || {
        let flags = ["--num-worker", "1", "--max-chunk-ms", "0"];
        let server = serve(&[("faulty.proxy", FAULTY)], &flags);
        let client = server.client();
        for (count, bad) in [(256, 0), (256, 255), (1024, 0), (1024, 1), (1024, 341)] {
            let sent = numbers(count, &[bad]);
            let response = client.infer(sent, faulty("panic below 0")).unwrap();
            let bad = bad as u64;
            assert_eq!(rows_of(response.failed()), vec![bad..bad + 1], "of {count}");
            let runs = response.array::<i64>("runs").unwrap();
            assert_eq!(runs.iter().filter(|runs| **runs > 0).count(), count - 1);
        }
    });
}

#[test]
fn rows_that_were_not_run_again_are_not_said_to_have_failed() {
    within(PATIENCE, || {
        let flags = ["--num-worker", "1", "--max-chunk-ms", "0"];
        let server = serve(&[("faulty.proxy", FAULTY)], &flags);
        let client = server.client();
        let all: Vec<usize> = (0..256).collect();
        let sent = || numbers(256, &all);
        let error = client.infer(sent(), faulty("panic below 0")).unwrap_err();
        assert_eq!(error.rows(), Some(0..256), "{error}");
        refused::<()>(
            Err(error),
            ErrorCode::ResourceExhausted,
            &[
                "none of 256 rows has a result; row 0: INTERNAL: ",
                "a number is below 0; ",
                " may be good: not run again",
                "8 further runs",
            ],
        );
        // A stream says which they are.
        let mut stream = client
            .infer_stream(sent(), faulty("panic below 0"))
            .unwrap();
        let part = stream.next().unwrap().unwrap();
        let [failed, left] = &part.failed[..] else {
            panic!("{:?}", part.failed)
        };
        assert_eq!((failed.first, failed.code), (0, ErrorCode::Internal));
        assert_eq!(
            (left.rows(), left.code),
            (failed.count..256, ErrorCode::ResourceExhausted)
        );
        refused(
            stream.next().unwrap(),
            ErrorCode::ResourceExhausted,
            &[&format!(
                "{} failed and {} may be good",
                failed.count, left.count
            )],
        );
    });
}

/// A file of these numbers.
fn npy(numbers: &[f32]) -> Vec<u8> {
    let shape = numbers.len();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}");
    let header = format!("{header:<117}\n");
    let data = numbers.iter().flat_map(|number| number.to_le_bytes());
    let begin = b"\x93NUMPY\x01\x00\x76\x00".iter().copied();
    begin.chain(header.into_bytes()).chain(data).collect()
}

#[test]
fn infer_says_of_rows_that_were_left_that_they_may_be_good() {
    within(PATIENCE, || {
        let server = serve(&[("faulty.proxy", FAULTY)], &["--num-worker", "1"]);
        let path = |name: &str| server.dir.path().join(name).display().to_string();
        // Requests have 256 rows at first: no row of the first one has a result.
        let all: Vec<usize> = (0..256).collect();
        std::fs::write(path("in.npy"), npy(&numbers(300, &all))).unwrap();
        let output = command("mdm-infer")
            .args(["--model", "faulty", "--port", &server.port.to_string()])
            .args([
                "--params",
                r#"{"do":"panic below 0"}"#,
                "--on-bad-row=report",
            ])
            .args(["--input", &path("in.npy"), "--output", &path("out.npz")])
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{err}");
        let said =
            "rows 0 to 255: RESOURCE_EXHAUSTED: none of 256 rows has a result; row 0: INTERNAL: ";
        assert!(err.contains(said), "{err}");
        assert!(err.contains(" may be good: not run again"), "{err}");
    });
}

/// Cut into single rows each would have had its row, and the nonsense would have been a result.
#[test]
fn an_output_with_another_number_of_rows_ends_the_request_in_any_case() {
    within(PATIENCE, || {
        let faulty_stage = r#"{"plugin":"libecho.so","entry":"faulty"}"#;
        let echo_stage = r#"{"plugin":"libecho.so","entry":"echo"}"#;
        let largest_stage = r#"{"onnx":"largest.onnx"}"#;
        let chain = |stages: [&str; 2]| {
            format!(r#"{{"mdm":1,"stages":[{}]}}"#, stages.join(",")).into_bytes()
        };
        let inside =
            r#"{"mdm":1,"plugin":"libsample.so","state":{"do":"session","onnx":"largest.onnx"}}"#;
        for extra in ["0", "1"] {
            let dir = folder(&[
                ("largest.onnx", onnx::largest_only()),
                ("faulty.proxy", FAULTY.into()),
                ("net-chain.proxy", chain([echo_stage, largest_stage])),
                ("plugin-chain.proxy", chain([faulty_stage, echo_stage])),
                ("inside.proxy", inside.into()),
            ]);
            build_sample(&dir.path().join("models/libsample.so"));
            let flags = ["--num-worker", "1", "--num-parallel-workers", extra];
            let server = Server::start(dir, &flags);
            let client = server.client();
            for model in ["largest", "faulty", "net-chain", "plugin-chain", "inside"] {
                let call = || Call::model(model).param("do", "lose a row");
                let sent = [1f32, 2., 6., 3., 4., 5.];
                for call in [call(), call().report_bad_rows()] {
                    let error = client.infer(&sent, call).unwrap_err();
                    assert_eq!(error.rows(), None, "{model}: {error}");
                    refused::<()>(Err(error), ErrorCode::Internal, &["for 6 rows"]);
                }
            }
            let one = client.infer(&[7f32], Call::model("largest").report_bad_rows());
            assert_eq!(one.unwrap().only().unwrap().to_vec::<f32>().unwrap(), [7.]);
        }
    });
}

/// A client was told a line that its file does not have.
#[test]
fn a_row_that_is_not_there_is_the_fault_of_the_plugin_that_blames_it() {
    within(PATIENCE, || {
        let server = serve(&[("faulty.proxy", FAULTY)], &["--num-worker", "1"]);
        let client = server.client();
        let what = "blame a row that is not there";
        let call = Call::model("faulty").param("do", what);
        let error = client.infer(&[1f32, 2.], call).unwrap_err();
        assert_eq!(error.rows(), None, "{error}");
        refused::<()>(
            Err(error),
            ErrorCode::Internal,
            &["blames row 99999 of a batch of 2 rows", "it is not there"],
        );
        let error = client.infer(&[1f32, 2.], faulty(what)).unwrap_err();
        refused::<()>(Err(error), ErrorCode::Internal, &["all 2 rows failed"]);
        eventually("the log says so", || {
            let log = server.log();
            let mut lines = log.lines().filter(|line| line.contains("a model failed"));
            lines.any(|line| line.contains("row 99999 of a batch of 2 rows"))
        });
    });
}

#[test]
fn rows_that_failed_are_counted() {
    within(PATIENCE, || {
        let server = serve(&[("shout.proxy", SHOUT)], &["--num-worker", "1"]);
        let client = server.client();
        let call = || Call::model("shout").report_bad_rows();
        let sent = |bad: &[usize]| texts(10, bad);
        client.infer(("text", &sent(&[])), call()).unwrap();
        client.infer(("text", &sent(&[2, 3, 9])), call()).unwrap();
        stream(&client, &sent(&[0])).unwrap();
        // No request of these has a result.
        let all: Vec<usize> = (0..10).collect();
        assert!(client.infer(("text", &sent(&all)), call()).is_err());
        assert!(client.infer(("text", &sent(&[5])), "shout").is_err());
        let status = client.status().unwrap();
        assert_eq!((status.totals.rows, status.totals.failed_rows), (30, 4));
        let of = &status.by_model[0];
        assert_eq!((&*of.name, of.rows, of.failed_rows), ("shout", 30, 4));
    });
}

#[test]
fn a_deadline_and_a_cancel_end_a_request_while_its_rows_run_again() {
    within(PATIENCE, || {
        let flags = ["--num-worker", "1", "--max-chunk-ms", "0"];
        let server = serve(&[("faulty.proxy", FAULTY)], &flags);
        let client = server.client();
        assert!(client.infer(numbers(3, &[]), "faulty").is_ok());
        // Every other row is bad: all of its further runs would take some five seconds.
        let bad: Vec<usize> = (0..1000).step_by(2).collect();
        let slow = || faulty("fail slowly below 0");
        let start = Instant::now();
        let call = slow().timeout(Duration::from_millis(200));
        let error = client.infer(numbers(1000, &bad), call).unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeadlineExceeded, "{error}");
        let ticket = client.submit(numbers(1000, &bad), slow()).unwrap();
        eventually("the rows run", || {
            let queue = client.status().unwrap().queue;
            queue.requests == 1 && queue.rows == 0
        });
        client.cancel(&ticket);
        assert_eq!(
            client.fetch(ticket).unwrap_err().code(),
            ErrorCode::Cancelled
        );
        assert!(client.infer(numbers(3, &[]), "faulty").is_ok());
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "the worker went on: {:?}",
            start.elapsed()
        );
        // Left alone it ends, at the bound.
        let response = client
            .infer(numbers(1000, &bad), faulty("fail below 0"))
            .unwrap();
        let last = response.failed().last().unwrap();
        assert!(last.message.contains("256 further runs"), "{last}");
        assert_eq!(last.rows().end, 1000);
    });
}

/// The stages before and after the net run in other workers.
const CHAIN: &str = r#"{"mdm":1,"stages":[
    {"name":"before","plugin":"libecho.so","entry":"faulty"},
    {"name":"net","onnx":"runs.onnx"},
    {"name":"after","plugin":"libecho.so","entry":"echo"}]}"#;

#[test]
fn rows_that_fail_in_a_stage_are_told_at_the_end_of_the_chain() {
    within(PATIENCE, || {
        for extra in ["0", "2"] {
            let dir = folder(&[
                ("runs.onnx", onnx::echo(mdm::DataType::Int64, &[])),
                ("chain.proxy", CHAIN.into()),
            ]);
            let flags = [
                "--num-worker",
                "1",
                "--num-parallel-workers",
                extra,
                "--max-batch-size",
                "64",
            ];
            let server = Server::start(dir, &flags);
            let client = server.client();
            let call = |what: &str| {
                let params = json!({"do": what});
                let params = params.as_object().unwrap().clone();
                Call::model("chain").params(params).report_bad_rows()
            };
            for (count, bad) in [
                (3, vec![1]),
                (500, vec![7, 450]),
                // A chunk that fails wholly in the first stage does not go on.
                (500, (100..400).collect()),
            ] {
                let sent = numbers(count, &bad);
                let response = client.infer(sent.clone(), call("fail below 0")).unwrap();
                let failed: Vec<usize> = response
                    .failed()
                    .iter()
                    .flat_map(FailedRows::rows)
                    .map(|row| row as usize)
                    .collect();
                assert_eq!(failed, bad);
                assert!(response.failed()[0].message.contains("stage \"before\""));
                let runs = response.only().unwrap().to_vec::<i64>().unwrap();
                let blank: Vec<usize> = (0..count).filter(|row| runs[*row] == 0).collect();
                assert_eq!(blank, bad);
            }
            let all: Vec<usize> = (0..300).collect();
            let error = client
                .infer(numbers(300, &all), call("fail below 0"))
                .unwrap_err();
            assert_eq!(error.rows(), Some(0..300), "{error}");
        }
    });
}
