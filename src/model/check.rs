//! Checks a request's inputs against a model's description, in the ventilator and for every request.

use super::{BatchKind, Description, Dim, Empty, Port, Takes};
use crate::error::{Error, Result};
use crate::tensor::{Batch, Tensor};

/// Most rows of a request whose rows have no bytes: it costs its sender nothing, and the server a run for each chunk.
const MAX_EMPTY_ROWS: usize = 65_536;

/// Inputs that fit.
#[derive(Debug, PartialEq)]
pub(crate) struct Checked {
    /// In the description's order, under its names.
    pub(crate) inputs: Batch,
    /// The rows; 1 if the model has no batch dimension.
    pub(crate) rows: usize,
    /// The sizes of all trailing dimensions that are not fixed: requests that agree in them may run together.
    pub(crate) dims: Vec<usize>,
}

/// Checks inputs and puts them in the model's order. Names are optional where there is one input.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the input, what was expected and what came.
pub(crate) fn check_inputs(description: &Description, inputs: Batch) -> Result<Checked> {
    fitted(description, inputs).map_err(|e| of_version(description, e))
}

/// Whoever asks for a model may not know which of its versions does not take these inputs.
fn of_version(description: &Description, error: Error) -> Error {
    match description.has_versions {
        true => error.context(format_args!("model {}", description.shown())),
        false => error,
    }
}

fn fitted(description: &Description, inputs: Batch) -> Result<Checked> {
    let batched = description.kind != BatchKind::Whole;
    let mut dims = Vec::new();
    let inputs = match description.takes {
        Takes::Declared => ordered(description, inputs)?,
        Takes::Anything => {
            undeclared_dims(&inputs, &mut dims);
            inputs
        }
    };
    for (index, (port, tensor)) in description.inputs.iter().zip(&inputs.tensors).enumerate() {
        if tensor.datatype() != port.datatype {
            return Err(Error::invalid(format!(
                "input {:?}: expected {}, got {}",
                port.name,
                port.datatype,
                tensor.datatype()
            )));
        }
        let any_rank = port.shape.last() == Some(&Dim::Rest);
        let (rank, expected) = (tensor.shape().len(), port.shape.len());
        if (rank != expected && !any_rank) || (any_rank && rank + 1 < expected) {
            return Err(mismatch(description, port, tensor));
        }
        for (axis, (dim, &size)) in port.shape.iter().zip(tensor.shape()).enumerate() {
            // Rows are counted below; a fixed batch takes any number of them.
            if axis == 0 && batched {
                continue;
            }
            match dim {
                Dim::Fixed(expected) if *expected != size => {
                    return Err(mismatch(description, port, tensor));
                }
                Dim::Symbol(symbol) => {
                    check_symbol(description, &inputs, symbol, (index, axis))?;
                    dims.push(size);
                }
                Dim::Dynamic => dims.push(size),
                Dim::Fixed(_) | Dim::Rest => {}
            }
        }
        if any_rank {
            // The rank tells [2, 3] of one input from [2] and [3] of two.
            dims.push(rank);
            dims.extend(tensor.shape().iter().skip((expected - 1).max(1)));
        }
    }
    let rows = if batched { inputs.rows()? } else { 1 };
    if rows == 0 {
        return Err(Error::invalid(format!(
            "model {:?}: the request has no rows, expected at least one",
            description.name
        )));
    }
    if rows > MAX_EMPTY_ROWS && inputs.payload_bytes() == 0 {
        return Err(Error::invalid(format!(
            "model {:?}: {rows} rows without a byte in them; {MAX_EMPTY_ROWS} is the most",
            description.name
        )));
    }
    if description.empty == Empty::Refused {
        check_not_empty(description, &inputs)?;
    }
    if !batched {
        dims.clear();
    }
    Ok(Checked { inputs, rows, dims })
}

/// A model of a fixed batch gets its last run filled up with copies of the last row: those are the server's memory too.
///
/// # Errors
/// `INVALID_ARGUMENT` if a run of the last row's size would have more bytes than a request may.
pub(crate) fn check_padding(
    description: &Description,
    checked: &Checked,
    max_bytes: u64,
) -> Result<()> {
    let BatchKind::Fixed(size) = description.kind else {
        return Ok(());
    };
    let Checked { inputs, rows, .. } = checked;
    // The common case, without a look at the row.
    if rows % size == 0 || inputs.payload_bytes().saturating_mul(size) as u64 <= max_bytes {
        return Ok(());
    }
    let last = |tensor: &Tensor| tensor.slice_rows(rows - 1, 1).payload_bytes();
    let row_bytes: usize = inputs.tensors.iter().map(last).sum();
    if row_bytes.saturating_mul(size) as u64 <= max_bytes {
        return Ok(());
    }
    let error = Error::invalid(format!(
        "model {:?} runs {size} rows at a time, and the last run is filled up with copies of its last row, which has \
         {row_bytes} bytes: more than the {max_bytes} that this server takes (--max-request-bytes); send a multiple of \
         {size} rows, or smaller ones",
        description.name
    ));
    Err(of_version(description, error))
}

/// # Errors
/// `INVALID_ARGUMENT`, naming the input that has a dimension of size 0.
fn check_not_empty(description: &Description, inputs: &Batch) -> Result<()> {
    let mut tensors = inputs.tensors.iter();
    match tensors.find(|tensor| tensor.shape().contains(&0)) {
        None => Ok(()),
        Some(tensor) => Err(Error::invalid(format!(
            "input {:?} has shape {:?}: model {:?} has a recurrent layer, which takes no dimension of size 0",
            tensor.name(),
            tensor.shape(),
            description.name
        ))),
    }
}

/// Inputs that nothing was declared of may run together if they are alike in everything but their rows.
fn undeclared_dims(inputs: &Batch, dims: &mut Vec<usize>) {
    for tensor in &inputs.tensors {
        let name = tensor.name().as_bytes();
        dims.push(name.len());
        dims.extend(name.iter().map(|&byte| usize::from(byte)));
        dims.push(tensor.datatype() as usize);
        dims.push(tensor.shape().len());
        dims.extend(tensor.shape().iter().skip(1));
    }
}

/// The inputs in the description's order. The common cases, in order already or one input, keep the vector.
fn ordered(description: &Description, mut inputs: Batch) -> Result<Batch> {
    let ports = &description.inputs;
    let tensors = &mut inputs.tensors;
    if let ([port], [tensor]) = (ports.as_slice(), tensors.as_mut_slice())
        && tensor.name().is_empty()
    {
        *tensor = tensor.clone().renamed(port.name.as_str());
        return Ok(inputs);
    }
    for (index, port) in ports.iter().enumerate() {
        if tensors
            .get(index)
            .is_some_and(|tensor| tensor.name() == port.name)
        {
            continue;
        }
        let found = tensors
            .iter()
            .skip(index)
            .position(|tensor| tensor.name() == port.name);
        match found {
            Some(further) => tensors.swap(index, index + further),
            None => return Err(missing(description, &inputs, port)),
        }
    }
    if let Some(extra) = tensors.get(ports.len()) {
        let twice = ports.iter().any(|port| port.name == extra.name());
        return Err(Error::invalid(if twice {
            format!("input {:?} is given twice", extra.name())
        } else {
            format!(
                "input {:?} is unknown: model {:?} takes {}",
                extra.name(),
                description.name,
                names(ports.iter().map(|port| port.name.as_str()))
            )
        }));
    }
    Ok(inputs)
}

/// The same symbol stands for the same size wherever it is: compares with the places before this one.
fn check_symbol(
    description: &Description,
    inputs: &Batch,
    symbol: &str,
    (index, axis): (usize, usize),
) -> Result<()> {
    let batched = description.kind != BatchKind::Whole;
    let size = |index: usize, axis: usize| inputs.tensors[index].shape().get(axis).copied();
    for (earlier, port) in description.inputs.iter().enumerate().take(index + 1) {
        for (other, dim) in port.shape.iter().enumerate() {
            if (earlier, other) == (index, axis) {
                return Ok(());
            }
            // The row of a batched model may well carry the same symbol; that is a check of its own.
            if (other == 0 && batched) || !matches!(dim, Dim::Symbol(name) if name == symbol) {
                continue;
            }
            if size(earlier, other) != size(index, axis) {
                let shape = |index: usize| inputs.tensors[index].shape();
                return Err(Error::invalid(format!(
                    "input {:?} of shape {:?} and input {:?} of shape {:?}: dimensions {other} and {axis} are both \
                     {symbol} and must be equal",
                    port.name,
                    shape(earlier),
                    description.inputs[index].name,
                    shape(index)
                )));
            }
        }
    }
    Ok(())
}

fn missing(description: &Description, inputs: &Batch, port: &Port) -> Error {
    Error::invalid(format!(
        "input {:?} is missing: model {:?} takes {}, got {}",
        port.name,
        description.name,
        names(description.inputs.iter().map(|port| port.name.as_str())),
        names(inputs.tensors.iter().map(Tensor::name))
    ))
}

fn mismatch(description: &Description, port: &Port, tensor: &Tensor) -> Error {
    let batched = description.kind != BatchKind::Whole;
    let dims: Vec<String> = port
        .shape
        .iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            Dim::Fixed(_) if axis == 0 && batched => "rows".to_owned(),
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
            Dim::Dynamic => "?".to_owned(),
            Dim::Rest => "...".to_owned(),
        })
        .collect();
    let hint = match description.unproven_rows {
        Some(rows) if tensor.shape().first() != Some(&rows) => format!(
            "; nothing says that its first dimension is rows, so it gets exactly {rows}: where no row depends on \
             another, \"options\": {{\"batch\": {rows}}} in its proxy or stage, or in a plugin's session, has it take \
             any number"
        ),
        _ => String::new(),
    };
    Error::invalid(format!(
        "input {:?}: expected shape [{}], got {:?}{hint}",
        port.name,
        dims.join(", "),
        tensor.shape()
    ))
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    if quoted.is_empty() {
        "none".to_owned()
    } else {
        quoted.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ModelId;
    use crate::model::Takes;
    use crate::tensor::DataType;

    fn port(name: &str, datatype: DataType, shape: &[Dim]) -> Port {
        Port {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        }
    }

    fn symbol(name: &str) -> Dim {
        Dim::Symbol(name.to_owned())
    }

    fn model(kind: BatchKind, inputs: Vec<Port>) -> Description {
        Description {
            id: ModelId(1),
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind,
            takes: Takes::Declared,
            inputs,
            outputs: vec![],
            legs: [crate::message::Role::Main].into(),
            express: false,
            empty: Empty::Allowed,
            has_versions: false,
            unproven_rows: None,
        }
    }

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        Tensor::from_vec(name, shape.to_vec(), vec![0f32; count]).unwrap()
    }

    fn batch(tensors: &[Tensor]) -> Batch {
        Batch {
            tensors: tensors.to_vec(),
        }
    }

    fn two() -> Description {
        model(
            BatchKind::Batched,
            vec![
                port(
                    "x",
                    DataType::Fp32,
                    &[symbol("N"), symbol("S"), Dim::Fixed(2)],
                ),
                port("mask", DataType::Fp32, &[symbol("N"), symbol("S")]),
            ],
        )
    }

    #[test]
    fn inputs_come_in_any_order_and_leave_in_the_models() {
        let (x, mask) = (tensor("x", &[3, 5, 2]), tensor("mask", &[3, 5]));
        for given in [
            batch(&[x.clone(), mask.clone()]),
            batch(&[mask.clone(), x.clone()]),
        ] {
            let checked = check_inputs(&two(), given).unwrap();
            assert_eq!(checked.inputs, batch(&[x.clone(), mask.clone()]));
            assert_eq!((checked.rows, checked.dims), (3, vec![5, 5]));
        }
    }

    #[test]
    fn undeclared_inputs_run_together_only_if_they_are_alike() {
        let open = Description {
            takes: Takes::Anything,
            ..model(BatchKind::Batched, vec![])
        };
        let dims = |tensors: &[Tensor]| check_inputs(&open, batch(tensors)).unwrap().dims;
        let a = dims(&[tensor("a", &[3, 2])]);
        assert_eq!(a, dims(&[tensor("a", &[7, 2])]));
        let integers = Tensor::from_vec("a", vec![1, 2], vec![0i32; 2]).unwrap();
        for other in [
            &[tensor("b", &[3, 2])][..],
            &[tensor("a", &[3, 3])],
            &[tensor("a", &[3, 2, 1])],
            &[integers],
            &[tensor("a", &[3, 2]), tensor("b", &[3])],
        ] {
            assert_ne!(a, dims(other), "{other:?}");
        }
        let e = check_inputs(&open, batch(&[tensor("a", &[3]), tensor("b", &[2])]));
        assert!(e.unwrap_err().message().contains("3 rows"));
        assert!(check_inputs(&open, batch(&[])).is_err());
        let whole = Description {
            kind: BatchKind::Whole,
            ..open
        };
        assert!(check_inputs(&whole, batch(&[tensor("a", &[3]), tensor("b", &[2])])).is_ok());
    }

    #[test]
    fn one_input_needs_no_name() {
        let one = model(
            BatchKind::Batched,
            vec![port("x", DataType::Fp32, &[symbol("N"), Dim::Fixed(2)])],
        );
        let checked = check_inputs(&one, batch(&[tensor("", &[4, 2])])).unwrap();
        assert_eq!(checked.inputs.tensors[0].name(), "x");
        assert_eq!((checked.rows, checked.dims), (4, vec![]));
    }

    #[test]
    fn what_does_not_fit_names_the_input_and_both_sides() {
        let (x, mask) = (tensor("x", &[3, 5, 2]), tensor("mask", &[3, 5]));
        let integers = Tensor::from_vec("x", vec![3, 5, 2], vec![0i64; 30]).unwrap();
        let table: [(&[Tensor], &str); 10] = [
            (
                std::slice::from_ref(&x),
                "input \"mask\" is missing: model \"m\" takes \"x\", \"mask\", got \"x\"",
            ),
            (
                &[],
                "input \"x\" is missing: model \"m\" takes \"x\", \"mask\", got none",
            ),
            (
                &[x.clone(), tensor("musk", &[3, 5])],
                "input \"mask\" is missing",
            ),
            (
                &[x.clone(), mask.clone(), tensor("z", &[3])],
                "input \"z\" is unknown",
            ),
            (
                &[x.clone(), mask.clone(), mask.clone()],
                "input \"mask\" is given twice",
            ),
            (
                &[integers, mask.clone()],
                "input \"x\": expected FP32, got INT64",
            ),
            (
                &[tensor("x", &[3, 5]), mask.clone()],
                "input \"x\": expected shape [N, S, 2], got [3, 5]",
            ),
            (
                &[tensor("x", &[3, 5, 4]), mask.clone()],
                "input \"x\": expected shape [N, S, 2], got [3, 5, 4]",
            ),
            (
                &[x.clone(), tensor("mask", &[3, 6])],
                "both S and must be equal",
            ),
            (
                &[x.clone(), tensor("mask", &[2, 5])],
                "\"x\" has 3 rows, \"mask\" has 2",
            ),
        ];
        for (given, why) in table {
            let e = check_inputs(&two(), batch(given)).unwrap_err();
            assert!(e.message().contains(why), "{e}");
        }
        let e = check_inputs(
            &two(),
            batch(&[tensor("x", &[0, 5, 2]), tensor("mask", &[0, 5])]),
        );
        assert!(e.unwrap_err().message().contains("no rows"));
    }

    #[test]
    fn a_fixed_batch_takes_any_number_of_rows() {
        let fixed = model(
            BatchKind::Fixed(4),
            vec![port("x", DataType::Fp32, &[Dim::Fixed(4), Dim::Fixed(2)])],
        );
        let checked = check_inputs(&fixed, batch(&[tensor("x", &[7, 2])])).unwrap();
        assert_eq!(checked.rows, 7);
        let e = check_inputs(&fixed, batch(&[tensor("x", &[7, 3])])).unwrap_err();
        assert!(e.message().contains("[rows, 2], got [7, 3]"), "{e}");
    }

    #[test]
    fn what_fills_up_a_fixed_batch_is_bounded() {
        let fixed = model(
            BatchKind::Fixed(16),
            vec![port("x", DataType::Fp32, &[Dim::Fixed(16), symbol("L")])],
        );
        let check = |rows: usize, width: usize| {
            let given = batch(&[tensor("x", &[rows, width])]);
            check_padding(&fixed, &check_inputs(&fixed, given).unwrap(), 64_000)
        };
        check(1, 1000).unwrap();
        check(16, 2000).unwrap();
        for rows in [1, 17] {
            let e = check(rows, 1001).unwrap_err();
            assert_eq!(e.code(), crate::ErrorCode::InvalidArgument);
            assert!(e.message().contains("4004 bytes"), "{e}");
            assert!(e.message().contains("64000"), "{e}");
        }
    }

    #[test]
    fn a_recurrent_model_takes_no_empty_dimension() {
        let shape = [symbol("L"), symbol("N"), Dim::Fixed(2)];
        let whole = Description {
            empty: Empty::Refused,
            ..model(BatchKind::Whole, vec![port("x", DataType::Fp32, &shape)])
        };
        for shape in [[3, 0, 2], [0, 3, 2]] {
            let e = check_inputs(&whole, batch(&[tensor("x", &shape)])).unwrap_err();
            assert_eq!(e.code(), crate::ErrorCode::InvalidArgument);
            assert!(
                e.message().contains(&format!("\"x\" has shape {shape:?}")),
                "{e}"
            );
        }
        check_inputs(&whole, batch(&[tensor("x", &[1, 1, 2])])).unwrap();
    }

    #[test]
    fn a_whole_model_checks_every_dimension_and_may_be_empty() {
        let whole = model(
            BatchKind::Whole,
            vec![
                port("a", DataType::Fp32, &[Dim::Fixed(3), symbol("K")]),
                port("b", DataType::Fp32, &[symbol("K"), Dim::Rest]),
                port("s", DataType::Fp32, &[]),
            ],
        );
        let given =
            |a: &[usize], b: &[usize]| batch(&[tensor("a", a), tensor("b", b), tensor("s", &[])]);
        for (a, b) in [
            ([3, 4], vec![4, 9, 9]),
            ([3, 0], vec![0]),
            ([3, 2], vec![2]),
        ] {
            let checked = check_inputs(&whole, given(&a, &b)).unwrap();
            assert_eq!((checked.rows, checked.dims.len()), (1, 0));
        }
        for (a, b) in [([2, 4], vec![4]), ([3, 4], vec![5]), ([3, 4], vec![])] {
            check_inputs(&whole, given(&a, &b)).unwrap_err();
        }
    }
}
