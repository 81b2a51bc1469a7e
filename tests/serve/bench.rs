//! `mdm-bench` against a real server: it sends as many requests as it says, and counts what comes of them. No time is
//! judged here; what is made of times is tested with a simulated clock, in the command's own tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mdm::DataType;
use serde_json::{Value, json};

use crate::commands::run;
use crate::common::csv::table;
use crate::common::{PATIENCE, Server, command, models, onnx, within};
use crate::models::{BUSY_ROWS, busy, busy_rows};
use crate::settled;

#[test]
fn bench_sends_and_counts_exactly_the_requests_that_it_is_told_to() {
    within(PATIENCE, || {
        let dir = models(&[
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("slow.onnx", busy()),
            ("slow.proxy", busy_rows("slow")),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let bench = |flags: &[&str]| {
            let usual = ["--warm-up", "0", "--csv", "table.csv"];
            let (code, out, said) = run("mdm-bench", &server, here, &[&usual, flags].concat());
            assert_eq!(code, Some(0), "{flags:?}: {said}");
            out
        };

        let out = bench(&[
            "--model",
            "two",
            "--requests",
            "40",
            "--concurrency",
            "1,8",
            "--rows-per-request",
            "1,30",
        ]);
        let cases = table(&here.join("table.csv"));
        let of = |name: &str| {
            let numbers = cases.iter().map(|case| case[name].parse::<u64>());
            numbers.collect::<Result<Vec<_>, _>>().expect("numbers")
        };
        assert_eq!(of("requests"), [40; 4]);
        assert_eq!(of("errors"), [0; 4]);
        assert_eq!(of("rows_per_request"), [1, 1, 30, 30]);
        assert_eq!(of("concurrency"), [1, 8, 1, 8]);
        assert_eq!(out.lines().count(), 2 + 4, "{out}");
        // And one to try, for each size.
        let totals = settled(&server.client()).totals;
        assert_eq!((totals.requests, totals.rows), (4 * 40 + 2, 81 * (1 + 30)));

        // An open loop whose rate no worker can keep up with leaves out nothing.
        let slow = "60000\n".repeat(BUSY_ROWS);
        std::fs::write(here.join("slow.jsonl"), slow).unwrap();
        let rows = ["--input", "slow.jsonl", "--rows-per-request", "17"];
        let load = ["--rate", "100000", "--concurrency", "4", "--requests", "30"];
        bench(&[&["--model", "slow"], &rows[..], &load].concat());
        let cases = table(&here.join("table.csv"));
        let field = |name: &str| cases[0][name].as_str();
        assert_eq!(
            (field("requests"), field("unsent"), field("errors")),
            ("30", "0", "0")
        );
        let after = settled(&server.client()).totals;
        assert_eq!(after.requests - totals.requests, 31);
    });
}

#[test]
fn bench_counts_errors_by_their_code() {
    within(PATIENCE, || {
        let server = Server::start(
            models(&[("words.onnx", onnx::echo(DataType::Bytes, &[]))]),
            &[],
        );
        let here = server.dir.path();
        // Every fourth request has a text that is not UTF-8.
        std::fs::write(here.join("words.txt"), b"one\ntwo\nthree\nfo\xffr\n").unwrap();
        let flags = [
            "--model",
            "words",
            "--input",
            "words.txt",
            "--concurrency",
            "3",
        ];
        let counted = ["--requests", "100", "--warm-up", "0", "--csv", "table.csv"];
        let (code, out, said) = run("mdm-bench", &server, here, &[flags, counted].concat());
        assert_eq!(code, Some(0), "{said}");
        let case = &table(&here.join("table.csv"))[0];
        assert_eq!((&*case["requests"], &*case["errors"]), ("100", "25"));
        assert_eq!(case["error_codes"], "INVALID_ARGUMENT=25");
        assert!(out.contains("25 times INVALID_ARGUMENT, first: "), "{out}");
        let totals = settled(&server.client()).totals;
        assert_eq!(
            (totals.requests, totals.errors["INVALID_ARGUMENT"]),
            (101, 25)
        );
    });
}

#[test]
fn bench_says_in_one_line_what_is_wrong() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
            ("whole.onnx", onnx::no_batch()),
        ]);
        let server = Server::start(dir, &[]);
        let here = server.dir.path();
        std::fs::write(here.join("wrong.jsonl"), "[1,2,3]\n").unwrap();
        std::fs::write(here.join("texts.txt"), "a\n").unwrap();
        let wrong: [(&[&str], &str); 6] = [
            (&["--model", "no_such"], "\"no_such\""),
            (&["--model", "echo", "--input", "gone.npy"], "gone.npy"),
            (&["--model", "echo", "--input", "wrong.jsonl"], "line 1"),
            (
                &["--model", "echo", "--input", "texts.txt"],
                "a first request",
            ),
            (
                &["--model", "whole", "--rows-per-request", "2"],
                "leave --rows-per-request out",
            ),
            (
                &["--model", "echo", "--concurrency", "9999"],
                "--concurrency 9999",
            ),
        ];
        for (flags, words) in wrong {
            let (code, _, said) = run("mdm-bench", &server, here, flags);
            assert_eq!(
                (code, said.lines().count()),
                (Some(1), 1),
                "{flags:?}: {said}"
            );
            assert!(said.contains(words), "{words:?} is not in: {said}");
        }
        for flags in [
            &["--model", "echo", "--rate", "0"],
            &["--model", "echo", "--rows", "x"],
        ] {
            assert_eq!(
                run("mdm-bench", &server, here, &flags[..]).0,
                Some(2),
                "{flags:?}"
            );
        }
    });
}

/// A server that speaks as much of the Open Inference Protocol as is asked of it, and takes a model that is not there.
#[derive(Default)]
struct FakeRest {
    /// Requests for an infer.
    asked: AtomicUsize,
    /// Connections on which there was at least one.
    connections: AtomicUsize,
    /// What all their bodies held beside the JSON, in bytes.
    binary: AtomicUsize,
    /// As many connections have to have asked before the second request of any is answered: else one may take all the
    /// requests before another has begun.
    together: AtomicUsize,
}

impl FakeRest {
    /// The address, and what was counted.
    fn start() -> (String, Arc<FakeRest>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let fake = Arc::new(FakeRest::default());
        let counted = Arc::clone(&fake);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let fake = Arc::clone(&fake);
                std::thread::spawn(move || fake.serve(stream.expect("a connection")));
            }
        });
        (url, counted)
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut is_new = true;
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let number = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.map(|value| value.trim().parse::<usize>().expect("a number"))
            };
            let mut body = vec![0; number("Content-Length:").unwrap_or(0)];
            reader.read_exact(&mut body).expect("a body");
            let json_bytes = number("Inference-Header-Content-Length:").unwrap_or(body.len());
            let (status, answer) = match head.split(' ').nth(1).expect("a path") {
                "/v2/models/m" | "/v2/models/once" => (200, metadata()),
                "/v2/models/m/stats" => (200, self.statistics()),
                "/v2/models/m/infer" => {
                    let request: Value = serde_json::from_slice(&body[..json_bytes]).expect("JSON");
                    assert_eq!(request["inputs"][0]["shape"], json!([3, 2]), "{request}");
                    self.connections
                        .fetch_add(usize::from(is_new), Ordering::SeqCst);
                    if !is_new {
                        self.wait_for_others();
                    }
                    is_new = false;
                    self.binary
                        .fetch_add(body.len() - json_bytes, Ordering::SeqCst);
                    match self.asked.fetch_add(1, Ordering::SeqCst) % 5 {
                        4 => (503, json!({"error": "too much"})),
                        _ => (200, json!({"outputs": []})),
                    }
                }
                "/v2/models/once/infer" => match self.asked.fetch_add(1, Ordering::SeqCst) {
                    0 => (200, json!({"outputs": []})),
                    _ => (500, json!({"error": "worn out"})),
                },
                _ => (404, json!({"error": "Request for unknown model"})),
            };
            let answer = answer.to_string();
            let length = answer.len();
            let answer =
                format!("HTTP/1.1 {status} So\r\nContent-Length: {length}\r\n\r\n{answer}");
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn wait_for_others(&self) {
        let end = Instant::now() + PATIENCE / 2;
        let missing =
            || self.connections.load(Ordering::SeqCst) < self.together.load(Ordering::SeqCst);
        while missing() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A second in the queue and three in the model for each request, long before that they took so long.
    fn statistics(&self) -> Value {
        let count = self.asked.load(Ordering::SeqCst) as u64;
        let counter = |seconds| json!({"count": count, "ns": count * seconds * 1_000_000_000});
        json!({"model_stats": [{"inference_stats": {"queue": counter(1), "compute_infer": counter(3)}}]})
    }
}

fn metadata() -> Value {
    json!({
        "name": "m",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [],
    })
}

#[test]
fn bench_ends_where_nothing_succeeds_and_tells_what_was_measured() {
    within(PATIENCE, || {
        let dir = models(&[]);
        let (url, _) = FakeRest::start();
        let output = command("mdm-bench")
            .current_dir(dir.path())
            .args(["--url", &url, "--model", "once", "--concurrency", "2,4"])
            .args(["--requests", "30", "--warm-up", "0", "--csv", "table.csv"])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("no request succeeded"), "{said}");
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains("30 times HTTP-500, first: worn out"), "{out}");
        let cases = table(&dir.path().join("table.csv"));
        assert_eq!((cases.len(), &*cases[0]["errors"]), (1, "30"), "{cases:?}");
    });
}

/// On a terminal, which Python makes, there is a bar while it measures; it is gone at the end.
#[cfg(unix)]
#[test]
fn bench_shows_its_progress_on_a_terminal() {
    within(PATIENCE, || {
        let (url, _) = FakeRest::start();
        let bench = command("mdm-bench");
        let spawn =
            "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        let output = std::process::Command::new("python3")
            .args(["-c", spawn])
            .arg(bench.get_program())
            .args(["--url", &url, "--model", "m", "--rows-per-request", "3"])
            .args(["--duration", "1", "--warm-up", "0"])
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null())
            .output()
            .expect("make test needs python3");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}");
        assert!(shown.contains(" %, "), "{shown}");
        let last = shown.trim_end().rsplit('\n').next().unwrap();
        assert!(last.contains("times HTTP-503"), "{shown}");
    });
}

#[test]
fn bench_drives_any_server_of_the_open_inference_protocol() {
    within(PATIENCE, || {
        let dir = models(&[]);
        let bench = |flags: &[&str]| {
            let mut bench = command("mdm-bench");
            bench.current_dir(dir.path()).args(flags);
            bench.output().expect("it runs")
        };
        for (encoding, binary) in [(&[][..], 51 * 3 * 2 * 4), (&["--json"], 0)] {
            let (url, counted) = FakeRest::start();
            // One to try, on a connection of its own, and four.
            counted.together.store(5, Ordering::SeqCst);
            let flags = ["--url", &url, "--model", "m", "--rows-per-request", "3"];
            let extent = ["--requests", "50", "--concurrency", "4", "--warm-up", "0"];
            let files = ["--csv", "table.csv", "--plot", "plot.svg"];
            let output = bench(&[&flags[..], &extent, &files, encoding].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let case = &table(&dir.path().join("table.csv"))[0];
            assert_eq!((&*case["requests"], &*case["errors"]), ("50", "10"));
            assert_eq!(case["error_codes"], "HTTP-503=10");
            assert_eq!(
                (&*case["queue_us"], &*case["run_us"]),
                ("1000000.000", "3000000.000")
            );
            assert_eq!(counted.asked.load(Ordering::SeqCst), 51);
            assert_eq!(counted.connections.load(Ordering::SeqCst), 5);
            assert_eq!(counted.binary.load(Ordering::SeqCst), binary);
            let plot = std::fs::read_to_string(dir.path().join("plot.svg")).expect("the plot");
            assert!(plot.contains("3 rows, p99"), "{plot}");

            let output = bench(&["--url", &url, "--model", "no_such"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(
                said.contains("HTTP 404: Request for unknown model"),
                "{said}"
            );
        }
    });
}
