//! Small requests of many threads at once, which share a session.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mdm::client::Call;
use mdm::wire::server::ServerMessage;
use mdm::{Error, ErrorCode};

use crate::fake::{Act, Fake, echo, echoes};
use crate::{number, within};

/// More than any machine has cores: the rest of them share.
fn threads() -> i64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores as i64 + 24
}

#[test]
fn each_thread_gets_its_own_answers_and_errors() {
    within(Duration::from_secs(60), || {
        let server = Fake::start(|id, request| match number(&request) % 7 {
            3 => vec![Act::Out(
                id,
                ServerMessage::Error(Error::internal(number(&request).to_string())),
            )],
            _ => echoes(id, request),
        });
        let client = server.client();
        std::thread::scope(|scope| {
            for thread in 0..threads() {
                let client = &client;
                scope.spawn(move || {
                    for i in 0..100 {
                        let row = thread * 1000 + i;
                        // Some are given up at once: nobody else may get what is theirs.
                        if row % 11 == 5 {
                            drop(client.submit(&[row], "m").unwrap());
                        }
                        match client.infer(&[row], "m") {
                            Ok(answer) => {
                                let answer = answer.only().unwrap().to_vec::<i64>();
                                assert_eq!(answer.unwrap(), [row]);
                                assert_ne!(row % 7, 3);
                            }
                            Err(e) => {
                                assert_eq!((e.code(), row % 7), (ErrorCode::Internal, 3));
                                assert_eq!(e.message(), row.to_string());
                            }
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn one_that_gives_up_is_taken_back_and_the_others_go_on() {
    within(Duration::from_secs(60), || {
        // Every tenth is not answered.
        let server = Fake::start(|id, request| match number(&request) % 10 {
            0 => Vec::new(),
            _ => echoes(id, request),
        });
        let client = server.client();
        let gave_up = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..threads() {
                let (client, gave_up) = (&client, &gave_up);
                scope.spawn(move || {
                    for i in 0..3 {
                        let call = Call::model("m").timeout(Duration::from_millis(50));
                        let row = thread + i;
                        match client.infer(&[row], call) {
                            Ok(_) => assert_ne!(row % 10, 0),
                            Err(e) => {
                                assert_eq!(e.code(), ErrorCode::DeadlineExceeded, "{e}");
                                assert_eq!(row % 10, 0);
                                gave_up.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        let expected: i64 = (0..threads())
            .map(|t| (t..t + 3).filter(|row| row % 10 == 0).count() as i64)
            .sum();
        assert_eq!(gave_up.into_inner() as i64, expected);
        for _ in 0..expected {
            server.heard(); // a cancel for each
        }
    });
}

#[test]
fn a_lost_session_fails_all_that_wait_at_once() {
    within(Duration::from_secs(60), || {
        let mut left = 200;
        let server = Fake::start(move |id, request| {
            left -= 1;
            match left {
                0 => vec![Act::Vanish],
                _ => vec![Act::Out(id, echo(request))],
            }
        });
        let client = server.client();
        std::thread::scope(|scope| {
            for thread in 0..threads() {
                let client = &client;
                scope.spawn(move || {
                    let error = (0..200).find_map(|_| client.infer(&[thread], "m").err());
                    let error = error.expect("the server is gone");
                    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
                });
            }
        });
        let start = Instant::now();
        assert!(client.infer(&[1i64], "m").is_err());
        assert!(start.elapsed() < Duration::from_secs(6));
    });
}

/// The bug: a request that was queued while another thread wrote was left half written if nobody waited for an answer.
#[test]
fn what_several_threads_submit_at_once_leaves_though_nobody_fetches() {
    const THREADS: usize = 4;
    within(Duration::from_secs(60), || {
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        let server = Fake::start(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            Vec::new()
        });
        let client = server.client();
        // More than one write takes, beside what one write does.
        let (many, one) = (vec![7i64; 100_000], [7i64]);
        let together = Barrier::new(THREADS);
        for round in 1..=300 {
            let tickets: Vec<_> = std::thread::scope(|scope| {
                let submit = |thread| {
                    let (client, together) = (&client, &together);
                    let rows = if thread == 0 { &many[..] } else { &one[..] };
                    scope.spawn(move || {
                        together.wait();
                        client.submit(("x", rows), "m").unwrap()
                    })
                };
                let threads: Vec<_> = (0..THREADS).map(submit).collect();
                let join = threads.into_iter().map(|thread| thread.join().unwrap());
                join.collect()
            });
            let start = Instant::now();
            while heard.load(Ordering::Relaxed) < round * THREADS {
                assert!(start.elapsed() < Duration::from_secs(10), "round {round}");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(tickets);
        }
    });
}
