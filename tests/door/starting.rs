//! A server that is still starting: what waits for a model that is being read is told to come again.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::announced::{release, stuck_folder};
use crate::common::{Server, eventually, within};
use crate::grpc::Client;
use crate::grpc::protocol::{ModelInferRequest, ModelInferResponse};
use crate::http::{Answer, Http};
use crate::{LIMIT, echo_request};

/// A port that nobody has: a server says its own only once it is ready.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The bug: it said that it is not ready, and a request had no answer for as long as that took.
#[test]
fn requests_are_refused_with_503_until_the_server_is_ready() {
    within(LIMIT, || {
        let (folder, pipe) = stuck_folder();
        let (http_port, grpc_port) = (free_port(), free_port());
        let flags = ["--http-port", &http_port.to_string()].map(str::to_owned);
        let more = ["--grpc-port", &grpc_port.to_string(), "--preload", "stuck"];
        let flags = [flags.to_vec(), more.map(str::to_owned).to_vec()].concat();
        let starting = std::thread::spawn(move || {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            Server::start(folder, &flags)
        });
        eventually("the door is open", || {
            TcpStream::connect(("127.0.0.1", http_port)).is_ok()
        });
        let mut http = Http::to_port(http_port);
        let ready = http.get("/v2/health/ready").status;
        let mut infer = |name: &str| -> Option<Answer> {
            let mut http = Http::to_port(http_port);
            http.wait_for(Duration::from_secs(10));
            let body = echo_request(1).to_string();
            let path = format!("/v2/models/{name}/infer");
            http.ask("POST", &path, &[], body.as_bytes());
            http.answer()
        };
        let answers = ["echo", "stuck", "none"].map(&mut infer);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        let called = runtime.block_on(async {
            let mut client = Client::to_port(grpc_port).await;
            let request = ModelInferRequest {
                model_name: "echo".to_owned(),
                ..ModelInferRequest::default()
            };
            let called = client.call::<_, ModelInferResponse>("ModelInfer", request);
            tokio::time::timeout(Duration::from_secs(10), called).await
        });
        // As often as it is read.
        std::thread::spawn(move || {
            loop {
                release(&pipe);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let _server = starting.join().expect("it becomes ready");
        assert_eq!(ready, 503);
        for answer in answers {
            let answer = answer.expect("an answer");
            assert_eq!(answer.status, 503, "{answer:?}");
            assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
            assert!(answer.error().contains("not ready"), "{answer:?}");
        }
        let status = called.expect("an answer").unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        assert_eq!(http.get("/v2/health/ready").status, 200);
        assert_eq!(infer("echo").expect("an answer").status, 200);
        let unknown = http.post("/v2/models/none/infer", &json!({"inputs": []}));
        assert!(matches!(unknown.status, 400 | 404), "{unknown:?}");
    });
}
