//! gzip and deflate, both ways.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use serde_json::Value;

use crate::common::within;
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

fn packed(how: &str, bytes: &[u8]) -> Vec<u8> {
    let level = Compression::default();
    macro_rules! pack {
        ($encoder:ident) => {{
            let mut out = $encoder::new(Vec::new(), level);
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }};
    }
    match how {
        "gzip" => pack!(GzEncoder),
        "bare deflate" => pack!(DeflateEncoder),
        _ => pack!(ZlibEncoder),
    }
}

#[test]
fn requests_and_answers_travel_packed() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let request = echo_request(500);
        let expected = http.post("/v2/models/echo/infer", &request).json();
        for how in ["gzip", "deflate", "bare deflate"] {
            let body = packed(how, request.to_string().as_bytes());
            let name = how.rsplit(' ').next().unwrap();
            let headers = [("content-encoding", name), ("accept-encoding", name)];
            let answer = http.request("POST", "/v2/models/echo/infer", &headers, &body);
            assert_eq!(
                (answer.status, answer.header("content-encoding")),
                (200, Some(name))
            );
            let mut text = String::new();
            let read = match name {
                "gzip" => GzDecoder::new(&answer.body[..]).read_to_string(&mut text),
                _ => ZlibDecoder::new(&answer.body[..]).read_to_string(&mut text),
            };
            assert!(read.unwrap() > answer.body.len());
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        }
        // Not worth it.
        let headers = [("accept-encoding", "gzip")];
        let body = echo_request(1).to_string();
        let answer = http.request("POST", "/v2/models/echo/infer", &headers, body.as_bytes());
        assert_eq!(
            (answer.status, answer.header("content-encoding")),
            (200, None)
        );
    });
}

#[test]
fn answers_without_rows_travel_packed_too() {
    within(LIMIT, || {
        let server = server(&["--preload", "echo"]);
        let mut http = Http::to(&server);
        let headers = [("accept-encoding", "gzip")];
        let long = format!("/v2/{}", "x".repeat(2000));
        for (path, words) in [
            ("/metrics", "mdm_requests_total"),
            (&*long, "there is no such path"),
        ] {
            let bare = http.get(path);
            assert_eq!(bare.header("content-encoding"), None);
            let answer = http.request("GET", path, &headers, b"");
            assert_eq!(answer.status, bare.status);
            assert_eq!(answer.header("content-type"), bare.header("content-type"));
            assert_eq!(answer.header("content-encoding"), Some("gzip"), "{path}");
            assert_eq!(answer.header("vary"), Some("accept-encoding"));
            let mut text = String::new();
            let read = GzDecoder::new(&answer.body[..]).read_to_string(&mut text);
            assert!(read.unwrap() > answer.body.len());
            assert!(text.contains(words), "{text}");
        }
        // Not worth it.
        let answer = http.request("GET", "/v2/models/echo", &headers, b"");
        assert_eq!(answer.header("content-encoding"), None);
    });
}

#[test]
fn a_body_that_unpacks_to_more_than_a_request_may_have_is_refused_with_little_memory() {
    within(LIMIT, || {
        let server = server(&["--max-request-bytes", "4MiB"]);
        let mut http = Http::to(&server);
        let before = server.resident_bytes();
        let bomb = packed("gzip", &vec![b' '; 200 << 20]);
        assert!(bomb.len() < 4 << 20);
        for _ in 0..5 {
            let headers = [("content-encoding", "gzip")];
            let answer = http.request("POST", "/v2/models/echo/infer", &headers, &bomb);
            assert_eq!(answer.status, 413, "{answer:?}");
        }
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown}");
    });
}

/// The bug: of two, the first was taken, and the body read as what it is not.
#[test]
fn headers_that_say_how_a_body_is_read_are_said_once() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let text = echo_request(1).to_string();
        let length = text.len().to_string();
        let coding = ("content-encoding", "identity");
        let json = ("Inference-Header-Content-Length", length.as_str());
        for (headers, status, why) in [
            (
                vec![coding, ("content-encoding", "gzip")],
                415,
                "Content-Encoding",
            ),
            (
                vec![("content-encoding", "gzip"), coding],
                415,
                "Content-Encoding",
            ),
            (
                vec![("content-encoding", "gzip, gzip")],
                415,
                "Content-Encoding",
            ),
            (vec![json, (json.0, "7")], 400, json.0),
            (vec![json, json], 400, json.0),
        ] {
            let body = text.as_bytes();
            let answer = http.request("POST", "/v2/models/echo/infer", &headers, body);
            assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
            assert!(answer.error().contains(why), "{headers:?}: {answer:?}");
        }
        let answer = http.request(
            "POST",
            "/v2/models/echo/infer",
            &[coding, json],
            text.as_bytes(),
        );
        assert_eq!(answer.status, 200, "{answer:?}");
    });
}
