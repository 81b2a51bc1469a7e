//! 8,000 rows in one request on two workers, against two sessions in this process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mdm::{Client, Element};
use ndarray::Array2;

use super::Plan;
use super::children::{Models, Server};
use super::engine::{self, Number, Rows};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;

const ROWS: usize = 8_000;
/// How long each of the two models may take, about, and how much of it the search for a batch size.
const CASE: Duration = Duration::from_secs(25);
const SWEEP: Duration = Duration::from_secs(10);
const BATCHES: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let (bilstm, mlp) = (onnx::bilstm(), onnx::mlp());
    let models = Models::write(&[("bilstm", bilstm.clone()), ("mlp", mlp.clone())])?;
    let mut sides = Sides::of(plan, |program| {
        let flags = ["--num-worker", "2", "--intra-op-threads", "1"];
        let server = Server::start_program(program, &models, &flags)?;
        Ok((server.client()?, server))
    })?;
    let rows = plan.times(ROWS).max(1024);
    Case {
        name: "bilstm",
        rows: ids(rows),
        sweep: plan.times(4096),
        // A request takes most of a second.
        requests: 1,
        bar: Bar::AtLeast(0.95),
    }
    .measure(plan, table, &mut sides, &bilstm)?;
    Case {
        name: "mlp",
        rows: floats(ROWS),
        sweep: ROWS,
        requests: plan.times(40),
        bar: Bar::AtLeast(0.75),
    }
    .measure(plan, table, &mut sides, &mlp)
}

/// Ids for bilstm.
pub fn ids(rows: usize) -> Rows<i64> {
    Rows {
        elements: (0..rows as i64 * 64).map(|i| i * 7919 % 5000).collect(),
        dims: vec![64],
    }
}

/// Numbers for mlp.
pub fn floats(rows: usize) -> Rows<f32> {
    Rows {
        elements: (0..rows * 64).map(|i| (i % 251) as f32 / 251.0).collect(),
        dims: vec![64],
    }
}

struct Case<T> {
    name: &'static str,
    rows: Rows<T>,
    /// Rows that each batch size is tried with.
    sweep: usize,
    /// Requests in one measurement, one after another.
    requests: usize,
    bar: Bar,
}

impl<T: Number + Element> Case<T> {
    fn measure(
        self,
        plan: &Plan,
        table: &mut Table,
        sides: &mut Sides<(Client, Server)>,
        model: &[u8],
    ) -> Result<()> {
        let plan = &plan.within(CASE);
        let mut sessions = [engine::session(model)?, engine::session(model)?];
        let tried = self.rows.first(self.sweep);
        let (batch, found) = engine::best_batch(&mut sessions, &tried, &BATCHES, SWEEP)?;
        table.note(format!(
            "bulk {}, in-process rows/s by batch: {found}",
            self.name
        ));
        let (count, requests) = (self.rows.count(), self.requests);
        let total = (count * requests) as f64;
        let array = Array2::from_shape_vec((count, self.rows.width()), self.rows.elements.clone())?;
        // Gives the chunks of its last request too.
        let served = |(client, _): &mut (Client, Server)| {
            let (start, mut chunks) = (Instant::now(), 0);
            for _ in 0..requests {
                let response = client.infer(&array, self.name)?;
                ensure!(response.rows() == Some(count), "rows are missing");
                chunks = response.stats().chunks;
            }
            anyhow::Ok((total / start.elapsed().as_secs_f64(), chunks))
        };
        // The server gets to know how fast the model is.
        for _ in 0..3 {
            sides.each(served)?;
        }
        let (mut pairs, mut to_server, mut chunks) = (Pairs::default(), Pairs::default(), 0);
        while plan.goes_on(pairs.count()) {
            let rates = sides.each(served)?;
            let mut seconds = 0.0;
            for _ in 0..requests {
                seconds += engine::run_all(&mut sessions, &self.rows, batch)?.as_secs_f64();
            }
            chunks = rates.ours.1;
            let rates = rates.map(|(rate, _)| *rate);
            pairs.push(rates.ours, total / seconds);
            to_server.push_sides(rates);
        }
        let what = format!("bulk: {count} {} rows, 2 workers", self.name);
        table.add(&what, &pairs, "rows/s", self.bar);
        table.add_server("", &to_server, "rows/s", Bar::AtLeast(1.0));
        table.note(format!(
            "bulk {}: the baseline runs batches of {batch} rows and keeps its outputs; ours cut {chunks} chunks of about {} rows",
            self.name,
            count as u64 / chunks.max(1)
        ));
        Ok(())
    }
}
