//! A slow line: a program between client and server that passes so many bytes a second each way, and keeps few.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

/// What a line's own sockets may hold, so that what was sent is either with the sender or has arrived.
const HELD_BYTES: usize = 64 * 1024;
/// Steps of a second.
const STEPS: u32 = 50;

/// Listens for as long as the test program runs, and passes on to a port of this machine; the port to connect to.
pub fn slow(to: u16, bytes_per_s: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.expect("a connection");
            // Once the server has ended nobody is there for who tries again.
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
                continue;
            };
            for stream in [&near, &far] {
                set_socket_recv_buffer_size(stream, HELD_BYTES).expect("an option");
                set_socket_send_buffer_size(stream, HELD_BYTES).expect("an option");
                stream.set_nodelay(true).expect("an option");
            }
            let back = (
                far.try_clone().expect("a descriptor"),
                near.try_clone().expect("a descriptor"),
            );
            thread::spawn(move || pass(near, far, bytes_per_s));
            thread::spawn(move || pass(back.0, back.1, bytes_per_s));
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, bytes_per_s: usize) {
    let mut buffer = vec![0; (bytes_per_s / STEPS as usize).max(1)];
    let mut due = Instant::now();
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            Ok(_) => {
                // The other end may have gone meanwhile.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Err(_) => break,
        };
        // What a line is: not to wait for anything, but to take its time.
        let now = Instant::now();
        due = due.max(now) + Duration::from_secs_f64(count as f64 / bytes_per_s as f64);
        thread::sleep(due - now);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Whoever is left learns of it; where that fails it knows already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
