//! The answers by themselves: what they are told, in every order, and what the client hears.

mod bad_rows;

use std::collections::VecDeque;

use super::*;
use crate::error::ErrorCode;
use crate::message::{FailedRows, RequestId, WorkerId};
use crate::pipeline::sink::tests::messages::*;
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::Out;
use crate::wire::server::ServerMessage;

/// What clients and the ventilator are told.
#[derive(Default)]
struct Told {
    answers: VecDeque<(RequestId, ServerMessage)>,
    ventilator: VecDeque<ToVentilator>,
}

impl Outlet for Told {
    fn unsent_bytes(&self, _: ReplyTo) -> u64 {
        0
    }

    fn perform(&mut self, action: Action<'_>) {
        let (reply, request, message) = match action {
            Action::Result {
                reply,
                request,
                rows,
            } => (reply, request, rows.to_message()),
            Action::Answer {
                reply,
                request,
                message,
            } => (reply, request, message),
            Action::TellVentilator(message) => return self.ventilator.push_back(message),
        };
        assert_eq!(reply, REPLY);
        self.answers.push_back((request, message));
    }
}

struct Bench {
    answers: AnswerState,
    told: Told,
}

fn bench(max_client_bytes: u64) -> Bench {
    let bounds = Bounds {
        workers: 2,
        worker_chunks: 4,
        max_client_bytes,
        answered: 100,
    };
    Bench {
        answers: AnswerState::new(&bounds).unwrap(),
        told: Told::default(),
    }
}

impl Bench {
    fn tell(&mut self, message: ToSink) {
        self.answers.hear(message, 0, &mut self.told);
    }

    fn done(&mut self, member: &Member) {
        self.tell(part(member, None));
    }

    fn close(&mut self, member: &Member, chunks: u64) {
        self.tell(close(member, chunks));
    }

    fn hear(&mut self) -> (RequestId, ServerMessage) {
        self.told.answers.pop_front().expect("an answer")
    }

    fn hears_nothing(&mut self) {
        assert!(self.told.answers.is_empty(), "a second answer");
    }

    fn values(&mut self) -> Vec<f32> {
        values(self.hear().1)
    }

    fn error(&mut self) -> ErrorCode {
        code(self.hear().1)
    }

    fn ventilator_hears(&mut self) -> ToVentilator {
        self.told.ventilator.pop_front().expect("told")
    }

    /// Nothing is remembered of requests that are over.
    fn remembers_nothing(&self) {
        assert_eq!(self.answers.left(), Vec::<String>::new());
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

fn lost(chunks: &[u64], last: u64) -> ToSink {
    ToSink::WorkerLost(LostWorker {
        worker: WorkerId(0),
        chunks: chunks.iter().map(|chunk| ChunkId(*chunk)).collect(),
        last: ChunkId(last),
    })
}

impl Bench {
    fn arrived(&mut self) -> Vec<(u64, Vec<Serial>)> {
        match self.ventilator_hears() {
            ToVentilator::Arrived(arrived) => {
                arrived.chunks.into_iter().map(|(c, s)| (c.0, s)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rows_that_came_before_their_worker_was_lost_do_not_run_again() {
    let mut bench = bench(1 << 20);
    let (first, second) = (member(1, 0, 2, 4), member(1, 2, 2, 4));
    bench.done(&first);
    // Chunk 3 was at the worker too. What comes of it now does not count, whatever its order.
    bench.tell(lost(&[1, 3], 9));
    assert_eq!(bench.arrived(), [(1, vec![Serial(1)]), (3, vec![])]);
    bench.done(&second);
    bench.hears_nothing();
    let again = part_of(10, &second, None);
    bench.tell(again);
    assert_eq!(bench.values(), [0., 1., 2., 3.]);
    bench.remembers_nothing();
}

#[test]
fn a_part_that_failed_before_its_worker_was_lost_does_not_bar_the_second_run() {
    let mut bench = bench(1 << 20);
    let only = member(1, 0, 2, 2);
    bench.tell(part(&only, Some(Outcome::Failed)));
    bench.tell(lost(&[1], 1));
    assert_eq!(bench.arrived(), [(1, vec![])]);
    bench.remembers_nothing();
    bench.tell(part_of(2, &only, None));
    assert_eq!(bench.values(), [0., 1.]);
    bench.remembers_nothing();
}

#[test]
fn a_request_is_answered_once_when_its_worker_is_lost_between_part_and_credit() {
    // Cancelled before the ventilator heard that it had arrived, or while it was given to nobody.
    for chunks in [1, 0] {
        let mut bench = bench(1 << 20);
        let only = member(1, 0, 2, 2);
        bench.done(&only);
        assert_eq!(bench.values(), [0., 1.]);
        bench.close(&only, chunks);
        bench.tell(lost(&[1], 1));
        bench.done(&only);
        bench.hears_nothing();
        bench.remembers_nothing();
    }
}

#[test]
fn an_answered_request_is_remembered_while_a_chunk_of_it_is_out() {
    let mut bench = bench(1 << 20);
    let out = |chunks: &[u64]| {
        ToSink::Out(Out {
            chunks: chunks.iter().map(|chunk| ChunkId(*chunk)).collect(),
            last: ChunkId(1000),
        })
    };
    // Its first chunk's credit has not been read, that of the last one has.
    let parts = [member(1, 0, 1, 2), member(1, 1, 1, 2)];
    parts.iter().for_each(|part| bench.done(part));
    bench.hear();
    for serial in 2..101 {
        bench.tell(part_of(serial + 10, &member(serial, 0, 1, 1), None));
        bench.hear();
    }
    assert!(matches!(bench.ventilator_hears(), ToVentilator::WhatIsOut));
    bench.tell(out(&[1, 50]));
    assert_eq!(bench.answers.answered(), 2);
    bench.close(&parts[0], 2);
    bench.hears_nothing();
    bench.tell(out(&[]));
    assert_eq!(bench.answers.answered(), 0);
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
    assert!(!bench.answers.left().is_empty());
    bench.tell(part(&parts[2], Some(Outcome::Skipped)));
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
    bench.tell(part(&bad, Some(Outcome::Failed)));
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
    bench.tell(ToSink::Close(Close {
        serial: Serial(1),
        reply: REPLY,
        request: RequestId(101),
        label: LABEL,
        chunks: 3,
        arrived_us: 0,
        end: CloseEnd::AnsweredBySink,
    }));
    bench.done(&parts[2]);
    bench.hears_nothing();
    bench.remembers_nothing();
    let small = member(2, 0, 10, 10);
    bench.done(&small);
    assert_eq!(bench.values().len(), 10, "the room is free again");
}

/// The bug: a stream was told to stream.
#[test]
fn what_is_too_much_for_one_client_comes_with_advice_that_it_can_take() {
    for (stream, advice) in [(false, "or stream"), (true, "read parts sooner")] {
        let mut bench = bench(5000);
        bench.done(&Member {
            stream,
            ..member(1, 0, 2000, 4000)
        });
        let (_, ServerMessage::Error(error)) = bench.hear() else {
            panic!("8000 bytes are too many");
        };
        assert!(error.message().contains(advice), "{error}");
        assert_eq!(error.message().contains("or stream"), !stream, "{error}");
    }
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
fn parts_that_make_no_result_are_an_error_of_that_request() {
    let mut bench = bench(1 << 20);
    let wide = |member: &Member, name: &str, width: usize| {
        let values = vec![0f32; member.rows as usize * width];
        let tensor = Tensor::from_vec(name, vec![member.rows as usize, width], values).unwrap();
        alone(tensor.into())
    };
    let odd = [
        ("y", 3, "[10, 2]"),
        ("z", 2, "\"z\""),
        // None at all.
        ("", 0, "here"),
    ];
    for (serial, (name, width, told)) in (1..).zip(odd) {
        let (a, b) = (member(serial, 0, 10, 20), member(serial, 10, 10, 20));
        bench.tell(part(&a, Some(wide(&a, "y", 2))));
        let other = match name {
            "" => alone(Batch::default()),
            name => wide(&b, name, width),
        };
        bench.tell(part(&b, Some(other)));
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
fn members_of_one_run_get_their_own_rows_of_it() {
    let mut bench = bench(1 << 20);
    let mut members: Vec<Member> = (1..=4u64).map(|i| member(i, 0, i, i)).collect();
    members[2].stream = true;
    // One more row of a request whose other rows are elsewhere.
    members.push(member(5, 1, 1, 2));
    bench.done(&member(5, 0, 1, 2));
    bench.close(&members[1], 1);
    bench.hear();
    let values: Vec<f32> = (0..11).map(|value| value as f32).collect();
    let run = Tensor::from_slice("y", vec![11], &values).unwrap();
    bench.tell(ToSink::Part(Box::new(Part {
        chunk: ChunkId(9),
        worker: WorkerId(0),
        label: LABEL,
        compute_us: 10,
        members,
        outcome: Outcome::Done(vec![Ran {
            members: 5,
            runs: vec![run.into()],
            failed: Vec::new(),
        }]),
    })));
    let numbers = |outputs: &Outputs| {
        let all = outputs.parts.iter();
        all.flat_map(|part| part.tensors[0].to_vec::<f32>().unwrap())
            .collect::<Vec<f32>>()
    };
    let mut heard = Vec::new();
    while let Some((request, message)) = bench.told.answers.pop_front() {
        heard.push(match &message {
            ServerMessage::Result(outputs, _) => (request.0 - 100, numbers(outputs)),
            ServerMessage::Part(0, outputs) => (request.0 - 100, numbers(outputs)),
            ServerMessage::End(rows, _) => (request.0 - 100, vec![*rows as f32]),
            other => panic!("{other:?}"),
        });
    }
    let expected = [
        (1, vec![0.]),
        (3, vec![3., 4., 5.]),
        (3, vec![3.]),
        (4, vec![6., 7., 8., 9.]),
        (5, vec![0., 10.]),
    ];
    assert_eq!(heard, expected);
    bench.remembers_nothing();
}
