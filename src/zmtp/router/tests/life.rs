//! Heartbeats and deadlines: who is silent, and who only looks so.

use super::*;

#[test]
fn a_peer_that_answers_no_ping_is_silent() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    server.seconds(5);
    assert!(server.seen.is_empty());
    assert!(server.router.is_alive(reply, server.now()));
    server.seconds(4);
    assert!(server.silent() == reply);
    // It stays until its owner closes it; it was asked, and told that nothing happens by itself.
    let Event::Ping { ttl: 0, .. } = server.hear(&mut raw) else {
        panic!("no PING");
    };
    let now = server.now();
    server.router.close(reply, now);
    server.wait_until_closed(&mut raw);
}

#[test]
fn a_peer_of_version_3_0_is_never_asked_and_never_silent() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(0, &ID);
    // A PING that asks for nothing but an answer does not promise any.
    let mut ping = Vec::new();
    codec::push_ping(&mut ping);
    server.say(&mut raw, &ping);
    server.seconds(20);
    assert!(server.seen.is_empty());
    server.send(reply, &[b"well?"]);
    assert_eq!(server.hear(&mut raw), Event::Other, "the PONG");
    assert_eq!(server.hear(&mut raw), heard(&[b"well?"]));
}

#[test]
fn a_peer_of_version_3_0_that_wants_to_be_counted_as_lost_is() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(0, &ID);
    let mut ping = Vec::new();
    codec::push_command(&mut ping, b"\x04PING\0\x0a");
    server.say(&mut raw, &ping);
    server.seconds(10);
    assert!(server.silent() == reply);
}

#[test]
fn a_byte_a_second_is_no_silence() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    server.say(&mut raw, &promise(20));
    for _ in 0..20 {
        assert!(server.seen.is_empty());
        server.say(&mut raw, b"x");
        server.second();
    }
    let (from, frames) = server.message();
    assert!(from == reply);
    assert_eq!(frames, [&[b'x'; 20][..]]);
}

#[test]
fn bytes_that_arrive_at_the_other_end_are_no_silence_and_pings_are_none() {
    let mut server = Server::new(BOUNDS);
    let (_raw, reply) = server.join(1, &ID);
    for _ in 0..15 {
        server.send(reply, &[b"news"]);
        server.second();
        assert!(server.seen.is_empty());
    }
    server.seconds(9);
    assert!(server.silent() == reply);
}

#[test]
fn libzmq_answers_our_pings() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let dealer = context.socket(zmq::DEALER).unwrap();
    dealer.set_linger(0).unwrap();
    dealer.set_identity(&ID).unwrap();
    dealer
        .connect(&format!("tcp://{}", server.address))
        .unwrap();
    dealer.send("hello", 0).unwrap();
    let (reply, _) = server.message();
    for _ in 0..20 {
        server.second();
        let is_fresh = |server: &mut Server| {
            let heard = server.peer(reply).connection.alive();
            server.now().saturating_duration_since(heard) < Duration::from_secs(3)
        };
        server.wait_for(is_fresh);
        assert!(server.seen.is_empty());
    }
}

#[test]
fn libzmq_gets_answers_to_its_pings_and_stays() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let dealer = context.socket(zmq::DEALER).unwrap();
    dealer.set_linger(0).unwrap();
    dealer.set_identity(&ID).unwrap();
    dealer.set_heartbeat_ivl(100).unwrap();
    dealer.set_heartbeat_timeout(700).unwrap();
    dealer.set_heartbeat_ttl(1000).unwrap();
    dealer
        .connect(&format!("tcp://{}", server.address))
        .unwrap();
    dealer.send("hello", 0).unwrap();
    let (reply, _) = server.message();
    let until = Instant::now() + Duration::from_millis(1500);
    server.wait_for(|_| Instant::now() > until);
    assert!(server.seen.is_empty(), "it would have connected anew");
    dealer.send("again", 0).unwrap();
    assert!(server.message().0 == reply);
}

#[test]
fn a_peer_that_has_no_room_is_not_silent() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    let frame = Bytes::from(vec![1; MIB]);
    for _ in 0..24 {
        server.router.send(reply, [frame.clone()]).unwrap();
    }
    let now = server.now();
    server.router.flush(now);
    server.seconds(15);
    assert!(server.seen.is_empty());
    assert!(server.router.waiting_bytes(reply) > 0);
    assert!(!server.peer(reply).connection.is_paused());
    // It reads at last, and says nothing all the same.
    for _ in 0..24 {
        assert_eq!(server.hear(&mut raw), Event::Message(vec![frame.clone()]));
    }
    server.seconds(10);
    assert!(server.silent() == reply);
}

#[test]
fn a_peer_that_is_not_read_from_is_not_silent() {
    let bounds = Bounds {
        unread_bytes: 1000,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    let (_raw, reply) = server.join(1, &ID);
    let large = Bytes::from(vec![1; 24 * MIB]);
    server.router.send(reply, [large]).unwrap();
    server.turn();
    assert!(server.peer(reply).connection.is_paused());
    server.seconds(15);
    assert!(server.seen.is_empty());
}

/// The bug: while all that one client had sent was heard, the others' PONGs lay unread, and they lost their sessions.
#[test]
fn a_peer_is_not_silent_while_what_it_has_sent_lies_unread() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    let mut ping = Vec::new();
    codec::push_ping(&mut ping);
    assert_eq!(raw.say(&ping), ping.len());
    for _ in 0..10 {
        // The owner has others to hear.
        server.router.wait(Some(Duration::from_millis(5))).unwrap();
        server.added += Duration::from_secs(1);
        let now = server.now();
        server.router.tick(now);
        server.router.flush(now);
        assert!(server.router.is_alive(reply, now));
    }
    server.turn();
    assert!(server.seen.is_empty(), "nobody is silent");
    // Read, it has its time again.
    server.seconds(9);
    assert!(server.silent() == reply);
}

#[test]
fn nobody_is_silent_after_the_owner_was_away() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    server.seconds(3);
    server.added += Duration::from_secs(60);
    let now = server.now();
    // Before anything is read.
    server.router.tick(now);
    server.seconds(5);
    assert!(server.seen.is_empty());
    server.say(&mut raw, &message(&[b"here"]));
    assert!(server.message().0 == reply);
}

#[test]
fn a_flood_of_pings_is_answered_once() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    let mut pings = Vec::new();
    for _ in 0..2000 {
        codec::push_command(&mut pings, b"\x04PING\0\0context");
    }
    let now = server.now();
    let mut rest = &pings[..];
    while !rest.is_empty() {
        rest = &rest[raw.say(rest)..];
        server.router.wait(Some(Duration::from_millis(5))).unwrap();
        assert!(server.router.next(now).is_none());
    }
    let mut pong = Vec::new();
    codec::push_pong(&mut pong, b"context");
    assert_eq!(server.router.waiting_bytes(reply), pong.len() as u64);
    assert_eq!(server.hear(&mut raw), Event::Other);
    // Once it has left the next one is answered.
    let one = pings.len() / 2000;
    server.say(&mut raw, &pings[..one]);
    assert_eq!(server.hear(&mut raw), Event::Other);
    assert!(raw.heard.is_empty());
}

#[test]
fn a_handshake_has_ten_seconds() {
    let mut server = Server::new(BOUNDS);
    let hello = hello(1, &ID);
    let mut silent = Raw::connect(server.address);
    let mut slow = Raw::connect(server.address);
    let (_ready, reply) = server.join(0, b"");
    for byte in &hello[..8] {
        server.say(&mut slow, &[*byte]);
        server.second();
    }
    assert_eq!(server.router.peers.len(), 3);
    server.seconds(3);
    server.wait_until_closed(&mut silent);
    server.wait_until_closed(&mut slow);
    assert_eq!(server.router.peers.len(), 1);
    assert!(server.router.is_connected(reply));
    // Nobody knew them.
    assert!(server.seen.is_empty());
}

#[test]
fn there_is_nothing_to_do_for_a_router_without_connections() {
    let mut server = Server::new(BOUNDS);
    assert!(server.router.due().is_none());
    let (raw, reply) = server.join(1, &ID);
    assert!(server.router.due().is_some());
    drop(raw);
    assert!(server.closed() == reply);
    assert!(server.router.due().is_none());
}
