//! Lines of JSON as the model's inputs.
//!
//! ```text
//! the model declares       a line is
//! nothing, or one JSON     the row itself, whatever it is
//! one input                its value for the row, or an object with the input's name as key
//! several inputs           an object with the inputs' names as keys
//! ```
//! A value is a number, a truth, a string or nested lists of them, as the input's datatype and dimensions say.

use anyhow::{Context, Result, bail, ensure};
use mdm::model::from_json;
use mdm::wire::server::{DimInfo, ModelInfo, PortInfo};
use mdm::{Batch, DataType, Tensor};
use serde_json::Value;

/// A file of JSON documents, each with the number of its line, from 1.
#[derive(Debug)]
pub struct Lines {
    pub file: String,
    pub rows: Vec<(usize, Value)>,
}

/// The shapes that a file's rows have, by input, each with the number of the line that had it first. They hold for all
/// pieces of the file.
#[derive(Debug, Default)]
pub struct Shapes(Vec<Option<(usize, Vec<usize>)>>);

/// An input's values, one a line.
type Values = Vec<(usize, Value)>;

/// How the lines make tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// A line is a row of each input.
    Rows,
    /// The only line holds all of each input, which has no rows.
    Whole,
}

impl Lines {
    /// The inputs that the model takes.
    ///
    /// # Errors
    /// The file and the line, what the model takes, and what is there.
    pub fn into_inputs(self, model: &ModelInfo, shapes: &mut Shapes) -> Result<Batch> {
        let file = self.file;
        let tensors = match &model.inputs[..] {
            [] => documents("", self.rows),
            [port] if is_json(port) => documents(&port.name, self.rows),
            ports => by_input(self.rows, ports, model, shapes),
        };
        Ok(Batch {
            tensors: tensors.context(file)?,
        })
    }
}

fn documents(name: &str, rows: Values) -> Result<Vec<Tensor>> {
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(vec![Tensor::from_json_rows(name, &rows)?])
}

fn by_input(
    rows: Values,
    ports: &[PortInfo],
    model: &ModelInfo,
    Shapes(shapes): &mut Shapes,
) -> Result<Vec<Tensor>> {
    shapes.resize(ports.len(), None);
    let mut columns: Vec<Values> = ports.iter().map(|_| Vec::new()).collect();
    for (line, row) in rows {
        let values = split(row, ports).with_context(|| format!("line {line}"))?;
        for (column, value) in columns.iter_mut().zip(values) {
            column.push((line, value));
        }
    }
    let layout = layout(&columns, ports, model);
    if let (Layout::Whole, Some((line, _))) = (layout, columns[0].get(1)) {
        bail!(
            "line {line}: model {:?} takes its inputs whole, and the line before it is all of them; give one line",
            model.name
        );
    }
    let columns = columns.into_iter().zip(ports).zip(shapes);
    columns
        .map(|((column, port), shape)| tensor(column, port, layout, shape))
        .collect()
}

/// What a line has for each input.
fn split(row: Value, ports: &[PortInfo]) -> Result<Vec<Value>> {
    let mut fields = match row {
        Value::Object(fields) => fields,
        value if ports.len() == 1 => return Ok(vec![value]),
        other => bail!(
            "expected an object with the model's inputs {}, got {}",
            names(ports),
            kind_of(&other)
        ),
    };
    let values = ports.iter().map(|port| {
        fields
            .remove(&port.name)
            .with_context(|| format!("input {:?} is missing; the model takes {port}", port.name))
    });
    let values = values.collect::<Result<Vec<Value>>>()?;
    match fields.keys().next() {
        Some(key) => bail!(
            "{key:?} is no input of the model, which takes {}",
            names(ports)
        ),
        None => Ok(values),
    }
}

/// A model that is served whole may take rows all the same, which belong together. Then a line has one dimension less
/// than the input.
fn layout(columns: &[Values], ports: &[PortInfo], model: &ModelInfo) -> Layout {
    let mut known = columns.iter().zip(ports).filter(|(_, port)| {
        let open = matches!(port.shape.last(), Some(DimInfo::Symbol(s)) if s == "...");
        !is_json(port) && !open
    });
    let is_all = |(column, port): (&Values, &PortInfo)| {
        (column.first()).is_some_and(|(_, value)| depth(value) == port.shape.len())
    };
    match known.next() {
        Some(first) if model.kind == "whole" && is_all(first) && known.all(is_all) => Layout::Whole,
        _ => Layout::Rows,
    }
}

fn tensor(
    column: Values,
    port: &PortInfo,
    layout: Layout,
    of_one: &mut Option<(usize, Vec<usize>)>,
) -> Result<Tensor> {
    let datatype = DataType::parse(&port.dtype)?;
    let dims = match layout {
        Layout::Rows => port.shape.get(1..).unwrap_or_default(),
        Layout::Whole => &port.shape,
    };
    let open = matches!(dims.last(), Some(DimInfo::Symbol(symbol)) if symbol == "...");
    let rank = match datatype {
        DataType::Json => Some(0),
        _ => (!open).then_some(dims.len()),
    };
    let place = |line: usize| format!("line {line}: input {:?}", port.name);
    // The shape of the first value is that of all; a wrong line is looked for only where there is one.
    for (line, value) in &column {
        let shape = shape_of(value, rank);
        match of_one {
            Some((_, first)) if *first == shape => continue,
            Some((other, first)) => bail!(
                "{} has shape {shape:?}, and {first:?} in line {other}: the rows of a file have one shape",
                place(*line)
            ),
            None => {}
        }
        ensure!(
            datatype == DataType::Json || open || fits(&shape, dims),
            "{}: expected {}, which {port} has for {}, got {}",
            place(*line),
            shown(dims),
            match layout {
                Layout::Rows => "a row",
                Layout::Whole => "the whole",
            },
            match &shape[..] {
                [] => kind_of(value).to_owned(),
                shape => format!("lists of shape {shape:?}"),
            }
        );
        *of_one = Some((*line, shape));
    }
    let lines: Vec<usize> = column.iter().map(|(line, _)| *line).collect();
    let mut values: Vec<Value> = column.into_iter().map(|(_, value)| value).collect();
    let made = match layout {
        Layout::Whole => {
            let value = values.pop().unwrap_or_default();
            return from_json(&port.name, datatype, rank, &value).with_context(|| place(lines[0]));
        }
        Layout::Rows => {
            let all = Value::Array(values);
            let made = from_json(&port.name, datatype, rank.map(|rank| rank + 1), &all);
            let Value::Array(back) = all else {
                bail!("a list was made a line above");
            };
            values = back;
            made
        }
    };
    match made {
        Ok(tensor) => Ok(tensor),
        Err(error) => {
            for (line, value) in lines.iter().zip(&values) {
                from_json(&port.name, datatype, rank, value).with_context(|| place(*line))?;
            }
            Err(error.into())
        }
    }
}

fn fits(shape: &[usize], dims: &[DimInfo]) -> bool {
    let same = |(size, dim): (&usize, &DimInfo)| match dim {
        DimInfo::Size(-1) | DimInfo::Symbol(_) => true,
        DimInfo::Size(expected) => usize::try_from(*expected) == Ok(*size),
    };
    shape.len() == dims.len() && shape.iter().zip(dims).all(same)
}

/// The lengths of nested lists, as their first elements have them.
fn shape_of(value: &Value, most: Option<usize>) -> Vec<usize> {
    let mut shape = Vec::new();
    let mut at = Some(value);
    while let Some(Value::Array(items)) = at
        && most.is_none_or(|most| shape.len() < most)
    {
        shape.push(items.len());
        at = items.first();
    }
    shape
}

fn depth(value: &Value) -> usize {
    shape_of(value, None).len()
}

fn is_json(port: &PortInfo) -> bool {
    port.dtype == DataType::Json.name()
}

/// `"a" and "b"`, for people.
fn names(ports: &[PortInfo]) -> String {
    let names: Vec<String> = ports.iter().map(|p| format!("{:?}", p.name)).collect();
    names.join(" and ")
}

/// What a value with these dimensions is called.
fn shown(dims: &[DimInfo]) -> String {
    if dims.is_empty() {
        return "one value".to_owned();
    }
    let dims = dims.iter().map(|dim| match dim {
        DimInfo::Size(-1) => "?".to_owned(),
        DimInfo::Size(size) => size.to_string(),
        DimInfo::Symbol(name) => name.clone(),
    });
    format!("lists of shape [{}]", dims.collect::<Vec<_>>().join(", "))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn port(name: &str, dtype: &str, shape: &[i64]) -> PortInfo {
        let mut shape: Vec<DimInfo> = shape.iter().map(|&d| DimInfo::Size(d)).collect();
        if let Some(first) = shape.first_mut() {
            *first = DimInfo::Symbol("N".to_owned());
        }
        PortInfo {
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            shape,
        }
    }

    fn inputs(kind: &str, ports: &[PortInfo], text: &str) -> Result<Vec<Tensor>, String> {
        let rows = text.lines().zip(1..);
        let lines = Lines {
            file: "f.jsonl".to_owned(),
            rows: rows
                .map(|(row, line)| (line, serde_json::from_str(row).unwrap()))
                .collect(),
        };
        let model = ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind: kind.to_owned(),
            inputs: ports.to_vec(),
            outputs: Vec::new(),
        };
        match lines.into_inputs(&model, &mut Shapes::default()) {
            Ok(batch) => Ok(batch.tensors),
            // The commands leave the code out, too.
            Err(e) => Err(format!("{e:#}").replace("INVALID_ARGUMENT: ", "")),
        }
    }

    #[test]
    fn lines_become_what_the_model_declares() {
        let x = port("x", "FP32", &[-1, 2]);
        let expected = [Tensor::from_slice("x", vec![2, 2], &[1f32, 2., 3., 4.5]).unwrap()];
        for text in ["[1,2]\n[3,4.5]", "{\"x\":[1,2]}\n[3,4.5]"] {
            assert_eq!(inputs("batched", from_ref(&x), text).unwrap(), expected);
        }
        let s = port("s", "BYTES", &[-1]);
        let made = inputs(
            "batched",
            &[x.clone(), s.clone()],
            "{\"s\":\"ü\",\"x\":[1,2]}",
        )
        .unwrap();
        assert_eq!((made[0].name(), made[1].name()), ("x", "s"));
        assert_eq!(made[1].strings().unwrap(), ["ü"]);
        let made = inputs("batched", &[s], "\"a\"\n\"b\"").unwrap();
        assert_eq!(made[0].strings().unwrap(), ["a", "b"]);
    }

    #[test]
    fn json_stays_json() {
        let rows = "{\"x\":[1]}\nnull";
        for ports in [&[][..], &[port("x", "JSON", &[-1])]] {
            let made = inputs("batched", ports, rows).unwrap();
            assert_eq!(made.len(), 1);
            let back = made[0].json_rows::<Value>().unwrap();
            assert_eq!(back, [serde_json::json!({"x": [1]}), Value::Null]);
        }
        let ports = [port("j", "JSON", &[-1]), port("x", "INT64", &[-1])];
        let made = inputs("batched", &ports, "{\"j\":[[1],{}],\"x\":3}").unwrap();
        assert_eq!((made[0].shape(), made[1].shape()), (&[1][..], &[1][..]));
    }

    #[test]
    fn a_model_that_is_served_whole_takes_all_or_rows() {
        let ports = [port("a", "INT64", &[2, 2]), port("k", "INT64", &[])];
        let made = inputs("whole", &ports, "{\"a\":[[1,2],[3,4]],\"k\":7}").unwrap();
        assert_eq!((made[0].shape(), made[1].shape()), (&[2, 2][..], &[][..]));
        let twice = "{\"a\":[[1,2],[3,4]],\"k\":7}\n".repeat(2);
        let e = inputs("whole", &ports, &twice).unwrap_err();
        assert!(
            e.contains("f.jsonl: line 2") && e.contains("one line"),
            "{e}"
        );
        let made = inputs("whole", &ports[..1], "[1,2]\n[3,4]\n[5,6]").unwrap();
        assert_eq!(made[0].shape(), [3, 2]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let x = port("x", "INT64", &[-1, 2]);
        let s = port("s", "BYTES", &[-1]);
        for (ports, text, words) in [
            (
                from_ref(&x),
                "[1,2]\n[1,2,3]",
                "line 2: input \"x\" has shape [3], and [2] in",
            ),
            (
                from_ref(&x),
                "[1]",
                "line 1: input \"x\": expected lists of shape [2]",
            ),
            (
                from_ref(&x),
                "[1,2]\n[3,1.5]",
                "line 2: input \"x\": expected INT64, got 1.5",
            ),
            (
                from_ref(&x),
                "[1,\"a\"]",
                "line 1: input \"x\": expected INT64, got \"a\"",
            ),
            (
                from_ref(&x),
                "{\"y\":[1,2]}",
                "line 1: input \"x\" is missing",
            ),
            (
                from_ref(&x),
                "{\"x\":[1,2],\"y\":1}",
                "line 1: \"y\" is no input",
            ),
            (
                from_ref(&s),
                "\"a\"\n1",
                "line 2: input \"s\": expected BYTES, got 1",
            ),
            (
                &[x.clone(), s.clone()],
                "[1,2]",
                "line 1: expected an object with the model's inputs \"x\" and \"s\", got a list",
            ),
        ] {
            let e = inputs("batched", ports, text).unwrap_err();
            assert!(
                e.starts_with("f.jsonl: ") && e.contains(words),
                "{text}: {e}"
            );
        }
    }
}
