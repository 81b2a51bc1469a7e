//! What there is to know of models; loading and unloading them.

use serde_json::json;

use crate::common::within;
use crate::http::Http;
use crate::{LIMIT, echo_request, server};

#[test]
fn a_model_tells_what_it_takes_and_gives() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let told = http.get("/v2/models/mlp").json();
        let expected = json!({
            "name": "mlp", "versions": ["1"], "platform": "mdm",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
        });
        assert_eq!(told, expected);
        assert_eq!(http.get("/v2/models/old").json()["versions"], json!(["3"]));
        assert_eq!(
            http.get("/v2/models/old/versions/1").json()["versions"],
            json!(["1"])
        );
        let config = http.get("/v2/models/mlp/config").json();
        assert_eq!(
            (&config["max_batch_size"], &config["input"][0]["dims"]),
            (&json!(1024), &json!([64]))
        );
        for path in [
            "/v2/models/none",
            "/v2/models/none/config",
            "/v2/models/none/ready",
            "/v2/models/old/versions/2",
        ] {
            let answer = http.get(path);
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert!(
                answer.error().starts_with("Request for unknown model"),
                "{answer:?}"
            );
        }
        let answer = http.get("/v2/models/..%2F..%2Fetc%2Fpasswd");
        assert_eq!(answer.status, 403, "{answer:?}");
    });
}

#[test]
fn a_version_in_the_path_is_the_one_that_runs() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let answer = http.post("/v2/models/old/versions/1/infer", &echo_request(1));
        assert_eq!(
            (answer.status, &answer.json()["model_version"]),
            (200, &json!("1"))
        );
        assert_eq!(
            http.post("/v2/models/old/versions/2/infer", &echo_request(1))
                .status,
            404
        );
        assert_eq!(
            http.post("/v2/models/old/versions/x/infer", &echo_request(1))
                .status,
            400
        );
    });
}

#[test]
fn a_model_of_the_folder_is_ready_until_it_is_unloaded_and_again_once_it_is_loaded() {
    within(LIMIT, || {
        let server = server(&["--door-model-control"]);
        let mut http = Http::to(&server);
        assert_eq!(http.get("/v2/models/echo/ready").status, 200);
        assert_eq!(http.get("/v2/models/old/versions/3/ready").status, 200);
        let state = |http: &mut Http| {
            let index = http.post("/v2/repository/index", &json!({})).json();
            let all = index.as_array().expect("a list").clone();
            let own = all
                .iter()
                .find(|line| line["name"] == "echo")
                .expect("it is in the folder");
            own["state"].clone()
        };
        assert_eq!(state(&mut http), "READY");
        for loaded_first in [false, true] {
            if loaded_first {
                assert_eq!(
                    http.post("/v2/repository/models/echo/load", &json!({}))
                        .status,
                    200
                );
            }
            let answer = http.post("/v2/repository/models/echo/unload", &json!({}));
            assert_eq!(answer.status, 200, "{answer:?}");
            let answer = http.get("/v2/models/echo/ready");
            assert_eq!(answer.status, 503, "{answer:?}");
            assert!(answer.error().contains("unloaded"));
            assert_eq!(state(&mut http), "UNAVAILABLE");
            let ready = http
                .post("/v2/repository/index", &json!({"ready": true}))
                .json();
            assert!(
                ready
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|line| line["name"] != "echo")
            );
            assert_eq!(
                http.request("POST", "/v2/repository/models/echo/load", &[], b"")
                    .status,
                200
            );
            assert_eq!(http.get("/v2/models/echo/ready").status, 200);
            assert_eq!(state(&mut http), "READY");
        }
        // A request loads it again too.
        assert_eq!(
            http.post("/v2/repository/models/echo/unload", &json!({}))
                .status,
            200
        );
        assert_eq!(
            http.post("/v2/models/echo/infer", &echo_request(1)).status,
            200
        );
        assert_eq!(http.get("/v2/models/echo/ready").status, 200);
        assert_eq!(
            http.post("/v2/repository/models/none/load", &json!({}))
                .status,
            404
        );
        assert_eq!(
            http.post("/v2/repository/models/none/unload", &json!({}))
                .status,
            404
        );
        let config = json!({"parameters": {"config": "{}"}});
        assert_eq!(
            http.post("/v2/repository/models/echo/load", &config).status,
            400
        );
    });
}

#[test]
fn models_are_loaded_only_where_that_is_allowed_and_never_for_a_browser_or_through_a_proxy() {
    within(LIMIT, || {
        let (shut, open) = (server(&[]), server(&["--door-model-control"]));
        let path = "/v2/repository/models/echo/load";
        let answer = Http::to(&shut).post(path, &json!({}));
        assert_eq!(answer.status, 403);
        assert!(answer.error().contains("--door-model-control"));
        let mut http = Http::to(&open);
        assert_eq!(http.post(path, &json!({})).status, 200);
        let own = format!("http://localhost:{}", open.http_port);
        let host = format!("localhost:{}", open.http_port);
        for header in [
            ("origin", own.as_str()),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("X-Forwarded-Proto", "http"),
        ] {
            let answer = http.request("POST", path, &[("host", &host), header], b"{}");
            assert_eq!(answer.status, 403, "{header:?}: {answer:?}");
        }
    });
}
