//! A server that stops while results are leaving: they arrive, and nobody who does not read them keeps it for ever.

use std::time::{Duration, Instant};

use crate::common::{eventually, within};
use crate::line;
use crate::peer::{Pair, Version};
use crate::raw::{Raw, receive, routing_id, send};
use crate::{LIMIT, MIB, answered, rows_of, server, wide};

/// The end looked at the queue alone, and then waited for one second.
#[test]
fn a_result_that_is_leaving_when_the_server_is_told_to_stop_arrives_whole() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "wide"]);
        let mut bystander = Raw::open(&server);
        let out = line::slow(server.port_out, 4 * MIB);
        let address = |port| format!("tcp://127.0.0.1:{port}");
        let mut raw = Raw::at(&address(server.port), &address(out), Some(&routing_id()));
        raw.greet();
        let id = raw.id();
        send(&raw.port, &wide(id, rows_of(40)));
        eventually("it was given out", || answered(&mut bystander) == 1);
        server.signal("TERM");
        let answer = receive(&raw.out);
        assert_eq!(answer.kind(), "result", "{:?}", answer.header);
        let bytes: usize = answer.payload.iter().map(Vec::len).sum();
        assert_eq!(bytes, 40 * MIB);
        let mut all = answer.payload.iter().flatten();
        assert!(all.all(|byte| *byte == id as u8 & 0x3f));
        assert!(server.wait().success());
    });
}

#[test]
fn a_reader_that_takes_nothing_is_given_up_and_the_server_ends() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "wide"]);
        let mut bystander = Raw::open(&server);
        let mut pair = Pair::at(server.port, server.port_out, Version::V31).expect("a session");
        pair.port.send(&wide(2, rows_of(40))).expect("sent");
        eventually("it was given out", || answered(&mut bystander) == 1);
        let begun = Instant::now();
        server.signal("TERM");
        assert!(server.wait().success());
        let took = begun.elapsed();
        // 6 s without a byte are what it may take.
        let expected = Duration::from_secs(4)..Duration::from_secs(30);
        assert!(expected.contains(&took), "it took {took:?}");
        assert!(server.log().contains("did not read"), "{}", server.log());
    });
}

/// A second order to stop does not wait for anybody.
#[test]
fn a_stop_at_once_does_not_wait_for_a_slow_reader() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "wide"]);
        let mut bystander = Raw::open(&server);
        let mut pair = Pair::open(&server);
        pair.port.send(&wide(2, rows_of(40))).expect("sent");
        eventually("it was given out", || answered(&mut bystander) == 1);
        let order = serde_json::json!({"v": 1, "type": "terminate", "id": 3, "mode": "now"});
        let begun = Instant::now();
        pair.port
            .send(&[crate::raw::pack(&order)])
            .expect("an order");
        assert!(server.wait().success());
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "it took {took:?}");
    });
}
