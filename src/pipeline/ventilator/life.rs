//! From started to ready, and from draining to stopped.

use std::collections::HashSet;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::Ventilator;
use crate::catalog::{Amount, Asker, Bounds, Shares};
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Params, ReplyTo, WorkerId};
use crate::model::Lookup;
use crate::pipeline::tell;
use crate::wire::client::StopMode;
use crate::wire::inner::{self, ToSink, ToWorker};
use crate::wire::server::{ServerMessage, StopState};

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
pub(super) struct Stoppers {
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
#[derive(Default)]
pub(super) struct Starting {
    pub(super) ready: Option<Sender<Result<()>>>,
    pub(super) workers_missing: HashSet<WorkerId>,
    /// Models to load once every worker is up: a worker that has not connected yet cannot be told to open them.
    pub(super) preload: Vec<String>,
    /// Models that are still to be opened on every worker.
    pub(super) models_missing: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Serving,
    Draining,
    /// The workers were told to stop.
    Stopping,
    Stopped,
}

impl Ventilator {
    /// Loads the models that are to be there when the server is ready. The first time only.
    pub(super) fn preload(&mut self) {
        for name in std::mem::take(&mut self.starting.preload) {
            let named = self.named(Lookup::of(Some(&name), &Params::new()));
            self.catalog.preload(named);
        }
    }

    pub(super) fn check_ready(&mut self) {
        let starting = &mut self.starting;
        if starting.workers_missing.len() + starting.models_missing == 0
            && let Some(ready) = starting.ready.take()
        {
            // Whoever started the server may have given up waiting; then it stops us another way.
            let _ = ready.send(Ok(()));
        }
    }

    pub(super) fn fail_start(&mut self, error: Error) {
        if let Some(ready) = self.starting.ready.take() {
            let _ = ready.send(Err(error)); // as above
        }
    }

    pub(super) fn pending(&self) -> u64 {
        (self.requests.scheduler.waiting().requests + self.catalog.parked_count()) as u64
    }

    /// Somebody wants the server to stop, and to be told when it has.
    pub(super) fn take_terminate(&mut self, asker: &Asker, mode: StopMode) -> Result<()> {
        let draining = ServerMessage::TerminateOk(StopState::Draining(self.pending()));
        self.answer_asker(asker, &draining);
        // It stops either way.
        if let Err(error) = self.stoppers.add(asker) {
            self.refuse_asker(asker, error);
        }
        self.stop(mode)
    }

    pub(super) fn stop(&mut self, mode: StopMode) -> Result<()> {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
            tracing::info!(pending = self.pending(), "draining");
            self.fail_start(Error::new(
                ErrorCode::Cancelled,
                "it was told to stop before it was ready",
            ));
        }
        if mode == StopMode::Now {
            self.at_once = true;
            let error = Error::unavailable("the server was told to stop at once");
            let mut open = self.requests.scheduler.open();
            open.extend(self.catalog.parked());
            for serial in open {
                self.close(serial, &error)?;
            }
            if self.phase == Phase::Draining {
                self.phase = Phase::Stopping;
                self.stop_workers();
            }
            if self.phase == Phase::Stopping {
                // A model may run for minutes, or take as long to open: nobody waits for that.
                self.tell_sink(&ToSink::Finish)?;
            }
        }
        Ok(())
    }

    pub(super) fn advance_stop(&mut self) -> Result<()> {
        if self.phase != Phase::Draining || self.pending() > 0 {
            return Ok(());
        }
        if self.requests.scheduler.is_idle() {
            self.phase = Phase::Stopping;
            self.stop_workers();
            return Ok(());
        }
        // Everybody has an answer; what still runs was cancelled, or its time was over. An engine may go on for ever.
        let now_us = self.clock.now_us();
        let give_up_us = *self
            .give_up_us
            .get_or_insert(now_us + RUN_PATIENCE.as_micros() as u64);
        if now_us >= give_up_us {
            tracing::warn!("a model still runs for requests that have ended: it is not waited for");
            return self.stop(StopMode::Now);
        }
        Ok(())
    }

    /// Tells the sink something.
    ///
    /// # Errors
    /// It is gone, although it was not told to stop.
    pub(super) fn tell_sink(&mut self, message: &ToSink) -> Result<()> {
        match tell(&mut self.sink, inner::write_to_sink(message)) {
            // Clients come, ask and go until the very end, and it may have ended already.
            Err(error) if matches!(self.phase, Phase::Stopping | Phase::Stopped) => {
                tracing::debug!(%error, "the sink has ended");
                Ok(())
            }
            told => told,
        }
    }

    /// The marker that travels behind the data: each worker passes it on to the sink.
    pub(super) fn stop_workers(&mut self) {
        let stop = inner::write_to_worker(&ToWorker::Stop);
        for (index, lanes) in self.lanes.iter_mut().enumerate() {
            if let Err(error) = tell(&mut lanes.bulk, stop.clone()) {
                tracing::warn!(worker_id = index, %error, "a worker is not there to be stopped");
                let stopped = ToSink::Stopped(WorkerId(index as u32));
                if tell(&mut self.sink, inner::write_to_sink(&stopped)).is_err() {
                    self.phase = Phase::Stopped; // the sink has ended as well
                }
            }
        }
    }

    pub(super) fn answer_stoppers(&mut self) {
        let stopped = ServerMessage::TerminateOk(StopState::Stopped);
        for asker in std::mem::take(&mut self.stoppers).waiting {
            self.answer_asker(&asker, &stopped);
        }
    }
}
