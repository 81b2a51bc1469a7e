//! How many rows go out at once: enough to keep any number of workers busy, and few enough for both ends' memory.

use anyhow::{Result, bail};
use mdm::client::{ModelInfo, Welcome};
use mdm::wire::server::DimInfo;
use mdm::{Batch, DataType};

use crate::numbering::Numbering;
use crate::pieces::Most;

/// Requests that are on their way at once: while one is read or written, the others keep the workers busy.
pub const IN_FLIGHT: usize = 4;

/// A request of this many bytes is enough, ...
const REQUEST_BYTES: usize = 4 << 20;
/// ... or of this many rows, which more than a few workers can share, ...
const FEW_ROWS: usize = 64;
/// ... as long as they take no more than this.
const FEW_BYTES: usize = 32 << 20;
/// Lines of JSON take many times their bytes in memory while they are read.
const JSON_BYTES: usize = 1 << 20;

/// The rows of the first request, where the model does not say how much it gives for a row.
const FIRST_ROWS: usize = 256;

/// What a request may have, as far as it is known.
pub struct Sizes {
    /// What we send at once.
    bytes: usize,
    few_bytes: usize,
    /// What the server takes at most.
    server_bytes: usize,
    /// What the results of a request may have.
    result_bytes: usize,
    result_few_bytes: usize,
    /// The bytes of a row's results, as the model says, or as they have come.
    of_row: Option<usize>,
}

impl Sizes {
    pub fn of(server: &Welcome, model: &ModelInfo, is_json: bool) -> Sizes {
        let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let (request, client) = (
            bytes(server.max_request_bytes),
            bytes(server.max_client_bytes),
        );
        // The header has its share of the server's limit, and rows of strings differ in size.
        let least = |wanted: usize, limit: usize| wanted.min(limit).max(1);
        let wanted = match is_json {
            true => JSON_BYTES,
            false => REQUEST_BYTES,
        };
        // Rows of text differ in what they give.
        let results = client / IN_FLIGHT / 2;
        Sizes {
            bytes: least(wanted, request / 2),
            few_bytes: least(FEW_BYTES, request / 2),
            server_bytes: request,
            result_bytes: least(2 * REQUEST_BYTES, results),
            result_few_bytes: least(FEW_BYTES, results),
            of_row: row_bytes(model),
        }
    }

    /// How many requests may be on their way.
    pub fn in_flight(&self) -> usize {
        match self.of_row {
            Some(_) => IN_FLIGHT,
            None => 1,
        }
    }

    /// What may be read for one request.
    pub fn to_read(&self) -> Most {
        Most {
            rows: self.rows(),
            bytes: self.bytes,
            few_rows: FEW_ROWS,
            few_bytes: self.few_bytes,
            line_bytes: self.server_bytes,
        }
    }

    /// The most rows, by what they give.
    fn rows(&self) -> usize {
        match self.of_row {
            None => FIRST_ROWS,
            Some(0) => usize::MAX,
            Some(of_row) => {
                let few = FEW_ROWS.min(self.result_few_bytes / of_row);
                (self.result_bytes / of_row).max(few).max(1)
            }
        }
    }

    /// So many rows gave so many bytes.
    pub fn learn(&mut self, rows: usize, bytes: usize) {
        let of_row = bytes.div_ceil(rows.max(1));
        self.of_row = self.of_row.max(Some(of_row));
    }

    /// Cuts rows in halves until each piece is one that the server takes.
    pub fn cut(
        &self,
        inputs: Batch,
        numbering: Numbering,
        into: &mut Vec<(Batch, Numbering)>,
    ) -> Result<()> {
        let (rows, bytes) = (inputs.rows()?, inputs.payload_bytes());
        if rows <= 1 && bytes > self.server_bytes {
            bail!(mdm::Error::exhausted(format!(
                "{} takes {bytes} bytes, and the server takes {} in one request; raise its --max-request-bytes",
                numbering.row(0),
                self.server_bytes
            )));
        }
        if rows <= 1 || bytes <= self.few_bytes {
            into.push((inputs, numbering));
            return Ok(());
        }
        let half = rows / 2;
        for (start, rows) in [(0, half), (half, rows - half)] {
            self.cut(
                inputs.slice_rows(start, rows),
                numbering.slice(start, rows),
                into,
            )?;
        }
        Ok(())
    }
}

/// The bytes of what a model gives for a row, if it says so.
fn row_bytes(model: &ModelInfo) -> Option<usize> {
    let of_output = |output: &mdm::wire::server::PortInfo| {
        let size = DataType::parse(&output.dtype).ok()?.size()?;
        let dims = output.shape.get(1..)?.iter();
        let mut dims = dims.map(|dim| match dim {
            DimInfo::Size(size) => usize::try_from(*size).ok(),
            DimInfo::Symbol(_) => None,
        });
        dims.try_fold(size, |bytes, dim| bytes.checked_mul(dim?))
    };
    let mut outputs = model.outputs.iter().map(of_output).peekable();
    outputs.peek()?;
    outputs.try_fold(0usize, |all, bytes| all.checked_add(bytes?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm::Tensor;
    use mdm::wire::server::PortInfo;

    fn model(shape: &[i64]) -> ModelInfo {
        ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            kind: "batched".to_owned(),
            inputs: Vec::new(),
            outputs: vec![PortInfo {
                name: "y".to_owned(),
                dtype: "FP32".to_owned(),
                shape: shape.iter().map(|dim| DimInfo::Size(*dim)).collect(),
            }],
        }
    }

    fn server(request: u64, client: u64) -> Welcome {
        Welcome {
            max_request_bytes: request,
            max_client_bytes: client,
            ..Welcome::default()
        }
    }

    #[test]
    fn requests_keep_to_the_servers_bounds_and_to_what_comes_back() {
        let usual = server(512 << 20, 256 << 20);
        let sizes = Sizes::of(&usual, &model(&[-1, 256]), false);
        assert_eq!((sizes.in_flight(), sizes.rows()), (4, 8192));
        // Pictures: not one by one.
        let sizes = Sizes::of(&usual, &model(&[-1, 3, 256, 256]), false);
        assert_eq!(sizes.rows(), (FEW_BYTES) / (3 * 256 * 256 * 4));
        let mut sizes = Sizes::of(&usual, &model(&[-1, -1]), false);
        assert_eq!((sizes.in_flight(), sizes.rows()), (1, FIRST_ROWS));
        sizes.learn(2, 2048);
        sizes.learn(2, 20);
        assert_eq!((sizes.in_flight(), sizes.rows()), (4, 8192));
        let small = Sizes::of(&server(1 << 20, 1 << 20), &model(&[-1, 256]), false);
        assert_eq!((small.bytes, small.few_bytes), (1 << 19, 1 << 19));
        // Four of them in half of what the server holds.
        assert_eq!(small.rows(), 128);
    }

    #[test]
    fn what_is_too_much_for_one_request_is_cut_in_row_order() {
        let x = Tensor::from_vec("", vec![10, 2], (0..20i64).collect()).unwrap();
        let s = Tensor::from_strings("s", None, &["0123456789"; 10]).unwrap();
        let inputs = Batch::from(vec![x, s]);
        let sizes = |few_bytes, server_bytes| Sizes {
            bytes: few_bytes,
            few_bytes,
            server_bytes,
            result_bytes: 1,
            result_few_bytes: 1,
            of_row: None,
        };
        let cut = |sizes: Sizes| {
            let mut pieces = Vec::new();
            let numbering = Numbering::rows("f", 100);
            sizes.cut(inputs.clone(), numbering, &mut pieces)?;
            anyhow::Ok(pieces)
        };
        let pieces = cut(sizes(150, 300)).unwrap();
        assert!(pieces.len() > 2);
        assert!(pieces.iter().all(|(p, _)| p.payload_bytes() <= 150));
        let first: Vec<Tensor> = pieces.iter().map(|(p, _)| p.tensors[0].clone()).collect();
        assert_eq!(Tensor::concat(&first).unwrap(), inputs.tensors[0]);
        let last = pieces.last().unwrap();
        assert_eq!(last.1.row(last.0.rows().unwrap() - 1), "row 109");
        // What the server still takes is sent row by row; what it never takes is told.
        assert_eq!(cut(sizes(10, 300)).unwrap().len(), 10);
        let e = cut(sizes(10, 10)).unwrap_err().to_string();
        assert!(
            e.contains("row 100") && e.contains("--max-request-bytes"),
            "{e}"
        );
    }
}
