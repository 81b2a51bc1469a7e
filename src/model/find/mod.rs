//! From what a request names to files and what is to be done with each; no file is opened as a model here.

mod asked;
mod files;
mod found;
mod lookup;
mod namesakes;
pub(crate) mod versions;

pub use asked::Lookup;

pub(crate) use files::{Files, Stamp, file_name};
pub(crate) use found::{Found, Stage, shown};
pub(crate) use lookup::{Alias, Roots};
pub(crate) use namesakes::with_ending;
