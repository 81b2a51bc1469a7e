//! A repository folder: `NAME/VERSION/`, each with a `model.proxy` or a `model.onnx`; VERSION is a number.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::message::MODEL_VERSION;

/// What a version's folder may hold, in the order in which it is looked for.
const FILES: [&str; 2] = ["model.proxy", "model.onnx"];
/// Versions that an error lists.
const MOST_LISTED: usize = 20;

/// One version, and the file that says what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) file: PathBuf,
}

/// What a folder stands for.
pub(crate) struct Chosen {
    /// `None` if it is no folder of versions, and none of them.
    pub(crate) number: Option<u64>,
    pub(crate) file: PathBuf,
}

/// The file in a folder that is one version itself.
pub(crate) fn direct(folder: &Path) -> Option<PathBuf> {
    let mut files = FILES.iter().map(|file| folder.join(file));
    files.find(|file| file.exists())
}

/// The number that a folder's name is.
pub(crate) fn number_of(folder: &Path) -> Option<u64> {
    number(folder.file_name()?.to_str()?)
}

/// Digits only: a number's own parser would take "+1" too.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The versions in a folder, ascending.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn versions(folder: &Path) -> io::Result<Vec<Version>> {
    let mut versions: Vec<Version> = folder
        .read_dir()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| {
            Some(Version {
                number: number_of(&path)?,
                file: direct(&path)?,
            })
        })
        .collect();
    versions.sort();
    Ok(versions)
}

/// The file that a repository folder stands for: its own, or its highest version's.
pub(crate) fn served(folder: &Path) -> Option<PathBuf> {
    let highest = || Some(versions(folder).ok()?.pop()?.file);
    direct(folder).or_else(highest)
}

/// The version that a parameter asks for.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is no number.
pub(crate) fn asked(value: Option<&Value>) -> Result<Option<u64>> {
    let Some(value) = value else {
        return Ok(None);
    };
    let asked = value.as_u64().or_else(|| value.as_str().and_then(number));
    match asked {
        Some(version) => Ok(Some(version)),
        None => Err(Error::invalid(format!(
            "parameter {MODEL_VERSION:?} is {value}, expected a version's number, such as 2 or \"2\""
        ))),
    }
}

/// The version of a folder that is served: the one that is asked for, or the highest.
///
/// # Errors
/// `NOT_FOUND`, listing the versions that there are; `INVALID_ARGUMENT` if the folder is another version.
pub(crate) fn choose(name: &str, folder: &Path, asked: Option<u64>) -> Result<Chosen> {
    if let Some(file) = direct(folder) {
        let own = number_of(folder);
        let number = own.unwrap_or(1);
        return match asked {
            Some(asked) if asked != number && own.is_some() => Err(Error::invalid(format!(
                "model {name:?} is version {number}, and {MODEL_VERSION} asks for version {asked}; give one of them"
            ))),
            Some(asked) if asked != number => Err(only_version(name, asked)),
            _ => Ok(Chosen { number: own, file }),
        };
    }
    let versions = versions(folder).map_err(|e| {
        // Where the folder is, is nobody's business who sends requests.
        Error::precondition(format!("model {name:?}: its folder cannot be read: {e}"))
    })?;
    if versions.is_empty() {
        return Err(Error::not_found(format!(
            "model {name:?}: the folder has no VERSION/model.onnx and no VERSION/model.proxy, VERSION a number"
        )));
    }
    let chosen = match asked {
        None => versions.last(),
        Some(asked) => versions.iter().find(|version| version.number == asked),
    };
    match chosen {
        Some(version) => Ok(Chosen {
            number: Some(version.number),
            file: version.file.clone(),
        }),
        None => Err(missing(name, asked.unwrap_or_default(), &versions)),
    }
}

/// Asked for a version of what has none.
pub(crate) fn only_version(name: &str, asked: u64) -> Error {
    Error::not_found(format!(
        "model {name:?} has no version {asked}: it is no folder of versions, and its only version is 1"
    ))
}

/// What to say of `BASE/NUMBER` where BASE is a folder of versions that has no such version.
pub(crate) fn missing_below(name: &str, base: &str, last: &str, folder: &Path) -> Option<Error> {
    let asked = number(last)?;
    let versions = versions(folder).ok()?;
    let spelt_otherwise = versions.iter().find(|version| version.number == asked);
    let error = match spelt_otherwise.and_then(|version| version.file.parent()?.file_name()) {
        Some(written) => Error::not_found(format!(
            "its version {asked} is in the folder {written:?}: ask for \"{base}/{}\", or for {base:?} with {MODEL_VERSION} {asked}",
            written.to_string_lossy()
        )),
        None => missing(base, asked, &versions),
    };
    (!versions.is_empty()).then(|| error.context(format_args!("model {name:?}")))
}

fn missing(name: &str, asked: u64, versions: &[Version]) -> Error {
    let listed = versions.iter().rev().take(MOST_LISTED);
    let mut listed: Vec<String> = listed.map(|version| version.number.to_string()).collect();
    listed.reverse();
    let more = if versions.len() > MOST_LISTED {
        "…, "
    } else {
        ""
    };
    Error::not_found(format!(
        "model {name:?} has no version {asked}; there are {more}{}",
        listed.join(", ")
    ))
}
