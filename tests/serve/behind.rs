//! Requests that queue behind one that keeps the only worker busy, and their answers in the order in which they come.

use bytes::Bytes;
use mdm::client::Status;
use mdm::message::RequestId;
use mdm::wire::client::{ClientMessage, write_infer, write_message};
use mdm::wire::server::{ServerMessage, read};
use mdm::{Batch, Request, Tensor};
use zmq::{Context, Socket};

use crate::common::{PATIENCE, Server, eventually};
use crate::models::{self, BUSY_ROWS};

/// A session without the client: it shows the order in which answers come.
pub struct Session {
    port: Socket,
    out: Socket,
    last: u64,
}

impl Session {
    pub fn open(server: &Server) -> Session {
        static SESSIONS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = SESSIONS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let routing_id = format!("S{number:015}");
        let context = Context::new();
        let connect = |port: u16| {
            let socket = context.socket(zmq::DEALER).expect("a socket");
            socket.set_identity(routing_id.as_bytes()).expect("set");
            socket.set_linger(0).expect("set");
            socket
                .set_rcvtimeo(PATIENCE.as_millis() as i32)
                .expect("set");
            let address = format!("tcp://127.0.0.1:{port}");
            socket.connect(&address).expect("an address");
            socket
        };
        let mut session = Session {
            port: connect(server.port),
            out: connect(server.port_out),
            last: 0,
        };
        let hello = ClientMessage::Hello(session.id());
        send(&session.out, write_message(&hello));
        let (_, welcome) = receive(&session.out);
        assert_eq!(welcome, ServerMessage::Welcome);
        session
    }

    fn id(&mut self) -> RequestId {
        self.last += 1;
        RequestId(self.last)
    }

    pub fn infer(&mut self, request: &Request) -> RequestId {
        let id = self.id();
        send(&self.port, write_infer(id, request));
        id
    }

    /// The same with a payload that was changed.
    pub fn infer_with(
        &mut self,
        request: &Request,
        change: impl FnOnce(&mut Vec<Bytes>),
    ) -> RequestId {
        let id = self.id();
        let mut frames = write_infer(id, request);
        let mut payload = frames.split_off(1);
        change(&mut payload);
        frames.extend(payload);
        send(&self.port, frames);
        id
    }

    pub fn cancel(&mut self, id: RequestId) {
        send(&self.port, write_message(&ClientMessage::Cancel(id)));
    }

    /// How the server is once it has read everything that was sent before.
    pub fn status(&mut self) -> Status {
        let id = self.id();
        send(&self.port, write_message(&ClientMessage::Status(id)));
        match receive(&self.port) {
            (of, ServerMessage::StatusOk(status)) if of == id => *status,
            other => panic!("expected a status, got {other:?}"),
        }
    }

    /// The next answer to an infer.
    pub fn next(&mut self) -> (RequestId, ServerMessage) {
        receive(&self.out)
    }

    /// Whether an answer is there already.
    pub fn has_answer(&self) -> bool {
        self.out.poll(zmq::POLLIN, 0).expect("a socket") > 0
    }
}

fn send(socket: &Socket, frames: Vec<Bytes>) {
    let frames: Vec<&[u8]> = frames.iter().map(AsRef::as_ref).collect();
    socket.send_multipart(frames, 0).expect("sent");
}

fn receive(socket: &Socket) -> (RequestId, ServerMessage) {
    let frames = socket.recv_multipart(0).expect("an answer in time");
    read(frames.into_iter().map(Bytes::from).collect()).expect("a message")
}

/// A request for rows.
pub fn request(model: &str, rows: Tensor) -> Request {
    Request {
        model: Some(model.to_owned()),
        inputs: Batch {
            tensors: vec![rows],
        },
        ..Request::default()
    }
}

/// A request of so many rows that keeps a worker busy.
pub fn busy(count: i64, rows: usize) -> Request {
    let counts = Tensor::from_vec("x", vec![rows], vec![count; rows]).expect("a tensor");
    request("busy", counts)
}

/// A count that no test waits for: minutes.
pub const FOR_EVER: i64 = 300_000_000;

/// A server of one worker that has these models, and the one that keeps it busy, loaded.
pub fn server(files: &[(&str, Vec<u8>)], flags: &[&str]) -> Server {
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("busy.onnx".to_owned(), models::busy()),
        ("busy.proxy".to_owned(), models::busy_rows("busy")),
    ];
    let mut words = vec!["--intra-op-threads", "1", "--preload", "busy"];
    for (name, bytes) in files {
        all.push((format!("{name}.onnx"), bytes.clone()));
        words.extend(["--preload", name]);
    }
    words.extend(flags);
    let all: Vec<(&str, Vec<u8>)> = all.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    Server::start(crate::common::models(&all), &words)
}

/// Gives the server's only worker a request that keeps it busy, and returns when it has it. Small requests that are sent
/// sooner may go before it; those that are sent now hardly ever do.
pub fn keep_busy(session: &mut Session, count: i64) -> RequestId {
    let id = session.infer(&busy(count, BUSY_ROWS));
    eventually("the worker is busy", || {
        let runs = session.status().workers[0].state == "busy";
        runs || session.has_answer()
    });
    id
}

/// Sends these requests while the server's only worker is inside a model, and gives their answers, each with its
/// request's place in the list, in the order in which they come.
pub fn behind(server: &Server, requests: &[Request]) -> Vec<(usize, ServerMessage)> {
    let mut count = 100_000;
    // A machine that is slow to send is given more time, until the server's own count says that it was enough.
    for _ in 0..8 {
        let mut session = Session::open(server);
        let first = keep_busy(&mut session, count);
        let ids: Vec<RequestId> = requests.iter().map(|r| session.infer(r)).collect();
        let all = session.status().queue.requests == 1 + ids.len() as u64;
        let mut answers: Vec<_> = (0..=ids.len()).map(|_| session.next()).collect();
        // A worker that has been given the chunk may still look at the small lane before it takes it.
        let began = answers[0].0 == first;
        if !all || !began {
            count *= if began { 4 } else { 1 };
            continue;
        }
        let (_, answer) = answers.remove(0);
        assert!(matches!(answer, ServerMessage::Result(..)), "{answer:?}");
        let place = |id| ids.iter().position(|own| *own == id).expect("one of ours");
        return answers.into_iter().map(|(id, a)| (place(id), a)).collect();
    }
    panic!("the worker was never busy for long enough");
}

/// The only output of a result.
pub fn output(answer: &ServerMessage) -> Tensor {
    let ServerMessage::Result(outputs, _) = answer else {
        panic!("expected a result, got {answer:?}");
    };
    let pieces: Vec<Tensor> = outputs.parts.iter().map(|p| p.tensors[0].clone()).collect();
    Tensor::concat(&pieces).expect("one tensor")
}
