//! The rows that are sent: made up from the model's description or read from a file, and cut into requests.

use anyhow::{Context, Result, bail, ensure};
use mdm::tensor::Data;
use mdm::wire::server::{DimInfo, ModelInfo, PortInfo};
use mdm::{Batch, DataType, Tensor};

use crate::generator::random::Random;

/// Different rows that are made up where nobody says how many: enough that no cache knows them all, ...
const MADE_ROWS: usize = 1024;
/// ... as long as they take no more than this.
const MADE_BYTES: usize = 16 << 20;

/// Beyond this what a model declares is not what anybody would send.
const MOST_BYTES: usize = 4 << 30;

/// Different requests that are made ready; of a larger file, the first rows are used.
const MOST_REQUESTS: usize = 10_000;

/// The rows of all requests.
#[derive(Debug)]
pub struct Source {
    rows: Batch,
    /// A request has all of it: the model takes its inputs whole.
    whole: bool,
}

impl Source {
    /// Rows that were read from a file.
    pub fn given(model: &ModelInfo, mut rows: Batch) -> Source {
        // Not every server takes the only input without its name.
        if let ([tensor], [port]) = (&mut rows.tensors[..], &model.inputs[..])
            && tensor.name().is_empty()
        {
            *tensor = tensor.clone().renamed(port.name.as_str());
        }
        Source {
            whole: model.kind == "whole" || rows.rows().is_err(),
            rows,
        }
    }

    /// Made-up rows: numbers from 0 to 1, whole numbers and truths 1, a few words for a text.
    ///
    /// # Errors
    /// What cannot be made up, and that a file is to be given.
    pub fn made_up(model: &ModelInfo, rows: Option<usize>) -> Result<Source> {
        ensure!(
            !model.inputs.is_empty(),
            "model {:?} does not say what it takes, so nothing can be made up for it; give rows with --input",
            model.name
        );
        let whole = model.kind == "whole";
        let bytes = |port| {
            shape(port, Some(1))
                .into_iter()
                .fold(8, usize::saturating_mul)
        };
        let of_row = model
            .inputs
            .iter()
            .map(bytes)
            .fold(0, usize::saturating_add);
        let usual = if whole {
            1
        } else {
            (MADE_BYTES / of_row.max(1)).clamp(1, MADE_ROWS)
        };
        let rows = rows.unwrap_or(usual);
        let mut random = Random::new(1);
        let tensors = model.inputs.iter().map(|port| {
            // A model that is served whole says itself how many rows it takes, if it does.
            let is_open = !matches!(port.shape.first(), Some(DimInfo::Size(0..)) | None);
            made(
                port,
                shape(port, (!whole || is_open).then_some(rows)),
                &mut random,
            )
            .with_context(|| {
                format!("nothing can be made up for input {port}; give rows with --input")
            })
        });
        Ok(Source {
            rows: Batch {
                tensors: tensors.collect::<Result<_>>()?,
            },
            whole,
        })
    }

    /// The requests, of so many rows each; of one row, if nobody said how many.
    ///
    /// # Errors
    /// If there is a number, and the model takes its inputs whole.
    pub fn requests(&self, rows: Option<usize>) -> Result<Vec<Batch>> {
        if self.whole {
            ensure!(
                rows.is_none(),
                "the model takes its inputs whole, so a request is all of them; leave --rows-per-request out"
            );
            return Ok(vec![self.rows.clone()]);
        }
        let rows = rows.unwrap_or(1);
        let there = self.rows.rows()?;
        ensure!(there > 0, "there are no rows to send");
        let bytes = (self.rows.payload_bytes() as u64 / there as u64).max(1);
        ensure!(
            bytes.saturating_mul(rows as u64) <= MOST_BYTES as u64,
            "--rows-per-request {rows}: a request would have over {MOST_BYTES} bytes"
        );
        let all = match there < rows {
            true => repeated(&self.rows, rows.div_ceil(there))?,
            false => self.rows.clone(),
        };
        let requests = (all.rows()? / rows).min(MOST_REQUESTS);
        let cut = (0..requests).map(|at| all.slice_rows(at * rows, rows));
        Ok(cut.collect())
    }
}

/// The same rows several times, one after the other.
fn repeated(rows: &Batch, times: usize) -> Result<Batch> {
    let tensors = rows.tensors.iter();
    let tensors = tensors.map(|tensor| Tensor::concat(&vec![tensor.clone(); times]));
    Ok(Batch {
        tensors: tensors.collect::<mdm::Result<_>>()?,
    })
}

/// A port's dimensions, the first of them with so many rows; what the model leaves open is 1.
fn shape(port: &PortInfo, rows: Option<usize>) -> Vec<usize> {
    let is_rest = |dim: &&DimInfo| matches!(dim, DimInfo::Symbol(symbol) if symbol == "...");
    let dims = port.shape.iter().filter(|dim| !is_rest(dim));
    let mut shape: Vec<usize> = dims
        .map(|dim| match dim {
            DimInfo::Size(size) => usize::try_from(*size).unwrap_or(1),
            DimInfo::Symbol(_) => 1,
        })
        .collect();
    match (rows, shape.first_mut()) {
        (Some(rows), Some(first)) => *first = rows,
        // Any dimensions are as good as one.
        (Some(rows), None) if !port.shape.is_empty() => shape.push(rows),
        _ => {}
    }
    shape
}

fn made(port: &PortInfo, shape: Vec<usize>, random: &mut Random) -> Result<Tensor> {
    let datatype = DataType::parse(&port.dtype)?;
    let size = datatype.size().unwrap_or(8);
    let elements = shape
        .iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
        .filter(|elements| {
            elements
                .checked_mul(size)
                .is_some_and(|bytes| bytes <= MOST_BYTES)
        })
        .with_context(|| format!("{shape:?} takes more than {MOST_BYTES} bytes"))?;
    let name = port.name.as_str();
    let mut fraction = || random.below(1 << 20) as f32 / (1 << 20) as f32;
    let numbers = 0..elements;
    // Whole numbers are often indices into something that has more than one element.
    let bytes = match datatype {
        DataType::Json => bail!("its rows may be anything"),
        DataType::Bytes => {
            // Over the Open Inference Protocol a model of records says that it takes texts, so they are JSON too.
            let texts: Vec<String> = numbers.map(|i| format!("\"text number {i}\"")).collect();
            return Ok(Tensor::from_strings(name, Some(shape), &texts)?);
        }
        DataType::Fp16 => bytes_of(numbers.map(|_| half::f16::from_f32(fraction()))),
        DataType::Bf16 => bytes_of(numbers.map(|_| half::bf16::from_f32(fraction()))),
        DataType::Fp32 => bytes_of(numbers.map(|_| fraction())),
        DataType::Fp64 => bytes_of(numbers.map(|_| f64::from(fraction()))),
        // Little-endian: the lowest byte is the first.
        _ => numbers
            .flat_map(|_| (0..size).map(|at| u8::from(at == 0)))
            .collect(),
    };
    let data = Data::Fixed(bytes.into());
    Ok(Tensor::new(name, datatype, shape, data)?)
}

fn bytes_of<T: bytemuck::NoUninit>(numbers: impl Iterator<Item = T>) -> Vec<u8> {
    let numbers: Vec<T> = numbers.collect();
    bytemuck::cast_slice(&numbers).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(kind: &str, ports: &[(&str, &str, &[DimInfo])]) -> ModelInfo {
        let port = |(name, dtype, shape): &(&str, &str, &[DimInfo])| PortInfo {
            name: (*name).to_owned(),
            dtype: (*dtype).to_owned(),
            shape: shape.to_vec(),
        };
        ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind: kind.to_owned(),
            inputs: ports.iter().map(port).collect(),
            outputs: Vec::new(),
        }
    }

    fn symbol(name: &str) -> DimInfo {
        DimInfo::Symbol(name.to_owned())
    }

    #[test]
    fn inputs_of_every_datatype_are_made_up_but_json() {
        for datatype in DataType::ALL {
            let ports = [(
                "x",
                datatype.name(),
                &[symbol("N"), DimInfo::Size(-1), DimInfo::Size(3)][..],
            )];
            let made = Source::made_up(&model("batched", &ports), Some(5));
            if datatype == DataType::Json {
                let e = format!("{:#}", made.unwrap_err());
                assert!(e.contains("x JSON") && e.contains("--input"), "{e}");
                continue;
            }
            let made = made.unwrap();
            assert_eq!(made.rows.tensors[0].datatype(), datatype);
            assert_eq!(made.rows.tensors[0].shape(), [5, 1, 3]);
            for text in made.rows.tensors[0].byte_strings() {
                let read: serde_json::Value = serde_json::from_slice(text).unwrap();
                assert!(read.is_string(), "{read}");
            }
        }
        let e = Source::made_up(&model("batched", &[]), None).unwrap_err();
        assert!(e.to_string().contains("--input"), "{e}");
        let ports = [("x", "FP32", &[symbol("N"), DimInfo::Size(i64::MAX)][..])];
        let e = Source::made_up(&model("batched", &ports), None).unwrap_err();
        assert!(format!("{e:#}").contains("bytes"), "{e:#}");
    }

    #[test]
    fn as_many_rows_are_made_up_as_memory_allows() {
        let rows_of = |dims: &[DimInfo]| {
            let source = Source::made_up(&model("batched", &[("x", "FP32", dims)]), None).unwrap();
            source.rows.rows().unwrap()
        };
        assert_eq!(rows_of(&[symbol("N"), DimInfo::Size(4)]), 1024);
        assert_eq!(rows_of(&[symbol("N"), DimInfo::Size(1 << 20)]), 2);
        assert_eq!(rows_of(&[symbol("N"), DimInfo::Size(4 << 20)]), 1);
        assert_eq!(rows_of(&[symbol("...")]), 1024);
    }

    #[test]
    fn rows_are_cut_into_requests_and_repeated_if_they_are_too_few() {
        let x = Tensor::from_vec("x", vec![5], vec![0i64, 1, 2, 3, 4]).unwrap();
        let source = Source::given(&model("batched", &[]), x.into());
        let requests = |rows| {
            let made = source.requests(rows).unwrap();
            let values = made
                .iter()
                .map(|batch| batch.tensors[0].to_vec::<i64>().unwrap());
            values.collect::<Vec<_>>()
        };
        assert_eq!(requests(None).len(), 5);
        assert_eq!(requests(Some(2)), [[0, 1], [2, 3]]);
        assert_eq!(requests(Some(7)), [[0, 1, 2, 3, 4, 0, 1]]);
    }

    #[test]
    fn a_model_that_takes_its_inputs_whole_gets_them_whole() {
        let fixed = model("whole", &[("x", "INT64", &[DimInfo::Size(2), symbol("M")])]);
        let source = Source::made_up(&fixed, Some(9)).unwrap();
        assert_eq!(source.requests(None).unwrap()[0].tensors[0].shape(), [2, 1]);
        let open = model(
            "whole",
            &[
                ("x", "INT64", &[symbol("N"), DimInfo::Size(3)]),
                ("k", "BOOL", &[]),
            ],
        );
        let source = Source::made_up(&open, Some(9)).unwrap();
        let requests = source.requests(None).unwrap();
        assert_eq!(
            (requests.len(), requests[0].tensors[0].shape()),
            (1, &[9, 3][..])
        );
        assert_eq!(requests[0].tensors[1].shape(), [0usize; 0]);
        let e = source.requests(Some(2)).unwrap_err();
        assert!(e.to_string().contains("--rows-per-request"), "{e}");
    }
}
