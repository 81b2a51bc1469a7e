//! Peers that do not keep to the protocol, or to our bounds: each gets a violation, and no memory to speak of.

use super::*;

fn violation(decoder: &mut Decoder, input: &[u8]) -> Violation {
    feed_all(decoder, input).unwrap_err()
}

/// The head of a frame that promises so many bytes.
fn head(flags: u8, bytes: u64) -> Vec<u8> {
    let mut head = vec![flags | LONG];
    head.extend_from_slice(&bytes.to_be_bytes());
    head
}

#[test]
fn lengths_that_overflow_are_refused() {
    let unbounded = Limits {
        message_bytes: u64::MAX,
        frames: 12,
    };
    let most = Limits {
        message_bytes: u64::MAX - 1,
        ..unbounded
    };
    for bytes in [u64::MAX, 1 << 63, LIMITS.message_bytes + 1] {
        let alone = violation(&mut ready(LIMITS), &head(0, bytes));
        assert_eq!(alone, Violation::TooLarge, "{bytes}");
        let command = violation(&mut ready(unbounded), &head(COMMAND, bytes));
        assert_eq!(command, Violation::LongCommand, "{bytes}");
        // Behind a frame of one byte the sum overflows.
        let second = [&[MORE, 1, b'x'][..], &head(0, bytes)].concat();
        assert_eq!(violation(&mut ready(LIMITS), &second), Violation::TooLarge);
    }
    let second = [&[MORE, 1, b'x'][..], &head(0, u64::MAX)].concat();
    assert_eq!(violation(&mut ready(most), &second), Violation::TooLarge);
    // Where no bound refuses it, memory does, once so much has come that it is asked for.
    let mut decoder = ready(unbounded);
    feed_all(&mut decoder, &head(0, u64::MAX)).unwrap();
    let bytes = vec![0; FIRST_BYTES + 1];
    assert_eq!(violation(&mut decoder, &bytes), Violation::NoMemory);
}

#[test]
fn frames_that_are_too_large_together_are_refused_at_the_head() {
    let limits = Limits {
        message_bytes: 100,
        frames: 12,
    };
    let fits = [&[MORE, 60][..], &[0; 60], &[0, 40], &[0; 40]].concat();
    assert_eq!(feed_bytes(&mut ready(limits), &fits).unwrap().len(), 1);
    assert_eq!(feed_all(&mut ready(limits), &fits).unwrap().len(), 1);
    let over = [&[MORE, 60][..], &[0; 60], &[0, 41], &[0; 41]].concat();
    let refused = feed_bytes(&mut ready(limits), &over).unwrap_err();
    assert_eq!(refused, (64, Violation::TooLarge));
    assert_eq!(violation(&mut ready(limits), &over), Violation::TooLarge);
}

#[test]
fn a_claim_of_four_gib_takes_no_memory_until_bytes_come() {
    let limits = Limits {
        message_bytes: 8 << 30,
        frames: 12,
    };
    for direct in [false, true] {
        let mut decoder = ready(limits);
        feed_all(&mut decoder, &head(0, 4 << 30)).unwrap();
        let held = |decoder: &Decoder| decoder.body.as_ref().unwrap().data.capacity();
        assert_eq!(held(&decoder), 0);
        let bytes = vec![7; 1000];
        for turn in 0..FIRST_BYTES / 1000 {
            if direct {
                let mut input = &bytes[..];
                assert!(read_directly(&mut decoder, &mut input, 1000, 0).is_empty());
            } else {
                feed_all(&mut decoder, &bytes).unwrap();
            }
            assert!(held(&decoder) <= FIRST_BYTES, "{}", held(&decoder));
            assert_eq!(decoder.unfinished_bytes(), (turn as u64 + 1) * 1000);
        }
    }
}

#[test]
fn an_endless_message_ends_at_its_most_frames() {
    for frame in [&[MORE, 0][..], &[MORE, 1, 0]] {
        let mut decoder = ready(LIMITS);
        for count in 1..=LIMITS.frames as u64 {
            assert!(feed_all(&mut decoder, frame).unwrap().is_empty());
            let bytes = count * (FRAME_COST + frame.len() as u64 - 2);
            assert_eq!(decoder.unfinished_bytes(), bytes);
        }
        assert_eq!(violation(&mut decoder, frame), Violation::TooManyFrames);
    }
    let last = [&[MORE, 0].repeat(LIMITS.frames)[..], &[0, 0]].concat();
    let refused = violation(&mut ready(LIMITS), &last);
    assert_eq!(refused, Violation::TooManyFrames);
}

#[test]
fn a_message_that_came_at_once_has_the_same_bounds() {
    let few = Limits {
        message_bytes: 10,
        frames: 2,
    };
    let frames = [MORE, 1, 0, MORE, 1, 0, 0, 1, 0];
    assert_eq!(
        violation(&mut ready(few), &frames),
        Violation::TooManyFrames
    );
    let bytes = [&[0, 11][..], &[0; 11]].concat();
    assert_eq!(violation(&mut ready(few), &bytes), Violation::TooLarge);
}

#[test]
fn older_versions_are_refused_as_soon_as_it_shows() {
    let refused = |greeting: &[u8]| feed_bytes(&mut fresh(LIMITS), greeting).unwrap_err();
    let signature = [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f];
    // ZMTP 1: an anonymous peer, one with an id, and one with an id of the long form.
    assert_eq!(refused(&[1, 0]), (1, Violation::NoZmtp));
    assert_eq!(refused(&[6, 0, b'h', b'e']), (1, Violation::NoZmtp));
    let long = [0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 2];
    assert_eq!(refused(&long), (10, Violation::NoZmtp));
    // ZMTP 2: a revision and the socket's type. It waits for us to speak, and sends no more.
    let second = [&signature[..], &[1, 5, 0, 0]].concat();
    assert_eq!(refused(&second), (11, Violation::OldVersion));
    assert_eq!(refused(b"GET / HTTP/1.1\r\n"), (1, Violation::NoZmtp));
}

#[test]
fn another_mechanism_is_refused() {
    for mechanism in ["CURVE", "PLAIN", "NUL", "NULLE", ""] {
        let greeting = greeting(1, mechanism);
        let refused = violation(&mut fresh(LIMITS), &greeting);
        assert_eq!(refused, Violation::Mechanism, "{mechanism}");
    }
}

#[test]
fn commands_that_nobody_knows_are_passed_over_and_long_ones_refused() {
    let mut decoder = ready(LIMITS);
    let mut stream = Vec::new();
    push_command(&mut stream, b"\x09SUBSCRIBEtopic");
    push_command(&mut stream, b"\x05READY");
    push_command(&mut stream, b"\x05ERROR\x02no");
    // A PING without a time to live is no PING.
    push_command(&mut stream, b"\x04PING\0");
    push_command(&mut stream, &[0; MAX_COMMAND_BYTES as usize]);
    let events = feed_all(&mut decoder, &stream).unwrap();
    assert_eq!(events, [const { Event::Other }; 5]);
    let long = head(COMMAND, MAX_COMMAND_BYTES + 1);
    assert_eq!(violation(&mut decoder, &long), Violation::LongCommand);
    // A name that is longer than the command, and none at all.
    for command in [&b"\x09PING"[..], b""] {
        let mut stream = Vec::new();
        push_command(&mut stream, command);
        assert_eq!(violation(&mut ready(LIMITS), &stream), Violation::Flags);
    }
}

#[test]
fn a_long_context_of_a_ping_is_not_given_back() {
    let mut stream = Vec::new();
    push_command(&mut stream, &[&b"\x04PING\0\0"[..], &[b'c'; 4000]].concat());
    let events = feed_all(&mut ready(LIMITS), &stream).unwrap();
    let context = Bytes::from_static(&[b'c'; 16]);
    assert_eq!(events, [Event::Ping { ttl: 0, context }]);
}

#[test]
fn flags_of_no_frame_are_refused() {
    for flags in [8, 0x80, 0xff, COMMAND | MORE, COMMAND | MORE | LONG] {
        assert_eq!(violation(&mut ready(LIMITS), &[flags]), Violation::Flags);
    }
}

#[test]
fn a_message_before_the_handshake_is_refused() {
    let stream = [&greeting(1, "NULL")[..], &[0, 1, b'x']].concat();
    assert_eq!(violation(&mut fresh(LIMITS), &stream), Violation::Handshake);
}

/// What becomes of a handshake with that command.
fn shake(command: &[u8]) -> Result<Bytes, Violation> {
    let mut stream = greeting(1, "NULL").to_vec();
    push_command(&mut stream, command);
    let whole = feed_all(&mut fresh(LIMITS), &stream);
    let bytes = feed_bytes(&mut fresh(LIMITS), &stream).map_err(|(_, violation)| violation);
    assert_eq!(whole, bytes);
    match whole?.as_slice() {
        [Event::Ready { identity, .. }] => Ok(identity.clone()),
        events => panic!("{events:?}"),
    }
}

fn property(name: &str, value: &[u8]) -> Vec<u8> {
    let length = (value.len() as u32).to_be_bytes();
    [&[name.len() as u8], name.as_bytes(), &length, value].concat()
}

fn hello_of(properties: &[Vec<u8>]) -> Vec<u8> {
    [b"\x05READY", &properties.concat()[..]].concat()
}

#[test]
fn a_handshake_needs_the_type_of_a_socket_that_can_speak_with_us() {
    let of = |name: &[u8]| shake(&hello_of(&[property("Socket-Type", name)]));
    for peer in ["DEALER", "REQ", "ROUTER"] {
        assert_eq!(of(peer.as_bytes()), Ok(Bytes::new()));
    }
    for peer in ["PUB", "PUSH", "REP", "dealer", "DEALER ", ""] {
        assert_eq!(of(peer.as_bytes()), Err(Violation::SocketType), "{peer}");
    }
    assert_eq!(shake(b"\x05READY"), Err(Violation::SocketType));
    let id_alone = hello_of(&[property("Identity", b"me")]);
    assert_eq!(shake(&id_alone), Err(Violation::SocketType));
}

#[test]
fn a_routing_id_has_up_to_255_bytes_and_does_not_begin_with_0() {
    let dealer = property("socket-TYPE", b"DEALER");
    let with = |id: &[u8]| shake(&hello_of(&[dealer.clone(), property("IDENTITY", id)]));
    for id in [&b""[..], b"a", &[1; 16], &[255; 255]] {
        assert_eq!(with(id), Ok(Bytes::copy_from_slice(id)));
    }
    for id in [&b"\0"[..], b"\0abc", &[1; 256], &[1; 3000]] {
        assert_eq!(with(id), Err(Violation::Identity), "{}", id.len());
    }
}

#[test]
fn a_handshake_that_is_cut_short_or_no_ready_is_refused() {
    let whole = hello_of(&[
        property("Socket-Type", b"DEALER"),
        property("Identity", b"me"),
    ]);
    assert_eq!(shake(&whole), Ok(Bytes::from_static(b"me")));
    for bytes in 0..whole.len() {
        let cut = shake(&whole[..bytes]);
        // Between two properties it is a whole one.
        match bytes {
            6 => assert_eq!(cut, Err(Violation::SocketType)),
            28 => assert_eq!(cut, Ok(Bytes::new())),
            _ => assert_eq!(cut, Err(Violation::Handshake), "{bytes}"),
        }
    }
    assert_eq!(shake(b"\x05ERROR\x04busy"), Err(Violation::Refused));
    assert_eq!(shake(b"\x04PING\0\0"), Err(Violation::Handshake));
    // A value that says it has 4 GiB.
    let huge = [&hello_of(&[])[..], b"\x01X\xff\xff\xff\xffabc"].concat();
    assert_eq!(shake(&huge), Err(Violation::Handshake));
}

#[test]
fn a_handshake_may_have_many_properties_up_to_the_longest_command() {
    let mut properties = vec![property("Socket-Type", b"DEALER")];
    let room = |properties: &[Vec<u8>]| 4096 - hello_of(properties).len();
    while room(&properties) >= 100 {
        properties.push(property("X-Of-No-Use", &[7; 60]));
    }
    let padding = room(&properties) - property("X", b"").len();
    properties.push(property("X", &vec![7; padding]));
    assert_eq!(hello_of(&properties).len(), 4096);
    assert_eq!(shake(&hello_of(&properties)), Ok(Bytes::new()));
    properties.push(Vec::from([0]));
    let over = shake(&hello_of(&properties));
    assert_eq!(over, Err(Violation::LongCommand));
}

/// Where a reader may be when nonsense comes.
fn states() -> Vec<(Decoder, &'static str)> {
    let within = |stream: &[u8]| {
        let mut decoder = ready(LIMITS);
        feed_all(&mut decoder, stream).unwrap();
        decoder
    };
    let mut half = fresh(LIMITS);
    feed_all(&mut half, &greeting(1, "NULL")[..30]).unwrap();
    let mut greeted = fresh(LIMITS);
    feed_all(&mut greeted, &greeting(1, "NULL")).unwrap();
    vec![
        (fresh(LIMITS), "fresh"),
        (half, "in the greeting"),
        (greeted, "in the handshake"),
        (ready(LIMITS), "ready"),
        (within(&[MORE, 2, 1, 2]), "between frames"),
        (within(&head(MORE, 100_000)), "in a large frame"),
        (within(&[0, 200, 1]), "in a small frame"),
        (within(&[LONG, 0, 0, 0]), "in a head"),
        (within(&[COMMAND, 20, 4]), "in a command"),
    ]
}

/// Bytes that get further than any bytes: heads that promise what may follow.
fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (0u8..8, any::<u8>()).prop_map(|(flags, length)| vec![flags, length]),
        (0u8..8, 0u64..70_000).prop_map(|(flags, bytes)| head(flags, bytes)),
        (0u8..8, any::<u64>()).prop_map(|(flags, bytes)| head(flags, bytes)),
        Just(b"\x04\x07\x04PING\0\0".to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
        (0usize..2000).prop_map(|bytes| vec![0; bytes]),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_make_the_reader_panic_or_take_more_than_came(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..2000),
            nearly_frames(),
        ],
        cuts in prop::collection::vec(1usize..500, 1..20),
        direct in any::<bool>(),
    ) {
        for (mut decoder, state) in states() {
            let before = decoder.unfinished_bytes();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (mut now, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                rest = after;
                if direct && let Ok(Some(buffer)) = decoder.direct() {
                    let room = (buffer.capacity() - buffer.len()).min(now.len());
                    buffer.extend_from_slice(&now[..room]);
                    now = &now[room..];
                    let Ok((_, behind)) = decoder.filled() else { break };
                    // The head of the next frame may come with the end of this one.
                    prop_assert!(behind.len() <= HEAD_BYTES, "{state}");
                    if feed_all(&mut decoder, &behind).is_err() {
                        break;
                    }
                }
                if feed_all(&mut decoder, now).is_err() {
                    break;
                }
                let most = before + bytes.len() as u64 + FRAME_COST * LIMITS.frames as u64;
                prop_assert!(decoder.unfinished_bytes() <= most, "{state}");
                let body = decoder.body.as_ref().map_or(0, |body| body.data.capacity());
                prop_assert!(body <= AT_ONCE_BYTES + HEAD_BYTES, "{state}: {body}");
            }
        }
    }
}
