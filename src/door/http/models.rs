//! What there is to know of models, and loading and unloading them.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{FORWARDED, ORIGIN};
use hyper::{HeaderMap, Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::connections::{Connection, Open};
use super::super::local::Local;
use super::super::translate::{metadata, statistics};
use super::body;
use super::reply::{self, Refusal, Reply};
use super::route::ModelName;
use crate::error::Error;
use crate::wire::server::ModelInfo;

/// Most bytes of a body that has no tensors.
const MAX_ORDER_BYTES: usize = 64 * 1024;

/// What a model is, as a request with this name would get it. It is read for that if nobody has asked for it before.
pub(super) async fn metadata(
    local: &Local,
    open: &Open,
    model: &ModelName,
) -> Result<Reply, Refusal> {
    let model = describe(local, open, model).await?;
    Ok(reply::json(StatusCode::OK, &metadata::of_model(&model)))
}

/// The same as a configuration, which load generators read.
pub(super) async fn config(
    local: &Local,
    open: &Open,
    model: &ModelName,
) -> Result<Reply, Refusal> {
    let model = describe(local, open, model).await?;
    let config = metadata::config_of_model(&model, local.shared.max_batch_size);
    Ok(reply::json(StatusCode::OK, &config))
}

/// What was counted of a model, or of all.
pub(super) async fn statistics(
    local: &Local,
    open: &Open,
    model: Option<&ModelName>,
) -> Result<Reply, Refusal> {
    let caller = &open.connection().caller;
    let loaded = local.pipeline.models(caller).await?;
    let snapshot = local.pipeline.metrics(caller).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default(); // a clock before 1970 is none
    let all = match model {
        None => statistics::of_all(&snapshot, &loaded, now),
        Some(model) => {
            let (offers, name, params) = (local.offers(), model.name.clone(), model.params());
            let find = move || offers.version(&name, &params);
            let version = local.beside(true, find).await??;
            vec![statistics::of_model(&snapshot, &model.name, &version, now)]
        }
    };
    Ok(reply::json(StatusCode::OK, &json!({"model_stats": all})))
}

async fn describe(local: &Local, open: &Open, model: &ModelName) -> Result<ModelInfo, Error> {
    let caller = &open.connection().caller;
    let params = model.params();
    local.pipeline.describe(caller, &model.name, &params).await
}

/// Whether a request for it would find it: it is loaded, or lies in the folder and was not unloaded.
pub(super) async fn ready(local: &Local, open: &Open, model: &ModelName) -> Result<Reply, Refusal> {
    let caller = &open.connection().caller;
    let named = |info: &&ModelInfo| {
        let version = model.version.as_ref();
        info.name == model.name && version.is_none_or(|version| *version == info.version)
    };
    let loaded = local.pipeline.models(caller).await?;
    let is_loaded = loaded.iter().find(named).is_some();
    if is_loaded {
        local.shared.unloaded().remove(&model.name);
    } else if local.shared.unloaded().contains(&model.name) {
        return Err(not_ready(&model.name, "it was unloaded"));
    } else {
        let (offers, name, params) = (local.offers(), model.name.clone(), model.params());
        local
            .beside(true, move || offers.version(&name, &params))
            .await??;
    }
    if !local.is_ready(caller).await {
        return Err(not_ready(&model.name, "the server is not ready"));
    }
    Ok(reply::json(
        StatusCode::OK,
        &json!({"name": model.name, "ready": true}),
    ))
}

fn not_ready(name: &str, why: &str) -> Refusal {
    let error = Error::unavailable(format!("model {name:?} is not ready: {why}"));
    Refusal::from(error)
}

/// One line of the index.
#[derive(Serialize)]
struct Indexed {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    state: &'static str,
    reason: &'static str,
}

/// What an index is asked for.
#[derive(Deserialize, Default)]
struct IndexAsked {
    #[serde(default)]
    ready: bool,
}

/// The models of the folder, and those that are loaded. One that a request would load is ready.
pub(super) async fn index(
    local: &Rc<Local>,
    open: &Open,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let whole = few_bytes(local, request).await?;
    let asked: IndexAsked = match whole.bytes.iter().all(u8::is_ascii_whitespace) {
        true => IndexAsked::default(),
        false => serde_json::from_slice(&whole.bytes)
            .map_err(|e| Error::invalid(format!("the body is not JSON with `ready`: {e}")))?,
    };
    let loaded = local.pipeline.models(&open.connection().caller).await?;
    let offers = local.offers();
    let mut names = local.beside(true, move || offers.names()).await??;
    for model in &loaded {
        if !names.contains(&model.name) {
            names.push(model.name.clone());
        }
    }
    names.sort();
    let unloaded = local.shared.unloaded().clone();
    let lines = names.into_iter().map(|name| {
        let served = loaded.iter().find(|model| model.name == name);
        let is_ready = served.is_some() || !unloaded.contains(&name);
        Indexed {
            version: served.map(|model| model.version.clone()),
            state: if is_ready { "READY" } else { "UNAVAILABLE" },
            reason: if is_ready { "" } else { "unloaded" },
            name,
        }
    });
    let lines: Vec<Indexed> = lines
        .filter(|line| !asked.ready || line.state == "READY")
        .collect();
    Ok(reply::json(StatusCode::OK, &lines))
}

/// A body without tensors.
async fn few_bytes(local: &Local, request: Request<Incoming>) -> Result<body::Whole, Refusal> {
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
    local: &Rc<Local>,
    open: &Open,
    (control, name): (Control, String),
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    if let Err(refusal) = may_control(local, open.connection(), request.headers()) {
        body::leave(request.into_body());
        return Err(refusal);
    }
    let whole = few_bytes(local, request).await?;
    if control == Control::Load && !whole.bytes.iter().all(u8::is_ascii_whitespace) {
        refuse_parameters(&whole.bytes)?;
    }
    let caller = &open.connection().caller;
    match control {
        Control::Load => {
            local.pipeline.load(caller, &name).await?;
            local.shared.unloaded().remove(&name);
        }
        Control::Unload => {
            match local.pipeline.unload(caller, &name).await {
                // It is in the folder and was not loaded: now it counts as unloaded all the same.
                Err(error) if error.code() == crate::ErrorCode::NotFound => {
                    let (offers, model) = (local.offers(), name.clone());
                    let found = move || offers.version(&model, &Default::default());
                    local.beside(true, found).await?.map_err(|_| error)?;
                }
                unloaded => unloaded?,
            }
            local.shared.unloaded().insert(name);
        }
    }
    Ok(reply::json(StatusCode::OK, &json!({})))
}

/// # Errors
/// 403, saying what would have to be so.
fn may_control(local: &Local, connection: &Connection, headers: &HeaderMap) -> Result<(), Refusal> {
    let forbidden = |why: &str| Err(Refusal::new(StatusCode::FORBIDDEN, why));
    if !local.shared.model_control {
        return forbidden("models are loaded and unloaded here only with --door-model-control");
    }
    if !connection.peer.ip().to_canonical().is_loopback() {
        return forbidden("models are loaded and unloaded only from the server's own machine");
    }
    // Behind a proxy every peer is this machine.
    let is_forwarded = headers
        .keys()
        .any(|name| *name == FORWARDED || name.as_str().starts_with("x-forwarded"));
    if is_forwarded || headers.contains_key(ORIGIN) {
        return forbidden("models are not loaded or unloaded for a browser or through a proxy");
    }
    Ok(())
}

/// # Errors
/// `INVALID_ARGUMENT`: a model is what its files are.
fn refuse_parameters(body: &[u8]) -> Result<(), Error> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| Error::invalid(format!("the body is not JSON: {e}")))?;
    let given = body.get("parameters").and_then(Value::as_object);
    match given.and_then(|given| given.keys().next()) {
        Some(name) => Err(Error::invalid(format!(
            "parameters.{name}: a model is loaded as its files are, and takes no parameters"
        ))),
        None => Ok(()),
    }
}
