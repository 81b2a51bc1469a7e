//! From started to ready, and from draining to stopped: where the server is on its way, and who is to be told.

use std::collections::HashSet;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::catalog::Asker;
use crate::error::{Error, ErrorCode, Result};
use crate::message::WorkerId;
use crate::shares::{Bounds, Most, Shares};

/// How long a drain waits for runs that nobody wants any more.
const RUN_PATIENCE: Duration = Duration::from_secs(3);

/// Clients that are told when the server has stopped.
const STOPPERS: Bounds = Bounds {
    what: "stop confirmations",
    of_all: Most {
        count: 1024,
        bytes: None,
    },
    of_one: Most {
        count: 64,
        bytes: None,
    },
};

/// Who is to be told when the server has stopped.
#[derive(Default)]
struct Stoppers {
    waiting: Vec<Asker>,
    shares: Shares,
}

impl Stoppers {
    fn add(&mut self, asker: &Asker) -> Result<()> {
        STOPPERS.check(&self.shares, asker.client, 0)?;
        self.shares.add(asker.client, 0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ReplyTo, RequestId};

    const PATIENCE_US: u64 = RUN_PATIENCE.as_micros() as u64;

    /// A server that is up.
    fn serving() -> Life {
        let (ready, told) = crossbeam_channel::bounded(1);
        let mut life = Life::new(ready, 2, Vec::new());
        assert!(life.worker_up(WorkerId(0)).is_empty());
        assert!(told.try_recv().is_err(), "a worker is missing");
        assert!(life.worker_up(WorkerId(1)).is_empty());
        assert!(told.try_recv().expect("both are up").is_ok());
        assert_eq!((life.phase, life.due_us()), (Phase::Serving, None));
        life
    }

    #[test]
    fn a_drain_waits_for_unwanted_runs_for_one_bounded_time() {
        let mut life = serving();
        life.drain(3);
        assert_eq!((life.phase, life.due_us()), (Phase::Draining, None));
        assert_eq!(life.wait_for_runs(1_000), Patience::Waits);
        assert_eq!(life.due_us(), Some(1_000 + PATIENCE_US));
        // Neither another look nor another order to drain makes it longer.
        life.drain(0);
        assert_eq!(life.wait_for_runs(PATIENCE_US), Patience::Waits);
        assert_eq!(life.due_us(), Some(1_000 + PATIENCE_US));
        assert_eq!(life.wait_for_runs(1_000 + PATIENCE_US), Patience::IsOver);
    }

    /// What is due and never done would wake the ventilator again and again until the workers have ended.
    #[test]
    fn nothing_is_due_once_a_drain_is_over() {
        let mut life = serving();
        life.drain(0);
        assert_eq!(life.wait_for_runs(0), Patience::Waits);
        for over in [Phase::Stopping, Phase::Stopped] {
            life.phase = over;
            assert_eq!(life.due_us(), None, "{over:?}");
            life.drain(0);
            assert_eq!(life.phase, over, "it does not drain again");
        }
    }

    #[test]
    fn a_server_that_is_stopped_before_it_is_ready_says_so_once() {
        let (ready, told) = crossbeam_channel::bounded(2);
        let mut life = Life::new(ready, 1, vec!["m".to_owned()]);
        life.drain(0);
        let error = told.try_recv().expect("a word").unwrap_err();
        assert_eq!(error.code(), ErrorCode::Cancelled);
        assert_eq!(life.worker_up(WorkerId(0)), ["m"]);
        life.preloaded(Ok(()));
        assert!(told.try_recv().is_err(), "it was said already");
    }

    #[test]
    fn those_who_are_told_of_the_end_are_bounded_and_told_once() {
        let mut life = serving();
        let asker = |client: u8, id: u64| Asker {
            client: ReplyTo([client; 16]),
            id: RequestId(id),
        };
        for id in 0..STOPPERS.of_one.count as u64 {
            life.tell_at_the_end(&asker(1, id)).unwrap();
        }
        let refused = life.tell_at_the_end(&asker(1, 1_000)).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ResourceExhausted);
        let why = refused.message();
        assert!(
            why.starts_with("64 stop confirmations of this client"),
            "{why}"
        );
        assert!(!why.contains("bytes"), "{why}");
        life.tell_at_the_end(&asker(2, 0)).unwrap();
        assert_eq!(life.take_stoppers().len(), STOPPERS.of_one.count + 1);
        assert!(life.take_stoppers().is_empty());
    }
}
