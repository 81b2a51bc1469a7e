//! What peers may make the server hold: connections, unfinished messages, answers that they do not read.

use super::*;

#[test]
fn a_connection_beyond_the_bound_is_turned_away() {
    let bounds = Bounds {
        connections: 2,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    let (first, first_reply) = server.join(1, &ID);
    let (mut second, reply) = server.join(1, b"");
    let mut third = Raw::connect(server.address);
    server.wait_until_closed(&mut third);
    server.say(&mut second, &message(&[b"still here"]));
    assert!(server.message().0 == reply);
    drop(first);
    assert!(server.closed() == first_reply);
    server.join(1, &ID);
}

#[test]
fn those_that_gain_least_go_first_when_too_much_is_unfinished() {
    const KIB: usize = 1024;
    let bounds = Bounds {
        unfinished_bytes: 4096 * KIB as u64,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    // Peers of version 3.0: silence is not what this is about.
    let mut peers: Vec<_> = (0..12).map(|_| server.join(0, b"")).collect();
    // The first two are nearly done when they have said what makes it too much: what they lack then has room.
    let sizes = [957, 1257].into_iter().chain([2048; 10]);
    let sizes: Vec<usize> = sizes.map(|size| size * KIB).collect();
    for ((raw, _), size) in peers.iter_mut().zip(&sizes) {
        server.say(raw, &promise(*size));
        server.say(raw, &vec![1; 300 * KIB]);
    }
    // The first six go on slowly, the others do not.
    for _ in 0..7 {
        for (raw, _) in &mut peers[..6] {
            server.say(raw, &[2; 1024]);
        }
        server.second();
    }
    let held = (12 * 300 + 6 * 7) * KIB as u64;
    server.wait_for(|server| server.router.unfinished_bytes == held);
    assert!(server.seen.is_empty());
    server.say(&mut peers[0].0, &vec![3; 600 * KIB]);
    server.say(&mut peers[1].0, &vec![3; 900 * KIB]);
    // Those two make 5,142 KiB of 3,642: four of 300 have to go.
    let expected: Vec<_> = peers[6..10].iter().map(|(_, reply)| *reply).collect();
    let gone: Vec<_> = (0..4).map(|_| server.closed()).collect();
    assert!(gone == expected);
    for (raw, _) in &mut peers[6..10] {
        server.wait_until_closed(raw);
    }
    // The others come to their end.
    for index in [0, 1, 2, 3, 4, 5, 10, 11] {
        let (raw, reply) = &mut peers[index];
        let had = match index {
            0 => 300 + 7 + 600,
            1 => 300 + 7 + 900,
            2..6 => 300 + 7,
            _ => 300,
        };
        server.say(raw, &vec![4; sizes[index] - had * KIB]);
        match server.incoming() {
            Incoming::Message(from, frames) => {
                assert!(from == *reply);
                assert_eq!(frames[0].len(), sizes[index]);
            }
            other => panic!("{index}: {other:?}"),
        }
    }
    assert_eq!(server.router.unfinished_bytes, 0);
}

#[test]
fn a_large_message_that_is_alone_comes_whatever_the_bound_for_all() {
    let bounds = Bounds {
        unfinished_bytes: MIB as u64,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    let (mut large, large_reply) = server.join(0, b"");
    let (mut small, small_reply) = server.join(0, b"");
    // A small one beside it does not make it go, and does not have to go itself.
    server.say(&mut small, &promise(100));
    server.say(&mut small, b"begun");
    server.say(&mut large, &promise(3 * MIB));
    server.say(&mut large, &vec![7; 3 * MIB]);
    let (from, frames) = server.message();
    assert!(from == large_reply && frames[0].len() == 3 * MIB);
    server.say(&mut small, &[0; 95]);
    assert!(server.message().0 == small_reply);
}

#[test]
fn small_messages_that_never_end_are_bounded_too() {
    let bounds = Bounds {
        unfinished_bytes: 100_000,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    let mut peers: Vec<_> = (0..4).map(|_| server.join(0, b"")).collect();
    for (raw, _) in &mut peers {
        server.say(raw, &promise(60_000));
        server.say(raw, &[7; 30_000]);
    }
    let gone = server.closed();
    assert!(peers.iter().any(|(_, reply)| *reply == gone));
    server.turn();
    assert!(server.seen.is_empty());
    assert_eq!(server.router.unfinished_bytes, 90_000);
}

#[test]
fn what_breaks_the_protocol_is_closed_and_forgotten() {
    let mut server = Server::new(BOUNDS);
    let nonsense = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        codec::greeting(1, "CURVE").to_vec(),
        [hello(1, &ID), vec![0xff]].concat(),
        [hello(1, &ID), promise(65 * MIB)].concat(),
        [hello(1, &ID), [1, 0].repeat(65)].concat(),
    ];
    for (index, bytes) in nonsense.iter().enumerate() {
        let mut raw = Raw::connect(server.address);
        assert_eq!(raw.say(bytes), bytes.len());
        server.wait_until_closed(&mut raw);
        if index >= 2 {
            assert!(server.closed() == ReplyTo(ID));
        }
        assert!(server.seen.is_empty());
        assert!(server.router.peers.is_empty());
        assert_eq!(server.router.unfinished_bytes, 0);
    }
}

#[test]
fn a_peer_that_does_not_read_its_answers_is_not_read_from_until_it_does() {
    const MESSAGE: usize = 64 * 1024;
    const COUNT: usize = 400;
    let bounds = Bounds {
        unread_bytes: 256 * 1024,
        ..BOUNDS
    };
    let mut server = Server::new(bounds);
    let (mut raw, reply) = server.join(1, &ID);
    let bytes = message(&[&[5; MESSAGE]]).repeat(COUNT);
    let (mut rest, mut echoed, mut still) = (&bytes[..], 0, 0);
    while still < 20 {
        let said = raw.say(&rest[..rest.len().min(MIB)]);
        rest = &rest[said..];
        let more = server.echo();
        echoed += more;
        still = if said + more == 0 { still + 1 } else { 0 };
        let most = (256 * 1024 + 2 * MESSAGE) as u64;
        assert!(server.router.waiting_bytes(reply) <= most);
    }
    assert!(echoed < COUNT && !rest.is_empty(), "{echoed}");
    let mut came = 0;
    while came < COUNT {
        rest = &rest[raw.say(rest)..];
        server.echo();
        raw.read();
        while let Some(event) = raw.heard.pop_front() {
            assert!(matches!(event, Event::Message(frames) if frames[0].len() == MESSAGE));
            came += 1;
        }
    }
}

#[test]
fn an_idle_connection_holds_little() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    // Large and small ones have gone both ways.
    for bytes in [10, 100_000, 3_000, 500] {
        server.say(
            &mut raw,
            &message(&[&vec![1; bytes], b"more", &vec![2; bytes]]).repeat(20),
        );
        for _ in 0..20 {
            let (_, frames) = server.message();
            server.router.send(reply, frames).unwrap();
        }
        for _ in 0..20 {
            server.hear(&mut raw);
        }
    }
    server.wait_for(|server| server.router.waiting_bytes(reply) == 0);
    let (peer, heap) = (
        size_of::<Peer>(),
        server.peer(reply).connection.kept_bytes(),
    );
    println!("a connection: {peer} bytes in its place, {heap} elsewhere");
    // Places are taken twice as many as are used at worst.
    assert!(2 * peer + heap <= 2048, "{peer} {heap}");
}
