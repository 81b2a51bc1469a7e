//! `mdm-bench` at every door: it sends what it says that it sends, and what it counts is what the server counted. Over
//! gRPC also against a server that is not ours, and not always well.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::process::Output;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use h2::server::SendResponse;
use hyper::{HeaderMap, Request, Response};
use mdm::DataType;
use prost::Message;
use tokio::net::TcpListener;

use crate::common::csv::table;
use crate::common::{self, Server, command, onnx, within};
use crate::grpc::protocol::model_metadata_response::TensorMetadata;
use crate::grpc::protocol::*;
use crate::http::Http;
use crate::{LIMIT, built};

/// The doors, and what is typed to share connections where that can be.
const DOORS: [(&str, &[&str]); 3] = [
    ("zmq", &[]),
    ("http", &[]),
    ("grpc", &["--connections", "2"]),
];

/// A server with all doors, whose model "pause" takes 5 ms a row on its only worker.
fn server() -> Server {
    let plugin = std::fs::read(built::plugin("echo_plugin")).expect("the example's plugin");
    let pause = r#"{"mdm": 1, "plugin": "libecho.so", "entry": "pause", "state": {"ms": 5}}"#;
    let folder = common::models(&[
        ("mlp.onnx", onnx::mlp()),
        ("words.onnx", onnx::echo(DataType::Bytes, &[])),
        ("libecho.so", plugin),
        ("pause.proxy", pause.as_bytes().to_vec()),
    ]);
    let doors = ["--http-port", "0", "--grpc-port", "0"];
    Server::start(folder, &[&doors[..], &["--max-batch-size", "1"]].concat())
}

/// Runs it at one of a server's doors, and gives the lines of its table.
fn bench(server: &Server, door: &str, flags: &[&str]) -> Vec<HashMap<String, String>> {
    let dir = server.dir.path();
    let port = match door {
        "http" => server.http_port,
        "grpc" => server.grpc_port,
        _ => server.port,
    };
    let mut bench = command("mdm-bench");
    bench
        .current_dir(dir)
        .args(["--ip", "127.0.0.1", "--port", &port.to_string()])
        .args(["--door", door, "--warm-up", "0", "--csv", "table.csv"])
        .args(flags);
    let output = bench.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{door} {flags:?}: {said}");
    table(&dir.join("table.csv"))
}

/// What the server's metrics say of a model's requests at a door: how many, their rows, and those that were refused.
fn counted(server: &Server, model: &str, door: &str) -> [u64; 3] {
    let page = Http::to(server).get("/metrics").body;
    let page = String::from_utf8(page).expect("text");
    let labels = format!("{{model=\"{model}\",door=\"{door}\"");
    let sum = |name: &str, last: &str| {
        let series = format!("{name}{labels}{last}");
        let lines = page.lines().filter(|line| line.starts_with(&series));
        let values = lines.map(|line| line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok()));
        values.map(|value| value.expect("a whole number")).sum()
    };
    [
        sum("mdm_requests_total", "}"),
        sum("mdm_rows_total", "}"),
        sum("mdm_request_errors_total", ",code=\"INVALID_ARGUMENT\"}"),
    ]
}

fn number(case: &HashMap<String, String>, name: &str) -> u64 {
    let number = case[name].parse::<f64>();
    number.unwrap_or_else(|_| panic!("{name} in {case:?}")) as u64
}

#[test]
fn bench_and_the_servers_metrics_count_the_same_at_every_door() {
    within(LIMIT, || {
        let server = server();
        // Every fourth request has a text that is not UTF-8.
        let words = server.dir.path().join("words.txt");
        std::fs::write(&words, b"one\ntwo\nthree\nfo\xffr\n").unwrap();
        for (door, shared) in DOORS {
            let flags = [
                "--model",
                "mlp",
                "--requests",
                "120",
                "--concurrency",
                "1,8",
            ];
            let rows = ["--rows-per-request", "1,30"];
            let cases = bench(&server, door, &[&flags[..], &rows, shared].concat());
            let all = |name: &str| cases.iter().map(|c| number(c, name)).collect::<Vec<_>>();
            assert_eq!(all("requests"), [120; 4], "{door}");
            assert_eq!(all("errors"), [0; 4], "{door}");
            // And one to try, for each number of rows.
            let expected = [4 * 120 + 2, (2 * 120 + 1) * (1 + 30), 0];
            assert_eq!(counted(&server, "mlp", door), expected, "{door}");

            let flags = [
                "--model",
                "words",
                "--requests",
                "100",
                "--concurrency",
                "6",
            ];
            let cases = bench(
                &server,
                door,
                &[&flags[..], &["--input", "words.txt"], shared].concat(),
            );
            assert_eq!(number(&cases[0], "errors"), 25, "{door}");
            let code = match door {
                "http" => "HTTP-400=25",
                _ => "INVALID_ARGUMENT=25",
            };
            assert_eq!(cases[0]["error_codes"], code);
            assert_eq!(counted(&server, "words", door), [101, 76, 25], "{door}");
        }
    });
}

#[test]
fn a_model_that_takes_5_ms_is_measured_at_every_door_past_what_it_can_do() {
    within(LIMIT, || {
        let server = server();
        let mut due = Vec::new();
        for (door, shared) in DOORS {
            let flags = ["--model", "pause", "--concurrency", "4", "--requests", "40"];
            let case = &bench(&server, door, &[&flags[..], shared].concat())[0];
            assert_eq!(
                (number(case, "requests"), number(case, "errors")),
                (40, 0),
                "{door}"
            );
            assert!(number(case, "p50_us") >= 5_000, "{door}: {case:?}");
            assert!(number(case, "requests_per_s") <= 200, "{door}: {case:?}");
            assert_eq!(counted(&server, "pause", door), [41, 41, 0], "{door}");

            // Five times as many are due as it can take; none is left out, and all wait from when they were due.
            let flags = ["--model", "pause", "--concurrency", "4", "--rate", "1000"];
            let extent = ["--duration", "1"];
            let case = &bench(&server, door, &[&flags[..], &extent, shared].concat())[0];
            let (sent, unsent) = (number(case, "requests"), number(case, "unsent"));
            assert_eq!(number(case, "errors"), 0, "{door}");
            assert_eq!(&*case["saturated"], "true", "{door}: {case:?}");
            assert!(sent <= 410 && unsent >= 400, "{door}: {case:?}");
            // The request of a number is sent at least 5 ms times that number, less the four in flight, after the
            // first, and is due about 1 ms times it.
            assert!(number(case, "late_us") > 50_000, "{door}: {case:?}");
            let [requests, rows, _] = counted(&server, "pause", door);
            assert_eq!((requests, rows), (42 + sent, 42 + sent), "{door}");
            due.push(sent + unsent);
        }
        // The same requests become due whatever the server does.
        assert!(due.iter().all(|&all| all == due[0]), "{due:?}");
        assert!((850..1150).contains(&due[0]), "{due:?}");
    });
}

/// A server that speaks as much of gRPC as is asked of it, and takes a model that is not there.
#[derive(Default)]
struct Fake {
    /// Requests for an infer.
    asked: AtomicUsize,
    /// Connections on which there was at least one.
    connections: AtomicUsize,
}

/// What the calls of a connection share.
#[derive(Default)]
struct State {
    /// There was an infer on it.
    is_used: Cell<bool>,
    /// It is to take no more.
    is_last: Cell<bool>,
}

/// How a call of it ends.
enum End {
    Good(Vec<u8>),
    Status(&'static str),
    Reset,
    NoStatus,
    Never,
    /// The connection takes no more calls.
    Last(Vec<u8>),
}

impl Fake {
    /// Its URL, and what it counted.
    fn start() -> (String, Arc<Fake>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("grpc://{}", listener.local_addr().expect("an address"));
        let fake = Arc::new(Fake::default());
        let counted = Arc::clone(&fake);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                loop {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    tokio::task::spawn_local(Arc::clone(&fake).serve(stream));
                }
            });
        });
        (url, counted)
    }

    async fn serve(self: Arc<Fake>, stream: tokio::net::TcpStream) {
        let mut connection = h2::server::handshake(stream).await.expect("a handshake");
        let state = Rc::new(State::default());
        let next = async |connection: &mut h2::server::Connection<_, Bytes>| {
            poll_fn(|cx| {
                // Whoever answers wakes this.
                if state.is_last.take() {
                    connection.graceful_shutdown();
                }
                connection.poll_accept(cx)
            })
            .await
        };
        while let Some(Ok((request, respond))) = next(&mut connection).await {
            let (fake, state) = (Arc::clone(&self), Rc::clone(&state));
            tokio::task::spawn_local(fake.call(state, request, respond));
        }
    }

    async fn call(
        self: Arc<Fake>,
        state: Rc<State>,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (path, message) = read(request).await;
        let end = match path.rsplit('/').next() {
            Some("ModelMetadata") => metadata(),
            Some("ModelStatistics") => self.statistics(),
            Some("ModelInfer") => {
                let is_first = !state.is_used.replace(true);
                self.connections
                    .fetch_add(usize::from(is_first), Ordering::SeqCst);
                self.infer(&message)
            }
            _ => End::Status("12"),
        };
        state.is_last.set(matches!(end, End::Last(_)));
        match end {
            End::Never => std::mem::forget(respond),
            End::Reset => respond.send_reset(h2::Reason::REFUSED_STREAM),
            end => answer(respond, end),
        }
    }

    fn infer(&self, message: &[u8]) -> End {
        let request = ModelInferRequest::decode(&message[5..]).expect("a request");
        assert_eq!(request.inputs[0].shape, [3, 2]);
        assert_eq!(request.raw_input_contents[0].len(), 3 * 2 * 4);
        let good = ModelInferResponse::default().encode_to_vec();
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        match (&*request.model_name, number) {
            ("odd", number) if number % 10 == 3 => End::Status("14"),
            ("odd", number) if number % 10 == 5 => End::Reset,
            ("odd", number) if number % 10 == 7 => End::NoStatus,
            ("silent", 1..) => End::Never,
            ("short", number) if number % 5 == 4 => End::Last(good),
            _ => End::Good(good),
        }
    }

    /// A second in the queue and three in the model for each request, long before that they took so long.
    fn statistics(&self) -> End {
        let count = self.asked.load(Ordering::SeqCst) as u64;
        let counter = |seconds| StatisticDuration {
            count,
            ns: count * seconds * 1_000_000_000,
        };
        let stats = InferStatistics {
            queue: Some(counter(1)),
            compute_infer: Some(counter(3)),
            ..InferStatistics::default()
        };
        let model = ModelStatistics {
            inference_stats: Some(stats),
            ..ModelStatistics::default()
        };
        End::Good(
            ModelStatisticsResponse {
                model_stats: vec![model],
            }
            .encode_to_vec(),
        )
    }
}

fn metadata() -> End {
    let input = TensorMetadata {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![-1, 2],
    };
    let metadata = ModelMetadataResponse {
        inputs: vec![input],
        ..ModelMetadataResponse::default()
    };
    End::Good(metadata.encode_to_vec())
}

async fn read(request: Request<h2::RecvStream>) -> (String, Vec<u8>) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        message.extend_from_slice(&piece);
    }
    (path, message)
}

fn answer(mut respond: SendResponse<Bytes>, end: End) {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let message = match end {
        End::Good(message) | End::Last(message) => message,
        End::Status(code) => {
            headers.insert("grpc-status", code.parse().unwrap());
            headers.insert("grpc-message", "too%20much".parse().unwrap());
            let mut response = Response::new(());
            *response.headers_mut() = headers;
            respond.send_response(response, true).expect("sent");
            return;
        }
        _ => {
            trailers.clear();
            Vec::new()
        }
    };
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    let mut body = respond.send_response(response, false).expect("sent");
    let mut framed = vec![0];
    framed.put_u32(message.len() as u32);
    framed.extend(message);
    if trailers.is_empty() {
        body.send_data(framed.into(), true).expect("sent");
    } else {
        body.send_data(framed.into(), false).expect("sent");
        body.send_trailers(trailers).expect("sent");
    }
}

/// Runs it against the fake, with requests of three rows.
fn against(url: &str, dir: &std::path::Path, flags: &[&str]) -> Output {
    let mut bench = command("mdm-bench");
    bench
        .current_dir(dir)
        .args(["--url", url, "--rows-per-request", "3", "--warm-up", "0"])
        .args(["--csv", "table.csv"])
        .args(flags);
    bench.output().expect("it runs")
}

#[test]
fn bench_counts_statuses_over_grpc_and_shares_connections_as_it_is_told() {
    within(LIMIT, || {
        let dir = tempfile::tempdir().expect("a folder");
        for (connections, opened) in [(&[][..], 4), (&["--connections", "2"], 2)] {
            let (url, fake) = Fake::start();
            let flags = ["--model", "odd", "--requests", "50", "--concurrency", "4"];
            let output = against(&url, dir.path(), &[&flags[..], connections].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let case = &table(&dir.path().join("table.csv"))[0];
            assert_eq!((&*case["requests"], &*case["errors"]), ("50", "15"));
            assert_eq!(case["error_codes"], "BAD-ANSWER=5 RESET=5 UNAVAILABLE=5");
            let out = String::from_utf8_lossy(&output.stdout);
            assert!(
                out.contains("5 times UNAVAILABLE, first: too much"),
                "{out}"
            );
            assert_eq!(
                (&*case["queue_us"], &*case["run_us"]),
                ("1000000.000", "3000000.000")
            );
            // One to try, on a connection of its own.
            assert_eq!(fake.asked.load(Ordering::SeqCst), 51);
            assert_eq!(fake.connections.load(Ordering::SeqCst), opened + 1);
        }
    });
}

#[test]
fn a_grpc_server_that_says_goodbye_is_connected_to_anew_and_a_silent_one_is_not_waited_for() {
    within(LIMIT, || {
        let dir = tempfile::tempdir().expect("a folder");
        let (url, fake) = Fake::start();
        let flags = ["--model", "short", "--requests", "60", "--concurrency", "1"];
        let output = against(&url, dir.path(), &flags);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let case = &table(&dir.path().join("table.csv"))[0];
        assert_eq!(
            (&*case["requests"], &*case["errors"]),
            ("60", "0"),
            "{output:?}"
        );
        let connections = fake.connections.load(Ordering::SeqCst);
        assert!(connections > 10, "{connections}");

        let (url, _) = Fake::start();
        let flags = ["--model", "silent", "--requests", "4", "--concurrency", "2"];
        let patience = ["--timeout-ms", "200"];
        let output = against(&url, dir.path(), &[&flags[..], &patience].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains("4 times TIMEOUT"), "{out}");

        // Nobody is there any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("grpc://{}", gone.local_addr().expect("an address"));
        drop(gone);
        let begun = std::time::Instant::now();
        let output = against(&url, dir.path(), &["--model", "m"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("CONNECTION") && said.contains("ModelMetadata"),
            "{said}"
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    });
}
