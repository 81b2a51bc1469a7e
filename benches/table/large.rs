//! 64 MiB in one request, and as much back, against a bare TCP echo that has all of it in memory before it answers.

use std::time::Instant;

use anyhow::{Result, ensure};
use mdm::{Client, DataType, Tensor};
use ndarray::Array2;

use super::Plan;
use super::bare::Bare;
use super::children::{Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;
use super::tcp::Echo;

const ROWS: usize = 65_536;
const WIDTH: usize = 256;
const BYTES: usize = ROWS * WIDTH * 4;

struct Side {
    _server: Server,
    client: Client,
    chunks: u64,
}

impl Side {
    /// The client's program keeps its rows.
    fn lent(&mut self, count: usize, array: &Array2<f32>) -> Result<f64> {
        rate(count, || {
            let response = self.client.infer(array, "echo")?;
            self.chunks = response.stats().chunks;
            check(response.rows())
        })
    }

    /// The client's program gives its rows away.
    fn handed_over(&self, count: usize, tensor: &Tensor) -> Result<f64> {
        rate(count, || {
            check(self.client.infer(tensor.clone(), "echo")?.rows())
        })
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("echo", onnx::echo(DataType::Fp32, &[WIDTH]))])?;
    let mut sides = Sides::of(plan, |program| {
        let server = Server::start_program(program, &models, &[])?;
        Ok(Side {
            client: server.client()?,
            _server: server,
            chunks: 0,
        })
    })?;
    let array = Array2::from_elem((ROWS, WIDTH), 1.5f32);
    let tensor = Tensor::from_vec("", vec![ROWS, WIDTH], vec![1.5f32; ROWS * WIDTH])?;
    let far = Bare::start("echo", &tensor, None)?;
    let bare = far.connect()?;
    let mut echo = Echo::start(BYTES)?;
    let payload: Vec<u8> = array.iter().flat_map(|x| x.to_le_bytes()).collect();
    let count = plan.times(5);

    let mut tcp = || rate(count, || all_of(&echo.round_trip(&payload)?));
    // What is lent is copied into memory of its own here.
    let path = || rate(count, || all_of(&bare.round_trip(&payload)?));
    for _ in 0..2 {
        sides.each(|side| side.lent(count, &array))?;
        sides.ours.handed_over(count, &tensor)?;
        tcp()?;
        path()?;
    }
    let [mut to_tcp, mut handed_to_tcp, mut to_path, mut to_server] =
        [(); 4].map(|()| Pairs::default());
    while plan.goes_on(to_tcp.count()) {
        let lent = sides.each(|side| side.lent(count, &array))?;
        let tcp = tcp()?;
        to_tcp.push(lent.ours, tcp);
        handed_to_tcp.push(sides.ours.handed_over(count, &tensor)?, tcp);
        to_path.push(lent.ours, path()?);
        to_server.push_sides(lent);
    }
    let what = "large: echo, 64 MiB, both directions, to a bare TCP echo";
    table.add(what, &to_tcp, "B/s", Bar::AtLeast(0.95));
    let what = "  the same, rows handed over to the client";
    table.add(what, &handed_to_tcp, "B/s", Bar::None);
    table.add("  to the bare ZeroMQ path", &to_path, "B/s", Bar::None);
    table.add_server("", &to_server, "B/s", Bar::None);
    let chunks = sides.map(|side| format!("{} chunks", side.chunks));
    table.note(format!("large: one worker ran {}", chunks.text()));
    Ok(())
}

fn check(rows: Option<usize>) -> Result<()> {
    ensure!(rows == Some(ROWS), "rows are missing");
    Ok(())
}

fn all_of(message: &[u8]) -> Result<()> {
    ensure!(message.len() == BYTES, "bytes are missing");
    Ok(())
}

/// Bytes per second in both directions.
fn rate(count: usize, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        once()?;
    }
    Ok((2 * BYTES * count) as f64 / start.elapsed().as_secs_f64())
}
