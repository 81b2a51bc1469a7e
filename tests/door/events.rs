//! Server-sent events: the parts of a request as they finish.

use serde_json::{Value, json};

use crate::common::within;
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

/// The events of an answer: names and data.
pub fn events(body: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(body).expect("text");
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    let read = blocks.map(|block| {
        let (event, data) = block
            .split_once('\n')
            .unwrap_or_else(|| panic!("two lines: {text}"));
        let event = event.strip_prefix("event: ").expect("an event");
        let data = data.strip_prefix("data: ").expect("data");
        (event.to_owned(), serde_json::from_str(data).expect("JSON"))
    });
    read.collect()
}

pub const EVENTS: [(&str, &str); 1] = [("accept", "text/event-stream")];

#[test]
fn the_parts_of_a_request_come_as_events_and_then_its_end() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2", "--max-batch-size", "64"]);
        let mut http = Http::to(&server);
        for in_order in [false, true] {
            let rows = 1000;
            let mut request = echo_request(rows);
            request["id"] = json!("all");
            request["parameters"] = json!({"ordered": in_order});
            let body = request.to_string();
            let answer = http.request("POST", "/v2/models/echo/infer", &EVENTS, body.as_bytes());
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, Some("text/event-stream"))
            );
            let mut events = events(&answer.body);
            let (name, end) = events.pop().expect("an end");
            assert_eq!(
                (name.as_str(), &end["rows"], &end["id"]),
                ("end", &json!(rows), &json!("all"))
            );
            assert!(end["stats"]["chunks"].as_u64().unwrap() > 1);
            assert!(events.len() > 1);
            let offset = |part: &Value| part["offset"].as_u64().unwrap();
            if !in_order {
                events.sort_by_key(|(_, part)| offset(part));
            }
            let mut next = 0;
            for (name, part) in &events {
                assert_eq!((name.as_str(), offset(part)), ("part", next));
                let output = &part["outputs"][0];
                let count = output["shape"][0].as_u64().unwrap();
                let data = output["data"].as_array().unwrap();
                let first = data[0].as_f64().unwrap();
                assert_eq!((data.len() as u64, first), (count * 4, (next * 4) as f64));
                next += count;
            }
            assert_eq!(next, rows as u64);
        }
        // A model without rows to split has one part.
        let input = |name: &str, shape: [usize; 2]| json!({"name": name, "datatype": "FP32", "shape": shape, "data": vec![1; shape[0] * shape[1]]});
        let body = json!({"inputs": [input("a", [3, 4]), input("b", [4, 5])]}).to_string();
        let answer = http.request("POST", "/v2/models/whole/infer", &EVENTS, body.as_bytes());
        let events = events(&answer.body);
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["part", "end"], "{events:?}");
    });
}

#[test]
fn the_end_of_events_repeats_the_version_that_the_path_names() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let body = echo_request(1).to_string();
        let path = "/v2/models/old/versions/1/infer";
        let answer = http.request("POST", path, &EVENTS, body.as_bytes());
        let mut events = events(&answer.body);
        let (name, end) = events.pop().expect("an end");
        assert_eq!((name.as_str(), &end["model_version"]), ("end", &json!("1")));
    });
}

#[test]
fn a_request_for_events_that_fails_at_once_has_a_status() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let body = echo_request(1).to_string();
        let answer = http.request("POST", "/v2/models/none/infer", &EVENTS, body.as_bytes());
        assert_eq!(answer.status, 404, "{answer:?}");
        let mut binary = echo_request(1);
        binary["parameters"] = json!({"binary_data_output": true});
        let body = binary.to_string();
        let answer = http.request("POST", "/v2/models/echo/infer", &EVENTS, body.as_bytes());
        assert_eq!(answer.status, 400, "{answer:?}");
    });
}
