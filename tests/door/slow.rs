//! Peers that crawl, stall, flood or are many, and an honest one beside them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{PATIENCE, processor_time, within};
use crate::grpc::{Client, mlp};
use crate::http::Http;
use crate::infer::rows;
use crate::{LIMIT, echo_request, server, server_of};

#[test]
fn a_head_or_a_body_that_does_not_come_ends_its_connection_and_idle_ones_stay() {
    within(LIMIT, || {
        let server = server(&[]);
        let (mut idle, mut honest) = (Http::to(&server), Http::to(&server));
        let mut silent = Http::to(&server);
        let memory = server.resident_bytes();
        assert_eq!(idle.get("/v2").status, 200);
        let mut body = Http::to(&server);
        assert!(body.send(b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"));
        // Less than tells one version of HTTP from the other.
        let mut letter = Http::to(&server);
        assert!(letter.send(b"P"));
        let mut head = Http::to(&server);
        let started = Instant::now();
        assert!(head.send(b"GET /v2 HTTP/1.1\r\nhost: loc"));
        let mut closed = false;
        while !closed && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(500));
            closed = !head.send(b"x");
            assert_eq!(honest.get("/v2/health/live").status, 200);
        }
        assert!(closed, "a head of an hour is read to its end");
        let answer = body.answer().expect("an answer");
        assert_eq!(answer.status, 408, "{answer:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(letter.is_closed());
        let grown = server.resident_bytes().saturating_sub(memory);
        assert!(grown < 16 << 20, "{grown} bytes more");
        assert_eq!(idle.get("/v2").status, 200);
        assert_eq!(silent.get("/v2").status, 200);
    });
}

#[test]
fn uploads_that_drip_lock_nobody_out_and_make_room_for_who_is_faster() {
    within(LIMIT, || {
        let flags = [
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--max-request-bytes",
            "8MiB",
            "--max-unfinished-bytes",
            "16MiB",
        ];
        let server = server_of(&flags);
        let mut honest = Http::to(&server);
        let small = |honest: &mut Http| {
            let answer = honest.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200, "{answer:?}");
        };
        small(&mut honest);
        let mut dripping: Vec<Http> = (0..3).map(|_| Http::to(&server)).collect();
        let megabytes = [6, 6, 4];
        for (http, megabytes) in dripping.iter_mut().zip(megabytes) {
            let head = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n\
                        content-length: 8388608\r\n\r\n";
            assert!(http.send(head.as_bytes()));
            assert!(http.send(&vec![b' '; (megabytes << 20) - 13]));
        }
        for _ in 0..8 {
            small(&mut honest);
            for http in &mut dripping {
                http.send(b" ");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut client = Client::to(&server).await;
            client.infer(mlp(&rows(1))).await.expect("an answer");
        });
        // What is large is let in, too: those that drip have had their time.
        let rows = 128; // 2 MiB
        let input = json!({
            "name": "x", "datatype": "FP32", "shape": [rows, 4096],
            "parameters": {"binary_data_size": rows * 4096 * 4},
        });
        let json = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
        let values = vec![0; rows * 4096 * 4];
        let answer = honest.post_binary("/v2/models/wide/infer", &json, &values);
        assert_eq!(answer.status, 200);
        let told = dripping.iter_mut().filter(|http| http.has_answer());
        let told: Vec<_> = told.map(|http| http.answer().expect("an answer")).collect();
        assert!(matches!(told.len(), 1 | 2), "{told:?}");
        for answer in told {
            assert_eq!(answer.status, 429, "{answer:?}");
            assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
            assert!(answer.error().contains("slowest"), "{answer:?}");
        }
    });
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_is_read() {
    within(LIMIT, || {
        let server = server(&["--max-request-bytes", "1MiB"]);
        for more in ["", "expect: 100-continue\r\n"] {
            let mut http = Http::to(&server);
            let head = format!(
                "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000000\r\n{more}\r\n"
            );
            assert!(http.send(head.as_bytes()));
            let answer = http.answer().expect("an answer");
            assert_eq!(answer.status, 413, "{answer:?}");
            assert!(answer.error().contains("--max-request-bytes"));
        }
        // One that does not say how long it is, and never ends.
        let mut http = Http::to(&server);
        let head = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(http.send(head.as_bytes()));
        let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
        for _ in 0..32 {
            if !http.send(&chunk) {
                break;
            }
        }
        let answer = http.answer().expect("an answer");
        assert_eq!(answer.status, 413, "{answer:?}");
        // A client that sends all of it gets to read why, and may go on.
        let mut http = Http::to(&server);
        let answer = http.request("POST", "/v2/models/echo/infer", &[], &vec![b' '; 2 << 20]);
        assert_eq!(answer.status, 413, "{answer:?}");
    });
}

#[test]
fn two_hundred_connections_at_once_get_their_own_answers() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2", "--door-threads", "2"]);
        let mut all: Vec<Http> = (0..200).map(|_| Http::to(&server)).collect();
        let mut memory = 0;
        for _ in 0..6 {
            for (number, http) in all.iter_mut().enumerate() {
                let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number, 1, 2, 3]});
                let body = json!({"id": number.to_string(), "inputs": [input]}).to_string();
                http.ask("POST", "/v2/models/echo/infer", &[], body.as_bytes());
            }
            for (number, http) in all.iter_mut().enumerate() {
                let answer = http.answer().expect("an answer");
                assert_eq!(answer.status, 200, "{answer:?}");
                let read = answer.json();
                assert_eq!(read["id"], json!(number.to_string()));
                assert_eq!(read["outputs"][0]["data"][0].as_f64(), Some(number as f64));
            }
            if memory == 0 {
                memory = server.resident_bytes();
            }
        }
        let grown = server.resident_bytes().saturating_sub(memory);
        assert!(
            grown < 8 << 20,
            "{grown} bytes more after five times as many"
        );
    });
}

#[test]
fn connections_beyond_the_most_are_turned_away_with_a_word() {
    within(LIMIT, || {
        let server = server(&["--max-sessions", "3"]);
        let mut all: Vec<Http> = (0..3).map(|_| Http::to(&server)).collect();
        for http in &mut all {
            assert_eq!(http.get("/v2").status, 200);
        }
        let mut fourth = Http::to(&server);
        let answer = fourth.answer().expect("an answer");
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (503, Some("1"))
        );
        assert!(answer.error().contains("too many connections"));
        drop(all.pop());
        crate::common::eventually("there is room again", || {
            let mut http = Http::to(&server);
            http.send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
                && http.answer().is_some_and(|a| a.status == 200)
        });
    });
}

#[test]
fn answers_that_nobody_reads_are_bounded_and_hold_nobody_up() {
    within(LIMIT, || {
        let server = server(&["--preload", "wide"]);
        let mut honest = Http::to(&server);
        let rows = 1024; // 16 MiB
        let input = json!({
            "name": "x", "datatype": "FP32", "shape": [rows, 4096],
            "parameters": {"binary_data_size": rows * 4096 * 4},
        });
        let json =
            json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
        let length = json.len().to_string();
        let headers = [("Inference-Header-Content-Length", length.as_str())];
        let body = [json.as_bytes(), &vec![0; rows * 4096 * 4]].concat();
        let mut deaf: Vec<Http> = (0..4).map(|_| Http::to(&server)).collect();
        for http in &mut deaf {
            http.ask("POST", "/v2/models/wide/infer", &headers, &body);
        }
        for _ in 0..20 {
            let answer = honest.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200);
        }
        for http in &mut deaf {
            let answer = http.answer().expect("an answer");
            assert_eq!(
                (answer.status, answer.parts().1.len()),
                (200, rows * 4096 * 4)
            );
        }
    });
}

#[test]
fn parts_that_nobody_reads_end_their_request_at_the_bound() {
    within(LIMIT, || {
        let bound = ["--max-client-bytes", "8MiB", "--max-batch-size", "64"];
        let server = server(&[&bound[..], &["--preload", "wide"]].concat());
        let mut honest = Http::to(&server);
        let rows = 4096; // 64 MiB, and several times that as JSON
        let input = json!({
            "name": "x", "datatype": "FP32", "shape": [rows, 4096],
            "parameters": {"binary_data_size": rows * 4096 * 4},
        });
        let json = json!({"inputs": [input]}).to_string();
        let length = json.len().to_string();
        let headers = [
            ("Inference-Header-Content-Length", length.as_str()),
            ("Accept", "text/event-stream"),
        ];
        let body = [json.as_bytes(), &vec![0; rows * 4096 * 4]].concat();
        let mut deaf = Http::to(&server);
        deaf.ask("POST", "/v2/models/wide/infer", &headers, &body);
        drop(body);
        crate::common::eventually("its request has ended", || {
            let answer = honest.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200);
            server.client().status().expect("a status").queue.requests == 0
        });
        let answer = deaf.answer().expect("an answer");
        assert_eq!(answer.status, 200);
        let mut events = crate::events::events(&answer.body);
        let (name, error) = events.pop().expect("an end");
        assert_eq!(name, "error", "{} parts came", events.len());
        let message = error["error"].as_str().expect("a message");
        assert!(message.contains("--max-client-bytes"), "{message}");
    });
}

#[test]
fn two_thousand_idle_connections_cost_little_and_no_processor_time() {
    within(LIMIT, || {
        // The doors take a quarter of what the system allows; where that is little, fewer connections show the same.
        let limit = rlimit::increase_nofile_limit(8192).unwrap_or(0) as usize;
        let count = (limit / 4).saturating_sub(16).min(2000);
        assert!(count >= 200, "this system allows {limit} descriptors");
        println!("{count} idle connections");
        let server = server(&["--preload", "echo"]);
        let mut honest = Http::to(&server);
        assert_eq!(
            honest
                .post("/v2/models/echo/infer", &echo_request(1))
                .status,
            200
        );
        let memory = server.resident_bytes();
        let mut idle: Vec<Http> = (0..count).map(|_| Http::to(&server)).collect();
        for http in &mut idle {
            assert_eq!(http.get("/v2").status, 200);
        }
        let grown = server.resident_bytes().saturating_sub(memory);
        assert!(grown < count as u64 * 32 * 1024, "{grown}");
        let used = processor_time(server.pid());
        std::thread::sleep(Duration::from_secs(3));
        let used = processor_time(server.pid()) - used;
        assert!(used < Duration::from_millis(300), "{used:?}");
        assert_eq!(
            honest
                .post("/v2/models/echo/infer", &echo_request(1))
                .status,
            200
        );
        for http in idle.iter_mut().take(10) {
            assert_eq!(http.get("/v2").status, 200);
        }
        // What they held is free for as many others.
        let memory = server.resident_bytes();
        drop(idle);
        crate::common::eventually("they are closed", || {
            let page = String::from_utf8(honest.get("/metrics").body).expect("text");
            let own = "mdm_connections{door=\"http\"} 1";
            page.lines().any(|line| line == own)
        });
        let mut others: Vec<Http> = (0..count).map(|_| Http::to(&server)).collect();
        for http in &mut others {
            assert_eq!(http.get("/v2").status, 200);
        }
        let grown = server.resident_bytes().saturating_sub(memory);
        // What a connection costs is more than that; the rest is how malloc's free pieces lie (8.1 KiB each were seen once).
        assert!(grown < count as u64 * 12 * 1024, "{grown} bytes more");
    });
}
