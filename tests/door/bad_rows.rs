//! `parameters.on_bad_row`: rows that failed come back as the parameter `failed`, and all others are answered.

use serde_json::{Value, json};

use crate::common::{Server, within};
use crate::events::{EVENTS, events};
use crate::grpc::protocol::infer_parameter::ParameterChoice;
use crate::grpc::protocol::{ModelInferRequest, ModelInferResponse};
use crate::grpc::{Client, input, parameter};
use crate::http::Http;
use crate::{LIMIT, built, common};

fn server() -> Server {
    let faulty = br#"{"mdm":1,"plugin":"libecho.so","entry":"faulty"}"#;
    let shout = br#"{"mdm":1,"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}"#;
    let whole = br#"{"mdm":1,"rows":"whole","stages":[{"plugin":"libecho.so","entry":"echo"}]}"#;
    let plugin = std::fs::read(built::plugin("echo_plugin")).expect("the example's plugin");
    let folder = common::models(&[
        ("libecho.so", plugin),
        ("faulty.proxy", faulty.to_vec()),
        ("shout.proxy", shout.to_vec()),
        ("whole.proxy", whole.to_vec()),
    ]);
    let flags = [
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--max-chunk-ms",
        "0",
        "--max-batch-size",
        "16",
    ];
    Server::start(folder, &flags)
}

/// Rows of a number each, below 0 where they are to fail.
fn numbers(count: usize, bad: &[usize]) -> Vec<f32> {
    (0..count)
        .map(|row| if bad.contains(&row) { -1. } else { 1. })
        .collect()
}

fn request(count: usize, bad: &[usize], parameters: Value) -> Value {
    let mut parameters = parameters;
    parameters["do"] = json!("fail below 0");
    let input =
        json!({"name": "x", "datatype": "FP32", "shape": [count], "data": numbers(count, bad)});
    json!({"inputs": [input], "parameters": parameters})
}

/// The rows that entries are about, and that they say what was wrong.
fn rows_of(failed: &Value) -> Vec<u64> {
    let entries = failed
        .as_array()
        .unwrap_or_else(|| panic!("a list: {failed}"));
    let rows = entries.iter().flat_map(|entry| {
        assert_eq!(entry["code"], "INVALID_ARGUMENT");
        let message = entry["message"].as_str().expect("a message");
        assert!(
            message.ends_with("somewhere a number is below 0"),
            "{message}"
        );
        let first = entry["first"].as_u64().expect("a number");
        first..first + entry["count"].as_u64().expect("a number")
    });
    rows.collect()
}

#[test]
fn rest_answers_with_the_rows_that_failed() {
    within(LIMIT, || {
        let server = server();
        let mut http = Http::to(&server);
        const PATH: &str = "/v2/models/faulty/infer";
        let report = || json!({"on_bad_row": "report"});
        let answer = http.post(PATH, &request(50, &[3, 40, 41], report()));
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        assert_eq!(rows_of(&answer["parameters"]["failed"]), [3, 40, 41]);
        let runs = answer["outputs"][0]["data"].as_array().unwrap();
        let blank: Vec<usize> = (0..50).filter(|row| runs[*row] == json!(0)).collect();
        assert_eq!(blank, [3, 40, 41]);
        // Nothing failed: no parameter. Nothing was said: the request fails.
        let answer = http.post(PATH, &request(50, &[], report())).json();
        assert!(answer.get("parameters").is_none(), "{answer}");
        for (parameters, bad, words) in [
            (json!({}), vec![3], "rows 0 to "),
            (json!({"on_bad_row": "fail"}), vec![3], "rows 0 to "),
            (json!({"on_bad_row": "skip"}), vec![3], "on_bad_row"),
            (report(), (0..50).collect(), "all 50 rows failed"),
        ] {
            let answer = http.post(PATH, &request(50, &bad, parameters));
            assert_eq!(answer.status, 400, "{answer:?}");
            let told = answer.json()["error"].as_str().unwrap().to_owned();
            assert!(told.contains(words), "{told}");
            // The rows of the run that failed, of which the model blamed none.
            let rows = &answer.json()["rows"];
            match words {
                "rows 0 to " => assert!(rows[0] == 0 && rows[1].as_u64() > Some(3), "{rows}"),
                "all 50 rows failed" => assert_eq!(*rows, json!([0, 50])),
                _ => assert!(rows.is_null(), "{rows}"),
            }
        }
        let answer = http.post("/v2/models/whole/infer", &request(2, &[], report()));
        assert_eq!(answer.status, 400, "{answer:?}");
        // Bytes behind the JSON, where the numbers of the rows are.
        let binary = json!({"on_bad_row": "report", "binary_data_output": true});
        let body = request(50, &[3], binary).to_string();
        let answer = http.request("POST", PATH, &[], body.as_bytes());
        let (json, behind) = answer.parts();
        assert_eq!(rows_of(&json["parameters"]["failed"]), [3]);
        assert_eq!(behind.len(), 50 * 8);
        assert!(behind[3 * 8..4 * 8].iter().all(|byte| *byte == 0));
        // Rows of anything are nulls.
        let input = json!({"name": "text", "datatype": "BYTES", "shape": [2], "data": ["", "a"]});
        let body = json!({"inputs": [input], "parameters": report()});
        let answer = http.post("/v2/models/shout/infer", &body).json();
        assert_eq!(answer["outputs"][0]["data"][0], "null", "{answer}");
    });
}

#[test]
fn events_tell_of_the_rows_of_their_part_and_one_that_failed_wholly_has_no_outputs() {
    within(LIMIT, || {
        let server = server();
        let mut http = Http::to(&server);
        let bad: Vec<usize> = (0..20).collect();
        for parameters in [
            json!({"on_bad_row": "report"}),
            json!({"on_bad_row": "report", "ordered": true}),
        ] {
            let mut request = request(50, &bad, parameters);
            request["outputs"] = json!([{"name": "runs"}]);
            let body = request.to_string();
            let answer = http.request("POST", "/v2/models/faulty/infer", &EVENTS, body.as_bytes());
            let mut events = events(&answer.body);
            assert_eq!(events.pop().expect("an end").0, "end");
            let mut failed = Vec::new();
            let mut empty = 0;
            for (name, part) in &events {
                assert_eq!(name, "part");
                if let Some(told) = part["parameters"].get("failed") {
                    failed.extend(rows_of(told));
                }
                empty += usize::from(part["outputs"] == json!([]));
            }
            failed.sort_unstable();
            assert_eq!(failed, (0..20).collect::<Vec<u64>>());
            assert!(empty > 0, "{events:?}");
        }
    });
}

fn asked(count: usize, bad: &[usize]) -> ModelInferRequest {
    let text = |text: &str| parameter(ParameterChoice::StringParam(text.to_owned()));
    let bytes: Vec<u8> = numbers(count, bad)
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    ModelInferRequest {
        model_name: "faulty".to_owned(),
        inputs: vec![input("x", "FP32", &[count as i64])],
        raw_input_contents: vec![bytes.into()],
        parameters: [
            ("do".to_owned(), text("fail below 0")),
            ("on_bad_row".to_owned(), text("report")),
        ]
        .into(),
        ..ModelInferRequest::default()
    }
}

/// The rows that an answer's parameter names.
fn failed(answer: &ModelInferResponse) -> Vec<u64> {
    let Some(failed) = answer.parameters.get("failed") else {
        return Vec::new();
    };
    match &failed.parameter_choice {
        Some(ParameterChoice::StringParam(text)) => {
            rows_of(&serde_json::from_str(text).expect("JSON"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn grpc_answers_with_the_rows_that_failed() {
    within(LIMIT, || {
        let server = server();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut client = Client::to(&server).await;
            let answer = client.infer(asked(50, &[3, 40])).await.expect("an answer");
            assert_eq!(failed(&answer), [3, 40]);
            assert_eq!(answer.raw_output_contents[0].len(), 50 * 8);
            let answer = client.infer(asked(50, &[])).await.expect("an answer");
            assert!(!answer.parameters.contains_key("failed"));
            let all: Vec<usize> = (0..50).collect();
            let status = client
                .infer(asked(50, &all))
                .await
                .expect_err("no row is left");
            assert!(
                status.message().contains("all 50 rows failed"),
                "{status:?}"
            );
            // On a stream whole, and in parts.
            let (say, mut answers) = client.stream().await;
            say.send(asked(50, &[3])).unwrap();
            let answer = answers.message().await.expect("no end").expect("an answer");
            assert_eq!(failed(&answer.infer_response.expect("a result")), [3]);
            let mut parts = asked(50, &all[..20]);
            let yes = parameter(ParameterChoice::BoolParam(true));
            let name = "triton_enable_empty_final_response";
            parts.parameters.insert(name.to_owned(), yes);
            say.send(parts).unwrap();
            drop(say);
            let (mut rows, mut empty) = (Vec::new(), 0);
            while let Some(answer) = answers.message().await.expect("no end") {
                assert_eq!(answer.error_message, "");
                let answer = answer.infer_response.expect("a part");
                let failed = failed(&answer);
                empty += usize::from(!failed.is_empty() && answer.outputs.is_empty());
                rows.extend(failed);
            }
            rows.sort_unstable();
            assert_eq!(rows, (0..20).collect::<Vec<u64>>());
            assert!(empty > 0);
        });
    });
}
