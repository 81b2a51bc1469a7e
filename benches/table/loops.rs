//! Closed loops: so many threads at once, each with one request at a time, and what a request costs both processes.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::children::{Process, own_cpu};
use super::report::median;

/// How many loops run at once.
pub const CLIENTS: usize = 32;

/// What a measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests per second.
    pub rate: f64,
    /// The server's processor time per request, in microseconds.
    pub server_us: f64,
    /// That of this process, which the clients are in.
    pub client_us: f64,
}

/// The processor time of every measurement.
#[derive(Clone, Debug, Default)]
pub struct Costs(Vec<Measured>);

impl Costs {
    /// Adds one, and gives its rate.
    pub fn push(&mut self, measured: Measured) -> f64 {
        self.0.push(measured);
        measured.rate
    }
}

impl std::fmt::Display for Costs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let server = median(self.0.iter().map(|m| m.server_us).collect());
        let client = median(self.0.iter().map(|m| m.client_us).collect());
        write!(f, "server {server:.1} µs, client {client:.1} µs")
    }
}

/// Runs a thread for each client; each does what `connect` gave it over and over.
pub fn run<F: FnMut() -> Result<()>>(
    long: Duration,
    server: &Process,
    connect: impl Fn() -> Result<F> + Sync,
) -> Result<Measured> {
    let stop = AtomicBool::new(false);
    let connected = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let ready = connect().and_then(|mut once| once().map(|()| once));
                    connected.wait();
                    let mut once = ready?;
                    let mut count = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        once()?;
                        count += 1;
                    }
                    anyhow::Ok(count)
                })
            })
            .collect();
        connected.wait();
        let (server_cpu, client_cpu) = (server.cpu()?, own_cpu()?);
        let start = Instant::now();
        thread::sleep(long);
        stop.store(true, Ordering::Relaxed);
        let took = start.elapsed();
        let mut count = 0;
        for thread in threads {
            count += thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        let per_request =
            |from: Duration, to: Duration| (to - from).as_secs_f64() * 1e6 / count as f64;
        Ok(Measured {
            rate: count as f64 / took.as_secs_f64(),
            server_us: per_request(server_cpu, server.cpu()?),
            client_us: per_request(client_cpu, own_cpu()?),
        })
    })
}
