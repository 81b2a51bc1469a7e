//! Programs in other languages: 32 clients, each a pair of libzmq's DEALERs that speaks our wire by itself.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use mdm::message::{Request, RequestId};
use mdm::wire::client::{ClientMessage, write_infer, write_message};
use mdm::wire::server::{self, ServerMessage};
use mdm::{Batch, Tensor};
use zmq::{Context, SNDMORE, Socket};

use super::Plan;
use super::bare::Bare;
use super::bulk::floats;
use super::children::{Models, Server};
use super::loops::{CLIENTS, Costs, Measured, run};
use super::onnx;
use super::report::{Bar, Pairs, Table};
use super::sides::Sides;

/// An answer that is not there after so long is missing.
const ANSWER_MS: i32 = 20_000;

/// A client: what it sends, and how far it has counted.
struct Dealers {
    port: Socket,
    out: Socket,
    request: Request,
    last: u64,
}

impl Dealers {
    fn connect(context: &Context, server: &Server, request: Request) -> Result<Dealers> {
        static IDS: AtomicU64 = AtomicU64::new(1);

        // The same id for both; it must be nobody else's, and not begin with 0.
        let id = format!("{:016}", IDS.fetch_add(1, Ordering::Relaxed));
        let connect = |port: u16| {
            let socket = context.socket(zmq::DEALER)?;
            socket.set_linger(0)?;
            socket.set_rcvtimeo(ANSWER_MS)?;
            socket.set_identity(id.as_bytes())?;
            socket.connect(&format!("tcp://127.0.0.1:{port}"))?;
            anyhow::Ok(socket)
        };
        let dealers = Dealers {
            port: connect(server.port)?,
            out: connect(server.port_out)?,
            request,
            last: 1,
        };
        send(
            &dealers.out,
            &write_message(&ClientMessage::Hello(RequestId(1))),
        )?;
        match receive(&dealers.out)? {
            (_, ServerMessage::Welcome) => Ok(dealers),
            (_, other) => bail!("expected a welcome, got {other:?}"),
        }
    }

    /// One request, until its answer is there and read.
    fn round_trip(&mut self) -> Result<()> {
        self.last += 1;
        let id = RequestId(self.last);
        send(&self.port, &write_infer(id, &self.request))?;
        match receive(&self.out)? {
            (answered, ServerMessage::Result(outputs, _)) if answered == id => {
                ensure!(outputs.parts.len() == 1, "a row in several parts");
                Ok(())
            }
            other => bail!("expected the result of {id}, got {other:?}"),
        }
    }
}

fn send(socket: &Socket, frames: &[Bytes]) -> Result<()> {
    let Some((last, first)) = frames.split_last() else {
        return Ok(());
    };
    for frame in first {
        socket.send(&frame[..], SNDMORE)?;
    }
    Ok(socket.send(&last[..], 0)?)
}

fn receive(socket: &Socket) -> Result<(RequestId, ServerMessage)> {
    let frames = socket.recv_multipart(0).context("waiting for an answer")?;
    Ok(server::read(frames.into_iter().map(Bytes::from).collect())?)
}

struct Side {
    server: Server,
    context: Context,
    costs: Costs,
}

impl Side {
    fn start(program: &Path, models: &Models) -> Result<Side> {
        Ok(Side {
            server: Server::start_program(program, models, &[])?,
            context: Context::new(),
            costs: Costs::default(),
        })
    }

    fn measure(&mut self, long: Duration, request: &Request) -> Result<Measured> {
        let (context, server) = (&self.context, &self.server);
        let measured = run(long, &server.process, || {
            let mut dealers = Dealers::connect(context, server, request.clone())?;
            Ok(move || dealers.round_trip())
        })?;
        self.costs.push(measured);
        Ok(measured)
    }
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    let models = Models::write(&[("mlp", onnx::mlp())])?;
    let mut sides = Sides::of(plan, |program| Side::start(program, &models))?;
    let rows = floats(1).elements;
    let input = Tensor::from_slice("x", vec![1, 64], &rows)?;
    let output = Tensor::from_slice("y", vec![1, 10], &[0f32; 10])?;
    let bare = Bare::start("mlp", &input, Some(&output))?;
    let payload: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
    let request = Request {
        model: Some("mlp".to_owned()),
        inputs: Batch::from(input),
        ..Request::default()
    };

    let long = plan.long(Duration::from_millis(1200));
    let mut bare_costs = Costs::default();
    let path = || {
        run(long, &bare.process, || {
            let (client, payload) = (bare.connect()?, &payload);
            Ok(move || client.round_trip(payload).map(drop))
        })
    };
    // The model is loaded.
    sides.each(|side| side.measure(long / 4, &request))?;
    sides.ours.costs = Costs::default();
    if let Some(other) = &mut sides.other {
        other.costs = Costs::default();
    }
    let [mut rate, mut rate_to_server, mut cpu, mut cpu_to_server] =
        [(); 4].map(|()| Pairs::default());
    while plan.goes_on(rate.count()) {
        let (ours, bare) = (sides.each(|side| side.measure(long, &request))?, path()?);
        bare_costs.push(bare);
        rate.push(ours.ours.rate, bare.rate);
        cpu.push(ours.ours.server_us, bare.server_us);
        rate_to_server.push_sides(ours.map(|measured| measured.rate));
        cpu_to_server.push_sides(ours.map(|measured| measured.server_us));
    }
    let what = format!("dealers: mlp, 1 row, {CLIENTS} DEALER pairs, to the bare ZeroMQ path");
    table.add(&what, &rate, "req/s", Bar::None);
    table.add("  server's processor time a request", &cpu, "µs", Bar::None);
    table.add_server("", &rate_to_server, "req/s", Bar::AtLeast(1.0));
    let what = "server's processor time a request";
    table.add_server(what, &cpu_to_server, "µs", Bar::AtMost(1.0));
    let costs = sides.map(|side| side.costs.to_string()).text();
    table.note(format!(
        "dealers: processor time per request: {costs}; bare ZeroMQ: {bare_costs}"
    ));
    Ok(())
}
