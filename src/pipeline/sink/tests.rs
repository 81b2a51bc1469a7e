//! The sink with a client that has said hello.

pub(super) mod messages;

use zmq::Context;

use self::messages::*;
use super::*;
use crate::error::ErrorCode;
use crate::message::{Member, RequestId};
use crate::pipeline::{TO_SINK, TO_VENTILATOR};
use crate::socket::{self, BusyPoll};
use crate::wire::inner::ToSink;
use crate::zmtp::codec::Limits;
use crate::zmtp::router;
use crate::zmtp::stream::Listener;

/// A sink, a client that has said hello, and where the ventilator would hear it.
struct Bench {
    sink: Sink,
    client: Socket,
    ventilator: Socket,
}

fn bench(max_client_bytes: u64) -> Bench {
    let context = Context::new();
    let bounds = router::Bounds {
        message: Limits {
            message_bytes: 4096,
            frames: 8,
        },
        unfinished_bytes: 1 << 20,
        connections: 10,
        unread_bytes: 1 << 20,
    };
    let listener = Listener::tcp(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = format!("tcp://127.0.0.1:{}", listener.port().unwrap());
    let mut router = Router::new("port_out", bounds).unwrap();
    router.listen(listener).unwrap();
    let mut client = socket::inner(&context, zmq::DEALER).unwrap();
    client.set_identity(&REPLY.0).unwrap();
    client.set_rcvtimeo(20_000).unwrap();
    client.connect(&address).unwrap();
    let ventilator = socket::inner_bound(&context, zmq::PULL, TO_VENTILATOR).unwrap();
    let sink = Sink::new(Setup {
        router,
        inbox: socket::inner_bound(&context, zmq::PULL, TO_SINK).unwrap(),
        ventilator: socket::inner_connected(&context, zmq::PUSH, TO_VENTILATOR).unwrap(),
        doors: Arc::new(Doors::new().unwrap()),
        stop: Arc::new(StopOrder::new().unwrap()),
        clock: Clock::start(),
        waiter: BusyPoll::new(Duration::ZERO).waiter(),
        workers: 2,
        worker_chunks: 4,
        max_client_bytes,
    })
    .unwrap();
    let hello = client::write_message(&ClientMessage::Hello(RequestId(1)));
    frames::send(&mut client, hello, 0).unwrap();
    let mut bench = Bench {
        sink,
        client,
        ventilator,
    };
    assert_eq!(bench.hear(), (RequestId(1), ServerMessage::Welcome));
    bench
}

impl Bench {
    fn tell(&mut self, message: ToSink) {
        self.sink.answers.hear(message, 0, &mut self.sink.exit);
    }

    fn done(&mut self, member: &Member) {
        self.tell(part(member, None));
    }

    fn close(&mut self, member: &Member, chunks: u64) {
        self.tell(close(member, chunks));
    }

    /// Lets the sink write until the client has something.
    fn hear(&mut self) -> (RequestId, ServerMessage) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.client.poll(zmq::POLLIN, 1).unwrap() == 0 {
            assert!(Instant::now() < end, "nothing comes");
            let router = &mut self.sink.exit.router;
            router.wait(Some(Duration::ZERO)).unwrap();
            while let Some(incoming) = self.sink.exit.router.next(Instant::now()) {
                self.sink.hear_client(incoming);
            }
            self.sink.exit.router.flush(Instant::now());
        }
        let frames = frames::receive(&mut self.client, 0).unwrap();
        server::read(frames.expect("in time")).unwrap()
    }

    fn values(&mut self) -> Vec<f32> {
        values(self.hear().1)
    }

    fn error(&mut self) -> ErrorCode {
        code(self.hear().1)
    }

    fn ventilator_hears(&mut self) -> ToVentilator {
        let frames = frames::receive(&mut self.ventilator, zmq::DONTWAIT).unwrap();
        inner::read_to_ventilator(frames.expect("told")).unwrap()
    }
}

#[test]
fn answers_that_wait_are_counted_with_their_headers() {
    let mut bench = bench(10_000);
    for serial in 0..200 {
        bench.close(&member(serial, 0, 10, 10), 0);
    }
    // There is room for its 40 bytes, but not beside errors of some 60 bytes each.
    bench.done(&member(200, 0, 10, 10));
    for _ in 0..200 {
        assert_eq!(bench.error(), ErrorCode::Cancelled);
    }
    assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
    bench.done(&member(201, 0, 10, 10));
    assert_eq!(bench.values().len(), 10, "the room is free again");
}

#[test]
fn a_client_that_is_gone_is_reported() {
    let mut bench = bench(1 << 20);
    let mut lost = member(1, 0, 1, 1);
    lost.reply = ReplyTo([9; 16]);
    bench.done(&lost);
    let gone = bench.ventilator_hears();
    assert!(matches!(gone, ToVentilator::Gone(reply) if reply == lost.reply));
    assert_eq!(bench.sink.exit.undelivered, 1);
}

#[test]
fn a_session_that_cannot_hold_even_its_errors_ends() {
    let mut bench = bench(1000);
    let mut sent = 0;
    while bench.sink.exit.router.is_connected(REPLY) {
        assert!(sent < 100_000, "errors are kept without end");
        bench.close(&member(sent, 0, 10, 10), 0);
        sent += 1;
    }
    assert!(sent > 5000, "a mebibyte of errors may wait");
    let gone = bench.ventilator_hears();
    assert!(matches!(gone, ToVentilator::Gone(REPLY)));
}
