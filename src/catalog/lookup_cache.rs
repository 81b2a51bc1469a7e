//! What names mean, as far as it is known: lookups whose answers need not wait for the loader, kept so that no client can
//! take their places from the others.
//!
//! Names of models and lookups with other paths are kept apart: a client may vary its `_path` parameters without end. In
//! each, least used entries leave one by one, and a client that has its share gives way to itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::message::ModelId;
use crate::message::ReplyTo;
use crate::model::{Description, Lookup};
use foldhash::HashMap;
use serde_json::Value;

/// Most bytes of names, and of lookups with other paths.
const MAX_NAMES_BYTES: u64 = 4 << 20;
const MAX_PATHS_BYTES: u64 = 8 << 20;
/// One client may have this part of each, as a divisor.
const CLIENT_SHARE_DIVISOR: u64 = 4;
/// An entry that is larger than this part, as a divisor, is not kept: the loader looks it up again.
const ENTRY_SHARE_DIVISOR: u64 = 64;
/// Of an entry besides its lookup: its places in the maps, and its part of a client's place.
const ENTRY_BYTES: u64 = 384;

/// Of each lookup besides its texts.
const LOOKUP_BYTES: u64 = 128;
/// A value of a parameter.
const VALUE_BYTES: u64 = 64;

/// What is known.
pub(super) struct LookupCache {
    names: LookupTable,
    paths: LookupTable,
}

impl Default for LookupCache {
    fn default() -> LookupCache {
        LookupCache {
            names: LookupTable::new(MAX_NAMES_BYTES),
            paths: LookupTable::new(MAX_PATHS_BYTES),
        }
    }
}

impl LookupCache {
    /// What a lookup leads to, if that is known.
    pub(super) fn get(&mut self, lookup: &Lookup) -> Option<&Arc<Description>> {
        match lookup.has_other_paths() {
            true => self.paths.get(lookup),
            false => self.names.get(lookup),
        }
    }

    /// The loader has looked it up for that client.
    pub(super) fn insert(
        &mut self,
        client: &ReplyTo,
        lookup: &Arc<Lookup>,
        description: &Arc<Description>,
    ) {
        match lookup.has_other_paths() {
            true => self.paths.insert(client, lookup, description),
            false => self.names.insert(client, lookup, description),
        }
    }

    /// Nothing leads to that model any more.
    pub(super) fn forget(&mut self, model: ModelId) {
        self.names.forget(model);
        self.paths.forget(model);
    }
}

struct LookupTable {
    most_bytes: u64,
    bytes: u64,
    entries: HashMap<Arc<Lookup>, Entry>,
    /// Entries by their stamps: those that came, or were spared, longest ago are first.
    order: BTreeMap<u64, Arc<Lookup>>,
    owners: HashMap<ReplyTo, Owner>,
    last_stamp: u64,
}

struct Entry {
    description: Arc<Description>,
    owner: ReplyTo,
    bytes: u64,
    stamp: u64,
    /// Since its stamp: it is spared once, so a hit costs no more than this.
    used: bool,
}

/// What was looked up for one client.
#[derive(Default)]
struct Owner {
    bytes: u64,
    stamps: BTreeSet<u64>,
}

impl LookupTable {
    fn new(most_bytes: u64) -> LookupTable {
        LookupTable {
            most_bytes,
            bytes: 0,
            entries: HashMap::default(),
            order: BTreeMap::new(),
            owners: HashMap::default(),
            last_stamp: 0,
        }
    }

    fn get(&mut self, lookup: &Lookup) -> Option<&Arc<Description>> {
        let entry = self.entries.get_mut(lookup)?;
        entry.used = true;
        Some(&entry.description)
    }

    fn insert(&mut self, client: &ReplyTo, lookup: &Arc<Lookup>, description: &Arc<Description>) {
        if let Some(entry) = self.entries.get_mut(lookup) {
            entry.description = description.clone();
            return;
        }
        let bytes = ENTRY_BYTES + lookup_bytes(lookup);
        if bytes > self.most_bytes / ENTRY_SHARE_DIVISOR {
            return;
        }
        while self.owners.get(client).map_or(0, |owner| owner.bytes) + bytes
            > self.most_bytes / CLIENT_SHARE_DIVISOR
        {
            self.evict(Some(client));
        }
        while self.bytes + bytes > self.most_bytes {
            self.evict(None);
        }
        self.last_stamp += 1;
        let stamp = self.last_stamp;
        self.order.insert(stamp, lookup.clone());
        let owner = self.owners.entry(*client).or_default();
        owner.stamps.insert(stamp);
        owner.bytes += bytes;
        self.bytes += bytes;
        let entry = Entry {
            description: description.clone(),
            owner: *client,
            bytes,
            stamp,
            used: false,
        };
        self.entries.insert(lookup.clone(), entry);
    }

    /// Makes room: the oldest entry goes, of that client or of all, that was not used since it was last looked at.
    fn evict(&mut self, of: Option<&ReplyTo>) {
        loop {
            let oldest = match of {
                Some(client) => self.owners.get(client).and_then(|o| o.stamps.first()),
                None => self.order.keys().next(),
            };
            let lookup = oldest.and_then(|stamp| self.order.get(stamp)).cloned();
            let Some(lookup) = lookup else {
                return;
            };
            match self.entries.get_mut(&lookup) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.last_stamp += 1;
                    let before = std::mem::replace(&mut entry.stamp, self.last_stamp);
                    self.order.remove(&before);
                    self.order.insert(entry.stamp, lookup);
                    if let Some(owner) = self.owners.get_mut(&entry.owner) {
                        owner.stamps.remove(&before);
                        owner.stamps.insert(entry.stamp);
                    }
                }
                _ => return self.remove(&lookup),
            }
        }
    }

    fn remove(&mut self, lookup: &Arc<Lookup>) {
        let Some(entry) = self.entries.remove(lookup) else {
            return;
        };
        self.order.remove(&entry.stamp);
        self.bytes -= entry.bytes;
        if let Some(owner) = self.owners.get_mut(&entry.owner) {
            owner.bytes -= entry.bytes;
            owner.stamps.remove(&entry.stamp);
            if owner.stamps.is_empty() {
                self.owners.remove(&entry.owner);
            }
        }
    }

    fn forget(&mut self, model: ModelId) {
        let its = |(lookup, entry): (&Arc<Lookup>, &Entry)| {
            (entry.description.id == model).then(|| lookup.clone())
        };
        let gone: Vec<_> = self.entries.iter().filter_map(its).collect();
        gone.iter().for_each(|lookup| self.remove(lookup));
    }
}

/// Roughly the memory that a lookup takes.
pub(super) fn lookup_bytes(lookup: &Lookup) -> u64 {
    let (texts, values) = lookup.held();
    LOOKUP_BYTES
        + texts.map(|text| text.len() as u64).sum::<u64>()
        + values.map(|v| VALUE_BYTES + value_bytes(v)).sum::<u64>()
}

/// Roughly the memory that a value takes.
fn value_bytes(value: &Value) -> u64 {
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() as u64,
        // Of arrays and maps nothing but that they are is kept: wire/params.rs.
        Value::Array(_) | Value::Object(_) => 0,
    };
    VALUE_BYTES + inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Params;
    use crate::model::mock::{Behaviour, MockSource};

    fn client(number: u8) -> ReplyTo {
        ReplyTo([number; 16])
    }

    fn named(name: &str) -> Arc<Lookup> {
        Arc::new(Lookup::of(Some(name), &Params::new()))
    }

    fn with_path(name: &str, path: &str) -> Arc<Lookup> {
        let params = Params::from_iter([("image_path".to_owned(), path.into())]);
        Arc::new(Lookup::of(Some(name), &params))
    }

    fn model() -> Arc<Description> {
        MockSource::default().add("m", Behaviour::Echo)
    }

    fn check(table: &LookupTable) {
        let sum = table.entries.values().map(|e| e.bytes).sum::<u64>();
        assert!(sum == table.bytes && sum <= table.most_bytes);
        let of_owners = table.owners.values().map(|o| o.bytes).sum::<u64>();
        let stamps = table.owners.values().map(|o| o.stamps.len()).sum::<usize>();
        assert_eq!((of_owners, stamps), (table.bytes, table.entries.len()));
        assert_eq!(table.order.len(), table.entries.len());
    }

    #[test]
    fn endless_paths_of_one_client_evict_no_name_and_no_others_paths() {
        let (mut cache, model) = (LookupCache::default(), model());
        let mine: Vec<_> = (0..500)
            .map(|i| with_path("m", &format!("mine{i}")))
            .collect();
        cache.insert(&client(0), &named("m"), &model);
        for lookup in &mine {
            cache.insert(&client(0), lookup, &model);
        }
        for number in 0..50_000 {
            cache.insert(&client(1), &with_path("m", &format!("{number}")), &model);
            // Nor endless spellings.
            cache.insert(&client(1), &named(&format!("m/{number}/..")), &model);
        }
        assert!(cache.get(&named("m")).is_some());
        assert!(mine.iter().all(|lookup| cache.get(lookup).is_some()));
        check(&cache.names);
        check(&cache.paths);
        let attacker = &cache.paths.owners[&client(1)];
        assert!(
            attacker.bytes <= MAX_PATHS_BYTES / CLIENT_SHARE_DIVISOR
                && attacker.stamps.len() > 1_000
        );
        assert!(cache.get(&with_path("m", "49999")).is_some());
    }

    #[test]
    fn what_is_used_stays_when_many_clients_fill_the_cache() {
        let (mut cache, model) = (LookupCache::default(), model());
        let used = with_path("m", "used");
        let unused = with_path("m", "unused");
        for lookup in [&used, &unused] {
            cache.insert(&client(0), lookup, &model);
        }
        for number in 0..60_000u32 {
            let path = with_path("m", &format!("{number}"));
            cache.insert(&client((number % 100) as u8 + 1), &path, &model);
            assert!(cache.get(&used).is_some(), "{number}");
        }
        assert!(!cache.paths.entries.contains_key(&unused));
        check(&cache.paths);
        assert!(cache.paths.bytes > MAX_PATHS_BYTES - MAX_PATHS_BYTES / ENTRY_SHARE_DIVISOR);
    }

    #[test]
    fn lookups_that_are_kept_are_bounded_in_bytes() {
        let (mut cache, model) = (LookupCache::default(), model());
        let spelt = |bytes: usize, number: usize| {
            let paths = (0..bytes / 1000).map(|i| {
                let path = format!("{number}{}", "/".repeat(980));
                (format!("{i}_path"), path.into())
            });
            Arc::new(Lookup::of(Some("m"), &paths.collect()))
        };
        for number in 0..2000 {
            cache.insert(&client(number as u8), &spelt(10_000, number), &model);
        }
        check(&cache.paths);
        assert!(cache.paths.bytes > MAX_PATHS_BYTES / 2);
        let large = spelt(200_000, 0);
        cache.insert(&client(0), &large, &model);
        assert!(cache.get(&large).is_none());
        cache.forget(ModelId(model.id.0 + 1));
        assert!(cache.paths.bytes > 0);
        cache.forget(model.id);
        check(&cache.paths);
        assert!(cache.paths.entries.is_empty() && cache.paths.owners.is_empty());
    }

    #[test]
    fn a_lookup_that_leads_elsewhere_now_is_kept_once() {
        let source = MockSource::default();
        let [old, new] = ["m", "m"].map(|name| source.add(name, Behaviour::Echo));
        let mut cache = LookupCache::default();
        cache.insert(&client(0), &named("m"), &old);
        cache.insert(&client(1), &named("m"), &new);
        assert_eq!(cache.get(&named("m")).map(|d| d.id), Some(new.id));
        check(&cache.names);
        cache.forget(old.id);
        assert!(cache.get(&named("m")).is_some());
    }
}
