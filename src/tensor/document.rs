//! Elements of JSON tensors: each is one msgpack document.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One msgpack document.
///
/// # Errors
/// `INVALID_ARGUMENT` for what msgpack cannot hold.
pub(crate) fn to_document<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|e| Error::invalid(format!("not a document: {e}")))
}

/// Reads one msgpack document.
///
/// # Errors
/// `INVALID_ARGUMENT` for other bytes, and for a document of another type.
pub(super) fn from_document<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| Error::invalid(format!("not a document: {e}")))
}
