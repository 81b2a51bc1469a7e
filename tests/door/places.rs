//! Paths, methods and health.

use serde_json::json;

use crate::common::within;
use crate::http::Http;
use crate::{LIMIT, server};

#[test]
fn health_says_live_and_ready_as_clients_read_it() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let live = http.get("/v2/health/live");
        assert_eq!((live.status, live.json()), (200, json!({"live": true})));
        let ready = http.get("/v2/health/ready");
        assert_eq!((ready.status, ready.json()), (200, json!({"ready": true})));
        let about = http.get("/v2").json();
        assert_eq!(about["name"], "mdm");
    });
}

#[test]
fn a_path_or_method_that_is_not_there_is_told() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        assert_eq!(http.get("/v3").status, 404);
        assert!(http.get("/").error().contains("no such path"));
        let answer = http.get("/v2/models/echo/infer");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
        let answer = http.post("/v2/health/live", &json!({}));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
        let name = format!("/v2/models/{}", "n".repeat(5000));
        assert!(http.get(&name).error().contains("at most 4096 bytes"));
        let long = json!({"ready": "x".repeat(70_000)});
        assert_eq!(http.post("/v2/repository/index", &long).status, 413);
        let answer = http.post("/v2/models/none/infer", &json!({"inputs": []}));
        assert_eq!(answer.status, 404);
        assert!(
            answer.error().starts_with("Request for unknown model"),
            "{answer:?}"
        );
    });
}
