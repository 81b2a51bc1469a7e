//! Messages without an end, connections without a word, and honest clients that are merely slow.

use std::io::{Read, Write};
use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, models, onnx, within};
use crate::ids::echo_server;
use crate::malformed::input;
use crate::raw::{Raw, dealer, hello, receive, routing_id, send};
use crate::zmtp;

const LIMIT: Duration = Duration::from_secs(240);
const MIB: usize = 1 << 20;
const FLAGS: [&str; 2] = ["--max-request-bytes", "8MiB"];

/// What a connection sends without end.
struct Flood<'a> {
    port: u16,
    chunk: &'a [u8],
    /// By how many bytes the server may grow meanwhile.
    most_grown: usize,
}

/// Writes the same bytes again and again until the server ends the connection; the server's memory stays below. A
/// bystander is served meanwhile, which also keeps a starved server from being outrun.
fn flood(server: &Server, bystander: &mut Raw, flood: Flood<'_>) {
    let Flood {
        port,
        chunk,
        most_grown,
    } = flood;
    let mut stream = zmtp::dealer(port, &routing_id());
    let base = server.resident_bytes();
    let mut sent = 0;
    while sent < 8 << 30 {
        if let Err(e) = stream.write_all(chunk) {
            use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
            let cut = [BrokenPipe, ConnectionAborted, ConnectionReset];
            assert!(cut.contains(&e.kind()), "not cut after {sent} bytes: {e}");
            return;
        }
        sent += chunk.len();
        if sent / MIB > (sent - chunk.len()) / MIB {
            bystander.round(&[[sent as f32; 4]]);
        }
        let grown = server.resident_bytes().saturating_sub(base);
        assert!(
            grown < most_grown as u64,
            "grew by {grown} after {sent} bytes"
        );
    }
    panic!("{sent} bytes and no end");
}

#[test]
fn a_message_without_an_end_is_cut() {
    within(LIMIT, || {
        let mut server = echo_server(&FLAGS);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        // Frames of 1 MiB, of 1 KiB, and of nothing: these take 32 times as much memory as they have bytes.
        let many = |body: &[u8], count: usize| zmtp::frame(body, false).repeat(count);
        flood(
            &server,
            &mut bystander,
            Flood {
                port: server.port,
                chunk: &many(&vec![0; MIB], 1),
                most_grown: 200 * MIB,
            },
        );
        bystander.round(&[[2.0; 4]]);
        flood(
            &server,
            &mut bystander,
            Flood {
                port: server.port,
                chunk: &many(&[0; 1024], 256),
                most_grown: 200 * MIB,
            },
        );
        bystander.round(&[[3.0; 4]]);
        flood(
            &server,
            &mut bystander,
            Flood {
                port: server.port,
                chunk: &many(&[], 8192),
                most_grown: 1024 * MIB,
            },
        );
        bystander.round(&[[4.0; 4]]);
        bystander.greet();
        assert!(server.is_running());
    });
}

#[test]
fn a_message_without_an_end_is_cut_on_port_out() {
    within(LIMIT, || {
        let mut server = echo_server(&FLAGS);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        for size in [1000, 0] {
            let chunk = zmtp::frame(&vec![0; size], false).repeat(64);
            let flow = Flood {
                port: server.port_out,
                chunk: &chunk,
                most_grown: 200 * MIB,
            };
            flood(&server, &mut bystander, flow);
            bystander.round(&[[2.0; 4]]);
        }
        bystander.greet();
        assert!(server.is_running());
    });
}

/// A request of 8 MiB that takes its time, twice on one connection: the guard against the above is none of its business.
#[test]
fn a_slow_honest_request_is_not_cut() {
    within(LIMIT, || {
        let server = echo_server(&FLAGS);
        let mut bystander = Raw::open(&server);
        let id = routing_id();
        let context = zmq::Context::new();
        let out = dealer(
            &context,
            &format!("tcp://127.0.0.1:{}", server.port_out),
            Some(&id),
        );
        send(&out, &[hello(1)]);
        assert_eq!(receive(&out).kind(), "welcome");
        let mut port = zmtp::dealer(server.port, &id);
        for request in 1..3 {
            let rows = 8 * MIB / 16;
            let header = input(request, "echo", ("x", "FP32"), json!([rows, 4]));
            let mut bytes = zmtp::frame(&header, false);
            bytes.extend(zmtp::frame(&vec![0; 8 * MIB], true));
            for piece in bytes.chunks(bytes.len() / 24) {
                port.write_all(piece).expect("still connected");
                // Not to wait for anything: this client has a slow line.
                std::thread::sleep(Duration::from_millis(60));
                bystander.round(&[[1.0; 4]]);
            }
            let answer = receive(&out);
            assert_eq!(answer.id(), request);
            assert_eq!(answer.floats().len(), rows * 4);
        }
    });
}

/// Whole requests right after the connection, together many times what one may have.
#[test]
fn a_burst_of_honest_requests_is_not_cut() {
    within(LIMIT, || {
        let server = echo_server(&["--max-request-bytes", "1MiB"]);
        for _ in 0..4 {
            let mut raw = Raw::open(&server);
            let rows = vec![[0.5; 4]; 60_000];
            for _ in 0..40 {
                raw.submit(&rows);
            }
            for _ in 0..40 {
                assert_eq!(receive(&raw.out).floats().len(), rows.len() * 4);
            }
        }
    });
}

#[test]
fn noise_on_the_ports_harms_nobody() {
    within(LIMIT, || {
        let mut server = echo_server(&[]);
        let mut bystander = Raw::open(&server);
        bystander.round(&[[1.0; 4]]);
        let base = server.resident_bytes();
        let ports = [server.port, server.port_out];
        let mut noise: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            vec![0; 5000],
            vec![0xff; 5000],
            (0..20_000u32).map(|i| ((i * 7919) >> 3) as u8).collect(),
            zmtp::greeting()[..11].to_vec(),
            zmtp::greeting()[..40].to_vec(),
        ];
        // A greeting, then nonsense: a frame before READY, a command of 2^63 bytes, a READY that is cut short.
        for rest in [
            &b"\x00\x05hello"[..],
            b"\x06\x80\0\0\0\0\0\0\0",
            b"\x04\xff\x05READY",
            b"\x04\x06\x05READY",
        ] {
            noise.push([&zmtp::greeting(), rest].concat());
        }
        let mut held = Vec::new();
        for port in ports {
            for bytes in noise.iter().cycle().take(100) {
                let mut stream = zmtp::plain(port);
                // The server may have hung up on it by now.
                let _ = stream.write_all(bytes);
                held.push(stream);
            }
            held.extend((0..200).map(|_| zmtp::plain(port)));
            bystander.round(&[[2.0; 4]]);
        }
        // Connections that come and go: each is taken and dropped before the next.
        for port in ports {
            for number in 0..3000 {
                let mut stream = zmtp::plain(port);
                if number % 100 == 0 {
                    stream.read_exact(&mut [0; 10]).expect("a signature");
                    bystander.round(&[[number as f32; 4]]);
                }
            }
        }
        Raw::open(&server).round(&[[3.0; 4]]);
        drop(held);
        bystander.greet();
        bystander.round(&[[4.0; 4]]);
        assert!(server.is_running());
        let grown = server.resident_bytes().saturating_sub(base);
        assert!(grown < 64 * MIB as u64, "grew by {grown} bytes");
    });
}

/// More events of connections than a queue of libzmq's holds, while the server stops.
#[test]
fn a_server_stops_under_a_flood_of_connections() {
    within(LIMIT, || {
        let mut server = echo_server(&[]);
        Raw::open(&server).round(&[[1.0; 4]]);
        let port = server.port;
        let flood = std::thread::spawn(move || {
            for _ in 0..50_000 {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                    return;
                }
            }
        });
        server.signal("TERM");
        assert!(server.wait().success());
        flood.join().expect("the flood ends");
    });
}

/// A frame above the bound ends the connection that it came on, and no other.
#[test]
fn a_frame_above_the_bound_ends_its_connection_only() {
    within(LIMIT, || {
        let folder = models(&[("echo.onnx", onnx::echo(DataType::Fp32, &[4]))]);
        let mut server = Server::start(folder, &FLAGS);
        let mut bystander = Raw::open(&server);
        let mut stream = zmtp::dealer(server.port, &routing_id());
        let header = input(1, "echo", ("x", "FP32"), json!([MIB, 4]));
        stream
            .write_all(&zmtp::frame(&header, false))
            .expect("sent");
        let huge = zmtp::frame(&vec![0; 16 * MIB], true);
        // It may be cut while it is being sent.
        let _ = stream.write_all(&huge);
        let ended = std::iter::repeat_with(|| stream.read(&mut [0; 1024])).take(1000);
        let ended = ended.into_iter().any(|read| matches!(read, Ok(0) | Err(_)));
        assert!(ended, "it is still open");
        bystander.round(&[[1.0; 4]]);
        assert!(server.is_running());
    });
}
