//! Slow lines and silent peers: bytes however slow keep a connection, silence ends it.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use crate::common::{Server, eventually, within};
use crate::line;
use crate::peer::{Pair, Peer, Version, message};
use crate::raw::{Raw, echo, receive, routing_id, send};
use crate::{LIMIT, MIB, answered, queued, rows_of, rows_run, server, slow, wide};

/// A session of libzmq's DEALERs, whose own heartbeats are off, over such a line.
fn session(server: &Server, bytes_per_s: usize) -> Raw {
    let through = |port| format!("tcp://127.0.0.1:{}", line::slow(port, bytes_per_s));
    let (port, out) = (through(server.port), through(server.port_out));
    let mut raw = Raw::at(&port, &out, Some(&routing_id()));
    raw.greet();
    raw
}

fn is_whole(raw: &Raw, id: u64, mib: usize) {
    let answer = receive(&raw.out);
    assert_eq!((answer.kind(), answer.id()), ("result", id));
    let bytes: usize = answer.payload.iter().map(Vec::len).sum();
    assert_eq!(bytes, mib * MIB);
}

/// Signs of life were looked for between frames: one of more than 6 s was the end.
#[test]
fn a_frame_that_takes_seven_seconds_arrives_each_way() {
    within(LIMIT, || {
        let server = server(&["--preload", "wide"]);
        let mut raw = session(&server, 4 * MIB);
        let id = raw.id();
        send(&raw.port, &wide(id, rows_of(28)));
        is_whole(&raw, id, 28);
        raw.greet();
    });
}

#[test]
fn a_line_of_a_megabyte_a_second_serves_and_drains() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "wide"]);
        let mut bystander = Raw::open(&server);
        let mut raw = session(&server, 1_000_000);
        let first = raw.id();
        send(&raw.port, &wide(first, rows_of(2)));
        // Its result comes while the second request goes, so that both ways are in use.
        let second = raw.id();
        send(&raw.port, &wide(second, rows_of(6)));
        is_whole(&raw, first, 2);
        eventually("the second is given out", || answered(&mut bystander) == 2);
        server.signal("TERM");
        is_whole(&raw, second, 6);
        assert!(server.wait().success());
    });
}

/// One that promised to answer.
#[test]
fn a_peer_that_falls_silent_is_closed_with_its_session_and_its_work() {
    within(LIMIT, || {
        let server = server(&["--preload", "slow"]);
        let mut bystander = Raw::open(&server);
        let mut pair = Pair::at(server.port, server.port_out, Version::V31).expect("a session");
        let rows = 100_000;
        pair.port.send(&slow(2, rows)).expect("sent");
        eventually("it is accepted", || queued(&mut bystander) == 1);
        pair.port.ignore_pings();
        pair.out.ignore_pings();
        // Both are read and neither says a word.
        let mut out = pair.out;
        let other = thread::spawn(move || out.ended(Duration::from_secs(20)));
        let took = pair.port.ended(Duration::from_secs(20));
        assert!(took > Duration::from_secs(4), "closed after {took:?}");
        other.join().expect("the other connection is closed too");
        eventually("its work is cancelled", || queued(&mut bystander) == 0);
        assert!(rows_run(&mut bystander) < rows as u64);
    });
}

/// Who answers is left alone for as long as it likes; so is who never promised to.
#[test]
fn a_quiet_peer_that_answers_pings_stays() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut raw = Raw::open(&server);
        let mut old = Pair::open(&server);
        let Pair {
            mut port, mut out, ..
        } = Pair::at(server.port, server.port_out, Version::V31).expect("a session");
        let patience = Some(Duration::from_secs(8));
        let threads = [&mut port, &mut out].map(|peer| {
            peer.stream.set_read_timeout(patience).expect("a timeout");
            let stream = peer.stream.try_clone().expect("a descriptor");
            thread::spawn(move || pong_until_quiet(stream))
        });
        for thread in threads {
            assert!(thread.join().expect("it is not closed") >= 2);
        }
        raw.round(&[[1.0; 4]]);
        old.port.send(&echo(2, &[[2.0; 4]])).expect("sent");
        assert_eq!(old.out.receive().expect("a result").floats(), [2.0; 4]);
        let patience = Some(Duration::from_secs(20));
        out.stream.set_read_timeout(patience).expect("a timeout");
        port.send(&echo(2, &[[3.0; 4]])).expect("sent");
        assert_eq!(out.receive().expect("a result").floats(), [3.0; 4]);
    });
}

/// Answers PINGs for eight seconds, and gives their number.
fn pong_until_quiet(mut stream: std::net::TcpStream) -> usize {
    let until = std::time::Instant::now() + Duration::from_secs(8);
    let step = Some(Duration::from_millis(200));
    stream.set_read_timeout(step).expect("a timeout");
    let mut pings = 0;
    while std::time::Instant::now() < until {
        // A PING with a time to live of 0 and no context is nine bytes.
        let mut ping = [0; 9];
        match stream.read(&mut ping) {
            Ok(0) => panic!("it was closed"),
            Ok(_) => {
                assert_eq!(&ping, b"\x04\x07\x04PING\0\0");
                stream.write_all(b"\x04\x05\x04PONG").expect("an answer");
                pings += 1;
            }
            Err(e) => assert!(
                matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
                "{e}"
            ),
        }
    }
    pings
}

/// No PING is answered, and yet bytes come.
#[test]
fn a_byte_a_second_is_a_sign_of_life() {
    within(LIMIT, || {
        let server = server(&[]);
        let id = routing_id();
        let mut out = Peer::connect(server.port_out, &id, Version::V30).expect("a connection");
        out.greet(1);
        let mut port = Peer::connect(server.port, &id, Version::V31).expect("a connection");
        port.greet(1);
        port.ignore_pings();
        let bytes = message(&echo(2, &[[5.0; 4]]));
        let (now, rest) = bytes.split_at(bytes.len() - 8);
        port.stream.write_all(now).expect("sent");
        for byte in rest {
            // Its line is as slow as that.
            thread::sleep(Duration::from_secs(1));
            port.stream.write_all(&[*byte]).expect("still connected");
        }
        assert_eq!(out.receive().expect("a result").floats(), [5.0; 4]);
    });
}
