//! The files that a model is made of: how many bytes they have, and whether they are still what they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::source::Stamp;

/// Files as they were when they were first added. One that was not there is one too: it may come.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(BTreeMap<PathBuf, Option<Stamp>>);

impl Files {
    /// Adds a file as it is now, if it is not there yet.
    pub(super) fn add(&mut self, path: &Path) {
        if !self.0.contains_key(path) {
            self.0.insert(path.to_owned(), Stamp::of(path).ok());
        }
    }

    /// Adds a file as it was.
    pub(super) fn add_as(&mut self, path: &Path, stamp: Stamp) {
        self.0.entry(path.to_owned()).or_insert(Some(stamp));
    }

    /// Adds these as they were.
    pub(super) fn extend(&mut self, files: &Files) {
        for (path, stamp) in &files.0 {
            self.0.entry(path.clone()).or_insert(*stamp);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        let stamps = self.0.values().flatten();
        stamps.map(Stamp::bytes).fold(0, u64::saturating_add)
    }

    /// Looks at each of them.
    pub(super) fn are_unchanged(&self) -> bool {
        self.changed().is_none()
    }

    /// The first that is not what it was.
    pub(super) fn changed(&self) -> Option<&Path> {
        let mut files = self.0.iter();
        let changed = files.find(|(path, stamp)| Stamp::of(path).ok() != **stamp);
        changed.map(|(path, _)| path.as_path())
    }
}
