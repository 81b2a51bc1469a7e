//! Calls that are not what they should be, byte by byte: each is told what is wrong, and the others go on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::cancel::{cancelled, requests, rows_run};
use crate::common::Server;
use crate::grpc::{Client, eventually, mlp, with_server};
use crate::grpc_stream::slow;
use crate::infer::rows;
use crate::odd::FLAT_BYTES;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A body of one frame, which ends behind it or never.
#[derive(Default)]
pub struct Whole {
    bytes: Option<Bytes>,
    ends: bool,
    /// One more is counted once more could be sent.
    taken: Arc<AtomicUsize>,
}

impl Whole {
    /// One that ends.
    pub fn of(bytes: Vec<u8>) -> Whole {
        Whole {
            bytes: Some(bytes.into()),
            ends: true,
            ..Whole::default()
        }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Poll::Pending
            }
        }
    }
}

/// A connection of HTTP/2, which is closed by aborting its task.
async fn connect(server: &Server) -> (SendRequest<Whole>, AbortHandle) {
    connect_to(server.grpc_port).await
}

pub async fn connect_to(port: u16) -> (SendRequest<Whole>, AbortHandle) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let io = TokioIo::new(stream.expect("a connection"));
    let (client, connection) = handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    (client, connection.abort_handle())
}

/// Calls with a body as it is, and headers besides the usual ones, which they replace.
async fn call(
    client: &mut SendRequest<Whole>,
    headers: &[(&'static str, &str)],
    body: Vec<u8>,
) -> (StatusCode, HeaderMap) {
    call_with(client, headers, Whole::of(body)).await
}

async fn call_with(
    client: &mut SendRequest<Whole>,
    headers: &[(&'static str, &str)],
    body: Whole,
) -> (StatusCode, HeaderMap) {
    let mut request = Request::post(format!("http://localhost{INFER}"));
    let all = request.headers_mut().expect("a request");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        all.insert(name, value.parse().expect("a value"));
    }
    for (name, value) in headers {
        all.insert(*name, value.parse().expect("a value"));
    }
    let request = request.body(body).expect("a request");
    client.ready().await.expect("a connection");
    let answer = client.send_request(request).await.expect("an answer");
    (answer.status(), answer.headers().clone())
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// So many fields of this number that are empty.
fn empty_fields(number: u8, count: usize) -> Vec<u8> {
    framed(&[number << 3 | 2, 0].repeat(count))
}

#[test]
fn a_malformed_call_is_told_what_is_wrong_and_costs_no_more() {
    with_server(&["--max-request-bytes", "64MiB"], async |server| {
        let mut client = Client::to(server).await;
        let one = mlp(&rows(1));
        client.infer(one.clone()).await.expect("an answer");
        let (mut raw, _connection) = connect(server).await;
        let before = server.resident_bytes();
        let right = framed(&one.encode_to_vec());
        let with_prefix = |first: u8, length: u32| {
            let mut body = right.clone();
            body[0] = first;
            body[1..5].copy_from_slice(&length.to_be_bytes());
            body
        };
        let parameters: Vec<u8> = (0..1025u32)
            .flat_map(|index| {
                let name = format!("{index:04}");
                let entry = [b"\x0a\x04", name.as_bytes(), b"\x12\x02\x08\x01"].concat();
                [&[0x22, entry.len() as u8], &entry[..]].concat()
            })
            .collect();
        let length = right.len() as u32;
        type Case<'a> = (&'a [(&'static str, &'a str)], Vec<u8>, &'a str, &'a str);
        let cases: &[Case<'_>] = &[
            (&[], vec![], "3", "without a message"),
            (&[], b"\0\0".to_vec(), "3", "in the midst of a message"),
            (
                &[],
                with_prefix(0, length),
                "3",
                "in the midst of a message",
            ),
            (&[], with_prefix(7, length - 5), "3", "begins with 7"),
            (
                &[],
                with_prefix(1, length - 5),
                "3",
                "without grpc-encoding",
            ),
            (&[], with_prefix(0, u32::MAX), "8", "--max-request-bytes"),
            (&[], right.repeat(2), "3", "a second message"),
            (
                &[("grpc-encoding", "gzip")],
                with_prefix(1, length - 5),
                "3",
                "is not gzip as it says",
            ),
            (
                &[("grpc-encoding", "deflate")],
                with_prefix(1, length - 5),
                "3",
                "is not deflate as it says",
            ),
            (
                &[("grpc-encoding", "snappy")],
                right.clone(),
                "12",
                "identity,deflate,gzip",
            ),
            (
                &[("grpc-timeout", "soon")],
                right.clone(),
                "3",
                "grpc-timeout",
            ),
            (
                &[("grpc-timeout", "123456789S")],
                right.clone(),
                "3",
                "grpc-timeout",
            ),
            (&[], framed(b"\x0a"), "3", "no protobuf"),
            (&[], framed(b"\x0a\xff\xff\xff\xff\x0f"), "3", "no protobuf"),
            (
                &[],
                framed(b"\x0a\x02\xff\xfe"),
                "3",
                "model_name is not UTF-8",
            ),
            (&[], framed(b"\x08\x01"), "3", "model_name"),
            (
                &[],
                framed(b"\x22\x05\x0a\x01k\x12\x00"),
                "3",
                "parameters.k: no value",
            ),
            (&[], framed(&parameters), "3", "more than 1024 parameters"),
            (
                &[],
                empty_fields(5, 16 << 20),
                "3",
                "more than 1024 entries",
            ),
            (
                &[],
                empty_fields(6, 16 << 20),
                "3",
                "more than 1024 entries",
            ),
            (
                &[],
                empty_fields(7, 16 << 20),
                "3",
                "more than 1024 entries",
            ),
        ];
        for (headers, body, code, why) in cases {
            let (status, answered) = call(&mut raw, headers, body.clone()).await;
            assert_eq!(status, StatusCode::OK, "{why}");
            let message = answered["grpc-message"].to_str().expect("text");
            assert_eq!(answered["grpc-status"], code, "{why}: {message}");
            let message = message.replace("%20", " ");
            assert!(message.contains(why), "{why}: {message}");
        }
        for kind in ["application/json", "application/grpc-web"] {
            let (status, _) = call(&mut raw, &[("content-type", kind)], right.clone()).await;
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let (status, answered) = call(&mut raw, &[], right.clone()).await;
        assert!(status == StatusCode::OK && answered.get("grpc-status").is_none());
        client.infer(one).await.expect("the same as ever");
        eventually("what they held is free", || {
            server.resident_bytes() < before + FLAT_BYTES
        })
        .await;
    });
}

#[test]
fn the_deadline_of_a_call_is_that_of_its_request() {
    with_server(&["--preload", "slow"], async |server| {
        // tonic's own client would give up before the server can say so.
        let (mut raw, _connection) = connect(server).await;
        let request = framed(&slow(10_000).encode_to_vec());
        let (_, answered) = call(&mut raw, &[("grpc-timeout", "1S")], request).await;
        assert_eq!(answered["grpc-status"], "4", "{answered:?}");
        eventually("nothing runs", || requests(server) == 0).await;
        let errors = server.client().status().expect("a status").totals.errors;
        assert_eq!(errors.get("DEADLINE_EXCEEDED"), Some(&1), "{errors:?}");
        let run = rows_run(server);
        assert!(run < 8_000, "{run} rows were run after its deadline");
    });
}

/// The bug: clients that know their deadline reset the stream when it is over, which counted as CANCELLED, so that nobody
/// who watches for what is too slow was told.
#[test]
fn a_client_that_resets_its_call_at_its_deadline_is_counted_as_too_late() {
    with_server(&["--preload", "slow"], async |server| {
        let (mut raw, _connection) = connect(server).await;
        let request = framed(&slow(10_000).encode_to_vec());
        let waits =
            tokio::spawn(async move { call(&mut raw, &[("grpc-timeout", "1S")], request).await });
        // Its clock is a little ahead of the server's.
        tokio::time::sleep(Duration::from_millis(980)).await;
        waits.abort();
        let count = |code: &str| {
            let errors = server.client().status().expect("a status").totals.errors;
            errors.get(code).copied().unwrap_or(0)
        };
        eventually("it has ended", || {
            count("DEADLINE_EXCEEDED") + count("CANCELLED") == 1
        })
        .await;
        assert_eq!(count("DEADLINE_EXCEEDED"), 1);
        eventually("nothing runs", || requests(server) == 0).await;
        let run = rows_run(server);
        assert!(run < 8_000, "{run} rows were run after its deadline");
        // One that is taken back before is cancelled.
        let (mut raw, _connection) = connect(server).await;
        let request = framed(&slow(40_000).encode_to_vec());
        let waits =
            tokio::spawn(async move { call(&mut raw, &[("grpc-timeout", "60S")], request).await });
        eventually("it runs", || requests(server) == 1).await;
        waits.abort();
        eventually("it is cancelled", || count("CANCELLED") == 1).await;
        assert_eq!(count("DEADLINE_EXCEEDED"), 1);
    });
}

/// The bug: a client that was gone in the midst of its message was counted as if it had been answered CANCELLED.
#[test]
fn a_call_that_is_taken_back_while_its_message_comes_has_no_answer_that_counts() {
    with_server(&["--http-port", "0"], async |server| {
        let (mut raw, _connection) = connect(server).await;
        for _ in 0..3 {
            let taken = Arc::new(AtomicUsize::new(0));
            let half = Whole {
                bytes: Some(Bytes::from_static(b"\0\0\0\0\x09\x0a")),
                ends: false,
                taken: taken.clone(),
            };
            let mut one = raw.clone();
            let begun = tokio::spawn(async move { call_with(&mut one, &[], half).await });
            eventually("its first bytes are sent", || {
                taken.load(Ordering::Relaxed) > 0
            })
            .await;
            begun.abort();
        }
        // On the same connection, so that the resets were read before.
        let request = framed(&mlp(&rows(1)).encode_to_vec());
        call(&mut raw, &[], request).await;
        let mut http = crate::http::Http::to(server);
        let page = String::from_utf8(http.get("/metrics").body).expect("text");
        let mut counted = page.lines();
        assert!(counted.any(|line| line.contains("mdm_responses_total{door=\"grpc\"")));
        assert!(!page.contains("status=\"CANCELLED\""), "{page}");
    });
}

#[test]
fn a_message_that_is_announced_reserves_no_memory_ahead_of_its_bytes() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        client.infer(mlp(&rows(1))).await.expect("an answer");
        let (raw, _connection) = connect(server).await;
        let before = server.virtual_bytes();
        let taken = Arc::new(AtomicUsize::new(0));
        // Twice what may be sent before some of it was read.
        let start = [&[0], &(60u32 << 20).to_be_bytes()[..], &vec![0; 2 << 20]].concat();
        let start = Bytes::from(start);
        let begun: Vec<_> = (0..8)
            .map(|_| {
                let mut raw = raw.clone();
                let whole = Whole {
                    bytes: Some(start.clone()),
                    ends: false,
                    taken: taken.clone(),
                };
                tokio::spawn(async move { call_with(&mut raw, &[], whole).await })
            })
            .collect();
        eventually("their first bytes are read", || {
            taken.load(Ordering::Relaxed) >= 8
        })
        .await;
        let grown = server.virtual_bytes().saturating_sub(before);
        begun.iter().for_each(|call| call.abort());
        assert!(grown < 128 << 20, "{grown} bytes more");
    });
}

#[test]
fn a_message_that_stops_coming_is_not_waited_for_for_ever() {
    with_server(&[], async |server| {
        let (mut raw, _connection) = connect(server).await;
        let half = Whole {
            bytes: Some(Bytes::from_static(b"\0\0\0\0\x09\x0a")),
            ..Whole::default()
        };
        let (_, answered) = call_with(&mut raw, &[], half).await;
        assert_eq!(answered["grpc-status"], "4", "{answered:?}");
        let why = answered["grpc-message"].to_str().expect("text");
        assert!(why.contains("no%20byte%20of%20the%20message"), "{why}");
    });
}

#[test]
fn a_closed_connection_cancels_its_calls() {
    with_server(&["--preload", "slow"], async |server| {
        let (mut raw, connection) = connect(server).await;
        let request = framed(&slow(40_000).encode_to_vec());
        let waits = tokio::spawn(async move { call(&mut raw, &[], request).await });
        eventually("it runs", || requests(server) == 1).await;
        connection.abort();
        waits.abort();
        eventually("it is cancelled", || cancelled(server) == 1).await;
        eventually("nothing runs", || requests(server) == 0).await;
    });
}
