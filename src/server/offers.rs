//! What a server's folder offers: names and versions, without reading any model.

use std::sync::Arc;

use crate::error::Result;
use crate::message::Params;
use crate::model::{Lookup, Store};

/// What a server's folder offers. It looks at files, so it is not for a thread that serves many.
#[derive(Clone)]
pub struct Offers(pub(super) Arc<Store>);

impl Offers {
    /// The names of all that looks like a model, in order.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for a proxy that cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        self.0.names()
    }

    /// The model that a name means, without the method that it may end in: methods are loaded and unloaded with the others
    /// of their model. A name that leads nowhere means itself.
    pub fn model_of(&self, name: &str) -> String {
        self.0.without_method(name).to_owned()
    }

    /// What a model goes by, and the version that its name leads to now, with the version that the parameters may ask for. Whether it can be loaded is
    /// not known before it was.
    ///
    /// # Errors
    /// `NOT_FOUND` and what else the lookup of a request's model gives.
    pub fn version(&self, model: &str, params: &Params) -> Result<(String, String)> {
        let found = self.0.find(&Lookup::of(Some(model), params))?;
        Ok((found.name().to_owned(), found.version()))
    }

    /// The numbers of the versions in a model's folder, ascending; none for a model without such a folder.
    ///
    /// # Errors
    /// As [`Offers::version`].
    pub fn versions(&self, model: &str) -> Result<Vec<u64>> {
        let found = self.0.find(&Lookup::of(Some(model), &Params::new()))?;
        Ok(found.all_versions())
    }
}
