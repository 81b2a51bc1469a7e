//! The work itself: rows are read, sent, fetched and written, a few requests at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mdm::client::{Call, Client, FailedRows, ModelInfo, Part, Response, Ticket};
use mdm::message::OnBadRow;
use mdm::{Batch, Error, ErrorCode, Stats};

use crate::NAME;
use crate::cast::Cast;
use crate::most::Sizes;
use crate::numbering::Numbering;
use crate::progress::{Bar, Times, rate, timed};
use crate::read::{Contents, Format, Source};
use crate::rows::Shapes;
use crate::shared::complain;
use crate::write::Results;

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
            (Some(Duration::ZERO), Some(limit)) => bail!(Error::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "--timeout-ms {} has passed, and rows are left to run; give more time, or fewer rows",
                    limit.as_millis()
                )
            )),
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
    pub source: Source,
    pub cast: Cast,
    /// What the call says about it.
    pub on_bad_row: OnBadRow,
    pub results: &'a mut Results,
    pub times: Times,
}

/// What came of it.
pub struct Done {
    stats: Stats,
    /// `None`: the model has no rows.
    rows: Option<u64>,
    /// Rows that failed, and were listed.
    pub failed: u64,
    pub times: Times,
}

impl Done {
    /// Rows, time, rows per second and chunks, for a person.
    pub fn totals(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let rows = match self.rows {
            None => format!("1 request in {seconds:.3} s"),
            Some(rows) => {
                let row = counted(rows, "row");
                format!("{row} in {seconds:.3} s: {}", rate(rows, elapsed))
            }
        };
        let rows = match self.failed {
            0 => rows,
            failed => format!("{} failed\n{rows}", counted(failed, "row")),
        };
        format!(
            "{rows}, {}, {:.3} s in the model\n{}",
            counted(self.stats.chunks, "chunk"),
            self.stats.compute_us as f64 / 1e6,
            self.times.shown()
        )
    }
}

/// `1 row`, `2 rows`.
fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

/// A request that was sent and has no answer yet.
struct Pending {
    ticket: Ticket,
    rows: usize,
    numbering: Numbering,
}

/// A run of rows, a few requests at a time.
struct RowRun<'a> {
    client: &'a Client,
    call: Call,
    deadline: Deadline,
    on_bad_row: OnBadRow,
    results: &'a mut Results,
    times: Times,
    sizes: Sizes,
    reader: Reader<'a>,
    bar: Bar,
    /// In the order of their rows.
    pending: VecDeque<Pending>,
    stats: Stats,
    rows_done: u64,
    /// How many of these failed, and were listed.
    failed: u64,
    /// Why the first row failed, while no row has a result.
    none_yet: Option<Error>,
}

/// Reads rows, and cuts them into requests.
struct Reader<'a> {
    source: Source,
    model: &'a ModelInfo,
    cast: Cast,
    shapes: Shapes,
    /// Pieces that were read together and are to be sent apart, the first one last.
    ready: Vec<(Batch, Numbering)>,
    rows: u64,
}

impl Job<'_> {
    /// Runs all rows.
    pub fn run(self) -> Result<Done> {
        // What cannot be cut goes out whole; the client says so if it is too much for the server.
        match self.model.kind == "whole" || !self.source.has_rows() {
            true => self.run_whole(),
            false => self.run_rows(),
        }
    }

    fn run_rows(self) -> Result<Done> {
        let is_json = self.source.format() == Format::Jsonl;
        let run = RowRun {
            sizes: Sizes::of(&self.client.hello()?, self.model, is_json),
            client: self.client,
            call: self.call,
            deadline: self.deadline,
            on_bad_row: self.on_bad_row,
            results: self.results,
            times: self.times,
            reader: Reader {
                source: self.source,
                model: self.model,
                cast: self.cast,
                shapes: Shapes::default(),
                ready: Vec::new(),
                rows: 0,
            },
            bar: Bar::new(),
            pending: VecDeque::new(),
            stats: Stats::default(),
            rows_done: 0,
            failed: 0,
            none_yet: None,
        };
        run.run()
    }

    fn run_whole(self) -> Result<Done> {
        let mut times = self.times;
        let numbering = Numbering::rows(self.source.name(), 0);
        let inputs = timed(&mut times.reading, || match self.source.all()? {
            Contents::Inputs(inputs) => self.cast.fit(inputs, self.model, &numbering),
            Contents::Lines(lines) => lines.into_inputs(self.model, &mut Shapes::default()),
        })?;
        let call = self.deadline.bound(&self.call)?;
        let (mut parts, rows, stats) = timed(&mut times.server, || {
            let mut stream = self.client.infer_stream(inputs, call)?;
            let parts = stream.by_ref().collect::<mdm::Result<Vec<Part>>>()?;
            let stats = stream.stats().context("the stream of parts ended early")?;
            anyhow::Ok((parts, stream.rows(), stats))
        })?;
        let results = self.results;
        let mut failed = 0;
        match rows {
            // This is the only part.
            None => timed(&mut times.writing, || {
                results.add_whole(parts.pop().map(|p| p.outputs.tensors).unwrap_or_default())
            })?,
            Some(_) => {
                let response = Response::from_stream(parts, stats)?;
                failed = count(response.failed());
                list(response.failed(), &numbering);
                timed(&mut times.writing, || {
                    let mut parts = response.parts().iter().cloned();
                    parts.try_for_each(|part| results.add_rows(part))
                })?;
            }
        }
        Ok(Done {
            stats,
            rows,
            failed,
            times,
        })
    }
}

impl RowRun<'_> {
    fn run(mut self) -> Result<Done> {
        loop {
            self.send()?;
            let read = self.reader.source.progress();
            self.bar.show(self.rows_done, read, self.reader.rows);
            let Some(oldest) = self.pending.pop_front() else {
                break;
            };
            self.fetch(oldest)?;
        }
        // Its line is taken away before more is said.
        drop(self.bar);
        match self.none_yet {
            Some(error) => bail!(error),
            None => Ok(Done {
                stats: self.stats,
                rows: Some(self.rows_done),
                failed: self.failed,
                times: self.times,
            }),
        }
    }

    /// Sends requests until as many as may be are in flight, or all rows are sent.
    fn send(&mut self) -> Result<()> {
        while self.pending.len() < self.sizes.in_flight() {
            let next = timed(&mut self.times.reading, || self.reader.next(&self.sizes))?;
            let Some((inputs, numbering)) = next else {
                break;
            };
            let rows = inputs.rows()?;
            let call = self.deadline.bound(&self.call)?;
            let ticket = timed(&mut self.times.server, || self.client.submit(inputs, call))
                .map_err(|e| numbering.in_file(e, rows))?;
            self.pending.push_back(Pending {
                ticket,
                rows,
                numbering,
            });
        }
        Ok(())
    }

    /// Waits for the answer to a request, and writes what it says.
    fn fetch(&mut self, request: Pending) -> Result<()> {
        let Pending {
            ticket,
            rows,
            numbering,
        } = request;
        let answer = timed(&mut self.times.server, || self.client.fetch(ticket));
        self.rows_done += rows as u64;
        match answer {
            Ok(response) => self.write(&response, rows, &numbering),
            // A request of which no row has a result has an error for its answer, which says how many of its rows may be
            // good; others may have results.
            Err(error) if self.on_bad_row == OnBadRow::Report && error.rows() == Some(0..rows) => {
                self.write_blank(error, rows, &numbering)
            }
            Err(error) => Err(numbering.in_file(error, rows).into()),
        }
    }

    /// Writes a result, and lists the rows that have none.
    fn write(&mut self, response: &Response, rows: usize, numbering: &Numbering) -> Result<()> {
        self.none_yet = None;
        add(&mut self.stats, response.stats());
        if response.rows() != Some(rows) {
            bail!(Error::internal(format!(
                "the server answered {rows} rows with {:?}",
                response.rows()
            )));
        }
        if !response.failed().is_empty() {
            self.failed += count(response.failed());
            self.bar.above(|| list(response.failed(), numbering));
        }
        let bytes = response.parts().iter().map(Batch::payload_bytes).sum();
        self.sizes.learn(rows, bytes);
        timed(&mut self.times.writing, || {
            let mut parts = response.parts().iter().cloned();
            parts.try_for_each(|part| self.results.add_rows(part))
        })
    }

    /// Lists the rows of a request that all failed, and leaves room for them.
    fn write_blank(&mut self, error: Error, rows: usize, numbering: &Numbering) -> Result<()> {
        self.failed += rows as u64;
        let all = FailedRows {
            first: 0,
            count: rows as u64,
            code: error.code(),
            message: numbering.words(error.message()),
        };
        self.bar.above(|| list(&[all], numbering));
        if self.rows_done == self.failed {
            self.none_yet.get_or_insert(numbering.in_file(error, rows));
        }
        timed(&mut self.times.writing, || self.results.add_blank(rows))
    }
}

/// Adds what a request took.
fn add(stats: &mut Stats, of_request: Stats) {
    stats.queue_us = stats.queue_us.max(of_request.queue_us);
    stats.compute_us += of_request.compute_us;
    stats.chunks += of_request.chunks;
}

fn count(failed: &[FailedRows]) -> u64 {
    failed.iter().map(|failed| failed.count).sum()
}

/// Says which rows failed, on standard error.
fn list(failed: &[FailedRows], numbering: &Numbering) {
    for rows in failed {
        let place = numbering.range(rows.first as usize, rows.count as usize);
        complain(
            NAME,
            format_args!(
                "{place}: {}: {}",
                rows.code,
                rows.message.replace('\n', " ")
            ),
        );
    }
}

impl Reader<'_> {
    /// The rows of the next request.
    fn next(&mut self, sizes: &Sizes) -> Result<Option<(Batch, Numbering)>> {
        if let Some(piece) = self.ready.pop() {
            return Ok(Some(piece));
        }
        let Some(contents) = self.source.next(sizes.to_read())? else {
            return Ok(None);
        };
        let name = self.source.name().to_owned();
        let is_text = self.source.format() == Format::Txt;
        let numbering = Numbering::of(&name, self.rows, &contents, is_text);
        let inputs = match contents {
            Contents::Inputs(inputs) => self
                .cast
                .fit(inputs, self.model, &numbering)
                .context(name.clone())?,
            Contents::Lines(lines) => lines.into_inputs(self.model, &mut self.shapes)?,
        };
        self.rows += inputs.rows()? as u64;
        sizes
            .cut(inputs, numbering, &mut self.ready)
            .context(name)?;
        self.ready.reverse();
        Ok(self.ready.pop())
    }
}
