//! What is counted, told over HTTP.

use serde_json::json;

use crate::common::within;
use crate::grpc::{Client, mlp, with_server};
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

#[test]
fn metrics_are_told_on_the_http_port_with_requests_by_model_and_door() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        for _ in 0..3 {
            assert_eq!(
                http.post("/v2/models/echo/infer", &echo_request(2)).status,
                200
            );
        }
        assert_eq!(
            http.post("/v2/models/none/infer", &echo_request(2)).status,
            404
        );
        assert_eq!(http.post("/v2/models/echo/infer", &json!(1)).status, 400);
        assert_eq!(http.get("/nothing").status, 404);
        let answer = http.get("/metrics");
        assert_eq!(answer.status, 200);
        assert!(
            answer
                .header("content-type")
                .unwrap()
                .starts_with("text/plain; version=0.0.4")
        );
        let text = String::from_utf8(answer.body).unwrap();
        let has = |name: &str, labels: &[&str], value: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            lines.any(|line| labels.iter().all(|l| line.contains(l)) && line.ends_with(value))
        };
        let echo = ["model=\"echo\"", "door=\"http\""];
        assert!(has("mdm_requests_total{", &echo, " 3"), "{text}");
        assert!(has("mdm_rows_total{", &echo, " 6"), "{text}");
        assert!(has("mdm_connections{", &["door=\"http\""], " 1"), "{text}");
        // The door refuses these itself.
        let answered = |status: &str, times: &str| {
            let labels = ["door=\"http\"", status];
            assert!(
                has("mdm_responses_total{", &labels, times),
                "{status} {times}: {text}"
            );
        };
        answered("status=\"200\"", " 3");
        answered("status=\"400\"", " 1");
        answered("status=\"404\"", " 2");
        assert!(
            !text.contains("none"),
            "a name that is no model's is no label: {text}"
        );
    });
}

#[test]
fn with_a_port_of_their_own_metrics_are_told_there_alone() {
    within(LIMIT, || {
        let server = server(&["--metrics-port", "0"]);
        let mut http = Http::to(&server);
        assert_eq!(http.get("/metrics").status, 404);
        let mut metrics = Http::to_port(server.metrics_port);
        let answer = metrics.get("/metrics");
        assert_eq!(answer.status, 200);
        assert!(
            String::from_utf8(answer.body)
                .unwrap()
                .contains("mdm_queue_requests")
        );
        assert_eq!(metrics.get("/v2").status, 404);
        assert_eq!(metrics.post("/metrics", &json!({})).status, 405);
    });
}

#[test]
fn statistics_count_results_and_errors_of_each_model() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        for _ in 0..2 {
            assert_eq!(
                http.post("/v2/models/echo/infer", &echo_request(5)).status,
                200
            );
        }
        let mut wrong = echo_request(1);
        wrong["inputs"][0]["datatype"] = json!("FP64");
        assert_eq!(http.post("/v2/models/echo/infer", &wrong).status, 400);
        let told = http.get("/v2/models/echo/stats").json();
        let echo = &told["model_stats"][0];
        assert_eq!(
            (&echo["name"], &echo["version"]),
            (&json!("echo"), &json!("1"))
        );
        assert_eq!(echo["inference_count"], 10);
        let counts = &echo["inference_stats"];
        assert_eq!(
            (&counts["success"]["count"], &counts["fail"]["count"]),
            (&json!(2), &json!(1))
        );
        assert!(counts["success"]["ns"].as_u64().unwrap() > 0);
        assert!(echo["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
        let all = http.get("/v2/models/stats").json();
        let names: Vec<_> = all["model_stats"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["name"].clone())
            .collect();
        assert!(names.contains(&json!("echo")), "{names:?}");
        let unused = http.get("/v2/models/mlp/stats").json();
        assert_eq!(unused["model_stats"][0]["inference_count"], 0);
        assert_eq!(http.get("/v2/models/none/stats").status, 404);
    });
}

#[test]
fn calls_of_grpc_are_counted_by_how_they_end_refused_ones_too() {
    with_server(&["--http-port", "0"], async |server| {
        let mut client = Client::to(server).await;
        for _ in 0..2 {
            client.infer(mlp(&[1.0; 64])).await.expect("an answer");
        }
        client
            .infer(mlp(&[1.0; 63]))
            .await
            .expect_err("63 of 64 values");
        let text = Http::to(server).get("/metrics").body;
        let text = String::from_utf8(text).unwrap();
        for (status, times) in [("OK", 2), ("INVALID_ARGUMENT", 1)] {
            let line = format!("mdm_responses_total{{door=\"grpc\",status=\"{status}\"}} {times}");
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    });
}

#[test]
fn runs_are_counted_by_worker_and_connections_of_the_servers_own_protocol_too() {
    within(LIMIT, || {
        let server = server(&["--max-batch-size", "4"]);
        let mut http = Http::to(&server);
        let page = |http: &mut Http| String::from_utf8(http.get("/metrics").body).unwrap();
        let value = |page: &str, name: &str| -> f64 {
            let mut lines = page.lines().filter(|line| line.starts_with(name));
            let line = lines.next().unwrap_or_else(|| panic!("no {name}: {page}"));
            let (_, value) = line.rsplit_once(' ').expect("a value");
            value.parse().expect("a number")
        };
        let connections = "mdm_connections{door=\"zmq\"}";
        assert_eq!(value(&page(&mut http), connections), 0.0);
        let client = server.client();
        let rows = mdm::Tensor::from_slice("x", vec![10, 4], &[0f32; 40]).unwrap();
        client.infer(rows, "echo").expect("a result");
        // A chunk is counted when its worker is free again, which may be after its rows have come.
        let mut text = String::new();
        crate::common::eventually("all of it is counted", || {
            text = page(&mut http);
            value(&text, "mdm_worker_rows_total{worker=\"0\"") >= 10.0
        });
        // One of each port.
        assert_eq!(value(&text, connections), 2.0);
        let (runs, rows) = (
            value(&text, "mdm_worker_runs_total{worker=\"0\""),
            value(&text, "mdm_worker_rows_total{worker=\"0\""),
        );
        // Of at most four rows; one was the model's first run.
        assert!(
            (3.0..=10.0).contains(&runs) && rows >= 10.0,
            "{runs} {rows}"
        );
        assert_eq!(runs, value(&text, "mdm_run_rows_count{model=\"echo\""));
        drop(client);
        crate::common::eventually("its connections are closed", || {
            value(&page(&mut http), connections) == 0.0
        });
    });
}
