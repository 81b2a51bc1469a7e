//! Makes the proxy of a model: the file that names its plugin and holds its state.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Model, Rows};
use crate::error::{Error, Result};
use crate::proxy;

/// What is written into a `NAME.proxy`.
///
/// ```
/// use mdm::plugin::Proxy;
///
/// let proxy = Proxy::of_state("libner.so", serde_json::json!({"tags": ["BD"]})).entry("ner");
/// assert!(proxy.to_json().contains("\"plugin\": \"libner.so\""));
/// ```
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Proxy(proxy::Proxy);

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
        Proxy(proxy::Proxy::of_plugin(library, state))
    }

    /// Names the entry, where the plugin has several.
    #[must_use]
    pub fn entry(mut self, name: &str) -> Proxy {
        self.0.set_entry(name);
        self
    }

    /// Says how rows may be put together, in place of the model's signature.
    #[must_use]
    pub fn rows(mut self, rows: Rows) -> Proxy {
        self.0.set_rows(rows);
        self
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        self.0.to_json()
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

/// Writes the proxy of a model: the whole `NAME.proxy`. `library` is the plugin's file, relative to the proxy's folder. Of
/// a plugin with several entries, [`dump_entry`] writes it: this one names none, and a server would not know which.
///
/// # Errors
/// The model's, if it cannot be dumped; `FAILED_PRECONDITION`, naming the file that cannot be written.
pub fn dump(model: &impl Model, library: &str, path: impl AsRef<Path>) -> Result<()> {
    Proxy::of(model, library)?.write(path)
}

/// As [`dump`], for one of several entries of a plugin, by the name that
/// [`export_model!`](crate::export_model) gives it.
///
/// # Errors
/// As there.
pub fn dump_entry(
    model: &impl Model,
    library: &str,
    entry: &str,
    path: impl AsRef<Path>,
) -> Result<()> {
    Proxy::of(model, library)?.entry(entry).write(path)
}
