//! Calls that end early, health, reflection, and models that are loaded and unloaded.

use std::time::{Duration, Instant};

use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::cancel::{cancelled, requests, rows_run};
use crate::common::Server;
use crate::grpc::protocol::*;
use crate::grpc::{Client, eventually, mlp, with_server};
use crate::grpc_stream::slow;
use crate::infer::rows;

/// Rows of a request that takes about ten seconds.
const ROWS: usize = 40_000;

#[test]
fn a_cancelled_call_cancels_what_waits_and_what_runs() {
    with_server(&["--preload", "slow"], async |server| {
        let mut client = Client::to(server).await;
        let mut calling = client.clone();
        let call = tokio::spawn(async move { calling.infer(slow(ROWS)).await });
        eventually("it runs", || requests(server) == 1).await;
        call.abort();
        eventually("it is cancelled", || cancelled(server) == 1).await;
        eventually("nothing runs", || requests(server) == 0).await;
        let run = rows_run(server);
        assert!(run < ROWS as u64 / 2, "{run} rows were run for nobody");
        // The connection goes on.
        client.infer(mlp(&rows(1))).await.expect("an answer");
    });
}

fn asks_health(service: &str) -> tonic::Request<HealthCheckRequest> {
    tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    })
}

#[test]
fn health_is_told_as_probes_ask_and_a_drain_is_no_health() {
    with_server(&["--preload", "slow"], async |server| {
        let mut client = Client::to(server).await;
        let check = "/grpc.health.v1.Health/Check";
        for service in ["", "inference.GRPCInferenceService"] {
            let health: HealthCheckResponse =
                client.call_at(check, asks_health(service)).await.unwrap();
            assert_eq!(health.status().as_str_name(), "SERVING");
        }
        let asked: Result<HealthCheckResponse, Status> =
            client.call_at(check, asks_health("none")).await;
        assert_eq!(asked.unwrap_err().code(), Code::NotFound);
        let mut calling = client.clone();
        let busy = tokio::spawn(async move { calling.infer(slow(8000)).await });
        eventually("it runs", || requests(server) == 1).await;
        server.signal("TERM");
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let health: HealthCheckResponse = client.call_at(check, asks_health("")).await.unwrap();
            if health.status().as_str_name() == "NOT_SERVING" {
                break;
            }
            assert!(Instant::now() < until, "it is healthy for ever");
        }
        let refused = client.infer(mlp(&rows(1))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let answer = busy
            .await
            .expect("no panic")
            .expect("what runs is answered");
        assert_eq!(answer.outputs[0].shape[0], 8000);
    });
}

/// The server waits for no client that only might say something more.
#[test]
fn a_stop_ends_streams_that_wait_for_their_client_with_a_status() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        let (say, mut answers) = client.stream().await;
        say.send(mlp(&rows(1))).expect("it is sent");
        answers.message().await.expect("no end").expect("an answer");
        let mut health = client.watch().await;
        let told = health.message().await.expect("no end").expect("health");
        assert_eq!(told.status().as_str_name(), "SERVING");
        let (ask, mut described) = client.reflect().await;
        server.signal("TERM");
        let ended = answers.message().await.expect_err("the end");
        let stopped = (Code::Unavailable, "the server has stopped");
        assert_eq!((ended.code(), ended.message()), stopped);
        let ended = loop {
            match health.message().await {
                Ok(told) => assert!(told.is_some(), "it ended well"),
                Err(ended) => break ended,
            }
        };
        assert_eq!((ended.code(), ended.message()), stopped);
        let ended = described.message().await.expect_err("the end");
        assert_eq!((ended.code(), ended.message()), stopped);
        drop((say, ask));
    });
}

#[test]
fn reflection_tells_what_there_is_to_call() {
    with_server(&[], async |server| {
        // A question of reflection, by hand: field 7 lists the services, field 4 asks for the file of a symbol.
        #[derive(Clone, PartialEq, prost::Message)]
        struct Question {
            #[prost(string, optional, tag = "4")]
            symbol: Option<String>,
            #[prost(string, optional, tag = "7")]
            list: Option<String>,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        struct Answer {
            #[prost(bytes = "vec", tag = "4")]
            files: Vec<u8>,
            #[prost(bytes = "vec", tag = "6")]
            services: Vec<u8>,
        }
        let mut client = Client::to(server).await;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let ask = |symbol: Option<&str>| {
                let list = symbol.is_none().then(String::new);
                let symbol = symbol.map(str::to_owned);
                tonic::Request::new(Question { symbol, list })
            };
            let listed: Answer = client.call_at(&path, ask(None)).await.unwrap();
            let text = String::from_utf8_lossy(&listed.services).into_owned();
            for service in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
                assert!(text.contains(service), "{text}");
            }
            let symbol = Some("inference.GRPCInferenceService");
            let file: Answer = client.call_at(&path, ask(symbol)).await.unwrap();
            assert!(String::from_utf8_lossy(&file.files).contains("ModelStreamInfer"));
        }
    });
}

async fn ready(client: &mut Client, name: &str) -> bool {
    let asked = ModelReadyRequest {
        name: name.to_owned(),
        version: String::new(),
    };
    let answer: ModelReadyResponse = client.call("ModelReady", asked).await.unwrap();
    answer.ready
}

fn load(name: &str) -> RepositoryModelLoadRequest {
    RepositoryModelLoadRequest {
        model_name: name.to_owned(),
        ..RepositoryModelLoadRequest::default()
    }
}

fn unload(name: &str) -> RepositoryModelUnloadRequest {
    RepositoryModelUnloadRequest {
        model_name: name.to_owned(),
        ..RepositoryModelUnloadRequest::default()
    }
}

#[test]
fn models_are_listed_loaded_and_unloaded_where_that_is_allowed() {
    with_server(&["--door-model-control"], async |server| {
        let mut client = Client::to(server).await;
        let index = RepositoryIndexRequest::default();
        let listed: RepositoryIndexResponse =
            client.call("RepositoryIndex", index.clone()).await.unwrap();
        let names: Vec<&str> = listed.models.iter().map(|model| &*model.name).collect();
        assert!(
            names.contains(&"mlp") && names.contains(&"old"),
            "{names:?}"
        );
        for _ in 0..2 {
            let done: RepositoryModelUnloadResponse = client
                .call("RepositoryModelUnload", unload("mlp"))
                .await
                .unwrap();
            assert_eq!(done, RepositoryModelUnloadResponse {});
            assert!(!ready(&mut client, "mlp").await);
            let listed: RepositoryIndexResponse =
                client.call("RepositoryIndex", index.clone()).await.unwrap();
            let mlp = listed
                .models
                .iter()
                .find(|model| model.name == "mlp")
                .unwrap();
            assert_eq!(mlp.state, "UNAVAILABLE");
            let _done: RepositoryModelLoadResponse = client
                .call("RepositoryModelLoad", load("mlp"))
                .await
                .unwrap();
            assert!(ready(&mut client, "mlp").await);
        }
        let none: Result<RepositoryModelLoadResponse, Status> =
            client.call("RepositoryModelLoad", load("none")).await;
        assert_eq!(none.unwrap_err().code(), Code::NotFound);
        // Through a proxy everybody would be on this machine.
        let mut forwarded = tonic::Request::new(load("mlp"));
        let header = "10.0.0.1".parse().expect("text");
        forwarded.metadata_mut().insert("x-forwarded-for", header);
        let path = "/inference.GRPCInferenceService/RepositoryModelLoad";
        let asked: Result<RepositoryModelLoadResponse, Status> =
            client.call_at(path, forwarded).await;
        assert_eq!(asked.unwrap_err().code(), Code::PermissionDenied);
    });
    with_server(&[], async |server: &Server| {
        let mut client = Client::to(server).await;
        let asked: Result<RepositoryModelLoadResponse, Status> =
            client.call("RepositoryModelLoad", load("mlp")).await;
        let status = asked.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(
            status.message().contains("--door-model-control"),
            "{status}"
        );
    });
}
