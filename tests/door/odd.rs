//! What is wrong with a request is told: its status, and a message that names the thing. Nothing of it harms anybody.

use serde_json::{Value, json};

use crate::common::{eventually, within};
use crate::http::{Answer, Http};
use crate::{LIMIT, echo_request, server};

const ECHO: &str = "/v2/models/echo/infer";
/// What may be left of much that is over: freed memory that is kept for what comes next.
pub const FLAT_BYTES: u64 = 48 << 20;

/// Tries a request, and checks what it is told.
fn check(answer: &Answer, status: u16, words: &str, what: &str) {
    let told = answer.error();
    assert_eq!(answer.status, status, "{what}: {told}");
    assert!(told.contains(words), "{what}: {words:?} is not in: {told}");
}

/// A request for "echo" whose input has these keys besides, or instead.
fn input(more: Value) -> Value {
    let mut input = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
    let own = input.as_object_mut().unwrap();
    own.extend(more.as_object().unwrap().clone());
    own.retain(|_, value| !value.is_null());
    json!({"inputs": [input]})
}

/// A request for "echo" with parameters.
fn with(parameters: Value) -> Value {
    let mut request = echo_request(1);
    request["parameters"] = parameters;
    request
}

/// A request for "echo" with outputs.
fn outputs(outputs: Value) -> Value {
    let mut request = echo_request(1);
    request["outputs"] = outputs;
    request
}

/// Requests of JSON alone.
fn json_requests() -> Vec<(Value, u16, &'static str)> {
    let data = |data: Value| input(json!({"data": data}));
    vec![
        (json!([]), 400, "expected an object with `inputs`"),
        (json!("x"), 400, "expected an object"),
        (json!({}), 400, "`inputs` is missing"),
        (json!({"inputs": null}), 400, "`inputs` is missing"),
        (json!({"inputs": {}}), 400, "a list of at most 1024"),
        (json!({"inputs": []}), 400, "input"),
        (json!({"inputs": [7]}), 400, "not the protocol's JSON"),
        (json!({"inputs": [{}]}), 400, "missing field `name`"),
        (json!({"inputs": vec![json!({}); 1]}), 400, "missing field"),
        (input(json!({"name": null})), 400, "missing field `name`"),
        (input(json!({"name": 7})), 400, "invalid type"),
        (input(json!({"name": "y"})), 400, "\"x\""),
        (
            input(json!({"name": "n".repeat(2000)})),
            400,
            "more than 1024 bytes",
        ),
        (input(json!({"shape": null})), 400, "missing field `shape`"),
        (input(json!({"shape": 4})), 400, "a list of at most 64"),
        (input(json!({"shape": [-1, 4]})), 400, "negative dimension"),
        (input(json!({"shape": [1.5, 4]})), 400, "invalid type"),
        (input(json!({"shape": ["1", 4]})), 400, "invalid type"),
        (
            input(json!({"shape": [u64::MAX, 4]})),
            400,
            "not the protocol's JSON",
        ),
        (
            input(json!({"shape": [1u64 << 62, 8]})),
            400,
            "more elements than memory",
        ),
        (
            input(json!({"shape": [1u64 << 40, 4]})),
            400,
            "4 values, and shape",
        ),
        (
            input(json!({"shape": vec![1; 65]})),
            400,
            "more than 64 entries",
        ),
        (input(json!({"shape": [4]})), 400, "shape"),
        (input(json!({"shape": [2, 2]})), 400, "shape"),
        (
            input(json!({"shape": [1, 5]})),
            400,
            "4 values, and shape [1, 5] has 5",
        ),
        (
            input(json!({"shape": [1, 3]})),
            400,
            "more values than the 3",
        ),
        (
            input(json!({"datatype": null})),
            400,
            "missing field `datatype`",
        ),
        (
            input(json!({"datatype": "FLOAT"})),
            400,
            "unknown datatype \"FLOAT\"",
        ),
        (input(json!({"datatype": "fp32"})), 400, "unknown datatype"),
        (input(json!({"datatype": "FP64"})), 400, "FP32"),
        (
            input(json!({"datatype": "BYTES"})),
            400,
            "1 is no BYTES, expected a string",
        ),
        (input(json!({"data": null})), 400, "neither `data` nor"),
        (data(json!(7)), 400, "`data` is no array"),
        (data(json!({})), 400, "an object"),
        (data(json!("1234")), 400, "`data` is no array"),
        (
            data(json!([1, 2, 3, null])),
            400,
            "element 3: null is no FP32",
        ),
        (
            data(json!([1, 2, 3, "4"])),
            400,
            "element 3: \"4\" is no FP32",
        ),
        (data(json!([1, 2, 3, true])), 400, "true is no FP32"),
        (data(json!([1, 2, 3, 1e300])), 400, "beyond FP32"),
        (data(json!([[1, 2], [3, 4]])), 400, "nested as [2, 2]"),
        (data(json!([[1, 2], [3]])), 400, "ragged"),
        (data(json!([[1, 2, 3], 4])), 400, "ragged"),
        (data(json!([1, 2, 3, {"a": 4}])), 400, "an object"),
        (
            input(json!({"parameters": 7})),
            400,
            "not the protocol's JSON",
        ),
        (
            input(json!({"parameters": {"binary_data_size": 16}})),
            400,
            "both `data` and",
        ),
        (
            input(json!({"parameters": {"shared_memory_region": "r"}})),
            400,
            "no shared memory",
        ),
        (with(json!([])), 400, "not the protocol's JSON"),
        (with(json!({"timeout": -1})), 400, "parameters.timeout"),
        (with(json!({"timeout": "soon"})), 400, "parameters.timeout"),
        (with(json!({"priority": 1.5})), 400, "parameters.priority"),
        (
            with(json!({"binary_data_output": "yes"})),
            400,
            "parameters.binary_data_output",
        ),
        (with(json!({"a_path": "../../etc/passwd"})), 403, "a_path"),
        (with(json!({"a_path": "none.txt"})), 404, "a_path"),
        (with(json!({"a_path": "x".repeat(5000)})), 400, "a_path"),
        (with(json!({"model_version": "one"})), 400, "model_version"),
        (
            with(json!({"many": vec![0; 20_000]})),
            400,
            "more than 10000 values",
        ),
        (outputs(json!({})), 400, "a list of at most 1024"),
        (outputs(json!([{}])), 400, "missing field `name`"),
        (outputs(json!([{"name": "z"}])), 400, "\"z\" was asked for"),
        (
            outputs(json!([{"name": "y"}, {"name": "y"}])),
            400,
            "\"y\" was asked for twice",
        ),
        (
            outputs(json!([{"name": "n".repeat(2000)}])),
            400,
            "has 2000 bytes, and 1024 is the most",
        ),
        (
            input(json!({"parameters": {"a": vec![0; 100]}})),
            400,
            "more than 64 values",
        ),
        (
            outputs(json!([{"name": "y", "parameters": {"binary_data": 1}}])),
            400,
            "binary_data",
        ),
        (
            outputs(json!([{"name": "y", "parameters": {"classification": -1}}])),
            400,
            "classification",
        ),
        (
            outputs(json!([{"name": "y", "parameters": {"shared_memory_region": "r"}}])),
            400,
            "no shared memory",
        ),
    ]
}

#[test]
fn a_table_of_malformed_requests_is_told_what_is_wrong() {
    within(LIMIT, || {
        let server = server(&["--max-request-bytes", "64MiB"]);
        let (mut http, mut honest) = (Http::to(&server), Http::to(&server));
        let mut serve = || assert_eq!(honest.post(ECHO, &echo_request(1)).status, 200);
        serve();
        let memory = server.resident_bytes();
        for (request, status, words) in json_requests() {
            let text = request.to_string();
            let answer = http.request("POST", ECHO, &[], text.as_bytes());
            check(&answer, status, words, &text[..text.len().min(200)]);
        }
        serve();
        let deep = |open: &str, close: &str| {
            let (open, close) = (open.repeat(10_000), close.repeat(10_000));
            let data = format!("{open}1{close}");
            [
                format!(
                    "{{\"inputs\":[{{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":{data}}}]}}"
                ),
                format!("{{\"parameters\":{{\"a\":{data}}},\"inputs\":[]}}"),
                data,
            ]
        };
        let deep = [deep("[", "]"), deep("{\"a\":", "}")].concat();
        let too_deep = [
            "deeper than 64",
            "recursion limit",
            "expected an object",
            "an object, expected a number",
            "recursion limit",
            "`inputs` is missing",
        ];
        let deep = deep.iter().map(String::as_bytes).zip(too_deep);
        for (text, words) in deep.chain([
            (&b""[..], "expected an object"),
            (b"{", "EOF"),
            (b"{\"inputs\":[", "EOF"),
            (b"\xff\xfe", "expected an object"),
            (b"{\"id\":\"\xff\"}", "invalid unicode"),
            (b"{\"inputs\":[]}{}", "trailing characters"),
            (b"null", "expected an object"),
            (b"NaN", "expected an object"),
            (b"[[[[", "expected an object"),
            (
                b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[NaN,1,2,3]}]}",
                "expected value",
            ),
        ]) {
            let answer = http.request("POST", ECHO, &[], text);
            let shown = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
            check(&answer, 400, words, &shown);
        }
        serve();
        // Small pieces that would take far more once they are read.
        for many in ["{},", "[],", "0,", "\"\","] {
            let text = format!("{{\"inputs\":[{}0]}}", many.repeat((60 << 20) / many.len()));
            check(
                &http.request("POST", ECHO, &[], text.as_bytes()),
                400,
                "",
                many,
            );
        }
        serve();
        eventually("what they held is free", || {
            server.resident_bytes() < memory + FLAT_BYTES
        });
    });
}

/// Two hundred megabytes of JSON that are right but for their end.
#[test]
fn a_body_of_200_mb_of_json_is_read_to_its_wrong_end_beside_others_and_leaves_nothing() {
    within(LIMIT, || {
        let server = server(&[]);
        let (mut http, mut honest) = (Http::to(&server), Http::to(&server));
        let mut serve = || assert_eq!(honest.post(ECHO, &echo_request(1)).status, 200);
        serve();
        let memory = server.resident_bytes();
        let number = format!("0.{},", "5".repeat(37));
        let rows = (200 << 20) / number.len() / 4;
        let body = format!(
            "{{\"inputs\":[{{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[{rows},4],\"data\":[{}x]}}]}}",
            number.repeat(rows * 4 - 1)
        );
        http.ask("POST", ECHO, &[], body.as_bytes());
        for _ in 0..5 {
            serve();
        }
        let answer = http.answer().expect("an answer");
        check(&answer, 400, "JSON", "its end");
        serve();
        eventually("what it held is free", || {
            server.resident_bytes() < memory + FLAT_BYTES
        });
    });
}

#[test]
fn lengths_that_lie_are_told() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let sized =
            |size: Value| input(json!({"data": null, "parameters": {"binary_data_size": size}}));
        for (request, behind, words) in [
            (sized(json!(16)), 15, "15 bytes of the body are left"),
            (sized(json!(16)), 17, "1 bytes behind the JSON more"),
            (sized(json!(12)), 12, "takes 16 bytes, got 12"),
            (sized(json!(-16)), 16, "expected a number of bytes"),
            (sized(json!("16")), 16, "expected a number of bytes"),
            (sized(json!(u64::MAX)), 16, "bytes of the body are left"),
            (input(json!({})), 4, "4 bytes behind the JSON more"),
        ] {
            let answer = http.post_binary(ECHO, &request, &vec![0; behind]);
            check(&answer, 400, words, &request.to_string());
        }
        let text = |bytes: &[u8]| {
            let input = json!({
                "name": "x", "datatype": "BYTES", "shape": [1],
                "parameters": {"binary_data_size": bytes.len()},
            });
            (json!({"inputs": [input]}), bytes.to_vec())
        };
        for (bytes, words) in [
            (
                &b"\x05\0\0\0ab"[..],
                "says that it has 5 bytes, and 2 are left",
            ),
            (b"\xff\xff\xff\xffab", "says that it has 4294967295 bytes"),
            (b"\0\0\0\0\0\0\0\0", "more than the 1 elements"),
            (b"", "0 elements, and its shape has 1"),
            (b"ab", "2 bytes behind element 0"),
        ] {
            let (json, behind) = text(bytes);
            let answer = http.post_binary("/v2/models/upper/infer", &json, &behind);
            check(&answer, 400, words, &format!("{bytes:?}"));
        }
        for length in ["-1", "x", "99999999999999999999", "1e3"] {
            let headers = [("Inference-Header-Content-Length", length)];
            let answer = http.request("POST", ECHO, &headers, b"{}");
            check(&answer, 400, "Inference-Header-Content-Length", length);
        }
        let headers = [("Inference-Header-Content-Length", "1000")];
        let answer = http.request("POST", ECHO, &headers, b"{}");
        check(&answer, 400, "the body has 2", "too long");
    });
}

#[test]
fn headers_that_nobody_should_send_are_refused() {
    within(LIMIT, || {
        let server = server(&[]);
        let own = format!("localhost:{}", server.http_port);
        let origin = format!("http://{own}");
        let mut http = Http::to(&server);
        for (headers, status) in [
            (&[("origin", "http://evil.org")][..], 403),
            (&[("origin", "null")], 403),
            (&[("host", "evil.org")], 403),
            (&[("host", "evil.org"), ("origin", "http://evil.org")], 403),
            (&[("host", own.as_str()), ("origin", origin.as_str())], 200),
            (&[("host", "127.0.0.1")], 200),
            (&[("host", "[::1]:80")], 200),
        ] {
            let body = echo_request(1).to_string();
            let answer = http.request("POST", ECHO, headers, body.as_bytes());
            assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
            let get = http.request("GET", "/v2", headers, b"");
            assert_eq!(get.status, status, "{headers:?}");
        }
        for coding in ["br", "zstd", "gzip, gzip", "x"] {
            let answer = http.request("POST", ECHO, &[("content-encoding", coding)], b"{}");
            check(&answer, 415, "Content-Encoding", coding);
        }
        for coding in ["gzip", "deflate"] {
            let answer = http.request("POST", ECHO, &[("content-encoding", coding)], b"{}");
            check(&answer, 400, coding, coding);
        }
    });
}

#[test]
fn what_is_no_http_is_answered_or_closed_and_others_go_on() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut honest = Http::to(&server);
        let flood = format!("GET /v2 HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
        let long = format!("GET /v2 HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(1 << 20));
        let path = format!(
            "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "x".repeat(1 << 20)
        );
        let twice = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx";
        let lengths = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\nxx";
        let chunk = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
        let huge = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
        let http2 =
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnothing of the kind, and more of it than a frame has";
        // Only what has a head that can be read is answered with a message.
        let (bare, told) = (false, true);
        for (bytes, status, has_message) in [
            ("\0\0\0\0\0\0", 400, bare),
            ("GET\r\n\r\n", 400, bare),
            ("GET /v2 HTTP/9.9\r\n\r\n", 400, bare),
            ("GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", 400, bare),
            (&flood, 431, bare),
            (&long, 431, bare),
            (&path, 431, bare),
            (twice, 400, bare),
            (lengths, 400, bare),
            (chunk, 400, told),
            (huge, 400, told),
        ] {
            let mut http = Http::to(&server);
            let shown = &bytes[..bytes.len().min(60)];
            http.send(bytes.as_bytes());
            let answer = http.answer().expect("an answer");
            assert_eq!(answer.status, status, "{shown:?}: {answer:?}");
            match has_message {
                true => assert!(answer.error().contains("body"), "{answer:?}"),
                false => assert!(answer.body.is_empty(), "{answer:?}"),
            }
            assert!(http.is_closed(), "{shown:?} is still open");
            assert_eq!(honest.post(ECHO, &echo_request(1)).status, 200);
        }
        let mut http = Http::to(&server);
        http.send(http2.as_bytes());
        assert!(!http.rest().is_empty(), "it is told why it is closed");
        assert_eq!(honest.post(ECHO, &echo_request(1)).status, 200);
    });
}
