//! What is said of the models that are known, and of those that do not open.

use std::sync::Arc;

use super::Catalog;
use super::failures::{AskedFor, Failure};
use crate::error::Error;
use crate::message::ModelId;
use crate::model::Description;

impl<P> Catalog<P> {
    /// Every model that requests find, in the order in which they were read.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Arc<Description>> {
        self.models.known.served()
    }

    /// A worker has run a model; or it could not open it, and why.
    pub(crate) fn ran(&mut self, model: ModelId, failed: Option<&Error>) {
        let known = &self.models.known;
        match failed {
            None if self.failures.is_empty() => {} // nearly always
            None => self.failures.ran(model),
            Some(error) => {
                if let (Some(of), Some(key)) = (known.get(model), known.key(model)) {
                    let asked = match known.name_of(model) {
                        Some(name) => AskedFor::Name(name.clone()),
                        None => AskedFor::Text(of.name.clone(), Some(of.version.clone())),
                    };
                    self.failures.unopened(asked, of, key, error);
                }
            }
        }
    }

    /// Models that do not open, the last one last; and what requests that ask for the same are answered by nevertheless.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&Failure, Option<Arc<Description>>)> {
        self.failures.all().map(|failure| {
            let (name, key) = (failure.asked.name(), failure.key.as_ref());
            let served = self.models.known.served_for(name, key);
            // What a worker could not open is none to go on with.
            let served = served.filter(|served| Some(served.id) != failure.model);
            (failure, served)
        })
    }

    /// What is known of a model by its number.
    pub(crate) fn describe(&self, model: ModelId) -> Option<&Arc<Description>> {
        self.models.known.get(model)
    }
}
