//! Describes models without serving them: what a file is, and what a folder offers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::find::{Found, versions, with_ending};
use super::store::LookedAt;
use super::{Lookup, Store};
use crate::error::Result;
use crate::message::Params;
use crate::proxy::{Proxy, StageRuns};
use crate::wire::server::ModelInfo;

/// How deep below the run-script directory models are looked for.
const MOST_LEVELS: usize = 4;

/// What a model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// What clients see of it.
    pub model: ModelInfo,
    /// Its stages, at least one.
    pub stages: Vec<StageInfo>,
    /// The inputs that its proxy has a sample of.
    pub warm_up: Vec<String>,
    /// The versions in its folder, ascending; none where it has none.
    pub versions: Vec<u64>,
    /// What an operator may want to know: a way of being served that was perhaps not meant, a name that others have too.
    pub notes: Vec<String>,
}

/// What a stage is by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct StageInfo {
    /// `onnx`, or `plugin` with its entry.
    pub runs: String,
    /// Its file, links followed.
    pub file: PathBuf,
    /// What it takes and gives; empty lists where it does not say.
    pub model: ModelInfo,
}

impl Store {
    /// Describes a model, opens it as a worker would, and says what it is made of.
    ///
    /// # Errors
    /// The lookup's, and what is wrong with a file.
    pub fn inspect(&self, name: &str) -> Result<Inspection> {
        let LookedAt {
            description,
            stages: own,
            mut notes,
            found,
        } = self.look_at(&Lookup::of(Some(name), &Params::new()))?;
        let stages = found.stages.iter().zip(own).map(|(stage, own)| StageInfo {
            runs: match &stage.runs {
                StageRuns::Onnx(_) => "onnx".to_owned(),
                StageRuns::Plugin { entry: None, .. } => "plugin".to_owned(),
                StageRuns::Plugin {
                    entry: Some(entry), ..
                } => format!("plugin {entry:?}"),
            },
            file: stage.path.clone(),
            model: own.info(),
        });
        // A name has its method at its end only if that was asked for.
        notes.extend(self.namesakes(name, found.method.as_deref()));
        Ok(Inspection {
            versions: versions_of(&found),
            notes,
            model: description.info(),
            stages: stages.collect(),
            warm_up: found
                .warm_up
                .map(|inputs| inputs.keys().cloned().collect())
                .unwrap_or_default(),
        })
    }

    /// What to say of a name that means one model and could mean others; `None` if it could not.
    pub fn namesakes(&self, name: &str, method: Option<&str>) -> Option<String> {
        self.roots().namesakes(name, method)
    }

    /// The names that a file is served by, or a folder of versions: its own, or one for each method of a proxy.
    ///
    /// # Errors
    /// What is wrong with the proxy.
    pub fn names_of(&self, name: &str, file: &Path) -> Result<Vec<String>> {
        let served = file.is_dir().then(|| versions::served(file)).flatten();
        let file = served.as_deref().unwrap_or(file);
        if file.extension().is_none_or(|ending| ending != "proxy") {
            return Ok(vec![name.to_owned()]);
        }
        // What is no proxy is found out when it is looked up by that name.
        let Ok(proxy) = Proxy::read(file) else {
            return Ok(vec![name.to_owned()]);
        };
        let methods: Vec<String> = proxy
            .methods()
            .map(|method| format!("{name}.{method}"))
            .collect();
        Ok(if methods.is_empty() {
            vec![name.to_owned()]
        } else {
            methods
        })
    }

    /// The names of all that looks like a model below the run-script directory, in order.
    ///
    /// # Errors
    /// A proxy's, if it cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        let root = self.run_script_dir();
        self.gather(root, "", MOST_LEVELS, &mut names)?;
        Ok(names.into_iter().collect())
    }

    /// The folders that are named as versions are, in order, and have no model: they are no versions, and are served by
    /// no name.
    pub fn empty_versions(&self) -> Vec<String> {
        let mut empty = BTreeSet::new();
        self.gather_empty(self.run_script_dir(), "", MOST_LEVELS, &mut empty);
        empty.into_iter().collect()
    }

    fn gather_empty(
        &self,
        folder: &Path,
        prefix: &str,
        levels: usize,
        empty: &mut BTreeSet<String>,
    ) {
        let Ok(entries) = folder.read_dir() else {
            return;
        };
        for entry in entries.flatten() {
            let (path, file) = (entry.path(), entry.file_name());
            let Some(file) = file.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            if !path.is_dir() || versions::direct(&path).is_some() {
                continue;
            }
            let name = format!("{prefix}{file}");
            // A folder of other models may have a number for a name.
            let offers_nothing = || {
                let mut names = BTreeSet::new();
                let gathered = self.gather(&path, "", levels, &mut names);
                gathered.is_ok() && names.is_empty()
            };
            if !prefix.is_empty() && versions::number_of(&path).is_some() && offers_nothing() {
                empty.insert(name);
            } else if levels > 1 {
                self.gather_empty(&path, &format!("{name}/"), levels - 1, empty);
            }
        }
    }

    fn gather(
        &self,
        folder: &Path,
        prefix: &str,
        levels: usize,
        names: &mut BTreeSet<String>,
    ) -> Result<()> {
        // A folder that cannot be read offers nothing.
        let Ok(entries) = folder.read_dir() else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let (path, file) = (entry.path(), entry.file_name());
            let Some(file) = file.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let name = format!("{prefix}{file}");
            if path.is_dir() {
                if let Some(file) = versions::served(&path) {
                    let name = match has_any(&path, &["proxy", "onnx"]) {
                        false => name,
                        true => format!("{name}/{}", below(&path, &file)),
                    };
                    names.extend(self.names_of(&name, &file)?);
                } else if levels > 1 {
                    self.gather(&path, &format!("{name}/"), levels - 1, names)?;
                }
            } else if let Some(base) = name.strip_suffix(".proxy") {
                let is_hidden = path.with_extension("").is_file();
                let name = if is_hidden { &name } else { base };
                names.extend(self.names_of(name, &path)?);
            } else if let Some(base) = name.strip_suffix(".onnx") {
                let bare = path.with_extension("");
                let is_hidden = bare.is_file() || has_any(&bare, &["proxy"]);
                names.insert(if is_hidden { name } else { base.to_owned() });
            }
        }
        Ok(())
    }
}

/// Whether there is a file of that name with one of these endings, which comes first: then what is looked at goes by a
/// longer name.
fn has_any(path: &Path, endings: &[&str]) -> bool {
    let mut files = endings.iter().map(|ending| with_ending(path, ending));
    files.any(|file| file.exists())
}

/// The part of a file's path that tells a version of a folder: its number, or the file if the folder is the version.
fn below(folder: &Path, file: &Path) -> String {
    let first = file
        .strip_prefix(folder)
        .ok()
        .and_then(|rest| rest.iter().next());
    first.unwrap_or_default().to_string_lossy().into_owned()
}

/// All versions in the folder of the one that was found.
pub(super) fn versions_of(found: &Found) -> Vec<u64> {
    let stage = match found.stages.as_slice() {
        [only] => Some(&only.path),
        _ => None,
    };
    let mut files = std::iter::once(&found.origin).chain(stage);
    let folder = files.find_map(|file| {
        let own = file.parent()?;
        let is_it = found.version.is_some() && versions::number_of(own) == found.version;
        own.parent().filter(|_| is_it)
    });
    let versions = folder.and_then(|folder| versions::versions(folder).ok());
    let versions = versions.unwrap_or_default().into_iter();
    versions.map(|version| version.number).collect()
}
