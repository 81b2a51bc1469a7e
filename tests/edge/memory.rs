//! Messages that have begun and do not end: the sum of them is bounded, not each alone.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::common::within;
use crate::peer::{Peer, Version, head, message};
use crate::raw::{Raw, pack, routing_id};
use crate::{LIMIT, MIB, server};

/// 12 connections held 763 MB.
#[test]
fn unfinished_messages_of_many_connections_are_bounded_together() {
    within(LIMIT, || {
        let bounds = ["--max-request-bytes", "64MiB", "--max-queue-bytes", "64MiB"];
        let mut server = server(&bounds);
        let mut honest = Raw::open(&server);
        honest.round(&[[1.0; 4]]);
        let before = server.resident_bytes();
        let enough = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..12)
            .map(|_| {
                let (port, enough) = (server.port, enough.clone());
                thread::spawn(move || unfinished(port, &enough))
            })
            .collect();
        let mut most = 0;
        let mut rounds = 0;
        while !threads.iter().all(thread::JoinHandle::is_finished) {
            honest.round(&[[rounds as f32; 4]; 64]);
            most = most.max(server.resident_bytes());
            rounds += 1;
            if rounds == 300 {
                enough.store(true, Ordering::Relaxed);
            }
        }
        let cut = threads
            .into_iter()
            .map(|thread| thread.join().expect("it is over"))
            .filter(|cut| *cut)
            .count();
        let grown = most.saturating_sub(before);
        println!("{} MiB more for 12 times 60 MiB, {cut} cut", grown >> 20);
        assert!(grown < 140 * MIB as u64, "grew by {grown} bytes");
        assert!(cut > 0, "nobody was cut");
        assert!(server.is_running());
        honest.greet();
    });
}

/// Sends 60 MiB of a message that would have 62, and leaves it there. Whether the server ended that.
fn unfinished(port: u16, enough: &AtomicBool) -> bool {
    let mut peer = Peer::connect(port, &routing_id(), Version::V30).expect("a connection");
    let header = pack(&json!({
        "v": 1, "type": "infer", "id": 1, "model": "echo",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [62 * MIB / 16, 4]}],
    }));
    let mut start = message(&[header]);
    start[0] |= 1; // more follows
    start.extend(head(62 * MIB, true));
    let piece = vec![0; MIB];
    let mut sent = peer.stream.write_all(&start);
    for _ in 0..60 {
        sent = sent.and_then(|()| peer.stream.write_all(&piece));
    }
    let mut cut = sent.is_err();
    let step = std::time::Duration::from_millis(20);
    peer.stream.set_read_timeout(Some(step)).expect("a timeout");
    while !cut && !enough.load(Ordering::Relaxed) {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        cut = match peer.receive() {
            Ok(answer) => panic!("an answer to half a message: {answer:?}"),
            Err(e) => ![TimedOut, WouldBlock].contains(&e.kind()),
        };
    }
    cut
}
