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

const BULK_ROWS: usize = 8_000;
const BULK_CLIENTS: usize = 2;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("bilstm", onnx::bilstm()), ("mlp", onnx::mlp())])?;
    let server = Server::start(&models, &["--num-worker", "2", "--intra-op-threads", "1"])?;
    let client = server.client()?;
    let bulk = Array2::from_shape_vec((BULK_ROWS, 64), ids(BULK_ROWS).elements)?;
    let row = Array2::from_shape_vec((1, 64), floats(1).elements)?;
    client.infer(bulk.slice(ndarray::s![..1000, ..]), "bilstm")?;
    small(&client, &row, plan.long(Duration::from_millis(300)))?;

    let (loaded, alone) = (
        plan.long(Duration::from_millis(4000)),
        plan.long(Duration::from_millis(1000)),
    );
    let (mut p50, mut p99) = (Pairs::default(), Pairs::default());
    let (mut small_count, mut bulk_rows, mut seconds) = (0, 0, 0.0);
    while plan.goes_on(p50.count()) {
        let start = Instant::now();
        let (mut with, rows) = loaded_down(&client, &bulk, || small(&client, &row, loaded))?;
        seconds += start.elapsed().as_secs_f64();
        let mut without = small(&client, &row, alone)?;
        small_count += with.len();
        bulk_rows += rows;
        for (pairs, share) in [(&mut p50, 0.5), (&mut p99, 0.99)] {
            let (with, without) = (quantile(&mut with, share), quantile(&mut without, share));
            pairs.push(micros(with), micros(without));
        }
    }
    table.add("mixed: mlp, 1 row, beside bulk: p99", &p99, "µs", Bar::None);
    table.add("  p50", &p50, "µs", Bar::None);
    table.note(format!(
        "mixed: {small_count} small requests beside {:.0} bilstm rows/s",
        bulk_rows as f64 / seconds
    ));
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
