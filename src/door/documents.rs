//! Readies a request for its model within its time: a model of ours may take documents (JSON), which the doors' clients
//! send as text in BYTES.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use super::local::Local;
use super::models::Models;
use super::submit::Caller;
use super::translate::strings::to_documents;
use crate::error::{Error, ErrorCode, Result};
use crate::message::{MODEL_VERSION, Request};
use crate::tensor::{DataType, Tensor};
use crate::wire::server::ModelInfo;

/// How long it is remembered which inputs of a model are documents: a model that is loaded anew may have others.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// Models of which that is remembered; beyond it all are forgotten.
const MOST_REMEMBERED: usize = 1024;

/// Which inputs of the models asked for lately are documents, and when they were asked for.
#[derive(Default)]
pub(super) struct Documents(RefCell<HashMap<String, Remembered>>);

type Remembered = (Instant, Rc<[String]>);

fn is_text(tensor: &Tensor) -> bool {
    tensor.datatype() == DataType::Bytes
}

impl Local {
    /// The request as its model takes it: documents of the BYTES inputs that are such there. Its time, which `until` bounds
    /// too, counts from here on, and what is left of it goes along.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for text that is not JSON; `DEADLINE_EXCEEDED` if its time is over before its model was read; what
    /// asking for the model gives.
    pub(crate) async fn readied(
        &self,
        caller: &Caller,
        mut request: Request,
        until: Option<Instant>,
    ) -> Result<Request> {
        let own = request.timeout_ms.map(Duration::from_millis);
        let own = own.and_then(|time| Instant::now().checked_add(time));
        let until = own.into_iter().chain(until).min();
        let has_text = request.inputs.tensors.iter().any(is_text);
        if has_text || !self.has_started() || self.may_be_unloaded(&request) {
            let readied = self.looked_up(caller, request, has_text);
            request = match until {
                None => readied.await?,
                Some(until) => tokio::time::timeout_at(until, readied)
                    .await
                    .unwrap_or_else(|_| Err(too_late()))?,
            };
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A part of a millisecond is one; 0 would be no bound.
        let millis = left.map(|left| left.as_micros().div_ceil(1000).max(1));
        request.timeout_ms = millis.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX));
        Ok(request)
    }

    /// The request, once the server has started and the model was read that has to be read ahead of it.
    async fn looked_up(
        &self,
        caller: &Caller,
        request: Request,
        has_text: bool,
    ) -> Result<Request> {
        self.check_started(caller).await?;
        Models::of(self, caller).load_again(&request).await?;
        match has_text {
            true => self.with_documents(caller, request).await,
            false => Ok(request),
        }
    }

    async fn with_documents(&self, caller: &Caller, mut request: Request) -> Result<Request> {
        let names = self.documents_of(caller, &request).await?;
        if names.is_empty() {
            return Ok(request);
        }
        let only = request.inputs.tensors.len() == 1;
        for tensor in &mut request.inputs.tensors {
            let unnamed = only && tensor.name().is_empty();
            let is_document = unnamed || names.iter().any(|name| name == tensor.name());
            if is_document && is_text(tensor) {
                let text = tensor.clone();
                let bytes = text.payload_bytes();
                // Offsets are looked at here: text is read from between them.
                let parse = move || to_documents(&text.check_values(0)?);
                *tensor = self.beside(caller, bytes, parse).await??;
            }
        }
        Ok(request)
    }

    async fn documents_of(&self, caller: &Caller, request: &Request) -> Result<Rc<[String]>> {
        let Some(model) = &request.model else {
            return Ok(Rc::default());
        };
        // A path among the parameters may be the model's.
        let has_paths = request.params.keys().any(|key| key.ends_with("_path"));
        let version = request.params.get(MODEL_VERSION);
        let key = format!(
            "{model}\n{}",
            version.map(ToString::to_string).unwrap_or_default()
        );
        let remembered = self.documents.0.borrow().get(&key).cloned();
        if let Some((since, names)) = remembered
            && !has_paths
            && since.elapsed() < REMEMBERED_FOR
        {
            return Ok(names);
        }
        let info = self
            .pipeline
            .describe(caller, model, &request.params)
            .await?;
        let names: Rc<[String]> = documents(&info);
        if !has_paths {
            let mut all = self.documents.0.borrow_mut();
            if all.len() >= MOST_REMEMBERED {
                all.clear();
            }
            all.insert(key, (Instant::now(), names.clone()));
        }
        Ok(names)
    }
}

fn too_late() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the request's time was over before its model was read",
    )
}

fn documents(model: &ModelInfo) -> Rc<[String]> {
    let json = DataType::Json.name();
    let inputs = model.inputs.iter().filter(|input| input.dtype == json);
    inputs.map(|input| input.name.clone()).collect()
}
