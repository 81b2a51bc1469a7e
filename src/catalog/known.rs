//! The models that are known: which requests find by which name, which are coming, and which are leaving.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::message::ModelId;
use crate::model::{Description, Key, Name};

/// Names of one model that are remembered. A client may spell a name in ways without end.
const MOST_NAMES: usize = 64;

/// How requests stand to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// They find it.
    Served,
    /// It was loaded, and is found once every worker has it open.
    Coming,
    /// They do not find it any more. Those that had found it still need it.
    Leaving,
}

struct Entry {
    key: Key,
    standing: Standing,
    /// What leads here, whatever has become of the files.
    names: BTreeSet<Name>,
    description: Arc<Description>,
}

/// The models that are known, by number.
#[derive(Default)]
pub(super) struct Known {
    last_id: u64,
    entries: BTreeMap<ModelId, Entry>,
}

/// What a model that takes over replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    /// No name leads to these any more: they leave.
    pub(super) leaving: Vec<ModelId>,
    /// These lost a name, and are found by others.
    pub(super) renamed: Vec<ModelId>,
}

impl Known {
    /// A number that no model ever had.
    pub(super) fn next_id(&mut self) -> ModelId {
        self.last_id += 1;
        ModelId(self.last_id)
    }

    /// What requests find by that name.
    pub(super) fn by_name(&self, name: Option<&Name>) -> Option<Arc<Description>> {
        let name = name?;
        let mut served = self
            .entries
            .values()
            .filter(|e| e.standing == Standing::Served);
        let entry = served.find(|entry| entry.names.contains(name))?;
        Some(entry.description.clone())
    }

    /// A model that a request may have, although it knew it by no name: whatever state of it is served, or else one
    /// that is about to be.
    pub(super) fn adopt(&mut self, key: &Key, name: Option<&Name>) -> Option<Arc<Description>> {
        let with = |standing: Standing, fits: &dyn Fn(&Key) -> bool| {
            let mut entries = self.entries.iter();
            let found = entries.find(|(_, e)| e.standing == standing && fits(&e.key));
            found.map(|(id, _)| *id)
        };
        let id = with(Standing::Served, &|its| its.is_state_of(key))
            .or_else(|| with(Standing::Coming, &|its| its == key))?;
        let entry = self.entries.get_mut(&id)?;
        entry.standing = Standing::Served;
        entry.remember(name);
        Some(entry.description.clone())
    }

    /// The models of exactly this state, as far as the key tells: other files of theirs may have changed.
    pub(super) fn of_state(&self, key: &Key) -> Vec<ModelId> {
        let same = self.entries.iter();
        let same = same.filter(|(_, e)| e.standing != Standing::Leaving && e.key == *key);
        same.map(|(id, _)| *id).collect()
    }

    /// A model was read. It is served at once under that name, or comes.
    pub(super) fn insert(
        &mut self,
        key: Key,
        description: Arc<Description>,
        standing: Standing,
        name: Option<&Name>,
    ) {
        let id = description.id;
        let mut entry = Entry {
            key,
            standing,
            names: BTreeSet::new(),
            description,
        };
        entry.remember(name);
        self.entries.insert(id, entry);
    }

    /// What a model would replace if it were served under that name.
    pub(super) fn replaced_by(&self, id: ModelId, name: Option<&Name>) -> Replaced {
        let mut replaced = Replaced::default();
        let Some(new) = self.entries.get(&id) else {
            return replaced;
        };
        for (other, entry) in &self.entries {
            let named = name.is_some_and(|name| entry.names.contains(name));
            if *other == id || entry.standing != Standing::Served {
                continue;
            } else if entry.key.is_state_of(&new.key) || (named && entry.names.len() == 1) {
                replaced.leaving.push(*other);
            } else if named {
                replaced.renamed.push(*other);
            }
        }
        replaced
    }

    /// From now on requests find the model under that name and no other. What it replaces leaves by [`Known::leave`].
    pub(super) fn serve(&mut self, id: ModelId, name: Option<&Name>) {
        if let Some(name) = name {
            for entry in self.entries.values_mut() {
                entry.names.remove(name);
            }
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.standing = Standing::Served;
            entry.remember(name);
        }
    }

    /// Requests do not find it any more.
    pub(super) fn leave(&mut self, id: ModelId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.standing = Standing::Leaving;
            entry.names.clear();
        }
    }

    /// Nobody needs it any more.
    pub(super) fn forget(&mut self, id: ModelId) {
        self.entries.remove(&id);
    }

    pub(super) fn standing(&self, id: ModelId) -> Option<Standing> {
        self.entries.get(&id).map(|entry| entry.standing)
    }

    /// A name that a model is found by: the plainest that is known.
    pub(super) fn name_of(&self, id: ModelId) -> Option<&Name> {
        self.entries.get(&id)?.names.first()
    }

    /// The files of a model.
    pub(super) fn key(&self, id: ModelId) -> Option<&Key> {
        self.entries.get(&id).map(|entry| &entry.key)
    }

    /// What a request finds by that name, or would find where its name leads to these files. It becomes known by no name.
    pub(super) fn served_for(
        &self,
        name: Option<&Name>,
        key: Option<&Key>,
    ) -> Option<Arc<Description>> {
        let by_files = || {
            let mut entries = self.entries.values();
            let found = entries.find(|entry| {
                entry.standing == Standing::Served
                    && key.is_some_and(|key| entry.key.is_state_of(key))
            });
            found.map(|entry| entry.description.clone())
        };
        self.by_name(name).or_else(by_files)
    }

    /// The models that a name or a file stands for.
    pub(super) fn named(&self, name: Option<&Name>, origin: Option<&Path>) -> Vec<ModelId> {
        let named = |entry: &Entry| {
            entry.standing != Standing::Leaving
                && (name.is_some_and(|name| entry.names.contains(name))
                    || origin == Some(entry.key.origin()))
        };
        let entries = self.entries.iter().filter(|(_, entry)| named(entry));
        entries.map(|(id, _)| *id).collect()
    }

    /// What is known of a model by its number.
    pub(super) fn get(&self, id: ModelId) -> Option<&Arc<Description>> {
        self.entries.get(&id).map(|entry| &entry.description)
    }

    /// Every model that requests find, in the order in which they were read.
    pub(super) fn served(&self) -> impl Iterator<Item = &Arc<Description>> {
        let entries = self.entries.values();
        let served = entries.filter(|entry| entry.standing == Standing::Served);
        served.map(|entry| &entry.description)
    }

    /// Every model that is known, and how it stands.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (ModelId, Standing)> {
        self.entries.iter().map(|(id, entry)| (*id, entry.standing))
    }
}

impl Entry {
    fn remember(&mut self, name: Option<&Name>) {
        if self.names.len() < MOST_NAMES {
            self.names.extend(name.cloned());
        }
    }
}
