//! Tests of the codec: whatever a peer sends and however it is cut, the same events come, or a violation.

mod hostile;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::zmtp::mechanism::{Null, SocketType};
use crate::zmtp::outgoing::Outgoing;

const LIMITS: Limits = Limits {
    message_bytes: 16 << 20,
    frames: 12,
};

/// A server's reader, at the greeting.
fn fresh(limits: Limits) -> Decoder {
    Decoder::new(
        Box::new(Null::new(SocketType::Router, Bytes::new())),
        limits,
    )
}

/// The greeting and READY of a DEALER with that routing id.
fn hello(minor: u8, identity: &'static [u8]) -> Vec<u8> {
    let mut hello = greeting(minor, "NULL").to_vec();
    let mut null = Null::new(SocketType::Dealer, Bytes::from_static(identity));
    push_command(&mut hello, &null.first());
    hello
}

/// A server's reader, at the first message.
fn ready(limits: Limits) -> Decoder {
    let mut decoder = fresh(limits);
    let events = feed_all(&mut decoder, &hello(1, b"id")).unwrap();
    assert!(matches!(&events[..], [Event::Ready { .. }]), "{events:?}");
    decoder
}

fn feed_all(decoder: &mut Decoder, mut input: &[u8]) -> Result<Vec<Event>, Violation> {
    let mut events = Vec::new();
    while let Some(event) = decoder.feed(&mut input)? {
        events.push(event);
    }
    assert!(input.is_empty(), "no event, and input is left");
    Ok(events)
}

/// Feeds one byte after the other, and says with which the reader had enough.
fn feed_bytes(decoder: &mut Decoder, input: &[u8]) -> Result<Vec<Event>, (usize, Violation)> {
    let mut events = Vec::new();
    for (index, byte) in input.iter().enumerate() {
        events.extend(feed_all(decoder, &[*byte]).map_err(|e| (index + 1, e))?);
    }
    Ok(events)
}

/// Reads a part of the stream as a connection does: into the memory of a large frame where there is one, which may have
/// more room than the frame needs.
fn read_directly(decoder: &mut Decoder, input: &mut &[u8], most: usize, room: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let Some(buffer) = decoder.direct().unwrap() else {
        let (now, rest) = input.split_at(most.min(input.len()));
        *input = rest;
        return feed_all(decoder, now).unwrap();
    };
    buffer.reserve(room);
    let count = most.min(input.len()).min(buffer.capacity() - buffer.len());
    buffer.extend_from_slice(&input[..count]);
    *input = &input[count..];
    let (event, behind) = decoder.filled().unwrap();
    events.extend(event);
    events.extend(feed_all(decoder, &behind).unwrap());
    events
}

/// A frame's numbers, no two frames alike.
fn frame(seed: u8, bytes: usize) -> Bytes {
    let at = |index: usize| (index as u8).wrapping_mul(31).wrapping_add(seed);
    (0..bytes).map(at).collect()
}

/// What a peer may say.
#[derive(Clone, Debug)]
enum Said {
    Message(Vec<usize>),
    Ping(u16, Vec<u8>),
    Pong,
    Unknown(Vec<u8>),
}

fn frame_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => Just(0),
        4 => Just(1),
        3 => 2usize..255,
        2 => Just(255),
        2 => Just(256),
        2 => Just(8 * 1024),
        2 => (8 * 1024 - 20)..(8 * 1024 + 20usize),
        1 => Just(70 * 1024),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        6 => prop::collection::vec(frame_bytes(), 1..=10).prop_map(Said::Message),
        2 => (any::<u16>(), prop::collection::vec(any::<u8>(), 0..=16)).prop_map(|(t, c)| Said::Ping(t, c)),
        1 => Just(Said::Pong),
        1 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Said::Unknown),
    ]
}

/// The bytes of what is said, and the events that it makes.
fn stream_of(all: &[Said]) -> (Vec<u8>, Vec<Event>) {
    let (mut stream, mut events) = (hello(1, b"0123456789abcdef"), Vec::new());
    events.push(Event::Ready {
        minor: 1,
        identity: Bytes::from_static(b"0123456789abcdef"),
    });
    for (seed, said) in all.iter().enumerate() {
        match said {
            Said::Message(sizes) => {
                let part =
                    |(index, bytes): (usize, &usize)| frame((seed * 16 + index) as u8, *bytes);
                let frames: Vec<Bytes> = sizes.iter().enumerate().map(part).collect();
                let mut outgoing = Outgoing::default();
                outgoing.push_message(frames.clone());
                while !outgoing.write_to(&mut stream).unwrap() {}
                events.push(Event::Message(frames));
            }
            Said::Ping(ttl, context) => {
                push_command(
                    &mut stream,
                    &[b"\x04PING", &ttl.to_be_bytes()[..], context].concat(),
                );
                events.push(Event::Ping {
                    ttl: *ttl,
                    context: context.clone().into(),
                });
            }
            Said::Pong => {
                push_pong(&mut stream, b"context");
                events.push(Event::Other);
            }
            Said::Unknown(data) => {
                push_command(&mut stream, &[b"\x07UNKNOWN", &data[..]].concat());
                events.push(Event::Other);
            }
        }
    }
    (stream, events)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_same_events_come_however_the_stream_is_cut(
        said in prop::collection::vec(said(), 0..6),
        cuts in prop::collection::vec(1usize..20_000, 1..40),
        small in prop::collection::vec(1usize..9, 1..40),
    ) {
        let (stream, expected) = stream_of(&said);
        for cuts in [cuts, small, vec![usize::MAX]] {
            let mut decoder = fresh(LIMITS);
            let (mut rest, mut events) = (&stream[..], Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                events.extend(feed_all(&mut decoder, now).unwrap());
                rest = after;
            }
            prop_assert!(events == expected, "{said:?}");
            prop_assert_eq!(decoder.unfinished_bytes(), 0);
        }
    }

    #[test]
    fn messages_are_the_same_whether_frames_are_read_in_place_or_not(
        said in prop::collection::vec(said(), 0..6),
        turns in prop::collection::vec((any::<bool>(), 1usize..100_000, 0usize..200), 1..40),
    ) {
        let (stream, expected) = stream_of(&said);
        let mut decoder = fresh(LIMITS);
        let (mut rest, mut events) = (&stream[..], Vec::new());
        let mut turns = turns.iter().cycle();
        while !rest.is_empty() {
            let (direct, most, room) = turns.next().unwrap();
            if *direct {
                events.extend(read_directly(&mut decoder, &mut rest, *most, *room));
            } else {
                let (now, after) = rest.split_at(rest.len().min(*most));
                events.extend(feed_all(&mut decoder, now).unwrap());
                rest = after;
            }
        }
        prop_assert!(events == expected, "{said:?}");
    }
}

#[test]
fn a_frame_of_megabytes_is_read_where_it_stays() {
    let frames = [frame(1, 5_000_000), frame(2, 3), frame(3, 3_000_001)];
    let mut stream = Vec::new();
    let mut outgoing = Outgoing::default();
    outgoing.push_message(frames.clone());
    while !outgoing.write_to(&mut stream).unwrap() {}
    let mut decoder = ready(LIMITS);
    let (mut rest, mut events, mut places) = (&stream[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let read = read_directly(&mut decoder, &mut rest, 32 * 1024, 0);
        events.extend(read);
        if let Some(body) = &decoder.body
            && body.data.capacity() >= 3_000_000
        {
            places.push(body.data.as_ptr());
        }
    }
    let [Event::Message(message)] = &events[..] else {
        panic!("{} events", events.len());
    };
    assert!(message[..] == frames);
    places.dedup();
    assert_eq!(places, [message[0].as_ptr(), message[2].as_ptr()]);
}

#[test]
fn frames_of_a_message_that_came_at_once_begin_where_numbers_can_be_used() {
    for sizes in [&[5, 8, 0, 3, 16, 1][..], &[1], &[0, 0], &[255, 256, 300, 4]] {
        let frames: Vec<Bytes> = sizes.iter().map(|bytes| frame(9, *bytes)).collect();
        let mut stream = Vec::new();
        let mut outgoing = Outgoing::default();
        outgoing.push_message(frames.clone());
        outgoing.write_to(&mut stream).unwrap();
        let events = feed_all(&mut ready(LIMITS), &stream).unwrap();
        let [Event::Message(message)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(message[..], frames);
        let first = message[0].as_ptr() as usize;
        for frame in message.iter().filter(|frame| !frame.is_empty()) {
            assert_eq!(
                (frame.as_ptr() as usize).wrapping_sub(first) % 16,
                0,
                "{sizes:?}"
            );
        }
    }
}

#[test]
fn what_is_said_after_the_handshake_in_the_same_bytes_is_heard() {
    let (stream, expected) = stream_of(&[Said::Message(vec![3, 0]), Said::Pong]);
    assert_eq!(feed_all(&mut fresh(LIMITS), &stream).unwrap(), expected);
}

#[test]
fn a_greeting_may_come_a_byte_at_a_time() {
    let events = feed_bytes(&mut fresh(LIMITS), &hello(0, b"me")).unwrap();
    let identity = Bytes::from_static(b"me");
    assert_eq!(events, [Event::Ready { minor: 0, identity }]);
}

#[test]
fn a_later_major_version_is_spoken_to_as_3_0() {
    let mut stream = hello(7, b"");
    stream[10] = 4;
    let events = feed_all(&mut fresh(LIMITS), &stream).unwrap();
    let identity = Bytes::new();
    assert_eq!(events, [Event::Ready { minor: 0, identity }]);
}

#[test]
fn a_ping_within_a_message_is_answered_and_the_message_is_whole() {
    let mut stream = Vec::new();
    push_head(&mut stream, 3, true);
    stream.extend_from_slice(b"one");
    push_command(&mut stream, b"\x04PING\0\x0acontext");
    push_head(&mut stream, 300, true);
    stream.extend_from_slice(&frame(1, 300));
    push_command(&mut stream, b"\x03ODD");
    push_head(&mut stream, 0, false);
    let expected = [
        Event::Ping {
            ttl: 10,
            context: Bytes::from_static(b"context"),
        },
        Event::Other,
        Event::Message(vec![
            Bytes::from_static(b"one"),
            frame(1, 300),
            Bytes::new(),
        ]),
    ];
    assert_eq!(feed_all(&mut ready(LIMITS), &stream).unwrap(), expected);
    assert_eq!(feed_bytes(&mut ready(LIMITS), &stream).unwrap(), expected);
}

#[test]
fn a_ping_of_our_own_asks_for_an_answer_and_for_nothing_else() {
    let mut stream = Vec::new();
    push_ping(&mut stream);
    assert_eq!(stream, b"\x04\x07\x04PING\0\0");
    let events = feed_all(&mut ready(LIMITS), &stream).unwrap();
    let context = Bytes::new();
    assert_eq!(events, [Event::Ping { ttl: 0, context }]);
}
