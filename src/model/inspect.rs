//! Describes models without serving them: what a file is, and what a folder offers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::find::versions;
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
        Ok(Inspection {
            model: description.info(),
            stages: stages.collect(),
            warm_up: found
                .warm_up
                .map(|inputs| inputs.keys().cloned().collect())
                .unwrap_or_default(),
        })
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
                    names.extend(self.names_of(&name, &file)?);
                } else if levels > 1 {
                    self.gather(&path, &format!("{name}/"), levels - 1, names)?;
                }
            } else if let Some(base) = name.strip_suffix(".proxy") {
                names.extend(self.names_of(base, &path)?);
            } else if let Some(base) = name.strip_suffix(".onnx") {
                // A proxy of the same name comes first: then the file goes by its whole name.
                let hidden = folder
                    .join(format!("{}.proxy", &base[prefix.len()..]))
                    .exists();
                names.insert(if hidden { name } else { base.to_owned() });
            }
        }
        Ok(())
    }
}
