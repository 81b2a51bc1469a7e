//! From started to ready, and from draining to stopped: where the server is on its way, and who is to be told.

use std::collections::HashSet;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::catalog::{Amount, Asker, Bounds, Shares};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{ReplyTo, WorkerId};

/// How long a drain waits for runs that nobody wants any more.
const RUN_PATIENCE: Duration = Duration::from_secs(3);

/// Clients that are told when the server has stopped.
const STOPPERS: Bounds = Bounds {
    what: "questions to be told of the end",
    of_all: Amount {
        count: 1024,
        bytes: 1 << 20,
    },
    of_one: Amount {
        count: 64,
        bytes: 1 << 16,
    },
};

/// Who is to be told when the server has stopped.
#[derive(Default)]
struct Stoppers {
    waiting: Vec<Asker>,
    shares: Shares<ReplyTo>,
}

impl Stoppers {
    fn add(&mut self, asker: &Asker) -> Result<()> {
        self.shares.check(&asker.client, 0, &STOPPERS)?;
        self.shares.add(&asker.client, 0);
        self.waiting.push(*asker);
        Ok(())
    }
}

/// What is still missing before the server is ready.
struct Starting {
    ready: Option<Sender<Result<()>>>,
    workers_missing: HashSet<WorkerId>,
    /// Models to load once every worker is up: a worker that has not connected yet cannot be told to open them.
    preload: Vec<String>,
    /// Models that are still to be opened on every worker.
    models_missing: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Serving,
    Draining,
    /// The workers were told to stop.
    Stopping,
    Stopped,
}

/// What a drain that has answered everybody does about runs that nobody wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    Waits,
    IsOver,
}

/// Where the server is on its way from its start to its end.
pub(super) struct Life {
    starting: Starting,
    pub(super) phase: Phase,
    /// It stops at once: nobody is waited for.
    pub(super) at_once: bool,
    /// When a drain that waits only for runs that nobody wants ends without them.
    give_up_us: Option<u64>,
    stoppers: Stoppers,
}

impl Life {
    /// `ready` is told once, when so many workers are up and every preloaded model is open, or why that failed.
    pub(super) fn new(ready: Sender<Result<()>>, workers: usize, preload: Vec<String>) -> Life {
        Life {
            starting: Starting {
                ready: Some(ready),
                workers_missing: (0..workers).map(|i| WorkerId(i as u32)).collect(),
                models_missing: preload.len(),
                preload,
            },
            phase: Phase::Serving,
            at_once: false,
            give_up_us: None,
            stoppers: Stoppers::default(),
        }
    }

    /// A worker is up. The models that are to be loaded now: the first time that all are.
    pub(super) fn worker_up(&mut self, worker: WorkerId) -> Vec<String> {
        self.starting.workers_missing.remove(&worker);
        self.check_ready();
        match self.starting.workers_missing.is_empty() {
            true => std::mem::take(&mut self.starting.preload),
            false => Vec::new(),
        }
    }

    /// A preloaded model is served, or cannot be.
    pub(super) fn preloaded(&mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                self.starting.models_missing -= 1;
                self.check_ready();
            }
            Err(error) => self.fail_start(error),
        }
    }

    /// Whether every worker was up once, and every preloaded model was opened.
    pub(super) fn is_started(&self) -> bool {
        self.starting.workers_missing.len() + self.starting.models_missing == 0
    }

    fn check_ready(&mut self) {
        if self.is_started()
            && let Some(ready) = self.starting.ready.take()
        {
            // Whoever started the server may have given up waiting; then it stops us another way.
            let _ = ready.send(Ok(()));
        }
    }

    fn fail_start(&mut self, error: Error) {
        if let Some(ready) = self.starting.ready.take() {
            let _ = ready.send(Err(error)); // as above
        }
    }

    /// Nothing new is taken from now on. So many requests are still to be answered.
    pub(super) fn drain(&mut self, pending: u64) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
            tracing::info!(pending, "draining");
            self.fail_start(Error::new(
                ErrorCode::Cancelled,
                "it was told to stop before it was ready",
            ));
        }
    }

    /// Everybody has an answer; what still runs was cancelled, or its time was over. An engine may go on for ever.
    pub(super) fn wait_for_runs(&mut self, now_us: u64) -> Patience {
        let give_up_us = now_us + RUN_PATIENCE.as_micros() as u64;
        match now_us >= *self.give_up_us.get_or_insert(give_up_us) {
            true => Patience::IsOver,
            false => Patience::Waits,
        }
    }

    /// When the patience with runs that nobody wants is over.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.give_up_us.filter(|_| self.phase == Phase::Draining)
    }

    /// Somebody is to be told when the server has stopped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many are.
    pub(super) fn tell_at_the_end(&mut self, asker: &Asker) -> Result<()> {
        self.stoppers.add(asker)
    }

    /// Those who are to be told that the server has stopped.
    pub(super) fn take_stoppers(&mut self) -> Vec<Asker> {
        std::mem::take(&mut self.stoppers).waiting
    }
}
