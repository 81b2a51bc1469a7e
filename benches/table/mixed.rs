//! Small requests while big ones keep every worker busy: how long they take, and what they take from the big ones.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use mdm::{Client, Element};
use ndarray::Array2;

use super::Plan;
use super::bulk::{floats, ids};
use super::children::{Models, Server};
use super::engine::{Number, Rows};
use super::onnx;
use super::report::{Bar, Pairs, Table, median, quantile};
use super::sides::Sides;

const BULK_ROWS: usize = 8_000;
/// A quick look must not wait long for the last of them, but they have to keep the workers busy.
const LEAST_BULK_ROWS: usize = 2_000;
const BULK_CLIENTS: usize = 2;
/// How long each of the two models may take, about.
const CASE: Duration = Duration::from_secs(45);
/// How long bulk goes on by itself before it is measured: the server has forgotten by then that small requests came.
const FORGOTTEN: Duration = Duration::from_millis(1200);

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    Case {
        name: "mlp",
        model: onnx::mlp(),
        bulk: floats(BULK_ROWS),
        p99_ms: 2.0,
    }
    .measure(plan, table)?;
    Case {
        name: "bilstm",
        model: onnx::bilstm(),
        // A request takes most of a second.
        bulk: ids(plan.times(BULK_ROWS).max(LEAST_BULK_ROWS)),
        p99_ms: 2.5,
    }
    .measure(plan, table)
}

struct Case<T> {
    name: &'static str,
    model: Vec<u8>,
    bulk: Rows<T>,
    /// The bar of the small requests' p99.
    p99_ms: f64,
}

/// What was measured while bulk was served.
struct Loaded {
    /// Rows of bulk per second.
    rate: f64,
    /// Small requests beside it.
    small_times: Vec<Duration>,
}

impl Loaded {
    fn small_ms(&self, share: f64) -> f64 {
        quantile(&mut self.small_times.clone(), share).as_secs_f64() * 1e3
    }
}

impl<T: Number + Element> Case<T> {
    fn measure(self, plan: &Plan, table: &mut Table) -> Result<()> {
        let plan = &plan.within(CASE);
        let models = Models::write(&[("mlp", onnx::mlp()), (self.name, self.model.clone())])?;
        let mut sides = Sides::of(plan, |program| {
            let flags = ["--num-worker", "2", "--intra-op-threads", "1"];
            let server = Server::start_program(program, &models, &flags)?;
            Ok((server.client()?, server))
        })?;
        let count = self.bulk.count();
        let bulk = Array2::from_shape_vec((count, self.bulk.width()), self.bulk.elements.clone())?;
        let row = Array2::from_shape_vec((1, 64), floats(1).elements)?;
        let long = plan.long(Duration::from_millis(2500));
        let beside = |(client, _): &mut (Client, Server)| {
            load(client, (self.name, &bulk), long, Beside::Small(&row))
        };
        // The models are loaded, and the server gets to know how fast they are.
        sides.each(beside)?;

        let (mut p99, mut p50, mut small_count) = (Vec::new(), Vec::new(), 0);
        let [
            mut rate,
            mut p99_to_server,
            mut p50_to_server,
            mut rate_to_server,
        ] = [(); 4].map(|()| Pairs::default());
        while plan.goes_on(rate.count()) {
            let loaded = sides.each(beside)?;
            let client = &sides.ours.0;
            load(client, (self.name, &bulk), FORGOTTEN, Beside::Nothing)?;
            let alone = load(client, (self.name, &bulk), long, Beside::Nothing)?;
            p99.push(loaded.ours.small_ms(0.99));
            p50.push(loaded.ours.small_ms(0.5));
            small_count += loaded.ours.small_times.len();
            rate.push(loaded.ours.rate, alone.rate);
            p99_to_server.push_sides(loaded.map(|side| side.small_ms(0.99)));
            p50_to_server.push_sides(loaded.map(|side| side.small_ms(0.5)));
            rate_to_server.push_sides(loaded.map(|side| side.rate));
        }
        let what = format!(
            "mixed: mlp, 1 row, beside {count} rows of {}: p99",
            self.name
        );
        table.add_figure(&what, &p99, "ms", Bar::AtMost(self.p99_ms));
        table.add_figure("  p50", &p50, "ms", Bar::None);
        let what = "  bulk beside it, to bulk alone";
        table.add(what, &rate, "rows/s", Bar::AtLeast(0.85));
        table.add_server("p99", &p99_to_server, "ms", Bar::AtMost(1.0));
        table.add_server("p50", &p50_to_server, "ms", Bar::AtMost(1.0));
        table.add_server("bulk beside it", &rate_to_server, "rows/s", Bar::None);
        table.note(format!(
            "mixed {}: {small_count} small requests, p99 {:.2} ms; the far mark is 1 ms",
            self.name,
            median(p99)
        ));
        Ok(())
    }
}

/// What is asked while bulk is served.
#[derive(Clone, Copy)]
enum Beside<'a> {
    /// One row of mlp at a time.
    Small(&'a Array2<f32>),
    Nothing,
}

/// Bulk requests of two threads, for so long and until the last is answered; as long go the small requests, so that all
/// of the bulk has their company.
fn load<T: Number + Element>(
    client: &Client,
    (model, bulk): (&str, &Array2<T>),
    long: Duration,
    beside: Beside<'_>,
) -> Result<Loaded> {
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..BULK_CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut rows = 0;
                    while start.elapsed() < long {
                        let response = client.infer(bulk, model)?;
                        ensure!(response.rows() == Some(bulk.nrows()), "rows are missing");
                        rows += bulk.nrows();
                    }
                    anyhow::Ok(rows)
                })
            })
            .collect();
        let goes_on = || threads.iter().any(|thread| !thread.is_finished());
        let mut small_times = Vec::new();
        if let Beside::Small(row) = beside {
            // Until the workers have work.
            while goes_on() && client.status()?.queue.rows == 0 {}
            while goes_on() {
                let sent = Instant::now();
                client.infer(row, "mlp")?;
                small_times.push(sent.elapsed());
            }
        }
        let mut rows = 0;
        for thread in threads {
            rows += thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(Loaded {
            rate: rows as f64 / start.elapsed().as_secs_f64(),
            small_times,
        })
    })
}
