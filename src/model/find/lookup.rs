//! What a request says of the model that it wants.

use serde_json::Value;

use crate::message::{MODEL_VERSION, Params};

/// The parameter by which the ancestor's clients name a model.
pub(super) const MODEL_PROXY_PATH: &str = "model_proxy_path";

/// What decides which model a request gets, and whether it may: equal lookups have equal answers as long as no file
/// changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lookup {
    pub(super) model: Option<String>,
    pub(super) paths: Box<[(String, Value)]>,
    pub(super) version: Option<Value>,
}

impl Lookup {
    /// Takes from a request what matters: its model's name, the version that it asks for, and every parameter whose
    /// key ends in `_path`.
    pub fn of(model: Option<&str>, params: &Params) -> Lookup {
        Lookup {
            model: model.map(str::to_owned),
            paths: params
                .iter()
                .filter(|(key, _)| key.ends_with("_path"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            version: params.get(MODEL_VERSION).cloned(),
        }
    }

    /// Whether it names files besides the model, which are to be checked.
    pub(crate) fn has_other_paths(&self) -> bool {
        self.paths.iter().any(|(key, _)| key != MODEL_PROXY_PATH)
    }

    /// Its texts, and its values.
    pub(crate) fn held(&self) -> (impl Iterator<Item = &str>, impl Iterator<Item = &Value>) {
        let keys = self.paths.iter().map(|(key, _)| key.as_str());
        let values = self.paths.iter().map(|(_, value)| value);
        (
            self.model.as_deref().into_iter().chain(keys),
            values.chain(&self.version),
        )
    }

    /// The version that is asked for, as it was given.
    pub(crate) fn version_text(&self) -> Option<String> {
        self.version.as_ref().map(|version| match version {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    /// What to call the model in messages.
    pub fn name(&self) -> &str {
        let by_path = || {
            self.paths
                .iter()
                .find(|(key, _)| key == MODEL_PROXY_PATH)
                .and_then(|(_, value)| value.as_str())
        };
        self.model.as_deref().or_else(by_path).unwrap_or_default()
    }
}
