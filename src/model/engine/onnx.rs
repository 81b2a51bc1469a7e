//! One worker's instance of an ONNX model: its sessions, and how rows go through them.

use std::sync::Arc;
use std::time::Instant;

use ort::session::{Session, SessionInputValue};

use super::short_runs::{SHORT, Sessions};
use super::values;
use crate::error::{Error, Result};
use crate::message::{Params, Run};
use crate::model::interface::{BatchKind, Description, Model};
use crate::signature::{Dim, Port};
use crate::tensor::{Batch, Data, DataType, Tensor};

/// A model in ONNX Runtime, on one device, for one worker.
pub(crate) struct OnnxModel {
    sessions: Sessions,
    description: Arc<Description>,
    /// The outputs' names, shared by all tensors that carry them.
    output_names: Vec<Arc<str>>,
    /// Until it was decided whether there is to be one.
    make_single: Option<Box<dyn FnOnce() -> Option<Session>>>,
}

impl OnnxModel {
    pub(super) fn new(session: Session, description: Arc<Description>) -> OnnxModel {
        let output_names = description
            .outputs
            .iter()
            .map(|port| Arc::from(port.name.as_str()))
            .collect();
        OnnxModel {
            sessions: Sessions::new(session),
            description,
            output_names,
            make_single: None,
        }
    }

    fn run(&mut self, inputs: &Batch) -> Result<Batch> {
        let inputs = &*values::aligned(inputs)?;
        let failed = |e: ort::Error| {
            Error::internal(format!("model {:?} failed: {e}", self.description.name))
        };
        let (names, ports) = (&self.output_names, &self.description.outputs);
        let bytes = inputs.payload_bytes();
        let [tensor] = inputs.tensors.as_slice() else {
            let values = inputs
                .tensors
                .iter()
                .map(values::to_engine)
                .collect::<Result<Vec<SessionInputValue<'_>>>>()?;
            return self.sessions.run(bytes, |session| {
                let outputs = session.run(values.as_slice()).map_err(failed)?;
                adopt(names, ports, outputs, inputs)
            });
        };
        let value = values::to_engine(tensor)?;
        self.sessions.run(bytes, |session| {
            let outputs = session.run([value]).map_err(failed)?;
            adopt(names, ports, outputs, inputs)
        })
    }

    /// How to make a session of one thread, which warming up does if runs may be short.
    pub(super) fn set_single(&mut self, make: impl FnOnce() -> Option<Session> + 'static) {
        self.make_single = Some(Box::new(make));
    }

    /// Adds a session of one thread if a run of the sample is short.
    fn add_single(&mut self, sample: &Batch) {
        let Some(make) = self.make_single.take() else {
            return;
        };
        let mut run = || {
            let started = Instant::now();
            let result = self.infer(sample, &Params::new());
            result.is_ok().then(|| started.elapsed())
        };
        // Something else may have run beside the first ones.
        let mut shortest = run();
        for _ in 0..4 {
            if shortest.is_none_or(|us| us <= SHORT || us > 20 * SHORT) {
                break;
            }
            shortest = shortest.min(run());
        }
        if let Some(shortest) = shortest.filter(|us| *us <= SHORT)
            && let Some(session) = make()
        {
            tracing::debug!(
                model = %self.description.name,
                run_us = shortest.as_micros() as u64,
                "short runs have a session of one thread"
            );
            self.sessions
                .add_single(session, (sample.payload_bytes(), shortest));
        }
    }

    /// The smallest input.
    fn zeros(&self) -> Result<Batch> {
        let rows = match self.description.kind {
            BatchKind::Fixed(rows) => rows,
            BatchKind::Batched | BatchKind::Whole => 1,
        };
        let ports = self.description.inputs.iter();
        let tensors = ports.map(|port| zeros(port, rows)).collect::<Result<_>>()?;
        Ok(Batch { tensors })
    }

    /// Any number of rows through a model that takes exactly `size`: the last run is padded by repeating its last
    /// row, which any model takes that takes the row itself.
    fn run_fixed(&mut self, inputs: &Batch, size: usize) -> Result<Batch> {
        let rows = inputs.rows()?;
        if rows == size {
            let outputs = self.run(inputs)?;
            check_rows(&outputs, size)?;
            return Ok(outputs);
        }
        let mut columns: Vec<Vec<Tensor>> =
            vec![Vec::with_capacity(rows.div_ceil(size)); self.output_names.len()];
        for start in (0..rows).step_by(size) {
            let some = size.min(rows - start);
            let tensors = inputs
                .tensors
                .iter()
                .map(|tensor| padded(tensor, start, some, size))
                .collect::<Result<Vec<Tensor>>>()?;
            let outputs = self.run(&Batch { tensors })?;
            check_rows(&outputs, size)?;
            for (column, output) in columns.iter_mut().zip(outputs.tensors) {
                column.push(output.slice_rows(0, some));
            }
        }
        let tensors = columns
            .iter()
            .map(|column| Tensor::concat(column))
            .collect::<Result<Vec<Tensor>>>()
            // A model whose output's other dimensions change from run to run.
            .map_err(|e| Error::internal(e.message()))?;
        Ok(Batch { tensors })
    }
}

impl Model for OnnxModel {
    fn infer_with(&mut self, inputs: &Batch, _run: &Run<'_>) -> Result<Batch> {
        match self.description.kind {
            BatchKind::Whole => self.run(inputs),
            BatchKind::Fixed(size) => self.run_fixed(inputs, size),
            BatchKind::Batched => {
                let outputs = self.run(inputs)?;
                check_rows(&outputs, inputs.rows()?)?;
                Ok(outputs)
            }
        }
    }

    /// Zeros of the smallest shape. Not every model takes zeros, so a failure means nothing.
    fn warm_up(&mut self) {
        let warmed = self.zeros().and_then(|zeros| self.warm_up_with(&zeros));
        if let Err(error) = warmed {
            tracing::debug!(model = %self.description.name, %error, "warm-up failed");
        }
    }

    fn warm_up_with(&mut self, sample: &Batch) -> Result<Batch> {
        let started = Instant::now();
        let outputs = self.infer(sample, &Params::new())?;
        // The first run is much slower than those that follow, but not without end.
        if started.elapsed() < 200 * SHORT {
            self.add_single(sample);
        }
        Ok(outputs)
    }
}

fn adopt(
    names: &[Arc<str>],
    ports: &[Port],
    outputs: ort::session::SessionOutputs<'_>,
    inputs: &Batch,
) -> Result<Batch> {
    let tensors = outputs
        .into_iter()
        .zip(names.iter().zip(ports))
        .map(|((_, value), (name, port))| values::from_engine(name, port.datatype, value, inputs))
        .collect::<Result<Vec<Tensor>>>()?;
    Ok(Batch { tensors })
}

/// A model may declare a row per row and give something else.
fn check_rows(outputs: &Batch, expected: usize) -> Result<()> {
    match outputs
        .tensors
        .iter()
        .find(|tensor| tensor.rows() != Some(expected))
    {
        None => Ok(()),
        Some(tensor) => Err(Error::internal(format!(
            "output {:?} has shape {:?} for {expected} rows: expected a row for each",
            tensor.name(),
            tensor.shape()
        ))
        .about_row_count()),
    }
}

fn padded(tensor: &Tensor, start: usize, rows: usize, size: usize) -> Result<Tensor> {
    let some = tensor.slice_rows(start, rows);
    if rows == size {
        return Ok(some);
    }
    let last = tensor.slice_rows(start + rows - 1, 1);
    let mut pieces = vec![some];
    pieces.resize(size - rows + 1, last);
    Tensor::concat(&pieces)
}

fn zeros(port: &Port, rows: usize) -> Result<Tensor> {
    let shape: Vec<usize> = port
        .shape
        .iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            Dim::Fixed(size) => *size,
            Dim::Symbol(_) | Dim::Dynamic | Dim::Rest if axis == 0 => rows,
            Dim::Symbol(_) | Dim::Dynamic | Dim::Rest => 1,
        })
        .collect();
    if shape.contains(&0) {
        return Err(Error::invalid(format!("{shape:?} has no elements")));
    }
    let elements = crate::tensor::element_count(&shape)
        .filter(|&count| count <= MOST_ZEROS)
        .ok_or_else(|| Error::invalid(format!("{shape:?} is much to fill with zeros")))?;
    let data = match port.datatype.size() {
        Some(size) => Data::Fixed(vec![0; elements * size].into()),
        None => Data::Variable {
            offsets: vec![0; (elements + 1) * 8].into(),
            values: bytes::Bytes::new(),
        },
    };
    let datatype = match port.datatype {
        DataType::Json => DataType::Bytes,
        other => other,
    };
    Tensor::new(port.name.as_str(), datatype, shape, data)
}

/// Larger inputs than this are not made up to warm a model.
const MOST_ZEROS: usize = 1 << 24;
