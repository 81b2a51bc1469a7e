//! What a model or a plugin declares: ports, and the JSON of a signature.

use serde::{Deserialize, Serialize};

use super::{DimInfo, PortInfo};
use crate::error::{Error, Result};
use crate::tensor::DataType;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 64;

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size, the same wherever the name stands.
    Symbol(String),
    /// Any size.
    Dynamic,
    /// Any number of further dimensions of any size: a model that does not declare its rank.
    Rest,
}

impl From<usize> for Dim {
    fn from(size: usize) -> Dim {
        Dim::Fixed(size)
    }
}

/// `"?"` is any size, `"..."` any number of further dimensions, everything else a name.
impl From<&str> for Dim {
    fn from(name: &str) -> Dim {
        match name {
            "?" => Dim::Dynamic,
            "..." => Dim::Rest,
            name => Dim::Symbol(name.to_owned()),
        }
    }
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The datatype.
    pub datatype: DataType,
    /// The dimensions, the row first.
    pub shape: Vec<Dim>,
}

/// Whether rows may be split and put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rows {
    /// Each row by itself: requests may be split and put together, and every output has a row for each row.
    #[default]
    Independent,
    /// Rows belong together: the model gets each request whole, and its outputs have any shape.
    Whole,
}

/// What a model of a plugin takes and gives.
///
/// ```
/// use mdm::plugin::Signature;
/// use mdm::DataType;
///
/// let signature = Signature::new()
///     .input("text", DataType::Bytes, &["N".into()])
///     .output("scores", DataType::Fp32, &["N".into(), 3.into()]);
/// assert_eq!(signature.inputs.unwrap()[0].name, "text");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// The inputs in the order in which the model gets them, checked by the server; `None`: it takes anything.
    pub inputs: Option<Vec<Port>>,
    /// The outputs in the order in which clients get them; `None`: it gives anything.
    pub outputs: Option<Vec<Port>>,
    /// Whether rows are independent.
    pub rows: Rows,
}

impl Signature {
    /// Takes anything and gives anything; rows are independent.
    pub fn new() -> Signature {
        Signature::default()
    }

    /// Declares one more input.
    #[must_use]
    pub fn input(mut self, name: &str, datatype: DataType, shape: &[Dim]) -> Signature {
        let port = port(name, datatype, shape);
        self.inputs.get_or_insert_default().push(port);
        self
    }

    /// Declares one more output.
    #[must_use]
    pub fn output(mut self, name: &str, datatype: DataType, shape: &[Dim]) -> Signature {
        let port = port(name, datatype, shape);
        self.outputs.get_or_insert_default().push(port);
        self
    }

    /// The model gets each request whole.
    #[must_use]
    pub fn whole(mut self) -> Signature {
        self.rows = Rows::Whole;
        self
    }

    /// The JSON that the C interface carries and [`Signature::from_json`] reads.
    pub(crate) fn to_json(&self) -> String {
        let side =
            |ports: &Option<Vec<Port>>| Some(ports.as_ref()?.iter().map(Port::info).collect());
        let form = Form {
            inputs: side(&self.inputs),
            outputs: side(&self.outputs),
            rows: self.rows,
        };
        // Names, numbers and lists of them: JSON can hold all of it.
        serde_json::to_string(&form).unwrap_or_default()
    }

    /// Reads a signature, and checks it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: what is wrong with the text, or with which port.
    pub(crate) fn from_json(text: &str) -> Result<Signature> {
        let form: Form = serde_json::from_str(text)
            .map_err(|e| Error::precondition(format!("the JSON is not a signature: {e}")))?;
        let side = |ports: Option<Vec<PortInfo>>| -> Result<Option<Vec<Port>>> {
            let Some(ports) = ports else {
                return Ok(None);
            };
            ports
                .into_iter()
                .map(Port::of)
                .collect::<Result<_>>()
                .map(Some)
        };
        let signature = Signature {
            inputs: side(form.inputs)?,
            outputs: side(form.outputs)?,
            rows: form.rows,
        };
        signature.check()?;
        Ok(signature)
    }

    /// Whether a server can serve what is declared.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the port: a name given twice, or a first dimension that cannot be the row.
    pub(crate) fn check(&self) -> Result<()> {
        for (side, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            let Some(ports) = ports else {
                continue;
            };
            if ports.is_empty() {
                return Err(Error::precondition(format!(
                    "the signature has an empty list of {side}s; leave it out for a model without declared \
                     {side}s"
                )));
            }
            for (index, port) in ports.iter().enumerate() {
                port.check(self.rows).map_err(|e| {
                    e.context(format_args!("the signature's {side} {:?}", port.name))
                })?;
                if ports[..index].iter().any(|other| other.name == port.name) {
                    return Err(Error::precondition(format!(
                        "the signature has {side} {:?} twice",
                        port.name
                    )));
                }
            }
        }
        Ok(())
    }
}

fn port(name: &str, datatype: DataType, shape: &[Dim]) -> Port {
    Port {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    }
}

/// A signature as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<Vec<PortInfo>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<PortInfo>>,
    #[serde(default)]
    rows: Rows,
}

impl Port {
    /// As the wire shows it.
    pub(crate) fn info(&self) -> PortInfo {
        PortInfo {
            name: self.name.clone(),
            dtype: self.datatype.name().to_owned(),
            shape: self
                .shape
                .iter()
                .map(|dim| match dim {
                    Dim::Fixed(size) => DimInfo::Size(*size as i64),
                    Dim::Symbol(name) => DimInfo::Symbol(name.clone()),
                    Dim::Dynamic => DimInfo::Size(-1),
                    Dim::Rest => DimInfo::Symbol("...".to_owned()),
                })
                .collect(),
        }
    }

    fn of(info: PortInfo) -> Result<Port> {
        let datatype = DataType::parse(&info.dtype)
            .map_err(|e| Error::precondition(format!("port {:?}: {}", info.name, e.message())))?;
        let shape = info.shape.into_iter().map(|dim| match dim {
            DimInfo::Size(-1) => Ok(Dim::Dynamic),
            DimInfo::Size(size) => usize::try_from(size).map(Dim::Fixed).map_err(|_| {
                Error::precondition(format!(
                    "port {:?}: dimension {size}, expected a size, -1, a name or \"...\"",
                    info.name
                ))
            }),
            DimInfo::Symbol(name) => Ok(Dim::from(name.as_str())),
        });
        Ok(Port {
            shape: shape.collect::<Result<Vec<Dim>>>()?,
            datatype,
            name: info.name,
        })
    }

    fn check(&self, rows: Rows) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::precondition("it has no name"));
        }
        if self.shape.len() > MAX_RANK {
            return Err(Error::precondition(format!(
                "{} dimensions, and {MAX_RANK} is the most",
                self.shape.len()
            )));
        }
        let last = self.shape.len().saturating_sub(1);
        if self.shape.iter().take(last).any(|dim| *dim == Dim::Rest) {
            return Err(Error::precondition(
                "\"...\" stands for the last dimensions only",
            ));
        }
        if rows == Rows::Independent && matches!(self.shape.first(), None | Some(Dim::Fixed(_))) {
            return Err(Error::precondition(
                "its first dimension must take any number of rows (a name, or -1), because rows are \
                 independent",
            ));
        }
        Ok(())
    }

    /// Whether a tensor of this shape fits this port. How many rows it has is checked elsewhere.
    #[cfg(feature = "server")]
    pub(crate) fn fits(&self, shape: &[usize]) -> bool {
        let open = self.shape.last() == Some(&Dim::Rest);
        let ranks = if open {
            shape.len() + 1 >= self.shape.len()
        } else {
            shape.len() == self.shape.len()
        };
        ranks
            && self.shape.iter().zip(shape).all(|(dim, &size)| match dim {
                Dim::Fixed(expected) => *expected == size,
                Dim::Symbol(_) | Dim::Dynamic | Dim::Rest => true,
            })
    }

    /// The shape for a message: `[N, ?, 4]`.
    #[cfg(feature = "server")]
    pub(crate) fn shown_shape(&self) -> String {
        let dims = self.shape.iter().map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
            Dim::Dynamic => "?".to_owned(),
            Dim::Rest => "...".to_owned(),
        });
        format!("[{}]", dims.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_reads_back() {
        let signature = Signature::new()
            .input("text", DataType::Bytes, &["N".into()])
            .input(
                "more",
                DataType::Fp32,
                &["N".into(), "?".into(), 4.into(), "...".into()],
            )
            .output("rows", DataType::Json, &["N".into()]);
        assert_eq!(
            Signature::from_json(&signature.to_json()).unwrap(),
            signature
        );
        assert_eq!(Signature::from_json("{}").unwrap(), Signature::new());
        let whole = Signature::new().output("y", DataType::Fp32, &[]).whole();
        assert_eq!(Signature::from_json(&whole.to_json()).unwrap(), whole);
    }

    #[test]
    fn what_is_wrong_with_a_signature_is_named() {
        for (text, why) in [
            ("", "the JSON is not a signature"),
            (r#"{"input":[]}"#, "unknown field `input`"),
            (r#"{"inputs":[]}"#, "empty list of inputs"),
            (r#"{"rows":"some"}"#, "`independent` or `whole`"),
            (
                r#"{"inputs":[{"name":"x","dtype":"FLOAT","shape":[-1]}]}"#,
                "unknown datatype \"FLOAT\"",
            ),
            (
                r#"{"inputs":[{"name":"x","dtype":"FP32","shape":[-2]}]}"#,
                "dimension -2",
            ),
            (
                r#"{"inputs":[{"name":"x","dtype":"FP32","shape":[3]}]}"#,
                "any number of rows",
            ),
            (
                r#"{"inputs":[{"name":"","dtype":"FP32","shape":["N"]}]}"#,
                "no name",
            ),
            (
                r#"{"outputs":[{"name":"x","dtype":"FP32","shape":["N","...",2]}]}"#,
                "last dimensions",
            ),
        ] {
            let e = Signature::from_json(text).unwrap_err();
            assert!(e.message().contains(why), "{text}: {e}");
        }
    }
}
