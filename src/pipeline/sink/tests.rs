//! The sink by itself: what it is told, in every order, and what its client hears.

use zmq::Context;

use super::*;
use crate::error::ErrorCode;
use crate::message::{ChunkId, Member, Outcome, Part, RequestId, Serial, WorkerId};
use crate::pipeline::{TO_SINK, TO_VENTILATOR};
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::{Close, ToSink};

const REPLY: ReplyTo = ReplyTo([7; 16]);

/// A sink, a client that has said hello, and the ventilator's ear.
struct Bench {
    sink: Sink,
    client: Socket,
    ventilator: Socket,
}

fn bench(max_client_bytes: u64) -> Bench {
    bench_of(max_client_bytes, 0)
}

/// `mark` messages fill each end of the client's connection; 0: any number.
fn bench_of(max_client_bytes: u64, mark: i32) -> Bench {
    let context = Context::new();
    let router = socket::inner(&context, zmq::ROUTER).unwrap();
    router.set_sndhwm(mark).unwrap();
    router.set_router_mandatory(true).unwrap();
    router.bind("inproc://out").unwrap();
    let mut client = socket::inner(&context, zmq::DEALER).unwrap();
    client.set_identity(&REPLY.0).unwrap();
    client.set_rcvhwm(mark).unwrap();
    client.set_rcvtimeo(20_000).unwrap();
    client.connect("inproc://out").unwrap();
    let ventilator = socket::inner_bound(&context, zmq::PULL, TO_VENTILATOR).unwrap();
    let mut sink = Sink::new(Setup {
        waiter: socket::Waiter::new(socket::Vigil::new(Duration::ZERO)),
        guard: Guard::watch(&context, &router, "out", u64::MAX).unwrap(),
        router,
        inbox: socket::inner_bound(&context, zmq::PULL, TO_SINK).unwrap(),
        ventilator: socket::inner_connected(&context, zmq::PUSH, TO_VENTILATOR).unwrap(),
        clock: Clock::start(),
        workers: 2,
        max_client_bytes,
    })
    .unwrap();
    let hello = client::write_message(&ClientMessage::Hello(RequestId(1)));
    frames::send(&mut client, hello, 0).unwrap();
    let hello = frames::receive(&mut sink.exit.router, 0).unwrap().unwrap();
    sink.greet(hello);
    let mut bench = Bench {
        sink,
        client,
        ventilator,
    };
    assert_eq!(bench.hear(), (RequestId(1), ServerMessage::Welcome));
    bench
}

fn member(serial: u64, offset: u64, rows: u64, total: u64) -> Member {
    Member {
        serial: Serial(serial),
        reply: REPLY,
        request: RequestId(serial + 100),
        offset,
        rows,
        total,
        stream: false,
        whole: false,
        arrived_us: 0,
        queue_us: 5,
    }
}

/// Rows that say where they belong.
fn rows(member: &Member) -> Batch {
    let values: Vec<f32> = (member.offset..member.offset + member.rows)
        .map(|row| row as f32)
        .collect();
    let shape = vec![values.len()];
    Batch {
        tensors: vec![Tensor::from_vec("y", shape, values).unwrap()],
    }
}

fn part(member: &Member, outcome: Option<Outcome>, attempt: u32) -> ToSink {
    ToSink::Part(Box::new(Part {
        chunk: ChunkId(member.offset + 1),
        worker: WorkerId(0),
        attempt,
        compute_us: 10,
        members: vec![member.clone()],
        outcome: outcome.unwrap_or_else(|| Outcome::Done(vec![vec![rows(member)]])),
    }))
}

impl Bench {
    fn tell(&mut self, message: ToSink) {
        self.sink.answers.hear(message, 0, &mut self.sink.exit);
    }

    fn done(&mut self, member: &Member) {
        self.tell(part(member, None, 0));
    }

    fn close(&mut self, member: &Member, chunks: u64) {
        let error = Error::new(ErrorCode::Cancelled, "taken back");
        let mut close = Close::new(member.serial, REPLY, member.request, 0, &error);
        close.chunks = chunks;
        self.tell(ToSink::Close(close));
    }

    fn hear(&mut self) -> (RequestId, ServerMessage) {
        let frames = frames::receive(&mut self.client, 0).unwrap();
        server::read(frames.expect("in time")).unwrap()
    }

    /// A connection that was full takes more when its other end has read.
    fn flush_until_heard(&mut self) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while self.client.poll(zmq::POLLIN, 1).unwrap() == 0 {
            assert!(std::time::Instant::now() < end, "nothing comes");
            self.sink.exit.flush();
        }
    }

    fn hears_nothing(&mut self) {
        let message = frames::receive(&mut self.client, zmq::DONTWAIT).unwrap();
        assert!(message.is_none(), "a second answer");
    }

    fn values(&mut self) -> Vec<f32> {
        let (_, message) = self.hear();
        let ServerMessage::Result(outputs, _) = message else {
            panic!("{message:?}")
        };
        let parts = outputs.parts.iter();
        parts
            .flat_map(|p| p.tensors[0].to_vec::<f32>().unwrap())
            .collect()
    }

    fn error(&mut self) -> ErrorCode {
        match self.hear() {
            (_, ServerMessage::Error(error)) => error.code(),
            other => panic!("{other:?}"),
        }
    }

    fn ventilator_hears(&mut self) -> ToVentilator {
        let frames = frames::receive(&mut self.ventilator, zmq::DONTWAIT).unwrap();
        inner::read_to_ventilator(frames.expect("told")).unwrap()
    }

    /// Nothing is remembered of requests that are over.
    fn remembers_nothing(&self) {
        assert_eq!(self.sink.answers.left(), "");
    }
}

#[test]
fn parts_in_any_order_make_one_result_in_row_order() {
    let mut bench = bench(1 << 20);
    for offset in [4, 0, 2] {
        bench.done(&member(1, offset, 2, 6));
    }
    assert_eq!(bench.values(), [0., 1., 2., 3., 4., 5.]);
    bench.hears_nothing();
    bench.remembers_nothing();
}

#[test]
fn a_part_that_came_twice_counts_once() {
    let mut bench = bench(1 << 20);
    let (first, second) = (member(1, 0, 2, 4), member(1, 2, 2, 4));
    bench.done(&first);
    bench.tell(part(&first, None, 1));
    bench.done(&second);
    assert_eq!(bench.values(), [0., 1., 2., 3.]);
    // And again after the answer: the worker was lost between its part and its credit.
    bench.tell(part(&second, None, 1));
    bench.hears_nothing();
    bench.remembers_nothing();
}

#[test]
fn a_close_that_comes_after_the_result_is_too_late() {
    let mut bench = bench(1 << 20);
    let only = member(1, 0, 3, 3);
    bench.done(&only);
    bench.close(&only, 1);
    assert_eq!(bench.values(), [0., 1., 2.]);
    bench.hears_nothing();
    bench.remembers_nothing();
}

#[test]
fn a_closed_request_is_remembered_until_its_parts_have_come() {
    let mut bench = bench(1 << 20);
    let parts: Vec<_> = [0, 2, 4].map(|offset| member(1, offset, 2, 100)).into();
    bench.done(&parts[0]);
    bench.close(&parts[0], 3);
    assert_eq!(bench.error(), ErrorCode::Cancelled);
    bench.done(&parts[1]);
    assert!(!bench.sink.answers.left().is_empty());
    bench.tell(part(&parts[2], Some(Outcome::Skipped), 0));
    bench.hears_nothing();
    bench.remembers_nothing();
}

#[test]
fn a_close_before_anything_was_given_out_is_forgotten_at_once() {
    let mut bench = bench(1 << 20);
    bench.close(&member(1, 0, 2, 2), 0);
    assert_eq!(bench.error(), ErrorCode::Cancelled);
    bench.remembers_nothing();
}

#[test]
fn parts_that_were_lost_with_their_worker_are_not_waited_for() {
    let mut bench = bench(1 << 20);
    let first = member(1, 0, 2, 100);
    bench.close(&first, 2);
    assert_eq!(bench.error(), ErrorCode::Cancelled);
    bench.tell(ToSink::Lost(first.serial, 1));
    bench.done(&first);
    bench.remembers_nothing();
}

#[test]
fn a_failed_part_never_makes_a_result() {
    let mut bench = bench(1 << 20);
    let (bad, good) = (member(1, 0, 2, 4), member(1, 2, 2, 4));
    bench.tell(part(&bad, Some(Outcome::Failed), 0));
    bench.done(&good);
    bench.hears_nothing();
    bench.close(&bad, 2);
    assert_eq!(bench.error(), ErrorCode::Cancelled);
    bench.remembers_nothing();
}

#[test]
fn too_much_for_one_client_ends_that_request_once() {
    let mut bench = bench(10_000);
    let parts: Vec<_> = [0, 2000, 4000].map(|at| member(1, at, 2000, 6000)).into();
    bench.done(&parts[0]);
    bench.done(&parts[1]);
    assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
    assert!(matches!(
        bench.ventilator_hears(),
        ToVentilator::Abort(Serial(1))
    ));
    // The ventilator closes it without another answer.
    let error = Error::internal("answered");
    let mut close = Close::new(Serial(1), REPLY, RequestId(101), 0, &error);
    (close.chunks, close.answered) = (3, true);
    bench.tell(ToSink::Close(close));
    bench.done(&parts[2]);
    bench.hears_nothing();
    bench.remembers_nothing();
    let small = member(2, 0, 10, 10);
    bench.done(&small);
    assert_eq!(bench.values().len(), 10, "the room is free again");
}

#[test]
fn an_error_of_the_sinks_own_is_the_only_answer_whatever_the_ventilator_says_next() {
    // With a part still to come, and with none.
    for parts in [3, 2] {
        let mut bench = bench(10_000);
        let total = parts * 2000;
        for offset in [0, 2000] {
            bench.done(&member(1, offset, 2000, total));
        }
        assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
        bench.ventilator_hears();
        // It had been taken back before the ventilator read of that.
        bench.close(&member(1, 0, 2000, total), parts);
        if parts == 3 {
            bench.done(&member(1, 4000, 2000, total));
        }
        bench.hears_nothing();
        bench.remembers_nothing();
    }
}

#[test]
fn a_clients_bytes_are_counted_once_and_given_back_once() {
    let mut bench = bench(20_000);
    // 16,000 bytes gathered and 8,000 of another request: the second one is too much, and gives back what it has.
    bench.done(&member(1, 0, 2000, 4000));
    bench.done(&member(2, 0, 1000, 3000));
    bench.done(&member(1, 2000, 2000, 4000));
    assert_eq!(bench.values().len(), 4000, "all of it fits");
    bench.done(&member(2, 1000, 1000, 3000));
    bench.done(&member(2, 2000, 1000, 3000));
    assert_eq!(bench.values().len(), 3000);
    bench.remembers_nothing();
}

#[test]
fn answers_that_wait_are_counted_with_their_headers() {
    let mut bench = bench_of(10_000, 1);
    for serial in 0..200 {
        bench.close(&member(serial, 0, 10, 10), 0);
    }
    // There is room for its 40 bytes, but not beside errors of some 60 bytes each.
    bench.done(&member(200, 0, 10, 10));
    for _ in 0..200 {
        bench.flush_until_heard();
        assert_eq!(bench.error(), ErrorCode::Cancelled);
    }
    bench.flush_until_heard();
    assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
    bench.done(&member(201, 0, 10, 10));
    bench.flush_until_heard();
    assert_eq!(bench.values().len(), 10, "the room is free again");
}

#[test]
fn parts_that_make_no_result_are_an_error_of_that_request() {
    let mut bench = bench(1 << 20);
    let wide = |member: &Member, name: &str, width: usize| {
        let values = vec![0f32; member.rows as usize * width];
        let tensor = Tensor::from_vec(name, vec![member.rows as usize, width], values).unwrap();
        Outcome::Done(vec![vec![tensor.into()]])
    };
    let odd = [
        ("y", 3, "[10, 2]"),
        ("z", 2, "\"z\""),
        // None at all.
        ("", 0, "here"),
    ];
    for (serial, (name, width, told)) in (1..).zip(odd) {
        let (a, b) = (member(serial, 0, 10, 20), member(serial, 10, 10, 20));
        bench.tell(part(&a, Some(wide(&a, "y", 2)), 0));
        let other = match name {
            "" => Outcome::Done(vec![vec![Batch::default()]]),
            name => wide(&b, name, width),
        };
        bench.tell(part(&b, Some(other), 0));
        let (_, message) = bench.hear();
        let ServerMessage::Error(e) = message else {
            panic!("{message:?}")
        };
        assert_eq!(e.code(), ErrorCode::Internal);
        assert!(e.message().contains(told), "{e}");
    }
    bench.done(&member(9, 0, 10, 10));
    assert_eq!(bench.values().len(), 10, "the next one is served");
    bench.remembers_nothing();
}

#[test]
fn a_stream_sends_parts_as_they_come_and_then_its_end() {
    let mut bench = bench(1 << 20);
    for offset in [2, 0] {
        let mut member = member(1, offset, 2, 4);
        member.stream = true;
        bench.done(&member);
        let (_, message) = bench.hear();
        let ServerMessage::Part(at, outputs) = message else {
            panic!("{message:?}")
        };
        assert_eq!(at, offset);
        assert_eq!(outputs.parts, [rows(&member)]);
    }
    let (_, message) = bench.hear();
    let ServerMessage::End(rows, stats) = message else {
        panic!("{message:?}")
    };
    assert_eq!((rows, stats.chunks, stats.compute_us), (4, 2, 20));
    bench.remembers_nothing();
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
    bench.remembers_nothing();
}
