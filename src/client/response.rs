//! A response: gives a result's rows as tensors, arrays, strings or records.

use ndarray::{Array1, Array2, ArrayD, ArrayViewD, CowArray, IxDyn};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::message::{FailedRows, Stats};
use crate::tensor::{Batch, Element, Tensor, with_dimensions};
use crate::wire::server::{Outputs, ServerMessage};

/// The answer to a request: every row, in the order in which they were sent.
///
/// The rows come in the parts that the workers made. They are joined when they are asked for, once, into what was
/// asked for. Where an output's name is asked for, the empty name stands for the only output.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    outputs: Outputs,
    stats: Stats,
}

impl Response {
    /// A response of parts in row order, such as a stream's.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the parts do not have the same outputs.
    pub fn from_parts(parts: Vec<Batch>, stats: Stats) -> Result<Response> {
        let same = |a: &Batch, b: &Batch| {
            a.tensors.len() == b.tensors.len()
                && (a.tensors.iter().zip(&b.tensors)).all(|(a, b)| a.name() == b.name())
        };
        if let Some(at) = parts.iter().position(|part| !same(part, &parts[0])) {
            return Err(Error::invalid(format!(
                "part {at} has other outputs than part 0"
            )));
        }
        let outputs = Outputs {
            parts,
            batched: true,
            failed: Vec::new(),
        };
        Ok(Response { outputs, stats })
    }

    /// A response of all parts of a stream, in whatever order they came. Parts of which no row has a result get blank rows
    /// like those of the others.
    ///
    /// # Errors
    /// As [`Response::from_parts`]; `INVALID_ARGUMENT` if a part is missing; `RESOURCE_EXHAUSTED` if blank rows do not fit
    /// into memory.
    pub fn from_stream(parts: Vec<Part>, stats: Stats) -> Result<Response> {
        let mut parts = parts;
        parts.sort_by_key(|part| part.offset);
        let like = parts.iter().find(|part| !part.outputs.tensors.is_empty());
        let like = like.map(|part| part.outputs.clone()).unwrap_or_default();
        let (mut next, mut failed) = (0, Vec::new());
        let mut batches = Vec::with_capacity(parts.len());
        for part in parts {
            if part.offset != next {
                return Err(Error::invalid(format!(
                    "the part of row {next} is missing, the next begins at row {}",
                    part.offset
                )));
            }
            let rows = part.rows();
            next = u64::saturating_add(next, rows);
            batches.push(match part.outputs.tensors.is_empty() {
                true => like.blank_rows(usize::try_from(rows).unwrap_or(usize::MAX))?,
                false => part.outputs,
            });
            failed.extend(part.failed);
        }
        let mut response = Response::from_parts(batches, stats)?;
        response.outputs.failed = failed;
        Ok(response)
    }

    /// Takes a response out of a final answer.
    pub(super) fn from_message(message: ServerMessage) -> Result<Response> {
        match message {
            ServerMessage::Result(outputs, stats) => Ok(Response { outputs, stats }),
            ServerMessage::Error(e) => Err(e),
            _ => Err(Error::internal(
                "the server answered an infer with something that is no result",
            )),
        }
    }

    /// The outputs' names, in the model's order.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        let first = self.outputs.parts.first();
        first.into_iter().flat_map(|p| &p.tensors).map(Tensor::name)
    }

    /// The number of rows; `None` for a model without a batch dimension.
    pub fn rows(&self) -> Option<usize> {
        if !self.outputs.batched {
            return None;
        }
        Some(self.outputs.parts.iter().filter_map(Batch::row_count).sum())
    }

    /// The parts as they came, in row order. One part for a model without a batch dimension.
    pub fn parts(&self) -> &[Batch] {
        &self.outputs.parts
    }

    /// How long it took, and in how many chunks.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The rows that have no result, in row order, if the call said
    /// [`report_bad_rows`](super::Call::report_bad_rows). They are counted in the request, from 0; in the outputs they
    /// are zeros, empty strings or JSON nulls.
    pub fn failed(&self) -> &[FailedRows] {
        &self.outputs.failed
    }

    /// One output's rows as a tensor. Nothing is copied if they came in one part.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a name that is none of [`Response::outputs`], or parts that cannot be joined.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let pieces: Vec<Tensor> = self.pieces(name)?.cloned().collect();
        Tensor::concat(&pieces)
    }

    /// The only output's rows as a tensor.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there are more outputs, naming them.
    pub fn only(&self) -> Result<Tensor> {
        self.tensor("")
    }

    /// One output's rows as an array of as many dimensions as it has, copied once.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown name, or an output whose datatype is not that of `T`.
    pub fn array<T: Element>(&self, name: &str) -> Result<ArrayD<T>> {
        let pieces: Vec<&Tensor> = self.pieces(name)?.collect();
        let mut shape = pieces[0].shape().to_vec();
        if let [first, rest @ ..] = &mut shape[..] {
            *first = 0;
            for piece in &pieces {
                match piece.shape() {
                    [rows, of_row @ ..] if of_row == rest => *first += rows,
                    other => {
                        return Err(Error::invalid(format!(
                            "output {name:?}: its parts differ in shape: {:?} and {other:?}",
                            pieces[0].shape()
                        )));
                    }
                }
            }
        }
        let mut elements: Vec<T> = Vec::with_capacity(pieces.iter().map(|p| p.elements()).sum());
        for piece in pieces {
            match piece.as_slice::<T>() {
                Some(slice) => elements.extend_from_slice(slice),
                None => elements.extend(piece.to_vec::<T>()?),
            }
        }
        ArrayD::from_shape_vec(IxDyn(&shape), elements)
            .map_err(|e| Error::internal(format!("output {name:?}: no array: {e}")))
    }

    /// The rows of an output of one dimension, such as a label each, copied once.
    ///
    /// # Errors
    /// As [`Response::array`], and `INVALID_ARGUMENT` if the output has not one dimension.
    pub fn array1<T: Element>(&self, name: &str) -> Result<Array1<T>> {
        with_dimensions(self.array(name)?, format_args!("output {name:?}"))
    }

    /// The rows of an output of two dimensions, such as a score for each class, copied once.
    ///
    /// # Errors
    /// As [`Response::array`], and `INVALID_ARGUMENT` if the output has not two dimensions.
    pub fn array2<T: Element>(&self, name: &str) -> Result<Array2<T>> {
        with_dimensions(self.array(name)?, format_args!("output {name:?}"))
    }

    /// One output's rows as an array that borrows them where they are in one piece, and is a copy where not.
    ///
    /// # Errors
    /// As [`Response::array`].
    pub fn view<T: Element>(&self, name: &str) -> Result<CowArray<'_, T, IxDyn>> {
        let mut pieces = self.pieces(name)?;
        if let (Some(piece), None) = (pieces.next(), pieces.next())
            && let Some(slice) = piece.as_slice::<T>()
        {
            return ArrayViewD::from_shape(IxDyn(piece.shape()), slice)
                .map(CowArray::from)
                .map_err(|e| Error::internal(format!("output {name:?}: no array: {e}")));
        }
        self.array(name).map(CowArray::from)
    }

    /// The rows of a JSON output.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown name, an output of another datatype, or the first row that is not a `T`.
    pub fn json_rows<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        for piece in self.pieces(name)? {
            rows.extend(piece.json_rows()?);
        }
        Ok(rows)
    }

    /// The elements of a BYTES output as text.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown name, an output of another datatype, or the first element that is no UTF-8.
    pub fn strings(&self, name: &str) -> Result<Vec<&str>> {
        let mut strings = Vec::new();
        for piece in self.pieces(name)? {
            strings.extend(piece.strings()?);
        }
        Ok(strings)
    }

    /// The parts of one output; at least one.
    fn pieces(&self, name: &str) -> Result<impl Iterator<Item = &Tensor> + use<'_>> {
        let names: Vec<&str> = self.outputs().collect();
        let index = match (name, names.len()) {
            ("", 1) => 0,
            _ => names.iter().position(|n| *n == name).ok_or_else(|| {
                Error::invalid(match (name, names.len()) {
                    (_, 0) => "the answer has no outputs".to_owned(),
                    ("", n) => format!("the answer has {n} outputs: ask for one of {names:?}"),
                    _ => format!("the answer has no output {name:?}; it has {names:?}"),
                })
            })?,
        };
        Ok((self.outputs.parts.iter()).filter_map(move |part| part.tensors.get(index)))
    }
}

/// Some of a request's rows, as soon as they are finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The first of these rows, counted in the request.
    pub offset: u64,
    /// The outputs of these rows. None if no row of the part has a result.
    pub outputs: Batch,
    /// The rows of this part that have no result, as [`Response::failed`] gives them.
    pub failed: Vec<FailedRows>,
}

impl Part {
    /// How many rows these are.
    pub fn rows(&self) -> u64 {
        match self.outputs.tensors.first() {
            Some(output) => output.rows().unwrap_or(0) as u64,
            None => {
                let counts = self.failed.iter().map(|failed| failed.count);
                counts.fold(0, u64::saturating_add)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn response() -> Response {
        let part = |from: f32, rows: usize| Batch {
            tensors: vec![
                Tensor::from_vec("y", vec![rows, 2], vec![from; rows * 2]).unwrap(),
                Tensor::from_strings("s", None, &vec![from.to_string(); rows]).unwrap(),
            ],
        };
        Response::from_parts(vec![part(1., 2), part(2., 1)], Stats::default()).unwrap()
    }

    #[test]
    fn parts_are_joined_in_order() {
        let r = response();
        assert_eq!(r.rows(), Some(3));
        assert_eq!(r.tensor("y").unwrap().shape(), [3, 2]);
        let a = r.array::<f32>("y").unwrap();
        assert_eq!(
            a,
            ndarray::arr2(&[[1f32, 1.], [1., 1.], [2., 2.]]).into_dyn()
        );
        assert_eq!(r.view::<f32>("y").unwrap(), a);
        assert_eq!(r.array2::<f32>("y").unwrap().into_dyn(), a);
        assert_eq!(r.strings("s").unwrap(), ["1", "1", "2"]);
    }

    #[test]
    fn one_part_is_viewed_where_it_lies() {
        let part = response().parts()[0].clone();
        let address = part.tensors[0].as_slice::<f32>().unwrap().as_ptr();
        let r = Response::from_parts(vec![part], Stats::default()).unwrap();
        assert_eq!(r.view::<f32>("y").unwrap().as_ptr(), address);
        assert_eq!(
            r.tensor("y").unwrap().as_slice::<f32>().unwrap().as_ptr(),
            address
        );
    }

    #[test]
    fn a_streams_parts_are_put_in_order_and_what_failed_wholly_is_blank() {
        let part = |offset: u64, outputs: Batch, failed: &[(u64, u64)]| Part {
            offset,
            outputs,
            failed: failed
                .iter()
                .map(|(first, count)| FailedRows {
                    first: *first,
                    count: *count,
                    code: ErrorCode::Internal,
                    message: "bad".to_owned(),
                })
                .collect(),
        };
        let good = response().parts()[0].clone();
        let parts = vec![
            part(4, good.clone(), &[(5, 1)]),
            part(2, Batch::default(), &[(2, 2)]),
            part(0, good.clone(), &[]),
        ];
        let r = Response::from_stream(parts.clone(), Stats::default()).unwrap();
        let numbers = r.tensor("y").unwrap().to_vec::<f32>().unwrap();
        assert_eq!(numbers, [1., 1., 1., 1., 0., 0., 0., 0., 1., 1., 1., 1.]);
        assert_eq!(r.strings("s").unwrap(), ["1", "1", "", "", "1", "1"]);
        let failed: Vec<_> = r.failed().iter().map(FailedRows::rows).collect();
        assert_eq!(failed, [2..4, 5..6]);
        assert_eq!(r.failed()[0].to_string(), "rows 2 to 3: INTERNAL: bad");
        assert_eq!(r.failed()[1].to_string(), "row 5: INTERNAL: bad");
        let e = Response::from_stream(vec![parts[0].clone()], Stats::default()).unwrap_err();
        assert!(e.message().contains("row 0 is missing"), "{e}");
        let endless = vec![parts[2].clone(), part(2, Batch::default(), &[(2, 1 << 60)])];
        let e = Response::from_stream(endless, Stats::default()).unwrap_err();
        assert_eq!(e.code(), ErrorCode::ResourceExhausted);
    }

    #[test]
    fn a_wrong_name_or_type_says_what_there_is() {
        let r = response();
        let e = r.tensor("z").unwrap_err();
        assert!(e.message().contains(r#"["y", "s"]"#), "{e}");
        assert!(r.only().unwrap_err().message().contains("2 outputs"));
        let e = r.array1::<f32>("y").unwrap_err();
        assert!(e.message().contains("output \"y\" has shape [3, 2]"), "{e}");
        let e = r.array::<i64>("y").unwrap_err();
        assert!(e.message().contains("FP32"), "{e}");
    }
}
