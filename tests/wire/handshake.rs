//! What peers say of themselves before their first message.

use std::io::{Read, Write};

const LIMIT: std::time::Duration = crate::common::PATIENCE;
use crate::common::within;
use crate::ids::echo_server;
use crate::raw::Raw;
use crate::zmtp;

fn property(name: &str, value: &[u8]) -> Vec<u8> {
    let mut property = vec![name.len() as u8];
    property.extend(name.as_bytes());
    property.extend((value.len() as u32).to_be_bytes());
    property.extend(value);
    property
}

/// A greeting and a READY with these properties beside the socket's type.
fn hands(properties: &[u8]) -> Vec<u8> {
    let ready = [
        b"\x05READY",
        &property("Socket-Type", b"DEALER")[..],
        properties,
    ]
    .concat();
    let mut hands = zmtp::greeting();
    hands.push(6); // a long command
    hands.extend((ready.len() as u64).to_be_bytes());
    hands.extend(ready);
    hands
}

/// The server ends the connection.
fn is_refused(port: u16, hands: &[u8]) {
    let mut stream = zmtp::plain(port);
    // It may hang up before it has read all.
    let _ = stream.write_all(hands);
    let mut theirs = Vec::new();
    let _ = stream.read_to_end(&mut theirs);
    assert!(theirs.len() < 200, "{theirs:?}");
}

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn a_peer_that_claims_too_much_is_refused_and_nobody_notices() {
    within(LIMIT, || {
        let mut server = echo_server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let base = server.resident_bytes();
        let many: Vec<u8> = (0..400_000u32)
            .flat_map(|n| property(&n.to_string(), b""))
            .collect();
        for port in [server.port, server.port_out] {
            // Ids that begin with 0 are those that libzmq gives to peers without one; a few of the first that it gives.
            for first in [0x6B8B_4567u32, 0xE43C_9869, 0, 1] {
                let id = [&[0], &first.to_be_bytes()[..]].concat();
                is_refused(port, &hands(&property("Identity", &id)));
                is_refused(port, &hands(&property("identity", &id)));
            }
            is_refused(port, &hands(&property("Identity", &[7; 256])));
            bystander.round(&[[2.0; 4]]);
            if port == server.port {
                is_refused(port, &hands(&property("Identity", &vec![7; 8 << 20])));
                is_refused(port, &hands(&many));
            }
            // Without an id, and with the longest that there is: heard, if not understood.
            let mut stream = zmtp::plain(port);
            stream.write_all(&hands(&[])).expect("a handshake");
            let mut theirs = [0; 70];
            stream.read_exact(&mut theirs).expect("a greeting");
            drop(zmtp::dealer(port, &[7; 200]));
            bystander.round(&[[3.0; 4]]);
        }
        assert!(server.is_running());
        let grown = server.resident_bytes().saturating_sub(base);
        assert!(grown < 64 << 20, "grew by {grown} bytes");
    });
}

#[test]
fn peers_of_older_protocols_are_refused() {
    within(LIMIT, || {
        let mut server = echo_server(&[]);
        let mut bystander = Raw::open(&server);
        for port in [server.port, server.port_out] {
            // ZMTP 1.0 without a version, and 2.0; both give an id that begins with 0.
            is_refused(port, b"\x06\x00\x00\x6B\x8B\x45\x67\x04\x00abc");
            is_refused(
                port,
                b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\x00\x05\x00\x6B\x8B\x45\x67",
            );
            bystander.round(&[[4.0; 4]]);
        }
        assert!(server.is_running());
    });
}
