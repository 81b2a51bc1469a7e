//! curl itself: JSON and events, as the README has them.

use std::process::Command;

use serde_json::{Value, json};

use crate::common::within;
use crate::events::events;
use crate::python::missing;
use crate::{LIMIT, echo_request, server};

const README: &str = include_str!("../../README.md");
const QUIET: [&str; 4] = ["--silent", "--show-error", "--max-time", "60"];

fn is_there() -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok();
    if !found {
        missing("curl", "install the package of that name");
    }
    found
}

fn prints(mut command: Command) -> Vec<u8> {
    let output = command.output().expect("it runs");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {why}");
    output.stdout
}

#[test]
fn the_readmes_curl_gets_rows_as_json() {
    if !is_there() {
        return;
    }
    within(LIMIT, || {
        let server = server(&[]);
        let blocks = README.split("```sh\n").skip(1);
        let mut blocks = blocks.filter_map(|block| Some(block.split_once("```")?.0));
        let line = blocks.find(|block| block.starts_with("curl localhost:8000"));
        let line = line.expect("a block with curl");
        let quiet = format!("curl {} ", QUIET.join(" "));
        let line = line
            .replacen("curl ", &quiet, 1)
            .replace("localhost:8000", &format!("localhost:{}", server.http_port))
            .replace("NAME", "echo");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        let answer: Value = serde_json::from_slice(&prints(shell)).expect("JSON");
        let output = &answer["outputs"][0];
        assert_eq!(output["shape"], json!([1, 4]), "{answer}");
        assert_eq!(output["data"], json!([1.0, 2.0, 3.0, 4.0]), "{answer}");
    });
}

#[test]
fn curl_gets_events_and_the_status_of_an_error() {
    if !is_there() {
        return;
    }
    within(LIMIT, || {
        let server = server(&["--max-batch-size", "16"]);
        let ask = |model: &str, more: &[&str]| {
            let mut curl = Command::new("curl");
            let url = format!(
                "http://localhost:{}/v2/models/{model}/infer",
                server.http_port
            );
            let body = echo_request(50).to_string();
            curl.args(QUIET).args(more).args(["-d", &body, &url]);
            prints(curl)
        };
        let events = events(&ask("echo", &["-N", "-H", "Accept: text/event-stream"]));
        let (end, parts) = events.split_last().expect("events");
        assert_eq!((end.0.as_str(), &end.1["rows"]), ("end", &json!(50)));
        let rows: u64 = parts
            .iter()
            .map(|(_, part)| part["outputs"][0]["shape"][0].as_u64().expect("rows"))
            .sum();
        assert_eq!(rows, 50);
        let status = ask("none", &["-o", "/dev/null", "-w", "%{http_code}"]);
        assert_eq!(status, b"404");
    });
}
