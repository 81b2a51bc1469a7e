//! A request's parameters: those that the protocol gives a meaning, and those that are the model's.

use serde_json::Value;

use super::MAX_PATH_BYTES;
use crate::error::{Error, Result};
use crate::message::{OnBadRow, Params, Priority};

/// What the protocol's own parameters say.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) priority: Priority,
    pub(crate) on_bad_row: OnBadRow,
    /// `binary_data_output`.
    pub(crate) binary: bool,
    /// `ordered`: the parts of a stream come in row order.
    pub(crate) in_order: bool,
    /// The model's.
    pub(crate) params: Params,
}

impl Options {
    /// Takes the protocol's parameters out.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the parameter and what was expected.
    pub(crate) fn of(mut params: Params) -> Result<Options> {
        let mut options = Options::default();
        if params.is_empty() {
            return Ok(options);
        }
        if let Some(micros) = whole(&mut params, "timeout", "microseconds")? {
            // 0 is none, as for other servers; a part of a millisecond is one.
            options.timeout_ms = (micros > 0).then(|| micros.div_ceil(1000));
        }
        if whole(&mut params, "priority", "1 for high, more for normal")? == Some(1) {
            options.priority = Priority::High;
        }
        if let Some(value) = params.remove("on_bad_row") {
            let choice = value.as_str().and_then(OnBadRow::parse);
            options.on_bad_row = choice.ok_or_else(|| {
                Error::invalid(format!(
                    "parameters.on_bad_row is {}, expected \"fail\" or \"report\"",
                    shown(&value)
                ))
            })?;
        }
        options.binary = flag(&mut params, "binary_data_output")?.unwrap_or(false);
        options.in_order = flag(&mut params, "ordered")?.unwrap_or(false);
        for (key, value) in params.iter().filter(|(key, _)| key.ends_with("_path")) {
            if value
                .as_str()
                .is_some_and(|path| path.len() > MAX_PATH_BYTES)
            {
                return Err(Error::invalid(format!(
                    "parameters.{key} has more than {MAX_PATH_BYTES} bytes, which no path has"
                )));
            }
        }
        options.params = params;
        Ok(options)
    }
}

/// A parameter that is a whole number.
fn whole(params: &mut Params, name: &str, meaning: &str) -> Result<Option<u64>> {
    let Some(value) = params.remove(name) else {
        return Ok(None);
    };
    // Some clients send numbers as text.
    let number = match &value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    };
    number.map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "parameters.{name} is {}, expected a whole number ({meaning})",
            shown(&value)
        ))
    })
}

/// A parameter that is true or false.
pub(crate) fn flag(params: &mut Params, name: &str) -> Result<Option<bool>> {
    match params.remove(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(value)),
        Some(other) => Err(Error::invalid(format!(
            "parameters.{name} is {}, expected true or false",
            shown(&other)
        ))),
    }
}

/// A value in few words.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.len() {
        0..=64 => text,
        _ => format!("{}…", &text[..text.floor_char_boundary(64)]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(value: Value) -> Result<Options> {
        let Value::Object(params) = value else {
            panic!("a map")
        };
        Options::of(params)
    }

    #[test]
    fn the_protocols_parameters_are_taken_out_and_the_others_are_the_models() {
        let read = options(json!({
            "timeout": 1500, "priority": 1, "binary_data_output": true, "top_k": 3, "a_path": "x",
            "on_bad_row": "report",
        }));
        let read = read.unwrap();
        assert_eq!((read.timeout_ms, read.priority), (Some(2), Priority::High));
        assert!(read.binary && !read.in_order);
        assert_eq!(read.on_bad_row, OnBadRow::Report);
        assert_eq!(
            Value::Object(read.params),
            json!({"top_k": 3, "a_path": "x"})
        );
        assert_eq!(
            options(json!({"timeout": 0, "priority": 0, "on_bad_row": "fail"})).unwrap(),
            Options::default()
        );
        for bad in [
            json!({"timeout": -1}),
            json!({"timeout": 1.5}),
            json!({"priority": "high"}),
            json!({"binary_data_output": 1}),
            json!({"ordered": "yes"}),
            json!({"on_bad_row": true}),
            json!({"on_bad_row": "skip"}),
            json!({"a_path": "x".repeat(5000)}),
        ] {
            let key = bad.as_object().unwrap().keys().next().unwrap().clone();
            let error = options(bad).unwrap_err();
            assert!(error.message().contains(&key), "{error}");
        }
    }
}
