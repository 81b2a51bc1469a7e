//! Elements of JSON tensors: each is one msgpack document.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
pub(super) fn from_document<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| {
        // What is JSON is told in its words: whoever wrote it has not seen any msgpack.
        let value: Option<serde_json::Value> = rmp_serde::from_slice(bytes).ok();
        match value.map(serde_json::from_value::<T>) {
            Some(Err(e)) => Error::invalid(format!("not what is read here: {e}")),
            Some(Ok(_)) | None => Error::invalid(format!("not a document: {e}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_of_another_type_is_told_in_the_words_of_json() {
        #[derive(Debug, Deserialize)]
        struct Person {
            #[allow(dead_code)] // only whether it can be read matters
            age: u32,
        }
        let read = |value| from_document::<Person>(&to_document(&value).unwrap());
        assert!(read(json!({"age": 7})).is_ok());
        for (value, why) in [
            (json!({"age": "old"}), "string \"old\", expected u32"),
            (json!({}), "missing field `age`"),
            (json!("Eve"), "string \"Eve\", expected struct Person"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        let error = from_document::<Person>(&[0xc1]).unwrap_err();
        assert!(error.message().contains("not a document"), "{error}");
    }
}
