//! What a lookup finds: the files of a model, and what each stage does with its file.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::proxy::{SessionOptions, StageRuns};
use crate::signature::Rows;

/// What a name leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// What it is called, however it was asked for: without its version, and without an ending that the name can do
    /// without.
    pub(crate) name: String,
    /// `None` if it is no folder's version.
    pub(crate) version: Option<u64>,
    /// The file that was found by the name: a proxy or an ONNX file.
    pub(crate) origin: PathBuf,
    pub(crate) method: Option<String>,
    pub(crate) rows: Option<Rows>,
    /// At least one.
    pub(crate) stages: Vec<Stage>,
    pub(crate) warm_up: Option<Map<String, Value>>,
}

/// A stage whose files are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    /// What to call it in messages.
    pub(crate) name: String,
    /// The file, links followed.
    pub(crate) path: PathBuf,
    /// The folder that a plugin's own paths are relative to: the proxy's.
    pub(crate) folder: PathBuf,
    pub(crate) runs: StageRuns,
}

impl Found {
    /// An ONNX file as it is.
    pub(crate) fn onnx(
        name: &str,
        version: Option<u64>,
        path: PathBuf,
        rows: Option<Rows>,
    ) -> Found {
        let file = path.file_name().unwrap_or_default();
        let stage = Stage {
            // The same whatever name the file was found by.
            name: file.to_string_lossy().into_owned(),
            path: path.clone(),
            folder: path.parent().unwrap_or(Path::new("/")).to_owned(),
            runs: StageRuns::Onnx(SessionOptions::default()),
        };
        Found {
            name: name.to_owned(),
            version,
            origin: path,
            method: None,
            rows,
            stages: vec![stage],
            warm_up: None,
        }
    }

    /// What to call it in messages: its name, and its version where it has versions.
    pub(crate) fn shown(&self) -> String {
        shown(&self.name, self.version)
    }

    /// Its version as the wire shows it; "1" where there are none.
    pub(crate) fn version_text(&self) -> String {
        self.version.unwrap_or(1).to_string()
    }
}

/// What to call a model in messages.
pub(crate) fn shown(name: &str, version: Option<impl Display>) -> String {
    match version {
        Some(version) => format!("{name:?}, version {version}"),
        None => format!("{name:?}"),
    }
}
