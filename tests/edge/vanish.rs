//! Clients that close a connection: the other goes too, and their work, but nothing that they had said.

use std::time::Duration;

use serde_json::json;

use crate::common::{eventually, within};
use crate::peer::{Pair, Peer, Version};
use crate::raw::{Raw, echo, hello, pack};
use crate::{LIMIT, queued, rows_run, server, slow};

/// What a connection may take to be closed where nothing has to be waited for.
const SOON: Duration = Duration::from_secs(5);
/// Some seconds of work.
const ROWS: usize = 16_000;

/// Its work ran on until something of it was answered.
#[test]
fn the_work_of_a_client_that_closes_either_connection_is_cancelled_at_once() {
    within(LIMIT, || {
        let server = server(&["--preload", "slow"]);
        let mut bystander = Raw::open(&server);
        for closes_out in [false, true] {
            let before = rows_run(&mut bystander);
            let mut pair = Pair::open(&server);
            for id in 2..6 {
                pair.port.send(&slow(id, ROWS / 4)).expect("sent");
            }
            eventually("it runs", || queued(&mut bystander) == 4);
            let mut other = if closes_out {
                drop(pair.out);
                pair.port
            } else {
                drop(pair.port);
                pair.out
            };
            eventually("its requests are gone", || queued(&mut bystander) == 0);
            other.ended(SOON);
            // What a worker has taken is run to its end.
            eventually("the worker is idle", || {
                bystander.status()["workers"][0]["state"] == "idle"
            });
            let run = rows_run(&mut bystander) - before;
            assert!(run < ROWS as u64 / 2, "{run} of {ROWS} rows were run");
        }
        bystander.round(&[[1.0; 4]]);
    });
}

/// An order that was given in full counts, whatever becomes of who gave it.
#[test]
fn what_was_said_right_before_closing_is_heard() {
    let terminate = || {
        vec![pack(
            &json!({"v": 1, "type": "terminate", "id": 9, "mode": "drain"}),
        )]
    };
    within(LIMIT, move || {
        // The connection that it was said on is closed, and then only the other one.
        for closes_out in [false, true] {
            let mut server = server(&[]);
            let mut pair = Pair::open(&server);
            pair.port.send(&terminate()).expect("sent");
            let left = if closes_out {
                drop(pair.out);
                pair.port
            } else {
                drop(pair.port);
                pair.out
            };
            assert!(server.wait().success(), "closes_out {closes_out}");
            drop(left);
        }
    });
}

/// It was parked: neither refused nor heard.
#[test]
fn a_second_connection_with_an_id_in_use_is_closed_and_the_first_goes_on() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut pair = Pair::open(&server);
        for port in [server.port, server.port_out] {
            for _ in 0..3 {
                // The handshake may end before the id is looked at.
                if let Ok(mut second) = Peer::connect(port, &pair.id, Version::V31) {
                    // It may be closed by now.
                    let _ = second.send(&[hello(7)]);
                    second.ended(SOON);
                }
            }
        }
        for id in 2..20 {
            pair.port.send(&echo(id, &[[id as f32; 4]])).expect("sent");
            let answer = pair.out.receive().expect("a result");
            assert_eq!((answer.id(), answer.floats()), (id, vec![id as f32; 4]));
        }
        pair.port.greet(20);
        // Once it is over its id is free.
        let id = pair.id;
        drop(pair);
        eventually("the id is free", || {
            let Ok(mut out) = Peer::connect(server.port_out, &id, Version::V31) else {
                return false;
            };
            out.send(&[hello(1)]).is_ok() && out.receive().is_ok()
        });
    });
}
