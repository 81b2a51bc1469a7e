//! 32 threads on one `Client`, each with one request at a time, against as many clients of the bare ZeroMQ path and a
//! bare TCP ping-pong of as many connections.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mdm::{Client, Tensor};
use ndarray::Array2;

use super::Plan;
use super::bare::{Bare, request_frames, result_header};
use super::bulk::floats;
use super::children::{Models, Server};
use super::loops::{CLIENTS, Costs, Measured, run};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;
use super::tcp::Tcp;

/// What ZeroMQ adds to a message of ours: a byte of flags and one or eight of length for each frame.
const FRAMING_BYTES: usize = 8;

struct Side {
    server: Server,
    client: Client,
    costs: Costs,
}

impl Side {
    fn start(program: &Path, models: &Models) -> Result<Side> {
        let server = Server::start_program(program, models, &[])?;
        Ok(Side {
            client: server.client()?,
            server,
            costs: Costs::default(),
        })
    }

    fn measure(&mut self, long: Duration, row: &Array2<f32>) -> Result<Measured> {
        let client = &self.client;
        let measured = run(long, &self.server.process, || {
            Ok(move || client.infer(row, "mlp").map(drop).map_err(Into::into))
        })?;
        self.costs.push(measured);
        Ok(measured)
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("mlp", onnx::mlp())])?;
    let mut sides = Sides::of(plan, |program| Side::start(program, &models))?;
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
    let (mut tcp_costs, mut bare_costs) = (Costs::default(), Costs::default());
    let mut ping_pong = || {
        anyhow::Ok(tcp_costs.push(run(long, &tcp.process, || {
            let mut ping = tcp.connect()?;
            Ok(move || ping.round_trip())
        })?))
    };
    let path = || {
        run(long, &bare.process, || {
            let (client, payload) = (bare.connect()?, &payload);
            Ok(move || client.round_trip(payload).map(drop))
        })
    };
    // The sessions are opened.
    sides.each(|side| side.measure(long, &array))?;
    let [mut to_path, mut to_tcp, mut to_server] = [(); 3].map(|()| Pairs::default());
    let [mut server_cpu, mut client_cpu] = [(); 2].map(|()| Pairs::default());
    while plan.goes_on(to_path.count()) {
        let (measured, bare) = (sides.each(|side| side.measure(long, &array))?, path()?);
        bare_costs.push(bare);
        let ours = measured.ours;
        to_path.push(ours.rate, bare.rate);
        to_tcp.push(ours.rate, ping_pong()?);
        server_cpu.push(ours.server_us, bare.server_us);
        client_cpu.push(ours.client_us, bare.client_us);
        to_server.push_sides(measured.map(|side| side.rate));
    }
    let what = format!("clients: mlp, 1 row, {CLIENTS} threads, to the bare ZeroMQ path");
    table.add(&what, &to_path, "req/s", Bar::AtLeast(1.4));
    table.add("  to TCP", &to_tcp, "req/s", Bar::AtLeast(0.25));
    for (who, cpu, bar) in [("server", &server_cpu, 0.75), ("client", &client_cpu, 0.6)] {
        let what = format!("  {who}'s processor time a request, to the bare ZeroMQ path");
        table.add(&what, cpu, "µs", Bar::AtMost(bar));
    }
    table.add_server("", &to_server, "req/s", Bar::None);
    let costs = sides.map(|side| side.costs.to_string()).text();
    let totals = sides.ours.client.status()?.totals;
    table.note(format!(
        "clients: processor time per request: {costs}; TCP: {tcp_costs}; bare ZeroMQ: {bare_costs}; {:.1} requests per chunk; \
         far marks to TCP: 0.35 and 1.00",
        totals.requests as f64 / totals.chunks.max(1) as f64
    ));
    Ok(())
}
