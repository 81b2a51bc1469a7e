//! How many allocations a small request takes on its way through the parts that have no socket. The number may only fall.

use std::sync::Arc;

use bytes::Bytes;

use super::sink::answers::{Action, AnswerState, Bounds, Outlet};
use super::ventilator::known_headers::{KnownHeaders, KnownInfer, KnownInput, Sight};
use super::ventilator::requests::{Held, Requests};
use crate::message::{
    Credit, ModelLabel, OnBadRow, Outcome, Params, Part, Priority, Ran, ReplyTo, Request,
    RequestId, Rows, Serial, WorkerId,
};
use crate::model::mock::{Behaviour, MockSource};
use crate::model::{Description, Lookup};
use crate::schedule::{Job, Limits};
use crate::tensor::{DataType, Tensor};
use crate::wire::client::write_infer;
use crate::wire::inner::{self, ToSink, ToVentilator, ToWorker};
use crate::wire::result_writer::ResultWriter;
use crate::zmtp::codec::{self, Decoder, Event};
use crate::zmtp::mechanism::{Mechanism, Null, SocketType};
use crate::zmtp::outgoing::Outgoing;

/// Requests that share a chunk.
const TOGETHER: u64 = 16;
/// What was seen when this was last made less.
const ALLOCATIONS: u64 = 11;

const LABEL: ModelLabel = ModelLabel(2);
const CLIENT: ReplyTo = ReplyTo([3; 16]);

/// The sink's way out, without a connection.
#[derive(Default)]
struct Exit {
    writer: ResultWriter,
    outgoing: Outgoing,
    results: u64,
}

impl Outlet for Exit {
    fn unsent_bytes(&self, _: ReplyTo) -> u64 {
        0
    }

    fn perform(&mut self, action: Action<'_>) {
        match action {
            Action::Result { request, rows, .. } => {
                self.results += 1;
                self.writer.write(request, &rows, &mut self.outgoing);
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Path {
    decoder: Decoder,
    headers: KnownHeaders,
    requests: Requests,
    answers: AnswerState,
    exit: Exit,
    model: Arc<Description>,
    last: u64,
}

fn infer(id: u64) -> Vec<Bytes> {
    let row = Tensor::from_slice("x", vec![1, 64], &[1f32; 64]).unwrap();
    let request = Request {
        model: Some("m".to_owned()),
        inputs: row.into(),
        ..Request::default()
    };
    write_infer(RequestId(id), &request)
}

impl Path {
    fn new() -> Path {
        let limits = Limits {
            workers: 1,
            extra_workers: 0,
            express_workers: 0,
            max_batch_rows: 1024,
            priority_rows: 16,
            prefetch: 1,
            max_chunk_us: Some(20_000),
            batch_delay_us: 0,
            max_requests: 1000,
            max_bytes: 1 << 30,
        };
        let null = Null::new(SocketType::Router, Bytes::new());
        let most = codec::Limits {
            message_bytes: 1 << 20,
            frames: 100,
        };
        let mut decoder = Decoder::new(Box::new(null), most);
        let mut hello = codec::greeting(0, "NULL").to_vec();
        let mut peer = Null::new(SocketType::Dealer, Bytes::new());
        codec::push_command(&mut hello, &peer.first());
        assert!(matches!(
            decoder.feed(&mut &hello[..]),
            Ok(Some(Event::Ready { .. }))
        ));
        let model = MockSource::default().add("m", Behaviour::Echo);
        let mut headers = KnownHeaders::default();
        headers.keep(
            &infer(1)[0],
            KnownInfer {
                lookup: Arc::new(Lookup::of(Some("m"), &Params::new())),
                model: model.clone(),
                group: 1,
                rows: 1,
                params: Bytes::new(),
                params_bytes: 0,
                priority: Priority::Normal,
                stream: false,
                on_bad_row: OnBadRow::Fail,
                timeout_ms: None,
                header_bytes: 100,
                inputs: vec![KnownInput {
                    frame: 0,
                    name: "x".into(),
                    datatype: DataType::Fp32,
                    shape: vec![1, 64],
                }],
                frames: 1,
            },
        );
        let mut requests = Requests::new(limits);
        requests.worker_up(WorkerId(0), 0);
        let bounds = Bounds {
            workers: 1,
            worker_chunks: 4,
            max_client_bytes: 1 << 30,
            answered: 1 << 20,
        };
        Path {
            decoder,
            headers,
            requests,
            answers: AnswerState::new(&bounds).unwrap(),
            exit: Exit::default(),
            model,
            last: 0,
        }
    }

    /// What a client writes.
    fn bytes(&mut self) -> Vec<u8> {
        let mut outgoing = Outgoing::default();
        for _ in 0..TOGETHER {
            self.last += 1;
            outgoing.push_message(infer(self.last));
        }
        let mut bytes = Vec::new();
        assert!(outgoing.write_to(&mut bytes).unwrap());
        bytes
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(Event::Message(frames)) = self.decoder.feed(&mut rest).unwrap() {
            let Sight::Known(request, known) = self.headers.find(&frames[0]) else {
                panic!("it is known")
            };
            let inputs = known.inputs(&frames).unwrap();
            let job = Job {
                serial: Serial(request.0),
                client: CLIENT,
                model: self.model.id,
                legs: self.model.legs.clone(),
                express: true,
                group: known.group,
                rows: known.rows,
                splittable: true,
                step: 1,
                priority: known.priority,
                bytes: 300,
                deadline_us: None,
                arrived_us: 0,
            };
            let held = Held {
                reply: CLIENT,
                request,
                inputs,
                params: known.params.clone(),
                rows: known.rows,
                stream: known.stream,
                on_bad_row: known.on_bad_row,
                arrived_us: 0,
                model: known.model.clone(),
                label: LABEL,
            };
            self.requests.submit(job, held).unwrap();
        }
    }

    /// The worker's way with a chunk, without a model: rows come back as they are.
    fn run(&mut self) {
        let given = self.requests.next(1).expect("a chunk");
        let frames = inner::write_chunk(&given.chunk);
        let Ok(ToWorker::Chunk(chunk)) = inner::read_to_worker(frames) else {
            panic!("no chunk")
        };
        let (chunk, refused) = chunk.check();
        assert!(refused.is_empty());
        let Rows::Joined(rows) = chunk.rows else {
            panic!("small requests are joined")
        };
        let credit = Credit {
            worker: WorkerId(0),
            chunk: chunk.id,
            model: chunk.model,
            label: chunk.label,
            rows: TOGETHER,
            runs: 1,
            compute_us: 30,
            spent_us: 0,
            failed: Vec::new(),
            handed: Vec::new(),
        };
        let part = ToSink::Part(Box::new(Part {
            chunk: chunk.id,
            worker: WorkerId(0),
            label: chunk.label,
            compute_us: 30,
            outcome: Outcome::Done(vec![Ran {
                members: chunk.members.len(),
                runs: vec![rows],
                failed: Vec::new(),
            }]),
            members: chunk.members,
        }));
        let part = inner::read_to_sink(inner::write_to_sink(&part)).unwrap();
        self.answers.hear(part, 2, &mut self.exit);
        let credit = inner::write_to_ventilator(&ToVentilator::Credit(credit));
        let Ok(ToVentilator::Credit(credit)) = inner::read_to_ventilator(credit) else {
            panic!("no credit")
        };
        assert!(self.requests.credit(credit, 3));
        assert_eq!(self.requests.take_actions().len() as u64, TOGETHER);
    }
}

#[test]
fn a_small_request_takes_no_more_allocations_than_it_did() {
    let mut path = Path::new();
    let mut sent = Vec::new();
    let mut round = |path: &mut Path| {
        let bytes = path.bytes();
        let before = path.exit.results;
        let counted = allocation_counter::measure(|| {
            path.take_in(&bytes);
            path.run();
            sent.clear();
            assert!(path.exit.outgoing.write_to(&mut sent).unwrap());
        });
        assert_eq!(path.exit.results - before, TOGETHER);
        counted.count_total
    };
    // Maps grow at first, now and then.
    let counts: Vec<u64> = (0..40).map(|_| round(&mut path)).collect();
    let least = *counts.iter().min().unwrap();
    let each = least.div_ceil(TOGETHER);
    println!("{least} allocations for {TOGETHER} requests");
    assert!(
        each <= ALLOCATIONS,
        "{each} allocations a request, {ALLOCATIONS} were enough before"
    );
}
