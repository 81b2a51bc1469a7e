//! Peers that keep to the protocol: libzmq's sockets over TCP and ipc, and routing ids of any length.

use super::*;

/// libzmq's end, without bounds of its own.
fn dealer(context: &zmq::Context, endpoint: &str, identity: &[u8]) -> zmq::Socket {
    let dealer = context.socket(zmq::DEALER).unwrap();
    if !identity.is_empty() {
        dealer.set_identity(identity).unwrap();
    }
    dealer.set_linger(0).unwrap();
    dealer.set_sndhwm(0).unwrap();
    dealer.set_rcvhwm(0).unwrap();
    dealer.connect(endpoint).unwrap();
    dealer
}

fn tcp(server: &Server) -> String {
    format!("tcp://{}", server.address)
}

/// All messages go to a server that sends them back, and come back.
fn all_come_back(server: &mut Server, dealer: &zmq::Socket, messages: &[Vec<Vec<u8>>]) {
    for message in messages {
        dealer.send_multipart(message, 0).unwrap();
    }
    for (index, message) in messages.iter().enumerate() {
        let answer = loop {
            match dealer.recv_multipart(zmq::DONTWAIT) {
                Ok(answer) => break answer,
                Err(zmq::Error::EAGAIN) => {
                    server.echo();
                }
                Err(e) => panic!("{e}"),
            }
        };
        assert!(answer == *message, "message {index}");
    }
}

fn frame(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at * 7 + at / 256 + seed) as u8)
        .collect()
}

fn many_shapes() -> Vec<Vec<Vec<u8>>> {
    let sizes = [0, 1, 255, 256, 4096, 4097, 70_000, 1_000_000];
    let of = |seed: usize| {
        let at = |index| frame(seed + index, sizes[(seed * 3 + index) % sizes.len()]);
        (0..=seed % 5).map(at).collect()
    };
    (0..24).map(of).collect()
}

#[test]
fn libzmq_sends_and_gets_messages_of_any_shape_over_tcp() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let dealer = dealer(&context, &tcp(&server), &ID);
    all_come_back(&mut server, &dealer, &many_shapes());
    assert!(server.router.is_connected(ReplyTo(ID)));
    drop(dealer);
    assert!(server.closed() == ReplyTo(ID));
    assert!(!server.router.is_connected(ReplyTo(ID)));
}

#[test]
fn libzmq_sends_and_gets_messages_of_any_shape_over_ipc() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front");
    let mut server = Server::new(BOUNDS);
    server
        .router
        .listen(Listener::local(&path).unwrap())
        .unwrap();
    let context = zmq::Context::new();
    let ipc = format!("ipc://{}", path.display());
    let local = dealer(&context, &ipc, &ID);
    all_come_back(&mut server, &local, &many_shapes());
    // And TCP beside it.
    let far = dealer(&context, &tcp(&server), b"another id of 16");
    all_come_back(&mut server, &far, &many_shapes()[..5]);
    // Its path is free for the next server.
    drop(server);
    Listener::local(&path).unwrap();
}

#[test]
fn many_small_messages_in_a_row_all_come_back_in_order() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let dealer = dealer(&context, &tcp(&server), &ID);
    let small = |index: usize| vec![index.to_le_bytes().to_vec(), frame(index, index % 50)];
    let messages: Vec<_> = (0..20_000).map(small).collect();
    all_come_back(&mut server, &dealer, &messages);
}

#[test]
fn frames_of_megabytes_go_both_ways() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let dealer = dealer(&context, &tcp(&server), &ID);
    let large = |seed| {
        vec![
            frame(seed, 40),
            frame(seed + 1, 8 * MIB),
            frame(seed + 2, 8 * MIB + 1),
        ]
    };
    all_come_back(&mut server, &dealer, &[large(1), large(5)]);
}

#[test]
fn ids_of_another_length_have_a_name_without_a_session() {
    let mut server = Server::new(BOUNDS);
    let context = zmq::Context::new();
    let ids = [&b""[..], b"", b"short", &[9; 255], &ID];
    let dealers = ids.map(|id| dealer(&context, &tcp(&server), id));
    let mut names = Vec::new();
    for (index, dealer) in dealers.iter().enumerate() {
        dealer.send(format!("{index}").as_bytes(), 0).unwrap();
        let (reply, frames) = server.message();
        assert_eq!(frames, [format!("{index}").as_bytes()]);
        assert_eq!(reply.is_session(), ids[index].len() == 16, "{index}");
        assert!(!names.contains(&reply), "{index}");
        names.push(reply);
    }
    for (index, name) in names.iter().enumerate().rev() {
        let answer = Bytes::from(format!("to {index}"));
        server.router.send(*name, [answer]).unwrap();
    }
    let now = server.now();
    server.router.flush(now);
    for (index, dealer) in dealers.iter().enumerate() {
        dealer.set_rcvtimeo(10_000).unwrap();
        let answer = dealer.recv_bytes(0).unwrap();
        assert_eq!(answer, format!("to {index}").as_bytes());
    }
}

#[test]
fn a_second_connection_with_an_id_in_use_is_closed_and_the_first_goes_on() {
    let mut server = Server::new(BOUNDS);
    for id in [&ID[..], b"odd"] {
        let (mut first, reply) = server.join(1, id);
        let mut second = Raw::connect(server.address);
        let claim = [hello(1, id), message(&[b"it is me"])].concat();
        server.say(&mut second, &claim);
        server.wait_until_closed(&mut second);
        server.say(&mut first, &message(&[b"still", b"here"]));
        let (from, frames) = server.message();
        assert!(from == reply);
        assert_eq!(frames, [&b"still"[..], b"here"]);
        server.send(reply, &[b"yes"]);
        assert_eq!(server.hear(&mut first), heard(&[b"yes"]));
        // Once the first has left, the id is free.
        drop(first);
        assert!(server.closed() == reply);
        let (third, again) = server.join(1, id);
        assert_eq!(again == reply, id.len() == 16);
        drop(third);
        assert!(server.closed() == again);
    }
}

#[test]
fn the_place_of_a_closed_connection_is_not_mistaken_for_it() {
    let mut server = Server::new(BOUNDS);
    let (old, old_reply) = server.join(1, b"");
    let old_token = server.router.peers.token(old_reply).unwrap();
    drop(old);
    assert!(server.closed() == old_reply);
    let (mut new, new_reply) = server.join(1, b"");
    let new_token = server.router.peers.token(new_reply).unwrap();
    let place = |token: u64| token & 0xff_ffff;
    assert_eq!(
        place(old_token),
        place(new_token),
        "the place was used again"
    );
    assert_ne!(old_token, new_token);
    let sent = server
        .router
        .send(old_reply, [Bytes::from_static(b"for the old one")]);
    assert_eq!(sent, Err(NotConnected));
    let now = server.now();
    server.router.close(old_reply, now);
    // What a poller still says about the old one is not about the new one.
    server.router.mark_unwritten(old_token);
    server.router.readable.push_back(old_token);
    server.turn();
    server.send(new_reply, &[b"for the new one"]);
    assert_eq!(server.hear(&mut new), heard(&[b"for the new one"]));
}

#[test]
fn complete_messages_that_had_come_are_given_when_a_connection_is_closed() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    let mut bytes = Vec::new();
    for number in 0..100u8 {
        bytes.extend(message(&[&[number], &[7; 1000]]));
    }
    bytes.extend(promise(50));
    assert_eq!(raw.say(&bytes), bytes.len());
    // All of it lies at the server's end, unread.
    let now = server.now();
    server.router.close(reply, now);
    for number in 0..100u8 {
        let (from, frames) = server.message();
        assert!(from == reply);
        assert_eq!(frames[0], [number][..]);
    }
    assert!(server.closed() == reply);
    server.wait_until_closed(&mut raw);
    assert_eq!(server.router.unfinished_bytes, 0);
}

#[test]
fn what_a_peer_said_counts_when_it_leaves_without_reading_its_answers() {
    // Read from when it left, or not.
    for unread_bytes in [u64::MAX, 1000] {
        let bounds = Bounds {
            unread_bytes,
            ..BOUNDS
        };
        let mut server = Server::new(bounds);
        let (mut raw, reply) = server.join(1, &ID);
        let large = Bytes::from(vec![1; 24 * MIB]);
        server.router.send(reply, [large]).unwrap();
        let now = server.now();
        server.router.flush(now);
        assert!(server.router.waiting_bytes(reply) > 0);
        let mut bytes = Vec::new();
        for number in 0..40u8 {
            bytes.extend(message(&[&[number], &[7; 1000]]));
        }
        assert_eq!(raw.say(&bytes), bytes.len());
        drop(raw);
        for number in 0..40u8 {
            let (from, frames) = server.message();
            assert!(from == reply);
            assert_eq!(frames[0], [number][..]);
        }
        assert!(server.closed() == reply);
    }
}

#[test]
fn nobody_waits_while_something_was_read_that_nobody_has_taken() {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    raw.say(&message(&[b"one"]).repeat(2));
    let now = server.now();
    while server.router.next(now).is_none() {
        server.router.wait(None).unwrap();
    }
    assert!(server.router.has_input());
    assert!(server.router.wait(None).unwrap());
    assert!(server.message().0 == reply);
}
