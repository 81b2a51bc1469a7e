//! What a worker's models do wrong, for the log: which model runs here now, and for whom.

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::Error;
use crate::faults::{self, Fault, FaultKind};
use crate::message::{Member, ModelId, RequestId, WorkerId};
use crate::model::ModelSource;

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

struct Running {
    worker: WorkerId,
    source: Arc<dyn ModelSource>,
    model: ModelId,
    leg: u32,
    requests: Vec<RequestId>,
}

/// This thread is that worker from now on.
pub(super) fn begin(worker: WorkerId, source: Arc<dyn ModelSource>) {
    RUNNING.set(Some(Running {
        worker,
        source,
        model: ModelId(0),
        leg: 0,
        requests: Vec::new(),
    }));
}

/// A model runs, or is opened, for these members' rows.
pub(super) fn running(model: ModelId, leg: u32, members: &[Member]) {
    faults::begin_call();
    RUNNING.with_borrow_mut(|running| {
        if let Some(running) = running {
            (running.model, running.leg) = (model, leg);
            // It keeps its memory: this is for every run.
            running.requests.clear();
            running
                .requests
                .extend(members.iter().map(|member| member.request));
        }
    });
}

/// The same error, which the log has if it is the model's fault.
pub(super) fn noted(error: Error) -> Error {
    noted_as(FaultKind::Error, error)
}

/// As [`noted`], of what was caught as a panic.
pub(super) fn noted_panic(error: Error) -> Error {
    noted_as(FaultKind::Panic, error)
}

fn noted_as(kind: FaultKind, error: Error) -> Error {
    RUNNING.with_borrow(|running| {
        if let Some(running) = running {
            let (model, version) = running.source.name(running.model).unwrap_or_default();
            faults::note(&Fault {
                model: &model,
                version: &version,
                by: &format!("worker {}, leg {}", running.worker, running.leg),
                requests: &running.requests,
                kind,
                error: &error,
            });
        }
    });
    error
}

/// The same error, if the rows that it blames are among those that the model was given. To blame others is the model's own
/// fault, and nobody's who sent a row.
pub(super) fn of_its_rows(error: Error, members: &[Member]) -> Error {
    let Some(blamed) = error.rows() else {
        return error;
    };
    // What is run whole counts its rows itself.
    if members.iter().any(|member| member.whole) {
        return error;
    }
    let rows: u64 = members.iter().map(|member| member.rows).sum();
    if (blamed.start as u64) < rows && blamed.end as u64 <= rows {
        return error;
    }
    let told = match blamed.len() {
        0 | 1 => format!("row {}", blamed.start),
        _ => format!("rows {} to {}", blamed.start, blamed.end - 1),
    };
    Error::internal(format!(
        "the model blames {told} of a batch of {rows} rows, which are counted from 0; it says {error}"
    ))
}
