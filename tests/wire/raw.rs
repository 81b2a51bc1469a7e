//! A client that says whatever it likes: two DEALERs with one routing id, and headers made by hand.

use serde_json::{Value, json};

use crate::common::{PATIENCE, Server};

/// An answer: its header, and its payload frames.
#[derive(Debug)]
pub struct Answer {
    pub header: Value,
    pub payload: Vec<Vec<u8>>,
}

impl Answer {
    pub fn kind(&self) -> &str {
        self.header["type"].as_str().unwrap_or_default()
    }

    pub fn id(&self) -> u64 {
        self.header["id"].as_u64().expect("an id")
    }

    pub fn code(&self) -> &str {
        self.header["code"].as_str().unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.header["message"].as_str().unwrap_or_default()
    }

    /// The first output's elements, its parts joined.
    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.kind(), "result", "{:?}", self.header);
        let parts = self.header["parts"].as_array().map_or(1, Vec::len);
        self.payload[..parts]
            .iter()
            .flat_map(|frame| frame.chunks_exact(4))
            .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
            .collect()
    }
}

/// Sessions differ in their routing ids.
pub fn routing_id() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [7; 16];
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    id
}

/// A session, both ends in the test's hands.
pub struct Raw {
    context: zmq::Context,
    pub port: zmq::Socket,
    pub out: zmq::Socket,
    last: u64,
}

/// A DEALER that waits for nothing for ever.
pub fn dealer(context: &zmq::Context, endpoint: &str, id: Option<&[u8]>) -> zmq::Socket {
    let socket = context.socket(zmq::DEALER).expect("a socket");
    if let Some(id) = id {
        socket.set_identity(id).expect("a routing id");
    }
    socket.set_linger(0).expect("linger");
    socket.set_ipv6(endpoint.contains('[')).expect("ipv6");
    let patience = PATIENCE.as_millis() as i32;
    socket.set_rcvtimeo(patience).expect("a timeout");
    socket.set_sndtimeo(patience).expect("a timeout");
    socket.connect(endpoint).expect("an endpoint");
    socket
}

impl Raw {
    /// A session with both hellos answered.
    pub fn open(server: &Server) -> Raw {
        let address = |port| format!("tcp://127.0.0.1:{port}");
        let id = routing_id();
        let mut raw = Raw::at(&address(server.port), &address(server.port_out), Some(&id));
        raw.greet();
        raw
    }

    /// Two connections, and not a word yet.
    pub fn at(port: &str, out: &str, id: Option<&[u8]>) -> Raw {
        let context = zmq::Context::new();
        Raw {
            port: dealer(&context, port, id),
            out: dealer(&context, out, id),
            context,
            last: 0,
        }
    }

    /// Two sockets that were made elsewhere.
    pub fn of(context: zmq::Context, port: zmq::Socket, out: zmq::Socket) -> Raw {
        Raw {
            context,
            port,
            out,
            last: 0,
        }
    }

    /// Hello on both, and both answers: nothing that was asked before is unanswered.
    pub fn greet(&mut self) {
        let id = self.id();
        send(&self.out, &[hello(id)]);
        let welcome = receive(&self.out);
        assert_eq!(
            (welcome.kind(), welcome.id()),
            ("welcome", id),
            "{welcome:?}"
        );
        let id = self.id();
        send(&self.port, &[hello(id)]);
        let ok = receive(&self.port);
        assert_eq!((ok.kind(), ok.id()), ("hello_ok", id), "{ok:?}");
    }

    /// The next number.
    pub fn id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What the server tells of itself.
    pub fn status(&mut self) -> Value {
        let id = self.id();
        send(
            &self.port,
            &[pack(&json!({"v": 1, "type": "status", "id": id}))],
        );
        let answer = receive(&self.port);
        assert_eq!(
            (answer.kind(), answer.id()),
            ("status_ok", id),
            "{answer:?}"
        );
        answer.header
    }

    /// Sends rows of four numbers to the model "echo".
    pub fn submit(&mut self, rows: &[[f32; 4]]) -> u64 {
        let id = self.id();
        send(&self.port, &echo(id, rows));
        id
    }

    /// An echo there and back.
    pub fn round(&mut self, rows: &[[f32; 4]]) {
        let id = self.submit(rows);
        let answer = receive(&self.out);
        assert_eq!(answer.id(), id);
        assert_eq!(answer.floats(), rows.concat());
    }

    /// Closes both connections at once, whatever is on its way.
    pub fn vanish(self) {
        let Raw {
            context, port, out, ..
        } = self;
        drop((port, out));
        drop(context);
    }
}

pub fn send(socket: &zmq::Socket, frames: &[Vec<u8>]) {
    socket.send_multipart(frames, 0).expect("sent in time");
}

/// The next answer, or the end of the test's patience.
pub fn receive(socket: &zmq::Socket) -> Answer {
    let mut frames = socket.recv_multipart(0).expect("an answer in time");
    let header = rmp_serde::from_slice(&frames.remove(0)).expect("msgpack");
    Answer {
        header,
        payload: frames,
    }
}

pub fn pack(header: &Value) -> Vec<u8> {
    rmp_serde::to_vec(header).expect("a header")
}

pub fn hello(id: u64) -> Vec<u8> {
    pack(&json!({"v": 1, "type": "hello", "id": id}))
}

pub fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// An infer of rows of four numbers for the model "echo".
pub fn echo(id: u64, rows: &[[f32; 4]]) -> Vec<Vec<u8>> {
    let header = json!({
        "v": 1, "type": "infer", "id": id, "model": "echo",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [rows.len(), 4]}],
    });
    vec![pack(&header), bytes(&rows.concat())]
}
