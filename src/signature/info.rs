//! Ports as text and numbers: how the wire and JSON show them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An input or output of a model. A dimension is a number, or the symbol's name, or -1 if it is unnamed and dynamic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// The name.
    pub name: String,
    /// The datatype's name.
    pub dtype: String,
    /// The dimensions, the row first.
    pub shape: Vec<DimInfo>,
}

/// For people: `name DTYPE [N,?,4]`.
impl fmt::Display for PortInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims = self.shape.iter().map(|dim| match dim {
            DimInfo::Size(-1) => "?".to_owned(),
            DimInfo::Size(size) => size.to_string(),
            DimInfo::Symbol(name) => name.clone(),
        });
        let dims = dims.collect::<Vec<_>>().join(",");
        write!(f, "{} {} [{dims}]", self.name, self.dtype)
    }
}

/// A dimension as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DimInfo {
    /// Its size, or -1 if it is unnamed and dynamic.
    Size(i64),
    /// The symbol's name.
    Symbol(String),
}
