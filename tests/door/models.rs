//! What there is to know of models; loading and unloading them.

use serde_json::json;

use crate::common::{eventually, within};
use crate::grpc::protocol::*;
use crate::grpc::{Client, with_server};
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
        // All that may be asked for; the highest is the one that runs without a version.
        assert_eq!(
            http.get("/v2/models/old").json()["versions"],
            json!(["1", "3"])
        );
        assert_eq!(
            http.get("/v2/models/old/versions/1").json()["versions"],
            json!(["1"])
        );
        let config = http.get("/v2/models/mlp/config").json();
        assert_eq!(
            (&config["max_batch_size"], &config["input"][0]["dims"]),
            (&json!(1024), &json!([64]))
        );
        // Rows that are single texts: a load generator takes no input without dimensions.
        let config = http.get("/v2/models/upper/config").json();
        assert_eq!(
            (&config["max_batch_size"], &config["input"][0]["dims"]),
            (&json!(0), &json!([-1]))
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

/// "many" has the methods "predict" and "again".
const MANY: [&str; 3] = ["many", "many.predict", "many.again"];

#[test]
fn the_methods_of_a_model_are_ready_as_the_model_is() {
    within(LIMIT, || {
        let server = server(&["--door-model-control"]);
        let mut http = Http::to(&server);
        let control = |http: &mut Http, name: &str, order: &str| {
            let answer = http.post(&format!("/v2/repository/models/{name}/{order}"), &json!({}));
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        };
        let all_are = |http: &mut Http, status: u16, when: &str| {
            for name in MANY {
                let answer = http.get(&format!("/v2/models/{name}/ready"));
                assert_eq!(answer.status, status, "{name} {when}: {answer:?}");
            }
        };
        all_are(&mut http, 200, "in the folder");
        // Unloading one of them unloads what their file leads to.
        for unloaded in MANY {
            control(&mut http, unloaded, "unload");
            all_are(&mut http, 503, &format!("after {unloaded} was unloaded"));
            control(&mut http, "many", "load");
            all_are(&mut http, 200, "loaded again");
        }
        control(&mut http, "many", "unload");
        let states = |http: &mut Http| {
            let index = http.post("/v2/repository/index", &json!({})).json();
            let lines = index.as_array().expect("a list").clone().into_iter();
            let lines = lines.filter(|line| line["name"].as_str().unwrap().starts_with("many."));
            let states: Vec<_> = lines.map(|line| line["state"].clone()).collect();
            states
        };
        assert_eq!(states(&mut http), ["UNAVAILABLE", "UNAVAILABLE"]);
        let answer = http.post("/v2/models/many.again/infer", &echo_request(1));
        assert_eq!(answer.status, 200, "{answer:?}");
        all_are(&mut http, 200, "loaded by a request");
        assert_eq!(states(&mut http), ["READY", "READY"]);
        // A dot in a name makes no method.
        control(&mut http, "echo", "unload");
        assert_eq!(http.get("/v2/models/echo.own/ready").status, 200);
        assert_eq!(http.get("/v2/models/many.none/ready").status, 404);
    });
}

/// What lacks a file is no unknown model, and what does not open is not ready.
#[test]
fn a_model_that_does_not_open_is_unavailable_in_the_index_with_the_reason() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let path = |name: &str| server.models().join(name);
        let lacks = br#"{"mdm":1,"onnx":"nowhere.onnx"}"#;
        std::fs::write(path("lacks.proxy"), lacks).unwrap();
        std::fs::write(path("junk.onnx"), "no model").unwrap();
        std::fs::create_dir_all(path("old/4")).unwrap();
        std::fs::write(path("old/4/model.onnx"), "no model").unwrap();
        let line = |http: &mut Http, name: &str| {
            let index = http.post("/v2/repository/index", &json!({})).json();
            let all = index.as_array().expect("a list").clone();
            let mut own = all.iter().filter(|line| line["name"] == name);
            own.next().expect("it is in the folder").clone()
        };
        let infer = |http: &mut Http, name: &str| {
            http.post(&format!("/v2/models/{name}/infer"), &echo_request(1))
        };
        for (name, why) in [
            ("lacks", "nowhere.onnx"),
            ("junk", "junk.onnx"),
            ("old", "version 4"),
        ] {
            assert_eq!(line(&mut http, name)["state"], "READY", "nobody knows yet");
            let answer = infer(&mut http, name);
            assert_eq!(answer.status, 422, "{answer:?}");
            assert!(!answer.error().contains("unknown model"), "{answer:?}");
            let line = line(&mut http, name);
            assert_eq!(line["state"], "UNAVAILABLE", "{line}");
            let reason = line["reason"].as_str().expect("why");
            assert!(reason.starts_with("FAILED_PRECONDITION: "), "{reason}");
            assert!(reason.contains(why), "{reason}");
        }
        // A version of it that opens, and a file that is mended.
        assert_eq!(infer(&mut http, "old/versions/3").status, 200);
        assert_eq!(line(&mut http, "old")["state"], "READY");
        std::fs::copy(path("echo.onnx"), path("junk.onnx")).unwrap();
        assert_eq!(infer(&mut http, "junk").status, 200);
        assert_eq!(line(&mut http, "junk")["state"], "READY");
    });
}

#[test]
fn over_grpc_the_methods_of_a_model_are_ready_as_the_model_is() {
    with_server(&["--door-model-control"], async |server| {
        let mut client = Client::to(server).await;
        let all_are = async |client: &mut Client, is_ready: bool, when: &str| {
            for name in MANY {
                let asked = ModelReadyRequest {
                    name: name.to_owned(),
                    version: String::new(),
                };
                let answer: ModelReadyResponse = client.call("ModelReady", asked).await.unwrap();
                assert_eq!(answer.ready, is_ready, "{name} {when}");
            }
        };
        all_are(&mut client, true, "in the folder").await;
        let unload = RepositoryModelUnloadRequest {
            model_name: "many".to_owned(),
            ..RepositoryModelUnloadRequest::default()
        };
        let _done: RepositoryModelUnloadResponse =
            client.call("RepositoryModelUnload", unload).await.unwrap();
        all_are(&mut client, false, "unloaded").await;
        let load = RepositoryModelLoadRequest {
            model_name: "many.again".to_owned(),
            ..RepositoryModelLoadRequest::default()
        };
        let _done: RepositoryModelLoadResponse =
            client.call("RepositoryModelLoad", load).await.unwrap();
        all_are(&mut client, true, "loaded again").await;
    });
}

/// The bug: the index said UNAVAILABLE with the reason, while a probe was told that the model is ready.
#[test]
fn a_model_that_did_not_open_is_not_ready_until_somebody_wants_it_and_it_does() {
    with_server(&["--http-port", "0"], async |server| {
        let mut http = Http::to(server);
        let mut client = Client::to(server).await;
        let junk = server.models().join("junk.onnx");
        std::fs::write(&junk, "no model").unwrap();
        std::fs::create_dir_all(server.models().join("old/4")).unwrap();
        std::fs::write(server.models().join("old/4/model.onnx"), "no model").unwrap();
        let infer = |http: &mut Http, name: &str| {
            let path = format!("/v2/models/{name}/infer");
            http.post(&path, &echo_request(1)).status
        };
        let mut ready = async |http: &mut Http, name: &str, version: &str| {
            let path = match version {
                "" => format!("/v2/models/{name}/ready"),
                version => format!("/v2/models/{name}/versions/{version}/ready"),
            };
            let answer = http.get(&path);
            let asked = ModelReadyRequest {
                name: name.to_owned(),
                version: version.to_owned(),
            };
            let told: ModelReadyResponse = client.call("ModelReady", asked).await.unwrap();
            assert_eq!(
                told.ready,
                answer.status == 200,
                "{name} {version}: {answer:?}"
            );
            answer
        };
        let answer = ready(&mut http, "junk", "").await;
        assert_eq!(answer.status, 200, "nobody knows yet: {answer:?}");
        assert_eq!(infer(&mut http, "junk"), 422);
        let answer = ready(&mut http, "junk", "").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let why = answer.error();
        assert!(
            why.contains("not ready") && why.contains("junk.onnx"),
            "{why}"
        );
        std::fs::copy(server.models().join("echo.onnx"), &junk).unwrap();
        assert_eq!(infer(&mut http, "junk"), 200);
        assert_eq!(ready(&mut http, "junk", "").await.status, 200);
        // One version is broken, and it is the one that the name leads to.
        assert_eq!(infer(&mut http, "old/versions/3"), 200);
        assert_eq!(infer(&mut http, "old"), 422);
        assert_eq!(ready(&mut http, "old", "").await.status, 503);
        assert_eq!(ready(&mut http, "old", "4").await.status, 503);
        assert_eq!(ready(&mut http, "old", "3").await.status, 200);
        assert_eq!(ready(&mut http, "old", "1").await.status, 200);
    });
}

/// The bug: what a request loads was only noted when somebody asked whether it is ready, while it was still loaded.
#[test]
fn a_model_that_was_loaded_again_stays_ready_when_others_take_its_place() {
    within(LIMIT, || {
        let server = server(&["--max-models", "1", "--door-model-control"]);
        let mut http = Http::to(&server);
        let client = server.client();
        // A result leaves before its worker says that it is free, and until then its model stays.
        let nothing_is_held = || {
            eventually("nothing is held", || {
                client.status().expect("a status").queue.requests == 0
            });
        };
        let infer = |http: &mut Http, name: &str| {
            nothing_is_held();
            let answer = http.post(&format!("/v2/models/{name}/infer"), &echo_request(1));
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        };
        let ready = |http: &mut Http, name: &str| {
            let path = format!("/v2/models/{name}/ready");
            http.get(&path).status
        };
        for (name, unloaded) in [("echo", "echo"), ("many.again", "many")] {
            infer(&mut http, name);
            let unload = format!("/v2/repository/models/{unloaded}/unload");
            assert_eq!(http.post(&unload, &json!({})).status, 200);
            assert_eq!(ready(&mut http, name), 503);
            http.post(&unload, &json!({}));
            infer(&mut http, name);
            infer(&mut http, "echo.own"); // there is room for one
            assert_eq!(ready(&mut http, name), 200, "{name}");
            // So does asking what it is, which loads it too.
            assert_eq!(http.post(&unload, &json!({})).status, 200);
            nothing_is_held();
            assert_eq!(http.get(&format!("/v2/models/{name}")).status, 200);
            infer(&mut http, "echo.own");
            assert_eq!(ready(&mut http, name), 200, "{name}");
            // What others load changes nothing.
            assert_eq!(http.post(&unload, &json!({})).status, 200);
            infer(&mut http, "echo.own");
            assert_eq!(ready(&mut http, name), 503, "{name}");
        }
    });
}
