//! `grpc.health.v1`: whether the server serves, asked once or watched.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::incoming::Messages;
use super::reply::{self, Reply, Said};
use super::route::{Call, unary};
use super::status::stopped;
use crate::error::Error;

/// The calls, as paths have them.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(super) const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// The services whose health is that of the server.
const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];
/// How often a watched server is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers `Check`.
///
/// # Errors
/// `NOT_FOUND` for a service that is not here.
pub(super) async fn check(call: &Call, messages: Messages) -> Result<Reply, Status> {
    unary(
        call,
        messages,
        async |asked: HealthCheckRequest| match health(call, &asked.service).await {
            ServingStatus::ServiceUnknown => Err(Error::not_found(format!(
                "service {:?} is not here; there is {:?}",
                asked.service, SERVICES[1]
            ))),
            health => Ok(told(health)),
        },
    )
    .await
}

/// Answers `Watch`: how it is now, and each change.
///
/// # Errors
/// What is wrong with the message.
pub(super) async fn watch(call: Call, mut messages: Messages) -> Result<Reply, Status> {
    let message = call.within(messages.only_small()).await?;
    let asked: HealthCheckRequest = prost::Message::decode(message.bytes)
        .map_err(|e| Status::invalid_argument(format!("the message is no protobuf: {e}")))?;
    let (say, said) = mpsc::channel(1);
    let task = tokio::task::spawn_local(async move {
        let tell_changes = async {
            let mut last = None;
            loop {
                let now = health(&call, &asked.service).await;
                if last.replace(now) != Some(now) {
                    let message = vec![reply::framed(&told(now))];
                    if say.send(Said::Message(message, None)).await.is_err() {
                        return Ok::<(), Status>(());
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let connection = call.open.connection();
        let ended = connection.unless_told(call.within(tell_changes)).await;
        if let Err(status) = ended.unwrap_or_else(|| Err(stopped())) {
            // It fails for a client that is gone.
            let _ = say.send(Said::End(status)).await;
        }
    });
    Ok(reply::of_stream(said, task))
}

async fn health(call: &Call, service: &str) -> ServingStatus {
    if !SERVICES.contains(&service) {
        return ServingStatus::ServiceUnknown;
    }
    match call.local.is_ready(call.caller()).await {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    }
}

fn told(health: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: health.into(),
    }
}
