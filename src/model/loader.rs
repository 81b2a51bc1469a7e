//! The thread that touches model files, so that the ventilator never does.
//!
//! Jobs go in over a channel, on which the thread blocks. When one is done, its answer is put down under the job's
//! ticket and the notifier says so: an inproc message, which wakes the ventilator's polling loop.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use super::lookup::Lookup;
use super::{Description, Registry};
use crate::error::{Error, Result};
use crate::message::ModelId;

/// What the loader is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Describe the model that a request names.
    Resolve(Lookup),
    /// Describe the model that a name leads to now, whatever was loaded under it before.
    Load(Lookup),
    /// Forget a model.
    Unload(Lookup),
}

/// What came of a job.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Of [`Job::Resolve`] and [`Job::Load`].
    Described(Result<Arc<Description>>),
    /// Of [`Job::Unload`].
    Unloaded(Result<Vec<ModelId>>),
}

/// What the loader's thread works with.
pub(crate) trait Describe: Send + Sync + 'static {
    fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>>;
    fn load(&self, lookup: &Lookup) -> Result<Arc<Description>>;
    fn unload(&self, lookup: &Lookup) -> Result<Vec<ModelId>>;
}

impl Describe for Registry {
    fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        Registry::resolve(self, lookup)
    }

    fn load(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        Registry::load(self, lookup)
    }

    fn unload(&self, lookup: &Lookup) -> Result<Vec<ModelId>> {
        Registry::unload(self, lookup)
    }
}

type Answers = Arc<Mutex<HashMap<u64, Answer>>>;

/// A running loader. Dropping it ends its thread, after the job at hand; those that wait are dropped.
pub(crate) struct Loader {
    /// `None` once it is being dropped. Unbounded: whoever asks bounds the requests that wait for an answer.
    jobs: Option<Sender<(u64, Job)>>,
    answers: Answers,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts the thread, which makes its notifier itself: a socket lives and dies in the thread that made it. The
    /// notifier is called with a job's ticket once its answer can be taken. Returns when the notifier is made.
    ///
    /// # Errors
    /// The notifier's, or `UNAVAILABLE` if there is no thread to be had.
    pub(crate) fn start<N, F>(registry: Arc<impl Describe>, notifier: F) -> Result<Loader>
    where
        F: FnOnce() -> Result<N> + Send + 'static,
        N: FnMut(u64),
    {
        let (jobs, inbox) = crossbeam_channel::unbounded();
        let (ready, is_ready) = crossbeam_channel::bounded(1);
        let answers = Answers::default();
        let shelf = answers.clone();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new()
            .name("mdm-loader".to_owned())
            .spawn(move || {
                let (notify, result) = match notifier() {
                    Ok(notify) => (Some(notify), Ok(())),
                    Err(e) => (None, Err(e)),
                };
                // The other end waits for exactly this.
                let _ = ready.send(result);
                if let Some(mut notify) = notify {
                    let inbox = inbox.iter().take_while(|_| !stop.load(Ordering::Relaxed));
                    work(&*registry, inbox, &shelf, &mut notify);
                }
            })
            .map_err(|e| Error::unavailable(format!("the loader's thread: {e}")))?;
        let loader = Loader {
            jobs: Some(jobs),
            answers,
            stopping,
            thread: Some(thread),
        };
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(Error::internal("the loader's thread ended at its start")))?;
        Ok(loader)
    }

    /// Hands a job over. The ticket is the caller's own number for it.
    pub(crate) fn ask(&self, ticket: u64, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only after this sender is gone.
            let _ = jobs.send((ticket, job));
        }
    }

    /// The answer to a job that the notifier named; each can be taken once.
    pub(crate) fn take(&self, ticket: u64) -> Option<Answer> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.remove(&ticket)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It catches what jobs do; a panic of its own was printed.
            let _ = thread.join();
        }
    }
}

fn work(
    registry: &impl Describe,
    inbox: impl Iterator<Item = (u64, Job)>,
    answers: &Answers,
    notify: &mut impl FnMut(u64),
) {
    for (ticket, job) in inbox {
        let answer = match job {
            Job::Resolve(lookup) => {
                Answer::Described(caught(lookup.name(), || registry.resolve(&lookup)))
            }
            Job::Load(lookup) => {
                Answer::Described(caught(lookup.name(), || registry.load(&lookup)))
            }
            Job::Unload(lookup) => {
                Answer::Unloaded(caught(lookup.name(), || registry.unload(&lookup)))
            }
        };
        answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(ticket, answer);
        notify(ticket);
    }
}

/// A strange file may panic its reader; the next one must still find a loader.
fn caught<T>(name: &str, job: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        Err(Error::internal(format!(
            "model {name:?}: loading it panicked: {}",
            panic_message(&*panic)
        )))
    })
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Params;

    /// Takes each job only when it is told to.
    struct Slow {
        started: Sender<()>,
        go: crossbeam_channel::Receiver<()>,
    }

    impl Describe for Slow {
        fn resolve(&self, _: &Lookup) -> Result<Arc<Description>> {
            let _ = self.started.send(());
            let _ = self.go.recv();
            Err(Error::not_found("none"))
        }

        fn load(&self, lookup: &Lookup) -> Result<Arc<Description>> {
            self.resolve(lookup)
        }

        fn unload(&self, _: &Lookup) -> Result<Vec<ModelId>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_stop_does_not_wait_for_the_jobs_that_wait() {
        let (started, has_started) = crossbeam_channel::unbounded();
        let (may_go, go) = crossbeam_channel::unbounded();
        let slow = Arc::new(Slow { started, go });
        let loader = Loader::start(slow, || Ok(|_| ())).unwrap();
        for ticket in 0..5 {
            let lookup = Lookup::of(Some("a"), &Params::new());
            loader.ask(ticket, Job::Resolve(lookup));
        }
        has_started.recv().unwrap();
        let stopping = loader.stopping.clone();
        let drops = std::thread::spawn(move || drop(loader));
        while !stopping.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        for _ in 0..5 {
            may_go.send(()).unwrap();
        }
        drops.join().unwrap();
        assert_eq!(
            has_started.try_iter().count(),
            0,
            "jobs that were begun after the stop"
        );
    }
}
