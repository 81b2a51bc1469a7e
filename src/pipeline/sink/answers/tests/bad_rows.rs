//! Requests that report their bad rows: all others are answered, in their places.

use super::*;

/// Rows of a request that failed.
fn failed(first: u64, count: u64) -> FailedRows {
    FailedRows {
        first,
        count,
        code: ErrorCode::InvalidArgument,
        message: "bad".to_owned(),
    }
}

/// What a member got of whose rows these failed: the rows as a worker fills them in, or nothing if all failed.
fn bad(member: &Member, bad: &[FailedRows]) -> Outcome {
    let count: u64 = bad.iter().map(|failed| failed.count).sum();
    let value = |row: u64| match bad.iter().any(|failed| failed.rows().contains(&row)) {
        true => 0.0,
        false => row as f32,
    };
    let rows = member.offset..member.offset + member.rows;
    let values: Vec<f32> = rows.map(value).collect();
    let run = Tensor::from_vec("y", vec![values.len()], values).unwrap();
    Outcome::Done(vec![Ran {
        members: 1,
        runs: (count < member.rows)
            .then(|| run.into())
            .into_iter()
            .collect(),
        failed: bad.to_vec(),
    }])
}

impl Bench {
    fn part(&mut self, member: &Member, failed: &[FailedRows]) {
        self.tell(part(member, Some(bad(member, failed))));
    }

    fn outputs(&mut self) -> Outputs {
        match self.hear().1 {
            ServerMessage::Result(outputs, _) => outputs,
            other => panic!("{other:?}"),
        }
    }
}

fn numbers(outputs: &Outputs) -> Vec<f32> {
    let parts = outputs.parts.iter();
    let numbers = parts.map(|part| part.tensors[0].to_vec::<f32>().unwrap());
    numbers.flatten().collect()
}

#[test]
fn a_small_request_s_bad_row_is_told_with_the_results_of_the_others() {
    let mut bench = bench(1 << 20);
    bench.part(&member(1, 0, 3, 3), &[failed(1, 1)]);
    let outputs = bench.outputs();
    assert_eq!(numbers(&outputs), [0., 0., 2.]);
    assert_eq!(outputs.failed, [failed(1, 1)]);
    bench.remembers_nothing();
}

#[test]
fn a_part_that_failed_wholly_is_like_the_others_and_neighbours_are_one_entry() {
    let mut bench = bench(1 << 20);
    bench.part(&member(1, 4, 2, 8), &[failed(4, 2)]);
    bench.part(&member(1, 2, 2, 8), &[failed(3, 1)]);
    bench.part(&member(1, 6, 2, 8), &[failed(7, 1)]);
    bench.hears_nothing();
    bench.done(&member(1, 0, 2, 8));
    let outputs = bench.outputs();
    assert_eq!(numbers(&outputs), [0., 1., 2., 0., 0., 0., 6., 0.]);
    assert_eq!(outputs.failed, [failed(3, 3), failed(7, 1)]);
    assert_eq!(outputs.parts.len(), 4);
    bench.remembers_nothing();
}

#[test]
fn a_stream_is_told_of_bad_rows_with_its_parts() {
    let mut bench = bench(1 << 20);
    for (offset, bad) in [(2, failed(2, 2)), (0, failed(1, 1))] {
        let mut member = member(1, offset, 2, 4);
        member.stream = true;
        bench.part(&member, std::slice::from_ref(&bad));
        let (_, message) = bench.hear();
        let ServerMessage::Part(at, outputs) = message else {
            panic!("{message:?}")
        };
        assert_eq!((at, outputs.rows()), (offset, 2));
        assert_eq!(
            outputs.parts.is_empty(),
            offset == 2,
            "nothing of what failed wholly"
        );
        assert_eq!(outputs.failed, [bad]);
    }
    assert!(matches!(bench.hear().1, ServerMessage::End(4, _)));
    bench.remembers_nothing();
}

#[test]
fn where_every_row_failed_the_answer_is_an_error() {
    let mut bench = bench(1 << 20);
    let error = |bench: &mut Bench| match bench.hear().1 {
        ServerMessage::Error(error) => error,
        other => panic!("{other:?}"),
    };
    bench.part(&member(1, 0, 1, 1), &[failed(0, 1)]);
    let told = error(&mut bench);
    assert_eq!((told.message(), told.rows()), ("row 0: bad", Some(0..1)));
    for stream in [false, true] {
        for offset in [2, 0] {
            let mut member = member(2 + u64::from(stream), offset, 2, 4);
            member.stream = stream;
            bench.part(&member, &[failed(offset, 2)]);
            if stream {
                assert!(matches!(bench.hear().1, ServerMessage::Part(..)));
            }
        }
        let told = error(&mut bench);
        assert_eq!(told.code(), ErrorCode::InvalidArgument);
        assert_eq!(told.message(), "all 4 rows failed; row 0: bad");
        assert_eq!(told.rows(), Some(0..4));
    }
    bench.hears_nothing();
    bench.remembers_nothing();
}

#[test]
fn rows_that_may_be_good_are_told_from_those_that_failed() {
    let mut bench = bench(1 << 20);
    let left = |first: u64, count: u64| FailedRows {
        code: ErrorCode::ResourceExhausted,
        message: "left".to_owned(),
        ..failed(first, count)
    };
    let told = |bench: &mut Bench| match bench.hear().1 {
        ServerMessage::Error(error) => {
            assert_eq!(error.code(), ErrorCode::ResourceExhausted);
            assert_eq!(error.rows(), Some(0..6));
            error.message().to_owned()
        }
        other => panic!("{other:?}"),
    };
    for stream in [false, true] {
        let mut serial = 10 * u64::from(stream);
        // Each part: what failed of it, what was left.
        for (parts, message) in [
            (
                [[failed(0, 1), left(1, 2)], [failed(3, 1), left(4, 2)]],
                "none of 6 rows has a result; row 0: INVALID_ARGUMENT: bad; 2 failed and 4 may be good: left",
            ),
            (
                [[left(0, 1), left(1, 2)], [failed(3, 1), left(4, 2)]],
                "none of 6 rows has a result; row 3: INVALID_ARGUMENT: bad; 1 failed and 5 may be good: left",
            ),
            (
                [[left(0, 1), left(1, 2)], [left(3, 1), left(4, 2)]],
                "none of 6 rows has a result; row 0: left",
            ),
        ] {
            serial += 1;
            for (offset, part) in [3, 0].into_iter().zip(parts.iter().rev()) {
                let mut member = member(serial, offset, 3, 6);
                member.stream = stream;
                bench.part(&member, part);
                if stream {
                    assert!(matches!(bench.hear().1, ServerMessage::Part(..)));
                }
            }
            assert_eq!(told(&mut bench), message);
        }
    }
    bench.hears_nothing();
    bench.remembers_nothing();
}

/// Blank rows and messages count against what may be held for a client, as rows do.
#[test]
fn what_is_held_for_bad_rows_is_bounded() {
    let mut bench = bench(500);
    // 100 rows of 4 bytes would fit, but not with blank ones for 1,000.
    bench.done(&member(1, 1000, 100, 1100));
    bench.part(&member(1, 0, 1000, 1100), &[failed(0, 1000)]);
    assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
    // Each entry takes memory: ten of them pass the bound.
    for row in 0..10 {
        bench.part(&member(2, 2 * row, 1, 100), &[failed(2 * row, 1)]);
    }
    assert_eq!(bench.error(), ErrorCode::ResourceExhausted);
    bench.hears_nothing();
}
