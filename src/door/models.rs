//! What there is to know of models, and loading and unloading them: what both doors do, each of which only renders it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, ORIGIN};
use serde_json::Value;

use super::connections::Connection;
use super::local::Local;
use super::submit::Caller;
use super::translate::Infer;
use super::translate::metadata::{self, ModelMetadata};
use super::translate::statistics::{self, ModelStatistics};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{MODEL_VERSION, Params, Request};
use crate::wire::server::{FailedModel, ModelInfo, Status};

/// A model, and the version that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelName {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
}

impl ModelName {
    /// Where no version is an empty one.
    pub(crate) fn new(name: String, version: String) -> ModelName {
        let version = Some(version).filter(|version| !version.is_empty());
        ModelName { name, version }
    }

    /// The parameters that ask for its version.
    pub(crate) fn params(&self) -> Params {
        let version = self.version.iter();
        let entry = version.map(|version| (MODEL_VERSION.to_owned(), version.as_str().into()));
        entry.collect()
    }
}

impl Infer {
    /// For the model that the call or the path names.
    pub(crate) fn for_model(mut self, model: &ModelName) -> Infer {
        self.request.model = Some(model.name.clone());
        if let Some(version) = &model.version {
            let version = Value::String(version.clone());
            let params = &mut self.request.params;
            params.insert(MODEL_VERSION.to_owned(), version);
        }
        self
    }
}

/// Whether a request for a model would find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It is loaded, or lies in the folder, and the server serves.
    Ready,
    /// It was unloaded, and not loaded since.
    Unloaded,
    /// It did not open when somebody last wanted it: why.
    Broken(String),
    /// The server does not serve.
    ServerNotReady,
}

impl Local {
    /// Whether the model of a request may be one that was unloaded. Which methods a model has is not looked up.
    pub(super) fn may_be_unloaded(&self, request: &Request) -> bool {
        let Some(name) = &request.model else {
            return false;
        };
        let is_its = |unloaded: &String| {
            let method = name.strip_prefix(unloaded.as_str());
            method.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.shared.unloaded().iter().any(is_its)
    }
}

/// One line of the index of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) name: String,
    /// Of one that is loaded.
    pub(crate) version: Option<String>,
    pub(crate) is_ready: bool,
    /// Why it is not.
    pub(crate) reason: String,
}

impl Indexed {
    /// Its state, in the protocol's words.
    pub(crate) fn state(&self) -> &'static str {
        match self.is_ready {
            true => "READY",
            false => "UNAVAILABLE",
        }
    }
}

/// What one caller asks of models.
#[derive(Clone, Copy)]
pub(crate) struct Models<'a> {
    local: &'a Local,
    caller: &'a Caller,
}

impl<'a> Models<'a> {
    pub(crate) fn of(local: &'a Local, caller: &'a Caller) -> Models<'a> {
        Models { local, caller }
    }

    /// What a model is, as a request with this name would get it. It is read for that if nobody has asked for it before.
    ///
    /// # Errors
    /// What looking it up and reading it gives.
    pub(crate) async fn describe(self, model: &ModelName) -> Result<ModelInfo> {
        self.describe_as(&model.name, &model.params()).await
    }

    async fn describe_as(self, name: &str, params: &Params) -> Result<ModelInfo> {
        let pipeline = &self.local.pipeline;
        let info = pipeline.describe(self.caller, name, params).await?;
        self.note_loaded(std::slice::from_ref(&info)).await?;
        Ok(info)
    }

    /// Loads the model of a request again, if it was unloaded: it is ready from then on, even if it soon makes room for
    /// others.
    ///
    /// # Errors
    /// As [`Models::describe`].
    pub(super) async fn load_again(self, request: &Request) -> Result<()> {
        if let Some(model) = &request.model
            && self.local.may_be_unloaded(request)
        {
            self.describe_as(model, &request.params).await?;
        }
        Ok(())
    }

    /// What a model is, and the versions that may be asked for: the one that is named, else all of its folder.
    ///
    /// # Errors
    /// As [`Models::describe`].
    pub(crate) async fn metadata(self, model: &ModelName) -> Result<ModelMetadata> {
        let mut metadata = metadata::of_model(&self.describe(model).await?);
        if model.version.is_none() {
            let (offers, name) = (self.local.offers(), model.name.clone());
            let find = move || offers.versions(&name);
            // One that was loaded and lies there no more has the version that is served.
            let versions = self.local.look_up(self.caller, find).await?;
            let versions = versions.unwrap_or_default();
            if !versions.is_empty() {
                let versions = versions.iter().map(u64::to_string);
                metadata.versions = versions.collect();
            }
        }
        Ok(metadata)
    }

    /// What was counted of a model, or of all.
    ///
    /// # Errors
    /// `NOT_FOUND` for a model that is not there; what asking the server gives.
    pub(crate) async fn statistics(
        self,
        model: Option<&ModelName>,
    ) -> Result<Vec<ModelStatistics>> {
        let pipeline = &self.local.pipeline;
        let loaded = pipeline.models(self.caller).await?;
        let snapshot = pipeline.metrics(self.caller).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default(); // a clock before 1970 is none
        Ok(match model {
            None => statistics::of_all(&snapshot, &loaded, now),
            Some(model) => {
                let (name, version) = self.version(model).await?;
                let of = statistics::of_model(&snapshot, &name, &version, now);
                vec![of]
            }
        })
    }

    /// Whether it is loaded, or lies in the folder, was not unloaded, and opened when somebody last wanted it.
    ///
    /// # Errors
    /// `NOT_FOUND` for a model that is not there; what asking the server gives.
    pub(crate) async fn readiness(self, model: &ModelName) -> Result<Readiness> {
        let named = |info: &ModelInfo| {
            let version = model.version.as_ref();
            info.name == model.name && version.is_none_or(|version| *version == info.version)
        };
        let Status {
            models: loaded,
            broken,
            ..
        } = self.local.pipeline.status(self.caller).await?;
        let mut broken = broken.iter().filter(|of| of.name == model.name).peekable();
        let mut why_not = None;
        if broken.peek().is_some() || !loaded.iter().any(named) {
            // That it is there at all, and which version it is.
            let (_, version) = self.version(model).await?;
            let its = broken.find(|of| is_without(of, Some(&version)));
            why_not = its.map(reason);
        }
        self.note_loaded(&loaded).await?;
        let whole = self.model_of(&model.name).await?;
        if self.local.shared.unloaded().contains(&whole) {
            return Ok(Readiness::Unloaded);
        }
        if let Some(why) = why_not {
            return Ok(Readiness::Broken(why));
        }
        Ok(match self.local.is_ready(self.caller).await {
            true => Readiness::Ready,
            false => Readiness::ServerNotReady,
        })
    }

    /// The models of the folder, and those that are loaded.
    ///
    /// # Errors
    /// What asking the server and reading the folder gives.
    pub(crate) async fn index(self, only_ready: bool) -> Result<Vec<Indexed>> {
        let Status {
            models: loaded,
            broken,
            ..
        } = self.local.pipeline.status(self.caller).await?;
        self.note_loaded(&loaded).await?;
        let unloaded = self.local.shared.unloaded().clone();
        let (offers, served) = (self.local.offers(), loaded.clone());
        // By name, why it is not ready.
        let look = move || -> Result<BTreeMap<String, Option<String>>> {
            let is_served: BTreeSet<&str> = served.iter().map(|model| &*model.name).collect();
            let why_not = |name: &str| {
                if !unloaded.is_empty() && unloaded.contains(&offers.model_of(name)) {
                    return Some("unloaded".to_owned());
                }
                let its = |of: &&FailedModel| of.name == name;
                let mut its = broken.iter().filter(its).peekable();
                if is_served.contains(name) || its.peek().is_none() {
                    return None;
                }
                // Of several versions it is the one that matters that the name leads to.
                let leads_to = offers.version(name, &Params::new()).ok();
                let leads_to = leads_to.map(|(_, version)| version);
                its.find(|of| is_without(of, leads_to.as_deref()))
                    .map(reason)
            };
            let names = offers.names()?.into_iter();
            let names = names.chain(is_served.iter().map(|name| (*name).to_owned()));
            Ok(names.map(|name| (name.clone(), why_not(&name))).collect())
        };
        let names = self.local.look_up(self.caller, look).await??;
        let lines = names.into_iter().map(|(name, why_not)| {
            let served = statistics::newest(&loaded, &name);
            Indexed {
                version: served.map(|model| model.version.clone()),
                is_ready: why_not.is_none(),
                reason: why_not.unwrap_or_default(),
                name,
            }
        });
        Ok(lines.filter(|line| !only_ready || line.is_ready).collect())
    }

    /// Loads a model.
    ///
    /// # Errors
    /// What looking it up and reading it gives.
    pub(crate) async fn load(self, name: &str) -> Result<()> {
        self.local.pipeline.load(self.caller, name).await?;
        let model = self.model_of(name).await?;
        self.local.shared.unloaded().remove(&model);
        Ok(())
    }

    /// Unloads a model, with all methods of its file. One that lies in the folder counts as unloaded even if it was not
    /// loaded.
    ///
    /// # Errors
    /// `NOT_FOUND` for a model that is not there; what asking the server gives.
    pub(crate) async fn unload(self, name: &str) -> Result<()> {
        match self.local.pipeline.unload(self.caller, name).await {
            Err(error) if error.code() == ErrorCode::NotFound => {
                let model = ModelName::new(name.to_owned(), String::new());
                self.version(&model).await.map_err(|_| error)?;
            }
            unloaded => unloaded?,
        }
        let model = self.model_of(name).await?;
        self.local.shared.unloaded().insert(model);
        Ok(())
    }

    /// What a model goes by, and the version that its name leads to now.
    async fn version(self, model: &ModelName) -> Result<(String, String)> {
        let (offers, name, params) = (self.local.offers(), model.name.clone(), model.params());
        let find = move || offers.version(&name, &params);
        self.local.look_up(self.caller, find).await?
    }

    /// The name of the model that is loaded and unloaded with this one: a method's model, else its own.
    async fn model_of(self, name: &str) -> Result<String> {
        let (offers, name) = (self.local.offers(), name.to_owned());
        // Without a dot there is no method, and nothing is looked up.
        if !name.contains('.') {
            return Ok(offers.model_of(&name));
        }
        self.local
            .look_up(self.caller, move || offers.model_of(&name))
            .await
    }

    /// What was loaded since it was unloaded does not count as unloaded any more.
    async fn note_loaded(self, loaded: &[ModelInfo]) -> Result<()> {
        if self.local.shared.unloaded().is_empty() {
            return Ok(());
        }
        let names: Vec<String> = loaded.iter().map(|model| model.name.clone()).collect();
        let offers = self.local.offers();
        let look = move || -> Vec<String> {
            let models = names.iter().map(|name| offers.model_of(name));
            models.collect()
        };
        let models = self.local.look_up(self.caller, look).await?;
        let mut unloaded = self.local.shared.unloaded();
        for model in &models {
            unloaded.remove(model);
        }
        Ok(())
    }
}

/// Whether requests for the version that a name leads to, if that is known, get nothing but the error.
fn is_without(broken: &FailedModel, leads_to: Option<&str>) -> bool {
    let is_it = |version: &String| leads_to.is_none_or(|leads_to| version == leads_to);
    broken.served_on.is_none() && broken.version.as_ref().is_none_or(is_it)
}

/// Why a model does not open.
fn reason(broken: &FailedModel) -> String {
    format!("{}: {}", broken.code, broken.message)
}

/// Whether models may be loaded and unloaded here, and by this client.
///
/// # Errors
/// `PERMISSION_DENIED`, saying what would have to be so.
pub(crate) fn may_control(
    local: &Local,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<()> {
    check_control(local.shared.model_control, connection.peer.ip(), headers)
}

fn check_control(allowed: bool, peer: IpAddr, headers: &HeaderMap) -> Result<()> {
    if !allowed {
        return Err(Error::denied(
            "models are loaded and unloaded here only with --door-model-control",
        ));
    }
    if !peer.to_canonical().is_loopback() {
        return Err(Error::denied(
            "models are loaded and unloaded only from the server's own machine",
        ));
    }
    // Behind a proxy every peer is this machine.
    let is_forwarded = headers
        .keys()
        .any(|name| *name == FORWARDED || name.as_str().starts_with("x-forwarded"));
    if is_forwarded || headers.contains_key(ORIGIN) {
        return Err(Error::denied(
            "models are not loaded or unloaded for a browser or through a proxy",
        ));
    }
    Ok(())
}

/// What is said of a parameter of loading.
pub(crate) fn no_parameters(name: &str) -> Error {
    Error::invalid(format!(
        "parameters.{name}: a model is loaded as its files are, and takes no parameters"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_controlled_only_where_allowed_and_from_this_machine() {
        let from = |peer: &str, header: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(name) = header {
                headers.insert(name, "http://localhost".parse().unwrap());
            }
            check_control(true, peer.parse().unwrap(), &headers)
        };
        for peer in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(from(peer, None).is_ok(), "{peer}");
            for header in ["origin", "forwarded", "x-forwarded-for", "x-forwarded-host"] {
                assert!(from(peer, Some(header)).is_err(), "{peer}, {header}");
            }
            let denied = check_control(false, peer.parse().unwrap(), &HeaderMap::new());
            assert!(
                denied
                    .unwrap_err()
                    .message()
                    .contains("--door-model-control")
            );
        }
        for peer in [
            "10.0.0.1",
            "128.0.0.1",
            "::",
            "0.0.0.0",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(from(peer, None).is_err(), "{peer}");
        }
    }
}
