//! A few rows that take long each: 64 images through a ResNet-50 in one request on two workers, against two sessions in
//! this process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mdm::Client;
use ndarray::Array4;

use super::Plan;
use super::children::{Models, Server};
use super::engine::{self, Rows};
use super::report::{Bar, Pairs, Table};
use super::resnet50;
use super::sides::Sides;

const IMAGES: usize = 64;
/// Channels, height and width.
const DIMS: [usize; 3] = [3, 224, 224];
const BATCHES: [usize; 4] = [1, 2, 4, 8];
/// A quick look tries the batch sizes with fewer images: a batch of the largest size for each session at least.
const LEAST_TRIED: usize = 16;
/// How long the search for a batch size may take, and the pairs after it, about.
const SWEEP: Duration = Duration::from_secs(30);
const CASE: Duration = Duration::from_secs(30);

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let model = resnet50::resnet50(1);
    let models = Models::write(&[("resnet50", model.clone())])?;
    let mut sides = Sides::of(plan, |program| {
        let flags = ["--num-worker", "2", "--intra-op-threads", "1"];
        let server = Server::start_program(program, &models, &flags)?;
        Ok((server.client()?, server))
    })?;
    let rows = images();
    let mut sessions = [engine::session(&model)?, engine::session(&model)?];
    drop(model);
    let tried = rows.first(plan.times(IMAGES).max(LEAST_TRIED));
    let (batch, found) = engine::best_batch(&mut sessions, &tried, &BATCHES, SWEEP)?;
    drop(tried);

    let [channels, height, width] = DIMS;
    let array = Array4::from_shape_vec((IMAGES, channels, height, width), rows.elements.clone())?;
    // Gives the chunks of the request too.
    let served = |(client, _): &mut (Client, Server)| {
        let start = Instant::now();
        let response = client.infer(&array, "resnet50")?;
        let took = start.elapsed();
        ensure!(response.rows() == Some(IMAGES), "rows are missing");
        anyhow::Ok((IMAGES as f64 / took.as_secs_f64(), response.stats().chunks))
    };
    // The server gets to know how fast the model is.
    for _ in 0..plan.times(3) {
        sides.each(served)?;
    }
    let plan = &plan.within(CASE);
    let (mut pairs, mut to_server, mut chunks) = (Pairs::default(), Pairs::default(), 0);
    while plan.goes_on(pairs.count()) {
        let rates = sides.each(served)?;
        let took = engine::run_all(&mut sessions, &rows, batch)?;
        chunks = rates.ours.1;
        let rates = rates.map(|(rate, _)| *rate);
        pairs.push(rates.ours, IMAGES as f64 / took.as_secs_f64());
        to_server.push_sides(rates);
    }
    let what = format!("heavy: {IMAGES} images through ResNet-50, 2 workers");
    table.add(&what, &pairs, "images/s", Bar::AtLeast(0.98));
    table.add_server("", &to_server, "images/s", Bar::AtLeast(1.0));
    table.note(format!(
        "heavy: in-process images/s by batch: {found}; the baseline runs batches of {batch}; ours cut {chunks} chunks"
    ));
    Ok(())
}

/// Numbers as a normalised picture has them.
fn images() -> Rows<f32> {
    let elements = IMAGES * DIMS.iter().product::<usize>();
    Rows {
        elements: (0..elements)
            .map(|i| (i * 7919 % 1021) as f32 / 255.0 - 2.0)
            .collect(),
        dims: DIMS.to_vec(),
    }
}
