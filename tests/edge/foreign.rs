//! Clients in another language: pyzmq, with whatever libzmq it has.

use crate::common::within;
use crate::python::python_with;
use crate::raw::{echo, hello, routing_id};
use crate::{LIMIT, server};

/// Says hello on both, sends two requests of rows in one go, and prints the frames of what comes, a line each.
const SCRIPT: &str = r#"
import sys, zmq
port, port_out, identity = sys.argv[1:4]
hello, header, small, header2, large = map(bytes.fromhex, sys.argv[4:9])
context = zmq.Context()
def dealer(port):
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, bytes.fromhex(identity))
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 30000)
    # Its own signs of life, as our clients over libzmq have them.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 3000)
    socket.connect("tcp://127.0.0.1:" + port)
    return socket
def show(frames):
    print(" ".join(frame.hex() for frame in frames), flush=True)
front, out = dealer(port), dealer(port_out)
out.send(hello); show(out.recv_multipart())
front.send(hello); show(front.recv_multipart())
front.send_multipart([header, small]); front.send_multipart([header2, large])
show(out.recv_multipart()); show(out.recv_multipart())
# Its own signs of life, and the server's, go to and fro meanwhile.
import time; time.sleep(8)
front.send(hello); show(front.recv_multipart())
print(zmq.zmq_version(), zmq.pyzmq_version(), file=sys.stderr)
"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

#[test]
fn pyzmq_is_served() {
    let Some(mut python) = python_with("zmq") else {
        return;
    };
    within(LIMIT, move || {
        let server = server(&[]);
        let large: Vec<[f32; 4]> = (0..500).map(|row| [row as f32; 4]).collect();
        let (first, second) = (echo(2, &[[1.0, 2.0, 3.0, 4.0]]), echo(3, &large));
        let output = python
            .args(["-c", SCRIPT])
            .args([server.port.to_string(), server.port_out.to_string()])
            .args([routing_id().to_vec(), hello(1)].map(|bytes| hex(&bytes)))
            .args(first.iter().chain(&second).map(|bytes| hex(bytes)))
            .output()
            .expect("python3 runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        println!("libzmq and pyzmq: {said}");
        let text = String::from_utf8(output.stdout).expect("text");
        let kinds = ["welcome", "hello_ok", "result", "result", "hello_ok"];
        let mut rows = Vec::new();
        for (line, kind) in text.lines().zip(kinds) {
            let frames: Vec<Vec<u8>> = line.split(' ').map(unhex).collect();
            let header: serde_json::Value = rmp_serde::from_slice(&frames[0]).expect("msgpack");
            assert_eq!(header["type"], kind, "{header}");
            if kind == "result" {
                rows.push((header["id"].as_u64(), frames[1..].concat()));
            }
        }
        assert_eq!(text.lines().count(), kinds.len());
        // The small one may overtake the other.
        rows.sort_unstable();
        let expected = [(Some(2), first[1].clone()), (Some(3), second[1].clone())];
        assert_eq!(rows, expected);
    });
}
