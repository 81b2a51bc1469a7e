//! One row per request, 64 requests in flight from one session, against the bare ZeroMQ path with as many.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use mdm::Tensor;
use mdm::{Client, DataType};
use ndarray::Array2;

use super::Plan;
use super::bare::{Bare, BareClient};
use super::children::{Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;

const IN_FLIGHT: usize = 64;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("echo", onnx::echo(DataType::Fp32, &[256]))])?;
    let mut sides = Sides::of(plan, |program| {
        let server = Server::start_program(program, &models, &[])?;
        Ok((server.client()?, server))
    })?;
    let array = Array2::from_elem((1, 256), 1f32);
    let tensor = Tensor::from_slice("x", vec![1, 256], &[1f32; 256])?;
    let far = Bare::start("echo", &tensor, None)?;
    let bare = far.connect()?;
    let (count, bare_count) = (plan.times(40_000), plan.times(100_000));

    sides.each(|(client, _)| ours(client, &array, count / 4))?;
    baseline(&bare, bare_count / 4)?;
    let (mut pairs, mut to_server) = (Pairs::default(), Pairs::default());
    while plan.goes_on(pairs.count()) {
        let rates = sides.each(|(client, _)| ours(client, &array, count))?;
        pairs.push(rates.ours, baseline(&bare, bare_count)?);
        to_server.push_sides(rates);
    }
    table.add(
        "pipelined: echo, 1 row, 64 in flight",
        &pairs,
        "req/s",
        Bar::AtLeast(0.4),
    );
    table.add_server("", &to_server, "req/s", Bar::None);
    let said = sides.each(|(client, server)| {
        let totals = client.status()?.totals;
        let cpu = server.process.cpu()?.as_secs_f64() * 1e6 / totals.requests as f64;
        let per_chunk = totals.requests as f64 / totals.chunks.max(1) as f64;
        Ok(format!(
            "{per_chunk:.1} requests per chunk on average, processor time of the server per request {cpu:.1} µs"
        ))
    })?;
    table.note(format!("pipelined: {}", said.text()));
    Ok(())
}

fn ours(client: &Client, array: &Array2<f32>, count: usize) -> Result<f64> {
    let start = Instant::now();
    let mut window = VecDeque::with_capacity(IN_FLIGHT);
    for _ in 0..count {
        if window.len() == IN_FLIGHT
            && let Some(ticket) = window.pop_front()
        {
            client.fetch(ticket)?;
        }
        window.push_back(client.submit(array, "echo")?);
    }
    for ticket in window {
        client.fetch(ticket)?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn baseline(bare: &BareClient, count: usize) -> Result<f64> {
    let payload = [0u8; 1024];
    let start = Instant::now();
    for index in 0..count {
        if index >= IN_FLIGHT {
            bare.wait()?;
        }
        bare.send(zmq::Message::from(&payload[..]))?;
    }
    for _ in 0..IN_FLIGHT.min(count) {
        bare.wait()?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
