//! How a proxy wants its sessions made, and the JSON of it, which plugins give for sessions of their own too.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::read::Object;
use crate::error::Result;

/// How a proxy wants its sessions made; what it does not say is the server's own choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct SessionOptions {
    /// At least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) intra_op_threads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) graph_optimization: Option<GraphOptimization>,
    /// Options of the device's execution provider, which workers on the CPU leave alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) execution_provider: BTreeMap<String, String>,
    /// Exactly so many rows at a time, the last batch padded; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<usize>,
}

/// The engine's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GraphOptimization {
    None,
    Basic,
    Extended,
    All,
}

impl SessionOptions {
    /// Reads them.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the key: expected and got.
    pub(crate) fn of(value: Value) -> Result<SessionOptions> {
        let object = Object::of("\"options\"", value)?;
        object.only(&[
            "intra_op_threads",
            "graph_optimization",
            "execution_provider",
            "batch",
        ])?;
        let graph_optimization = match object.get("graph_optimization").map(Value::as_str) {
            None => None,
            Some(Some("none")) => Some(GraphOptimization::None),
            Some(Some("basic")) => Some(GraphOptimization::Basic),
            Some(Some("extended")) => Some(GraphOptimization::Extended),
            Some(Some("all")) => Some(GraphOptimization::All),
            Some(_) => {
                let expected = "\"none\", \"basic\", \"extended\" or \"all\"";
                return Err(object.wrong("graph_optimization", expected));
            }
        };
        let mut execution_provider = BTreeMap::new();
        if object.has("execution_provider") {
            let place = "\"execution_provider\"";
            let given = Object::of(place, object.value("execution_provider"))?;
            for (key, value) in &given.map {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    Value::Bool(flag) => u8::from(*flag).to_string(),
                    _ => return Err(given.wrong(key, "a string, a number or a boolean")),
                };
                execution_provider.insert(key.clone(), text);
            }
        }
        Ok(SessionOptions {
            intra_op_threads: object.count("intra_op_threads")?,
            graph_optimization,
            execution_provider,
            batch: object.count("batch")?,
        })
    }
}
