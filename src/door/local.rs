//! What the tasks of one door thread share, and what they can tell of the server.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::beside::Beside;
use super::documents::Documents;
use super::incoming::HERE_BYTES;
use super::shared::Shared;
use super::submit::{Caller, Pipeline};
use crate::error::{Error, ErrorCode, Result};
use crate::message::Protocol;
use crate::metrics::{self, Health, Outside, Process};
use crate::server::Offers;

/// How long the pipeline's loops may take to answer a question before they count as stuck.
const LIVE_WITHIN: Duration = Duration::from_secs(5);
/// How long until a question that was one too many is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// The way into the pipeline, and what all threads share.
pub(crate) struct Local {
    pub(crate) pipeline: Pipeline,
    pub(crate) shared: Arc<Shared>,
    pub(super) documents: Documents,
    offers: Offers,
    /// The server has started, which it never takes back.
    started: Cell<bool>,
    /// Threads for what takes its time.
    pub(crate) threads: Rc<Beside>,
}

impl Local {
    pub(super) fn new(
        pipeline: Pipeline,
        offers: Offers,
        shared: Arc<Shared>,
        threads: Rc<Beside>,
    ) -> Local {
        Local {
            pipeline,
            shared,
            documents: Documents::default(),
            offers,
            started: Cell::new(false),
            threads,
        }
    }

    /// What the server's folder offers, to be looked at beside the runtime.
    pub(crate) fn offers(&self) -> Offers {
        self.offers.clone()
    }

    /// How the server is; `None` if its loops do not answer.
    pub(crate) async fn health(&self, caller: &Caller) -> Option<Health> {
        let asked = async {
            loop {
                match self.pipeline.health(caller).await {
                    // Its connection has too many questions open, which says nothing of the server.
                    Err(error) if error.code() == ErrorCode::ResourceExhausted => {
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    other => return other,
                }
            }
        };
        tokio::time::timeout(LIVE_WITHIN, asked).await.ok()?.ok()
    }

    /// Whether the server serves: it has become ready, is not stopping, and a worker takes work.
    pub(crate) async fn is_ready(&self, caller: &Caller) -> bool {
        let health = self.health(caller).await;
        health.is_some_and(|health| health.is_ready())
    }

    /// Whether it is known that the server has started.
    pub(super) fn has_started(&self) -> bool {
        self.started.get()
    }

    /// Lets requests pass once every worker was up and every model of `--preload` was opened.
    ///
    /// # Errors
    /// `UNAVAILABLE` before.
    pub(super) async fn check_started(&self, caller: &Caller) -> Result<()> {
        if self.has_started() {
            return Ok(());
        }
        let health = self.health(caller).await;
        let is_started = health.is_some_and(|health| health.is_started);
        self.started.set(is_started);
        is_started.then_some(()).ok_or_else(|| {
            Error::unavailable("the server is not ready: it has not opened all models of --preload on all workers yet")
        })
    }

    /// What is counted, as Prometheus reads it.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the server has stopped.
    pub(crate) async fn metrics(&self, caller: &Caller) -> Result<String> {
        let snapshot = self.pipeline.metrics(caller).await?;
        let connections = self.shared.connections();
        let of_doors = |kind: Protocol| matches!(kind, Protocol::Http | Protocol::Grpc);
        let outside = Outside {
            connections: connections.filter(|(kind, _)| of_doors(*kind)).collect(),
            responses: self.shared.responses.each(),
            process: Process::now(),
        };
        metrics::text(&snapshot, &outside)
    }

    /// Works on so many bytes: on many beside the runtime, which serves others meanwhile; on few, which take no time, here.
    ///
    /// # Errors
    /// `INTERNAL` if it panicked.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        caller: &Caller,
        bytes: usize,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if bytes <= HERE_BYTES {
            return Ok(what());
        }
        self.threads.begin(caller, bytes, what).await
    }

    /// Looks something up in the models' folder, which may take its time, beside all that works on bytes.
    ///
    /// # Errors
    /// `INTERNAL` if it panicked.
    pub(crate) async fn look_up<T: Send + 'static>(
        &self,
        caller: &Caller,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.threads.look_up(caller, what).await
    }
}
