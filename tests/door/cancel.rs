//! A client that goes away takes its request with it.

use serde_json::json;

use crate::common::{Server, eventually, within};
use crate::grpc::with_server;
use crate::grpc_odd::{Whole, connect_to};
use crate::http::Http;
use crate::{LIMIT, server, slow_request};

/// A way to leave, and its name.
type Way = (&'static str, fn(Http));

/// Rows of a request that takes about ten seconds.
const ROWS: usize = 40_000;

pub fn rows_run(server: &Server) -> u64 {
    let status = server.client().status().expect("a status");
    status.workers.iter().map(|worker| worker.rows).sum()
}

pub fn requests(server: &Server) -> u64 {
    server.client().status().expect("a status").queue.requests
}

pub fn cancelled(server: &Server) -> u64 {
    let status = server.client().status().expect("a status");
    status.totals.errors.get("CANCELLED").copied().unwrap_or(0)
}

/// Sends so many rows for the model "slow".
pub fn ask_slowly(http: &mut Http, rows: usize, headers: &[(&str, &str)]) {
    let (json, behind) = slow_request(rows);
    let json = json.to_string();
    let length = json.len().to_string();
    let mut all = vec![("Inference-Header-Content-Length", length.as_str())];
    all.extend(headers);
    http.ask(
        "POST",
        "/v2/models/slow/infer",
        &all,
        &[json.as_bytes(), &behind].concat(),
    );
}

#[test]
fn a_closed_or_half_closed_connection_cancels_what_waits_and_what_runs() {
    within(LIMIT, || {
        let server = server(&["--preload", "slow"]);
        let ways: [Way; 3] = [
            ("closed", drop),
            ("half closed", |mut http| {
                http.end_writing();
                assert!(http.is_closed());
            }),
            ("closed with events coming", |mut http| {
                assert_eq!(http.head().expect("an answer").status, 200);
            }),
        ];
        let mut all = 0;
        for (index, (way, leave)) in ways.into_iter().enumerate() {
            let mut http = Http::to(&server);
            let headers: &[_] = match way {
                "closed with events coming" => &[("accept", "text/event-stream")],
                _ => &[],
            };
            ask_slowly(&mut http, ROWS, headers);
            eventually("it runs", || requests(&server) == 1);
            leave(http);
            eventually("it is cancelled", || cancelled(&server) == index as u64 + 1);
            eventually("nothing runs", || requests(&server) == 0);
            all += ROWS as u64;
        }
        let run = rows_run(&server);
        assert!(run < all / 2, "{run} rows were run for nobody");
    });
}

#[test]
fn a_deadline_ends_a_request_with_504() {
    within(LIMIT, || {
        let server = server(&["--preload", "slow"]);
        let mut http = Http::to(&server);
        let (mut json, behind) = slow_request(ROWS);
        json["parameters"] = json!({"timeout": 50_000});
        let answer = http.post_binary("/v2/models/slow/infer", &json, &behind);
        assert_eq!(answer.status, 504, "{answer:?}");
        eventually("nothing runs", || requests(&server) == 0);
        let errors = server.client().status().expect("a status").totals.errors;
        assert_eq!(errors.get("DEADLINE_EXCEEDED"), Some(&1), "{errors:?}");
        // The run that was under way is counted when it ends; then nothing more is run, and most never was.
        let pause = || std::thread::sleep(std::time::Duration::from_millis(300));
        pause();
        let run = rows_run(&server);
        assert!(
            run < ROWS as u64 / 2,
            "{run} rows were run after its deadline"
        );
        pause();
        assert_eq!(rows_run(&server), run);
    });
}

/// Over HTTP/2 a request is taken back by itself; its connection goes on.
#[test]
fn a_stream_of_http2_that_is_reset_cancels_its_request_alone() {
    with_server(&["--http-port", "0", "--preload", "slow"], async |server| {
        let (mut client, _connection) = connect_to(server.http_port).await;
        let (json, behind) = slow_request(ROWS);
        let json = json.to_string();
        let request = hyper::Request::post("http://localhost/v2/models/slow/infer")
            .header("inference-header-content-length", json.len());
        let body = Whole::of([json.into_bytes(), behind].concat());
        let request = request.body(body).expect("a request");
        client.ready().await.expect("a connection");
        let waits = tokio::spawn(client.send_request(request));
        crate::grpc::eventually("it runs", || requests(server) == 1).await;
        waits.abort();
        crate::grpc::eventually("it is cancelled", || cancelled(server) == 1).await;
        crate::grpc::eventually("nothing runs", || requests(server) == 0).await;
        let run = rows_run(server);
        assert!(run < ROWS as u64 / 2, "{run} rows were run for nobody");
        let live = hyper::Request::get("http://localhost/v2/health/live");
        let live = live.body(Whole::of(Vec::new())).expect("a request");
        client.ready().await.expect("the same connection");
        let answer = client.send_request(live).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    });
}
