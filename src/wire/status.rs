//! What a status says. What it says of the last seconds, of each model, and of models that do not open is optional on the
//! wire: a server that is older does not say it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::server::ModelInfo;

/// A worker, seen from the ventilator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its number.
    pub id: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// `idle`, `busy`, `starting` or `lost`.
    pub state: String,
    /// The model that it ran last.
    pub model: Option<String>,
    /// Chunks that ended here.
    pub chunks: u64,
    /// Rows that ran here.
    pub rows: u64,
    /// The share of the time since start that was spent inside models, 0 to 1.
    pub busy: f64,
    /// One of `--num-parallel-workers`, which run plugin stages alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extra: bool,
    /// The last seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<WorkerRecent>,
}

/// The queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Requests that were accepted and are not finished.
    pub requests: u64,
    /// Their rows that no worker has yet.
    pub rows: u64,
    /// The bytes of payload held for them.
    pub bytes: u64,
}

/// Totals since the start.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TotalsInfo {
    /// Requests that were answered, errors included.
    pub requests: u64,
    /// Rows that were answered.
    pub rows: u64,
    /// Those of them that failed, of requests that have their bad rows reported.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_rows: u64,
    /// Chunks that ran.
    #[serde(default)]
    pub chunks: u64,
    /// Small requests that shared a chunk with others.
    #[serde(default)]
    pub coalesced: u64,
    /// Messages that could not be answered and were dropped.
    #[serde(default)]
    pub dropped: u64,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
}

/// What is left out: it is said where there is something to say.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// From arrival to answer, over all requests, in microseconds. 0 says that nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyInfo {
    /// The median.
    pub p50: u64,
    /// Nine of ten were faster.
    pub p90: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
}

/// A server's status.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// Seconds since it was ready.
    pub uptime_s: u64,
    /// The settings in force.
    pub settings: BTreeMap<String, String>,
    /// The loaded models.
    pub models: Vec<ModelInfo>,
    /// The workers.
    pub workers: Vec<WorkerInfo>,
    /// Those of `--express-workers`, which run small requests only, while all others are inside bulk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub express_workers: Vec<WorkerInfo>,
    /// The queue.
    pub queue: QueueInfo,
    /// Totals since the start.
    pub totals: TotalsInfo,
    /// Latency, from arrival to answer, since the start.
    pub latency_us: LatencyInfo,
    /// The last seconds: 1, 10 and 60.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<RecentInfo>,
    /// What was answered, by model: those that are served, and those of which something was counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_model: Vec<ModelCounts>,
    /// Models that do not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<FailedModel>,
}

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
    /// Those of them that failed, of requests that have their bad rows reported.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_rows: u64,
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

/// A model that could not be loaded or opened the last time that somebody wanted it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedModel {
    /// The name that requests give.
    pub name: String,
    /// The version that does not open, of a model that has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The error's code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The version by which requests that ask for the same are answered nevertheless: it was loaded before the files
    /// changed. `None` if they get the error; a server that is older does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_on: Option<String>,
}
