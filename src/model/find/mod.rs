//! From what a request names to files and what is to be done with each; no file is opened as a model here.

mod files;
mod found;
mod lookup;
mod namesakes;
mod roots;
pub(crate) mod versions;

pub use lookup::Lookup;

pub(crate) use files::{Files, Stamp, file_name};
pub(crate) use found::{Found, Stage, shown};
pub(crate) use namesakes::with_ending;
pub(crate) use roots::{Alias, Roots};
