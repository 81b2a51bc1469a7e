//! One client's flood and another's single request: turns go by client, not by request.

use std::time::Duration;

use serde_json::json;

use crate::common::{Server, eventually, models, onnx, within};
use crate::models::{BUSY_ROWS, busy, busy_rows};
use crate::raw::{Raw, pack, receive, send};
use crate::{LIMIT, answered, door, queued, slow};

const FLAGS: [&str; 6] = [
    "--intra-op-threads",
    "1",
    "--preload",
    "slow",
    "--preload",
    "busy",
];

/// The only worker is kept inside a model while a flood queues and, behind it, another client's request; how many of
/// the flood are answered before that one is.
fn answered_before(flood: usize, flood_rows: usize, rows: usize) -> usize {
    let folder = models(&[
        ("slow.onnx", onnx::bilstm()),
        ("busy.onnx", busy()),
        ("busy.proxy", busy_rows("busy")),
    ]);
    let server = Server::start(folder, &FLAGS);
    let mut count: i64 = 2_000_000;
    // A machine that is slow to send is given more time, until the server's own count says that it was enough.
    for _ in 0..4 {
        let [mut keeper, mut many, mut one] = [(); 3].map(|()| Raw::open(&server));
        let before = answered(&mut one);
        let id = keeper.id();
        send(&keeper.port, &keep_busy(id, count));
        eventually("the worker is busy", || {
            one.status()["workers"][0]["state"] == "busy"
        });
        for _ in 0..flood {
            let id = many.id();
            send(&many.port, &slow(id, flood_rows));
        }
        // Answered where it was asked, behind all of the flood; results may come meanwhile.
        many.status();
        let id = one.id();
        send(&one.port, &slow(id, rows));
        let all_queued = queued(&mut one) == 2 + flood as u64;
        let answer = receive(&one.out);
        assert_eq!((answer.kind(), answer.id()), ("result", id));
        let earlier = answered(&mut one) - before;
        for _ in 0..flood {
            assert_eq!(receive(&many.out).kind(), "result");
        }
        if all_queued {
            // The one that kept the worker, and this one.
            return earlier as usize - 2;
        }
        count *= 4;
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the worker was never busy for long enough");
}

fn keep_busy(id: u64, count: i64) -> Vec<Vec<u8>> {
    let header = json!({
        "v": 1, "type": "infer", "id": id, "model": "busy",
        "inputs": [{"name": "x", "dtype": "INT64", "shape": [BUSY_ROWS]}],
    });
    vec![pack(&header), count.to_le_bytes().repeat(BUSY_ROWS)]
}

/// It came last of all: 3.68 s behind 4,600.
#[test]
fn one_row_does_not_wait_behind_another_clients_thousands() {
    within(LIMIT, || {
        let flood = 5_000;
        let earlier = answered_before(flood, 1, 1);
        println!("{earlier} of {flood} were answered before");
        assert!(earlier < flood / 2, "{earlier} of {flood} came first");
    });
}

/// Turns went by request, so that twenty requests had twenty turns for each of this one's.
#[test]
fn a_bulk_request_does_not_wait_behind_another_clients_twenty() {
    within(LIMIT, || {
        let flood = 20;
        let earlier = answered_before(flood, 300, 300);
        println!("{earlier} of {flood} were answered before");
        assert!(earlier < flood / 4, "{earlier} of {flood} came first");
    });
}

/// Callers of a door have turns as sessions have.
#[test]
fn one_caller_of_a_door_does_not_wait_behind_anothers_thousands() {
    within(LIMIT, || {
        let inside = door::Inside::start(&FLAGS);
        let (mut door, mut watcher) = (inside.door(), inside.door());
        let flood = 5_000;
        let kept = door.submit(1, door::keep_busy(4_000_000)).expect("room");
        for _ in 0..flood {
            door.submit(2, door::slow(1)).expect("room");
        }
        let one = door.submit(3, door::slow(1)).expect("room");
        eventually("all are queued", || {
            let status = door::status(&mut watcher, 1);
            status.queue.requests + status.totals.requests == 2 + flood as u64
        });
        let mut earlier = 0;
        loop {
            let answer = door::next(&mut door);
            if answer.id == one {
                break;
            }
            earlier += usize::from(answer.id != kept);
        }
        println!("{earlier} of {flood} were answered before");
        assert!(earlier < flood / 2, "{earlier} of {flood} came first");
    });
}
