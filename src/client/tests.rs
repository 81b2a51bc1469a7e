//! The client against a peer that speaks ZMTP as a test tells it: one that hangs, ends in the middle, or asks for signs of
//! life. (`tests/client` has libzmq's ROUTER for a peer.)

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Call, Client};
use crate::error::ErrorCode;
use crate::message::{Request, RequestId, Stats};
use crate::wire::client::{self, ClientMessage};
use crate::wire::server::{Outputs, ServerMessage, Welcome, write_message};
use crate::zmtp::codec::{self, Decoder, Event, Limits};
use crate::zmtp::mechanism::{Mechanism, Null, SocketType};
use crate::zmtp::outgoing::Outgoing;

/// The server's end of one connection.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
}

impl Peer {
    /// Accepts, shakes hands as ZMTP 3.1, and answers hello.
    fn accept(listener: &TcpListener, hello: ServerMessage) -> Option<Peer> {
        let (stream, _) = listener.accept().ok()?;
        stream.set_nodelay(true).ok()?;
        let mut mechanism = Null::new(SocketType::Router, Bytes::new());
        let mut opening = codec::greeting(1, mechanism.name()).to_vec();
        codec::push_command(&mut opening, &mechanism.first());
        let limits = Limits {
            message_bytes: u64::MAX,
            frames: 100,
        };
        let mut peer = Peer {
            stream,
            decoder: Decoder::new(Box::new(mechanism), limits),
            input: Vec::new(),
        };
        peer.stream.write_all(&opening).ok()?;
        let Some(Event::Ready { minor: 0, .. }) = peer.next() else {
            panic!("the client does not announce ZMTP 3.0");
        };
        let Some(Event::Message(frames)) = peer.next() else {
            return None;
        };
        let id = client::read(frames).unwrap().id();
        peer.say(id, &hello);
        Some(peer)
    }

    /// What comes next; `None` once the client is gone.
    fn next(&mut self) -> Option<Event> {
        loop {
            let mut input = &self.input[..];
            let event = self.decoder.feed(&mut input).unwrap();
            self.input = input.to_vec();
            if event.is_some() {
                return event;
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(bytes) => self.input.extend_from_slice(&buffer[..bytes]),
            }
        }
    }

    fn next_infer(&mut self) -> Option<(RequestId, Request)> {
        loop {
            if let Event::Message(frames) = self.next()?
                && let ClientMessage::Infer(id, request) = client::read(frames).unwrap()
            {
                return Some((id, *request));
            }
        }
    }

    fn say(&mut self, id: RequestId, message: &ServerMessage) {
        let mut outgoing = Outgoing::default();
        outgoing.push_message(write_message(id, message));
        // The client may be gone.
        let _ = outgoing.write_to(&mut self.stream);
    }

    fn ping(&mut self) {
        let mut ping = Vec::new();
        codec::push_command(&mut ping, b"\x04PING\0\x0ahi");
        self.stream.write_all(&ping).unwrap();
    }
}

/// A session as its server sees it.
struct Session {
    port: Peer,
    out: Peer,
}

impl Session {
    fn echo(&mut self) {
        while let Some((id, request)) = self.port.next_infer() {
            self.out.say(id, &answer(request));
        }
    }
}

fn answer(request: Request) -> ServerMessage {
    let outputs = Outputs {
        parts: vec![request.inputs],
        batched: true,
        failed: Vec::new(),
    };
    ServerMessage::Result(outputs, Stats::default())
}

/// Serves one session after the other, each as `script` does it, which is told how many there were before.
fn serve(script: impl Fn(usize, Session) + Send + 'static) -> String {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, out) = (bind(), bind());
    let address = format!("tcp://{}", port.local_addr().unwrap());
    let welcome = Welcome {
        port_out: out.local_addr().unwrap().port(),
        max_request_bytes: 1 << 30,
        ..Welcome::default()
    };
    thread::spawn(move || {
        for number in 0.. {
            let hello = ServerMessage::HelloOk(welcome.clone());
            let Some(port) = Peer::accept(&port, hello) else {
                continue;
            };
            if let Some(out) = Peer::accept(&out, ServerMessage::Welcome) {
                script(number, Session { port, out });
            }
        }
    });
    address
}

/// Fails a test that hangs.
fn within(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let (sender, ended): (Sender<()>, Receiver<()>) = channel();
    let thread = thread::spawn(move || {
        test();
        drop(sender);
    });
    let ended = ended.recv_timeout(Duration::from_secs(seconds));
    assert_ne!(
        ended,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout),
        "still running after {seconds} s"
    );
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_session_lost_in_the_middle_of_a_large_request_fails_at_once_and_the_next_call_works() {
    within(60, || {
        let address = serve(|number, mut session| {
            if number == 0 {
                // A mebibyte of it is read, and then both connections are closed.
                let _ = session.port.stream.read_exact(&mut vec![0; 1 << 20]);
                return;
            }
            session.echo();
        });
        let client = Client::connect(&address).unwrap();
        let large = vec![1u8; 1 << 26];
        let start = Instant::now();
        let e = client.infer(&large[..], "m").unwrap_err();
        assert_eq!(e.code(), ErrorCode::Unavailable, "{e}");
        assert!(e.message().contains("lost"), "{e}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let answer = client.infer(&[1u8, 2], "m").unwrap().only().unwrap();
        assert_eq!(answer.to_vec::<u8>().unwrap(), [1, 2]);
    });
}

#[test]
fn a_server_that_does_not_read_holds_up_nobody_longer_than_asked() {
    within(60, || {
        let address = serve(|number, mut session| match number {
            0 => thread::sleep(Duration::from_secs(60)),
            _ => session.echo(),
        });
        let client = Client::connect(&address).unwrap();
        let large = vec![1u8; 1 << 26];
        let call = Call::model("m").timeout(Duration::from_millis(50));
        let start = Instant::now();
        // Neither of these is for the call to wait for.
        let tickets: Vec<_> = (0..4)
            .map(|_| client.submit(large.clone(), call.clone()).unwrap())
            .collect();
        assert!(start.elapsed() < Duration::from_secs(2));
        for answer in client.fetch_all(tickets) {
            assert_eq!(answer.unwrap_err().code(), ErrorCode::DeadlineExceeded);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_server_that_falls_silent_is_given_up_while_a_caller_waits() {
    within(60, || {
        // It shakes hands, says hello, and then hangs.
        let address = serve(|_, _session| thread::sleep(Duration::from_secs(60)));
        let client = Client::connect(&address).unwrap();
        let start = Instant::now();
        let e = client.infer(&[1u8], "m").unwrap_err();
        assert_eq!(e.code(), ErrorCode::Unavailable, "{e}");
        assert!(e.message().contains("silent"), "{e}");
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(5), "{waited:?}");
        assert!(waited < Duration::from_secs(20), "{waited:?}");
    });
}

#[test]
fn a_server_that_answers_pings_may_take_its_time() {
    within(60, || {
        let address = serve(|_, mut session| {
            // Each end of a session is heard for itself.
            let (mut port, mut out) = (session.port, session.out);
            let pongs = |peer: &mut Peer| {
                let Some(Event::Ping { ttl: 0, .. }) = peer.next() else {
                    panic!("no PING");
                };
                let mut pong = Vec::new();
                codec::push_pong(&mut pong, b"");
                peer.stream.write_all(&pong).unwrap();
            };
            let (id, request) = port.next_infer().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| (0..3).for_each(|_| pongs(&mut port)));
                (0..3).for_each(|_| pongs(&mut out));
            });
            out.say(id, &answer(request));
            session = Session { port, out };
            session.echo();
        });
        let client = Client::connect(&address).unwrap();
        let start = Instant::now();
        client.infer(&[1u8], "m").unwrap();
        assert!(start.elapsed() > Duration::from_secs(6), "no silence");
    });
}

#[test]
fn a_session_that_was_idle_for_longer_than_any_heartbeat_still_serves() {
    within(60, || {
        let address = serve(|number, mut session| {
            assert_eq!(number, 0, "a second session was opened");
            session.echo();
        });
        let client = Client::connect(&address).unwrap();
        for idle in [0, 7, 7] {
            thread::sleep(Duration::from_secs(idle));
            client.infer(&[1u8], "m").unwrap();
        }
    });
}

#[test]
fn a_servers_ping_is_answered_while_a_caller_waits() {
    within(60, || {
        let address = serve(|_, mut session| {
            let (id, request) = session.port.next_infer().unwrap();
            for peer in [&mut session.port, &mut session.out] {
                peer.ping();
                assert_eq!(peer.next(), Some(Event::Other), "no PONG");
            }
            session.out.say(id, &answer(request));
            session.echo();
        });
        let client = Client::connect(&address).unwrap();
        client.infer(&[1u8], "m").unwrap();
    });
}

#[test]
fn twenty_thousand_requests_in_flight_all_get_their_answers() {
    within(120, || {
        let address = serve(|_, mut session| session.echo());
        let client = Client::connect(&address).unwrap();
        let tickets: Vec<_> = (0..20_000u32)
            .map(|i| client.submit(&[i], "m").unwrap())
            .collect();
        for (i, answer) in client.fetch_all(tickets).into_iter().enumerate() {
            let answer = answer.unwrap().only().unwrap();
            assert_eq!(answer.to_vec::<u32>().unwrap(), [i as u32]);
        }
    });
}

#[test]
fn more_sessions_are_open_in_one_process_than_libzmq_had_sockets_for() {
    within(60, || {
        let address = serve(|_, mut session| {
            thread::spawn(move || session.echo());
        });
        let clients: Vec<_> = (0..180)
            .map(|_| Client::connect(&address).unwrap())
            .collect();
        for client in &clients {
            client.infer(&[1u8], "m").unwrap();
        }
        // 720 descriptors, both ends counted: not for longer than needed.
        drop(clients);
    });
}

#[test]
fn a_local_listener_that_accepts_nobody_is_no_hang() {
    within(60, || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mdm-1.in");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = || {
            Client::builder()
                .connect_timeout(Duration::from_millis(100))
                .connect(&format!("ipc://{}", path.display()))
        };
        let e = client().unwrap_err();
        assert!(e.message().contains("does not speak ZeroMQ"), "{e}");
        let mut waiting = Vec::new();
        while let Ok(stream) = crate::zmtp::stream::Stream::connect_local(&path) {
            waiting.push(stream);
        }
        let e = client().unwrap_err();
        assert!(e.message().contains("accepts nobody"), "{e}");
    });
}

/// A server that answers nothing until it is told to, and knows on which session each request came.
#[derive(Clone, Default)]
struct Withheld(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    outs: Vec<Peer>,
    requests: Vec<(usize, RequestId, Request)>,
}

impl Withheld {
    fn serve(&self) -> String {
        let held = self.clone();
        serve(move |number, Session { mut port, out }| {
            held.lock().outs.push(out);
            let held = held.clone();
            thread::spawn(move || {
                while let Some((id, request)) = port.next_infer() {
                    held.lock().requests.push((number, id, request));
                }
            });
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }

    /// Waits for so many requests; the sessions that the small ones came on.
    fn await_requests(&self, count: usize) -> BTreeSet<usize> {
        while self.lock().requests.len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        let is_small = |request: &Request| request.inputs.rows().is_ok_and(|rows| rows == 1);
        let held = self.lock();
        let small = held.requests.iter().filter(|(.., r)| is_small(r));
        small.map(|(session, ..)| *session).collect()
    }

    fn answer_all(&self) {
        let mut held = self.lock();
        for (session, id, request) in std::mem::take(&mut held.requests) {
            held.outs[session].say(id, &answer(request));
        }
    }
}

/// Binds this thread to one of the cores that it may use; the next number has the next one.
#[cfg(target_os = "linux")]
fn bind_to_core(number: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let all = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|c| all.is_set(*c)).collect();
    let mut one = CpuSet::new();
    one.set(cores[number % cores.len()]);
    sched_setaffinity(None, &one).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn many_small_requests_share_a_session_with_those_of_their_core() {
    within(60, || {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let server = Withheld::default();
        let client = Client::connect(&server.serve()).unwrap();
        thread::scope(|scope| {
            // Large ones have sessions of their own: small ones beside them share from the first on.
            for _ in 0..cores {
                scope.spawn(|| client.infer(&[7u8; 100_000], "m").unwrap());
            }
            server.await_requests(cores);
            let small = |number: u8| {
                let client = &client;
                scope.spawn(move || {
                    bind_to_core(number.into());
                    let answer = client.infer(&[number], "m").unwrap().only().unwrap();
                    assert_eq!(answer.to_vec::<u8>().unwrap(), [number]);
                });
            };
            (0..24).for_each(&small);
            assert_eq!(server.await_requests(cores + 24).len(), 1);
            (24..48).for_each(&small);
            let sessions = server.await_requests(cores + 48).len();
            assert!(sessions <= cores.min(3), "{sessions} sessions");
            assert_eq!(
                sessions > 1,
                cores > 1,
                "{sessions} sessions, {cores} cores"
            );
            server.answer_all();
        });
    });
}
