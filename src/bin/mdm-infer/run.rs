//! The work itself: rows out in requests, parts in, progress in between.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use mdm::client::{Call, Client, ModelInfo, Part, Response, Welcome};
use mdm::wire::server::DimInfo;
use mdm::{Batch, DataType, Stats, Tensor};

/// A file of more than this goes out in several requests: enough for any number of workers, and neither end needs to
/// hold all of it twice.
const REQUEST_BYTES: usize = 64 << 20;

/// When all of it has to be over.
#[derive(Clone, Copy)]
pub struct Deadline {
    limit: Option<Duration>,
    end: Option<Instant>,
}

impl Deadline {
    /// In so long from now, or never.
    pub fn after(limit: Option<Duration>) -> Deadline {
        Deadline {
            limit,
            // A time beyond what a clock can hold is no limit.
            end: limit.and_then(|limit| Instant::now().checked_add(limit)),
        }
    }

    /// What is left, if there is an end.
    pub fn left(self) -> Result<Option<Duration>> {
        let left = self
            .end
            .map(|end| end.saturating_duration_since(Instant::now()));
        match (left, self.limit) {
            (Some(Duration::ZERO), Some(limit)) => bail!(
                "--timeout-ms {} has passed, and rows are left to run; give more time, or fewer rows",
                limit.as_millis()
            ),
            _ => Ok(left),
        }
    }

    /// The same call, with what is left as its time.
    pub fn bound(self, call: &Call) -> Result<Call> {
        Ok(match self.left()? {
            Some(left) => call.clone().timeout(left),
            None => call.clone(),
        })
    }
}

/// Rows to run through a model.
pub struct Job<'a> {
    pub client: &'a Client,
    pub call: Call,
    pub deadline: Deadline,
    pub model: &'a ModelInfo,
    pub inputs: Batch,
}

/// What came of it.
pub struct Done {
    pub answer: Answer,
    stats: Stats,
    rows: u64,
    elapsed: Duration,
}

/// What the model gave.
pub struct Answer {
    pub outputs: Vec<Tensor>,
    /// The model has no batch dimension: the outputs are what they are, and not rows.
    pub whole: bool,
}

impl Done {
    /// Rows, time, rows per second and chunks, for a person.
    pub fn totals(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let rows = match self.answer.whole {
            true => format!("1 request in {seconds:.3} s"),
            false => format!(
                "{} rows in {seconds:.3} s: {:.0} rows/s",
                self.rows,
                self.rows as f64 / seconds.max(1e-9)
            ),
        };
        format!(
            "{rows}, {} chunks, {:.3} s in the model",
            self.stats.chunks,
            self.stats.compute_us as f64 / 1e6
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
        let mut parts: Vec<Part> = Vec::new();
        let mut stats = Stats::default();
        let mut first_row = 0;
        let mut whole = false;
        for inputs in requests {
            let rows = inputs.rows().unwrap_or(1) as u64;
            let call = self.deadline.bound(&self.call)?;
            let mut stream = self.client.infer_stream(inputs, call)?;
            for part in stream.by_ref() {
                let mut part = part?;
                bar.inc(part.outputs.rows().unwrap_or(1) as u64);
                part.offset += first_row;
                parts.push(part);
            }
            let of_request = stream.stats().context("the stream of parts ended early")?;
            whole |= stream.rows().is_none();
            stats.queue_us = stats.queue_us.max(of_request.queue_us);
            stats.compute_us += of_request.compute_us;
            stats.chunks += of_request.chunks;
            first_row += rows;
        }
        bar.finish_and_clear();
        parts.sort_by_key(|part| part.offset);
        let mut parts: Vec<Batch> = parts.into_iter().map(|part| part.outputs).collect();
        let outputs = match whole {
            // It was one request, and this is its only part.
            true => parts.pop().unwrap_or_default().tensors,
            false => joined(parts, stats)?,
        };
        Ok(Done {
            answer: Answer { outputs, whole },
            stats,
            rows,
            elapsed: start.elapsed(),
        })
    }

    /// The rows as requests that the server takes.
    fn requests(&self) -> Result<Vec<Batch>> {
        if self.model.kind == "whole" || self.inputs.rows().is_err() {
            // It cannot be cut; the client says so if it is too much for the server.
            return Ok(vec![self.inputs.clone()]);
        }
        let rows = self.inputs.rows()?;
        let most = Most::of(&self.client.hello()?, self.model);
        let mut requests = Vec::new();
        most.cut(&self.inputs, 0, rows, &mut requests)?;
        Ok(requests)
    }
}

/// The outputs with all rows.
fn joined(parts: Vec<Batch>, stats: Stats) -> Result<Vec<Tensor>> {
    let response = Response::from_parts(parts, stats)?;
    let names = response.outputs().map(str::to_owned).collect::<Vec<_>>();
    let outputs = names.iter().map(|name| response.tensor(name));
    Ok(outputs.collect::<mdm::Result<_>>()?)
}

/// What one request may have.
struct Most {
    /// What we send at once.
    bytes: usize,
    /// What the server takes at most.
    server_bytes: usize,
    rows: usize,
}

impl Most {
    fn of(server: &Welcome, model: &ModelInfo) -> Most {
        let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let (request, client) = (
            bytes(server.max_request_bytes),
            bytes(server.max_client_bytes),
        );
        // The header has its share of the server's limit, and rows of strings differ in size. What is given is, as a
        // rule, not more than what is taken; where the model says how much it is, that counts.
        let target = REQUEST_BYTES.min(request / 2).min(client / 2).max(1);
        Most {
            bytes: target,
            server_bytes: request,
            rows: match row_bytes(model) {
                0 => usize::MAX,
                of_row => (client / 2 / of_row).max(1),
            },
        }
    }

    /// Cuts rows in halves until each piece is small enough.
    fn cut(&self, inputs: &Batch, start: usize, rows: usize, into: &mut Vec<Batch>) -> Result<()> {
        let tensors = inputs.tensors.iter().map(|t| t.slice_rows(start, rows));
        let piece = Batch {
            tensors: tensors.collect(),
        };
        let bytes = piece.payload_bytes();
        if (bytes <= self.bytes || rows == 1) && rows <= self.rows {
            if bytes > self.server_bytes {
                bail!(
                    "row {start} takes {bytes} bytes, and the server takes {} in one request; raise its --max-request-bytes",
                    self.server_bytes
                );
            }
            into.push(piece);
            return Ok(());
        }
        let half = rows / 2;
        self.cut(inputs, start, half, into)?;
        self.cut(inputs, start + half, rows - half, into)
    }
}

/// The bytes of what a model gives for a row, as far as it says so.
fn row_bytes(model: &ModelInfo) -> usize {
    let of_output = |output: &mdm::wire::server::PortInfo| {
        let size = DataType::parse(&output.dtype).ok()?.size()?;
        let dims = output.shape.get(1..)?.iter();
        let mut dims = dims.map(|dim| match dim {
            DimInfo::Size(size) => usize::try_from(*size).ok(),
            DimInfo::Symbol(_) => None,
        });
        dims.try_fold(size, |bytes, dim| bytes.checked_mul(dim?))
    };
    model.outputs.iter().filter_map(of_output).sum()
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

    #[test]
    fn a_large_file_is_cut_into_requests_in_row_order() {
        let x = Tensor::from_vec("", vec![10, 2], (0..20i64).collect()).unwrap();
        let s = Tensor::from_strings("s", None, &["0123456789"; 10]).unwrap();
        let inputs = Batch {
            tensors: vec![x, s],
        };
        let most = |bytes, server_bytes, rows| Most {
            bytes,
            server_bytes,
            rows,
        };
        let mut pieces = Vec::new();
        let all = most(150, 300, usize::MAX);
        all.cut(&inputs, 0, 10, &mut pieces).unwrap();
        assert!(pieces.len() > 2);
        assert!(pieces.iter().all(|p| p.payload_bytes() <= 150));
        let first: Vec<Tensor> = pieces.iter().map(|p| p.tensors[0].clone()).collect();
        assert_eq!(Tensor::concat(&first).unwrap(), inputs.tensors[0]);
        // What the server still takes is sent row by row; what it never takes is told.
        let mut single = Vec::new();
        most(10, 300, 4).cut(&inputs, 0, 10, &mut single).unwrap();
        assert_eq!(single.len(), 10);
        let mut few = Vec::new();
        most(10_000, 20_000, 4)
            .cut(&inputs, 0, 10, &mut few)
            .unwrap();
        assert!(few.iter().all(|p| p.rows().unwrap() <= 4));
        let e = most(10, 10, 4).cut(&inputs, 0, 10, &mut single);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("row 0") && e.contains("--max-request-bytes"),
            "{e}"
        );
    }
}
