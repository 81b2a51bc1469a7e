//! One row, one client, one request at a time: what the server adds to the bare ZeroMQ path and the model itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use mdm::{Client, Tensor};
use ndarray::Array2;

use super::Plan;
use super::bare::Bare;
use super::bulk::floats;
use super::children::{Models, Server};
use super::engine;
use super::onnx;
use super::report::{Bar, Pairs, Table, median, micros, quantile, show};
use super::sides::Sides;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let count = plan.times(3_000);
    let model = onnx::mlp();
    let models = Models::write(&[("mlp", model.clone())])?;
    let mut sides = Sides::of(plan, |program| {
        let server = Server::start_program(program, &models, &[])?;
        Ok((server.client()?, server))
    })?;
    let rows = floats(1);
    let array = Array2::from_shape_vec((1, 64), rows.elements.clone())?;
    let far = Bare::start(
        "mlp",
        &Tensor::from_slice("x", vec![1, 64], &rows.elements)?,
        Some(&Tensor::from_slice("y", vec![1, 10], &[0f32; 10])?),
    )?;
    let bare = far.connect()?;
    let payload: Vec<u8> = rows.elements.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut session = engine::session(&model)?;

    let whole = |(client, _): &mut (Client, Server)| {
        half_of(count, || client.infer(&array, "mlp").map_err(Into::into)).map(micros)
    };
    let path = || half_of(count, || bare.round_trip(&payload));
    let mut run = || half_of(count, || engine::run(&mut session, &rows, 0, 1));
    sides.each(whole)?;
    path()?;
    run()?;
    let (mut pairs, mut to_server) = (Pairs::default(), Pairs::default());
    let (mut alone, mut paths) = (Vec::new(), Vec::new());
    while plan.goes_on(pairs.count()) {
        let whole = sides.each(whole)?;
        let (path, run) = (path()?, run()?);
        pairs.push(whole.ours, micros(path + run));
        to_server.push_sides(whole);
        paths.push(micros(path));
        alone.push(micros(run));
    }
    table.add(
        "small: mlp, 1 row, 1 client, p50",
        &pairs,
        "µs",
        Bar::AtMost(0.5),
    );
    table.add_server("", &to_server, "µs", Bar::None);
    table.note(format!(
        "small: the baseline is the bare ZeroMQ path ({}) and the model's own run ({})",
        show(median(paths), "µs"),
        show(median(alone), "µs")
    ));
    Ok(())
}

/// Does it so often, and gives the time that half of them took at most.
fn half_of<T>(count: usize, mut once: impl FnMut() -> Result<T>) -> Result<Duration> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let result = once()?;
        times.push(start.elapsed());
        drop(result);
    }
    Ok(quantile(&mut times, 0.5))
}
