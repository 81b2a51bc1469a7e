//! How many sessions there may be, and how long one may take to begin.

use std::io::Write;
use std::thread;
use std::time::Duration;

use mdm::ndarray::Array2;

use crate::common::{descriptors, eventually, within};
use crate::peer::{Pair, Version, ended, greeting, plain};
use crate::raw::{Raw, echo};
use crate::{LIMIT, server};

/// Ten seconds are given.
#[test]
fn a_connection_that_does_not_shake_hands_is_closed_in_time() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut raw = Raw::open(&server);
        let ways = [server.port, server.port_out].into_iter().flat_map(|port| {
            let [silent, half, slow] = [(); 3].map(|()| plain(port));
            (&half)
                .write_all(&greeting(Version::V31))
                .expect("a greeting");
            let mut drops = slow.try_clone().expect("a descriptor");
            thread::spawn(move || {
                for byte in greeting(Version::V31) {
                    // It would take a minute, and the server hangs up before.
                    if drops.write_all(&[byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_secs(1));
                }
            });
            [silent, half, slow]
        });
        let ways: Vec<_> = ways
            .map(|mut stream| thread::spawn(move || ended(&mut stream, Duration::from_secs(18))))
            .collect();
        for way in ways {
            let took = way.join().expect("it is closed");
            assert!(took > Duration::from_secs(8), "closed after {took:?}");
        }
        raw.round(&[[1.0; 4]]);
    });
}

#[test]
fn sessions_beyond_the_bound_are_turned_away_until_others_leave() {
    within(LIMIT, || {
        let server = server(&["--max-sessions", "3"]);
        let open = || Pair::at(server.port, server.port_out, Version::V30);
        let mut held = [(); 3].map(|()| open().expect("there is room"));
        for _ in 0..5 {
            assert!(open().is_err(), "a fourth was let in");
        }
        for pair in &mut held {
            pair.port.send(&echo(2, &[[2.0; 4]])).expect("sent");
            assert_eq!(pair.out.receive().expect("a result").floats(), [2.0; 4]);
        }
        drop(held);
        eventually("there is room again", || open().is_ok());
        assert!(server.log().contains("--max-sessions"), "{}", server.log());
    });
}

/// A client takes further sessions where that is faster; where the server has no more, those that it has serve.
#[test]
fn a_client_of_many_threads_gets_along_with_the_sessions_there_are() {
    within(LIMIT, || {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let server = server(&["--max-sessions", &(cores + 1).to_string()]);
        let client = server.client();
        thread::scope(|scope| {
            for number in 0..cores + 48 {
                let client = &client;
                scope.spawn(move || {
                    let row = Array2::from_elem((1, 4), number as f32);
                    for _ in 0..100 {
                        let answer = client.infer(&row, "echo").expect("an answer");
                        let tensor = answer.only().expect("one output");
                        assert_eq!(tensor.to_vec::<f32>().expect("FP32"), [number as f32; 4]);
                    }
                });
            }
        });
        assert!(!server.log().contains("panic"), "{}", server.log());
    });
}

/// Descriptors of this program that other tests may need meanwhile.
const OTHERS: u64 = 2_000;

#[test]
fn ten_thousand_sessions_at_once() {
    within(LIMIT, || {
        let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
        // Each has two connections, and both ends of a connection are on this machine.
        let possible = limit.saturating_sub(OTHERS) / 2;
        let count = possible.min(10_000) as usize;
        if count < 10_000 {
            println!("{count} sessions, since the system allows only {limit} descriptors");
        }
        if count < 100 {
            println!("skipped: that is none to speak of");
            return;
        }
        let server = server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let before = server.resident_bytes();
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (port, port_out) = (server.port, server.port_out);
                let share = (count + number) / 4;
                let open = move |_| Pair::at(port, port_out, Version::V30).expect("a session");
                thread::spawn(move || (0..share).map(open).collect::<Vec<Pair>>())
            })
            .collect();
        let mut rounds = 0;
        while !threads.iter().all(thread::JoinHandle::is_finished) {
            bystander.round(&[[rounds as f32; 4]]);
            rounds += 1;
        }
        let mut pairs: Vec<Pair> = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("all of them are let in"))
            .collect();
        assert_eq!(pairs.len(), count);
        let grown = server.resident_bytes().saturating_sub(before);
        let each = grown / count as u64;
        println!(
            "{count} sessions hold {each} bytes each; {rounds} requests were answered meanwhile"
        );
        assert!(each < 16 * 1024, "{each} bytes each");
        assert!(rounds >= 10, "{rounds} requests were answered meanwhile");
        for pair in pairs.iter_mut().step_by(count / 50) {
            pair.port.send(&echo(2, &[[3.0; 4]])).expect("sent");
            assert_eq!(pair.out.receive().expect("a result").floats(), [3.0; 4]);
        }
        drop(pairs);
        eventually("they are gone", || descriptors(server.pid()) < 200);
        Raw::open(&server).round(&[[4.0; 4]]);
    });
}
