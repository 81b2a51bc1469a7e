//! Which call leads where.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request};
use prost::Message;
use tokio::time::Instant;
use tonic::Status;

use super::incoming::Messages;
use super::messages::*;
use super::reply::{self, Reply};
use super::status::status;
use super::{Service, health, infer, models, stream};
use crate::door::connections::Open;
use crate::door::local::Local;
use crate::door::models::ModelName;
use crate::door::submit::Caller;
use crate::error::Result;

/// The service of the protocol, as paths have it.
const INFERENCE: &str = "/inference.GRPCInferenceService/";
/// What the server says it can do beyond the protocol.
const EXTENSIONS: [&str; 4] = [
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
];

/// A call that is being answered.
pub(super) struct Call {
    pub(super) local: Rc<Local>,
    pub(super) open: Open,
    pub(super) headers: HeaderMap,
    pub(super) deadline: Option<Instant>,
}

impl Call {
    /// Who calls.
    pub(super) fn caller(&self) -> &Caller {
        &self.open.connection().caller
    }

    /// Waits for something until the call's deadline.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`; what that gives.
    pub(super) async fn within<T>(
        &self,
        what: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        // Pinned once: each of the two ways of waiting would have room for it otherwise.
        let what = pin!(what);
        match self.deadline {
            None => what.await,
            Some(deadline) => {
                let done = tokio::time::timeout_at(deadline, what).await;
                done.unwrap_or_else(|_| Err(too_late()))
            }
        }
    }
}

/// The status of a call whose time is up.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded("the call's time is up (grpc-timeout)")
}

/// Answers a call.
pub(super) async fn answer(service: &Service, open: Open, request: Request<Incoming>) -> Reply {
    let kind = request.headers().get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| is_grpc(kind.as_bytes()));
    if !is_grpc || request.method() != Method::POST {
        return reply::unsupported();
    }
    if service.reflection.serves(request.uri().path()) {
        return service.reflection.answer(open, request).await;
    }
    match dispatch(service, open, request).await {
        Ok(reply) => reply,
        Err(status) => reply::refused(status),
    }
}

/// Whether a body is gRPC with protobuf.
fn is_grpc(kind: &[u8]) -> bool {
    match kind.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest.starts_with(b";") || rest.starts_with(b"+proto"),
        None => false,
    }
}

async fn dispatch(
    service: &Service,
    open: Open,
    request: Request<Incoming>,
) -> Result<Reply, Status> {
    let (head, body) = request.into_parts();
    let local = service.local.clone();
    let caller = &open.connection().caller;
    let messages = Messages::of(local.clone(), caller, &head.headers, body)?;
    let deadline = timeout(&head.headers)?.map(|timeout| Instant::now() + timeout);
    let call = Call {
        local,
        open,
        headers: head.headers,
        deadline,
    };
    let path = head.uri.path();
    let Some(method) = path.strip_prefix(INFERENCE) else {
        return match path {
            health::CHECK => Box::pin(health::check(&call, messages)).await,
            health::WATCH => Box::pin(health::watch(call, messages)).await,
            _ => Err(not_here(path)),
        };
    };
    match method {
        "ModelInfer" => infer::answer(&call, messages).await,
        "ModelStreamInfer" => Ok(stream::answer(call, messages)),
        // What these need is not set aside for each inference.
        _ => Box::pin(tell(&call, method, messages)).await,
    }
}

/// Answers a call that is no inference.
async fn tell(call: &Call, method: &str, messages: Messages) -> Result<Reply, Status> {
    match method {
        "ServerLive" => unary(call, messages, |asked| server_live(call, asked)).await,
        "ServerReady" => unary(call, messages, |asked| server_ready(call, asked)).await,
        "ServerMetadata" => unary(call, messages, server_metadata).await,
        "ModelReady" => unary(call, messages, |asked| model_ready(call, asked)).await,
        "ModelMetadata" => unary(call, messages, |asked| model_metadata(call, asked)).await,
        "ModelConfig" => unary(call, messages, |asked| model_config(call, asked)).await,
        "ModelStatistics" => unary(call, messages, |asked| model_statistics(call, asked)).await,
        "RepositoryIndex" => unary(call, messages, |asked| index(call, asked)).await,
        "RepositoryModelLoad" => unary(call, messages, |asked| load(call, asked)).await,
        "RepositoryModelUnload" => unary(call, messages, |asked| unload(call, asked)).await,
        _ => Err(not_here(&format!("{INFERENCE}{method}"))),
    }
}

async fn server_live(call: &Call, _: ServerLiveRequest) -> Result<ServerLiveResponse> {
    let live = call.local.health(call.caller()).await.is_some();
    Ok(ServerLiveResponse { live })
}

async fn server_ready(call: &Call, _: ServerReadyRequest) -> Result<ServerReadyResponse> {
    let ready = call.local.is_ready(call.caller()).await;
    Ok(ServerReadyResponse { ready })
}

async fn server_metadata(_: ServerMetadataRequest) -> Result<ServerMetadataResponse> {
    Ok(ServerMetadataResponse {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    })
}

async fn model_ready(call: &Call, asked: ModelReadyRequest) -> Result<ModelReadyResponse> {
    let ready = models::ready(call, ModelName::new(asked.name, asked.version)).await?;
    Ok(ModelReadyResponse { ready })
}

async fn model_metadata(call: &Call, asked: ModelMetadataRequest) -> Result<ModelMetadataResponse> {
    models::metadata(call, ModelName::new(asked.name, asked.version)).await
}

async fn model_config(call: &Call, asked: ModelConfigRequest) -> Result<ModelConfigResponse> {
    let config = models::config(call, ModelName::new(asked.name, asked.version)).await?;
    let config = Some(config);
    Ok(ModelConfigResponse { config })
}

async fn model_statistics(
    call: &Call,
    asked: ModelStatisticsRequest,
) -> Result<ModelStatisticsResponse> {
    let model_stats = models::statistics(call, ModelName::new(asked.name, asked.version)).await?;
    Ok(ModelStatisticsResponse { model_stats })
}

async fn index(call: &Call, asked: RepositoryIndexRequest) -> Result<RepositoryIndexResponse> {
    let models = models::index(call, asked.ready).await?;
    Ok(RepositoryIndexResponse { models })
}

async fn load(
    call: &Call,
    asked: RepositoryModelLoadRequest,
) -> Result<RepositoryModelLoadResponse> {
    models::load(call, &asked).await?;
    Ok(RepositoryModelLoadResponse {})
}

async fn unload(
    call: &Call,
    asked: RepositoryModelUnloadRequest,
) -> Result<RepositoryModelUnloadResponse> {
    models::unload(call, &asked.model_name).await?;
    Ok(RepositoryModelUnloadResponse {})
}

fn not_here(path: &str) -> Status {
    Status::unimplemented(format!("{path}: there is no such call here"))
}

/// Answers a call of one message with one.
pub(super) async fn unary<Q, A>(
    call: &Call,
    mut messages: Messages,
    answer: impl AsyncFnOnce(Q) -> Result<A>,
) -> Result<Reply, Status>
where
    Q: Message + Default,
    A: Message,
{
    let answered = async {
        let message = messages.only_small().await?;
        let asked = Q::decode(message.bytes)
            .map_err(|e| Status::invalid_argument(format!("the message is no protobuf: {e}")))?;
        drop(message.reserved);
        let answered = answer(asked).await.map_err(status)?;
        Ok(reply::of_message(&answered))
    };
    call.within(answered).await
}

/// How long the call may take.
///
/// # Errors
/// `INVALID_ARGUMENT` for a header that is no time.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    parsed(value.as_bytes()).map(Some).ok_or_else(|| {
        Status::invalid_argument(format!(
            "grpc-timeout is {value:?}, expected up to eight digits and one of H M S m u n"
        ))
    })
}

fn parsed(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_its_unit() {
        for (text, time) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("9n", Some(Duration::from_nanos(9))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("1s", None),
        ] {
            assert_eq!(parsed(text.as_bytes()), time, "{text:?}");
        }
    }

    #[test]
    fn grpc_is_told_from_what_only_begins_like_it() {
        assert!(is_grpc(b"application/grpc"));
        assert!(is_grpc(b"application/grpc+proto"));
        assert!(is_grpc(b"application/grpc;charset=utf-8"));
        assert!(!is_grpc(b"application/grpc-web"));
        assert!(!is_grpc(b"application/json"));
    }
}
