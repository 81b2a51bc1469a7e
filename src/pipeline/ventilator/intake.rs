//! What may enter the queue: the model is found or waited for, the inputs are checked, the bounds are kept.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::{Errand, Held, MAX_ERRANDS, Phase, Ventilator, loader_is_busy};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::message::{ModelId, ReplyTo, Request, RequestId, Serial};
use crate::model::Lookup;
use crate::model::check::{check_inputs, check_padding};
use crate::model::loader::Job as LoadJob;
use crate::model::{BatchKind, Description};
use crate::schedule::Job;
use crate::wire::params::RawParams;

/// Different lookups whose answers are kept. A client may vary its `_path` parameters without end.
const MAX_RESOLVED: usize = 4096;
/// Most bytes of those lookups. One that has more than a part of them is not kept.
const MAX_RESOLVED_BYTES: u64 = 4 << 20;
const MAX_RESOLVED_PART: u64 = MAX_RESOLVED_BYTES / 64;
/// Different groups that have numbers. When they are forgotten, requests of before and after do not share a batch.
const MAX_GROUPS: usize = 4096;

/// A value of a parameter.
const VALUE_BYTES: u64 = 64;
/// An input besides its bytes.
const TENSOR_BYTES: u64 = 256;
/// What a request names is kept so many times while its model is not described.
const LOOKUPS: u64 = 4;
/// Of each lookup besides its texts.
const LOOKUP_BYTES: u64 = 128;
/// Longest parameters and dimensions of a group that has a number.
const MAX_GROUP_BYTES: usize = 4096;

/// So many more numbers of requests that have ended than of open ones may wait for models.
const MIN_ENDED: usize = 1024;

/// A request that waits for its model to be described.
pub(super) struct Parked {
    pub reply: ReplyTo,
    pub request: RequestId,
    body: Request<RawParams>,
    arrived_us: u64,
    deadline_us: Option<u64>,
    bytes: u64,
}

/// Requests of one group may run in one batch: the same model, parameters and dimensions.
#[derive(Hash, PartialEq, Eq)]
struct GroupKey {
    model: ModelId,
    dims: Vec<usize>,
    params: Box<[u8]>,
}

/// The requests on their way into the queue, and what was learnt about models.
#[derive(Default)]
pub(super) struct Intake {
    resolved: HashMap<Lookup, Arc<Description>>,
    resolved_bytes: u64,
    waiting: HashMap<Lookup, Vec<Serial>>,
    parked: HashMap<Serial, Parked>,
    /// Numbers in `waiting` of requests that have ended.
    ended: usize,
    parked_bytes: u64,
    deadlines: BinaryHeap<Reverse<(u64, Serial)>>,
    groups: HashMap<GroupKey, u64>,
    next_group: u64,
}

impl Intake {
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn serials(&self) -> Vec<Serial> {
        self.parked.keys().copied().collect()
    }

    /// Takes out a parked request that ends before its model is described, if it is one.
    pub(super) fn give_up(&mut self, serial: Serial) -> Option<Parked> {
        let parked = self.unpark(serial)?;
        self.ended += 1;
        if self.ended > self.parked.len() + MIN_ENDED {
            // A loader may be busy for long, and clients come and go meanwhile.
            let open = &self.parked;
            for waiting in self.waiting.values_mut() {
                waiting.retain(|serial| open.contains_key(serial));
                waiting.shrink_to(2 * waiting.len());
            }
            self.ended = 0;
        }
        Some(parked)
    }

    /// The parked requests that waited for a lookup, in the order in which they came.
    fn take_waiting(&mut self, lookup: &Lookup) -> Vec<(Serial, Parked)> {
        let mut taken = Vec::new();
        for serial in self.waiting.remove(lookup).unwrap_or_default() {
            match self.unpark(serial) {
                Some(parked) => taken.push((serial, parked)),
                // It was cancelled, or its deadline passed.
                None => self.ended = self.ended.saturating_sub(1),
            }
        }
        taken
    }

    fn unpark(&mut self, serial: Serial) -> Option<Parked> {
        let parked = self.parked.remove(&serial)?;
        self.parked_bytes -= parked.bytes;
        Some(parked)
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((us, _))| *us)
    }

    /// Parked requests whose deadline has passed.
    pub(super) fn expired(&mut self, now_us: u64) -> Vec<Serial> {
        if self.deadlines.len() > 2 * self.parked.len() + 1024 {
            // Behind one that waits long, those that have ended would stay.
            let parked = &self.parked;
            self.deadlines
                .retain(|Reverse((_, serial))| parked.contains_key(serial));
        }
        let mut expired = Vec::new();
        while let Some(Reverse((deadline, serial))) = self.deadlines.peek().copied() {
            let parked = self.parked.contains_key(&serial);
            if parked && deadline > now_us {
                break;
            }
            self.deadlines.pop();
            if parked {
                expired.push(serial);
            }
        }
        expired
    }

    /// The next request with that lookup need not wait for the loader.
    pub(super) fn learn(&mut self, lookup: &Lookup, description: &Arc<Description>) {
        let bytes = lookup_bytes(lookup);
        if bytes > MAX_RESOLVED_PART {
            return; // the loader looks it up again
        }
        if self.resolved.len() >= MAX_RESOLVED || self.resolved_bytes + bytes > MAX_RESOLVED_BYTES {
            self.resolved.clear();
            self.resolved_bytes = 0;
        }
        let before = self.resolved.insert(lookup.clone(), description.clone());
        if before.is_none() {
            self.resolved_bytes += bytes;
        }
    }

    /// A model was unloaded: the next request asks the loader again.
    pub(super) fn forget(&mut self, model: ModelId) {
        let left = &mut self.resolved_bytes;
        self.resolved.retain(|lookup, description| {
            let stays = description.id != model;
            if !stays {
                *left = left.saturating_sub(lookup_bytes(lookup));
            }
            stays
        });
    }

    /// What is known of the model that a lookup leads to, if that was learnt.
    pub(super) fn known(&self, lookup: &Lookup) -> Option<&Arc<Description>> {
        self.resolved.get(lookup)
    }

    /// Parameters are the same if their bytes are.
    fn group(&mut self, model: ModelId, dims: Vec<usize>, params: &[u8]) -> u64 {
        if params.len() + size_of_val(&*dims) > MAX_GROUP_BYTES {
            // Too long to be kept in case it comes again: it runs alone.
            self.next_group += 1;
            return self.next_group;
        }
        if self.groups.len() >= MAX_GROUPS {
            self.groups.clear();
        }
        let key = GroupKey {
            model,
            dims,
            params: params.into(),
        };
        let next = &mut self.next_group;
        *self.groups.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

/// Roughly the memory that a value takes.
fn value_bytes(value: &Value) -> u64 {
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() as u64,
        // Of arrays and maps nothing but that they are is kept: wire/params.rs.
        Value::Array(_) | Value::Object(_) => 0,
    };
    VALUE_BYTES + inner
}

/// Roughly the memory that a lookup takes.
fn lookup_bytes(lookup: &Lookup) -> u64 {
    let (texts, values) = lookup.held();
    LOOKUP_BYTES
        + texts.map(|text| text.len() as u64).sum::<u64>()
        + values.map(|v| VALUE_BYTES + value_bytes(v)).sum::<u64>()
}

impl Ventilator {
    /// An infer has arrived.
    pub(super) fn take_infer(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        body: Request<RawParams>,
        header_bytes: usize,
    ) -> Result<()> {
        let serial = self.new_serial();
        match self.admit(serial, (reply, request), body, header_bytes) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(serial, reply, request, &error),
        }
    }

    fn admit(
        &mut self,
        serial: Serial,
        (reply, request): (ReplyTo, RequestId),
        body: Request<RawParams>,
        header_bytes: usize,
    ) -> Result<()> {
        let arrived_us = self.clock.now_us();
        if self.phase != Phase::Serving {
            return Err(Error::unavailable("the server is shutting down"));
        }
        let own_bytes = body.inputs.payload_bytes() as u64 + body.params.read_bytes();
        let most = self.facts.welcome.max_request_bytes;
        if own_bytes > most {
            return Err(Error::exhausted(format!(
                "the request has {own_bytes} bytes, this server takes {most} (--max-request-bytes)"
            )));
        }
        let own_us = body.timeout_ms.map(|ms| ms.saturating_mul(1000));
        let default_us = self.facts.default_timeout.map(|t| t.as_micros() as u64);
        let deadline_us = own_us
            .or(default_us)
            .map(|timeout| arrived_us.saturating_add(timeout));
        let lookup = Lookup::of(body.model.as_deref(), body.params.paths());
        // What its header made is held as long as its rows are.
        let bytes = own_bytes
            + header_bytes as u64
            + TENSOR_BYTES * body.inputs.tensors.len() as u64
            + LOOKUPS * lookup_bytes(&lookup);
        // Those that wait for a model to be read wait in the same bounds as the queue.
        let (requests, beside) = (self.intake.parked.len(), self.intake.parked_bytes);
        self.scheduler.check_room(bytes, requests, beside)?;
        let parked = Parked {
            reply,
            request,
            body,
            arrived_us,
            deadline_us,
            bytes,
        };
        match self.intake.known(&lookup).cloned() {
            Some(description) => self.enqueue(serial, parked, description),
            None => self.park(serial, parked, lookup),
        }
    }

    /// The model is not described yet: the request waits while the loader reads the file.
    fn park(&mut self, serial: Serial, parked: Parked, lookup: Lookup) -> Result<()> {
        let first = !self.intake.waiting.contains_key(&lookup);
        if first && self.errands.len() >= MAX_ERRANDS {
            return Err(loader_is_busy());
        }
        if let Some(deadline) = parked.deadline_us {
            self.intake.deadlines.push(Reverse((deadline, serial)));
        }
        self.clients.open(parked.reply, parked.request, serial);
        self.intake.parked_bytes += parked.bytes;
        self.intake.parked.insert(serial, parked);
        let waiting = self.intake.waiting.entry(lookup.clone()).or_default();
        waiting.push(serial);
        if first {
            let job = LoadJob::Resolve(lookup.clone());
            self.send_errand(Errand::Infer(lookup), job);
        }
        Ok(())
    }

    /// The loader has described a model, or says why it cannot: those who waited go on.
    pub(super) fn settle(
        &mut self,
        lookup: Lookup,
        result: Result<Arc<Description>>,
    ) -> Result<()> {
        let Some(result) = self.take_up(&lookup, result) else {
            let job = LoadJob::Resolve(lookup.clone());
            self.send_errand(Errand::Infer(lookup), job);
            return Ok(());
        };
        for (serial, parked) in self.intake.take_waiting(&lookup) {
            let (reply, request) = (parked.reply, parked.request);
            let entered = match &result {
                Ok(description) => self.enqueue(serial, parked, description.clone()),
                Err(error) => Err(error.clone()),
            };
            if let Err(error) = entered {
                self.refuse(serial, reply, request, &error)?;
            }
        }
        Ok(())
    }

    /// The loader has described a model, and there is room for it or is made. `None`: it left between the loader's
    /// answer and now, so the loader is to be asked again.
    pub(super) fn take_up(
        &mut self,
        lookup: &Lookup,
        result: Result<Arc<Description>>,
    ) -> Option<Result<Arc<Description>>> {
        let description = match result {
            Ok(description) => description,
            Err(error) => return Some(Err(error)),
        };
        if !self.registry.is_served(description.id) {
            return None;
        }
        match self.room_for(&description, &[]) {
            Ok(leaving) => self.make_room(&leaving),
            Err(error) => {
                self.make_room(&[description.id]);
                return Some(Err(error));
            }
        }
        self.in_use.touch(description.id);
        self.intake.learn(lookup, &description);
        Some(Ok(description))
    }

    fn enqueue(&mut self, serial: Serial, parked: Parked, model: Arc<Description>) -> Result<()> {
        let Request {
            inputs,
            params,
            priority,
            stream,
            ..
        } = parked.body;
        let checked = check_inputs(&model, inputs)?;
        check_padding(&model, &checked, self.facts.welcome.max_request_bytes)?;
        // What is given whole has no rows to send in parts: the one result is its stream.
        let stream = stream && model.kind != BatchKind::Whole;
        let job = Job {
            serial,
            model: model.id,
            legs: model.legs.clone(),
            group: self.intake.group(model.id, checked.dims, params.bytes()),
            rows: checked.rows,
            splittable: model.kind != BatchKind::Whole,
            step: match model.kind {
                BatchKind::Fixed(rows) => rows,
                BatchKind::Batched | BatchKind::Whole => 1,
            },
            priority,
            bytes: parked.bytes,
            deadline_us: parked.deadline_us,
            arrived_us: parked.arrived_us,
        };
        self.scheduler.submit(job)?;
        self.clients.open(parked.reply, parked.request, serial);
        self.in_use.hold(model.id);
        self.held.insert(
            serial,
            Held {
                reply: parked.reply,
                request: parked.request,
                inputs: checked.inputs,
                params: params.bytes().clone(),
                rows: checked.rows,
                stream,
                arrived_us: parked.arrived_us,
                model,
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Params;
    use crate::model::mock::{Behaviour, MockSource};

    fn park(intake: &mut Intake, lookup: &Lookup, serial: u64) {
        let serial = Serial(serial);
        let parked = Parked {
            reply: ReplyTo::default(),
            request: RequestId(serial.0),
            body: Request::default(),
            arrived_us: 0,
            deadline_us: None,
            bytes: 1,
        };
        intake.parked_bytes += parked.bytes;
        intake.parked.insert(serial, parked);
        let waiting = intake.waiting.entry(lookup.clone()).or_default();
        waiting.push(serial);
    }

    #[test]
    fn parked_requests_that_have_ended_leave_no_numbers_behind() {
        let mut intake = Intake::default();
        let lookup = Lookup::of(Some("m"), &Params::new());
        park(&mut intake, &lookup, 0);
        for serial in 1..10_000 {
            park(&mut intake, &lookup, serial);
            assert!(intake.give_up(Serial(serial)).is_some());
        }
        assert!(intake.waiting[&lookup].len() <= 2 * MIN_ENDED);
        let left = intake.take_waiting(&lookup);
        let serials: Vec<Serial> = left.iter().map(|(serial, _)| *serial).collect();
        assert_eq!((serials, intake.parked_bytes), (vec![Serial(0)], 0));
    }

    #[test]
    fn lookups_that_are_kept_are_bounded_in_bytes() {
        let model = MockSource::default().add("m", Behaviour::Echo);
        let mut intake = Intake::default();
        let spelt = |bytes: usize, number: usize| {
            let paths = (0..bytes / 1000).map(|i| {
                let path = format!("{number}{}", "/".repeat(980));
                (format!("{i}_path"), path.into())
            });
            Lookup::of(Some("m"), &paths.collect())
        };
        for number in 0..2000 {
            intake.learn(&spelt(10_000, number), &model);
        }
        let kept = |intake: &Intake| intake.resolved.keys().map(lookup_bytes).sum::<u64>();
        assert!(kept(&intake) <= MAX_RESOLVED_BYTES && kept(&intake) > MAX_RESOLVED_PART);
        assert_eq!(kept(&intake), intake.resolved_bytes);
        let large = spelt(200_000, 0);
        intake.learn(&large, &model);
        assert!(!intake.resolved.contains_key(&large));
        intake.forget(model.id);
        assert_eq!((intake.resolved.len(), intake.resolved_bytes), (0, 0));
    }

    #[test]
    fn long_names_are_not_kept_with_groups() {
        let mut intake = Intake::default();
        let ids = [0, 1].map(|_| intake.group(ModelId(1), vec![7; 100_000], &[]));
        assert_ne!(ids[0], ids[1]);
        assert!(intake.groups.is_empty());
    }
}
