//! What clients of the simulation ask for, and what they are allowed to get.

use super::Simulation;
use super::ledger::Clients;
use super::workers::bad_in;
use crate::error::{Error, ErrorCode};
use crate::message::{ModelLabel, OnBadRow, Priority, RequestId, Serial};
use crate::model::BatchKind;
use crate::pipeline::ventilator::requests::Held;
use crate::schedule::Job;
use crate::tensor::{Batch, Tensor};
use crate::wire::inner::{Close, CloseEnd, ToSink};

impl Simulation<'_> {
    pub(super) fn ask(&mut self) {
        self.plan.asks -= 1;
        self.last_serial += 1;
        let serial = Serial(self.last_serial);
        let request = RequestId(self.last_serial);
        let reply = Clients::reply(self.random.below(2));
        if self.random.one_in(10) {
            // It never enters the queue.
            let error = Error::invalid("refused");
            self.exit.ledger.asked(serial, reply, 0, false);
            self.exit
                .ledger
                .may_end_with(serial, ErrorCode::InvalidArgument);
            let close = Close {
                serial,
                reply,
                request,
                label: ModelLabel(0),
                chunks: 0,
                arrived_us: self.now_us,
                end: CloseEnd::Error(error),
            };
            self.to_sink.push_back(ToSink::Close(close));
            return;
        }
        let model = self.models[self.random.below(self.models.len() as u64) as usize].clone();
        let most_rows = if self.random.one_in(2) { 3 } else { 14 };
        let rows = 1 + self.random.below(most_rows) as usize;
        let whole = model.kind == BatchKind::Whole;
        let stream = !whole && self.random.one_in(4);
        let deadline_us = (self.plan.deadlines && self.random.one_in(2))
            .then(|| self.now_us + self.random.below(150));
        self.exit.ledger.asked(serial, reply, rows as u64, stream);
        if deadline_us.is_some() {
            self.exit
                .ledger
                .may_end_with(serial, ErrorCode::DeadlineExceeded);
        }
        if self.plan.max_client_bytes < 1 << 20 {
            self.exit
                .ledger
                .may_end_with(serial, ErrorCode::ResourceExhausted);
        }
        let on_bad_row = match !whole && self.random.one_in(2) {
            true => OnBadRow::Report,
            false => OnBadRow::Fail,
        };
        let value = |row: u64| serial.0 << 16 | row;
        if on_bad_row == OnBadRow::Report {
            let legs = model.legs.len() as u32;
            let bad = |row: &u64| bad_in(value(*row)).is_some_and(|leg| leg < legs);
            let bad = (0..rows as u64).filter(bad).collect();
            self.exit.ledger.reports(serial, bad);
        }
        let values: Vec<u64> = (0..rows as u64).map(value).collect();
        let held = Held {
            reply,
            request,
            inputs: Batch {
                tensors: vec![Tensor::from_vec("x", vec![rows], values).unwrap()],
            },
            params: bytes::Bytes::new(),
            rows,
            stream,
            on_bad_row,
            arrived_us: self.now_us,
            label: ModelLabel(model.id.0 as u32),
            model: model.clone(),
        };
        let job = Job {
            serial,
            client: reply,
            model: model.id,
            legs: model.legs.clone(),
            express: true,
            group: model.id.0 * 2 + self.random.below(2),
            rows,
            splittable: !whole,
            step: match model.kind {
                BatchKind::Fixed(rows) => rows,
                BatchKind::Batched | BatchKind::Whole => 1,
            },
            priority: if self.random.one_in(4) {
                Priority::High
            } else {
                Priority::Normal
            },
            bytes: 8 * rows as u64,
            deadline_us,
            arrived_us: self.now_us,
        };
        self.requests.submit(job, held).unwrap();
        self.open.insert(serial, (reply, request));
        self.act();
        if self.random.one_in(2) {
            self.give_out();
        }
    }
}
