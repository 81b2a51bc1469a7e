//! What was counted of models, in the words of Triton's statistics extension.

use std::time::Duration;

use serde::Serialize;

use crate::metrics::{ModelStats, OTHER, Snapshot, UNKNOWN};
use crate::wire::server::ModelInfo;

/// How often something happened, and how long it took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Duration64 {
    pub(crate) count: u64,
    pub(crate) ns: u64,
}

impl Duration64 {
    fn of(count: u64, micros: u64) -> Duration64 {
        Duration64 {
            count,
            ns: micros.saturating_mul(1000),
        }
    }
}

/// Where the time of requests went. Reading inputs and writing outputs is not told from the rest, and there is no cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct InferStatistics {
    pub(crate) success: Duration64,
    pub(crate) fail: Duration64,
    pub(crate) queue: Duration64,
    pub(crate) compute_input: Duration64,
    pub(crate) compute_infer: Duration64,
    pub(crate) compute_output: Duration64,
    pub(crate) cache_hit: Duration64,
    pub(crate) cache_miss: Duration64,
}

/// What was counted of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ModelStatistics {
    pub(crate) name: String,
    pub(crate) version: String,
    /// When the last result left, in milliseconds since 1970; 0 if none did.
    pub(crate) last_inference: u64,
    /// Rows.
    pub(crate) inference_count: u64,
    /// Runs of the model.
    pub(crate) execution_count: u64,
    pub(crate) inference_stats: InferStatistics,
    /// None: runs are counted by powers of two.
    pub(crate) batch_stats: [(); 0],
}

/// Of all models that something was counted of, or that are loaded. `now` is the time since 1970.
pub(crate) fn of_all(
    snapshot: &Snapshot,
    loaded: &[ModelInfo],
    now: Duration,
) -> Vec<ModelStatistics> {
    let named = snapshot.models.iter();
    let named = named.filter(|model| model.name != UNKNOWN && model.name != OTHER);
    let version = |name: &str| newest(loaded, name).map_or("1", |model| &model.version);
    named
        .map(|model| statistics(model, version(&model.name), now))
        .collect()
}

/// The highest version of a model that is loaded.
pub(crate) fn newest<'a>(loaded: &'a [ModelInfo], name: &str) -> Option<&'a ModelInfo> {
    let versions = loaded.iter().filter(|model| model.name == name);
    versions.max_by_key(|model| model.version.parse::<u64>().ok())
}

/// Of one model, whose versions are counted together.
pub(crate) fn of_model(
    snapshot: &Snapshot,
    name: &str,
    version: &str,
    now: Duration,
) -> ModelStatistics {
    let nothing = ModelStats {
        name: name.to_owned(),
        ..ModelStats::default()
    };
    let counted = snapshot.model(name).unwrap_or(&nothing);
    statistics(counted, version, now)
}

fn statistics(model: &ModelStats, version: &str, now: Duration) -> ModelStatistics {
    let answered = &model.answered;
    let ago = model.last_result_us_ago.map(Duration::from_micros);
    let last = ago.map(|ago| now.saturating_sub(ago).as_millis() as u64);
    let results = answered.results();
    ModelStatistics {
        name: model.name.clone(),
        version: version.to_owned(),
        last_inference: last.unwrap_or(0),
        inference_count: answered.rows(),
        execution_count: model.ran.runs.count(),
        inference_stats: InferStatistics {
            success: Duration64::of(results, answered.total.sum()),
            fail: Duration64::of(answered.errors(), answered.failed_us),
            queue: Duration64::of(answered.queue.count(), answered.queue.sum()),
            // perf_analyzer wants the three of them to have happened equally often.
            compute_input: Duration64::of(answered.compute.count(), 0),
            compute_infer: Duration64::of(answered.compute.count(), answered.compute.sum()),
            compute_output: Duration64::of(answered.compute.count(), 0),
            ..InferStatistics::default()
        },
        batch_stats: [],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_which_nothing_was_counted_has_zeros() {
        let snapshot = Snapshot::default();
        let counted = of_model(&snapshot, "m", "3", Duration::from_secs(7));
        let expected = ModelStatistics {
            name: "m".to_owned(),
            version: "3".to_owned(),
            ..ModelStatistics::default()
        };
        assert_eq!(counted, expected);
        assert!(of_all(&snapshot, &[], Duration::ZERO).is_empty());
    }

    #[test]
    fn the_last_result_has_a_time_since_1970_and_names_that_stand_for_many_are_left_out() {
        let model = |name: &str| ModelStats {
            name: name.to_owned(),
            last_result_us_ago: Some(2_000_000),
            ..ModelStats::default()
        };
        let snapshot = Snapshot {
            models: vec![model("m"), model(UNKNOWN), model(OTHER)],
            ..Snapshot::default()
        };
        let all = of_all(&snapshot, &[], Duration::from_secs(7));
        let told: Vec<_> = all
            .iter()
            .map(|m| (m.name.as_str(), m.last_inference))
            .collect();
        assert_eq!(told, [("m", 5000)]);
    }
}
