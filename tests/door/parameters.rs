//! Parameters of a request that the server itself goes by, and what a failing model is told as.

use serde_json::{Value, json};
use tonic::Code;

use crate::common::{self, Server, eventually, onnx, within};
use crate::grpc::protocol::{ModelInferRequest, ModelInferResponse};
use crate::grpc::{Client, block_on, input};
use crate::http::Http;
use crate::{LIMIT, echo_request, server, slow_request};

#[test]
fn a_request_of_high_priority_goes_before_bulk_that_came_earlier() {
    within(LIMIT, || {
        let server = server(&["--preload", "slow"]);
        let ask = |rows: usize, parameters: Value| {
            let (mut json, behind) = slow_request(rows);
            json["parameters"] = parameters;
            let json = json.to_string();
            let length = json.len().to_string();
            let mut http = Http::to(&server);
            let headers = [("Inference-Header-Content-Length", length.as_str())];
            let body = [json.into_bytes(), behind].concat();
            http.ask("POST", "/v2/models/slow/infer", &headers, &body);
            http
        };
        let status = || server.client().status().expect("a status");
        // Without the priority the shorter ones, which came first, would end first.
        let mut earlier: Vec<Http> = (0..2).map(|_| ask(4_000, json!({}))).collect();
        eventually("they wait", || status().queue.requests == 2);
        let mut high = ask(6_000, json!({"priority": 1}));
        assert_eq!(high.answer().expect("an answer").status, 200);
        let open = status().queue.requests;
        assert!(open >= 1, "all others had been answered before");
        for http in &mut earlier {
            assert_eq!(http.answer().expect("an answer").status, 200);
        }
    });
}

#[test]
fn a_file_that_a_parameter_names_is_looked_for_in_the_models_folder() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let mut ask = |path: &str| {
            let mut request = echo_request(1);
            request["parameters"] = json!({"words_path": path});
            http.post("/v2/models/echo/infer", &request)
        };
        assert_eq!(ask("words.txt").status, 404);
        std::fs::write(server.dir.path().join("models/words.txt"), "a\nb\n").expect("a file");
        let answer = ask("words.txt");
        assert_eq!(answer.status, 200, "{answer:?}");
        let outside = std::env::temp_dir();
        assert_eq!(ask(outside.to_str().expect("text")).status, 403);
    });
}

#[test]
fn a_model_that_fails_is_the_servers_fault_at_every_door() {
    within(LIMIT, || {
        let folder = common::models(&[("fails.onnx", onnx::failing_at_run())]);
        let server = Server::start(folder, &["--http-port", "0", "--grpc-port", "0"]);
        let mut http = Http::to(&server);
        let mut ask = |index: i64| {
            let input = json!({"name": "x", "datatype": "INT64", "shape": [1], "data": [index]});
            http.post("/v2/models/fails/infer", &json!({"inputs": [input]}))
        };
        let answer = ask(10);
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(answer.error().contains("idx=10"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), None);
        assert_eq!(ask(9).status, 200);
        block_on(async {
            let mut client = Client::to(&server).await;
            let request = ModelInferRequest {
                model_name: "fails".to_owned(),
                inputs: vec![input("x", "INT64", &[1])],
                raw_input_contents: vec![10i64.to_le_bytes().to_vec().into()],
                ..ModelInferRequest::default()
            };
            let answer: Result<ModelInferResponse, _> = client.call("ModelInfer", request).await;
            let status = answer.expect_err("an error");
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            assert!(status.message().contains("idx=10"), "{status:?}");
        });
    });
}
