//! A server that stops: doors finish what runs, refuse what comes, and hold nothing up.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cancel::ask_slowly;
use crate::common::{PATIENCE, eventually, within};
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

#[test]
fn a_drain_answers_what_runs_refuses_what_comes_and_waits_for_no_idle_connection() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "slow", "--preload", "echo"]);
        let (mut idle, mut begun, mut other) =
            (Http::to(&server), Http::to(&server), Http::to(&server));
        assert_eq!(idle.get("/v2/health/ready").status, 200);
        assert!(begun.send(b"GET /v2 HTT"));
        let mut busy = Http::to(&server);
        ask_slowly(&mut busy, 8000, &[]);
        let client = server.client();
        eventually("it runs", || {
            client
                .status()
                .is_ok_and(|status| status.queue.requests == 1)
        });
        server.signal("TERM");
        eventually("it is not ready", || {
            let ready = other.get("/v2/health/ready");
            let retry_after = (ready.status == 503).then(|| ready.header("retry-after"));
            assert_ne!(retry_after, Some(None), "{ready:?}");
            ready.status == 503 && ready.json() == json!({"ready": false})
        });
        let answer = other.post("/v2/models/echo/infer", &echo_request(1));
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (503, Some("1")),
            "{answer:?}"
        );
        assert_eq!(other.get("/v2/health/live").status, 200);
        assert_eq!(busy.answer().expect("an answer").status, 200);
        let answered = Instant::now();
        assert_eq!(server.wait().code(), Some(0));
        assert!(
            answered.elapsed() < Duration::from_secs(10),
            "{:?}",
            answered.elapsed()
        );
        assert!(idle.is_closed() && begun.is_closed());
    });
}

/// The system takes some megabytes of an answer by itself, so it has to be larger than that.
#[test]
fn a_drain_waits_for_a_client_that_reads_its_answer_slowly() {
    const ROWS: usize = 2048;
    within(LIMIT, || {
        let mut server = server(&["--preload", "wide"]);
        let bytes = ROWS * 4096 * 4;
        let header = json!({
            "inputs": [{
                "name": "x", "datatype": "FP32", "shape": [ROWS, 4096],
                "parameters": {"binary_data_size": bytes},
            }],
            "parameters": {"binary_data_output": true},
        })
        .to_string();
        let mut body = header.clone().into_bytes();
        body.resize(header.len() + bytes, 0);
        let length = header.len().to_string();
        let headers = [("inference-header-content-length", length.as_str())];
        let mut http = Http::to(&server);
        let request = http.request_of("POST", "/v2/models/wide/infer", &headers, &body);
        assert!(http.send(&request));
        eventually("the answer comes", || http.has_answer());
        server.signal("TERM");
        let mut stream = http.into_stream();
        let (mut received, mut piece) = (0, vec![0; 256 * 1024]);
        loop {
            match stream.read(&mut piece).expect("the whole answer") {
                0 => break,
                read => received += read,
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        assert!(received > bytes, "{received} of more than {bytes} bytes");
        assert_eq!(server.wait().code(), Some(0));
    });
}

#[test]
fn an_immediate_stop_tells_who_waits() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "slow"]);
        let mut busy = Http::to(&server);
        ask_slowly(&mut busy, 40_000, &[]);
        let client = server.client();
        eventually("it runs", || {
            client
                .status()
                .is_ok_and(|status| status.queue.requests == 1)
        });
        let stop = mdm::wire::client::StopMode::Now;
        client.terminate(stop, PATIENCE, |_| {}).expect("it stops");
        let answer = busy.answer().expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(server.wait().code(), Some(0));
    });
}

#[test]
fn a_port_in_use_is_told_and_nothing_is_left_behind() {
    within(LIMIT, || {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let dir = crate::common::models(&[]);
        let output = crate::common::command("mdm-server-start")
            .args(["--port", "0", "--port-out", "0", "--http-port", &port])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(&format!("--http-port {port}: the port is in use")),
            "{said}"
        );
        let left = std::fs::read_dir(dir.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["models"]);
    });
}
