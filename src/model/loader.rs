//! The thread that touches model files, so that the ventilator never does.
//!
//! Jobs wait in turn by client (`turns.rs`), and the thread blocks until there is one. When one is done, its answer is put
//! down under the job's ticket and the notifier says so: an inproc message, which wakes the ventilator's polling loop.
//! Every job that is begun is answered: whatever panics, the thread goes on.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::turns::Turns;
use super::{Description, Lookup, Registry};
use crate::error::{Error, Result, panic_message};
use crate::message::{ModelId, ReplyTo};

/// What the loader is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Describe the model that a request names.
    Resolve(Arc<Lookup>),
    /// Describe the model that a name leads to now, whatever was loaded under it before.
    Load(Arc<Lookup>),
    /// Forget a model.
    Unload(Arc<Lookup>),
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

/// What the thread and whoever asks share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job, or the loader is to stop.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Unbounded: whoever asks bounds what waits for an answer.
    jobs: Turns<ReplyTo, (u64, Job)>,
    answers: HashMap<u64, Answer>,
    stopping: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, once there is one; `None` when the loader is to stop.
    fn next(&self) -> Option<(u64, Job)> {
        let mut state = self.state();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(next) = state.jobs.next() {
                return Some(next);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A running loader. Dropping it ends its thread, after the job at hand; those that wait are dropped.
pub(crate) struct Loader {
    shared: Arc<Shared>,
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
        let (ready, is_ready) = crossbeam_channel::bounded(1);
        let shared = Arc::<Shared>::default();
        let works_on = shared.clone();
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
                    work(&*registry, &works_on, &mut notify);
                }
            })
            .map_err(|e| Error::unavailable(format!("the loader's thread: {e}")))?;
        let loader = Loader {
            shared,
            thread: Some(thread),
        };
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(Error::internal("the loader's thread ended at its start")))?;
        Ok(loader)
    }

    /// Hands a job over, to be done in the turn of its client. The ticket is the caller's own number for it.
    pub(crate) fn ask(&self, client: ReplyTo, ticket: u64, job: Job) {
        self.shared.state().jobs.push(client, (ticket, job));
        self.shared.changed.notify_one();
    }

    /// Takes back a job that nobody needs any more. `false` if it has begun: then its answer comes.
    pub(crate) fn withdraw(&self, client: &ReplyTo, ticket: u64) -> bool {
        let mut state = self.shared.state();
        let gone = state.jobs.withdraw(client, |(its, _)| *its == ticket);
        !gone.is_empty()
    }

    /// Takes back every [`Job::Resolve`] of a client that has not begun: their tickets.
    pub(crate) fn withdraw_lookups(&self, client: &ReplyTo) -> Vec<u64> {
        let mut state = self.shared.state();
        let gone = state
            .jobs
            .withdraw(client, |(_, job)| matches!(job, Job::Resolve(_)));
        gone.into_iter().map(|(ticket, _)| ticket).collect()
    }

    /// The answer to a job that the notifier named; each can be taken once.
    pub(crate) fn take(&self, ticket: u64) -> Option<Answer> {
        self.shared.state().answers.remove(&ticket)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It catches what jobs do; a panic of its own was printed.
            let _ = thread.join();
        }
    }
}

fn work(registry: &impl Describe, shared: &Shared, notify: &mut impl FnMut(u64)) {
    // Answers of which nobody could be told yet. Nearly always empty again at once.
    let mut untold = Vec::new();
    while let Some((ticket, job)) = shared.next() {
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
        shared.state().answers.insert(ticket, answer);
        untold.push(ticket);
        untold.retain(|ticket| !(told(*ticket, notify) || told(*ticket, notify)));
    }
}

/// Whether the notifier came through. Those who wait for this job, and for all later ones, need this thread.
fn told(ticket: u64, notify: &mut impl FnMut(u64)) -> bool {
    match catch_unwind(AssertUnwindSafe(|| notify(ticket))) {
        Ok(()) => true,
        Err(panic) => {
            tracing::error!(
                error = panic_message(&*panic),
                "the loader could not say that it is done"
            );
            forget(panic);
            false
        }
    }
}

/// A strange file may panic its reader; the next one must still find a loader.
fn caught<T>(name: &str, job: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        let error = Error::internal(format!(
            "model {name:?}: loading it panicked: {}",
            panic_message(&*panic)
        ));
        forget(panic);
        Err(error)
    })
}

/// Drops what a panic carried, which may panic in its turn.
fn forget(panic: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another); // there is no end to this
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{Receiver, Sender};

    use super::*;
    use crate::message::Params;

    const LIMIT: Duration = Duration::from_secs(20);

    fn lookup(name: &str) -> Arc<Lookup> {
        Arc::new(Lookup::of(Some(name), &Params::new()))
    }

    fn client(number: u8) -> ReplyTo {
        ReplyTo([number; 16])
    }

    /// Says what it is asked, and answers only when it is told to.
    struct Slow {
        started: Sender<String>,
        go: Receiver<()>,
    }

    impl Slow {
        fn new() -> (Arc<Slow>, Receiver<String>, Sender<()>) {
            let (started, has_started) = crossbeam_channel::unbounded();
            let (may_go, go) = crossbeam_channel::unbounded();
            (Arc::new(Slow { started, go }), has_started, may_go)
        }
    }

    impl Describe for Slow {
        fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>> {
            let _ = self.started.send(lookup.name().to_owned());
            let _ = self.go.recv();
            Err(Error::not_found("none"))
        }

        fn load(&self, lookup: &Lookup) -> Result<Arc<Description>> {
            self.resolve(lookup)
        }

        fn unload(&self, _: &Lookup) -> Result<Vec<ModelId>> {
            std::panic::panic_any(Nested);
        }
    }

    /// What a nasty panic carries.
    struct Nested;

    impl Drop for Nested {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    #[test]
    fn a_stop_does_not_wait_for_the_jobs_that_wait() {
        let (slow, has_started, may_go) = Slow::new();
        let loader = Loader::start(slow, || Ok(|_| ())).unwrap();
        for ticket in 0..5 {
            loader.ask(client(0), ticket, Job::Resolve(lookup("a")));
        }
        has_started.recv_timeout(LIMIT).unwrap();
        let shared = loader.shared.clone();
        let drops = std::thread::spawn(move || drop(loader));
        while !shared.state().stopping {
            std::thread::yield_now();
        }
        for _ in 0..5 {
            // Nobody listens any more once the loader has ended.
            let _ = may_go.send(());
        }
        drops.join().unwrap();
        assert_eq!(
            has_started.try_iter().count(),
            0,
            "jobs that were begun after the stop"
        );
    }

    #[test]
    fn another_clients_first_job_is_next_behind_the_one_at_hand() {
        let (slow, has_started, may_go) = Slow::new();
        let loader = Loader::start(slow, || Ok(|_| ())).unwrap();
        for ticket in 0..1_000 {
            loader.ask(client(0), ticket, Job::Resolve(lookup("flood")));
        }
        assert_eq!(has_started.recv_timeout(LIMIT).unwrap(), "flood");
        loader.ask(client(1), 1_000, Job::Resolve(lookup("honest")));
        may_go.send(()).unwrap();
        assert_eq!(has_started.recv_timeout(LIMIT).unwrap(), "honest");
        assert_eq!(loader.withdraw_lookups(&client(0)).len(), 999);
        assert!(!loader.withdraw(&client(1), 1_000), "it has begun");
        drop(may_go);
    }

    #[test]
    fn a_panic_outside_a_job_leaves_nobody_waiting() {
        let (slow, has_started, may_go) = Slow::new();
        let (notified, tickets) = crossbeam_channel::unbounded();
        let mut calls = 0;
        let notifier = move |ticket| {
            calls += 1;
            // The first job is not told of while it is the only one, the others at the second try.
            if calls == 1 || calls == 2 || calls == 4 {
                std::panic::panic_any(Nested);
            }
            notified.send(ticket).unwrap();
        };
        let loader = Loader::start(slow, move || Ok(notifier)).unwrap();
        drop(may_go);
        loader.ask(client(0), 1, Job::Resolve(lookup("a")));
        loader.ask(client(0), 2, Job::Unload(lookup("a")));
        let mut told: Vec<u64> = (0..2)
            .map(|_| tickets.recv_timeout(LIMIT).unwrap())
            .collect();
        told.sort_unstable();
        assert_eq!(told, [1, 2]);
        assert!(matches!(loader.take(1), Some(Answer::Described(Err(_)))));
        assert!(matches!(loader.take(2), Some(Answer::Unloaded(Err(_)))));
        assert_eq!(has_started.try_iter().count(), 1);
    }
}
