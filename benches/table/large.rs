//! 64 MiB in one request, and as much back, against the bare ZeroMQ path.

use std::time::Instant;

use anyhow::{Result, ensure};
use mdm::{Client, DataType, Tensor};
use ndarray::Array2;

use super::Plan;
use super::bare::Bare;
use super::children::{Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table};

const ROWS: usize = 65_536;
const WIDTH: usize = 256;
const BYTES: usize = ROWS * WIDTH * 4;

/// 2 GB/s where the bare path gives 1.3.
const BAR: f64 = 2.0 / 1.3;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("echo", onnx::echo(DataType::Fp32, &[WIDTH]))])?;
    let server = Server::start(&models, &[])?;
    let client = server.client()?;
    let array = Array2::from_elem((ROWS, WIDTH), 1.5f32);
    let tensor = Tensor::from_vec(
        "",
        vec![ROWS, WIDTH],
        array
            .as_standard_layout()
            .to_owned()
            .into_raw_vec_and_offset()
            .0,
    )?;
    let far = Bare::start("echo", &tensor, None)?;
    let bare = far.connect()?;
    let payload: Vec<u8> = array.iter().flat_map(|x| x.to_le_bytes()).collect();
    let count = plan.times(5);

    let mut chunks = 0;
    let mut lent = || {
        rate(count, || {
            let response = client.infer(&array, "echo")?;
            chunks = response.stats().chunks;
            check(&response)
        })
    };
    let handed = || given(&client, &tensor, count);
    // As ours: what is lent is copied into memory of its own.
    let path = || {
        rate(count, || {
            let result = bare.round_trip(&payload)?;
            ensure!(result.len() == BYTES, "bytes are missing");
            Ok(())
        })
    };
    for _ in 0..2 {
        lent()?;
        handed()?;
        path()?;
    }
    let (mut borrowed, mut moved) = (Pairs::default(), Pairs::default());
    while plan.goes_on(borrowed.count()) {
        let (ours, path, also) = (lent()?, path()?, handed()?);
        borrowed.push(ours, path);
        moved.push(also, path);
    }
    table.add(
        "large: echo, 64 MiB, both directions",
        &borrowed,
        "B/s",
        Bar::AtLeast(BAR),
    );
    table.add(
        "  the same, rows handed over to the client",
        &moved,
        "B/s",
        Bar::None,
    );
    table.note(format!(
        "large: the bar is 2 GB/s where the bare path gives 1.3; ours ran in {chunks} chunks, one worker"
    ));
    Ok(())
}

fn given(client: &Client, tensor: &Tensor, count: usize) -> Result<f64> {
    rate(count, || check(&client.infer(tensor.clone(), "echo")?))
}

fn check(response: &mdm::client::Response) -> Result<()> {
    ensure!(response.rows_total() == Some(ROWS), "rows are missing");
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
