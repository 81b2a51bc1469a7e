//! What a status says of the last seconds, of each model, and of models that do not open. All of it is optional on the
//! wire: a server that is older does not say it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::server::LatencyInfo;

/// What the server did in the last seconds. Rates are of what ended in them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentInfo {
    /// How many seconds are meant: 1, 10 or 60.
    pub seconds: u32,
    /// The time that it really is of, in milliseconds: less if the server is younger, up to a second more.
    pub over_ms: u64,
    /// Requests that were answered each second, errors included.
    pub requests_per_s: f64,
    /// Rows that were answered each second.
    pub rows_per_s: f64,
    /// Requests that ended with an error each second.
    pub errors_per_s: f64,
    /// Chunks that ended each second.
    pub chunks_per_s: f64,
    /// The share of its time that a worker spent inside models, from 0 to 1: the mean of all workers.
    pub busy: f64,
    /// From arrival to answer, as far as the bounds of the metrics' histograms tell.
    pub latency_us: LatencyInfo,
}

/// What a worker did in the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecent {
    /// As in [`RecentInfo`].
    pub seconds: u32,
    /// The share of the time that was spent inside models, from 0 to 1. What still runs counts too.
    pub busy: f64,
    /// Chunks that ended each second.
    pub chunks_per_s: f64,
    /// Rows that ran each second.
    pub rows_per_s: f64,
}

/// What was answered for a model, all its versions together, since the start. Counters stay when a model is reloaded or
/// unloaded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCounts {
    /// The name that requests give; `unknown` for what reached no model, `other` for what has too many names.
    pub name: String,
    /// Requests that were answered, errors included.
    pub requests: u64,
    /// Rows that were answered.
    pub rows: u64,
    /// Errors by code: those that there were.
    pub errors: BTreeMap<String, u64>,
    /// From arrival to answer, as far as the bounds of the metrics' histograms tell.
    pub latency_us: LatencyInfo,
    /// The last seconds.
    #[serde(default)]
    pub recent: Vec<ModelRecent>,
}

/// What was answered for a model in the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRecent {
    /// As in [`RecentInfo`].
    pub seconds: u32,
    /// Requests that were answered each second, errors included.
    pub requests_per_s: f64,
    /// Rows that were answered each second.
    pub rows_per_s: f64,
    /// Requests that ended with an error each second.
    pub errors_per_s: f64,
    /// From arrival to answer, as far as the bounds of the metrics' histograms tell.
    pub latency_us: LatencyInfo,
}

/// A model that could not be loaded or opened the last time that somebody wanted it. One of that name may be served all
/// the same: it was loaded before its files changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenModel {
    /// The name that requests give.
    pub name: String,
    /// The error's code.
    pub code: String,
    /// What is wrong.
    pub message: String,
}
