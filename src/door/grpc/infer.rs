//! `ModelInfer`: reads a request, sends it through the pipeline, and answers with what comes back.

use bytes::Bytes;
use tonic::Status;

use super::incoming::Messages;
use super::reply::{self, Reply};
use super::request::{self, Asked, Refused};
use super::response::{self, Parameter};
use super::route::Call;
use super::status::status;
use crate::door::incoming::{HERE_BYTES, Reserved, Whole};
use crate::door::submit::{Held, Rows};
use crate::door::translate::write::{AnswerNames, copied_bytes};
use crate::error::Result;
use crate::message::Request;

/// Answers a call.
///
/// # Errors
/// Why it is refused.
pub(super) async fn answer(call: &Call, mut messages: Messages) -> Result<Reply, Status> {
    let message = call.within(messages.only()).await?;
    let asked = read(call, message).await;
    let (mut asked, reserved) = asked.map_err(|refused| status(refused.error))?;
    let outcome = async {
        let request = take_request(call, &mut asked, reserved).await?;
        let (rows, _stats) = call.local.pipeline.infer(call.caller(), request).await?;
        let (message, held) = write(call, &asked, (rows, &[]), None).await?;
        Ok(reply::of_pieces(message, Some(held)))
    };
    outcome.await.map_err(status)
}

/// Reads a message; beside the runtime where that takes its time. Its bytes count until they count as a request's.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what is wrong.
pub(super) async fn read(call: &Call, message: Whole) -> Result<(Asked, Reserved), Refused> {
    let most = call.local.shared.max_request_bytes;
    let bytes = request::work_bytes(&message.bytes);
    let read = move || {
        let Whole { bytes, reserved } = message;
        request::read(bytes, most).map(|asked| (asked, reserved))
    };
    call.local.beside(call.caller(), bytes, read).await?
}

/// What the pipeline gets, with the call's deadline if that comes first.
///
/// # Errors
/// As [`crate::door::local::Local::readied`].
pub(super) async fn take_request(
    call: &Call,
    asked: &mut Asked,
    reserved: Reserved,
) -> Result<Request> {
    let request = std::mem::take(&mut asked.infer.request);
    let request = call.local.readied(call.caller(), request, call.deadline);
    let request = request.await?;
    drop(reserved); // what it holds counts as a request from here on
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
    let bytes = copied_bytes(&outputs, wanted);
    if bytes <= HERE_BYTES {
        let written =
            response::write(asked.answered(), parameters, (&outputs, wanted), wrapped_in)?;
        return Ok((written, held));
    }
    let (model, id) = (asked.model.clone(), asked.infer.id.clone());
    let (wanted, parameters) = (wanted.clone(), parameters.to_vec());
    let write = move || {
        let answered = AnswerNames {
            model: &model.name,
            version: model.version.as_deref(),
            id: id.as_deref(),
        };
        let written = response::write(answered, &parameters, (&outputs, &wanted), wrapped_in)?;
        Ok((written, held))
    };
    call.local.beside(call.caller(), bytes, write).await?
}

impl Asked {
    /// What its answers repeat.
    pub(super) fn answered(&self) -> AnswerNames<'_> {
        AnswerNames {
            model: &self.model.name,
            version: self.model.version.as_deref(),
            id: self.infer.id.as_deref(),
        }
    }
}
