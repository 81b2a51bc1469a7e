//! The models that are known, by number, and which of them requests find by which name. No file is touched here.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::find::{Alias, Found, Stage, Stamp};
use super::registry::Described;
use super::{Description, Rows};
use crate::error::{Error, Result};
use crate::message::ModelId;

/// Names of one model that are remembered. A client may spell a name in ways without end.
const MOST_ALIASES: usize = 64;

#[derive(Default)]
pub(super) struct Known {
    last_id: u64,
    entries: HashMap<ModelId, Entry>,
    /// Forgotten, while requests that had found them are on their way: workers may still have to open them.
    leaving: HashMap<ModelId, Arc<Described>>,
}

struct Entry {
    key: Key,
    standing: Standing,
    /// The names that lead here, whatever has become of their files.
    aliases: BTreeSet<Alias>,
    model: Arc<Described>,
}

/// Whether requests find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Served,
    /// It was loaded, and is found once every worker has it open.
    Coming,
}

/// One state of a model's files, served in one way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
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
    pub(super) fn of(found: &Found) -> Result<Key> {
        let stages = found.stages.iter().map(|stage| {
            let stamp = Stamp::of(&stage.path)
                .map_err(|e| Error::not_found(format!("model {:?}: {e}", found.name)))?;
            Ok((stage.clone(), stamp))
        });
        Ok(Key {
            origin: found.origin.clone(),
            method: found.method.clone(),
            rows: found.rows,
            version: found.version.clone(),
            stages: stages.collect::<Result<Vec<_>>>()?,
        })
    }

    /// Whether both are states of one model.
    fn is_state_of(&self, other: &Key) -> bool {
        self.origin == other.origin && self.method == other.method && self.rows == other.rows
    }
}

/// What a model that takes over replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// No name leads to these any more: they leave.
    pub leaving: Vec<ModelId>,
    /// These lost a name, and are found by others.
    pub renamed: Vec<ModelId>,
}

impl Known {
    /// What requests find by that name.
    pub(super) fn by_alias(&self, alias: &Alias) -> Option<Arc<Description>> {
        let entry = self.served().find(|entry| entry.aliases.contains(alias))?;
        Some(entry.model.description.clone())
    }

    /// A model that a request may have, although it knew it by no name: whatever state of it is served, or else one
    /// that is about to be.
    pub(super) fn adopt(&mut self, key: &Key, alias: Option<Alias>) -> Option<Arc<Description>> {
        let mut entries = self.entries.iter();
        let id = entries
            .find(|(_, e)| e.standing == Standing::Served && e.key.is_state_of(key))
            .or_else(|| self.entries.iter().find(|(_, e)| e.key == *key));
        let id = *id?.0;
        let entry = self.entries.get_mut(&id)?;
        entry.standing = Standing::Served;
        entry.remember(alias);
        Some(entry.model.description.clone())
    }

    /// The models of exactly this state, for whoever looks whether their other files are unchanged too.
    pub(super) fn of_state(&self, key: &Key) -> Vec<Arc<Described>> {
        let same = self.entries.values().filter(|entry| entry.key == *key);
        same.map(|entry| entry.model.clone()).collect()
    }

    pub(super) fn next_id(&mut self) -> ModelId {
        self.last_id += 1;
        ModelId(self.last_id)
    }

    pub(super) fn insert(
        &mut self,
        key: Key,
        standing: Standing,
        alias: Option<Alias>,
        model: Arc<Described>,
    ) {
        let mut entry = Entry {
            key,
            standing,
            aliases: BTreeSet::new(),
            model,
        };
        entry.remember(alias);
        self.entries.insert(entry.model.description.id, entry);
    }

    /// What a model would replace if it were served under that name.
    pub(super) fn replaced_by(&self, id: ModelId, alias: Option<&Alias>) -> Replaced {
        let mut replaced = Replaced::default();
        let Some(new) = self.entries.get(&id) else {
            return replaced;
        };
        for (other, entry) in &self.entries {
            let named = alias.is_some_and(|alias| entry.aliases.contains(alias));
            if *other == id || entry.standing == Standing::Coming {
                continue;
            } else if entry.key.is_state_of(&new.key) || (named && entry.aliases.len() == 1) {
                replaced.leaving.push(*other);
            } else if named {
                replaced.renamed.push(*other);
            }
        }
        replaced
    }

    /// From now on requests find the model under that name, and not what it replaces. `false` if it was forgotten.
    pub(super) fn serve(&mut self, id: ModelId, alias: Option<Alias>) -> bool {
        let replaced = self.replaced_by(id, alias.as_ref());
        if !self.entries.contains_key(&id) {
            return false;
        }
        if let Some(alias) = &alias {
            for entry in self.entries.values_mut() {
                entry.aliases.remove(alias);
            }
        }
        for old in replaced.leaving {
            self.leave(old);
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.standing = Standing::Served;
            entry.remember(alias);
        }
        true
    }

    /// Forgets a model that was loaded and is not served yet.
    pub(super) fn abandon(&mut self, id: ModelId) -> bool {
        let coming = self.standing(id) == Some(Standing::Coming);
        if coming {
            self.leave(id);
        }
        coming
    }

    pub(super) fn standing(&self, id: ModelId) -> Option<Standing> {
        self.entries.get(&id).map(|entry| entry.standing)
    }

    /// The models that a name or a file stands for.
    pub(super) fn named(&self, alias: Option<&Alias>, origin: Option<&Path>) -> Vec<ModelId> {
        let named = |entry: &Entry| {
            alias.is_some_and(|alias| entry.aliases.contains(alias))
                || origin == Some(&*entry.key.origin)
        };
        let entries = self.entries.iter().filter(|(_, entry)| named(entry));
        let mut ids: Vec<ModelId> = entries.map(|(id, _)| *id).collect();
        ids.sort();
        ids
    }

    /// Every model that is kept, served or not.
    pub(super) fn kept(&self) -> Vec<(Standing, Arc<Described>)> {
        let entries = self.entries.values();
        let mut kept: Vec<_> = entries.map(|e| (e.standing, e.model.clone())).collect();
        kept.sort_by_key(|(_, model)| model.description.id);
        kept
    }

    pub(super) fn leave(&mut self, id: ModelId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.leaving.insert(id, entry.model);
        }
    }

    pub(super) fn let_go(&mut self, id: ModelId) -> Option<Arc<Described>> {
        self.leaving.remove(&id)
    }

    /// A model that is known, or that requests on their way may still need.
    pub(super) fn get(&self, id: ModelId) -> Option<&Arc<Described>> {
        match self.entries.get(&id) {
            Some(entry) => Some(&entry.model),
            None => self.leaving.get(&id),
        }
    }

    fn served(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.values();
        entries.filter(|entry| entry.standing == Standing::Served)
    }
}

impl Entry {
    fn remember(&mut self, alias: Option<Alias>) {
        if self.aliases.len() < MOST_ALIASES {
            self.aliases.extend(alias);
        }
    }
}
