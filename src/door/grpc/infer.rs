//! `ModelInfer`: reads a request, sends it through the pipeline, and answers with what comes back.

use tonic::Status;

use super::incoming::Messages;
use super::reply::{self, Reply};
use super::request::{self, Asked};
use super::response;
use super::route::Call;
use super::status::status;
use crate::door::incoming::{HERE_BYTES, Reserved, Whole};
use crate::door::translate::write::Answered;
use crate::error::Result;
use crate::message::Request;

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
        let written = response::write(
            asked.answered(),
            &[],
            (&rows.outputs, &asked.infer.wanted),
            None,
        )?;
        Ok(reply::of_pieces(written, Some(rows.held)))
    };
    outcome.await.map_err(status)
}

/// Reads a message; a large one beside the runtime. Its bytes count until they count as a request's.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what is wrong.
pub(super) async fn read(call: &Call, message: Whole) -> Result<(Asked, Reserved)> {
    let most = call.local.shared.max_request_bytes;
    let takes_its_time = message.bytes.len() > HERE_BYTES;
    let read = move || {
        let Whole { bytes, reserved } = message;
        request::read(bytes, most).map(|asked| (asked, reserved))
    };
    call.local.beside(takes_its_time, read).await?
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

impl Asked {
    /// What its answers repeat.
    pub(super) fn answered(&self) -> Answered<'_> {
        Answered {
            model: &self.model.name,
            version: self.model.version.as_deref(),
            id: self.infer.id.as_deref(),
        }
    }
}
