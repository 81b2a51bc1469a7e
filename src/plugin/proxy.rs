//! Writing proxies: the file that names a plugin and holds a model's state.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Model, Rows};
use crate::error::{Error, Result};

/// What is written into a `NAME.proxy`.
///
/// ```
/// use mdm::plugin::Proxy;
///
/// let proxy = Proxy::of_state("libner.so", serde_json::json!({"tags": ["BD"]})).entry("ner");
/// assert!(proxy.to_json().contains("\"plugin\": \"libner.so\""));
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Proxy {
    mdm: u32,
    plugin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    #[serde(skip_serializing_if = "Value::is_null")]
    state: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<Rows>,
}

impl Proxy {
    /// Of a model's state. `library` is the plugin's file, relative to the proxy's folder.
    ///
    /// # Errors
    /// The model's, if it cannot be dumped.
    pub fn of(model: &impl Model, library: &str) -> Result<Proxy> {
        Ok(Proxy::of_state(library, model.dump()?))
    }

    /// Of a state that is at hand.
    pub fn of_state(library: &str, state: Value) -> Proxy {
        Proxy {
            mdm: 1,
            plugin: library.to_owned(),
            entry: None,
            state,
            rows: None,
        }
    }

    /// Names the entry, where the plugin has several.
    #[must_use]
    pub fn entry(mut self, name: &str) -> Proxy {
        self.entry = Some(name.to_owned());
        self
    }

    /// Overrules what the model's signature says of its rows.
    #[must_use]
    pub fn rows(mut self, rows: Rows) -> Proxy {
        self.rows = Some(rows);
        self
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        // Strings and a value that is JSON already.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Writes the file; one that is there is replaced as a whole, so that a server never reads half of it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut passing = path.as_os_str().to_owned();
        passing.push(".part");
        fs::write(&passing, self.to_json())
            .and_then(|()| fs::rename(&passing, path))
            .map_err(|e| Error::precondition(format!("cannot write {}: {e}", path.display())))
    }
}

/// Writes the proxy of a model: the whole `NAME.proxy`. `library` is the plugin's file, relative to the proxy's folder.
///
/// # Errors
/// The model's, if it cannot be dumped; `FAILED_PRECONDITION`, naming the file that cannot be written.
pub fn dump(model: &impl Model, library: &str, path: impl AsRef<Path>) -> Result<()> {
    Proxy::of(model, library)?.write(path)
}
