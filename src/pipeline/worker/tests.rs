//! A worker between hand-made neighbours: chunks go in, parts and credits come out.

mod bad_rows;
mod values;

use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;
use bytes::Bytes;

use crate::message::{ChunkId, ModelLabel, OnBadRow, Ran, ReplyTo, RequestId, Rows};
use crate::model::BatchKind;
use crate::model::mock::{Behaviour, Gate, MockSource};
use crate::pipeline::beside_bulk::EXPRESS_BETWEEN_US;
use crate::tensor::{Batch, Data, DataType, Tensor};

/// The neighbours' ends.
struct Bench {
    small: Socket,
    bulk: Socket,
    sink: Socket,
    ventilator: Socket,
    board: Arc<CancelBoard>,
    beside_bulk: Arc<BesideBulk>,
    worker: Option<JoinHandle<Result<()>>>,
    next: u64,
}

fn bench(source: Arc<dyn ModelSource>) -> Bench {
    bench_of(Role::Main, source)
}

fn bench_of(role: Role, source: Arc<dyn ModelSource>) -> Bench {
    let context = Context::new();
    let id = WorkerId(0);
    let bound = |kind, endpoint: &str| {
        let socket = socket::inner_bound(&context, kind, endpoint).unwrap();
        socket.set_rcvtimeo(20_000).unwrap();
        socket
    };
    let mut bench = Bench {
        small: bound(zmq::PUSH, &lane_endpoint(id, Lane::Small)),
        bulk: bound(zmq::PUSH, &lane_endpoint(id, Lane::Bulk)),
        sink: bound(zmq::PULL, TO_SINK),
        ventilator: bound(zmq::PULL, TO_VENTILATOR),
        board: CancelBoard::new(),
        beside_bulk: Arc::new(BesideBulk::new(1)),
        worker: None,
        next: 0,
    };
    let setup = Setup {
        id,
        role,
        source,
        board: bench.board.clone(),
        beside_bulk: bench.beside_bulk.clone(),
        busy_poll: crate::socket::BusyPoll::new(std::time::Duration::ZERO),
        clock: Clock::start(),
    };
    let (opened, _) = crossbeam_channel::bounded(1);
    bench.worker = Some(std::thread::spawn(move || run(&context, setup, opened)));
    assert!(matches!(bench.hear(), ToVentilator::Up(WorkerId(0))));
    bench
}

impl Bench {
    /// A chunk of one row for each number; each row is a request of its own.
    fn chunk(&mut self, model: ModelId, rows: &[f32]) -> Chunk<Bytes> {
        let members = rows.iter().map(|_| {
            self.next += 1;
            Member {
                serial: Serial(self.next),
                reply: ReplyTo([1; 16]),
                request: RequestId(self.next),
                offset: 0,
                rows: 1,
                total: 1,
                stream: false,
                on_bad_row: OnBadRow::Fail,
                whole: false,
                arrived_us: 0,
                queue_us: 0,
            }
        });
        let members = members.collect();
        let row = |v: &f32| Batch {
            tensors: vec![Tensor::from_slice("x", vec![1, 1], &[*v]).unwrap()],
        };
        Chunk {
            id: ChunkId(self.next),
            leg: 0,
            until: 1,
            goes_on: false,
            spent_us: 0,
            model,
            label: ModelLabel(0),
            run: None,
            params: Bytes::new(),
            members,
            rows: Rows::Each(rows.iter().map(row).collect()),
            failed: Vec::new(),
        }
    }

    fn give(&mut self, lane: Lane, chunk: &Chunk<Bytes>) {
        let socket = match lane {
            Lane::Small => &mut self.small,
            Lane::Bulk => &mut self.bulk,
        };
        tell(socket, inner::write_chunk(chunk)).unwrap();
    }

    fn hear(&mut self) -> ToVentilator {
        let frames = frames::receive(&mut self.ventilator, 0).unwrap();
        inner::read_to_ventilator(frames.expect("in time")).unwrap()
    }

    fn credit(&mut self) -> Credit {
        match self.hear() {
            ToVentilator::Credit(credit) => credit,
            other => panic!("{other:?}"),
        }
    }

    fn part(&mut self) -> Part {
        let frames = frames::receive(&mut self.sink, 0).unwrap();
        match inner::read_to_sink(frames.expect("in time")).unwrap() {
            ToSink::Part(part) => *part,
            other => panic!("{other:?}"),
        }
    }

    fn stop(mut self) {
        let stop = inner::write_to_worker(&ToWorker::Stop);
        tell(&mut self.bulk, stop).unwrap();
        let frames = frames::receive(&mut self.sink, 0).unwrap().unwrap();
        let last = inner::read_to_sink(frames).unwrap();
        assert!(matches!(last, ToSink::Stopped(WorkerId(0))));
        self.worker.take().unwrap().join().unwrap().unwrap();
    }
}

fn values(part: &Part) -> Vec<f32> {
    let Outcome::Done(batches) = &part.outcome else {
        panic!("{:?}", part.outcome)
    };
    let runs = batches.iter().flat_map(|ran| &ran.runs);
    let rows = runs.map(|b| b.tensors[0].to_vec::<f32>());
    rows.flat_map(Result::unwrap).collect()
}

#[test]
fn members_run_together_and_come_back_apart() {
    let source = Arc::new(MockSource::default());
    let model = source.add("echo", Behaviour::Echo).id;
    let mut bench = bench(source.clone());
    let chunk = bench.chunk(model, &[1., 2., 3.]);
    for chunk in [chunk.clone(), joined(&chunk)] {
        bench.give(Lane::Small, &chunk);
        let part = bench.part();
        assert_eq!(values(&part), [1., 2., 3.]);
        assert_eq!(part.members, chunk.members);
        let credit = bench.credit();
        assert_eq!((credit.rows, credit.runs, credit.failed.len()), (3, 1, 0));
    }
    assert_eq!(source.opened(), 1);
    bench.stop();
}

#[test]
fn one_request_s_bad_row_is_not_its_neighbours_error() {
    let source = Arc::new(MockSource::default());
    let model = source.add("f", Behaviour::Fail("no".to_owned())).id;
    let mut bench = bench(source);
    let chunk = bench.chunk(model, &[1., -2., 3.]);
    for chunk in [chunk.clone(), joined(&chunk)] {
        bench.give(Lane::Small, &chunk);
        let (good, bad) = (bench.part(), bench.part());
        assert_eq!(values(&good), [1., 3.]);
        assert_eq!(bad.outcome, Outcome::Failed);
        assert_eq!(bad.members, [chunk.members[1].clone()]);
        let credit = bench.credit();
        assert_eq!((credit.rows, credit.runs), (2, 2));
        let guilty = chunk.members[1].serial;
        assert_eq!(credit.failed, [(guilty, Error::internal("no"))]);
    }
    bench.stop();
}

#[test]
fn a_model_that_panics_is_opened_anew() {
    let source = Arc::new(MockSource::default());
    let model = source.add("p", Behaviour::Panic("ouch".to_owned())).id;
    let mut bench = bench(source.clone());
    for rows in [[-1.], [5.]] {
        let chunk = bench.chunk(model, &rows);
        bench.give(Lane::Bulk, &chunk);
    }
    assert_eq!(bench.part().outcome, Outcome::Failed);
    let why = bench.credit().failed[0].1.to_string();
    assert!(why.contains("panicked: ouch"), "{why}");
    assert_eq!(values(&bench.part()), [5.]);
    assert_eq!(source.opened(), 2);
    bench.stop();
}

#[test]
fn an_unknown_model_fails_the_chunk_and_the_worker_lives_on() {
    let source = Arc::new(MockSource::default());
    let echo = source.add("echo", Behaviour::Echo).id;
    let mut bench = bench(source);
    let chunk = bench.chunk(ModelId(99), &[1.]);
    bench.give(Lane::Bulk, &chunk);
    assert_eq!(bench.part().outcome, Outcome::Failed);
    assert_eq!(
        bench.credit().failed[0].1.code(),
        crate::ErrorCode::NotFound
    );
    let chunk = bench.chunk(echo, &[1.]);
    bench.give(Lane::Bulk, &chunk);
    assert_eq!(values(&bench.part()), [1.]);
    bench.stop();
}

#[test]
fn a_cancelled_chunk_is_skipped_and_the_small_lane_is_read_first() {
    let source = Arc::new(MockSource::default());
    let gate = Arc::new(Gate::default());
    let gated = source.add("g", Behaviour::Gated(gate.clone())).id;
    let mut bench = bench(source);
    let running = bench.chunk(gated, &[1.]);
    bench.give(Lane::Bulk, &running);
    gate.wait_for_arrivals(1);
    // While that runs, these come to wait.
    let cancelled = bench.chunk(gated, &[2.]);
    bench.give(Lane::Bulk, &cancelled);
    let bulk = bench.chunk(gated, &[3.]);
    bench.give(Lane::Bulk, &bulk);
    let small = bench.chunk(gated, &[4.]);
    bench.give(Lane::Small, &small);
    bench.board.cancel(cancelled.members[0].serial);
    gate.open();
    assert_eq!(values(&bench.part()), [1.]);
    assert_eq!(values(&bench.part()), [4.], "small first");
    assert_eq!(bench.part().outcome, Outcome::Skipped);
    assert_eq!(values(&bench.part()), [3.]);
    bench.stop();
}

#[test]
fn a_worker_that_panics_outside_the_model_says_so_and_starts_afresh() {
    let source = Arc::new(MockSource::default());
    let model = source.add("echo", Behaviour::Echo).id;
    let mut bench = bench(source);
    // A member without inputs cannot come from our ventilator; it stands for a bug of ours.
    let mut broken = bench.chunk(model, &[1., 2.]);
    broken.members[0].rows = u64::MAX;
    bench.give(Lane::Bulk, &broken);
    let waiting = bench.chunk(model, &[3.]);
    bench.give(Lane::Small, &waiting);
    // That one may have run before the broken one, or waits behind it.
    let mut heard = bench.hear();
    if matches!(heard, ToVentilator::Credit(_)) {
        assert_eq!(values(&bench.part()), [3.]);
        heard = bench.hear();
    }
    assert!(matches!(heard, ToVentilator::Down(WorkerId(0), _)));
    let stale = bench.chunk(model, &[4.]);
    bench.give(Lane::Bulk, &stale);
    for socket in [&mut bench.small, &mut bench.bulk] {
        tell(socket, inner::write_to_worker(&ToWorker::Resume)).unwrap();
    }
    assert!(matches!(bench.hear(), ToVentilator::Up(WorkerId(0))));
    let chunk = bench.chunk(model, &[7.]);
    bench.give(Lane::Bulk, &chunk);
    assert_eq!(values(&bench.part()), [7.]);
    bench.stop();
}

/// What a leg gave, as numbers.
fn numbers(batch: &Batch) -> Vec<f32> {
    batch.tensors[0].to_vec().unwrap()
}

#[test]
fn a_leg_that_is_not_the_last_is_handed_back_with_the_credit() {
    let source = Arc::new(MockSource::default());
    let legs = vec![
        (Role::Extra, Behaviour::Fail("no".to_owned())),
        (Role::Main, Behaviour::Add(1.0)),
        (Role::Extra, Behaviour::Add(10.0)),
    ];
    let model = source.add_legs("staged", BatchKind::Batched, legs).id;
    let mut bench = bench(source);
    // One of three fails: the others go on, and the sink hears of that one.
    let mut chunk = bench.chunk(model, &[1.0, -5.0, 3.0]);
    (chunk.until, chunk.goes_on, chunk.spent_us) = (2, true, 500);
    let serials: Vec<Serial> = chunk.members.iter().map(|m| m.serial).collect();
    bench.give(Lane::Small, &chunk);
    let part = bench.part();
    assert_eq!(part.outcome, Outcome::Failed);
    assert_eq!(part.members[0].serial, serials[1]);
    let credit = bench.credit();
    assert_eq!(credit.failed.len(), 1);
    assert_eq!(credit.spent_us, 500);
    let handed: Vec<_> = credit
        .handed
        .iter()
        .map(|h| (h.serial, numbers(&h.batch)))
        .collect();
    assert_eq!(handed, [(serials[0], vec![2.0]), (serials[2], vec![4.0])]);
    // The last leg goes on with that, and sends the part.
    let mut chunk = bench.chunk(model, &[2.0]);
    (chunk.leg, chunk.until, chunk.spent_us) = (2, 3, 700);
    bench.give(Lane::Small, &chunk);
    let part = bench.part();
    assert!(part.compute_us >= 700);
    assert_eq!(values(&part), [12.0]);
    assert_eq!(bench.credit().handed, []);
    bench.stop();
}

/// The rows of each member, to be changed.
fn each(chunk: &mut Chunk<Bytes>) -> &mut Vec<Batch> {
    match &mut chunk.rows {
        Rows::Each(batches) => batches,
        Rows::Joined(_) => panic!("the rows are joined"),
    }
}

/// The same chunk with its rows in one piece, as the ventilator gives out small requests.
fn joined(chunk: &Chunk<Bytes>) -> Chunk<Bytes> {
    let batch = Batch::joined(chunk.rows.batches(), usize::MAX);
    Chunk {
        rows: Rows::Joined(batch.expect("several members that are alike")),
        ..chunk.clone()
    }
}

/// What each member got.
fn given(members: &[Member], done: Vec<Ran>) -> Vec<Batch> {
    let mut rest = members;
    let mut given = Vec::new();
    for ran in done {
        let (own, others) = rest.split_at(ran.members);
        rest = others;
        match own.len() {
            1 => given.extend(ran.runs),
            _ => given.extend(Rows::Joined(ran.runs[0].clone()).into_each(own)),
        }
    }
    given
}

/// A chunk of one request, `run` rows at a time.
fn bulk(bench: &mut Bench, model: ModelId, rows: &[f32], run: u64) -> Chunk<Bytes> {
    let mut chunk = bench.chunk(model, &rows[..1]);
    let member = &mut chunk.members[0];
    (member.offset, member.rows, member.total) = (10, rows.len() as u64, 100);
    let rows = Tensor::from_slice("x", vec![rows.len(), 1], rows).unwrap();
    chunk.rows = Rows::Each(vec![rows.into()]);
    chunk.run = Some(run);
    chunk
}

fn rows_of_runs(part: &Part) -> Vec<Vec<usize>> {
    let Outcome::Done(done) = &part.outcome else {
        panic!("{:?}", part.outcome)
    };
    let rows = |batch: &Batch| batch.tensors[0].rows().unwrap();
    done.iter()
        .map(|ran| ran.runs.iter().map(rows).collect())
        .collect()
}

#[test]
fn a_chunk_runs_a_few_rows_at_a_time_and_is_one_part() {
    let source = Arc::new(MockSource::default());
    let gate = Arc::new(Gate::default());
    gate.open();
    let model = source.add("g", Behaviour::Gated(gate.clone())).id;
    let mut bench = bench(source);
    let chunk = bulk(&mut bench, model, &[1., 2., 3., 4., 5.], 2);
    bench.give(Lane::Bulk, &chunk);
    let part = bench.part();
    gate.wait_for_arrivals(3);
    assert_eq!(values(&part), [1., 2., 3., 4., 5.]);
    assert_eq!(rows_of_runs(&part), [vec![2, 2, 1]]);
    assert_eq!(part.members, chunk.members);
    let credit = bench.credit();
    assert_eq!((credit.rows, credit.runs), (5, 3));
    bench.stop();
}

#[test]
fn small_requests_are_not_cut_and_run_together_as_they_fit() {
    let source = Arc::new(MockSource::default());
    let gate = Arc::new(Gate::default());
    gate.open();
    let model = source.add("g", Behaviour::Gated(gate.clone())).id;
    let mut bench = bench(source);
    let mut chunk = bench.chunk(model, &[1., 2., 4.]);
    let three = Tensor::from_slice("x", vec![3, 1], &[2f32, 2.5, 3.]).unwrap();
    each(&mut chunk)[1].tensors[0] = three;
    (chunk.members[1].rows, chunk.members[1].total) = (3, 3);
    chunk.run = Some(2);
    for (round, chunk) in (1..).zip([chunk.clone(), joined(&chunk)]) {
        bench.give(Lane::Small, &chunk);
        let part = bench.part();
        gate.wait_for_arrivals(3 * round);
        assert_eq!(values(&part), [1., 2., 2.5, 3., 4.]);
        assert_eq!(rows_of_runs(&part), [vec![1], vec![3], vec![1]]);
        let credit = bench.credit();
        assert_eq!((credit.rows, credit.runs), (5, 3));
    }
    bench.stop();
}

#[test]
fn members_share_runs_up_to_their_size() {
    let mut bench = bench(Arc::new(MockSource::default()));
    let mut chunk = bench.chunk(ModelId(1), &[0.; 5]);
    chunk.members[2].rows = 9;
    let of = |run| super::run::together(&chunk.members, run);
    assert_eq!(of(None), vec![0..5]);
    assert_eq!(of(Some(3)), [0..2, 2..3, 3..5]);
    assert_eq!(of(Some(11)), [0..3, 3..5]);
    bench.stop();
}

#[test]
fn a_run_that_fails_fails_the_chunk() {
    let source = Arc::new(MockSource::default());
    let model = source.add("f", Behaviour::Fail("no".to_owned())).id;
    let mut bench = bench(source);
    let chunk = bulk(&mut bench, model, &[1., 2., 3., -4., 5.], 2);
    bench.give(Lane::Bulk, &chunk);
    let part = bench.part();
    assert_eq!(part.outcome, Outcome::Failed);
    assert_eq!(part.members, chunk.members);
    let credit = bench.credit();
    assert_eq!((credit.rows, credit.failed.len()), (0, 1));
    bench.stop();
}

#[test]
fn between_two_runs_small_chunks_pass_and_a_cancel_counts() {
    for is_awaited in [false, true] {
        small_chunks_pass(is_awaited);
    }
}

/// `is_awaited`: the ventilator waits for credits.
fn small_chunks_pass(is_awaited: bool) {
    let source = Arc::new(MockSource::default());
    let gate = Arc::new(Gate::default());
    let gated = source.add("g", Behaviour::Gated(gate.clone())).id;
    let mut bench = bench(source);
    let chunk = bulk(&mut bench, gated, &[1., 2., 3.], 1);
    bench.give(Lane::Bulk, &chunk);
    gate.wait_for_arrivals(1);
    assert!(bench.beside_bulk.may_sleep(is_awaited));
    let small = bench.chunk(gated, &[7.]);
    bench.give(Lane::Small, &small);
    // The first run of the bulk chunk, and then the small chunk.
    gate.admit(2);
    assert_eq!(values(&bench.part()), [7.], "small between two runs");
    gate.wait_for_arrivals(3); // the second run of the bulk chunk
    if is_awaited {
        assert!(matches!(bench.hear(), ToVentilator::CreditsLeft));
    }
    let left = bench.beside_bulk.take().expect("left before the next run");
    assert_eq!((left.chunk, left.rows), (small.id, 1));
    bench.board.cancel(chunk.members[0].serial);
    gate.admit(1);
    assert_eq!(bench.part().outcome, Outcome::Skipped);
    let credit = bench.credit();
    assert_eq!((credit.chunk, credit.rows), (chunk.id, 0));
    bench.stop();
}

#[test]
fn what_goes_on_to_another_leg_is_in_one_piece() {
    let source = Arc::new(MockSource::default());
    let legs = vec![
        (Role::Main, Behaviour::Add(1.0)),
        (Role::Extra, Behaviour::Add(10.0)),
    ];
    let model = source.add_legs("staged", BatchKind::Batched, legs).id;
    let mut bench = bench(source);
    let mut chunk = bulk(&mut bench, model, &[1., 2., 3.], 2);
    chunk.goes_on = true;
    bench.give(Lane::Bulk, &chunk);
    let credit = bench.credit();
    assert_eq!(credit.handed.len(), 1);
    assert_eq!(numbers(&credit.handed[0].batch), [2., 3., 4.]);
    bench.stop();
}

/// As inside a bulk chunk: others are inside bulk, and the ventilator takes what was left when one of them is done.
#[test]
fn an_express_worker_leaves_its_credits_and_bulk_its_time() {
    let source = Arc::new(MockSource::default());
    let model = source.add("m", Behaviour::Add(1.0)).id;
    let mut bench = bench_of(Role::Express, source);
    for is_awaited in [false, true] {
        assert!(bench.beside_bulk.may_sleep(is_awaited));
        let small = bench.chunk(model, &[7.]);
        bench.give(Lane::Small, &small);
        assert_eq!(values(&bench.part()), [8.]);
        if is_awaited {
            assert!(matches!(bench.hear(), ToVentilator::CreditsLeft));
        }
        let left = (0..20_000).find_map(|_| {
            std::thread::yield_now();
            bench.beside_bulk.take()
        });
        assert_eq!(left.expect("left").chunk, small.id);
    }
    // On one core; none would be left if it had not said when it ran.
    assert!(bench.beside_bulk.left_to_bulk(EXPRESS_BETWEEN_US).is_some());
    bench.stop();
}

#[test]
fn an_express_worker_opens_ahead_what_it_may_run_alone() {
    let source = Arc::new(MockSource::default());
    let legs = vec![
        (Role::Extra, Behaviour::Echo),
        (Role::Main, Behaviour::Echo),
    ];
    let onnx = source.add("onnx", Behaviour::Echo).id;
    let staged = source.add_legs("staged", BatchKind::Batched, legs).id;
    let mut bench = bench_of(Role::Express, source.clone());
    for model in [onnx, staged] {
        let open = inner::write_to_worker(&ToWorker::Open(model));
        tell(&mut bench.small, open).unwrap();
        let heard = bench.hear();
        assert!(
            matches!(&heard, ToVentilator::Opened(_, of, None) if *of == model),
            "{heard:?}"
        );
        assert_eq!(source.opened(), 1);
    }
    bench.stop();
}
