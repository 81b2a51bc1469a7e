//! A connection of HTTP/2 that is kept, with as many calls on it at a time as it is told.
//!
//! Nothing runs beside it: the thread that asks polls the connection and its calls, and sleeps until the socket has
//! something or a request is due. So a call costs no change of threads, and is sent to within microseconds of its time.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, Connection as Http2, SendRequest};
use hyper::{Method, Request, Uri, header};

use super::super::super::drive::{Asking, Connection};
use super::super::super::load::Arrival;
use super::super::super::measure::{Failure, Outcome};
use super::exchange::{Answer, Exchange, broken, failure};
use super::socket::{Socket, Stream, Woken};

/// How much a server may send before it hears that it was read: as much as there is, since answers are read as they come.
const WINDOW_BYTES: u32 = (1 << 31) - 1;
/// The longest frame that a server may send: each costs both sides a little.
const FRAME_BYTES: u32 = 256 << 10;

/// A client's end.
pub struct Kept {
    uri: Uri,
    timeout: Duration,
    in_flight: usize,
    start: Instant,
    woken: Arc<Woken>,
    open: Option<Open>,
    /// Connections opened so far.
    opened: u64,
    /// Calls on the one that is open.
    calls: usize,
}

struct Open {
    socket: Arc<Socket>,
    requests: SendRequest<Bytes>,
    http2: Http2<Stream, Bytes>,
}

/// What comes of sending a call.
enum Sent {
    Now(Exchange),
    /// The server takes no more for now.
    Later,
    Failed(Failure),
}

impl Kept {
    pub fn new(uri: Uri, timeout: Duration, in_flight: usize) -> Kept {
        Kept {
            uri,
            timeout,
            in_flight,
            start: Instant::now(),
            woken: Arc::default(),
            open: None,
            opened: 0,
            calls: 0,
        }
    }

    /// With the requests that it is to send.
    pub fn of(self, requests: Arc<[Bytes]>) -> Calls {
        Calls {
            kept: self,
            requests,
        }
    }

    /// Connects, before there is something to send.
    pub fn connect(&mut self) -> io::Result<()> {
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let socket = Socket::connect(authority)?;
        let mut builder = Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .enable_push(false);
        let mut handshake = pin!(builder.handshake(Stream(Arc::clone(&socket))));
        let waker = self.woken.waker();
        let mut cx = Context::from_waker(&waker);
        let until = Instant::now() + self.timeout;
        let shaken = loop {
            if let Poll::Ready(shaken) = handshake.as_mut().poll(&mut cx) {
                break shaken;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            socket.wait(Some(left))?;
        };
        let (requests, http2) = shaken.map_err(io::Error::other)?;
        self.opened += 1;
        self.calls = 0;
        self.open = Some(Open {
            socket,
            requests,
            http2,
        });
        Ok(())
    }

    /// Sends a call now, if the server takes one.
    fn send(&mut self, message: Bytes) -> Sent {
        if self.open.is_none()
            && let Err(e) = self.connect()
        {
            return Sent::Failed(failure("CONNECTION".to_owned(), &e.to_string()));
        }
        let Some(open) = &mut self.open else {
            return Sent::Later;
        };
        let waker = self.woken.waker();
        let mut cx = Context::from_waker(&waker);
        let sent = match open.requests.poll_ready(&mut cx) {
            Poll::Pending => return Sent::Later,
            Poll::Ready(Err(e)) => Err(e),
            Poll::Ready(Ok(())) => {
                let mut request = Request::new(());
                *request.method_mut() = Method::POST;
                *request.uri_mut() = self.uri.clone();
                let kind = header::HeaderValue::from_static("application/grpc");
                let te = header::HeaderValue::from_static("trailers");
                request.headers_mut().insert(header::CONTENT_TYPE, kind);
                request.headers_mut().insert(header::TE, te);
                open.requests.send_request(request, false)
            }
        };
        let sent = sent.and_then(|(response, mut body)| {
            body.send_data(message, true)?;
            Ok(response)
        });
        match sent {
            Ok(response) => {
                self.calls += 1;
                let until = self.start.elapsed() + self.timeout;
                Sent::Now(Exchange::new(response, until, self.opened))
            }
            // It ends with the calls that it still has.
            Err(_) if self.calls > 0 => Sent::Later,
            Err(e) => {
                self.open = None;
                Sent::Failed(broken(&e))
            }
        }
    }

    /// How a call ended, if it has.
    fn ended(&mut self, call: &mut Exchange) -> Option<Result<Answer, Failure>> {
        let waker = self.woken.waker();
        let ended = match call.poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(ended) => ended,
            Poll::Pending if self.start.elapsed() >= call.until => {
                Err(failure("TIMEOUT".to_owned(), "no answer in time"))
            }
            Poll::Pending if self.open.is_none() || call.connection != self.opened => Err(failure(
                "CONNECTION".to_owned(),
                "the server closed the connection",
            )),
            Poll::Pending => return None,
        };
        if call.connection == self.opened {
            self.calls = self.calls.saturating_sub(1);
        }
        Some(ended)
    }

    /// Writes what is to be written, reads what has come, and waits for more if that changed nothing.
    fn turn(&mut self, longest: Option<Duration>) {
        self.woken.take();
        if self.is_closed() || self.woken.take() {
            return;
        }
        let waited = match &self.open {
            Some(open) => open.socket.wait(longest),
            None => {
                std::thread::sleep(longest.unwrap_or_default());
                return;
            }
        };
        if waited.is_err() {
            self.open = None;
        }
        self.is_closed();
    }

    /// Polls the connection, and lets go of it if it has ended.
    fn is_closed(&mut self) -> bool {
        let waker = self.woken.waker();
        let mut cx = Context::from_waker(&waker);
        let Some(open) = &mut self.open else {
            return false;
        };
        let is_closed = Pin::new(&mut open.http2).poll(&mut cx).is_ready();
        if is_closed {
            self.open = None;
        }
        is_closed
    }

    /// A call alone, from its message to its answer's.
    pub fn exchange(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        self.call(message).map(Answer::joined)
    }

    fn call(&mut self, message: Bytes) -> Result<Answer, Failure> {
        let until = self.start.elapsed() + self.timeout;
        let mut call = loop {
            match self.send(message.clone()) {
                Sent::Now(call) => break call,
                Sent::Failed(failure) => return Err(failure),
                Sent::Later if self.start.elapsed() >= until => {
                    let message = "the server takes no call";
                    return Err(failure("TIMEOUT".to_owned(), message));
                }
                Sent::Later => self.turn(Some(self.timeout)),
            }
        };
        loop {
            if let Some(ended) = self.ended(&mut call) {
                return ended;
            }
            self.turn(Some(call.until.saturating_sub(self.start.elapsed())));
        }
    }
}

/// A connection and what it sends.
pub struct Calls {
    kept: Kept,
    requests: Arc<[Bytes]>,
}

/// One of the requests that a connection has in flight.
enum Slot {
    Free,
    Waiting(Arrival),
    Asked {
        arrival: Arrival,
        sent: Duration,
        call: Box<Exchange>,
    },
    Over,
}

impl Connection for Calls {
    fn ask(&mut self, request: usize) -> Outcome {
        let answer = self.kept.call(self.requests[request].clone());
        answer.map(|_| None)
    }

    fn serve(&mut self, asking: &mut Asking<'_>) {
        let mut slots: Vec<Slot> = (0..self.kept.in_flight).map(|_| Slot::Free).collect();
        loop {
            // How long nothing happens but what the server does.
            let mut quiet: Option<Duration> = None;
            for slot in &mut slots {
                if let Some(until) = self.step(slot, asking) {
                    quiet = Some(quiet.map_or(until, |quiet| quiet.min(until)));
                }
            }
            if slots.iter().all(|slot| matches!(slot, Slot::Over)) {
                return;
            }
            self.kept.turn(quiet);
        }
    }
}

impl Calls {
    /// Takes one request as far as it goes, and says how long it waits if the server does nothing.
    fn step(&mut self, slot: &mut Slot, asking: &mut Asking<'_>) -> Option<Duration> {
        loop {
            *slot = match std::mem::replace(slot, Slot::Free) {
                Slot::Free => match asking.next() {
                    Some(arrival) => Slot::Waiting(arrival),
                    None => Slot::Over,
                },
                Slot::Waiting(arrival) => {
                    let sent = asking.now();
                    if sent < arrival.due {
                        *slot = Slot::Waiting(arrival);
                        return Some(arrival.due - sent);
                    }
                    let request = &self.requests[asking.request(arrival)];
                    match self.kept.send(request.clone()) {
                        Sent::Now(call) => Slot::Asked {
                            arrival,
                            sent,
                            call: Box::new(call),
                        },
                        Sent::Later => {
                            *slot = Slot::Waiting(arrival);
                            return None;
                        }
                        Sent::Failed(failure) => {
                            asking.ended(arrival, sent, Err(failure));
                            Slot::Free
                        }
                    }
                }
                Slot::Asked {
                    arrival,
                    sent,
                    mut call,
                } => match self.kept.ended(&mut call) {
                    Some(ended) => {
                        asking.ended(arrival, sent, ended.map(|_| None));
                        Slot::Free
                    }
                    None => {
                        let left = call.until.saturating_sub(self.kept.start.elapsed());
                        *slot = Slot::Asked {
                            arrival,
                            sent,
                            call,
                        };
                        return Some(left);
                    }
                },
                Slot::Over => {
                    *slot = Slot::Over;
                    return None;
                }
            };
        }
    }
}
