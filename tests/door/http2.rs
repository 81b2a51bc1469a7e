//! HTTP/2, frame by frame: what a good client gets, and what a flood gets.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::common::{PATIENCE, Server, within};
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head, payload.to_vec()].concat()
}

/// A header whose name is entry `index` of the static table, and whose value is short and not indexed.
fn header(index: u8, value: &str) -> Vec<u8> {
    [&[index, value.len() as u8], value.as_bytes()].concat()
}

/// A header by its name.
pub fn named(name: &str, value: &str) -> Vec<u8> {
    let name = [&[0, name.len() as u8], name.as_bytes()].concat();
    [&name[..], &[value.len() as u8], value.as_bytes()].concat()
}

/// The headers of `GET path`, or of a POST.
pub fn head(method: u8, path: &str) -> Vec<u8> {
    // :method, :scheme http, :authority, :path
    [vec![method, 0x86], header(1, "localhost"), header(4, path)].concat()
}

/// What an answer of 200 begins with: an entry of the static table.
const STATUS_200: u8 = 0x88;
pub const GET: u8 = 0x82;
pub const POST: u8 = 0x83;

pub struct Http2(TcpStream);

impl Http2 {
    pub fn to(server: &Server) -> Http2 {
        Http2::to_port(server.http_port)
    }

    pub fn to_port(port: u16) -> Http2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(START).unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, b"")).unwrap();
        Http2(stream)
    }

    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.0.write_all(frame).is_ok()
    }

    /// The next frame: kind, flags, stream and payload. `None` if the connection has closed.
    pub fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.read(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Option<()> {
        let read = self.0.read_exact(bytes);
        let silent =
            |e: &std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(
            !read.as_ref().is_err_and(silent),
            "neither an answer nor an end"
        );
        read.ok()
    }

    /// The body of the answer on a stream.
    pub fn body(&mut self, of: u32) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let (kind, flags, stream, payload) = self.next().expect("an answer");
            assert_ne!(kind, GOAWAY, "{payload:?}");
            if stream != of {
                continue;
            }
            assert_ne!(kind, RST_STREAM, "{payload:?}");
            if kind == DATA {
                body.extend_from_slice(&payload);
            }
            if flags & END_STREAM != 0 && (kind == DATA || kind == HEADERS) {
                return body;
            }
        }
    }
}

#[test]
fn requests_share_a_connection_of_http2() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http2 = Http2::to(&server);
        let request = echo_request(3);
        let body = request.to_string();
        for stream in [1, 3, 5] {
            let head = head(POST, "/v2/models/echo/infer");
            assert!(http2.send(&frame(HEADERS, END_HEADERS, stream, &head)));
            assert!(http2.send(&frame(DATA, END_STREAM, stream, body.as_bytes())));
        }
        let expected = Http::to(&server)
            .post("/v2/models/echo/infer", &request)
            .body;
        assert_eq!(http2.body(1), expected);
        let live = head(GET, "/v2/health/live");
        assert!(http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 7, &live)));
        assert_eq!(http2.body(7), b"{\"live\":true}");
    });
}

/// The attack that is called rapid reset: requests that are taken back before anybody has looked at them.
#[test]
fn a_flood_of_resets_ends_its_connection_and_no_other() {
    within(LIMIT, || {
        let server = server(&["--grpc-port", "0"]);
        reset_flood(&server, server.http_port, &head(GET, "/v2/health/live"));
        let call = head(POST, "/inference.GRPCInferenceService/ServerLive");
        let kind = named("content-type", "application/grpc");
        reset_flood(&server, server.grpc_port, &[call, kind].concat());
    });
}

fn reset_flood(server: &Server, port: u16, head: &[u8]) {
    {
        let mut honest = Http::to(server);
        let mut flood = Http2::to_port(port);
        let pair = |stream: u32| {
            let taken_back = frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
            [
                frame(HEADERS, END_HEADERS | END_STREAM, stream, head),
                taken_back,
            ]
            .concat()
        };
        let pairs: Vec<u8> = (0..20_000).flat_map(|i| pair(2 * i + 1)).collect();
        let sent = flood.send(&pairs);
        assert_eq!(
            honest
                .post("/v2/models/echo/infer", &echo_request(1))
                .status,
            200
        );
        let mut told = false;
        while let Some((kind, ..)) = flood.next() {
            told |= kind == GOAWAY;
        }
        assert!(told || !sent, "it may go on for ever");
        assert_eq!(
            honest
                .post("/v2/models/echo/infer", &echo_request(1))
                .status,
            200
        );
    }
}

/// Heads of more than 64 KiB, and one that never ends, in frame after frame.
#[test]
fn a_flood_of_headers_ends_its_request_or_its_connection_and_costs_no_memory() {
    within(LIMIT, || {
        let server = server(&["--grpc-port", "0"]);
        let mut honest = Http::to(&server);
        let mut serve = || {
            let answer = honest.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200);
        };
        serve();
        let memory = server.resident_bytes();
        let some: Vec<u8> = (0..100)
            .flat_map(|index| named(&format!("a{index}"), &"x".repeat(100)))
            .collect();
        for port in [server.http_port, server.grpc_port] {
            // About 110 KB in whole, then what goes on for up to 100 MB.
            for frames in [10, 10_000] {
                let mut flood = Http2::to_port(port);
                assert!(flood.send(&frame(HEADERS, END_STREAM, 1, &head(GET, "/v2"))));
                let sent = (0..frames).all(|index| {
                    let is_last = frames == 10 && index == frames - 1;
                    let flags = if is_last { END_HEADERS } else { 0 };
                    flood.send(&frame(9, flags, 1, &some))
                });
                serve();
                // Its connection ends, or an answer refuses it.
                while sent && let Some((kind, _, stream, payload)) = flood.next() {
                    if kind == HEADERS {
                        let answered = payload.first() == Some(&STATUS_200);
                        assert!(!answered, "{frames} frames are taken");
                    }
                    if matches!(kind, GOAWAY | RST_STREAM) || stream == 1 {
                        break;
                    }
                }
            }
        }
        serve();
        let grown = server.resident_bytes().saturating_sub(memory);
        assert!(grown < 16 << 20, "{grown} bytes more");
    });
}

/// The bug: only HTTP/1 had a bound on the time that a head takes.
#[test]
fn a_head_of_http2_that_never_ends_ends_its_connection_whatever_else_that_does() {
    within(LIMIT, || {
        let server = server(&["--grpc-port", "0", "--preload", "slow"]);
        let ports = [server.http_port, server.grpc_port];
        let crawling: Vec<_> = ports
            .into_iter()
            .flat_map(|port| [false, true].map(|is_busy| (port, is_busy)))
            .map(|(port, is_busy)| {
                let mut http2 = Http2::to_port(port);
                if is_busy && port == server.http_port {
                    // A request of its own that runs for long.
                    let (json, behind) = crate::slow_request(40_000);
                    let json = json.to_string();
                    let head = [
                        head(POST, "/v2/models/slow/infer"),
                        named("inference-header-content-length", &json.len().to_string()),
                    ]
                    .concat();
                    assert!(http2.send(&frame(HEADERS, END_HEADERS, 1, &head)));
                    let body = [json.as_bytes(), &behind[..10_000]].concat();
                    assert!(http2.send(&frame(DATA, 0, 1, &body)));
                }
                let mut begun = frame(HEADERS, 0, 3, &head(GET, "/v2/health/live"));
                if is_busy {
                    // In the midst of a frame.
                    begun[4] = END_HEADERS | END_STREAM;
                    begun.pop();
                }
                assert!(http2.send(&begun));
                http2
            })
            .collect();
        let mut honest = Http2::to(&server);
        let live = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &head(GET, "/v2/health/live"),
        );
        assert!(honest.send(&live));
        honest.body(1);
        let started = std::time::Instant::now();
        for mut http2 in crawling {
            while http2.next().is_some() {}
            let took = started.elapsed();
            assert!(took < std::time::Duration::from_secs(14), "{took:?}");
        }
        let live = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            3,
            &head(GET, "/v2/health/live"),
        );
        assert!(honest.send(&live));
        assert_eq!(honest.body(3), b"{\"live\":true}");
    });
}
