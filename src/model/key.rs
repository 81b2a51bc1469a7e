//! What a lookup leads to, as it is compared: names however they are spelt, and states of a model's files.

use std::path::{Path, PathBuf};

use super::Rows;
use super::find::{Alias, Found, Stage, Stamp};
#[cfg(feature = "gateway")]
use super::inspect::versions_of;
use crate::error::{Error, Result};

/// By what a lookup names a model: different spellings of a path are one. No file is looked at for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(pub(super) Alias);

/// One state of a model's files, served in one way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    /// The file that says what is served.
    origin: PathBuf,
    method: Option<String>,
    rows: Option<Rows>,
    /// For versions that share a file.
    version: String,
    stages: Vec<(Stage, Stamp)>,
}

impl Key {
    /// # Errors
    /// `NOT_FOUND` if a file went away meanwhile.
    fn of(found: &Found) -> Result<Key> {
        let stages = found.stages.iter().map(|stage| {
            let stamp = Stamp::of(&stage.path)
                .map_err(|e| Error::not_found(format!("model {}: {e}", found.shown())))?;
            Ok((stage.clone(), stamp))
        });
        Ok(Key {
            origin: found.origin.clone(),
            method: found.method.clone(),
            rows: found.rows,
            version: found.version_text(),
            stages: stages.collect::<Result<Vec<_>>>()?,
        })
    }

    /// Whether both are states of one model.
    pub(crate) fn is_state_of(&self, other: &Key) -> bool {
        self.origin == other.origin && self.method == other.method && self.rows == other.rows
    }

    /// "1" where there are no versions.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The file that says what is served.
    pub(crate) fn origin(&self) -> &Path {
        &self.origin
    }
}

/// Where a lookup leads: files that can be read as a model, in the state that they were found in.
#[derive(Clone, Debug)]
pub(crate) struct FoundModel {
    pub(super) found: Found,
    key: Key,
}

impl FoundModel {
    /// Its version; "1" where there are none.
    pub(crate) fn version(&self) -> String {
        self.found.version_text()
    }

    /// Its version, if it has versions.
    pub(crate) fn own_version(&self) -> Option<String> {
        self.found.version.map(|version| version.to_string())
    }

    /// The numbers of all versions in its folder, ascending; none if it has no versions.
    #[cfg(feature = "gateway")]
    pub(crate) fn all_versions(&self) -> Vec<u64> {
        versions_of(&self.found)
    }
}

impl FoundModel {
    /// # Errors
    /// `NOT_FOUND` if a file went away meanwhile.
    pub(super) fn of(found: Found) -> Result<FoundModel> {
        let key = Key::of(&found)?;
        Ok(FoundModel { found, key })
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// What the model is called.
    pub(crate) fn name(&self) -> &str {
        &self.found.name
    }

    /// What to call it in messages.
    pub(crate) fn shown(&self) -> String {
        self.found.shown()
    }

    /// A model of no files, for tests that have none.
    #[cfg(test)]
    pub(crate) fn made_up(name: &str, state: u64) -> FoundModel {
        let mut found = Found::onnx(name, Some(state), name.into(), None);
        found.stages.clear();
        FoundModel::of(found).expect("there is no file that could be missing")
    }
}

impl Name {
    /// As a server whose models are below the root would see it.
    #[cfg(test)]
    pub(crate) fn made_up(lookup: &super::Lookup) -> Option<Name> {
        use std::sync::OnceLock;
        static ROOTS: OnceLock<super::find::Roots> = OnceLock::new();
        let roots = ROOTS.get_or_init(|| {
            super::find::Roots::new(Path::new("/"), &[]).expect("there is a root directory")
        });
        roots.alias(lookup).map(Name)
    }
}
