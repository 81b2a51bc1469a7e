//! One engine session: how it is made, and what it says that the model takes and gives.

use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, ValueType};

use super::proto::{ModelProto, TypeProto, ValueInfoProto};
use super::{Device, Engine, values};
use crate::error::{Error, Result};
use crate::message::{ModelId, Role};
use crate::model::interface::{BatchKind, Description, Empty, Takes, constant_rows};
use crate::proxy::{GraphOptimization, SessionOptions};
use crate::signature::{Dim, Port, Rows};

/// What a model takes and gives, and how rows may be put together for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) kind: BatchKind,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) empty: Empty,
}

impl Signature {
    /// The description of an ONNX file that a stage or a plugin opens: the `options` may ask for a fixed batch, and the
    /// proxy may say of the rows what the file does not.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: a fixed batch or rows that its shapes do not allow.
    pub(crate) fn describe(
        &self,
        name: &str,
        batch: Option<usize>,
        rows: Option<Rows>,
    ) -> Result<Arc<Description>> {
        let kind = match (batch, self.kind_with(rows)?) {
            (None, kind) => kind,
            (Some(batch), BatchKind::Batched) => BatchKind::Fixed(batch),
            (Some(batch), BatchKind::Fixed(size)) if batch == size => BatchKind::Fixed(size),
            // A constant alone proves nothing; with the proxy's word for it these are rows.
            (Some(batch), BatchKind::Whole)
                if rows.is_none() && self.constant_rows() == Some(batch) =>
            {
                BatchKind::Fixed(batch)
            }
            (Some(batch), _) => {
                return Err(Error::precondition(format!(
                    "the options' \"batch\" is {batch}, but {}",
                    self.why_not(batch, rows)
                )));
            }
        };
        Ok(Arc::new(Description {
            id: ModelId(0),
            name: name.to_owned(),
            version: "1".to_owned(),
            kind,
            takes: Takes::Declared,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            legs: [Role::Main].into(),
            express: true,
            empty: self.empty,
            has_versions: false,
            unproven_rows: match (kind, rows) {
                (BatchKind::Whole, None) => self.constant_rows(),
                _ => None,
            },
        }))
    }

    fn constant_rows(&self) -> Option<usize> {
        constant_rows(&self.inputs, &self.outputs)
    }

    /// Why not so many rows at a time.
    fn why_not(&self, batch: usize, rows: Option<Rows>) -> String {
        if rows == Some(Rows::Whole) {
            return "its \"rows\" are \"whole\"; give one of them".to_owned();
        }
        if let Some(size) = self.constant_rows() {
            return format!("the model takes exactly {size} rows");
        }
        let mut ports = self.inputs.iter().chain(&self.outputs);
        let other = ports.find(|port| port.shape.first() != Some(&Dim::Fixed(batch)));
        let other = other.map(|port| format!(": {:?} is {}", port.name, port.shown_shape()));
        format!(
            "the model has no dimension of rows, which would be the first of every input and output, the same everywhere{}",
            other.unwrap_or_default()
        )
    }

    /// The kind of batch: what the file's shapes say, unless the proxy says otherwise.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the port that cannot take any number of rows.
    fn kind_with(&self, rows: Option<Rows>) -> Result<BatchKind> {
        match (rows, self.kind) {
            (None, kind) => Ok(kind),
            (Some(Rows::Whole), _) => Ok(BatchKind::Whole),
            (Some(Rows::Independent), BatchKind::Whole) => {
                if let Some(size) = self.constant_rows() {
                    return Ok(BatchKind::Fixed(size));
                }
                for port in self.inputs.iter().chain(&self.outputs) {
                    if matches!(port.shape.first(), None | Some(Dim::Fixed(_))) {
                        return Err(Error::precondition(format!(
                            "{:?} has no first dimension that could be any number of rows, but the proxy says that \
                             rows are independent",
                            port.name
                        )));
                    }
                }
                Ok(BatchKind::Batched)
            }
            (Some(Rows::Independent), kind) => Ok(kind),
        }
    }
}

/// How sessions are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    /// Threads inside a session; with 1 it computes in the worker's own thread.
    pub(crate) intra_op_threads: usize,
    /// The most memory that a session's arena may take on a GPU; 0 leaves it to the engine.
    pub(crate) gpu_limit_bytes: usize,
    /// The options that a proxy sets.
    pub(crate) wanted: SessionOptions,
}

impl Options {
    /// These options, with those that a proxy sets.
    pub(crate) fn with(&self, wanted: &SessionOptions) -> Options {
        Options {
            wanted: wanted.clone(),
            ..self.clone()
        }
    }

    /// Threads inside a session, as the proxy or else the server wants it.
    pub(super) fn threads(&self) -> usize {
        let wanted = self.wanted.intra_op_threads;
        wanted.unwrap_or(self.intra_op_threads).max(1)
    }

    /// These options, for a session that runs in the worker's own thread.
    pub(super) fn of_one_thread(&self) -> Options {
        let mut options = self.clone();
        options.wanted.intra_op_threads = Some(1);
        options
    }
}

/// What makes a session on a device.
pub(super) fn builder(
    engine: &Engine,
    device: Device,
    options: &Options,
) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(engine.environment())?
        .with_optimization_level(match options.wanted.graph_optimization {
            None | Some(GraphOptimization::All) => GraphOptimizationLevel::All,
            Some(GraphOptimization::Extended) => GraphOptimizationLevel::Level2,
            Some(GraphOptimization::Basic) => GraphOptimizationLevel::Level1,
            Some(GraphOptimization::None) => GraphOptimizationLevel::Disable,
        })?
        .with_intra_threads(options.threads())?
        .with_inter_threads(1)?
        .with_memory_pattern(true)?
        // Idle threads of one worker would spin on the cores that the others need.
        .with_intra_op_spinning(false)?;
    let wanted = &options.wanted.execution_provider;
    if let Some(provider) = device.provider(options.gpu_limit_bytes, wanted) {
        builder = builder.with_execution_providers([provider])?;
    }
    Ok(builder)
}

/// What a session's model takes and gives. Of a tensor of unknown rank only the file says so, not the session.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming an input or output of a type that is not served.
pub(super) fn signature(
    session: &Session,
    model: Option<&ModelProto>,
    empty: Empty,
) -> Result<Signature> {
    let graph = model.and_then(|model| model.graph.as_ref());
    let ports = |outlets: &[Outlet], side: &str, declared: Option<&[ValueInfoProto]>| {
        outlets
            .iter()
            .map(|outlet| {
                let declared = declared
                    .and_then(|ports| ports.iter().find(|port| port.name == outlet.name()))
                    .and_then(|port| port.r#type.as_ref());
                port(outlet, side, declared)
            })
            .collect::<Result<Vec<Port>>>()
    };
    let inputs = ports(
        session.inputs(),
        "input",
        graph.map(|graph| &graph.input[..]),
    )?;
    let outputs = ports(
        session.outputs(),
        "output",
        graph.map(|graph| &graph.output[..]),
    )?;
    Ok(Signature {
        kind: kind(&inputs, &outputs),
        inputs,
        outputs,
        empty,
    })
}

fn port(outlet: &Outlet, side: &str, declared: Option<&TypeProto>) -> Result<Port> {
    let name = outlet.name();
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return Err(Error::precondition(format!(
            "{side} {name:?} is {}: only tensors are served",
            outlet.dtype()
        )));
    };
    let Some(datatype) = values::datatype_of(*ty) else {
        return Err(Error::precondition(format!(
            "{side} {name:?} has elements of type {ty}, which are not served"
        )));
    };
    // The engine shows a tensor of unknown rank as a scalar; only the file tells them apart.
    let unranked = shape.is_empty()
        && declared
            .and_then(|declared| declared.tensor_type.as_ref())
            .is_some_and(|tensor| tensor.shape.is_none());
    let shape = if unranked {
        vec![Dim::Rest]
    } else {
        shape
            .iter()
            .enumerate()
            .map(|(axis, &size)| match usize::try_from(size) {
                Ok(size) => Dim::Fixed(size),
                Err(_) => match dimension_symbols.get(axis) {
                    Some(symbol) if !symbol.is_empty() => Dim::Symbol(symbol.clone()),
                    _ => Dim::Dynamic,
                },
            })
            .collect()
    };
    Ok(Port {
        name: name.to_owned(),
        datatype,
        shape,
    })
}

/// Rows are independent if dimension 0 is the same everywhere: one symbol, dynamic without names, or 1, which most exports
/// mean as one row at a time. A larger constant may as well be the width of a matrix: that alone is no batch.
fn kind(inputs: &[Port], outputs: &[Port]) -> BatchKind {
    let mut firsts = inputs.iter().chain(outputs).map(|port| port.shape.first());
    let Some(Some(first)) = firsts.next() else {
        return BatchKind::Whole;
    };
    if inputs.is_empty() || !firsts.all(|other| other == Some(first)) {
        return BatchKind::Whole;
    }
    match first {
        Dim::Symbol(_) | Dim::Dynamic => BatchKind::Batched,
        Dim::Fixed(1) => BatchKind::Fixed(1),
        Dim::Fixed(_) | Dim::Rest => BatchKind::Whole,
    }
}
