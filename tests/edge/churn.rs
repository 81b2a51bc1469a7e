//! Clients beside others that come and go.

use std::thread;
use std::time::Duration;

use crate::common::within;
use crate::peer::{Pair, Peer, Version};
use crate::raw::{Raw, echo, routing_id};
use crate::{LIMIT, server};

/// What one connection did was held against the next that got its descriptor.
#[test]
fn a_client_is_not_judged_by_the_connection_that_had_its_descriptor_before() {
    within(LIMIT, || {
        let server = server(&[]);
        // 8 KiB: more than a hello may have on `port_out`.
        let rows: Vec<[f32; 4]> = (0..512).map(|row| [row as f32; 4]).collect();
        for round in 0..8 {
            let mut visitor =
                Peer::connect(server.port_out, &routing_id(), Version::V30).expect("a connection");
            visitor.greet(1);
            drop(visitor);
            // Its descriptor is free, and the next on `port` gets it.
            thread::sleep(Duration::from_millis(2 + round));
            let id = routing_id();
            let mut port = Peer::connect(server.port, &id, Version::V30).expect("a connection");
            let mut out = Peer::connect(server.port_out, &id, Version::V30).expect("a connection");
            out.greet(1);
            port.greet(1);
            for id in 2..14 {
                port.send(&echo(id, &rows)).expect("still connected");
                let answer = out.receive().expect("still connected");
                assert_eq!((answer.id(), answer.floats()), (id, rows.concat()));
                // So that it is looked at meanwhile.
                thread::sleep(Duration::from_millis(30));
            }
        }
    });
}

/// Sessions that begin and end all the time, whichever connection goes first.
#[test]
fn an_old_session_is_served_while_others_come_and_go() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2"]);
        let mut old = Raw::open(&server);
        let (port, port_out) = (server.port, server.port_out);
        let visitors: Vec<_> = (0..4)
            .map(|number| {
                thread::spawn(move || {
                    for round in 0..100 {
                        let pair = Pair::at(port, port_out, Version::V31).expect("a session");
                        if (round + number) % 2 == 0 {
                            drop(pair.out);
                        } else {
                            drop(pair.port);
                        }
                    }
                })
            })
            .collect();
        let mut rounds = 0;
        while !visitors.iter().all(thread::JoinHandle::is_finished) {
            old.round(&[[rounds as f32; 4]; 512]);
            rounds += 1;
        }
        for visitor in visitors {
            visitor.join().expect("every visitor was let in");
        }
        old.greet();
        assert!(rounds > 0);
    });
}
