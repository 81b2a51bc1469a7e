//! The client against a server that behaves as each test wants.

mod fake;
mod lent;
mod shared;
#[path = "../common/within.rs"]
mod within;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use fake::{Act, Fake, Manners, echo, echoes};
use mdm::client::{Call, Client, Inputs, JsonRows, StopMode, StopOutcome};
use mdm::message::{Request, RequestId, Stats};
use mdm::wire::client::ClientMessage;
use mdm::wire::server::{Outputs, ServerMessage};
use mdm::{Batch, Error, ErrorCode, Tensor};
use within::within;

fn number(request: &Request) -> i64 {
    request.inputs.tensors[0].to_vec::<i64>().unwrap()[0]
}

#[test]
fn rows_of_every_kind_come_back() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(echoes);
        let client = server.client();
        let a = ndarray::arr2(&[[1f32, 2.], [3., 4.]]);
        let r = client.infer(&a, "echo").unwrap();
        assert_eq!(r.array::<f32>("").unwrap(), a.clone().into_dyn());
        assert_eq!(r.stats().chunks, 1);
        let r = client.infer(a.t(), "echo").unwrap();
        assert_eq!(r.view::<f32>("").unwrap(), a.t().into_dyn());
        let r = client.infer(("s", &["x", "yz"]), "echo").unwrap();
        assert_eq!(r.strings("s").unwrap(), ["x", "yz"]);
        let rows = [serde_json::json!({"k": [1, null]}), serde_json::json!("v")];
        let r = client.infer(JsonRows(&rows), "echo").unwrap();
        assert_eq!(r.json_rows::<serde_json::Value>("").unwrap(), rows);
        let inputs = Inputs::new()
            .with("a", &[true, false])
            .with("b", vec![1u16, 2]);
        let r = client.infer(inputs, Call::model("echo")).unwrap();
        assert_eq!(r.outputs().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(r.tensor("b").unwrap().to_vec::<u16>().unwrap(), [1, 2]);
    });
}

#[test]
fn a_call_travels_whole() {
    within(Duration::from_secs(20), || {
        let (sender, seen) = channel();
        let server = Fake::start(move |id, request| {
            sender.send(request.clone()).unwrap();
            echoes(id, request)
        });
        let client = server.client();
        let call = Call::model("tagger")
            .param("c_tag", "BD")
            .timeout(Duration::from_millis(1500))
            .high_priority();
        client.infer(&[1i64], call).unwrap();
        let request = seen.recv().unwrap();
        assert_eq!(request.model.as_deref(), Some("tagger"));
        assert_eq!(request.params["c_tag"], "BD");
        assert_eq!(request.timeout_ms, Some(1500));
        assert_eq!(request.priority, mdm::Priority::High);
        let call = serde_json::json!({"model": "m", "n": 3});
        client.infer(&[1i64], call).unwrap();
        let request = seen.recv().unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert_eq!(request.params.len(), 1);
        assert_eq!(request.timeout_ms, None);
        let e = client.infer(&[1i64], serde_json::json!([1])).unwrap_err();
        assert!(e.message().contains("JSON object"), "{e}");
    });
}

#[test]
fn the_servers_errors_keep_their_code_and_the_session_lives_on() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(|id, request| match number(&request) {
            0 => vec![Act::Out(
                id,
                ServerMessage::Error(Error::not_found("no model \"x\"")),
            )],
            _ => echoes(id, request),
        });
        let client = server.client();
        let e = client.infer(&[0i64], "x").unwrap_err();
        assert_eq!(
            (e.code(), e.message()),
            (ErrorCode::NotFound, "no model \"x\"")
        );
        client.infer(&[1i64], "x").unwrap();
        let e = client.load("y").unwrap_err();
        assert_eq!(e.code(), ErrorCode::NotFound);
        assert_eq!(client.status().unwrap().queue.requests, 3);
        assert!(client.models().unwrap().is_empty());
        assert_eq!(client.hello().unwrap().port_out, server.port_out);
        client.unload("y").unwrap();
    });
}

#[test]
fn a_vanished_server_fails_what_is_in_flight_at_once_and_the_next_call_opens_a_new_session() {
    within(Duration::from_secs(30), || {
        let server = Fake::start(|_, _| vec![Act::Vanish]);
        let port = server.port;
        let client = server.client();
        let start = Instant::now();
        let e = client.infer(&[1i64], "m").unwrap_err();
        assert_eq!(e.code(), ErrorCode::Unavailable, "{e}");
        assert!(e.message().contains("lost"), "{e}");
        assert!(start.elapsed() < Duration::from_secs(2));
        drop(server);
        let e = client.infer(&[1i64], "m").unwrap_err();
        assert!(e.message().contains("no server"), "{e}");
        // An idle session that was lost is not used; and many that end do not hold up those that come.
        for _ in 0..10 {
            let manners = Manners {
                port,
                ..Manners::default()
            };
            let _again = Fake::with(manners, echoes);
            let start = Instant::now();
            // The end of the last server's connection may be news that is still on its way: then one call is lost
            // with it, and no more.
            if client.infer(&[1i64], "m").is_err() {
                client.infer(&[1i64], "m").unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(2));
        }
    });
}

#[test]
fn a_servers_last_words_count() {
    within(Duration::from_secs(60), || {
        for _ in 0..20 {
            let server = Fake::start(|id, request| {
                let mut acts = echoes(id, request);
                acts.push(Act::Vanish);
                acts
            });
            let client = server.client();
            client.infer(&[1i64; 1000], "m").unwrap();
            assert!(client.infer(&[1i64], "m").is_err());
        }
    });
}

#[test]
fn no_server_says_so() {
    within(Duration::from_secs(20), || {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for address in [format!("tcp://localhost:{port}"), format!("[::1]:{port}")] {
            let start = Instant::now();
            let patient = Client::builder().connect_timeout(Duration::MAX);
            assert!(patient.connect(&address).is_err());
            let e = Client::connect(&address).unwrap_err();
            assert_eq!(e.code(), ErrorCode::Unavailable);
            assert!(e.message().contains("no server"), "{e}");
            assert!(start.elapsed() < Duration::from_secs(2), "{e}");
        }
        let e = Client::connect("ipc:///nonexistent/mdm-1.in").unwrap_err();
        assert!(e.message().contains("no server"), "{e}");
        let e = Client::connect("inproc://mdm-1.in").unwrap_err();
        assert_eq!(e.code(), ErrorCode::InvalidArgument);
        let e = Client::connect("tcp://no-such-host.invalid:5555").unwrap_err();
        assert!(e.message().contains("no-such-host.invalid"), "{e}");
    });
}

#[test]
fn a_listener_that_is_no_server_is_told_from_one() {
    within(Duration::from_secs(20), || {
        let quick = || Client::builder().connect_timeout(Duration::from_millis(500));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let start = Instant::now();
        let e = quick().connect(&format!("127.0.0.1:{port}")).unwrap_err();
        assert!(e.message().contains("does not speak ZeroMQ"), "{e}");
        assert!(start.elapsed() < Duration::from_secs(2));

        let web = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = web.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = web.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        });
        let e = quick().connect(&format!("127.0.0.1:{port}")).unwrap_err();
        assert!(e.message().contains("not an MDM server"), "{e}");

        // A ZeroMQ peer of another kind.
        let context = zmq::Context::new();
        let other = context.socket(zmq::ROUTER).unwrap();
        other.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = other.get_last_endpoint().unwrap().unwrap();
        let e = quick()
            .connect(endpoint.trim_end_matches('\0'))
            .unwrap_err();
        assert!(e.message().contains("does not answer hello"), "{e}");
    });
}

#[test]
fn swapped_ports_and_other_versions_are_named() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(echoes);
        let e = Client::connect(&format!("localhost:{}", server.port_out)).unwrap_err();
        assert_eq!(e.code(), ErrorCode::FailedPrecondition);
        assert!(e.message().contains("its port_out"), "{e}");

        #[derive(serde::Serialize)]
        struct Hello<'a> {
            v: u64,
            #[serde(rename = "type")]
            kind: &'a str,
            id: u64,
        }
        let hello = |v, kind| {
            let words = Hello { v, kind, id: 1 };
            let words = rmp_serde::to_vec_named(&words).unwrap();
            Fake::with(
                Manners {
                    hello: Some(words),
                    ..Manners::default()
                },
                echoes,
            )
        };
        let newer = hello(2, "hello_ok");
        let e = Client::connect(&newer.address()).unwrap_err();
        assert_eq!(e.code(), ErrorCode::FailedPrecondition);
        assert!(e.message().contains("protocol version 2"), "{e}");
        let strict = hello(1, "error");
        let e = Client::connect(&strict.address()).unwrap_err();
        assert!(e.message().contains("refused hello"), "{e}");
    });
}

#[test]
fn results_may_leave_elsewhere_and_over_ipc_and_ipv6() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(echoes);
        let out = format!("tcp://127.0.0.1:{}", server.port_out);
        let client = Client::builder()
            .port_out(out)
            .connect(&server.address())
            .unwrap();
        client.infer(&[1i64], "m").unwrap();

        let folder = tempfile::tempdir().unwrap();
        let stem = folder.path().join("mdm-1").display().to_string();
        let manners = |a: &str, b: &str| Manners {
            endpoints: Some((zmq::Context::new(), a.to_owned(), b.to_owned())),
            ..Manners::default()
        };
        let large = vec![3i64; 100_000];
        let serves = |address: &str| {
            let client = Client::connect(address).unwrap();
            client.infer(&[1i64], "m").unwrap();
            let rows = client.infer(&large[..], "m").unwrap().only().unwrap();
            assert_eq!(rows.to_vec::<i64>().unwrap(), large);
            drop(client.submit(&[1i64], "m").unwrap());
        };
        let path = format!("ipc://{stem}.in");
        let _local = Fake::with(manners(&path, &format!("ipc://{stem}.out")), echoes);
        serves(&path);
        if TcpListener::bind("[::1]:0").is_err() {
            return; // a machine without IPv6
        }
        let server = Fake::with(manners("tcp://[::1]:*", "tcp://[::1]:*"), echoes);
        serves(&format!("tcp://[::1]:{}", server.port));
    });
}

#[test]
fn answers_in_any_order_reach_their_tickets() {
    within(Duration::from_secs(30), || {
        let mut held = Vec::new();
        let server = Fake::start(move |id, request| {
            held.push((id, request));
            if held.len() < 8 {
                return Vec::new();
            }
            let answer = |(id, request)| Act::Out(id, echo(request));
            held.drain(..).rev().map(answer).collect()
        });
        let client = server.client();
        let tickets: Vec<_> = (0..8i64)
            .map(|i| client.submit(&[i], "m").unwrap())
            .collect();
        for (i, answer) in client.fetch_all(tickets).into_iter().enumerate() {
            let answer = answer.unwrap().only().unwrap();
            assert_eq!(answer.to_vec::<i64>().unwrap(), [i as i64]);
        }
        // From several threads, each with tickets of the same session.
        let tickets: Vec<_> = (0..8i64)
            .map(|i| (i, client.submit(&[i], "m").unwrap()))
            .collect();
        std::thread::scope(|scope| {
            for (i, ticket) in tickets {
                let client = &client;
                scope.spawn(move || {
                    let answer = client.fetch(ticket).unwrap().only().unwrap();
                    assert_eq!(answer.to_vec::<i64>().unwrap(), [i]);
                });
            }
        });
    });
}

#[test]
fn a_request_is_taken_back_while_another_thread_drives_its_session() {
    within(Duration::from_secs(20), || {
        let mut first = None;
        let (sender, cancelled) = channel();
        let server = Fake::start(move |id, request| match number(&request) {
            0 => {
                first = Some((id, request));
                Vec::new()
            }
            1 => {
                sender.send(id).unwrap();
                Vec::new()
            }
            _ => {
                let (first, rows) = first.take().unwrap();
                vec![Act::Out(first, echo(rows)), Act::Out(id, echo(request))]
            }
        });
        let client = server.client();
        let slow = client.submit(&[0i64], "m").unwrap();
        let dropped = client.submit(&[1i64], "m").unwrap();
        let expected = cancelled.recv().unwrap();
        std::thread::scope(|scope| {
            let (sender, driving) = channel();
            let client = &client;
            scope.spawn(move || {
                sender.send(()).unwrap();
                client.cancel(&slow);
                client.fetch(slow).unwrap_err()
            });
            driving.recv().unwrap();
            let ClientMessage::Cancel(slow) = server.heard() else {
                panic!("expected a cancel")
            };
            assert!(slow < expected);
            // By now, or in a moment, the other thread waits for its answer with the session in its hands.
            std::thread::sleep(Duration::from_millis(100));
            drop(dropped);
            assert_eq!(server.heard(), ClientMessage::Cancel(expected));
            drop(server);
        });
    });
}

#[test]
fn a_lost_session_fails_every_ticket() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(|_, request| match number(&request) {
            3 => vec![Act::Vanish],
            _ => Vec::new(),
        });
        let client = server.client();
        let tickets: Vec<_> = (0..4i64)
            .map(|i| client.submit(&[i], "m").unwrap())
            .collect();
        std::thread::scope(|scope| {
            for ticket in tickets {
                let client = &client;
                scope.spawn(move || {
                    let e = client.fetch(ticket).unwrap_err();
                    assert_eq!(e.code(), ErrorCode::Unavailable, "{e}");
                });
            }
        });
    });
}

#[test]
fn parts_come_as_they_finish() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(|id, request| {
            assert!(request.stream);
            let inputs = request.inputs.tensors[0].clone();
            let part = |offset: usize, rows: usize| {
                let batch = Batch {
                    tensors: vec![inputs.slice_rows(offset, rows)],
                };
                let outputs = Outputs {
                    parts: vec![batch],
                    batched: true,
                    failed: Vec::new(),
                };
                Act::Out(id, ServerMessage::Part(offset as u64, outputs))
            };
            let stats = Stats {
                chunks: 2,
                ..Stats::default()
            };
            match number(&request) {
                0 => vec![
                    part(2, 1),
                    part(0, 2),
                    Act::Out(id, ServerMessage::End(3, stats)),
                ],
                1 => vec![
                    part(0, 1),
                    Act::Out(id, ServerMessage::Error(Error::internal("broke"))),
                ],
                _ => vec![part(0, 1)],
            }
        });
        let client = server.client();
        let mut parts = client.infer_stream(&[0i64, 1, 2], "m").unwrap();
        let got: Vec<_> = parts.by_ref().map(Result::unwrap).collect();
        let offsets: Vec<_> = got.iter().map(|p| p.offset).collect();
        assert_eq!(offsets, [2, 0]);
        assert_eq!(got[1].outputs.tensors[0].to_vec::<i64>().unwrap(), [0, 1]);
        assert_eq!((parts.rows(), parts.stats().unwrap().chunks), (Some(3), 2));
        drop(parts);
        let mut parts = client.infer_stream(&[1i64], "m").unwrap();
        assert!(parts.next().unwrap().is_ok());
        assert_eq!(parts.next().unwrap().unwrap_err().message(), "broke");
        assert!(parts.next().is_none());
        drop(parts);
        // Dropped early: taken back, and the session serves on.
        let mut parts = client.infer_stream(&[2i64], "m").unwrap();
        assert!(parts.next().unwrap().is_ok());
        drop(parts);
        assert!(matches!(
            server.heard(),
            ClientMessage::Cancel(RequestId(5))
        ));
        let parts = client.infer_stream(&[0i64, 1, 2], "m").unwrap();
        assert_eq!(parts.count(), 2);
    });
}

#[test]
fn many_threads_share_a_client() {
    within(Duration::from_secs(60), || {
        let server = Fake::start(echoes);
        let client = server.client();
        std::thread::scope(|scope| {
            for thread in 0..8i64 {
                let client = &client;
                scope.spawn(move || {
                    for i in 0..50 {
                        let rows = [thread * 1000 + i; 3];
                        let answer = match i % 2 {
                            0 => client.infer(&rows, "m").unwrap(),
                            _ => {
                                let ticket = client.submit(&rows, "m").unwrap();
                                client.fetch(ticket).unwrap()
                            }
                        };
                        assert_eq!(answer.only().unwrap().to_vec::<i64>().unwrap(), rows);
                    }
                });
            }
        });
    });
}

#[test]
fn a_request_beyond_the_servers_bound_is_refused_before_it_is_sent() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(echoes);
        let client = server.client();
        let e = client.infer(vec![0u8; 1 << 20], "m").unwrap_err();
        assert_eq!(e.code(), ErrorCode::ResourceExhausted);
        assert!(e.message().contains("limit is 1048576"), "{e}");
        client.infer(vec![0u8; 1 << 19], "m").unwrap();
        assert!(client.infer_stream(vec![0u8; 1 << 20], "m").is_err());
        assert!(client.submit(vec![0u8; 1 << 20], "m").is_err());
    });
}

#[test]
fn a_request_that_nobody_answers_ends_a_little_after_its_time() {
    within(Duration::from_secs(30), || {
        let server = Fake::start(|_, _| Vec::new());
        let client = server.client();
        let call = || Call::model("m").timeout(Duration::from_millis(100));
        let ticket = client.submit(&[1i64], call()).unwrap();
        let start = Instant::now();
        let e = client.infer(&[1i64], call()).unwrap_err();
        assert_eq!(e.code(), ErrorCode::DeadlineExceeded);
        assert!(start.elapsed() < Duration::from_secs(4));
        assert!(matches!(server.heard(), ClientMessage::Cancel(_)));
        let e = client.fetch(ticket).unwrap_err();
        assert_eq!(e.code(), ErrorCode::DeadlineExceeded);
        assert!(matches!(server.heard(), ClientMessage::Cancel(_)));
    });
}

#[test]
fn an_answer_that_cannot_be_read_is_an_error_not_a_wait() {
    within(Duration::from_secs(20), || {
        let server = Fake::start(|id, request| {
            // Two outputs of one name and half the payload would be as bad: the header promises what is not there.
            let mut outputs = Outputs {
                parts: vec![request.inputs.clone(), request.inputs],
                batched: true,
                failed: Vec::new(),
            };
            outputs.parts[1].tensors[0] = Tensor::from_slice("", vec![2, 1], &[1u8, 2]).unwrap();
            vec![Act::Out(
                id,
                ServerMessage::Result(outputs, Stats::default()),
            )]
        });
        let client = server.client();
        let e = client.infer(&[1i64], "m").unwrap_err();
        assert_eq!(e.code(), ErrorCode::Internal, "{e}");
    });
}

#[test]
fn a_stop_is_waited_for() {
    within(Duration::from_secs(30), || {
        let stop = |left, last_word, timeout: u64| {
            let manners = Manners {
                stop: (left, last_word),
                ..Manners::default()
            };
            let server = Fake::with(manners, echoes);
            let client = Client::builder().connect_later(&server.address()).unwrap();
            let timeout = match timeout {
                u64::MAX => Duration::MAX,
                millis => Duration::from_millis(millis),
            };
            client.terminate(StopMode::Drain, timeout, |_| ())
        };
        assert_eq!(stop(0, true, 5000).unwrap(), StopOutcome::Stopped);
        assert_eq!(stop(0, true, u64::MAX).unwrap(), StopOutcome::Stopped);
        assert_eq!(stop(0, false, 5000).unwrap(), StopOutcome::ConnectionEnded);
        // Seven at first; asked again at the end, three.
        assert_eq!(stop(7, true, 2000).unwrap(), StopOutcome::StillDraining(3));
    });
}
