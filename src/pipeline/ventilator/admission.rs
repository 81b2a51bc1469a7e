//! How an infer enters the queue: the model is found or waited for, the inputs are checked, the bounds are kept.
//!
//! ```text
//! a header that came before ─▶ the payload's lengths ───────────────────────────────────────┐
//! any other ─▶ its fields ─▶ the model, if it is known ─▶ inputs ─▶ group ─▶ remembered ────┴─▶ the queue
//!                            else parked until the loader has an answer ─┘
//! ```

use std::sync::Arc;

use bytes::Bytes;

use super::Ventilator;
use super::groups::Groups;
use super::known_headers::{KnownHeaders, KnownInfer, KnownInput};
use super::life::Phase;
use super::requests::Held;
use crate::catalog::{Arrival, Asker, Named, Parked, load_bytes};
use crate::error::{Error, Result};
use crate::message::{ModelId, ModelLabel, OnBadRow, Priority, ReplyTo, Request, RequestId};
use crate::model::check::{Checked, check_inputs, check_padding};
use crate::model::{BatchKind, Description, Lookup};
use crate::schedule::Job;
use crate::tensor::{Batch, Tensor};
use crate::wire::params::RawParams;

/// An input besides its bytes.
const TENSOR_BYTES: u64 = 256;

/// What was learnt from earlier infers, so that the next ones enter sooner and together.
#[derive(Default)]
pub(super) struct Learnt {
    pub(super) headers: KnownHeaders,
    groups: Groups,
}

impl Learnt {
    /// The group that a request belongs to.
    fn group(&mut self, model: ModelId, dims: Vec<usize>, params: &[u8]) -> u64 {
        if self.groups.are_full() {
            // They lead to numbers of groups that are about to be forgotten.
            self.headers.clear();
        }
        self.groups.number(model, dims, params)
    }

    /// Keeps what a header leads to, if the request fits its model.
    fn remember(
        &mut self,
        header: &Bytes,
        lookup: Lookup,
        model: &Arc<Description>,
        body: &Request<RawParams>,
    ) {
        // What cannot be told from the header alone is judged each time.
        let Ok(checked) = check_inputs(model, body.inputs.clone()) else {
            return;
        };
        let Some(inputs) = places(&body.inputs, &checked.inputs) else {
            return;
        };
        let params = body.params.bytes();
        let known = KnownInfer {
            lookup: Arc::new(lookup),
            model: model.clone(),
            group: self.group(model.id, checked.dims, params),
            rows: checked.rows,
            // A copy: it was part of a message, all of which it would keep.
            params: Bytes::copy_from_slice(params),
            params_bytes: body.params.read_bytes(),
            priority: body.priority,
            stream: body.stream,
            on_bad_row: body.on_bad_row,
            timeout_ms: body.timeout_ms,
            header_bytes: header.len(),
            frames: body.inputs.tensors.iter().map(frames).sum(),
            inputs,
        };
        self.headers.keep(header, known);
    }
}

/// The header of an infer, as far as it matters once it is read.
#[derive(Default)]
pub(super) struct Origin {
    /// Empty if it came through a door.
    pub(super) header: Bytes,
    /// It has come before, so what it leads to is worth keeping.
    pub(super) again: bool,
}

/// A request that waits for its model.
pub(super) type Waiting = Parked<Request<RawParams>>;

/// What an infer asks room for.
struct Weight {
    /// What `max_request_bytes` bounds.
    own_bytes: u64,
    header_bytes: usize,
    tensors: usize,
    /// Of a lookup that the loader has to be asked.
    named_bytes: u64,
}

/// The model that a request names, and what is known to be meant.
struct Sought {
    lookup: Lookup,
    known: Option<Arc<Description>>,
}

/// A request that fits its model.
struct Fitting {
    model: Arc<Description>,
    inputs: Batch,
    rows: usize,
    group: u64,
    params: Bytes,
    priority: Priority,
    stream: bool,
    on_bad_row: OnBadRow,
}

impl Ventilator {
    /// An infer has arrived whose header came before.
    pub(super) fn take_known(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        known: &KnownInfer,
        inputs: Batch,
    ) -> Result<()> {
        if let Err(error) = self.clients.begin(reply, request) {
            self.refuse_on_port(reply, request, error);
            return Ok(());
        }
        let weight = Weight {
            own_bytes: inputs.payload_bytes() as u64 + known.params_bytes,
            header_bytes: known.header_bytes,
            tensors: inputs.tensors.len(),
            named_bytes: 0,
        };
        let asker = Asker {
            client: reply,
            id: request,
        };
        let arrival = self.arrive(asker, known.timeout_ms, &weight);
        let queued = arrival.and_then(|arrival| {
            let checked = Checked {
                inputs,
                rows: known.rows,
                dims: Vec::new(),
            };
            check_padding(&known.model, &checked, self.info.welcome.max_request_bytes)?;
            let fitting = Fitting {
                model: known.model.clone(),
                inputs: checked.inputs,
                rows: known.rows,
                group: known.group,
                params: known.params.clone(),
                priority: known.priority,
                stream: known.stream,
                on_bad_row: known.on_bad_row,
            };
            self.queue(arrival, fitting)
        });
        match queued {
            Ok(()) => Ok(()),
            Err(error) => {
                let label = self.ledger.label(&known.model);
                self.refuse(asker, label, &error)
            }
        }
    }

    /// An infer has arrived.
    pub(super) fn take_infer(
        &mut self,
        reply: ReplyTo,
        request: RequestId,
        body: Request<RawParams>,
        origin: Origin,
    ) -> Result<()> {
        let lookup = Lookup::of(body.model.as_deref(), body.params.paths());
        let known = self.catalog.known(&lookup).cloned();
        let label = known.as_ref().map(|model| self.ledger.label(model));
        let asker = Asker {
            client: reply,
            id: request,
        };
        let sought = Sought { lookup, known };
        match self.admit(asker, body, origin, sought) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(asker, label.unwrap_or_default(), &error),
        }
    }

    fn admit(
        &mut self,
        asker: Asker,
        body: Request<RawParams>,
        origin: Origin,
        Sought { lookup, known }: Sought,
    ) -> Result<()> {
        let weight = Weight {
            own_bytes: body.inputs.payload_bytes() as u64 + body.params.read_bytes(),
            header_bytes: origin.header.len(),
            tensors: body.inputs.tensors.len(),
            named_bytes: known.as_ref().map_or_else(|| load_bytes(&lookup), |_| 0),
        };
        let arrival = self.arrive(asker, body.timeout_ms, &weight)?;
        match known {
            Some(model) if origin.again => {
                self.learnt.remember(&origin.header, lookup, &model, &body);
                self.enqueue(Parked { arrival, body }, model)
            }
            Some(model) => self.enqueue(Parked { arrival, body }, model),
            None => self.park(Parked { arrival, body }, lookup),
        }
    }

    /// Whether there is room for a request, and until when it may wait.
    fn arrive(
        &mut self,
        asker: Asker,
        timeout_ms: Option<u64>,
        weight: &Weight,
    ) -> Result<Arrival> {
        if self.life.phase != Phase::Serving {
            return Err(Error::unavailable("the server is shutting down"));
        }
        let (own_bytes, most) = (weight.own_bytes, self.info.welcome.max_request_bytes);
        if own_bytes > most {
            return Err(Error::exhausted(format!(
                "the request has {own_bytes} bytes, this server takes {most} (--max-request-bytes)"
            )));
        }
        let arrived_us = self.links.clock.now_us();
        let own_us = timeout_ms.map(|ms| ms.saturating_mul(1000));
        let default_us = self.info.default_timeout.map(|t| t.as_micros() as u64);
        let timeout = own_us.or(default_us);
        // What its header made is held as long as its rows are.
        let bytes = own_bytes + weight.header_bytes as u64 + TENSOR_BYTES * weight.tensors as u64;
        self.check_room(asker.client, bytes + weight.named_bytes)?;
        Ok(Arrival {
            serial: self.new_serial(),
            reply: asker.client,
            request: asker.id,
            arrived_us,
            deadline_us: timeout.map(|timeout| arrived_us.saturating_add(timeout)),
            bytes,
        })
    }

    /// Whether so many bytes of a client fit into the queue, beside what waits for models.
    pub(super) fn check_room(&self, client: ReplyTo, bytes: u64) -> Result<()> {
        let (parked, beside) = (self.catalog.parked_shares(), self.catalog.beside());
        self.requests.check_room(client, bytes, parked, beside)
    }

    /// What a lookup names. No file is touched.
    pub(super) fn named(&self, lookup: Lookup) -> Named {
        Named {
            name: self.links.store.name_of(&lookup),
            lookup: Arc::new(lookup),
        }
    }

    /// The model is not described yet: the request waits while the loader reads the file.
    fn park(&mut self, parked: Waiting, lookup: Lookup) -> Result<()> {
        let Arrival {
            serial,
            reply,
            request,
            ..
        } = parked.arrival;
        let named = self.named(lookup);
        self.catalog.park(named, parked)?;
        self.clients.open(reply, request, serial);
        self.act_for_catalog()
    }

    /// The model that a request waited for is described.
    pub(super) fn take_parked(&mut self, parked: Waiting, model: Arc<Description>) -> Result<()> {
        let asker = parked.arrival.asker();
        let label = self.ledger.label(&model);
        match self.enqueue(parked, model) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(asker, label, &error),
        }
    }

    /// A request ends while it waits for its model, of which it is not known whether there is one.
    pub(super) fn refuse_parked(&mut self, arrival: &Arrival, error: &Error) -> Result<()> {
        self.refuse(arrival.asker(), ModelLabel::default(), error)
    }

    /// Takes a request into the queue whose model is described.
    fn enqueue(&mut self, parked: Waiting, model: Arc<Description>) -> Result<()> {
        let Parked { arrival, body } = parked;
        let checked = check_inputs(&model, body.inputs)?;
        check_padding(&model, &checked, self.info.welcome.max_request_bytes)?;
        let params = body.params.bytes();
        let fitting = Fitting {
            group: self.learnt.group(model.id, checked.dims, params),
            params: params.clone(),
            inputs: checked.inputs,
            rows: checked.rows,
            priority: body.priority,
            stream: body.stream,
            on_bad_row: body.on_bad_row,
            model,
        };
        self.queue(arrival, fitting)
    }

    fn queue(&mut self, arrival: Arrival, fitting: Fitting) -> Result<()> {
        let Arrival {
            serial,
            reply,
            request,
            arrived_us,
            deadline_us,
            bytes,
        } = arrival;
        let model = fitting.model;
        if fitting.on_bad_row == OnBadRow::Report && model.kind == BatchKind::Whole {
            return Err(Error::invalid(format!(
                "on_bad_row \"report\": model {:?} gets a request whole, so that no row of it can fail by itself; \
                 leave on_bad_row out",
                model.name
            )));
        }
        let job = Job {
            serial,
            client: reply,
            model: model.id,
            legs: model.legs.clone(),
            express: model.express,
            group: fitting.group,
            rows: fitting.rows,
            splittable: model.kind != BatchKind::Whole,
            step: match model.kind {
                BatchKind::Fixed(rows) => rows,
                BatchKind::Batched | BatchKind::Whole => 1,
            },
            priority: fitting.priority,
            bytes,
            deadline_us,
            arrived_us,
        };
        let held = Held {
            reply,
            request,
            inputs: fitting.inputs,
            params: fitting.params,
            rows: fitting.rows,
            // What is given whole has no rows to send in parts: the one result is its stream.
            stream: fitting.stream && model.kind != BatchKind::Whole,
            on_bad_row: fitting.on_bad_row,
            arrived_us,
            label: self.ledger.label(&model),
            model,
        };
        let model = held.model.id;
        self.requests.submit(job, held)?;
        self.clients.open(reply, request, serial);
        self.catalog.hold(model);
        Ok(())
    }
}

fn frames(tensor: &Tensor) -> usize {
    tensor.datatype().frames()
}

/// For each of the model's inputs the frame that a message brings it in. A name that is left out is that of the only input.
fn places(sent: &Batch, ordered: &Batch) -> Option<Vec<KnownInput>> {
    let is_only = sent.tensors.len() == 1;
    let place = |input: &Tensor| {
        let mut frame = 0;
        for tensor in &sent.tensors {
            if tensor.name() == input.name() || is_only {
                return Some(KnownInput {
                    frame,
                    name: input.name().into(),
                    datatype: input.datatype(),
                    shape: input.shape().to_vec(),
                });
            }
            frame += frames(tensor);
        }
        None
    };
    ordered.tensors.iter().map(place).collect()
}
