//! One row per request, 64 requests in flight from one session, against the bare ZeroMQ path with as many; and 20,000 in
//! flight, against the 64.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

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
/// Far more than the server's loops take at once, and less than one client may have open by default.
const DEEP: usize = 20_000;
/// So that most of them find the queue full; a quick look has as many.
const DEEP_COUNT: usize = 60_000;

struct Side {
    server: Server,
    client: Client,
    shallow: Totals,
    deep: Totals,
}

/// What the server did in all measurements of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    requests: u64,
    chunks: u64,
    cpu: Duration,
}

impl Side {
    fn start(program: &Path, models: &Models) -> Result<Side> {
        let server = Server::start_program(program, models, &[])?;
        Ok(Side {
            client: server.client()?,
            server,
            shallow: Totals::default(),
            deep: Totals::default(),
        })
    }

    /// Everything that the server did so far.
    fn totals(&self) -> Result<Totals> {
        let totals = self.client.status()?.totals;
        Ok(Totals {
            requests: totals.requests,
            chunks: totals.chunks,
            cpu: self.server.process.cpu()?,
        })
    }

    fn shallow(&mut self, array: &Array2<f32>, count: usize) -> Result<f64> {
        let before = self.totals()?;
        let rate = ours(&self.client, array, count, IN_FLIGHT)?;
        self.shallow.add(before, self.totals()?);
        Ok(rate)
    }

    fn deep(&mut self, array: &Array2<f32>) -> Result<f64> {
        let before = self.totals()?;
        let rate = ours(&self.client, array, DEEP_COUNT, DEEP)?;
        self.deep.add(before, self.totals()?);
        Ok(rate)
    }
}

impl Totals {
    fn add(&mut self, before: Totals, after: Totals) {
        self.requests += after.requests - before.requests;
        self.chunks += after.chunks - before.chunks;
        self.cpu += after.cpu - before.cpu;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requests = self.requests as f64;
        let per_chunk = requests / self.chunks.max(1) as f64;
        let cpu = self.cpu.as_secs_f64() * 1e6 / requests;
        write!(
            f,
            "{per_chunk:.1} requests per chunk, processor time of the server per request {cpu:.1} µs"
        )
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("echo", onnx::echo(DataType::Fp32, &[256]))])?;
    let mut sides = Sides::of(plan, |program| Side::start(program, &models))?;
    let array = Array2::from_elem((1, 256), 1f32);
    let tensor = Tensor::from_slice("x", vec![1, 256], &[1f32; 256])?;
    let far = Bare::start("echo", &tensor, None)?;
    let bare = far.connect()?;
    let (count, bare_count) = (plan.times(40_000), plan.times(100_000));

    sides.each(|side| ours(&side.client, &array, count / 4, IN_FLIGHT))?;
    baseline(&bare, bare_count / 4)?;
    let [mut to_path, mut to_server, mut deep, mut deep_to_server] =
        [(); 4].map(|()| Pairs::default());
    while plan.goes_on(to_path.count()) {
        let rates = sides.each(|side| side.shallow(&array, count))?;
        let deep_rates = sides.each(|side| side.deep(&array))?;
        to_path.push(rates.ours, baseline(&bare, bare_count)?);
        deep.push(deep_rates.ours, rates.ours);
        to_server.push_sides(rates);
        deep_to_server.push_sides(deep_rates);
    }
    let what = format!("pipelined: echo, 1 row, {IN_FLIGHT} in flight");
    table.add(&what, &to_path, "req/s", Bar::AtLeast(0.65));
    table.add_server("", &to_server, "req/s", Bar::None);
    let what = format!("  {DEEP} in flight, to {IN_FLIGHT}");
    table.add(&what, &deep, "req/s", Bar::AtLeast(0.9));
    table.add_server(
        &format!("{DEEP} in flight"),
        &deep_to_server,
        "req/s",
        Bar::None,
    );
    let shallow = sides.map(|side| side.shallow.to_string()).text();
    let deep = sides.map(|side| side.deep.to_string()).text();
    table.note(format!(
        "pipelined: {shallow}; the far mark is 0.80 of the bare ZeroMQ path"
    ));
    table.note(format!("pipelined, {DEEP} in flight: {deep}"));
    Ok(())
}

fn ours(client: &Client, array: &Array2<f32>, count: usize, in_flight: usize) -> Result<f64> {
    let start = Instant::now();
    let mut window = VecDeque::with_capacity(in_flight);
    for _ in 0..count {
        if window.len() == in_flight
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
