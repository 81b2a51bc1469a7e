//! 32 clients, each with one request at a time, against a bare TCP ping-pong of as many.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use mdm::Tensor;
use ndarray::Array2;

use super::Plan;
use super::bare::{Bare, request_frames, result_header};
use super::bulk::floats;
use super::children::{Models, Process, Server, own_cpu};
use super::onnx;
use super::report::{Bar, Pairs, Table, median};
use super::tcp::Tcp;

const CLIENTS: usize = 32;
/// What ZeroMQ adds to a message of ours: a byte of flags and one or eight of length for each frame.
const FRAMING_BYTES: usize = 8;

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("mlp", onnx::mlp())])?;
    let server = Server::start(&models, &[])?;
    let client = server.client()?;
    let rows = floats(1).elements;
    let array = Array2::from_shape_vec((1, 64), rows.clone())?;
    let tensor = Tensor::from_slice("x", vec![1, 64], &rows)?;
    let output = Tensor::from_slice("y", vec![1, 10], &[0f32; 10])?;
    let sent: usize = request_frames("mlp", &tensor).iter().map(|f| f.len()).sum();
    let answer = result_header(&output) + output.payload_bytes();
    let tcp = Tcp::start(sent + FRAMING_BYTES, answer + FRAMING_BYTES)?;

    let bare = Bare::start("mlp", &tensor, Some(&output))?;
    let payload: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();

    let long = plan.long(Duration::from_millis(1200));
    let mut costs = [Cost::default(), Cost::default(), Cost::default()];
    let [cost, tcp_cost, bare_cost] = &mut costs;
    let mut ours = || {
        run(long, &server.process, cost, || {
            let (client, array) = (&client, &array);
            Ok(move || client.infer(array, "mlp").map(drop).map_err(Into::into))
        })
    };
    let mut ping_pong = || {
        run(long, &tcp.process, tcp_cost, || {
            let mut ping = tcp.connect()?;
            Ok(move || ping.round_trip())
        })
    };
    let mut path = || {
        run(long, &bare.process, bare_cost, || {
            let (client, payload) = (bare.connect()?, &payload);
            Ok(move || client.round_trip(payload).map(drop))
        })
    };
    // The sessions are opened.
    ours()?;
    let (mut to_tcp, mut to_path) = (Pairs::default(), Pairs::default());
    while plan.goes_on(to_tcp.count()) {
        let (ours, tcp, path) = (ours()?, ping_pong()?, path()?);
        to_tcp.push(ours, tcp);
        to_path.push(ours, path);
    }
    let what = format!("clients: mlp, 1 row, {CLIENTS} clients, to TCP");
    table.add(&what, &to_tcp, "req/s", Bar::AtLeast(1.0));
    table.add("  to the bare ZeroMQ path", &to_path, "req/s", Bar::None);
    let totals = client.status()?.totals;
    let [cost, tcp_cost, bare_cost] = costs;
    table.note(format!(
        "clients: processor time per request: {cost}; TCP: {tcp_cost}; bare ZeroMQ: {bare_cost}; {:.1} requests per chunk",
        totals.requests as f64 / totals.chunks.max(1) as f64
    ));
    Ok(())
}

/// Processor time per request, in microseconds, of every measurement.
#[derive(Default)]
struct Cost {
    server: Vec<f64>,
    client: Vec<f64>,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (server, client) = (median(self.server.clone()), median(self.client.clone()));
        write!(f, "server {server:.1} µs, client {client:.1} µs")
    }
}

/// Requests per second of a thread per client, each of which does what `connect` gave it, over and over.
fn run<F: FnMut() -> Result<()>>(
    long: Duration,
    server: &Process,
    cost: &mut Cost,
    connect: impl Fn() -> Result<F> + Sync,
) -> Result<f64> {
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
        cost.server.push(per_request(server_cpu, server.cpu()?));
        cost.client.push(per_request(client_cpu, own_cpu()?));
        Ok(count as f64 / took.as_secs_f64())
    })
}
