//! The wire, byte for byte: headers written out by hand from the protocol's description, not by our own writers.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm::message::{FailedRows, OnBadRow, Params, Priority, Request, RequestId, Stats};
use mdm::tensor::{Batch, Tensor};
use mdm::wire::client::{self, ClientMessage, StopMode};
use mdm::wire::server::{
    self, DimInfo, LatencyInfo, LoadOutcome, ModelInfo, Outputs, PortInfo, QueueInfo,
    ServerMessage, Status, StopState, TotalsInfo, Welcome, WorkerInfo,
};
use mdm::{Error, ErrorCode};

/// Bytes from pieces of text and of hexadecimal: `'v' 01` is A1 76 01. A quoted word is a string up to 31 bytes with
/// its length before it.
fn wire(spec: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for word in spec.split_whitespace() {
        if let Some(text) = word.strip_prefix('\'').and_then(|w| w.strip_suffix('\'')) {
            assert!(text.len() < 32, "{text}");
            out.push(0xa0 | text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        } else {
            out.push(u8::from_str_radix(word, 16).expect("two hexadecimal digits"));
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn tensor(name: &str, rows: &[[f32; 2]]) -> Tensor {
    Tensor::from_slice(name, vec![rows.len(), 2], &rows.concat()).expect("a tensor")
}

fn frames(header: &str, payload: &[&[u8]]) -> Vec<Bytes> {
    let payload = payload.iter().map(|frame| Bytes::copy_from_slice(frame));
    std::iter::once(Bytes::from(wire(header)))
        .chain(payload)
        .collect()
}

/// It is written so, and read back as it was.
fn client_says(message: &ClientMessage, header: &str, payload: &[&[u8]]) {
    let expected = frames(header, payload);
    let written = client::write_message(message);
    assert_eq!(hex(&written[0]), hex(&expected[0]), "{message:?}");
    assert_eq!(written[1..], expected[1..], "{message:?}");
    assert_eq!(&client::read(expected).expect("readable"), message);
}

fn server_says(id: u64, message: &ServerMessage, header: &str, payload: &[&[u8]]) {
    let expected = frames(header, payload);
    let written = server::write_message(RequestId(id), message);
    assert_eq!(hex(&written[0]), hex(&expected[0]), "{message:?}");
    assert_eq!(written[1..], expected[1..], "{message:?}");
    let (got, read) = server::read(expected).expect("readable");
    assert_eq!((got, &read), (RequestId(id), message));
}

#[test]
fn each_question_is_written_and_read_as_its_golden_bytes() {
    let id = RequestId(5);
    let m = "m".to_owned();
    let table = [
        (
            ClientMessage::Cancel(id),
            "83 'v' 01 'type' 'cancel' 'id' 05",
        ),
        (ClientMessage::Hello(id), "83 'v' 01 'type' 'hello' 'id' 05"),
        (
            ClientMessage::Status(id),
            "83 'v' 01 'type' 'status' 'id' 05",
        ),
        (
            ClientMessage::Models(id),
            "83 'v' 01 'type' 'models' 'id' 05",
        ),
        (
            ClientMessage::Describe(id, Some("m".to_owned()), Params::new()),
            "84 'v' 01 'type' 'models' 'id' 05 'model' 'm'",
        ),
        (
            ClientMessage::Describe(id, None, Params::new()),
            "84 'v' 01 'type' 'models' 'id' 05 'params' 80",
        ),
        (
            ClientMessage::Terminate(id, StopMode::Drain),
            "84 'v' 01 'type' 'terminate' 'id' 05 'mode' 'drain'",
        ),
        (
            ClientMessage::Terminate(id, StopMode::Now),
            "84 'v' 01 'type' 'terminate' 'id' 05 'mode' 'now'",
        ),
        (
            ClientMessage::Load(id, m.clone()),
            "84 'v' 01 'type' 'load' 'id' 05 'model' 'm'",
        ),
        (
            ClientMessage::Unload(id, m),
            "84 'v' 01 'type' 'unload' 'id' 05 'model' 'm'",
        ),
    ];
    for (message, header) in table {
        client_says(&message, header, &[]);
    }
    // The letters themselves, once: nothing above depends on how this file writes strings.
    let written = client::write_message(&ClientMessage::Hello(id));
    assert_eq!(hex(&written[0]), "83a17601a474797065a568656c6c6fa2696405");
}

#[test]
fn numbers_have_any_width() {
    for (id, digits) in [
        (127u64, "7f"),
        (128, "cc 80"),
        (256, "cd 01 00"),
        (65_536, "ce 00 01 00 00"),
        (1 << 32, "cf 00 00 00 01 00 00 00 00"),
        (u64::MAX, "cf ff ff ff ff ff ff ff ff"),
    ] {
        let header = format!("83 'v' 01 'type' 'hello' 'id' {digits}");
        client_says(&ClientMessage::Hello(RequestId(id)), &header, &[]);
    }
    for five in [
        "cc 05",
        "cd 00 05",
        "ce 00 00 00 05",
        "cf 00 00 00 00 00 00 00 05",
        "d0 05",
        "d1 00 05",
        "d3 00 00 00 00 00 00 00 05",
    ] {
        let header = format!("83 'v' cd 00 01 'type' 'hello' 'id' {five}");
        let read = client::read(frames(&header, &[]));
        assert_eq!(read, Ok(ClientMessage::Hello(RequestId(5))), "{five}");
        let header = format!("83 'v' 01 'type' 'welcome' 'id' {five}");
        let read = server::read(frames(&header, &[])).expect("readable");
        assert_eq!(read, (RequestId(5), ServerMessage::Welcome), "{five}");
    }
    // The order of the keys is free, strings and maps may be long forms, and unknown keys are passed over.
    let header = "de 00 05 'id' 05 'later' 82 'a' 91 c0 'b' c3 d9 04 74 79 70 65 d9 05 68 65 6c 6c 6f 'x' ca 00 00 00 00 'v' 01";
    assert_eq!(
        client::read(frames(header, &[])),
        Ok(ClientMessage::Hello(RequestId(5)))
    );
}

#[test]
fn an_infer_with_every_field_is_written_and_read_as_its_golden_bytes() {
    let strings = Tensor::from_strings("s", None, &["ab", "c"]).expect("a tensor");
    let params = serde_json::json!({"k": 1, "n": null, "t": ["x", true, -1, 1.5]});
    let request = Request {
        model: Some("m".to_owned()),
        params: params.as_object().expect("a map").clone(),
        inputs: Batch {
            tensors: vec![tensor("x", &[[1.0, 2.0], [3.0, -0.0]]), strings],
        },
        timeout_ms: Some(1000),
        priority: Priority::High,
        stream: true,
        on_bad_row: OnBadRow::Report,
    };
    client_says(
        &ClientMessage::Infer(RequestId(300), Box::new(request)),
        "8a 'v' 01 'type' 'infer' 'id' cd 01 2c 'model' 'm' \
         'params' 83 'k' 01 'n' c0 't' 94 'x' c3 ff cb 3f f8 00 00 00 00 00 00 \
         'inputs' 92 83 'name' 'x' 'dtype' 'FP32' 'shape' 92 02 02 \
                     83 'name' 's' 'dtype' 'BYTES' 'shape' 91 02 \
         'timeout_ms' cd 03 e8 'priority' 'high' 'on_bad_row' 'report' 'stream' c3",
        &[
            &[
                0, 0, 0x80, 0x3f, 0, 0, 0, 0x40, 0, 0, 0x40, 0x40, 0, 0, 0, 0x80,
            ],
            &[
                0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            ],
            b"abc",
        ],
    );
}

#[test]
fn what_an_infer_leaves_out_has_no_bytes_and_may_be_said_as_well() {
    let request = Request {
        inputs: Batch {
            tensors: vec![Tensor::from_slice("", vec![1], &[7u8]).expect("a tensor")],
        },
        ..Request::default()
    };
    let message = ClientMessage::Infer(RequestId(1), Box::new(request.clone()));
    let header =
        "84 'v' 01 'type' 'infer' 'id' 01 'inputs' 91 83 'name' '' 'dtype' 'UINT8' 'shape' 91 01";
    client_says(&message, header, &[&[7]]);
    assert_eq!(
        client::write_infer(RequestId(1), &request),
        client::write_message(&message)
    );
    // What may be left out may be said as well.
    let header = "89 'v' 01 'type' 'infer' 'id' 01 'params' 80 'priority' 'normal' 'stream' c2 'timeout_ms' c0 \
                  'on_bad_row' 'fail' 'inputs' 91 83 'name' '' 'dtype' 'UINT8' 'shape' 91 01";
    assert_eq!(client::read(frames(header, &[&[7]])), Ok(message));
}

const ONE: &[u8] = &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40];
const TWO: &[u8] = &[
    0, 0, 0x40, 0x40, 0, 0, 0x80, 0x40, 0, 0, 0xa0, 0x40, 0, 0, 0xc0, 0x40,
];
const STATS: Stats = Stats {
    queue_us: 5,
    compute_us: 200,
    chunks: 2,
};

#[test]
fn results_parts_and_ends_are_written_and_read_as_their_golden_bytes() {
    let part = |name: &str, rows: &[[f32; 2]]| Batch {
        tensors: vec![tensor(name, rows)],
    };
    let (first, second) = ([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]);
    let outputs = Outputs {
        parts: vec![part("y", &first), part("y", &second)],
        batched: true,
        failed: Vec::new(),
    };
    let header = "86 'v' 01 'type' 'result' 'id' 09 \
                  'outputs' 91 83 'name' 'y' 'dtype' 'FP32' 'shape' 92 03 02 'parts' 92 01 02 \
                  'stats' 83 'queue_us' 05 'compute_us' cc c8 'chunks' 02";
    server_says(
        9,
        &ServerMessage::Result(outputs.clone(), STATS),
        header,
        &[ONE, TWO],
    );
    let written = server::write_result(RequestId(9), &outputs, STATS);
    assert_eq!(written, frames(header, &[ONE, TWO]));
    let whole = Outputs {
        parts: vec![part("y", &first)],
        batched: false,
        failed: Vec::new(),
    };
    let header = "85 'v' 01 'type' 'result' 'id' 09 'outputs' 91 83 'name' 'y' 'dtype' 'FP32' 'shape' 92 01 02 \
                  'stats' 83 'queue_us' 05 'compute_us' cc c8 'chunks' 02";
    server_says(9, &ServerMessage::Result(whole, STATS), header, &[ONE]);
    let streamed = Outputs {
        parts: vec![part("y", &second)],
        batched: true,
        failed: Vec::new(),
    };
    let header = "85 'v' 01 'type' 'part' 'id' 09 'offset' 64 'outputs' 91 83 'name' 'y' 'dtype' 'FP32' 'shape' 92 02 02";
    let written = server::write_part(RequestId(9), 100, &streamed);
    server_says(9, &ServerMessage::Part(100, streamed), header, &[TWO]);
    assert_eq!(written, frames(header, &[TWO]));
    let header = "85 'v' 01 'type' 'end' 'id' 09 'rows' cd 01 90 'stats' 83 'queue_us' 05 'compute_us' cc c8 'chunks' 02";
    server_says(9, &ServerMessage::End(400, STATS), header, &[]);
}

#[test]
fn rows_that_failed_are_told_in_results_parts_and_errors() {
    let failed = |first: u64, count: u64| FailedRows {
        first,
        count,
        code: ErrorCode::Internal,
        message: "bad".to_owned(),
    };
    let outputs = Outputs {
        parts: vec![Batch {
            tensors: vec![tensor("y", &[[1.0, 2.0]])],
        }],
        batched: true,
        failed: vec![failed(0, 1)],
    };
    let header = "87 'v' 01 'type' 'result' 'id' 09 \
                  'outputs' 91 83 'name' 'y' 'dtype' 'FP32' 'shape' 92 01 02 'parts' 91 01 \
                  'stats' 83 'queue_us' 05 'compute_us' cc c8 'chunks' 02 \
                  'failed' 91 84 'first' 00 'count' 01 'code' 'INTERNAL' 'message' 'bad'";
    server_says(9, &ServerMessage::Result(outputs, STATS), header, &[ONE]);
    let nothing = Outputs {
        parts: vec![Batch::default()],
        batched: true,
        failed: vec![failed(100, 2)],
    };
    let header = "86 'v' 01 'type' 'part' 'id' 09 'offset' 64 'outputs' 90 \
                  'failed' 91 84 'first' 64 'count' 02 'code' 'INTERNAL' 'message' 'bad'";
    server_says(9, &ServerMessage::Part(100, nothing), header, &[]);
    let error = Error::new(ErrorCode::Internal, "bad").at_rows(7..9);
    let header =
        "86 'v' 01 'type' 'error' 'id' 09 'rows' 92 07 02 'code' 'INTERNAL' 'message' 'bad'";
    server_says(9, &ServerMessage::Error(error), header, &[]);
}

/// Two outputs in two parts: output by output, and each part's offsets start at 0.
#[test]
fn a_result_in_parts_has_its_frames_output_by_output() {
    let part = |number: u8, text: &str| Batch {
        tensors: vec![
            Tensor::from_slice("n", vec![1], &[number]).expect("a tensor"),
            Tensor::from_strings("s", None, &[text]).expect("a tensor"),
        ],
    };
    let outputs = Outputs {
        parts: vec![part(1, "ab"), part(2, "cde")],
        batched: true,
        failed: Vec::new(),
    };
    let header = "86 'v' 01 'type' 'result' 'id' 01 \
                  'outputs' 92 83 'name' 'n' 'dtype' 'UINT8' 'shape' 91 02 83 'name' 's' 'dtype' 'BYTES' 'shape' 91 02 \
                  'parts' 92 01 01 'stats' 83 'queue_us' 05 'compute_us' cc c8 'chunks' 02";
    let offsets = |n: u8| {
        let mut offsets = [0; 16];
        offsets[8] = n;
        offsets
    };
    let payload: [&[u8]; 6] = [&[1], &[2], &offsets(2), b"ab", &offsets(3), b"cde"];
    server_says(1, &ServerMessage::Result(outputs, STATS), header, &payload);
}

#[test]
fn errors_and_small_answers_are_written_and_read_as_their_golden_bytes() {
    let error = Error::new(ErrorCode::NotFound, "no m");
    server_says(
        9,
        &ServerMessage::Error(error),
        "85 'v' 01 'type' 'error' 'id' 09 'code' 'NOT_FOUND' 'message' a4 6e 6f 20 6d",
        &[],
    );
    server_says(
        9,
        &ServerMessage::Welcome,
        "83 'v' 01 'type' 'welcome' 'id' 09",
        &[],
    );
    server_says(
        9,
        &ServerMessage::UnloadOk(Vec::new()),
        "83 'v' 01 'type' 'unload_ok' 'id' 09",
        &[],
    );
    let unloaded = ModelInfo {
        name: "m".to_owned(),
        version: "2".to_owned(),
        kind: "whole".to_owned(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    };
    server_says(
        9,
        &ServerMessage::UnloadOk(vec![unloaded]),
        "84 'v' 01 'type' 'unload_ok' 'id' 09 'models' 91 \
         85 'name' a1 6d 'version' a1 32 'kind' 'whole' 'inputs' 90 'outputs' 90",
        &[],
    );
    let draining = ServerMessage::TerminateOk(StopState::Draining(3));
    server_says(
        9,
        &draining,
        "85 'v' 01 'type' 'terminate_ok' 'id' 09 'state' 'draining' 'pending' 03",
        &[],
    );
    let stopped = ServerMessage::TerminateOk(StopState::Stopped);
    server_says(
        9,
        &stopped,
        "84 'v' 01 'type' 'terminate_ok' 'id' 09 'state' 'stopped'",
        &[],
    );
    for code in ErrorCode::ALL {
        let name = code.as_str();
        let header = format!("85 'v' 01 'type' 'error' 'id' 01 'code' '{name}' 'message' 'm'");
        server_says(
            1,
            &ServerMessage::Error(Error::new(code, "m")),
            &header,
            &[],
        );
    }
}

const MODEL: &str = "85 'name' 'm' 'version' '1' 'kind' 'batched' \
    'inputs' 91 83 'name' 'x' 'dtype' 'FP32' 'shape' 93 'N' 04 ff 'outputs' 90";

fn model() -> ModelInfo {
    ModelInfo {
        name: "m".to_owned(),
        version: "1".to_owned(),
        kind: "batched".to_owned(),
        inputs: vec![PortInfo {
            name: "x".to_owned(),
            dtype: "FP32".to_owned(),
            shape: vec![
                DimInfo::Symbol("N".to_owned()),
                DimInfo::Size(4),
                DimInfo::Size(-1),
            ],
        }],
        outputs: vec![],
    }
}

#[test]
fn answers_to_hello_models_and_load_are_written_and_read_as_their_golden_bytes() {
    let welcome = Welcome {
        server_version: "1.2.3".to_owned(),
        port_out: 5556,
        max_batch_size: 1024,
        max_request_bytes: 1 << 29,
        max_client_bytes: 1 << 28,
    };
    let header = "88 'v' 01 'type' 'hello_ok' 'id' 09 'server_version' '1.2.3' 'port_out' cd 15 b4 \
                  'max_batch_size' cd 04 00 'max_request_bytes' ce 20 00 00 00 'max_client_bytes' ce 10 00 00 00";
    server_says(9, &ServerMessage::HelloOk(welcome), header, &[]);
    let header = format!("84 'v' 01 'type' 'models_ok' 'id' 09 'models' 91 {MODEL}");
    server_says(9, &ServerMessage::ModelsOk(vec![model()]), &header, &[]);
    let header = format!("84 'v' 01 'type' 'load_ok' 'id' 09 'model' {MODEL}");
    let loaded = |outcome| ServerMessage::LoadOk(Box::new(model()), outcome);
    server_says(9, &loaded(None), &header, &[]);
    for (outcome, state) in [
        (LoadOutcome::Loaded, "'loaded'"),
        (
            LoadOutcome::LoadedAnew,
            "ab 6c 6f 61 64 65 64 20 61 6e 65 77",
        ),
        (LoadOutcome::Unchanged, "'unchanged'"),
    ] {
        let header = format!("85 'v' 01 'type' 'load_ok' 'id' 09 'state' {state} 'model' {MODEL}");
        server_says(9, &loaded(Some(outcome)), &header, &[]);
    }
}

#[test]
fn a_status_is_written_and_read_as_its_golden_bytes() {
    let status = Status {
        version: "1".to_owned(),
        uptime_s: 60,
        settings: BTreeMap::from([("host".to_owned(), "h".to_owned())]),
        models: vec![model()],
        workers: vec![WorkerInfo {
            id: 0,
            device: "cpu".to_owned(),
            state: "idle".to_owned(),
            model: None,
            chunks: 1,
            rows: 2,
            busy: 0.5,
            ..WorkerInfo::default()
        }],
        queue: QueueInfo {
            requests: 1,
            rows: 2,
            bytes: 3,
        },
        totals: TotalsInfo {
            requests: 1,
            rows: 2,
            failed_rows: 0,
            chunks: 3,
            coalesced: 4,
            dropped: 5,
            errors: BTreeMap::from([("INTERNAL".to_owned(), 6)]),
        },
        latency_us: LatencyInfo {
            p50: 1,
            p90: 2,
            p99: 3,
        },
        ..Status::default()
    };
    let header = format!(
        "de 00 0b 'v' 01 'type' 'status_ok' 'id' 09 'version' '1' 'uptime_s' 3c 'settings' 81 'host' 'h' \
         'models' 91 {MODEL} \
         'workers' 91 87 'id' 00 'device' 'cpu' 'state' 'idle' 'model' c0 'chunks' 01 'rows' 02 \
             'busy' cb 3f e0 00 00 00 00 00 00 \
         'queue' 83 'requests' 01 'rows' 02 'bytes' 03 \
         'totals' 86 'requests' 01 'rows' 02 'chunks' 03 'coalesced' 04 'dropped' 05 'errors' 81 'INTERNAL' 06 \
         'latency_us' 83 'p50' 01 'p90' 02 'p99' 03"
    );
    let (id, read) = server::read(frames(&header, &[])).expect("readable");
    assert_eq!(
        (id, &read),
        (
            RequestId(9),
            &ServerMessage::StatusOk(Box::new(status.clone()))
        )
    );
    let written = server::write_message(id, &ServerMessage::StatusOk(Box::new(status)));
    // How many entries a map has may be written short or long; the rest is as above.
    let body = |header: &[u8]| {
        hex(header)
            .split_once("a176")
            .map(|(_, body)| body.to_owned())
    };
    assert_eq!(body(&written[0]), body(&wire(&header)));
}
