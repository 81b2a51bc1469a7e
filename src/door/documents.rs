//! Documents: a model of ours may take JSON, which the doors' clients send as text in BYTES.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use super::local::Local;
use super::pipeline::Caller;
use super::translate::strings::to_documents;
use crate::error::Result;
use crate::message::{MODEL_VERSION, Request};
use crate::tensor::{DataType, Tensor};
use crate::wire::server::ModelInfo;

/// How long it is remembered which inputs of a model are documents: a model that is loaded anew may have others.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// Models of which that is remembered; beyond it all are forgotten.
const MOST_REMEMBERED: usize = 1024;
/// Texts of more bytes are parsed beside the runtime.
const PARSE_HERE_BYTES: usize = 256 * 1024;

/// Which inputs of the models asked for lately are documents, and when they were asked for.
#[derive(Default)]
pub(super) struct Documents(RefCell<HashMap<String, Remembered>>);

type Remembered = (Instant, Rc<[String]>);

impl Local {
    /// Makes documents of the BYTES inputs that the request's model takes as such.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for text that is not JSON; what asking for the model gives.
    pub(crate) async fn with_documents(
        &self,
        caller: &Caller,
        mut request: Request,
    ) -> Result<Request> {
        let is_text = |tensor: &Tensor| tensor.datatype() == DataType::Bytes;
        if !request.inputs.tensors.iter().any(is_text) {
            return Ok(request);
        }
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
                let takes_its_time = text.payload_bytes() > PARSE_HERE_BYTES;
                // Offsets are looked at here: text is read from between them.
                let parse = move || to_documents(&text.check_values(0)?);
                *tensor = self.beside(takes_its_time, parse).await??;
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

fn documents(model: &ModelInfo) -> Rc<[String]> {
    let json = DataType::Json.name();
    let inputs = model.inputs.iter().filter(|input| input.dtype == json);
    inputs.map(|input| input.name.clone()).collect()
}
