//! `ModelInfer`: reads a request, sends it through the pipeline, and answers with what comes back.

use bytes::Bytes;
use tonic::Status;

use super::incoming::{Message, Messages, Reserved};
use super::reply::{self, Reply};
use super::request::{self, Asked};
use super::response::{self, Parameter};
use super::route::Call;
use super::status::status;
use crate::door::pipeline::{Held, Rows};
use crate::door::translate::Infer;
use crate::door::translate::write::{Answered, copied_bytes};
use crate::error::Result;
use crate::message::Request;

/// Messages of more bytes are read beside the runtime, which serves others meanwhile.
const READ_HERE_BYTES: usize = 256 * 1024;
/// Answers of which more bytes are copied are written there too.
const WRITE_HERE_BYTES: usize = 256 * 1024;

/// Answers a call.
///
/// # Errors
/// Why it is refused.
pub(super) async fn answer(call: &Call, mut messages: Messages) -> Result<Reply, Status> {
    let message = call.within(messages.only()).await?;
    let (mut asked, reserved) = read(call, message).await.map_err(status)?;
    let outcome = async {
        let request = take_request(call, &mut asked, reserved).await?;
        let (rows, _stats) = call.local.pipeline.infer(call.caller(), request).await?;
        let (message, held) = write(call, &asked, (rows, &[]), None).await?;
        Ok(reply::of_pieces(message, Some(held)))
    };
    outcome.await.map_err(status)
}

/// Reads a message; a large one beside the runtime. Its bytes count until they count as a request's.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what is wrong.
pub(super) async fn read(call: &Call, message: Message) -> Result<(Asked, Reserved)> {
    let most = call.local.shared.max_request_bytes;
    let takes_its_time = message.bytes.len() > READ_HERE_BYTES;
    let read = move || {
        let Message { bytes, reserved } = message;
        request::read(bytes, most).map(|asked| (asked, reserved))
    };
    call.local.beside(takes_its_time, read).await?
}

/// What the pipeline gets, with the call's deadline if that comes first.
///
/// # Errors
/// What the server answers when it is asked what the model takes.
pub(super) async fn take_request(
    call: &Call,
    asked: &mut Asked,
    reserved: Reserved,
) -> Result<Request> {
    let Infer { request, .. } = &mut asked.infer;
    let mut request = std::mem::take(request);
    request.model = Some(asked.model.clone());
    let mut request = call.local.with_documents(call.caller(), request).await?;
    drop(reserved); // what it holds counts as a request from here on
    let times = [request.timeout_ms, call.left_ms()];
    request.timeout_ms = times.into_iter().flatten().min();
    Ok(request)
}

/// Writes an answer with these parameters; where much of it is copied, beside the runtime.
///
/// # Errors
/// As [`response::write`].
pub(super) async fn write(
    call: &Call,
    asked: &Asked,
    (rows, parameters): (Rows, &[(&'static str, Parameter)]),
    wrapped_in: Option<u32>,
) -> Result<(Vec<Bytes>, Held)> {
    let Rows { outputs, held } = rows;
    let wanted = &asked.infer.wanted;
    if copied_bytes(&outputs, wanted) <= WRITE_HERE_BYTES {
        let written =
            response::write(asked.answered(), parameters, (&outputs, wanted), wrapped_in)?;
        return Ok((written, held));
    }
    let (model, version, id) = (
        asked.model.clone(),
        asked.version.clone(),
        asked.infer.id.clone(),
    );
    let (wanted, parameters) = (wanted.clone(), parameters.to_vec());
    let write = move || {
        let answered = Answered {
            model: &model,
            version: version.as_deref(),
            id: id.as_deref(),
        };
        let written = response::write(answered, &parameters, (&outputs, &wanted), wrapped_in)?;
        Ok((written, held))
    };
    call.local.beside(true, write).await?
}

impl Asked {
    /// What its answers repeat.
    pub(super) fn answered(&self) -> Answered<'_> {
        Answered {
            model: &self.model,
            version: self.version.as_deref(),
            id: self.infer.id.as_deref(),
        }
    }
}
