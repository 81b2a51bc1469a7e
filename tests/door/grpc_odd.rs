//! Calls that are not what they should be, byte by byte: each is told what is wrong, and the others go on.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::cancel::{cancelled, requests};
use crate::common::Server;
use crate::grpc::{Client, eventually, mlp, with_server};
use crate::grpc_stream::slow;
use crate::infer::rows;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A body of one frame, which ends behind it or never.
struct Whole {
    bytes: Option<Bytes>,
    ends: bool,
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
            None => Poll::Pending,
        }
    }
}

/// A connection of HTTP/2, which is closed by aborting its task.
async fn connect(server: &Server) -> (SendRequest<Whole>, AbortHandle) {
    let stream = TcpStream::connect(("127.0.0.1", server.grpc_port)).await;
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
    let bytes = Some(body.into());
    call_with(client, headers, Whole { bytes, ends: true }).await
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
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 200 << 20, "{grown} bytes more");
    });
}

#[test]
fn the_deadline_of_a_call_is_that_of_its_request() {
    with_server(&["--preload", "slow"], async |server| {
        // tonic's own client would give up before the server can say so.
        let (mut raw, _connection) = connect(server).await;
        let request = framed(&slow(40_000).encode_to_vec());
        let (_, answered) = call(&mut raw, &[("grpc-timeout", "300m")], request).await;
        assert_eq!(answered["grpc-status"], "4", "{answered:?}");
        eventually("nothing runs", || requests(server) == 0).await;
        let errors = server.client().status().expect("a status").totals.errors;
        assert_eq!(errors.get("DEADLINE_EXCEEDED"), Some(&1), "{errors:?}");
    });
}

#[test]
fn a_message_that_is_announced_reserves_no_memory_ahead_of_its_bytes() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        client.infer(mlp(&rows(1))).await.expect("an answer");
        let (raw, _connection) = connect(server).await;
        let before = server.virtual_bytes();
        let begun: Vec<_> = (0..32)
            .map(|_| {
                let mut raw = raw.clone();
                let start = [&[0], &(60u32 << 20).to_be_bytes()[..], &[10, 1, b'm']].concat();
                let bytes = Some(start.into());
                tokio::task::spawn(async move {
                    call_with(&mut raw, &[], Whole { bytes, ends: false }).await
                })
            })
            .collect();
        for _ in 0..10 {
            client.infer(mlp(&rows(1))).await.expect("an answer");
        }
        let grown = server.virtual_bytes().saturating_sub(before);
        begun.iter().for_each(|call| call.abort());
        assert!(grown < 64 << 20, "{grown} bytes more");
    });
}

#[test]
fn a_message_that_stops_coming_is_not_waited_for_for_ever() {
    with_server(&[], async |server| {
        let (mut raw, _connection) = connect(server).await;
        let half = Whole {
            bytes: Some(Bytes::from_static(b"\0\0\0\0\x09\x0a")),
            ends: false,
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
