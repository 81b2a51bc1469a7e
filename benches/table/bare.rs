//! The bare ZeroMQ path: the sockets and hops of ours, with nothing in between.
//!
//! ```text
//!               port (ROUTER)                                              port_out (ROUTER)
//! DEALER ── 2 frames ──▶ ventilator ── PUSH/PULL ──▶ worker ── PUSH/PULL ──▶ sink ── 2 frames ──▶ DEALER
//! ```
//! As many frames as ours, of about the same sizes; polling where ours polls. No credits, nothing is parsed, no model
//! runs, nothing is bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use mdm::Tensor;
use mdm::message::{Request, RequestId, Stats};
use mdm::tensor::Batch;
use mdm::wire::client::write_infer;
use mdm::wire::server::{Outputs, write_result};
use zmq::{Context, DONTWAIT, Message, POLLIN, SNDMORE, Socket, SocketType};

use super::children::{self, Process};

/// The argument that makes this program the far end.
pub const SERVE: &str = "--bare-server";

/// About what our headers of chunks and parts take; the routing id travels in it.
const INNER_HEADER_BYTES: usize = 80;
const ID_BYTES: usize = 16;

const TO_WORKER: &str = "inproc://worker";
const TO_SINK: &str = "inproc://sink";

fn socket(context: &Context, kind: SocketType) -> Result<Socket> {
    let socket = context.socket(kind)?;
    socket.set_linger(0)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    Ok(socket)
}

fn router(context: &Context) -> Result<(Socket, u16)> {
    let socket = socket(context, zmq::ROUTER)?;
    socket.bind("tcp://127.0.0.1:*")?;
    let endpoint = socket
        .get_last_endpoint()?
        .map_err(|_| anyhow!("an endpoint that is not UTF-8"))?;
    let port = endpoint.rsplit(':').next().unwrap_or_default();
    let port = port.trim_end_matches('\0').parse();
    Ok((socket, port.context("no port in an endpoint")?))
}

/// Receives one message of so many frames at most, or nothing.
fn receive<const N: usize>(socket: &Socket) -> Result<Option<[Message; N]>> {
    let mut frames = [(); N].map(|()| Message::new());
    for (index, frame) in frames.iter_mut().enumerate() {
        match socket.recv(frame, if index == 0 { DONTWAIT } else { 0 }) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) if index == 0 => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        if frame.get_more() != (index + 1 < N) {
            bail!("a message has other than {N} frames");
        }
    }
    Ok(Some(frames))
}

fn send<const N: usize>(socket: &Socket, frames: [Message; N]) -> Result<()> {
    for (index, frame) in frames.into_iter().enumerate() {
        let more = if index + 1 < N { SNDMORE } else { 0 };
        socket.send(frame, DONTWAIT | more)?;
    }
    Ok(())
}

fn wait(sockets: &[&Socket]) -> Result<()> {
    let mut items: Vec<_> = sockets.iter().map(|s| s.as_poll_item(POLLIN)).collect();
    zmq::poll(&mut items, -1)?;
    Ok(())
}

/// The far end. Arguments: bytes of a result's header, and of its payload (0: what came goes back).
pub fn serve(args: &[String]) -> Result<()> {
    let sizes: Vec<usize> = args
        .iter()
        .map(|arg| arg.parse().context("a size"))
        .collect::<Result<_>>()?;
    let &[header, payload] = sizes.as_slice() else {
        bail!("expected two sizes");
    };
    let context = Context::new();
    let (port, port_out) = (router(&context)?, router(&context)?);
    let worker_in = socket(&context, zmq::PUSH)?;
    worker_in.bind(TO_WORKER)?;
    let sink_in = socket(&context, zmq::PULL)?;
    sink_in.bind(TO_SINK)?;
    let inner = context.clone();
    thread::spawn(move || report(ventilate(&port.0, &worker_in)));
    thread::spawn(move || report(work(&inner, payload)));
    thread::spawn(move || report(gather(&port_out.0, &sink_in, header)));
    println!("ready port={} port_out={}", port.1, port_out.1);
    children::until_abandoned();
    Ok(())
}

fn report(result: Result<()>) {
    if let Err(e) = result {
        eprintln!("the bare path: {e:#}");
    }
}

fn ventilate(router: &Socket, worker: &Socket) -> Result<()> {
    loop {
        while let Some([id, _header, payload]) = receive(router)? {
            let mut inner = [0; INNER_HEADER_BYTES];
            inner[..ID_BYTES].copy_from_slice(&id[..ID_BYTES]);
            send(worker, [Message::from(&inner[..]), payload])?;
        }
        // Ours also hears credits here.
        wait(&[router])?;
    }
}

fn work(context: &Context, payload: usize) -> Result<()> {
    let inbox = socket(context, zmq::PULL)?;
    inbox.connect(TO_WORKER)?;
    let sink = socket(context, zmq::PUSH)?;
    sink.connect(TO_SINK)?;
    let output = vec![0; payload];
    loop {
        while let Some([header, input]) = receive(&inbox)? {
            let result = match payload {
                0 => input,
                _ => Message::from(&output[..]),
            };
            send(&sink, [Message::from(&header[..]), result])?;
        }
        wait(&[&inbox])?;
    }
}

fn gather(router: &Socket, inbox: &Socket, header: usize) -> Result<()> {
    let header = vec![0; header];
    loop {
        let mut busy = false;
        while let Some([inner, payload]) = receive(inbox)? {
            busy = true;
            let id = Message::from(&inner[..ID_BYTES]);
            send(router, [id, Message::from(&header[..]), payload])?;
        }
        while let Some([id, hello]) = receive(router)? {
            busy = true;
            send(router, [id, hello])?;
        }
        if !busy {
            wait(&[inbox, router])?;
        }
    }
}

/// The process of the far end.
pub struct Bare {
    pub process: Process,
    context: Context,
    port: u16,
    port_out: u16,
    header: Vec<u8>,
}

impl Bare {
    /// Starts the far end, for messages such as ours for a model that takes `input` and gives `output`; without an
    /// output the payload goes back as it came.
    pub fn start(model: &str, input: &Tensor, output: Option<&Tensor>) -> Result<Bare> {
        let header = request_frames(model, input).remove(0).to_vec();
        let result = result_header(output.unwrap_or(input));
        let payload = output.map_or(0, Tensor::payload_bytes);
        let (process, ready) = children::baseline(SERVE, &[result, payload])?;
        Ok(Bare {
            process,
            context: Context::new(),
            port: children::number(&ready, "port")?,
            port_out: children::number(&ready, "port_out")?,
            header,
        })
    }

    /// One more client: two sockets of one routing id, as a session of ours.
    pub fn connect(&self) -> Result<BareClient> {
        static IDS: AtomicU64 = AtomicU64::new(1);

        let id = format!("{:016}", IDS.fetch_add(1, Ordering::Relaxed));
        let connect = |port: u16| {
            let socket = socket(&self.context, zmq::DEALER)?;
            socket.set_identity(id.as_bytes())?;
            socket.connect(&format!("tcp://127.0.0.1:{port}"))?;
            anyhow::Ok(socket)
        };
        let (port, out) = (connect(self.port)?, connect(self.port_out)?);
        out.send("hello", 0)?;
        out.recv_msg(0)?;
        Ok(BareClient {
            port,
            out,
            header: self.header.clone(),
        })
    }
}

/// The near end.
pub struct BareClient {
    port: Socket,
    out: Socket,
    header: Vec<u8>,
}

impl BareClient {
    /// Sends a request.
    pub fn send(&self, payload: Message) -> Result<()> {
        send(&self.port, [Message::from(&self.header[..]), payload])
    }

    /// Waits for a result, and gives its payload.
    pub fn wait(&self) -> Result<Message> {
        loop {
            wait(&[&self.out, &self.port])?;
            if let Some([_header, payload]) = receive(&self.out)? {
                return Ok(payload);
            }
        }
    }

    /// There and back.
    pub fn round_trip(&self, payload: &[u8]) -> Result<Message> {
        self.send(Message::from(payload))?;
        self.wait()
    }
}

/// The frames of our request with this input.
pub fn request_frames(model: &str, input: &Tensor) -> Vec<bytes::Bytes> {
    let request = Request {
        model: Some(model.to_owned()),
        inputs: Batch {
            tensors: vec![input.clone()],
        },
        ..Request::default()
    };
    write_infer(RequestId(1000), &request)
}

/// The bytes of our header of a result with this output.
pub fn result_header(output: &Tensor) -> usize {
    let outputs = Outputs {
        parts: vec![Batch {
            tensors: vec![output.clone()],
        }],
        batched: true,
        failed: Vec::new(),
    };
    let stats = Stats {
        queue_us: 100,
        compute_us: 100,
        chunks: 1,
    };
    write_result(RequestId(1000), &outputs, stats)[0].len()
}
