//! What there is to know of models, and loading and unloading them, as paths and JSON have it.

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::connections::Open;
use super::super::incoming::Whole;
use super::super::local::Local;
use super::super::models::{ModelName, Models, Readiness, may_control, no_parameters};
use super::super::translate::metadata;
use super::body;
use super::reply::{self, Refusal, Reply};
use crate::error::Error;

/// Most bytes of a body that has no tensors.
const MAX_ORDER_BYTES: usize = 64 * 1024;

fn models<'a>(local: &'a Local, open: &'a Open) -> Models<'a> {
    Models::of(local, &open.connection().caller)
}

/// What a model is.
pub(super) async fn metadata(
    local: &Local,
    open: &Open,
    model: &ModelName,
) -> Result<Reply, Refusal> {
    let metadata = models(local, open).metadata(model).await?;
    Ok(reply::json(StatusCode::OK, &metadata))
}

/// The same as a configuration, which load generators read.
pub(super) async fn config(
    local: &Local,
    open: &Open,
    model: &ModelName,
) -> Result<Reply, Refusal> {
    let model = models(local, open).describe(model).await?;
    let config = metadata::config_of_model(&model, local.shared.max_batch_size);
    Ok(reply::json(StatusCode::OK, &config))
}

/// What was counted of a model, or of all.
pub(super) async fn statistics(
    local: &Local,
    open: &Open,
    model: Option<&ModelName>,
) -> Result<Reply, Refusal> {
    let all = models(local, open).statistics(model).await?;
    Ok(reply::json(StatusCode::OK, &json!({"model_stats": all})))
}

/// Whether a request for it would find it.
pub(super) async fn ready(local: &Local, open: &Open, model: &ModelName) -> Result<Reply, Refusal> {
    let why = match models(local, open).readiness(model).await? {
        Readiness::Ready => {
            let ready = json!({"name": model.name, "ready": true});
            return Ok(reply::json(StatusCode::OK, &ready));
        }
        Readiness::Unloaded => "it was unloaded".to_owned(),
        Readiness::Broken(why) => why,
        Readiness::ServerNotReady => "the server is not ready".to_owned(),
    };
    let error = Error::unavailable(format!("model {:?} is not ready: {why}", model.name));
    Err(error.into())
}

/// One line of the index.
#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    state: &'static str,
    reason: String,
}

/// What an index is asked for.
#[derive(Deserialize, Default)]
struct IndexAsked {
    #[serde(default)]
    ready: bool,
}

/// The models of the folder, and those that are loaded.
pub(super) async fn index(
    local: &Local,
    open: &Open,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let whole = few_bytes(local, request).await?;
    let asked: IndexAsked = match whole.bytes.iter().all(u8::is_ascii_whitespace) {
        true => IndexAsked::default(),
        false => serde_json::from_slice(&whole.bytes)
            .map_err(|e| Error::invalid(format!("the body is not JSON with `ready`: {e}")))?,
    };
    let lines = models(local, open).index(asked.ready).await?;
    let lines = lines.into_iter().map(|line| Line {
        state: line.state(),
        reason: line.reason,
        version: line.version,
        name: line.name,
    });
    let lines: Vec<Line> = lines.collect();
    Ok(reply::json(StatusCode::OK, &lines))
}

/// A body without tensors.
async fn few_bytes(local: &Local, request: Request<Incoming>) -> Result<Whole, Refusal> {
    let whole = body::read(&local.shared, request.into_body(), None).await?;
    if whole.bytes.len() > MAX_ORDER_BYTES {
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the body has {} bytes, and {MAX_ORDER_BYTES} is the most where no tensors are sent",
                whole.bytes.len()
            ),
        ));
    }
    Ok(whole)
}

/// What is to be done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Load,
    Unload,
}

/// Loads or unloads a model, if that is allowed here and to this client.
pub(super) async fn control(
    local: &Local,
    open: &Open,
    (control, name): (Control, String),
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    if let Err(error) = may_control(local, open.connection(), request.headers()) {
        return Err(Refusal::from(error).leaving(request.into_body()));
    }
    let whole = few_bytes(local, request).await?;
    if control == Control::Load && !whole.bytes.iter().all(u8::is_ascii_whitespace) {
        refuse_parameters(&whole.bytes)?;
    }
    match control {
        Control::Load => models(local, open).load(&name).await?,
        Control::Unload => models(local, open).unload(&name).await?,
    }
    Ok(reply::json(StatusCode::OK, &json!({})))
}

/// # Errors
/// `INVALID_ARGUMENT`: a model is what its files are.
fn refuse_parameters(body: &[u8]) -> Result<(), Error> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| Error::invalid(format!("the body is not JSON: {e}")))?;
    let given = body.get("parameters").and_then(Value::as_object);
    match given.and_then(|given| given.keys().next()) {
        Some(name) => Err(no_parameters(name)),
        None => Ok(()),
    }
}
