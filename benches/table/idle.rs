//! What a server costs that has next to nothing to do: no request at all, and one a millisecond.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use ndarray::Array2;

use super::Plan;
use super::bulk::floats;
use super::children::{Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table, micros, quantile};
use super::sides::Sides;

/// How far apart requests begin.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a server is left alone first: what loading a model left to do is done by then.
pub const SETTLE: Duration = Duration::from_millis(500);

/// Of a server that gets a request a millisecond.
struct Paced {
    /// Processor time, in percent of a core.
    share: f64,
    p50_us: f64,
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("mlp", onnx::mlp())])?;
    let row = Array2::from_shape_vec((1, 64), floats(1).elements)?;
    let mut sides = Sides::of(plan, |program| start(program, &models, &row))?;
    let (idle, busy) = (
        plan.long(Duration::from_secs(3)),
        plan.long(Duration::from_secs(2)),
    );
    thread::sleep(SETTLE);

    let (mut shares, mut shares_to_server) = (Vec::new(), Pairs::default());
    while plan.goes_on(shares.len()) {
        // Both at once: neither does anything that the other would notice.
        let (before, start) = (
            sides.each(|server| server.process.fine_cpu())?,
            Instant::now(),
        );
        thread::sleep(idle);
        let (after, took) = (
            sides.each(|server| server.process.fine_cpu())?,
            start.elapsed(),
        );
        let ours = percent(after.ours.saturating_sub(before.ours), took);
        shares.push(ours);
        if let (Some(before), Some(after)) = (before.other, after.other) {
            shares_to_server.push(ours, percent(after.saturating_sub(before), took));
        }
    }
    table.add_alone("idle: an idle server, of a core", &shares, "%");
    table.add_server("", &shares_to_server, "%", Bar::AtMost(1.0));

    let (mut shares, mut times) = (Vec::new(), Vec::new());
    let (mut shares_to_server, mut times_to_server) = (Pairs::default(), Pairs::default());
    while plan.goes_on(shares.len()) {
        let paced = sides.each(|server| paced(server, &row, busy))?;
        shares.push(paced.ours.share);
        times.push(paced.ours.p50_us);
        shares_to_server.push_sides(paced.map(|paced| paced.share));
        times_to_server.push_sides(paced.map(|paced| paced.p50_us));
    }
    let what = "idle: mlp, 1 row, a request a millisecond, of a core";
    table.add_alone(what, &shares, "%");
    table.add_alone("  p50", &times, "µs");
    table.add_server("of a core", &shares_to_server, "%", Bar::AtMost(1.0));
    table.add_server("p50", &times_to_server, "µs", Bar::AtMost(1.0));
    Ok(())
}

/// A server that has loaded the model, and has no client any more.
fn start(program: &Path, models: &Models, row: &Array2<f32>) -> Result<Server> {
    let server = Server::start_program(program, models, &[])?;
    server.client()?.infer(row, "mlp")?;
    Ok(server)
}

pub fn percent(used: Duration, took: Duration) -> f64 {
    100.0 * used.as_secs_f64() / took.as_secs_f64()
}

fn paced(server: &Server, row: &Array2<f32>, long: Duration) -> Result<Paced> {
    let client = server.client()?;
    client.infer(row, "mlp")?;
    let (before, start) = (server.process.fine_cpu()?, Instant::now());
    let (mut due, mut times) = (start, Vec::new());
    while due < start + long {
        let now = Instant::now();
        thread::sleep(due.saturating_duration_since(now));
        let sent = Instant::now();
        client.infer(row, "mlp")?;
        times.push(sent.elapsed());
        // A request that took longer than a pause is followed at once, and not by a burst.
        due = (due + PAUSE).max(Instant::now());
    }
    let used = server.process.fine_cpu()?.saturating_sub(before);
    let share = percent(used, start.elapsed());
    Ok(Paced {
        share,
        p50_us: micros(quantile(&mut times, 0.5)),
    })
}
