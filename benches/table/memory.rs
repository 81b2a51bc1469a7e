//! Resident memory of a server with eight workers that have all run a model of 100 MB, against one with one worker.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use mdm::Client;
use ndarray::Array2;

use super::Plan;
use super::children::{Memory, Models, Server};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;

const MEGABYTES: usize = 100;
const WORKERS: usize = 8;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("heavy", onnx::matmul_weights(MEGABYTES))])?;
    // One server at a time: pages that two of them map would be counted in part.
    let mut programs = Sides::of(plan, |program| Ok(program.to_owned()))?;
    let [mut rss, mut pss, mut rss_to_server, mut pss_to_server] =
        [(); 4].map(|()| Pairs::default());
    while plan.goes_on(rss.count()) {
        let many = programs.each(|program| used(program, &models, WORKERS))?;
        let one = used(&programs.ours, &models, 1)?;
        rss.push(many.ours.rss, one.rss);
        pss.push(many.ours.pss, one.pss);
        rss_to_server.push_sides(many.map(|memory| memory.rss));
        pss_to_server.push_sides(many.map(|memory| memory.pss));
    }
    let what = format!("memory: {MEGABYTES} MB model, {WORKERS} workers to 1: RSS");
    table.add(&what, &rss, "B", Bar::AtMost(1.3));
    table.add("  PSS", &pss, "B", Bar::None);
    let what = format!("{WORKERS} workers: RSS");
    table.add_server(&what, &rss_to_server, "B", Bar::AtMost(1.0));
    table.add_server("PSS", &pss_to_server, "B", Bar::None);
    Ok(())
}

/// The memory of a server each of whose workers has run the model.
fn used(program: &Path, models: &Models, workers: usize) -> Result<Memory> {
    let workers_flag = workers.to_string();
    let server = Server::start_program(program, models, &["--num-worker", &workers_flag])?;
    let client = server.client()?;
    use_all(&client, workers)?;
    server.process.memory()
}

fn use_all(client: &Client, workers: usize) -> Result<()> {
    let (row, done) = (Array2::from_elem((1, 1024), 0.5f32), AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        client.infer(&row, "heavy")?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let result = all_used(client);
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        result
    })
}

/// Waits until every worker has run something.
fn all_used(client: &Client) -> Result<()> {
    let start = Instant::now();
    loop {
        let workers = client.status()?.workers;
        if workers.iter().all(|worker| worker.chunks > 0) {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!("some workers got no work: {workers:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
