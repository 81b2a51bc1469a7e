//! What may enter the queue: the model is found or waited for, the inputs are checked, the bounds are kept.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::{Errand, Held, MAX_ERRANDS, Phase, Ventilator, loader_is_busy};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::message::{ModelId, Params, ReplyTo, Request, RequestId, Serial};
use crate::model::Lookup;
use crate::model::check::check_inputs;
use crate::model::loader::Job as LoadJob;
use crate::model::{BatchKind, Description};
use crate::schedule::Job;

/// Different lookups whose answers are kept. A client may vary its `_path` parameters without end.
const MAX_RESOLVED: usize = 4096;
/// Different groups that have numbers. When they are forgotten, requests of before and after do not share a batch.
const MAX_GROUPS: usize = 4096;

/// A value of a parameter, or an entry's place in a map.
const VALUE_BYTES: u64 = 64;
/// Longest parameters of a group that has a number.
const MAX_GROUP_BYTES: usize = 4096;

/// A request that waits for its model to be described.
pub(super) struct Parked {
    pub reply: ReplyTo,
    pub request: RequestId,
    body: Request,
    arrived_us: u64,
    deadline_us: Option<u64>,
    bytes: u64,
}

/// Requests of one group may run in one batch: the same model, parameters and dimensions.
#[derive(Hash, PartialEq, Eq)]
struct GroupKey {
    model: ModelId,
    dims: Vec<usize>,
    params: String,
}

/// The requests on their way into the queue, and what was learnt about models.
#[derive(Default)]
pub(super) struct Intake {
    resolved: HashMap<Lookup, Arc<Description>>,
    waiting: HashMap<Lookup, Vec<Serial>>,
    parked: HashMap<Serial, Parked>,
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

    /// Takes a parked request out, if it is one.
    pub(super) fn unpark(&mut self, serial: Serial) -> Option<Parked> {
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
        if self.resolved.len() >= MAX_RESOLVED {
            self.resolved.clear();
        }
        self.resolved.insert(lookup.clone(), description.clone());
    }

    /// A model was unloaded: the next request asks the loader again.
    pub(super) fn forget(&mut self, model: ModelId) {
        self.resolved
            .retain(|_, description| description.id != model);
    }

    /// What is known of the model that a lookup leads to, if that was learnt.
    pub(super) fn known(&self, lookup: &Lookup) -> Option<&Arc<Description>> {
        self.resolved.get(lookup)
    }

    fn group(&mut self, model: ModelId, dims: Vec<usize>, params: &Params) -> u64 {
        let params = if params.is_empty() {
            String::new()
        } else {
            serde_json::to_string(params).unwrap_or_default()
        };
        if params.len() > MAX_GROUP_BYTES {
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
            params,
        };
        let next = &mut self.next_group;
        *self.groups.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

/// Roughly the memory that parameters take.
fn params_bytes(params: &Params) -> u64 {
    fn value_bytes(value: &Value) -> u64 {
        let inner = match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len() as u64,
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(values) => params_bytes(values),
        };
        VALUE_BYTES + inner
    }
    let entry =
        |(name, value): (&String, &Value)| VALUE_BYTES + name.len() as u64 + value_bytes(value);
    params.iter().map(entry).sum()
}

impl Ventilator {
    /// An infer has arrived.
    pub(super) fn take_infer(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        body: Request,
    ) -> Result<()> {
        let serial = self.new_serial();
        let arrived_us = self.clock.now_us();
        match self.admit(serial, reply, request, body, arrived_us) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(serial, reply, request, &error),
        }
    }

    fn admit(
        &mut self,
        serial: Serial,
        reply: ReplyTo,
        request: RequestId,
        body: Request,
        arrived_us: u64,
    ) -> Result<()> {
        if self.phase != Phase::Serving {
            return Err(Error::unavailable("the server is shutting down"));
        }
        let bytes = body.inputs.payload_bytes() as u64 + params_bytes(&body.params);
        let most = self.facts.welcome.max_request_bytes;
        if bytes > most {
            return Err(Error::exhausted(format!(
                "the request has {bytes} bytes, this server takes {most} (--max-request-bytes)"
            )));
        }
        let own_us = body.timeout_ms.map(|ms| ms.saturating_mul(1000));
        let default_us = self.facts.default_timeout.map(|t| t.as_micros() as u64);
        let deadline_us = own_us
            .or(default_us)
            .map(|timeout| arrived_us.saturating_add(timeout));
        // Those that wait for a model to be read wait in the same bounds as the queue.
        let (requests, beside) = (self.intake.parked.len(), self.intake.parked_bytes);
        self.scheduler.check_room(bytes, requests, beside)?;
        let lookup = Lookup::of(body.model.as_deref(), &body.params);
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
        for serial in self.intake.waiting.remove(&lookup).unwrap_or_default() {
            let Some(parked) = self.intake.unpark(serial) else {
                continue; // it was cancelled, or its deadline passed
            };
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
        // What is given whole has no rows to send in parts: the one result is its stream.
        let stream = stream && model.kind != BatchKind::Whole;
        let job = Job {
            serial,
            model: model.id,
            legs: model.legs.clone(),
            group: self.intake.group(model.id, checked.dims, &params),
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
                params,
                rows: checked.rows,
                stream,
                arrived_us: parked.arrived_us,
                model,
            },
        );
        Ok(())
    }
}
