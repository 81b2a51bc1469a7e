//! A server that answers as a test tells it, on two ROUTERs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mdm::message::{Request, RequestId, Stats};
use mdm::wire::client::{self, ClientMessage};
use mdm::wire::server::{ModelInfo, Outputs, ServerMessage, StopState, Welcome, write_message};

/// What the fake does when an infer has come.
pub enum Act {
    /// Answers any id on `port_out`.
    Out(RequestId, ServerMessage),
    /// Both sockets are gone, with nothing more said.
    Vanish,
}

/// What there is to decide.
pub type Script = Box<dyn FnMut(RequestId, Request) -> Vec<Act> + Send>;

/// A running fake; dropping it stops it.
pub struct Fake {
    pub port: u16,
    pub port_out: u16,
    /// What clients said, but for infers and hellos.
    pub said: Receiver<ClientMessage>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How a fake differs from a good server.
pub struct Manners {
    pub welcome: Welcome,
    /// Words to answer to hello instead.
    pub hello: Option<Vec<u8>>,
    /// After an order to stop: so many requests are left, and whether the stop is confirmed.
    pub stop: (u64, bool),
    /// What it describes by name; of "silent" it says nothing. By parameters it finds a model that takes anything.
    pub models: Vec<ModelInfo>,
    pub endpoints: Option<(zmq::Context, String, String)>,
    pub port: u16,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners {
            welcome: Welcome {
                server_version: "fake".to_owned(),
                port_out: 0,
                max_batch_size: 16,
                max_request_bytes: 1 << 20,
                max_client_bytes: 1 << 24,
            },
            hello: None,
            stop: (0, true),
            models: Vec::new(),
            endpoints: None,
            port: 0,
        }
    }
}

fn port_of(socket: &zmq::Socket) -> u16 {
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    let port = endpoint.rsplit(':').next().unwrap();
    port.trim_end_matches('\0').parse().unwrap_or(0)
}

impl Fake {
    pub fn start(script: impl FnMut(RequestId, Request) -> Vec<Act> + Send + 'static) -> Fake {
        Fake::with(Manners::default(), script)
    }

    pub fn with(
        mut manners: Manners,
        script: impl FnMut(RequestId, Request) -> Vec<Act> + Send + 'static,
    ) -> Fake {
        let (context, a, b) = manners.endpoints.clone().unwrap_or_else(|| {
            let any = |port| match port {
                0 => "tcp://127.0.0.1:*".to_owned(),
                port => format!("tcp://127.0.0.1:{port}"),
            };
            (zmq::Context::new(), any(manners.port), any(0))
        });
        let router = |endpoint: &str| {
            let socket = context.socket(zmq::ROUTER).unwrap();
            socket.set_linger(500).unwrap();
            socket.set_ipv6(endpoint.starts_with("tcp://[")).unwrap();
            socket.bind(endpoint).unwrap();
            socket
        };
        let (port, out) = (router(&a), router(&b));
        let (number, number_out) = (port_of(&port), port_of(&out));
        manners.welcome.port_out = number_out;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, said) = channel();
        let mut run = Run {
            port,
            out,
            manners,
            script: Box::new(script),
            said: sender,
        };
        let stopped = stop.clone();
        let thread =
            std::thread::spawn(move || while !stopped.load(Ordering::Relaxed) && run.turn() {});
        Fake {
            port: number,
            port_out: number_out,
            said,
            stop,
            thread: Some(thread),
        }
    }

    pub fn address(&self) -> String {
        format!("tcp://localhost:{}", self.port)
    }

    pub fn client(&self) -> mdm::Client {
        mdm::Client::connect(&self.address()).unwrap()
    }

    /// What a client said other than infer and hello, within 5 seconds.
    pub fn heard(&self) -> ClientMessage {
        self.said.recv_timeout(Duration::from_secs(5)).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Run {
    port: zmq::Socket,
    out: zmq::Socket,
    manners: Manners,
    script: Script,
    said: Sender<ClientMessage>,
}

fn receive(socket: &zmq::Socket) -> (Vec<u8>, Vec<Bytes>) {
    let mut frames = socket.recv_multipart(0).unwrap().into_iter();
    let identity = frames.next().unwrap();
    (identity, frames.map(Bytes::from).collect())
}

fn send(socket: &zmq::Socket, identity: &[u8], id: RequestId, message: &ServerMessage) {
    let mut frames = vec![identity.to_vec()];
    frames.extend(write_message(id, message).iter().map(|f| f.to_vec()));
    socket.send_multipart(frames, 0).unwrap();
}

impl Run {
    /// False when it is over.
    fn turn(&mut self) -> bool {
        let mut items = [
            self.port.as_poll_item(zmq::POLLIN),
            self.out.as_poll_item(zmq::POLLIN),
        ];
        zmq::poll(&mut items, 5).unwrap();
        let (port, out) = (items[0].is_readable(), items[1].is_readable());
        if out {
            let (identity, frames) = receive(&self.out);
            let id = client::read(frames).unwrap().id();
            send(&self.out, &identity, id, &ServerMessage::Welcome);
        }
        if !port {
            return true;
        }
        let (identity, frames) = receive(&self.port);
        let message = client::read(frames).unwrap();
        let id = message.id();
        let answer = match message {
            ClientMessage::Infer(id, request) => return self.infer(&identity, id, *request),
            ClientMessage::Hello(_) => match &self.manners.hello {
                Some(words) => {
                    let frames = [identity, words.clone()];
                    self.port.send_multipart(frames, 0).unwrap();
                    return true;
                }
                None => ServerMessage::HelloOk(self.manners.welcome.clone()),
            },
            ClientMessage::Terminate(..) => {
                let (left, last_word) = self.manners.stop;
                let draining = StopState::Draining(left);
                send(
                    &self.port,
                    &identity,
                    id,
                    &ServerMessage::TerminateOk(draining),
                );
                if left > 0 && last_word {
                    return true;
                }
                if last_word {
                    let stopped = ServerMessage::TerminateOk(StopState::Stopped);
                    send(&self.port, &identity, id, &stopped);
                }
                return false;
            }
            ClientMessage::Status(_) => {
                let mut status = mdm::wire::server::Status::default();
                status.queue.requests = 3;
                ServerMessage::StatusOk(Box::new(status))
            }
            ClientMessage::Models(_) => ServerMessage::ModelsOk(Vec::new()),
            ClientMessage::Describe(_, None, _) => {
                ServerMessage::ModelsOk(vec![model("x", "batched")])
            }
            ClientMessage::Describe(_, Some(name), _) if name == "silent" => return true,
            ClientMessage::Describe(_, Some(name), _) => {
                match self.manners.models.iter().find(|own| own.name == name) {
                    Some(own) => ServerMessage::ModelsOk(vec![own.clone()]),
                    None => {
                        ServerMessage::Error(mdm::Error::not_found(format!("no model {name:?}")))
                    }
                }
            }
            ClientMessage::Load(_, model) => {
                let e = mdm::Error::not_found(format!("no model {model:?}"));
                ServerMessage::Error(e)
            }
            ClientMessage::Unload(..) => ServerMessage::UnloadOk(Vec::new()),
            said @ ClientMessage::Cancel(_) => {
                // The test may be over.
                let _ = self.said.send(said);
                return true;
            }
        };
        send(&self.port, &identity, id, &answer);
        true
    }

    fn infer(&mut self, identity: &[u8], id: RequestId, request: Request) -> bool {
        for act in (self.script)(id, request) {
            match act {
                Act::Out(id, message) => send(&self.out, identity, id, &message),
                Act::Vanish => return false,
            }
        }
        true
    }
}

/// A model that takes and gives anything.
pub fn model(name: &str, kind: &str) -> ModelInfo {
    ModelInfo {
        name: name.to_owned(),
        version: "1".to_owned(),
        kind: kind.to_owned(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    }
}

/// The inputs as outputs, in one part.
pub fn echo(request: Request) -> ServerMessage {
    let stats = Stats {
        chunks: 1,
        ..Stats::default()
    };
    let outputs = Outputs {
        parts: vec![request.inputs],
        batched: true,
        failed: Vec::new(),
    };
    ServerMessage::Result(outputs, stats)
}

/// A script that answers everything with its inputs.
pub fn echoes(id: RequestId, request: Request) -> Vec<Act> {
    vec![Act::Out(id, echo(request))]
}
