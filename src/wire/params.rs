//! A request's parameters on their way through the server: checked once, and passed on as the bytes they came in.
//!
//! ```text
//! ventilator   checks the bytes: bounds, string keys, UTF-8; reads the entries that the lookup of the model needs
//! on the way   the same bytes, shared: a frame of each chunk
//! worker       reads the values, which the model gets
//! ```
//! Building ten thousand values takes milliseconds, and writing them as long; the ventilator has all clients to serve. The
//! entries that it reads must be those that the worker will read, or a path could reach a model unchecked: a test compares
//! the two.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::bounded::{BoundedParams, MAX_PARAM_VALUES, MAX_PATHS, start_of};
use super::client::MAX_DEPTH;
use super::msgpack::{Item, ReadResult, Reader, check_utf8, unexpected};
use crate::error::{Error, Result};
use crate::message::{MODEL_VERSION, Params};

/// A value once it is read, or an entry's place in a map.
const VALUE_BYTES: u64 = 64;
/// A map with an entry takes room for eleven.
const MAP_BYTES: u64 = 700;

/// Parameters that were checked and are still bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RawParams {
    bytes: Bytes,
    paths: Params,
    read_bytes: u64,
}

impl RawParams {
    /// Reads a map off a header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(source: &mut Reader<'_>, header: &Bytes) -> ReadResult<RawParams> {
        let before = source.rest();
        let mut look = Scan {
            source,
            left: MAX_PARAM_VALUES,
            read_bytes: 0,
        };
        let mut paths = Params::new();
        let entries = look.source.map()?;
        look.read_bytes += if entries == 0 { 0 } else { MAP_BYTES };
        for _ in 0..entries {
            let key = look.key()?;
            let value = look.value(PARAMS_DEPTH)?;
            if key.ends_with(b"_path") || key == MODEL_VERSION.as_bytes() {
                // Of several entries with one key the last counts, here as in the worker.
                let key = &*String::from_utf8_lossy(key);
                paths.insert(key.to_owned(), shown(value));
                if paths.len() > MAX_PATHS {
                    return Err(format!(
                        "more than {MAX_PATHS} parameters that are paths, {} is one too many",
                        start_of(key)
                    ));
                }
            }
        }
        let read_bytes = look.read_bytes;
        let bytes = &before[..before.len() - source.rest().len()];
        Ok(RawParams {
            read_bytes,
            bytes: if entries == 0 {
                Bytes::new()
            } else {
                header.slice_ref(bytes)
            },
            paths,
        })
    }

    /// Parameters that a door gives.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what no header could hold.
    #[cfg(feature = "server")]
    pub(crate) fn of(params: &Params) -> Result<RawParams> {
        if params.is_empty() {
            return Ok(RawParams::default());
        }
        let bytes = Bytes::from(crate::tensor::to_document(params)?);
        RawParams::read(&mut Reader::new(&bytes), &bytes)
            .map_err(|why| Error::invalid(format!("`params`: {why}")))
    }

    /// The map as msgpack, part of the header that it came in; empty if it has no entries.
    #[cfg(feature = "server")]
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// About how much memory they take in a worker: ten thousand values of a byte each take megabytes.
    #[cfg(feature = "server")]
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The entries that decide which model a request gets: those whose keys end in `_path`, and [`MODEL_VERSION`]. None of
    /// their values may be an array or a map; if one is, it is empty here.
    pub(crate) fn paths(&self) -> &Params {
        &self.paths
    }

    /// # Errors
    /// `INTERNAL` for anything that [`RawParams::read`] would not have let pass.
    pub(crate) fn parse(&self) -> Result<Params> {
        parse(&self.bytes)
    }
}

/// The values of what [`RawParams::bytes`] gave.
///
/// # Errors
/// `INTERNAL` for anything else.
pub(crate) fn parse(bytes: &[u8]) -> Result<Params> {
    if bytes.is_empty() {
        return Ok(Params::new());
    }
    let mut source = rmp_serde::Deserializer::from_read_ref(bytes);
    let params = <BoundedParams>::deserialize(&mut source);
    params
        .map(|BoundedParams(params)| params)
        .map_err(|e| Error::internal(format!("`params`: {e}")))
}

/// The header is a map, and the parameters are one in it.
const PARAMS_DEPTH: usize = 2;

/// Checks each value.
struct Scan<'s, 'a> {
    source: &'s mut Reader<'a>,
    /// How many values may still come.
    left: usize,
    /// Of those that have come.
    read_bytes: u64,
}

impl<'a> Scan<'_, 'a> {
    /// A key; its value is what follows.
    fn key(&mut self) -> ReadResult<&'a [u8]> {
        let key = self.source.text_bytes()?;
        self.read_bytes += VALUE_BYTES + key.len() as u64;
        Ok(key)
    }

    /// A value that so many maps and arrays are around.
    fn value(&mut self, depth: usize) -> ReadResult<Item<'a>> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| format!("more than {MAX_PARAM_VALUES} values"))?;
        let item = self.source.item()?;
        self.read_bytes += VALUE_BYTES;
        match item {
            Item::Nil | Item::Bool(_) | Item::Unsigned(_) | Item::Negative(_) | Item::Float(_) => {}
            Item::Text(text) => {
                check_utf8(text)?;
                self.read_bytes += text.len() as u64;
            }
            Item::Binary(_) | Item::Extension => {
                let expected =
                    "a number, a string, a boolean, nil, an array or a map with string keys";
                return Err(unexpected(expected, item));
            }
            Item::Array(_) | Item::Map(_) if depth + 1 >= MAX_DEPTH => {
                return Err(format!("nested too deep, {MAX_DEPTH} levels is the most"));
            }
            Item::Array(values) => {
                for _ in 0..values {
                    self.value(depth + 1)?;
                }
            }
            Item::Map(entries) => {
                self.read_bytes += if entries == 0 { 0 } else { MAP_BYTES };
                for _ in 0..entries {
                    self.key()?;
                    self.value(depth + 1)?;
                }
            }
        }
        Ok(item)
    }
}

/// A value, without what is inside.
fn shown(item: Item<'_>) -> Value {
    match item {
        Item::Bool(value) => value.into(),
        Item::Unsigned(number) => number.into(),
        Item::Negative(number) => number.into(),
        Item::Float(number) => number.into(),
        Item::Text(text) => String::from_utf8_lossy(text).into(),
        Item::Array(_) => Value::Array(Vec::new()),
        Item::Map(_) => Value::Object(Params::new()),
        // Bytes and extensions are refused.
        Item::Nil | Item::Binary(_) | Item::Extension => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn look(bytes: &[u8]) -> ReadResult<RawParams> {
        let header = Bytes::copy_from_slice(bytes);
        RawParams::read(&mut Reader::new(&header), &header)
    }

    fn packed(value: &Value) -> Vec<u8> {
        crate::tensor::to_document(value).unwrap()
    }

    #[test]
    fn what_the_lookup_needs_is_taken_out() {
        let params = json!({
            "a_path": "x.txt", "b_path": 7, "c_path": [1, [2]], "model_version": -1.5,
            "text": "t", "inner": {"d_path": "y"}, "path": "z",
        });
        let raw = look(&packed(&params)).unwrap();
        let expected = json!({"a_path": "x.txt", "b_path": 7, "c_path": [], "model_version": -1.5});
        assert_eq!(Value::Object(raw.paths.clone()), expected);
        assert_eq!(Value::Object(raw.parse().unwrap()), params);
        assert_eq!(raw.bytes, packed(&params));
        let none = look(&[0xde, 0, 0]).unwrap();
        assert_eq!(none, RawParams::default());
        assert_eq!(none.parse().unwrap(), Params::new());
    }

    #[test]
    fn a_map_is_charged_what_it_takes() {
        let charged = |value: Value| look(&packed(&value)).unwrap().read_bytes;
        assert!(charged(json!({"a": vec![json!({"b": null}); 1000]})) > 700_000);
        assert_eq!(charged(json!({})), 0);
        let few = charged(json!({"ab": "text", "c": [1, {}]}));
        assert_eq!(few, MAP_BYTES + 2 * VALUE_BYTES + 3 + 4 * VALUE_BYTES + 4);
    }

    #[test]
    fn paths_have_a_bound_on_their_number() {
        let paths = |n: usize| (0..n).map(|i| (format!("{i}_path"), json!("p"))).collect();
        assert!(look(&packed(&Value::Object(paths(MAX_PATHS)))).is_ok());
        let why = look(&packed(&Value::Object(paths(MAX_PATHS + 1)))).unwrap_err();
        assert!(
            why.contains("more than 256 parameters that are paths"),
            "{why}"
        );
    }

    /// The bug: each request of 9,900 parameters held up all other clients for 4.4 ms.
    #[test]
    fn ten_thousand_parameters_are_looked_at_without_memory_for_each() {
        let many: Params = (0..9_900).map(|i| (format!("k{i}"), json!(i))).collect();
        let bytes = packed(&Value::Object(many));
        let allocated = |work: &dyn Fn()| allocation_counter::measure(work).count_total;
        let looked = allocated(&|| drop(look(&bytes).unwrap()));
        let built = allocated(&|| drop(parse(&bytes).unwrap()));
        assert!(built > 9_900, "{built}");
        assert!(looked < 10, "{looked}");
    }

    fn values() -> impl Strategy<Value = Vec<u8>> {
        // Bytes that are likely to be maps with keys that matter.
        let piece = prop_oneof![
            Just(b"\xa6a_path".to_vec()),
            Just(b"\xc4\x06a_path".to_vec()),
            Just(b"\xadmodel_version".to_vec()),
            Just(b"\xa1k".to_vec()),
            (0x80u8..0xa3).prop_map(|b| vec![b]),
            any::<u8>().prop_map(|b| vec![b]),
            any::<[u8; 5]>().prop_map(|b| b.to_vec()),
        ];
        (0x80u8..0x84, prop::collection::vec(piece, 0..10))
            .prop_map(|(map, pieces)| [vec![map], pieces.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn the_look_lets_pass_what_the_worker_reads_and_sees_the_same_paths(bytes in values()) {
            let mut source = rmp_serde::Deserializer::from_read_ref(&bytes);
            let read = <BoundedParams>::deserialize(&mut source).map(|BoundedParams(params)| params);
            match (look(&bytes), read) {
                (Ok(raw), Ok(params)) => {
                    prop_assert_eq!(raw.parse().unwrap(), params.clone());
                    let hollow = |value: &Value| match value {
                        Value::Array(_) => json!([]),
                        Value::Object(_) => json!({}),
                        other => other.clone(),
                    };
                    let named = params.iter().filter(|(key, _)| key.ends_with("_path") || *key == MODEL_VERSION);
                    let named: Params = named.map(|(key, value)| (key.clone(), hollow(value))).collect();
                    prop_assert_eq!(raw.paths(), &named);
                }
                (Err(_), Err(_)) => {}
                (raw, read) => prop_assert!(false, "{:?} but {:?}", raw, read),
            }
        }
    }
}
