//! What there is to know of models, and loading and unloading them, in the protocol's messages.

use super::messages::model_metadata_response::TensorMetadata;
use super::messages::model_version_policy::{PolicyChoice, Specific};
use super::messages::repository_index_response::ModelIndex;
use super::messages::{
    DataType, InferStatistics, ModelConfig, ModelInput, ModelMetadataResponse, ModelOutput,
    ModelStatistics, ModelVersionPolicy, RepositoryModelLoadRequest, StatisticDuration,
};
use super::route::Call;
use crate::door::models::{ModelName, Models, Readiness, may_control, no_parameters};
use crate::door::translate::metadata;
use crate::door::translate::statistics::{self, Duration64};
use crate::error::{ErrorCode, Result};

fn models(call: &Call) -> Models<'_> {
    Models::of(&call.local, call.caller())
}

/// What a model is.
pub(super) async fn metadata(call: &Call, model: ModelName) -> Result<ModelMetadataResponse> {
    let model = models(call).metadata(&model).await?;
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

/// The same as a configuration, which load generators read.
pub(super) async fn config(call: &Call, model: ModelName) -> Result<ModelConfig> {
    let model = models(call).describe(&model).await?;
    let config = metadata::config_of_model(&model, call.local.shared.max_batch_size);
    let data_type = |name: &str| DataType::from_str_name(name).unwrap_or_default().into();
    let inputs = config.input.into_iter().map(|input| ModelInput {
        name: input.name,
        data_type: data_type(&input.data_type),
        dims: input.dims,
    });
    let outputs = config.output.into_iter().map(|output| ModelOutput {
        name: output.name,
        data_type: data_type(&output.data_type),
        dims: output.dims,
    });
    let versions = config.version_policy.specific.versions;
    Ok(ModelConfig {
        name: config.name,
        platform: config.platform.to_owned(),
        version_policy: Some(ModelVersionPolicy {
            policy_choice: Some(PolicyChoice::Specific(Specific { versions })),
        }),
        backend: config.backend.to_owned(),
        max_batch_size: i32::try_from(config.max_batch_size).unwrap_or(i32::MAX),
        input: inputs.collect(),
        output: outputs.collect(),
    })
}

/// What was counted of a model, or of all if none is named.
pub(super) async fn statistics(call: &Call, model: ModelName) -> Result<Vec<ModelStatistics>> {
    let model = Some(model).filter(|model| !model.name.is_empty());
    let counted = models(call).statistics(model.as_ref()).await?;
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

/// Whether a request for it would find it; what is not there, or lacks a file, is not ready.
pub(super) async fn ready(call: &Call, model: ModelName) -> Result<bool> {
    match models(call).readiness(&model).await {
        Err(error)
            if matches!(
                error.code(),
                ErrorCode::NotFound | ErrorCode::FailedPrecondition
            ) =>
        {
            Ok(false)
        }
        readiness => Ok(readiness? == Readiness::Ready),
    }
}

/// The models of the folder, and those that are loaded.
pub(super) async fn index(call: &Call, only_ready: bool) -> Result<Vec<ModelIndex>> {
    let lines = models(call).index(only_ready).await?;
    let lines = lines.into_iter().map(|line| ModelIndex {
        state: line.state().to_owned(),
        reason: line.reason,
        version: line.version.unwrap_or_default(),
        name: line.name,
    });
    Ok(lines.collect())
}

/// Loads a model, if that is allowed here and to this client.
pub(super) async fn load(call: &Call, asked: &RepositoryModelLoadRequest) -> Result<()> {
    may_control(&call.local, call.open.connection(), &call.headers)?;
    if let Some(name) = asked.parameters.keys().next() {
        return Err(no_parameters(name));
    }
    models(call).load(&asked.model_name).await
}

/// Unloads a model, if that is allowed here and to this client.
pub(super) async fn unload(call: &Call, name: &str) -> Result<()> {
    may_control(&call.local, call.open.connection(), &call.headers)?;
    models(call).unload(name).await
}
