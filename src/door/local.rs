//! What the tasks of one door thread share, and what they can tell of the server.

use std::sync::Arc;
use std::time::Duration;

use super::documents::Documents;
use super::pipeline::{Caller, Pipeline};
use super::shared::Shared;
use crate::error::{Error, ErrorCode, Result};
use crate::message::Params;
use crate::server::Offers;
use crate::wire::server::Status;

/// How long the pipeline's loops may take to answer a question before they count as stuck.
const LIVE_WITHIN: Duration = Duration::from_secs(5);

/// The way into the pipeline, and what all threads share.
pub(crate) struct Local {
    pub(crate) pipeline: Pipeline,
    pub(crate) shared: Arc<Shared>,
    pub(super) documents: Documents,
    offers: Offers,
}

impl Local {
    pub(super) fn new(pipeline: Pipeline, offers: Offers, shared: Arc<Shared>) -> Local {
        Local {
            pipeline,
            shared,
            documents: Documents::default(),
            offers,
        }
    }

    /// What the server's folder offers, to be looked at beside the runtime.
    pub(crate) fn offers(&self) -> Offers {
        self.offers.clone()
    }

    /// Whether the pipeline's loops turn: both take part in the answer to a status question.
    pub(crate) async fn is_live(&self, caller: &Caller) -> bool {
        self.status(caller).await.is_some()
    }

    /// Whether the server serves: it has become ready, is not stopping, and a worker takes work.
    pub(crate) async fn is_ready(&self, caller: &Caller) -> bool {
        if !self.shared.is_ready() {
            return false;
        }
        let Some(status) = self.status(caller).await else {
            return false;
        };
        let takes_work = |state: &str| state == "idle" || state == "busy";
        let mut workers = status.workers.iter();
        workers.any(|worker| takes_work(&worker.state)) && !self.is_draining(caller).await
    }

    /// Runs what takes its time on a thread beside the runtime; what takes none here.
    ///
    /// # Errors
    /// `INTERNAL` if it panicked.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        takes_its_time: bool,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if !takes_its_time {
            return Ok(what());
        }
        let done = tokio::task::spawn_blocking(what).await;
        done.map_err(|e| Error::internal(format!("a request could not be read: {e}")))
    }

    async fn status(&self, caller: &Caller) -> Option<Status> {
        let status = tokio::time::timeout(LIVE_WITHIN, self.pipeline.status(caller));
        status.await.ok()?.ok()
    }

    /// A server that drains takes no questions about models; for one that serves this name leads nowhere.
    async fn is_draining(&self, caller: &Caller) -> bool {
        let no_params = Params::new();
        let nothing = self.pipeline.describe(caller, "", &no_params);
        match tokio::time::timeout(LIVE_WITHIN, nothing).await {
            Ok(Err(error)) => error.code() == ErrorCode::Unavailable,
            Ok(Ok(_)) => false,
            Err(_) => true,
        }
    }
}
