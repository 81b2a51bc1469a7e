//! The doors beside what they are made of: our ZeroMQ client, and bare servers of hyper and tonic with bodies of the same
//! sizes. The generator is that of `mdm-bench`, for ours and for the baselines.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mdm::client::Call;
use mdm::{Batch, DataType, Params, Tensor};

use super::bulk::floats;
use super::children::{Models, Process, Server};
use super::echo::{self, Bare};
use super::generator::Case;
use super::generator::doors::grpc::Grpc;
use super::generator::doors::http::{Encoding, Http};
use super::generator::doors::zmq::Zmq;
use super::generator::doors::{Asked, Door};
use super::generator::drive::Drive;
use super::generator::load::Window;
use super::generator::report::Report;
use super::idle::{SETTLE, percent};
use super::loops::{CLIENTS, Costs, Measured};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::{PART, Plan};

/// Numbers of a row of the large echo, and its rows: 64 MiB.
const WIDTH: usize = 256;
const LARGE_ROWS: usize = 65_536;
/// Rows of the bulk request.
const BULK_ROWS: usize = 8_000;
/// Connections that gRPC's requests in flight share.
const CHANNELS: usize = 4;
/// The longest that a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Rest,
    Grpc,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Rest => "REST binary",
            Protocol::Grpc => "gRPC",
        }
    }

    /// The library of the bare server.
    fn library(self) -> &'static str {
        match self {
            Protocol::Rest => "hyper",
            Protocol::Grpc => "tonic",
        }
    }

    fn port(self, server: &Server) -> Result<u16> {
        match self {
            Protocol::Rest => server.http_port(),
            Protocol::Grpc => server.grpc_port(),
        }
    }

    /// A door with one prepared request.
    fn door(self, port: u16, model: &str, batch: &Batch) -> Result<Box<dyn Door>> {
        match self {
            Protocol::Rest => rest(port, model, batch, Encoding::Binary),
            Protocol::Grpc => {
                let grpc = Grpc::new(&format!("http://127.0.0.1:{port}"), asked(model))?;
                prepared(grpc, batch)
            }
        }
    }

    /// A bare server whose answers are as long as this door's, and a door to it with the same request.
    fn bare(self, door: &dyn Door, model: &str, batch: &Batch) -> Result<(Bare, Box<dyn Door>)> {
        let mode = match self {
            Protocol::Rest => echo::HTTP,
            Protocol::Grpc => echo::GRPC,
        };
        let bare = Bare::start(mode, door.try_one()?)?;
        let to_bare = self.door(bare.port, model, batch)?;
        Ok((bare, to_bare))
    }

    /// How many of the requests in flight each connection has.
    fn connections(self) -> Vec<usize> {
        match self {
            Protocol::Rest => vec![1; CLIENTS],
            Protocol::Grpc => vec![CLIENTS / CHANNELS; CHANNELS],
        }
    }
}

fn asked(model: &str) -> Asked {
    Asked {
        model: model.to_owned(),
        params: Params::default(),
        timeout: PATIENCE,
    }
}

fn prepared(mut door: impl Door + 'static, batch: &Batch) -> Result<Box<dyn Door>> {
    door.prepare(vec![batch.clone()])?;
    Ok(Box::new(door))
}

fn rest(port: u16, model: &str, batch: &Batch, encoding: Encoding) -> Result<Box<dyn Door>> {
    let http = Http::new(&format!("http://127.0.0.1:{port}"), encoding, asked(model))?;
    prepared(http, batch)
}

/// Our own protocol, by our own client.
fn zmq(server: &Server, model: &str, batch: &Batch) -> Result<Box<dyn Door>> {
    let call = Call::model(model).timeout(PATIENCE);
    let zmq = Zmq::new(format!("tcp://127.0.0.1:{}", server.port), call);
    prepared(zmq, batch)
}

/// The same request again and again.
fn drive(door: &dyn Door, in_flight: &[usize], extent: Extent, rows: usize) -> Result<Report> {
    let connections = in_flight.iter().map(|&each| door.connect(each));
    let drive = Drive {
        case: Case {
            rows,
            concurrency: in_flight.iter().sum(),
            rate: None,
        },
        window: extent.window(),
        connections: connections.collect::<Result<_>>()?,
        requests: 1,
    };
    let report = drive.run(|_| {})?;
    ensure!(
        report.failed == 0 && report.requests > 0,
        "of {} requests {} failed: {:?}",
        report.requests,
        report.failed,
        report.failures
    );
    Ok(report)
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
enum Extent {
    Long(Duration),
    Requests(usize),
}

impl Extent {
    fn window(self) -> Window {
        let (length, requests) = match self {
            Extent::Long(length) => (length, None),
            Extent::Requests(count) => (PATIENCE, Some(count as u64)),
        };
        Window {
            start: Duration::ZERO,
            length,
            requests,
        }
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[
        ("mlp", onnx::mlp()),
        ("echo", onnx::echo(DataType::Fp32, &[WIDTH])),
    ])?;
    let workers = &["--num-worker", "2"][..];
    let ports = &["--http-port", "0", "--grpc-port", "0"][..];
    let server = Server::start(&models, &[workers, ports].concat())?;
    for protocol in [Protocol::Rest, Protocol::Grpc] {
        let plan = &plan.within(PART);
        one_client(plan, table, &server, protocol)?;
        many(plan, table, &server, protocol)?;
        if protocol == Protocol::Rest {
            bulk(plan, table, &server)?;
        }
        large(plan, table, &server, protocol)?;
    }
    drop(server);
    let without = Server::start(&models, workers)?;
    let with = Server::start(&models, &[workers, ports].concat())?;
    idle(&plan.within(PART), table, &with, &without)
}

fn batch(rows: Vec<f32>, width: usize) -> Result<Batch> {
    let shape = vec![rows.len() / width, width];
    Ok(Tensor::from_vec("x", shape, rows)?.into())
}

fn one_client(plan: &Plan, table: &mut Table, server: &Server, protocol: Protocol) -> Result<()> {
    let count = Extent::Requests(plan.times(3_000));
    let row = batch(floats(1).elements, 64)?;
    let door = protocol.door(protocol.port(server)?, "mlp", &row)?;
    let (_bare, to_bare) = protocol.bare(&*door, "mlp", &row)?;
    let zmq = zmq(server, "mlp", &row)?;
    let p50 = |door: &dyn Door| anyhow::Ok(drive(door, &[1], count, 1)?.latency_us.p50);
    let all = || anyhow::Ok((p50(&*door)?, p50(&*zmq)?, p50(&*to_bare)?));
    all()?;
    let mut pairs = Pairs::default();
    while plan.goes_on(pairs.count()) {
        let (ours, zmq, path) = all()?;
        pairs.push(ours, zmq + path);
    }
    let what = format!(
        "doors: {}, mlp, 1 row, 1 client, p50, to ZeroMQ's plus bare {}'s",
        protocol.name(),
        protocol.library()
    );
    table.add(&what, &pairs, "µs", Bar::AtMost(1.0));
    Ok(())
}

/// So many requests in flight for a while: their rate, and what they cost both processes.
fn loaded(
    plan: &Plan,
    door: &dyn Door,
    process: &Process,
    in_flight: &[usize],
) -> Result<Measured> {
    let long = Extent::Long(plan.long(Duration::from_millis(1200)));
    let before = process.cpu()?;
    let report = drive(door, in_flight, long, 1)?;
    let used = process.cpu()?.saturating_sub(before);
    Ok(Measured {
        rate: report.requests_per_s,
        server_us: used.as_secs_f64() * 1e6 / report.requests as f64,
        client_us: report.processor_us,
    })
}

fn many(plan: &Plan, table: &mut Table, server: &Server, protocol: Protocol) -> Result<()> {
    let port = protocol.port(server)?;
    let row = batch(floats(1).elements, 64)?;
    let door = protocol.door(port, "mlp", &row)?;
    let (bare, to_bare) = protocol.bare(&*door, "mlp", &row)?;
    let in_json = rest(server.http_port()?, "mlp", &row, Encoding::Json)?;
    let connections = protocol.connections();
    let measure = |door: &dyn Door, process: &Process| loaded(plan, door, process, &connections);
    measure(&*door, &server.process)?;
    let [mut to_path, mut to_binary] = [(); 2].map(|()| Pairs::default());
    let mut server_us = Vec::new();
    let [mut costs, mut bare_costs, mut json_costs] = [(); 3].map(|()| Costs::default());
    while plan.goes_on(to_path.count()) {
        let ours = measure(&*door, &server.process)?;
        let path = bare_costs.push(measure(&*to_bare, &bare.process)?);
        to_path.push(costs.push(ours), path);
        server_us.push(ours.server_us);
        if protocol == Protocol::Rest {
            let json = json_costs.push(measure(&*in_json, &server.process)?);
            to_binary.push(json, ours.rate);
        }
    }
    let library = protocol.library();
    let (what, most) = match protocol {
        Protocol::Rest => (
            format!("  {CLIENTS} connections, to bare {library} on one thread"),
            Bar::AtMost(30.0),
        ),
        Protocol::Grpc => (
            format!(
                "  {CLIENTS} in flight on {CHANNELS} channels, to bare {library} on one thread"
            ),
            Bar::None,
        ),
    };
    table.add(&what, &to_path, "req/s", Bar::AtLeast(0.4));
    let what = "  the server's processor time a request";
    table.add_figure(what, &server_us, "µs", most);
    let mut note = format!(
        "doors: {}: processor time per request: {costs}; bare {library}: {bare_costs}",
        protocol.name()
    );
    if protocol == Protocol::Rest {
        let what = "  REST JSON, 64 numbers, to REST binary";
        table.add(what, &to_binary, "req/s", Bar::AtLeast(0.7));
        note += &format!("; JSON: {json_costs}");
    }
    table.note(note);
    Ok(())
}

fn bulk(plan: &Plan, table: &mut Table, server: &Server) -> Result<()> {
    let rows = batch(floats(BULK_ROWS).elements, 64)?;
    let door = rest(server.http_port()?, "mlp", &rows, Encoding::Binary)?;
    let pairs = to_zmq(plan, server, "mlp", &rows, &*door, plan.times(20))?;
    let what = format!("  {BULK_ROWS} rows of mlp in one request, to our ZeroMQ client");
    table.add(&what, &pairs, "rows/s", Bar::AtLeast(0.9));
    Ok(())
}

fn large(plan: &Plan, table: &mut Table, server: &Server, protocol: Protocol) -> Result<()> {
    let rows = batch(vec![1.5; LARGE_ROWS * WIDTH], WIDTH)?;
    let bytes = rows.payload_bytes();
    let door = protocol.door(protocol.port(server)?, "echo", &rows)?;
    ensure!(door.try_one()? >= bytes, "bytes are missing");
    let mut pairs = to_zmq(plan, server, "echo", &rows, &*door, plan.times(5))?;
    // Both directions.
    pairs.scale(2.0 * bytes as f64 / LARGE_ROWS as f64);
    let what = format!(
        "  64 MiB echo, {}, both directions, to our ZeroMQ client",
        protocol.name()
    );
    let least = match protocol {
        Protocol::Rest => 0.7,
        Protocol::Grpc => 0.4,
    };
    table.add(&what, &pairs, "B/s", Bar::AtLeast(least));
    Ok(())
}

/// The rows per second of one client at this door, and of one with our own protocol.
fn to_zmq(
    plan: &Plan,
    server: &Server,
    model: &str,
    batch: &Batch,
    door: &dyn Door,
    count: usize,
) -> Result<Pairs> {
    let rows = batch.rows()?;
    let zmq = zmq(server, model, batch)?;
    let rate = |door: &dyn Door| {
        let report = drive(door, &[1], Extent::Requests(count), rows)?;
        anyhow::Ok(report.rows_per_s)
    };
    rate(door)?;
    rate(&*zmq)?;
    Pairs::measure(plan, || rate(door), || rate(&*zmq))
}

/// What doors cost that nobody knocks at.
fn idle(plan: &Plan, table: &mut Table, with: &Server, without: &Server) -> Result<()> {
    let long = plan.long(Duration::from_secs(3));
    thread::sleep(SETTLE);
    let cpu = || anyhow::Ok((with.process.fine_cpu()?, without.process.fine_cpu()?));
    let mut more = Vec::new();
    while plan.goes_on(more.len()) {
        // Both at once: neither does anything that the other would notice.
        let (before, start) = (cpu()?, Instant::now());
        thread::sleep(long);
        let (after, took) = (cpu()?, start.elapsed());
        let used = |from: Duration, to: Duration| percent(to.saturating_sub(from), took);
        more.push(used(before.0, after.0) - used(before.1, after.1));
    }
    let what = "doors: idle, of a core, more than a server without doors";
    table.add_figure(what, &more, "%", Bar::AtMost(0.05));
    Ok(())
}
