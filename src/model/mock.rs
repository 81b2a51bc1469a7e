//! Models without an engine, for tests of the pipeline: an echo, one that waits at a gate, one that fails, one that
//! panics.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::{BatchKind, Description, Dim, Empty, Model, ModelSource, Port, Run, Takes};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role, WorkerId};
use crate::tensor::{Batch, DataType, Tensor};

/// What a mock model does with a batch.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Gives its inputs back.
    Echo,
    /// Waits until the gate is open, then echoes.
    Gated(Arc<Gate>),
    /// Waits until the gate is open, then fails if a number is below 0.
    GatedFail(Arc<Gate>),
    /// Fails with this message if a number is below 0.
    Fail(String),
    /// Blames these rows if a number is below 0.
    Blame(Range<usize>),
    /// Panics with this message if a number is below 0.
    Panic(String),
    /// Adds to every number.
    Add(f32),
}

/// A gate that runs wait at, and that counts who came.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    permits: usize,
    arrived: usize,
}

impl Gate {
    /// Lets everybody through, now and later.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    /// Lets so many runs through.
    pub(crate) fn admit(&self, runs: usize) {
        self.state.lock().unwrap().permits += runs;
        self.changed.notify_all();
    }

    /// Waits until so many runs have come to the gate since the test began.
    pub(crate) fn wait_for_arrivals(&self, runs: usize) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |state| state.arrived < runs)
                .unwrap(),
        );
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.arrived += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| !state.open && state.permits == 0)
            .unwrap();
        if !state.open {
            state.permits -= 1;
        }
    }
}

type Mock = (Arc<Description>, Vec<Behaviour>);

/// Mock models by name. Every one takes and gives "x" FP32 [N, any] unless described otherwise.
#[derive(Debug, Default)]
pub(crate) struct MockSource {
    models: Mutex<HashMap<ModelId, Mock>>,
    opened: AtomicUsize,
}

impl MockSource {
    /// Adds a batched model of one input and one output, and describes it.
    pub(crate) fn add(&self, name: &str, behaviour: Behaviour) -> Arc<Description> {
        self.add_kind(name, BatchKind::Batched, behaviour)
    }

    /// Adds a model of any kind.
    pub(crate) fn add_kind(
        &self,
        name: &str,
        kind: BatchKind,
        behaviour: Behaviour,
    ) -> Arc<Description> {
        self.add_legs(name, kind, vec![(Role::Main, behaviour)])
    }

    /// Adds a model of several legs.
    pub(crate) fn add_legs(
        &self,
        name: &str,
        kind: BatchKind,
        legs: Vec<(Role, Behaviour)>,
    ) -> Arc<Description> {
        let (legs, behaviours): (Vec<Role>, Vec<Behaviour>) = legs.into_iter().unzip();
        let first = match kind {
            BatchKind::Fixed(rows) => Dim::Fixed(rows),
            BatchKind::Batched | BatchKind::Whole => Dim::Symbol("N".to_owned()),
        };
        let ports = vec![Port {
            name: "x".to_owned(),
            datatype: DataType::Fp32,
            shape: vec![first, Dim::Dynamic],
        }];
        let mut models = self.models.lock().unwrap();
        let description = Arc::new(Description {
            id: ModelId(models.len() as u64 + 1),
            name: name.to_owned(),
            version: "1".to_owned(),
            kind,
            takes: Takes::Declared,
            inputs: ports.clone(),
            outputs: ports,
            legs: legs.into(),
            express: behaviours.len() == 1,
            empty: Empty::Allowed,
            has_versions: false,
            unproven_rows: None,
        });
        models.insert(description.id, (description.clone(), behaviours));
        description
    }

    /// How many times a worker has opened a model.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

fn unknown(model: ModelId) -> Error {
    Error::not_found(format!("model number {model} is not known"))
}

impl ModelSource for MockSource {
    fn open(&self, model: ModelId, leg: u32, _worker: WorkerId) -> Result<Box<dyn Model>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let models = self.models.lock().unwrap();
        let (_, behaviours) = models.get(&model).ok_or_else(|| unknown(model))?;
        Ok(Box::new(MockModel(behaviours[leg as usize].clone())))
    }

    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>> {
        let models = self.models.lock().unwrap();
        let (description, _) = models.get(&model).ok_or_else(|| unknown(model))?;
        Ok(description.legs.clone())
    }

    fn is_express(&self, model: ModelId) -> bool {
        let models = self.models.lock().unwrap();
        models
            .get(&model)
            .is_some_and(|(description, _)| description.express)
    }
}

struct MockModel(Behaviour);

fn has_negative(inputs: &Batch) -> bool {
    let numbers = inputs.tensors[0].to_vec::<f32>().unwrap();
    numbers.iter().any(|number| *number < 0.0)
}

impl Model for MockModel {
    fn infer_with(&mut self, inputs: &Batch, _run: &Run<'_>) -> Result<Batch> {
        match &self.0 {
            Behaviour::Echo => Ok(inputs.clone()),
            Behaviour::Gated(gate) => {
                gate.pass();
                Ok(inputs.clone())
            }
            Behaviour::GatedFail(gate) => {
                gate.pass();
                match has_negative(inputs) {
                    true => Err(Error::internal("below 0")),
                    false => Ok(inputs.clone()),
                }
            }
            Behaviour::Fail(message) if has_negative(inputs) => {
                Err(Error::internal(message.as_str()))
            }
            Behaviour::Blame(rows) if has_negative(inputs) => {
                Err(Error::invalid("no").at_rows(rows.clone()))
            }
            Behaviour::Add(number) => {
                let x = &inputs.tensors[0];
                let sums = x.to_vec::<f32>()?.iter().map(|v| v + number).collect();
                Ok(Batch {
                    tensors: vec![Tensor::from_vec("x", x.shape().to_vec(), sums)?],
                })
            }
            Behaviour::Panic(message) if has_negative(inputs) => panic!("{message}"),
            Behaviour::Blame(_) | Behaviour::Fail(_) | Behaviour::Panic(_) => Ok(inputs.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Params;

    fn batch() -> Batch {
        let x = Tensor::from_vec("x", vec![1, 2], vec![1f32, 2.]).unwrap();
        Batch { tensors: vec![x] }
    }

    #[test]
    fn a_gate_holds_runs_until_it_is_told() {
        let source = Arc::new(MockSource::default());
        let gate = Arc::new(Gate::default());
        let id = source.add("g", Behaviour::Gated(gate.clone())).id;
        let runner = {
            let source = source.clone();
            std::thread::spawn(move || {
                let mut model = source.open(id, 0, WorkerId(0)).unwrap();
                (0..3)
                    .map(|_| model.infer(&batch(), &Params::new()).unwrap())
                    .count()
            })
        };
        gate.wait_for_arrivals(1);
        gate.admit(1);
        gate.wait_for_arrivals(2);
        gate.open();
        assert_eq!(runner.join().unwrap(), 3);
        assert_eq!(source.opened(), 1);
    }
}
