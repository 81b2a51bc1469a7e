//! What there is to know of models, and loading and unloading them.

use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::{FORWARDED, ORIGIN};

use super::messages::model_metadata_response::TensorMetadata;
use super::messages::model_version_policy::{PolicyChoice, Specific};
use super::messages::repository_index_response::ModelIndex;
use super::messages::{
    DataType, InferStatistics, ModelConfig, ModelInput, ModelMetadataResponse, ModelOutput,
    ModelStatistics, ModelVersionPolicy, RepositoryModelLoadRequest, StatisticDuration,
};
use super::route::Call;
use crate::door::translate::metadata::{self, PLATFORM, config_type, is_batched};
use crate::door::translate::statistics::{self, Duration64};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{MODEL_VERSION, Params};
use crate::wire::server::ModelInfo;

fn version_params(version: &str) -> Params {
    let mut params = Params::new();
    if !version.is_empty() {
        params.insert(MODEL_VERSION.to_owned(), version.into());
    }
    params
}

async fn describe(call: &Call, name: &str, version: &str) -> Result<ModelInfo> {
    let params = version_params(version);
    let pipeline = &call.local.pipeline;
    pipeline.describe(call.caller(), name, &params).await
}

/// What a model is, as a request with this name would get it. It is read for that if nobody has asked for it before.
pub(super) async fn metadata(
    call: &Call,
    name: &str,
    version: &str,
) -> Result<ModelMetadataResponse> {
    let model = metadata::of_model(&describe(call, name, version).await?);
    let tensors = |tensors: Vec<metadata::TensorMetadata>| {
        let tensors = tensors.into_iter().map(|tensor| TensorMetadata {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: tensor.shape,
        });
        tensors.collect()
    };
    Ok(ModelMetadataResponse {
        name: model.name,
        versions: model.versions,
        platform: model.platform,
        inputs: tensors(model.inputs),
        outputs: tensors(model.outputs),
    })
}

/// The same as a configuration, which load generators read. The dimensions of a batched model are those of a row.
pub(super) async fn config(call: &Call, name: &str, version: &str) -> Result<ModelConfig> {
    let model = describe(call, name, version).await?;
    let batched = is_batched(&model);
    let told = metadata::of_model(&model);
    let dims = |shape: &[i64]| shape.iter().skip(usize::from(batched)).copied().collect();
    let data_type = |name: &str| DataType::from_str_name(&config_type(name)).unwrap_or_default();
    let inputs = told.inputs.iter().map(|input| ModelInput {
        name: input.name.clone(),
        data_type: data_type(&input.datatype).into(),
        dims: dims(&input.shape),
    });
    let outputs = told.outputs.iter().map(|output| ModelOutput {
        name: output.name.clone(),
        data_type: data_type(&output.datatype).into(),
        dims: dims(&output.shape),
    });
    let versions = vec![model.version.parse().unwrap_or(1)];
    let most = i32::try_from(call.local.shared.max_batch_size).unwrap_or(i32::MAX);
    Ok(ModelConfig {
        name: model.name,
        platform: PLATFORM.to_owned(),
        version_policy: Some(ModelVersionPolicy {
            policy_choice: Some(PolicyChoice::Specific(Specific { versions })),
        }),
        backend: PLATFORM.to_owned(),
        max_batch_size: if batched { most } else { 0 },
        input: inputs.collect(),
        output: outputs.collect(),
    })
}

/// What was counted of a model, or of all if none is named.
pub(super) async fn statistics(
    call: &Call,
    name: &str,
    version: &str,
) -> Result<Vec<ModelStatistics>> {
    let local = &call.local;
    let loaded = local.pipeline.models(call.caller()).await?;
    let snapshot = local.pipeline.metrics(call.caller()).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default(); // a clock before 1970 is none
    let counted = if name.is_empty() {
        statistics::of_all(&snapshot, &loaded, now)
    } else {
        let (offers, model, params) = (local.offers(), name.to_owned(), version_params(version));
        let find = move || offers.version(&model, &params);
        let version = local.beside(true, find).await??;
        vec![statistics::of_model(&snapshot, name, &version, now)]
    };
    Ok(counted.into_iter().map(told).collect())
}

fn told(model: statistics::ModelStatistics) -> ModelStatistics {
    let time = |time: Duration64| {
        let Duration64 { count, ns } = time;
        Some(StatisticDuration { count, ns })
    };
    let of = model.inference_stats;
    ModelStatistics {
        name: model.name,
        version: model.version,
        last_inference: model.last_inference,
        inference_count: model.inference_count,
        execution_count: model.execution_count,
        inference_stats: Some(InferStatistics {
            success: time(of.success),
            fail: time(of.fail),
            queue: time(of.queue),
            compute_input: time(of.compute_input),
            compute_infer: time(of.compute_infer),
            compute_output: time(of.compute_output),
            cache_hit: time(of.cache_hit),
            cache_miss: time(of.cache_miss),
        }),
        batch_stats: Vec::new(),
    }
}

/// Whether a request for it would find it: it is loaded, or lies in the folder and was not unloaded.
pub(super) async fn ready(call: &Call, name: &str, version: &str) -> Result<bool> {
    let caller = call.caller();
    let local = &call.local;
    let loaded = local.pipeline.models(caller).await?;
    let is_loaded = loaded
        .iter()
        .any(|model| model.name == name && (version.is_empty() || model.version == version));
    if is_loaded {
        local.shared.unloaded().remove(name);
    } else if local.shared.unloaded().contains(name) {
        return Ok(false);
    } else {
        let (offers, name, params) = (local.offers(), name.to_owned(), version_params(version));
        let found = local
            .beside(true, move || offers.version(&name, &params))
            .await?;
        match found {
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(false),
            found => found?,
        };
    }
    Ok(local.is_ready(caller).await)
}

/// The models of the folder, and those that are loaded. One that a request would load is ready.
pub(super) async fn index(call: &Call, only_ready: bool) -> Result<Vec<ModelIndex>> {
    let local = &call.local;
    let loaded = local.pipeline.models(call.caller()).await?;
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
        let (state, reason) = match is_ready {
            true => ("READY", ""),
            false => ("UNAVAILABLE", "unloaded"),
        };
        ModelIndex {
            version: served.map_or_else(String::new, |model| model.version.clone()),
            state: state.to_owned(),
            reason: reason.to_owned(),
            name,
        }
    });
    Ok(lines
        .filter(|line| !only_ready || line.state == "READY")
        .collect())
}

/// Loads a model, if that is allowed here and to this client.
pub(super) async fn load(call: &Call, asked: &RepositoryModelLoadRequest) -> Result<()> {
    may_control(call)?;
    if let Some(name) = asked.parameters.keys().next() {
        return Err(Error::invalid(format!(
            "parameters.{name}: a model is loaded as its files are, and takes no parameters"
        )));
    }
    let (local, name) = (&call.local, &asked.model_name);
    local.pipeline.load(call.caller(), name).await?;
    local.shared.unloaded().remove(name);
    Ok(())
}

/// Unloads a model, if that is allowed here and to this client.
pub(super) async fn unload(call: &Call, name: &str) -> Result<()> {
    may_control(call)?;
    let local = &call.local;
    match local.pipeline.unload(call.caller(), name).await {
        // It is in the folder and was not loaded: now it counts as unloaded all the same.
        Err(error) if error.code() == ErrorCode::NotFound => {
            let (offers, model) = (local.offers(), name.to_owned());
            let found = move || offers.version(&model, &Params::new());
            local.beside(true, found).await?.map_err(|_| error)?;
        }
        unloaded => unloaded?,
    }
    local.shared.unloaded().insert(name.to_owned());
    Ok(())
}

/// # Errors
/// `PERMISSION_DENIED`, saying what would have to be so.
fn may_control(call: &Call) -> Result<()> {
    if !call.local.shared.model_control {
        return Err(Error::denied(
            "models are loaded and unloaded here only with --door-model-control",
        ));
    }
    let peer = call.open.connection().peer.ip().to_canonical();
    if !peer.is_loopback() {
        return Err(Error::denied(
            "models are loaded and unloaded only from the server's own machine",
        ));
    }
    // Behind a proxy every peer is this machine.
    let is_forwarded = call
        .headers
        .keys()
        .any(|name| *name == FORWARDED || name.as_str().starts_with("x-forwarded"));
    if is_forwarded || call.headers.contains_key(ORIGIN) {
        return Err(Error::denied(
            "models are not loaded or unloaded for a browser or through a proxy",
        ));
    }
    Ok(())
}
