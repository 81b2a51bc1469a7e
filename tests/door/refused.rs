//! Requests that are refused before their body is read: their clients get to read why, and their connections go on.

use serde_json::json;

use crate::common::within;
use crate::http::Http;
use crate::http2::{
    DATA, END_HEADERS, END_STREAM, GET, HEADERS, Http2, POST, RST_STREAM, frame, head,
};
use crate::{LIMIT, echo_request, server};

/// Places that refuse a POST, for what they are told with.
const REFUSED: [(&str, &str, u16); 3] = [
    ("/v2/models/echo/infr", "localhost", 404),
    ("/v2/models/echo", "localhost", 405),
    ("/v2/models/echo/infer", "evil.org", 403),
];

#[test]
fn a_post_that_is_refused_by_its_path_is_told_and_its_connection_goes_on() {
    within(LIMIT, || {
        let server = server(&[]);
        for bytes in [20_000, 1 << 20, 3 << 20] {
            let body = vec![b'x'; bytes];
            let mut http = Http::to(&server);
            for (path, host, status) in REFUSED {
                let answer = http.request("POST", path, &[("host", host)], &body);
                assert_eq!(answer.status, status, "{path}, {bytes} bytes");
                assert_eq!(answer.header("connection"), None);
            }
            // A place that takes no body gets one.
            let length = bytes.to_string();
            let mut request = http.request_of("GET", "/v2", &[("content-length", &length)], b"");
            request.extend_from_slice(&body);
            assert!(http.send(&request));
            assert_eq!(http.answer().expect("an answer").status, 200);
            let answer = http.post("/v2/models/echo/infer", &echo_request(1));
            assert_eq!(answer.status, 200);
        }
    });
}

#[test]
fn a_refused_body_that_is_too_long_to_be_read_on_ends_its_connection_which_is_said() {
    within(LIMIT, || {
        let server = server(&["--max-request-bytes", "1MiB"]);
        for (path, status) in [
            ("/v2/models/echo", 405),
            ("/v2/models/echo/infer", 413),
            ("/v2/repository/models/echo/load", 403),
        ] {
            let mut http = Http::to(&server);
            let length = [("content-length", "1000000000")];
            let request = http.request_of("GET", path, &length, b"");
            let request = [b"POST", &request[3..]].concat();
            assert!(http.send(&request));
            let answer = http.answer().expect("an answer");
            assert_eq!(answer.status, status, "{path}");
            assert_eq!(answer.header("connection"), Some("close"), "{path}");
            assert!(http.is_closed());
        }
    });
}

#[test]
fn a_refused_stream_of_http2_is_answered_and_not_reset() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http2 = Http2::to(&server);
        let piece = [b'x'; 16_384];
        assert!(http2.send(&frame(
            HEADERS,
            END_HEADERS,
            1,
            &head(POST, "/v2/models/echo/infr")
        )));
        assert!(http2.send(&frame(DATA, 0, 1, &piece)));
        let told = String::from_utf8(http2.body(1)).expect("text");
        assert!(told.contains("there is no such path"), "{told}");
        // A client may be in the midst of its body, and a reset has it throw the answer away.
        let live = head(GET, "/v2/health/live");
        assert!(http2.send(&frame(DATA, 0, 1, &piece)));
        assert!(http2.send(&frame(DATA, END_STREAM, 1, &piece)));
        assert!(http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &live)));
        loop {
            let (kind, flags, stream, payload) = http2.next().expect("an answer");
            assert_ne!(kind, RST_STREAM, "{payload:?}");
            if (kind, stream) == (DATA, 3) && flags & END_STREAM != 0 {
                break;
            }
        }
    });
}

#[test]
fn http_1_1_has_one_host() {
    within(LIMIT, || {
        let server = server(&[]);
        for (head, status) in [
            ("GET /v2 HTTP/1.1\r\n", 400),
            (
                "GET /v2 HTTP/1.1\r\nhost: localhost\r\nhost: 127.0.0.1\r\n",
                400,
            ),
            ("GET /v2 HTTP/1.1\r\nhost: localhost\r\n", 200),
            ("GET /v2 HTTP/1.0\r\n", 200),
        ] {
            let mut http = Http::to(&server);
            assert!(http.send(format!("{head}\r\n").as_bytes()));
            let answer = http.answer().expect("an answer");
            assert_eq!(answer.status, status, "{head:?}");
            if status == 400 {
                assert!(answer.error().contains("Host"), "{}", answer.error());
            }
        }
    });
}

#[test]
fn an_empty_list_of_outputs_asks_for_all() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let all = http.post("/v2/models/echo/infer", &echo_request(2));
        let mut request = echo_request(2);
        request["outputs"] = json!([]);
        let answer = http.post("/v2/models/echo/infer", &request);
        assert_eq!((answer.status, answer.json()), (200, all.json()));
        assert_eq!(answer.json()["outputs"][0]["name"], "y");
    });
}
