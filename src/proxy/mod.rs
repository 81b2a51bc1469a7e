//! The format of a `NAME.proxy`, read (`read.rs`) and written (`write.rs`): no other module knows it.
//!
//! ```text
//! proxy   = {"mdm": 1, METHOD}
//!         | {"mdm": 1, "methods": {NAME: {METHOD}, ...}, "rows"?: ROWS}
//! METHOD  = STAGE | "stages": [{"name"?: text, STAGE}, ...],   with "rows"?: ROWS, "warm_up"?: {INPUT: rows, ...}
//! STAGE   = "onnx": path, "options"?: OPTIONS
//!         | "plugin": path, "entry"?: text, "state"?: any JSON
//! OPTIONS = {"intra_op_threads"?: number, "graph_optimization"?: "none" | "basic" | "extended" | "all",
//!            "execution_provider"?: {KEY: value, ...}, "batch"?: number}
//! ROWS    = "independent" | "whole"
//! ```
//! Paths are relative to the proxy's folder; nothing here follows one.

#[cfg(feature = "server")]
mod options;
#[cfg(feature = "server")]
mod read;
mod write;

#[cfg(feature = "server")]
pub(crate) use options::{GraphOptimization, SessionOptions};
use serde_json::{Map, Value};

#[cfg(feature = "server")]
use crate::error::{Error, Result};
use crate::signature::Rows;

/// The format's version: a proxy's `mdm`.
const VERSION: u64 = 1;
/// The method that a model's name without one means, where there are several.
#[cfg(feature = "server")]
const DEFAULT_METHOD: &str = "predict";

/// How to write a proxy, for errors.
#[cfg(feature = "server")]
pub(crate) const EXAMPLES: &str =
    "{\"mdm\":1,\"onnx\":\"NAME.onnx\"} or {\"mdm\":1,\"plugin\":\"libNAME.so\",\"state\":{...}}";

/// A proxy's methods; one without a name where the file lists none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proxy {
    methods: Vec<(Option<String>, Method)>,
}

/// A chain of stages: what one model runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Method {
    pub(crate) stages: Vec<StageText>,
    pub(crate) rows: Option<Rows>,
    /// Inputs to warm the model with, by name.
    pub(crate) warm_up: Option<Map<String, Value>>,
}

/// A stage as a proxy says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StageText {
    pub(crate) name: Option<String>,
    /// Relative to the proxy's folder.
    pub(crate) file: String,
    pub(crate) runs: StageRuns,
}

/// What a stage does with its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StageRuns {
    #[cfg(feature = "server")]
    Onnx(SessionOptions),
    Plugin {
        /// The plugin's entry; it need not be named if there is only one.
        entry: Option<String>,
        /// What the plugin makes its model from.
        state: Value,
    },
}

impl Proxy {
    /// One stage: a plugin with a state.
    pub(crate) fn of_plugin(file: &str, state: Value) -> Proxy {
        let stage = StageText {
            name: None,
            file: file.to_owned(),
            runs: StageRuns::Plugin { entry: None, state },
        };
        let method = Method {
            stages: vec![stage],
            rows: None,
            warm_up: None,
        };
        Proxy {
            methods: vec![(None, method)],
        }
    }

    /// Names the entry of its plugins.
    pub(crate) fn set_entry(&mut self, name: &str) {
        let methods = self.methods.iter_mut();
        for stage in methods.flat_map(|(_, method)| &mut method.stages) {
            match &mut stage.runs {
                StageRuns::Plugin { entry, .. } => *entry = Some(name.to_owned()),
                #[cfg(feature = "server")]
                StageRuns::Onnx(_) => {}
            }
        }
    }

    /// Says of its methods how their rows may be put together.
    pub(crate) fn set_rows(&mut self, rows: Rows) {
        for (_, method) in &mut self.methods {
            method.rows = Some(rows);
        }
    }
}

#[cfg(feature = "server")]
impl Proxy {
    /// The method of that name; without one the only method, or "predict".
    ///
    /// # Errors
    /// `NOT_FOUND`, naming the methods that there are.
    pub(crate) fn method(self, name: Option<&str>) -> Result<(Option<String>, Method)> {
        let names: Vec<String> = self
            .methods
            .iter()
            .map(|(name, _)| format!("{:?}", name.as_deref().unwrap_or_default()))
            .collect();
        let several = self.methods.len() > 1;
        let found = self.methods.into_iter().find(|(other, _)| match name {
            Some(name) => other.as_deref() == Some(name),
            None => !several || other.as_deref() == Some(DEFAULT_METHOD),
        });
        found.ok_or_else(|| {
            Error::not_found(match name {
                Some(name) if names == ["\"\""] => {
                    format!("it has no method {name:?}: it lists none")
                }
                Some(name) => {
                    format!(
                        "it has no method {name:?}, expected one of {}",
                        names.join(", ")
                    )
                }
                None => format!(
                    "it has several methods, give NAME.METHOD with one of {}",
                    names.join(", ")
                ),
            })
        })
    }

    /// The names of its methods; none where the file lists none.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().filter_map(|(name, _)| name.as_deref())
    }
}

#[cfg(feature = "server")]
impl StageText {
    /// What to call it in messages: its name, or its file and entry.
    pub(crate) fn shown(&self) -> String {
        let file = &self.file;
        match (&self.name, &self.runs) {
            (Some(name), _) => name.clone(),
            (
                None,
                StageRuns::Plugin {
                    entry: Some(entry), ..
                },
            ) => format!("{file}:{entry}"),
            (None, _) => file.clone(),
        }
    }
}

/// What a value is, for errors.
#[cfg(feature = "server")]
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
