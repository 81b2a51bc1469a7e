//! Reads the settings file: TOML with the names of the flags, turned into the words that a command line would have.

use std::ffi::OsString;
use std::path::Path;

use super::sources::{Flag, Setting};
use crate::error::{Error, Result};

/// Reads the settings of a file; `flags` are those that it may name.
pub(super) fn read(path: &Path, flags: &[Flag]) -> Result<Vec<Setting>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::invalid(format!("--config {path:?} cannot be read: {e}")))?;
    parse(&text, flags).map_err(|e| e.context(format!("--config {path:?}")))
}

fn parse(text: &str, flags: &[Flag]) -> Result<Vec<Setting>> {
    let table = text.parse::<toml::Table>().map_err(|e| {
        let line = e.span().map_or(1, |span| {
            text.bytes()
                .take(span.start)
                .filter(|b| *b == b'\n')
                .count()
                + 1
        });
        // Its messages may have several lines; an error of ours has one.
        let message = e.message().replace('\n', ", ");
        Error::invalid(format!("line {line}: {message}"))
    })?;
    let mut settings: Vec<Setting> = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        let Some(flag) = flags.iter().find(|flag| flag.is_called(&name)) else {
            return Err(Error::invalid(format!(
                "unknown key {key:?}; the keys are the flags that mdm-server-start --help lists, such as num_worker = 4"
            )));
        };
        if let Some(other) = settings.iter().find(|other| other.id == flag.id) {
            return Err(Error::invalid(format!(
                "{} and {key} are the same setting; give one of them",
                other.origin
            )));
        }
        settings.push(Setting {
            id: flag.id.clone(),
            values: values(value, flag).map_err(|e| e.context(key))?,
            origin: key.clone(),
        });
    }
    Ok(settings)
}

/// The value in the words of the command line. A list is several values, or one device map.
fn values(value: &toml::Value, flag: &Flag) -> Result<Vec<OsString>> {
    let toml::Value::Array(entries) = value else {
        return Ok(vec![word(value)?.into()]);
    };
    let words = entries.iter().map(word).collect::<Result<Vec<_>>>()?;
    match flag.id.as_str() {
        _ if flag.repeatable => Ok(words.into_iter().map(OsString::from).collect()),
        "device_map" => Ok(vec![words.join(",").into()]),
        _ => Err(Error::invalid("expected one value, got a list")),
    }
}

fn word(value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        other => Err(Error::invalid(format!(
            "expected a string, a number, true or false, got a TOML {}",
            other.type_str()
        ))),
    }
}
