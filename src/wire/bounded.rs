//! Bounds on the parts of a client's header that could have any length: parameters, names and paths.
//!
//! A value of one byte takes up to 700 bytes once a worker has read it, so a bound on the header's bytes is not enough.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::TensorHeader;
use crate::error::{Error, Result};
use crate::message::Params;

/// Most values in one request's parameters. Maps and arrays count as one each, and so do their entries.
pub const MAX_PARAM_VALUES: usize = 10_000;
/// Most parameters that are paths. The ventilator keeps them, and the loader checks each.
pub const MAX_PATHS: usize = 256;
/// Most bytes of a model's name and of a parameter that is a path; no file system takes longer paths.
pub const MAX_PATH_BYTES: usize = 4096;
/// Most bytes of a tensor's name.
pub const MAX_TENSOR_NAME_BYTES: usize = 1024;

/// Parameters of no more than so many values.
pub(crate) struct BoundedParams<const MOST: usize = MAX_PARAM_VALUES>(pub(crate) Params);

impl<'de, const MOST: usize> Deserialize<'de> for BoundedParams<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left = MOST;
        let values = Values {
            left: &mut left,
            most: MOST,
        };
        let params = deserializer.deserialize_map(Entries(values))?;
        Ok(BoundedParams(params))
    }
}

/// How many values may still come.
struct Values<'a> {
    left: &'a mut usize,
    most: usize,
}

impl Values<'_> {
    fn again(&mut self) -> Values<'_> {
        Values {
            left: self.left,
            most: self.most,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(format_args!("more than {} values", self.most)))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a string, a boolean, nil, an array or a map with string keys")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        // Not sized by what the header promises.
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.again())? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        Entries(self).visit_map(map).map(Value::Object)
    }
}

/// A map's entries.
struct Entries<'a>(Values<'a>);

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Params;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with string keys")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Params, A::Error> {
        let mut entries = Params::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.0.again())?;
            entries.insert(key, value);
        }
        Ok(entries)
    }
}

/// # Errors
/// `INVALID_ARGUMENT` if a model's name is longer than any path can be.
pub(super) fn model_name(name: &str) -> Result<String> {
    if name.len() > MAX_PATH_BYTES {
        return Err(too_long("`model`", name, MAX_PATH_BYTES));
    }
    Ok(name.to_owned())
}

/// # Errors
/// `INVALID_ARGUMENT`, naming the key, if a parameter whose key ends in `_path` is longer than any path can be.
pub(super) fn check_paths(params: &Params) -> Result<()> {
    for (key, value) in params.iter().filter(|(key, _)| key.ends_with("_path")) {
        if let Some(path) = value.as_str().filter(|path| path.len() > MAX_PATH_BYTES) {
            let place = format!("parameter {}", start_of(key));
            return Err(too_long(&place, path, MAX_PATH_BYTES));
        }
    }
    Ok(())
}

/// # Errors
/// `INVALID_ARGUMENT` if an input's name is too long.
pub(super) fn check_tensor_names(inputs: &[TensorHeader<'_>]) -> Result<()> {
    let long = |input: &&TensorHeader<'_>| input.name.len() > MAX_TENSOR_NAME_BYTES;
    inputs.iter().find(long).map_or(Ok(()), |input| {
        Err(too_long(
            "the name of a tensor in `inputs`",
            &input.name,
            MAX_TENSOR_NAME_BYTES,
        ))
    })
}

fn too_long(place: &str, text: &str, most: usize) -> Error {
    Error::invalid(format!(
        "{place} has {} bytes, and {most} is the most; it starts with {}",
        text.len(),
        start_of(text)
    ))
}

pub(super) fn start_of(text: &str) -> String {
    format!("{:?}", text.chars().take(32).collect::<String>())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::message::RequestId;
    use crate::wire::client::{ClientMessage, Malformed, read};

    fn read_infer(change: impl FnOnce(&mut Value)) -> Result<ClientMessage, Malformed> {
        let mut header = json!({
            "v": 1, "type": "infer", "id": 5, "model": "m",
            "inputs": [{"name": "x", "dtype": "UINT8", "shape": [1]}],
        });
        change(&mut header);
        let header = crate::tensor::to_document(&header).unwrap();
        read(vec![header.into(), Bytes::from_static(&[0])])
    }

    fn refused(words: &str, change: impl FnOnce(&mut Value)) {
        let malformed = read_infer(change).unwrap_err();
        assert_eq!((malformed.id, malformed.infer), (Some(RequestId(5)), true));
        let message = malformed.error.message();
        assert!(message.contains(words), "{message}");
        assert!(message.len() < 500, "{message}");
    }

    #[test]
    fn parameters_have_a_bound_on_their_values() {
        let many = |n: usize| json!({"a": vec![0; n], "b": {"c": null}, "d": [true, -1, 0.5, "e"]});
        // Nine besides those of "a": what holds values counts too.
        let read = read_infer(|h| h["params"] = many(MAX_PARAM_VALUES - 8)).unwrap();
        let ClientMessage::Infer(_, request) = read else {
            panic!("{read:?}");
        };
        assert_eq!(Value::Object(request.params), many(MAX_PARAM_VALUES - 8));
        refused("`params`: more than 10000 values", |h| {
            h["params"] = many(MAX_PARAM_VALUES - 7);
        });
        refused("`params`: more than 10000 values", |h| {
            h["params"] = json!({"a": vec![json!({"b": null}); MAX_PARAM_VALUES / 2]});
        });
    }

    #[test]
    fn names_and_paths_have_a_bound_on_their_bytes() {
        let long = "./".repeat(MAX_PATH_BYTES / 2);
        let longer = format!("{long}m");
        read_infer(|h| h["model"] = json!(long)).unwrap();
        read_infer(|h| h["params"] = json!({"a_path": long, "text": longer})).unwrap();
        refused("`model` has 4097 bytes, and 4096 is the most", |h| {
            h["model"] = json!(longer);
        });
        refused("\"a_path\" has 4097 bytes, and 4096 is the most", |h| {
            h["params"] = json!({"a_path": longer});
        });
        refused("has 1025 bytes, and 1024 is the most", |h| {
            h["inputs"][0]["name"] = json!("n".repeat(1025));
        });
        let load = json!({"v": 1, "type": "load", "id": 6, "model": longer});
        let load = crate::tensor::to_document(&load).unwrap();
        let malformed = read(vec![load.into()]).unwrap_err();
        assert_eq!((malformed.id, malformed.infer), (Some(RequestId(6)), false));
        assert!(
            malformed.error.message().contains("4096"),
            "{}",
            malformed.error
        );
    }

    #[test]
    fn inputs_have_a_bound() {
        refused("`inputs`: more than 1024 tensors", |h| {
            h["inputs"] = json!(vec![h["inputs"][0].clone(); 1025]);
        });
    }
}
