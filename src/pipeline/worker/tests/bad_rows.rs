//! Members that report their bad rows: these are found by running again, and all others are done.

use super::*;
use crate::error::ErrorCode;
use crate::message::FailedRows;

/// A bulk chunk as [`bulk`], of a request that reports its bad rows.
fn reporting(bench: &mut Bench, model: ModelId, rows: &[f32], run: u64) -> Chunk<Bytes> {
    let mut chunk = bulk(bench, model, rows, run);
    chunk.members[0].on_bad_row = OnBadRow::Report;
    chunk
}

/// What a member got: the numbers, and which rows failed, with the code.
type Got = (Vec<f32>, Vec<(std::ops::Range<u64>, ErrorCode)>);

/// What each of the members got that are done.
fn done(part: Part) -> Vec<Got> {
    let Outcome::Done(done) = part.outcome else {
        panic!("{:?}", part.outcome)
    };
    let told = |failed: Vec<FailedRows>| {
        let told = failed.into_iter().map(|rows| (rows.rows(), rows.code));
        told.collect()
    };
    let of = |ran: Ran| {
        let runs = ran.runs.iter().flat_map(numbers).collect();
        (runs, told(ran.failed))
    };
    done.into_iter().map(of).collect()
}

#[test]
fn a_chunk_s_bad_rows_are_blank_and_named_by_their_numbers_in_the_request() {
    let source = Arc::new(MockSource::default());
    let model = source.add("f", Behaviour::Fail("no".to_owned())).id;
    let mut bench = bench(source);
    for run in [2, 8] {
        let chunk = reporting(&mut bench, model, &[1., 2., 3., -4., 5.], run);
        bench.give(Lane::Bulk, &chunk);
        let part = bench.part();
        assert_eq!(part.members, chunk.members);
        let expected = (
            vec![1., 2., 3., 0., 5.],
            vec![(13..14, ErrorCode::Internal)],
        );
        assert_eq!(done(part), [expected]);
        let credit = bench.credit();
        assert_eq!((credit.rows, credit.failed.len()), (4, 0));
    }
    // One run of it failed wholly, and then all of them: there is nothing to be like.
    let chunk = reporting(&mut bench, model, &[-1., -2., 3.], 2);
    bench.give(Lane::Bulk, &chunk);
    let expected = (vec![0., 0., 3.], vec![(10..12, ErrorCode::Internal)]);
    assert_eq!(done(bench.part()), [expected]);
    bench.credit();
    let chunk = reporting(&mut bench, model, &[-1., -2., -3.], 2);
    bench.give(Lane::Bulk, &chunk);
    assert_eq!(
        done(bench.part()),
        [(vec![], vec![(10..13, ErrorCode::Internal)])]
    );
    let credit = bench.credit();
    assert_eq!((credit.rows, credit.failed.len()), (0, 0));
    bench.stop();
}

#[test]
fn of_requests_that_share_a_chunk_each_gets_what_it_asked_for() {
    let source = Arc::new(MockSource::default());
    let model = source.add("f", Behaviour::Fail("no".to_owned())).id;
    let mut bench = bench(source);
    let mut chunk = bench.chunk(model, &[1., 2., -3., -4., 5.]);
    for (member, reports) in std::iter::zip(&mut chunk.members, [true, true, true, false, false]) {
        if reports {
            member.on_bad_row = OnBadRow::Report;
        }
    }
    let two = Tensor::from_slice("x", vec![2, 1], &[2f32, -2.]).unwrap();
    each(&mut chunk)[1].tensors[0] = two;
    (chunk.members[1].rows, chunk.members[1].total) = (2, 2);
    for chunk in [chunk.clone(), joined(&chunk)] {
        bench.give(Lane::Small, &chunk);
        let (good, bad) = (bench.part(), bench.part());
        let serials = |part: &Part| part.members.iter().map(|m| m.serial).collect::<Vec<_>>();
        let all: Vec<Serial> = chunk.members.iter().map(|m| m.serial).collect();
        assert_eq!(serials(&good), [all[0], all[1], all[2], all[4]]);
        let expected = [
            (vec![1.], vec![]),
            (vec![2., 0.], vec![(1..2, ErrorCode::Internal)]),
            (vec![], vec![(0..1, ErrorCode::Internal)]),
            (vec![5.], vec![]),
        ];
        assert_eq!(done(good), expected);
        assert_eq!(
            (bad.outcome.clone(), serials(&bad)),
            (Outcome::Failed, vec![all[3]])
        );
        let credit = bench.credit();
        assert_eq!((credit.rows, credit.failed.len()), (3, 1));
    }
    bench.stop();
}

#[test]
fn a_model_that_panics_is_opened_anew_so_often_and_the_rest_is_one_entry() {
    let source = Arc::new(MockSource::default());
    let model = source.add("p", Behaviour::Panic("boom".to_owned())).id;
    let mut bench = bench(source.clone());
    // One bad row costs a panic in each half that it is in.
    let mut rows = [1f32; 64];
    rows[5] = -1.;
    let chunk = reporting(&mut bench, model, &rows, 64);
    bench.give(Lane::Bulk, &chunk);
    let part = done(bench.part());
    assert_eq!(part[0].1, [(15..16, ErrorCode::Internal)]);
    bench.credit();
    let before = source.opened();
    let chunk = reporting(&mut bench, model, &[-1.; 64], 64);
    bench.give(Lane::Bulk, &chunk);
    let part = done(bench.part());
    let (last, found) = part[0].1.split_last().unwrap();
    assert_eq!((last.0.end, last.1), (74, ErrorCode::ResourceExhausted));
    assert!(found.iter().all(|(_, code)| *code == ErrorCode::Internal));
    bench.credit();
    // It is open at first, or opened for the first run.
    let opened = source.opened() - before;
    assert!((8..=9).contains(&opened), "{opened}");
    bench.stop();
}

#[test]
fn rows_that_a_model_was_not_given_are_not_told_as_a_client_s() {
    let source = Arc::new(MockSource::default());
    let model = |rows: std::ops::Range<usize>| {
        let name = format!("{rows:?}");
        source.add(&name, Behaviour::Blame(rows)).id
    };
    let (within, last) = (model(1..2), usize::MAX);
    let beyond = [model(1..3), model(2..3), model(9..9), model(last..last)];
    let mut bench = bench(source.clone());
    let mut told = |model| {
        let chunk = bulk(&mut bench, model, &[1., -1.], 8);
        bench.give(Lane::Bulk, &chunk);
        bench.part();
        bench.credit().failed.remove(0).1
    };
    assert_eq!(told(within), Error::invalid("row 11: no").at_rows(11..12));
    for model in beyond {
        let error = told(model);
        assert_eq!((error.code(), error.rows()), (ErrorCode::Internal, None));
        assert!(error.message().contains("of a batch of 2 rows"), "{error}");
    }
    bench.stop();
}

#[test]
fn between_further_runs_a_cancel_counts() {
    let source = Arc::new(MockSource::default());
    let gate = Arc::new(Gate::default());
    let model = source.add("g", Behaviour::GatedFail(gate.clone())).id;
    let mut bench = bench(source);
    let chunk = reporting(&mut bench, model, &[1., -2., 3., 4.], 4);
    bench.give(Lane::Bulk, &chunk);
    gate.wait_for_arrivals(1);
    gate.admit(1);
    gate.wait_for_arrivals(2); // the first half
    bench.board.cancel(chunk.members[0].serial);
    gate.admit(1);
    assert_eq!(bench.part().outcome, Outcome::Skipped);
    assert_eq!(bench.credit().rows, 0);
    // Of two in one chunk the other is answered.
    let mut chunk = bench.chunk(model, &[-1., 2.]);
    chunk.members[0].on_bad_row = OnBadRow::Report;
    (chunk.members[0].rows, chunk.members[0].total) = (2, 2);
    each(&mut chunk)[0].tensors[0] = Tensor::from_slice("x", vec![2, 1], &[-1f32, 1.]).unwrap();
    bench.give(Lane::Small, &chunk);
    gate.admit(1); // together
    gate.wait_for_arrivals(4); // the first by itself
    bench.board.cancel(chunk.members[0].serial);
    gate.open();
    let (good, skipped) = (bench.part(), bench.part());
    assert_eq!(values(&good), [2.]);
    assert_eq!(skipped.outcome, Outcome::Skipped);
    assert_eq!(skipped.members[0].serial, chunk.members[0].serial);
    assert_eq!(bench.credit().failed, []);
    bench.stop();
}

#[test]
fn rows_that_failed_in_an_earlier_leg_are_blank_at_the_end_and_others_run_in_their_place() {
    let source = Arc::new(MockSource::default());
    let legs = vec![
        (Role::Extra, Behaviour::Fail("no".to_owned())),
        (Role::Main, Behaviour::Add(-2.0)),
        (Role::Extra, Behaviour::Fail("nor here".to_owned())),
    ];
    let model = source.add_legs("staged", BatchKind::Batched, legs).id;
    let mut bench = bench(source);
    // Row 11 fails in the first leg; row 12 would be 1 - 2 = -1 in the last.
    let mut chunk = reporting(&mut bench, model, &[5., -5., 1., 7.], 8);
    chunk.goes_on = true;
    bench.give(Lane::Bulk, &chunk);
    let mut credit = bench.credit();
    let handed = credit.handed.remove(0);
    assert_eq!(numbers(&handed.batch), [5., 5., 1., 7.]);
    assert_eq!(handed.failed.len(), 1);
    let go_on = |chunk: &mut Chunk<Bytes>, handed: crate::message::Handed| {
        chunk.leg += 1;
        chunk.until += 1;
        chunk.failed = handed
            .failed
            .into_iter()
            .map(|failed| (handed.serial, failed))
            .collect();
        chunk.rows = Rows::Each(vec![handed.batch]);
    };
    go_on(&mut chunk, handed);
    bench.give(Lane::Bulk, &chunk);
    let handed = bench.credit().handed.remove(0);
    assert_eq!(numbers(&handed.batch)[2..], [-1., 5.]);
    assert_eq!(handed.failed.len(), 1, "it is still known");
    go_on(&mut chunk, handed);
    chunk.goes_on = false;
    bench.give(Lane::Bulk, &chunk);
    let internal = ErrorCode::Internal;
    let expected = (
        vec![3., 0., 0., 5.],
        vec![(11..12, internal), (12..13, internal)],
    );
    assert_eq!(done(bench.part()), [expected]);
    bench.credit();
    // Nothing goes on of a chunk of which every row failed: the sink is told.
    let mut chunk = reporting(&mut bench, model, &[-5., -1.], 8);
    chunk.goes_on = true;
    bench.give(Lane::Bulk, &chunk);
    assert_eq!(done(bench.part()), [(vec![], vec![(10..12, internal)])]);
    assert_eq!(bench.credit().handed, []);
    bench.stop();
}
