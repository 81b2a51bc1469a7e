//! What the protocol's page says, held against the code: its bytes are what is written and read, its names and bounds
//! are those of the code.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bounded::{MAX_PARAM_VALUES, MAX_PATH_BYTES, MAX_PATHS, MAX_TENSOR_NAME_BYTES};
use super::client::{self, ClientMessage, MAX_DEPTH, MAX_HEADER_BYTES};
use super::server::{self, Outputs, ServerMessage};
use super::{MAX_RANK, MAX_TENSORS};
use crate::error::ErrorCode;
use crate::message::{Request, RequestId, Stats};
use crate::tensor::{Batch, DataType, Tensor};
use crate::zmtp::codec;
use crate::zmtp::mechanism::{Mechanism, Null, SocketType};

const PAGE: &str = include_str!("protocol.md");

/// The frames of the page's last section by their names: a name ends with a colon, and the bytes of its lines stand
/// ahead of the bar.
fn frames() -> BTreeMap<&'static str, Vec<u8>> {
    let (_, section) = PAGE
        .split_once("# The bytes of one request")
        .expect("the section");
    let mut frames: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut name = None;
    for block in section.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a closed block");
        for line in block.lines() {
            if let Some(of) = line.strip_suffix(':') {
                name = Some(of);
            } else if let Some((bytes, _)) = line.split_once('|') {
                let frame = frames.entry(name.expect("a frame's name")).or_default();
                let byte = |word| u8::from_str_radix(word, 16).expect("two digits");
                frame.extend(bytes.split_whitespace().map(byte));
            }
        }
    }
    frames
}

fn message(frames: &BTreeMap<&str, Vec<u8>>, names: &[&str]) -> Vec<Bytes> {
    let frame = |name: &&str| Bytes::from(frames[name].clone());
    names.iter().map(frame).collect()
}

fn rows(name: &str, rows: &[[f32; 2]]) -> Batch {
    let tensor = Tensor::from_slice(name, vec![rows.len(), 2], &rows.concat());
    tensor.expect("a tensor").into()
}

#[test]
fn the_pages_request_is_what_is_written_and_read() {
    let quoted = frames();
    let quoted = message(&quoted, &["request, header", "request, payload of x"]);
    let request = Request {
        model: Some("echo".to_owned()),
        inputs: rows("x", &[[1.0, 2.0], [3.0, 4.0]]),
        ..Request::default()
    };
    let infer = ClientMessage::Infer(RequestId(2), Box::new(request));
    assert_eq!(client::write_message(&infer), quoted);
    assert_eq!(client::read(quoted), Ok(infer));
}

#[test]
fn the_pages_result_is_what_is_written_and_read() {
    let quoted = frames();
    let names = [
        "result, header",
        "result, payload of y, part 0",
        "result, payload of y, part 1",
    ];
    let quoted = message(&quoted, &names);
    let outputs = Outputs {
        parts: vec![rows("y", &[[1.0, 2.0]]), rows("y", &[[3.0, 4.0]])],
        batched: true,
        failed: Vec::new(),
    };
    let stats = Stats {
        queue_us: 5,
        compute_us: 200,
        chunks: 2,
    };
    let result = ServerMessage::Result(outputs, stats);
    assert_eq!(server::write_message(RequestId(2), &result), quoted);
    assert_eq!(server::read(quoted), Ok((RequestId(2), result)));
}

#[test]
fn the_pages_connection_is_what_a_client_sends() {
    let quoted = frames();
    assert_eq!(
        codec::greeting(0, "NULL").to_vec(),
        quoted["connection, greeting"]
    );
    let id: Vec<u8> = (1..=16).collect();
    let mut ready = Vec::new();
    let body = Null::new(SocketType::Dealer, id.into()).first();
    codec::push_command(&mut ready, &body);
    assert_eq!(ready, quoted["connection, ready"]);
    let head = |frame: &str, more: bool| {
        let mut head = Vec::new();
        codec::push_head(&mut head, quoted[frame].len(), more);
        head
    };
    assert_eq!(
        head("request, header", true),
        quoted["connection, request, first frame's head"]
    );
    assert_eq!(
        head("request, payload of x", false),
        quoted["connection, request, second frame's head"]
    );
}

#[test]
fn the_page_has_every_datatype_code_and_type() {
    for datatype in DataType::ALL {
        let is_there = PAGE
            .lines()
            .filter(|line| line.starts_with("| "))
            .any(|line| line.split([' ', ',']).any(|word| word == datatype.name()));
        assert!(is_there, "{datatype}");
    }
    for code in ErrorCode::ALL {
        assert!(PAGE.contains(&format!("| `{code}` |")), "{code}");
    }
    let said = [
        "infer",
        "cancel",
        "hello",
        "status",
        "models",
        "terminate",
        "load",
        "unload",
    ];
    let told = [
        "hello_ok",
        "status_ok",
        "models_ok",
        "load_ok",
        "unload_ok",
        "terminate_ok",
        "welcome",
        "result",
        "part",
        "end",
        "error",
    ];
    for kind in said.iter().chain(&told) {
        assert!(PAGE.contains(&format!("type:\"{kind}\"")), "{kind}");
    }
}

#[test]
fn the_pages_bounds_are_the_codes() {
    let words = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    for (number, what) in [
        (MAX_HEADER_BYTES, "bytes, with at most"),
        (MAX_TENSORS, "tensors"),
        (MAX_RANK, "dimensions"),
        (MAX_PARAM_VALUES, "values"),
        (MAX_DEPTH, "levels"),
        (MAX_PATHS, "keys that end in `_path`"),
        (MAX_PATH_BYTES, "bytes, a tensor's name"),
        (MAX_TENSOR_NAME_BYTES, "."),
    ] {
        let digits = match number / 1000 {
            0 => number.to_string(),
            thousands => format!("{thousands},{:03}", number % 1000),
        };
        let space = if what == "." { "" } else { " " };
        let said = format!("{digits}{space}{what}");
        assert!(words.contains(&said), "{said}");
    }
}
