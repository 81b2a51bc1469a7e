//! The work itself: rows out in requests, parts in, progress in between.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use mdm::client::{Call, Client, PartRows, Response};
use mdm::wire::server::ModelInfo;
use mdm::{Batch, Stats};

/// A file of more than this goes out in several requests: enough for any number of workers, and neither end needs to
/// hold all of it twice.
const REQUEST_BYTES: usize = 64 << 20;

/// Rows to run through a model.
pub struct Job<'a> {
    pub client: &'a Client,
    pub call: Call,
    /// The model's name, if it was given by name.
    pub model: Option<&'a str>,
    pub inputs: Batch,
}

/// What came of it.
pub struct Done {
    pub response: Response,
    rows: u64,
    elapsed: Duration,
}

impl Done {
    /// Rows, time, rows per second and chunks, for a person.
    pub fn totals(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        format!(
            "{} rows in {seconds:.3} s: {:.0} rows/s, {} chunks, {:.3} s in the model",
            self.rows,
            self.rows as f64 / seconds.max(1e-9),
            self.response.stats().chunks,
            self.response.stats().compute_us as f64 / 1e6
        )
    }
}

impl Job<'_> {
    /// Runs all rows, the parts in whatever order they finish, and puts them in order.
    pub fn run(&self) -> Result<Done> {
        let start = Instant::now();
        let requests = self.requests()?;
        let rows = self.inputs.rows().unwrap_or(1) as u64;
        let bar = bar(rows);
        let mut parts: Vec<PartRows> = Vec::new();
        let mut stats = Stats::default();
        let mut first_row = 0;
        for inputs in requests {
            let rows = inputs.rows().unwrap_or(1) as u64;
            let mut stream = self.client.infer_stream(inputs, self.call.clone())?;
            for part in stream.by_ref() {
                let mut part = part?;
                bar.inc(part.outputs.rows().unwrap_or(1) as u64);
                part.offset += first_row;
                parts.push(part);
            }
            let of_request = stream.stats().context("the stream of parts ended early")?;
            stats.queue_us = stats.queue_us.max(of_request.queue_us);
            stats.compute_us += of_request.compute_us;
            stats.chunks += of_request.chunks;
            first_row += rows;
        }
        bar.finish_and_clear();
        parts.sort_by_key(|part| part.offset);
        let parts = parts.into_iter().map(|part| part.outputs).collect();
        Ok(Done {
            response: Response::from_parts(parts, stats)?,
            rows,
            elapsed: start.elapsed(),
        })
    }

    /// The rows as requests that the server takes.
    fn requests(&self) -> Result<Vec<Batch>> {
        let bytes = self.inputs.payload_bytes();
        if bytes <= REQUEST_BYTES {
            return Ok(vec![self.inputs.clone()]);
        }
        let limit = usize::try_from(self.client.hello()?.max_request_bytes).unwrap_or(usize::MAX);
        let whole = match self.model {
            Some(model) => info(self.client, model)?.kind == "whole",
            None => false,
        };
        if whole || self.inputs.rows().is_err() {
            // It cannot be cut; the client says so if it is too much for the server.
            return Ok(vec![self.inputs.clone()]);
        }
        let rows = self.inputs.rows()?;
        // The header has its share of the server's limit, and rows of strings differ in size.
        let target = REQUEST_BYTES.min(limit / 2).max(1);
        let mut requests = Vec::new();
        cut(&self.inputs, 0, rows, target, &mut requests)?;
        Ok(requests)
    }
}

/// What the server says of a model. One that is there is not loaded anew.
pub fn info(client: &Client, model: &str) -> Result<ModelInfo> {
    let loaded = client.models()?.into_iter().find(|own| own.name == model);
    Ok(match loaded {
        Some(info) => info,
        None => client.load(model)?,
    })
}

/// Cuts rows in halves until each piece is small enough.
fn cut(
    inputs: &Batch,
    start: usize,
    rows: usize,
    target: usize,
    into: &mut Vec<Batch>,
) -> Result<()> {
    let tensors = inputs.tensors.iter().map(|t| t.slice_rows(start, rows));
    let piece = Batch {
        tensors: tensors.collect(),
    };
    let bytes = piece.payload_bytes();
    if bytes <= target {
        into.push(piece);
        return Ok(());
    }
    if rows == 1 {
        bail!("row {start} takes {bytes} bytes, more than the server takes in one request");
    }
    let half = rows / 2;
    cut(inputs, start, half, target, into)?;
    cut(inputs, start + half, rows - half, target, into)
}

/// A bar on a terminal, nothing elsewhere.
fn bar(rows: u64) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(rows);
    if let Ok(style) = ProgressStyle::with_template(
        "{wide_bar} {human_pos}/{human_len} rows, {per_sec}, {eta} left",
    ) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm::Tensor;

    #[test]
    fn a_large_file_is_cut_into_requests_in_row_order() {
        let x = Tensor::from_vec("", vec![10, 2], (0..20i64).collect()).unwrap();
        let s = Tensor::from_strings("s", None, &["0123456789"; 10]).unwrap();
        let inputs = Batch {
            tensors: vec![x, s],
        };
        let mut pieces = Vec::new();
        cut(&inputs, 0, 10, 150, &mut pieces).unwrap();
        assert!(pieces.len() > 2);
        assert!(pieces.iter().all(|p| p.payload_bytes() <= 150));
        let first: Vec<Tensor> = pieces.iter().map(|p| p.tensors[0].clone()).collect();
        assert_eq!(Tensor::concat(&first).unwrap(), inputs.tensors[0]);
        assert!(cut(&inputs, 0, 10, 10, &mut pieces).is_err());
    }
}
