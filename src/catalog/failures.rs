//! The models that could not be loaded or opened the last time that somebody wanted them, for status to show: by what was
//! asked for, since one name may lead to a version that does not open while another version of that name is served.

use std::collections::VecDeque;

use super::loads::Named;
use crate::error::{Error, ErrorCode};
use crate::message::ModelId;
use crate::model::{Description, FoundModel, Key, Name};

/// Most that are kept: clients name what they like, and a folder can be full of files that are no models.
const MOST: usize = 64;
/// Most bytes of a name and of a message.
const MOST_BYTES: usize = 512;

/// A model that does not open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// What it is called: by itself if it was found, else by those who asked for it.
    pub(crate) name: String,
    /// Of one that has versions, or the one that was asked for.
    pub(crate) version: Option<String>,
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(super) asked: AskedFor,
    /// Its files, if they were found.
    pub(super) key: Option<Key>,
    /// What was loaded but could not be opened by a worker.
    pub(super) model: Option<ModelId>,
}

/// What was asked for. The same request finds the same, as long as no file changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedFor {
    Name(Name),
    /// A model's name and version as they were given, where files decide what they mean.
    Text(String, Option<String>),
}

impl AskedFor {
    pub(super) fn of(named: &Named) -> AskedFor {
        match &named.name {
            Some(name) => AskedFor::Name(name.clone()),
            None => {
                let version = named.lookup.version_text();
                let version = version.map(|version| shortened(&version));
                AskedFor::Text(shortened(named.lookup.name()), version)
            }
        }
    }

    /// If it can be told without a look at files.
    pub(super) fn name(&self) -> Option<&Name> {
        match self {
            AskedFor::Name(name) => Some(name),
            AskedFor::Text(..) => None,
        }
    }
}

/// Those that are known, the last one last.
#[derive(Debug, Default)]
pub(super) struct Failures(VecDeque<Failure>);

impl Failures {
    /// What was asked for is there, and it cannot be told what it is. What says nothing of the model is left out: a name
    /// that leads nowhere, and a request that must not have it.
    pub(super) fn not_found(&mut self, named: &Named, error: &Error) {
        match error.code() {
            ErrorCode::NotFound => self.forget(named),
            ErrorCode::FailedPrecondition => {
                let asked = AskedFor::of(named);
                self.0.retain(|failure| failure.asked != asked);
                self.push(Failure {
                    name: shortened(named.lookup.name()),
                    version: named.lookup.version_text(),
                    code: error.code(),
                    message: shortened(error.message()),
                    asked,
                    key: None,
                    model: None,
                });
            }
            _ => {}
        }
    }

    /// The files of what was asked for were found: what it led to before says nothing of it any more.
    pub(super) fn found(&mut self, named: &Named, key: &Key) {
        let asked = AskedFor::of(named);
        let is_other = |failure: &Failure| {
            let same = failure.key.as_ref().is_some_and(|its| same(its, key));
            failure.asked == asked && !same
        };
        self.0.retain(|failure| !is_other(failure));
    }

    /// What was found cannot be read.
    pub(super) fn unreadable(&mut self, named: &Named, found: &FoundModel, error: &Error) {
        if says_nothing(error) {
            return;
        }
        let asked = AskedFor::of(named);
        self.0.retain(|failure| failure.asked != asked);
        self.push(Failure {
            name: shortened(found.name()),
            version: found.own_version(),
            code: error.code(),
            message: shortened(error.message()),
            asked,
            key: Some(found.key().clone()),
            model: None,
        });
    }

    /// A worker cannot open what was read.
    pub(super) fn unopened(
        &mut self,
        asked: AskedFor,
        model: &Description,
        key: &Key,
        error: &Error,
    ) {
        if says_nothing(error) {
            return;
        }
        self.0
            .retain(|failure| failure.asked != asked && failure.model != Some(model.id));
        self.push(Failure {
            name: shortened(&model.name),
            version: model.has_versions.then(|| model.version.clone()),
            code: error.code(),
            message: shortened(error.message()),
            asked,
            key: Some(key.clone()),
            model: Some(model.id),
        });
    }

    fn push(&mut self, failure: Failure) {
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(failure);
    }

    /// It is not there, or is wanted no more.
    pub(super) fn forget(&mut self, named: &Named) {
        let asked = AskedFor::of(named);
        self.0.retain(|failure| failure.asked != asked);
    }

    /// The model of these files was read, or opened: whatever it was asked for by.
    pub(super) fn opens(&mut self, named: &Named, key: &Key) {
        self.forget(named);
        self.forget_model(key);
    }

    /// The model of these files is wanted no more, by whatever name.
    pub(super) fn forget_model(&mut self, key: &Key) {
        let is_its = |failure: &Failure| failure.key.as_ref().is_some_and(|its| same(its, key));
        self.0.retain(|failure| !is_its(failure));
    }

    /// A worker has run a model, and so has it open.
    pub(super) fn ran(&mut self, model: ModelId) {
        self.0.retain(|failure| failure.model != Some(model));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Failure> {
        self.0.iter()
    }
}

/// Whether both are states of one version of one model.
fn same(one: &Key, other: &Key) -> bool {
    one.is_state_of(other) && one.version() == other.version()
}

/// Such as no room, and nobody to open it.
fn says_nothing(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::ResourceExhausted
            | ErrorCode::Cancelled
            | ErrorCode::Unavailable
            | ErrorCode::DeadlineExceeded
    )
}

fn shortened(text: &str) -> String {
    match text.len() <= MOST_BYTES {
        true => text.to_owned(),
        false => format!("{}…", &text[..text.floor_char_boundary(MOST_BYTES)]),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::Params;
    use crate::model::Lookup;

    fn named(name: &str) -> Named {
        let lookup = Lookup::of(Some(name), &Params::new());
        Named {
            name: Name::made_up(&lookup),
            lookup: Arc::new(lookup),
        }
    }

    fn names(failures: &Failures) -> Vec<(&str, Option<&str>)> {
        let all = failures.all();
        all.map(|of| (&*of.name, of.version.as_deref())).collect()
    }

    #[test]
    fn failures_are_bounded_and_go_when_the_model_opens_or_is_gone() {
        let mut failures = Failures::default();
        for number in 0..1000 {
            let why = Error::precondition("x".repeat(10_000));
            failures.not_found(&named(&format!("m{number}")), &why);
        }
        failures.not_found(&named("gone"), &Error::not_found("no such model"));
        failures.not_found(&named("denied"), &Error::denied("it leads out"));
        let found = FoundModel::made_up("full", 1);
        failures.unreadable(&named("full"), &found, &Error::exhausted("no room"));
        assert_eq!(failures.0.len(), MOST);
        assert!(failures.all().all(|f| f.message.len() < MOST_BYTES + 4));
        failures.not_found(&named("m999"), &Error::not_found("it was removed"));
        assert_eq!(failures.0.len(), MOST - 1);
        failures.not_found(&named("m998"), &Error::precondition("again"));
        assert_eq!(failures.0.len(), MOST - 1);
        assert_eq!(failures.all().last().map(|f| &*f.message), Some("again"));
        failures.found(&named("m998"), FoundModel::made_up("m998", 1).key());
        assert_eq!(failures.0.len(), MOST - 2);
    }

    /// `vv` leads to its version 2, which is junk, and `vv/1` works.
    #[test]
    fn one_version_that_opens_says_nothing_of_another() {
        let mut failures = Failures::default();
        let [first, second] = [1, 2].map(|version| FoundModel::made_up("vv", version));
        let why = Error::precondition("no model");
        failures.found(&named("vv"), second.key());
        failures.unreadable(&named("vv"), &second, &why);
        failures.found(&named("vv/1"), first.key());
        failures.opens(&named("vv/1"), first.key());
        assert_eq!(names(&failures), [("vv", Some("2"))]);
        // The second one goes, and the name leads to the first, which is loaded already.
        failures.found(&named("vv"), first.key());
        assert!(failures.is_empty());
        // Whoever has it opened.
        failures.unreadable(&named("vv"), &second, &why);
        failures.opens(&named("vv/2"), second.key());
        assert!(failures.is_empty());
    }
}
