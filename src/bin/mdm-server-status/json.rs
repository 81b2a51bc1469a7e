//! The JSON of `--json`: the status with the number of its form. The guide's page about status says what each key is.

use mdm::client::Status;
use serde_json::Value;

/// The number of the document's form. Keys are added under the same number; it grows when one is taken away or means
/// something else.
const FORMAT: u32 = 1;

/// One line. Every key is there, whatever the server has left out.
pub fn document(status: &Status) -> serde_json::Result<String> {
    let mut document = serde_json::to_value(status)?;
    let fill = |of: &mut Value, key: &str, value: Value| {
        if let Some(of) = of.as_object_mut() {
            of.entry(key).or_insert(value);
        }
    };
    fill(&mut document, "format", FORMAT.into());
    for key in ["express_workers", "recent", "by_model", "broken"] {
        fill(&mut document, key, Value::Array(Vec::new()));
    }
    if let Some(totals) = document.get_mut("totals") {
        fill(totals, "failed_rows", 0.into());
    }
    let by_model = document.get_mut("by_model").and_then(Value::as_array_mut);
    for model in by_model.into_iter().flatten() {
        fill(model, "failed_rows", 0.into());
    }
    for key in ["workers", "express_workers"] {
        let workers = document.get_mut(key).and_then(Value::as_array_mut);
        for worker in workers.into_iter().flatten() {
            fill(worker, "extra", false.into());
            fill(worker, "recent", Value::Array(Vec::new()));
        }
    }
    if let Some(broken) = document.get_mut("broken").and_then(Value::as_array_mut) {
        for of in broken {
            fill(of, "version", Value::Null);
            fill(of, "served_on", Value::Null);
        }
    }
    unmeasured(&mut document);
    serde_json::to_string(&document)
}

/// A latency of nothing is null: on the wire it is 0, which no answer takes.
fn unmeasured(of: &mut Value) {
    match of {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_object_mut() {
                    Some(latency) if key == "latency_us" => {
                        if latency.values().all(|us| us.as_u64() == Some(0)) {
                            latency.values_mut().for_each(|us| *us = Value::Null);
                        }
                    }
                    _ => unmeasured(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(unmeasured),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm::wire::server::{
        FailedModel, LatencyInfo, ModelCounts, ModelInfo, ModelRecent, RecentInfo, WorkerInfo,
        WorkerRecent,
    };

    /// Every key of a value, however deep, but for names that users give.
    fn keys(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    found.push(key.clone());
                    if !["settings", "errors"].contains(&key.as_str()) {
                        keys(value, found);
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }

    fn of(status: &Status) -> Vec<String> {
        let document = document(status).unwrap();
        let mut found = Vec::new();
        keys(&serde_json::from_str(&document).unwrap(), &mut found);
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn every_key_is_in_the_guide() {
        let full = Status {
            models: vec![ModelInfo {
                name: "m".to_owned(),
                version: "1".to_owned(),
                kind: "batched".to_owned(),
                inputs: Vec::new(),
                outputs: Vec::new(),
            }],
            workers: vec![WorkerInfo {
                extra: true,
                recent: vec![WorkerRecent::default()],
                ..WorkerInfo::default()
            }],
            recent: vec![RecentInfo::default()],
            by_model: vec![ModelCounts {
                recent: vec![ModelRecent::default()],
                ..ModelCounts::default()
            }],
            broken: vec![FailedModel {
                version: Some("2".to_owned()),
                served_on: Some("1".to_owned()),
                ..FailedModel::default()
            }],
            ..Status::default()
        };
        let guide = include_str!("../../guide/status.md");
        let (_, table) = guide.split_once("## Status as JSON").expect("its section");
        let table = table.split("\n## ").next().unwrap_or_default();
        for key in of(&full) {
            assert!(
                table.contains(&format!("`{key}`")),
                "{key} is not in the guide"
            );
        }
        assert!(table.contains(&format!("`format` is {FORMAT}")));
    }

    #[test]
    fn a_latency_of_nothing_is_null_and_not_the_fastest_there_is() {
        let status = Status {
            latency_us: LatencyInfo {
                p99: 7,
                ..LatencyInfo::default()
            },
            recent: vec![RecentInfo::default()],
            by_model: vec![ModelCounts {
                recent: vec![ModelRecent::default()],
                ..ModelCounts::default()
            }],
            ..Status::default()
        };
        let document: Value = serde_json::from_str(&document(&status).unwrap()).unwrap();
        assert_eq!(document["latency_us"]["p99"], 7);
        assert_eq!(document["latency_us"]["p50"], 0, "it was measured");
        let model = &document["by_model"][0];
        for latency in [
            &document["recent"][0]["latency_us"],
            &model["latency_us"],
            &model["recent"][0]["latency_us"],
        ] {
            let nothing = serde_json::json!({"p50": null, "p90": null, "p99": null});
            assert_eq!(*latency, nothing, "{document}");
        }
    }

    /// An older server leaves out what it does not know.
    #[test]
    fn the_document_has_every_list_whatever_the_server_says() {
        let keys = of(&Status {
            workers: vec![WorkerInfo::default()],
            broken: vec![FailedModel::default()],
            ..Status::default()
        });
        for key in [
            "format",
            "express_workers",
            "recent",
            "by_model",
            "broken",
            "extra",
            "failed_rows",
            "version",
            "served_on",
        ] {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
    }
}
