//! The files that a model is made of: how many bytes they have, and whether they are still what they were.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    /// A file that was moved into place may have an old time and the same size.
    inode: u64,
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> std::io::Result<Stamp> {
        Ok(Stamp::from(&fs::metadata(path)?))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            inode: metadata.ino(),
        }
    }
}

/// Files as they were when they were first added. One that was not there is one too: it may come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(BTreeMap<PathBuf, Option<Stamp>>);

impl Files {
    /// Adds a file as it is now, if it is not there yet.
    pub(crate) fn add(&mut self, path: &Path) {
        if !self.0.contains_key(path) {
            self.0.insert(path.to_owned(), Stamp::of(path).ok());
        }
    }

    /// Adds a file as it was.
    pub(crate) fn add_as(&mut self, path: &Path, stamp: Stamp) {
        self.0.entry(path.to_owned()).or_insert(Some(stamp));
    }

    /// Adds these as they were.
    pub(crate) fn extend(&mut self, files: &Files) {
        for (path, stamp) in &files.0 {
            self.0.entry(path.clone()).or_insert(*stamp);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        let stamps = self.0.values().flatten();
        stamps.map(Stamp::bytes).fold(0, u64::saturating_add)
    }

    /// Looks at each of them.
    pub(crate) fn are_unchanged(&self) -> bool {
        self.changed().is_none()
    }

    /// The first that is not what it was.
    pub(crate) fn changed(&self) -> Option<&Path> {
        let mut files = self.0.iter();
        let changed = files.find(|(path, stamp)| Stamp::of(path).ok() != **stamp);
        changed.map(|(path, _)| path.as_path())
    }
}

/// A file's name without where it lies.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| format!("{:?}", name.to_string_lossy()))
}
