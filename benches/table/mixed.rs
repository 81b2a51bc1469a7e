//! Small requests while big ones keep every worker busy, against the same without the big ones.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use mdm::Client;
use ndarray::Array2;

use super::Plan;
use super::bulk::{floats, ids};
use super::children::{Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table, micros, quantile};
use super::sides::Sides;

const BULK_ROWS: usize = 8_000;
/// A quick look must not wait long for the last of them, but they have to keep the workers busy.
const LEAST_BULK_ROWS: usize = 2_000;
const BULK_CLIENTS: usize = 2;

struct Side {
    _server: Server,
    client: Client,
    small_count: usize,
    bulk_rows: usize,
    seconds: f64,
}

impl Side {
    /// The times of small requests while the workers are busy.
    fn loaded(
        &mut self,
        bulk: &Array2<i64>,
        row: &Array2<f32>,
        long: Duration,
    ) -> Result<Vec<Duration>> {
        let (client, start) = (&self.client, Instant::now());
        let (times, rows) = loaded_down(client, bulk, || small(client, row, long))?;
        self.seconds += start.elapsed().as_secs_f64();
        self.small_count += times.len();
        self.bulk_rows += rows;
        Ok(times)
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("bilstm", onnx::bilstm()), ("mlp", onnx::mlp())])?;
    let mut sides = Sides::of(plan, |program| {
        let flags = ["--num-worker", "2", "--intra-op-threads", "1"];
        let server = Server::start_program(program, &models, &flags)?;
        Ok(Side {
            client: server.client()?,
            _server: server,
            small_count: 0,
            bulk_rows: 0,
            seconds: 0.0,
        })
    })?;
    let bulk_rows = plan.times(BULK_ROWS).max(LEAST_BULK_ROWS);
    let bulk = Array2::from_shape_vec((bulk_rows, 64), ids(bulk_rows).elements)?;
    let row = Array2::from_shape_vec((1, 64), floats(1).elements)?;
    sides.each(|side| {
        let some = bulk.slice(ndarray::s![..1000, ..]);
        side.client.infer(some, "bilstm")?;
        small(&side.client, &row, plan.long(Duration::from_millis(300)))
    })?;

    let (loaded, alone) = (
        plan.long(Duration::from_millis(4000)),
        plan.long(Duration::from_millis(1000)),
    );
    let [mut p50, mut p99, mut p50_to_server, mut p99_to_server] =
        [(); 4].map(|()| Pairs::default());
    while plan.goes_on(p50.count()) {
        let with = sides.each(|side| side.loaded(&bulk, &row, loaded))?;
        let mut without = small(&sides.ours.client, &row, alone)?;
        for (pairs, to_server, share) in [
            (&mut p50, &mut p50_to_server, 0.5),
            (&mut p99, &mut p99_to_server, 0.99),
        ] {
            let with = with.map(|times| micros(quantile(&mut times.clone(), share)));
            pairs.push(with.ours, micros(quantile(&mut without, share)));
            to_server.push_sides(with);
        }
    }
    table.add("mixed: mlp, 1 row, beside bulk: p99", &p99, "µs", Bar::None);
    table.add("  p50", &p50, "µs", Bar::None);
    table.add_server("p99", &p99_to_server, "µs", Bar::AtMost(1.0));
    table.add_server("p50", &p50_to_server, "µs", Bar::AtMost(1.0));
    let said = sides.map(|side| {
        format!(
            "{} small requests beside {:.0} bilstm rows/s",
            side.small_count,
            side.bulk_rows as f64 / side.seconds
        )
    });
    table.note(format!("mixed: {}", said.text()));
    Ok(())
}

/// The times of one-row requests, one after another.
fn small(client: &Client, row: &Array2<f32>, long: Duration) -> Result<Vec<Duration>> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < long {
        let sent = Instant::now();
        client.infer(row, "mlp")?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// Does something while bulk requests are served; gives their rows too.
fn loaded_down<T>(
    client: &Client,
    bulk: &Array2<i64>,
    once: impl FnOnce() -> Result<T>,
) -> Result<(T, usize)> {
    let (stop, rows) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..BULK_CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        client.infer(bulk, "bilstm")?;
                        rows.fetch_add(bulk.nrows(), Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        // Until the workers have work.
        let begun = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(2));
            client.status().is_ok_and(|status| status.queue.rows > 0)
        });
        let result = if begun {
            once()
        } else {
            Err(anyhow!(
                "the bulk requests are not to be seen in the status"
            ))
        };
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok((result?, rows.load(Ordering::Relaxed)))
    })
}
