//! The thread that touches model files, so that the ventilator never does.
//!
//! Jobs wait in turn by client (`turns.rs`), and the thread blocks until there is one. When one is done, its answer is put
//! down under the job's ticket and the notifier says so: an inproc message, which wakes the ventilator's polling loop.
//! When it has found where a lookup leads, it keeps that turn until it is told what to do with it: nobody else's lookup
//! comes between a model's being found and its being read, so that no file is read twice.
//! Every job that is begun is answered: whatever panics, the thread goes on.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Lookup;
use super::key::FoundModel;
use super::store::{Read, Store};
use super::turns::JobTurns;
use crate::error::{Error, Result, panic_message};
use crate::faults::{self, Fault, FaultKind};
use crate::message::{ModelId, ReplyTo};

/// What the loader is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Whether the files that a lookup names besides its model may be used.
    Check(Arc<Lookup>),
    /// Where a lookup leads. The loader does nothing else before it is told how to go on ([`Loader::go_on`]).
    Find(Arc<Lookup>),
    /// Read what was found.
    Read(Reading),
}

/// A model that is to be read.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Its number from now on.
    pub(crate) id: ModelId,
    pub(crate) found: Arc<FoundModel>,
    /// It is not read if its files are those that one of these was read from.
    pub(crate) unless: Vec<ModelId>,
}

/// What came of a job.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Of [`Job::Check`].
    Checked(Result<()>),
    /// Of [`Job::Find`].
    Found(Result<Arc<FoundModel>>),
    /// Of [`Job::Read`].
    Read(Result<Read>),
}

/// What the loader's thread works with.
pub(crate) trait Files: Send + Sync + 'static {
    fn check(&self, lookup: &Lookup) -> Result<()>;
    fn find(&self, lookup: &Lookup) -> Result<Arc<FoundModel>>;
    fn read(&self, reading: &Reading) -> Result<Read>;
}

impl Files for Store {
    fn check(&self, lookup: &Lookup) -> Result<()> {
        self.check_parameters(lookup)
    }

    fn find(&self, lookup: &Lookup) -> Result<Arc<FoundModel>> {
        Store::find(self, lookup).map(Arc::new)
    }

    fn read(&self, reading: &Reading) -> Result<Read> {
        Store::read(self, reading.id, &reading.found, &reading.unless)
    }
}

impl Job {
    /// Does it. Whatever it meets, it has an answer.
    pub(crate) fn run(&self, files: &impl Files) -> Answer {
        match self {
            Job::Check(lookup) => {
                Answer::Checked(caught(lookup.name(), None, || files.check(lookup)))
            }
            Job::Find(lookup) => Answer::Found(caught(lookup.name(), None, || files.find(lookup))),
            Job::Read(reading) => {
                let found = &reading.found;
                Answer::Read(caught(found.name(), Some(found), || files.read(reading)))
            }
        }
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
    jobs: JobTurns<ReplyTo, (u64, Job)>,
    /// How turns go on that were kept: before all others. One at a time, but for what the ventilator could not be told.
    going_on: VecDeque<(u64, Job)>,
    /// Whose turn is kept: it was found where its lookup leads.
    kept: Option<u64>,
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
            if let Some(next) = state.going_on.pop_front() {
                return Some(next);
            }
            if state.kept.is_none()
                && let Some(next) = state.jobs.next()
            {
                return Some(next);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How long a loader that is dropped waits for the job at hand.
const EXIT_WAIT: Duration = Duration::from_secs(1);

/// A running loader. Dropping it ends its thread after the job at hand; those that wait are dropped. A job that takes
/// longer than a moment, as a file of many gigabytes or a plugin that reads its own, is left to the process's end.
pub(crate) struct Loader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Loader {
    /// Starts the thread, which makes its notifier itself: a socket lives and dies in the thread that made it. The
    /// notifier is called with a job's ticket once its answer can be taken. Returns when the notifier is made.
    ///
    /// # Errors
    /// The notifier's, or `UNAVAILABLE` if there is no thread to be had.
    pub(crate) fn start<N, F>(files: Arc<impl Files>, notifier: F) -> Result<Loader>
    where
        F: FnOnce() -> Result<N> + Send + 'static,
        N: FnMut(u64),
    {
        let (ready, is_ready) = bounded(1);
        let (running, ended) = bounded(0);
        let shared = Arc::<Shared>::default();
        let works_on = shared.clone();
        let thread = std::thread::Builder::new()
            .name("mdm-loader".to_owned())
            .spawn(move || {
                let _running: Sender<()> = running;
                let (notify, result) = match notifier() {
                    Ok(notify) => (Some(notify), Ok(())),
                    Err(e) => (None, Err(e)),
                };
                // The other end waits for exactly this.
                let _ = ready.send(result);
                if let Some(mut notify) = notify {
                    work(&*files, &works_on, &mut notify);
                }
            })
            .map_err(|e| Error::unavailable(format!("the loader's thread: {e}")))?;
        let loader = Loader {
            shared,
            thread: Some(thread),
            ended,
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

    /// The answer to a [`Job::Find`] was taken: this is done next, in the same turn, or the turn is over.
    pub(crate) fn go_on(&self, ticket: u64, job: Option<Job>) {
        let mut state = self.shared.state();
        if state.kept == Some(ticket) {
            state.kept = None;
        }
        state.going_on.extend(job.map(|job| (ticket, job)));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Takes back jobs of a client that nobody needs any more, as far as they have not begun: their tickets. The answers
    /// of the others come.
    pub(crate) fn withdraw(&self, client: &ReplyTo, tickets: &[u64]) -> Vec<u64> {
        let mut state = self.shared.state();
        let gone = state
            .jobs
            .withdraw(client, |(its, _)| tickets.binary_search(its).is_ok());
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
        if self.ended.recv_timeout(EXIT_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a model is still being read: it is not waited for");
        } else if let Some(thread) = self.thread.take() {
            // It catches what jobs do; a panic of its own was printed.
            let _ = thread.join();
        }
    }
}

fn work(files: &impl Files, shared: &Shared, notify: &mut impl FnMut(u64)) {
    // Answers of which nobody could be told yet. Nearly always empty again at once.
    let mut untold = Vec::new();
    while let Some((ticket, job)) = shared.next() {
        let answer = job.run(files);
        {
            let mut state = shared.state();
            state.kept = matches!(answer, Answer::Found(_)).then_some(ticket);
            state.answers.insert(ticket, answer);
        }
        faults::flush(faults::Flush::Due);
        untold.push(ticket);
        untold.retain(|ticket| !(told(*ticket, notify) || told(*ticket, notify)));
        if !untold.is_empty() {
            // Nobody can say how that turn goes on.
            shared.state().kept = None;
        }
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

/// A strange file may panic its reader; the next one must still find a loader. `INTERNAL` errors are logged; a bad request
/// is not.
fn caught<T>(name: &str, found: Option<&FoundModel>, job: impl FnOnce() -> Result<T>) -> Result<T> {
    faults::begin_call();
    let mut kind = FaultKind::Error;
    let result = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        kind = FaultKind::Panic;
        let shown = found.map_or_else(|| format!("{name:?}"), FoundModel::shown);
        let error = Error::internal(format!(
            "model {shown}: loading it panicked: {}",
            panic_message(&*panic)
        ));
        forget(panic);
        Err(error)
    });
    if let Err(error) = &result {
        faults::note(&Fault {
            model: name,
            version: &found.map_or_else(String::new, FoundModel::version),
            by: "loader",
            requests: &[],
            kind,
            error,
        });
    }
    result
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

    impl Files for Slow {
        fn check(&self, lookup: &Lookup) -> Result<()> {
            let _ = self.started.send(lookup.name().to_owned());
            let _ = self.go.recv();
            Err(Error::not_found("none"))
        }

        fn find(&self, lookup: &Lookup) -> Result<Arc<FoundModel>> {
            let _ = self.started.send(lookup.name().to_owned());
            Ok(Arc::new(FoundModel::made_up(lookup.name(), 1)))
        }

        fn read(&self, _: &Reading) -> Result<Read> {
            std::panic::panic_any(Nested);
        }
    }

    fn reading() -> Job {
        Job::Read(Reading {
            id: ModelId(1),
            found: Arc::new(FoundModel::made_up("a", 1)),
            unless: Vec::new(),
        })
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
            loader.ask(client(0), ticket, Job::Check(lookup("a")));
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
            loader.ask(client(0), ticket, Job::Check(lookup("flood")));
        }
        assert_eq!(has_started.recv_timeout(LIMIT).unwrap(), "flood");
        loader.ask(client(1), 1_000, Job::Check(lookup("honest")));
        may_go.send(()).unwrap();
        assert_eq!(has_started.recv_timeout(LIMIT).unwrap(), "honest");
        let tickets: Vec<u64> = (0..2_000).collect();
        assert_eq!(loader.withdraw(&client(0), &tickets).len(), 999);
        assert!(
            loader.withdraw(&client(1), &[1_000]).is_empty(),
            "it has begun"
        );
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
        loader.ask(client(0), 1, Job::Check(lookup("a")));
        loader.ask(client(0), 2, reading());
        let mut told: Vec<u64> = (0..2)
            .map(|_| tickets.recv_timeout(LIMIT).unwrap())
            .collect();
        told.sort_unstable();
        assert_eq!(told, [1, 2]);
        assert!(matches!(loader.take(1), Some(Answer::Checked(Err(_)))));
        assert!(matches!(loader.take(2), Some(Answer::Read(Err(_)))));
        assert_eq!(has_started.try_iter().count(), 1);
    }

    #[test]
    fn nobody_elses_lookup_comes_between_finding_a_model_and_reading_it() {
        let (slow, has_started, may_go) = Slow::new();
        let (notified, tickets) = crossbeam_channel::unbounded();
        let notifier = move |ticket| notified.send(ticket).unwrap();
        let loader = Loader::start(slow, move || Ok(notifier)).unwrap();
        drop(may_go);
        loader.ask(client(0), 1, Job::Find(lookup("a")));
        loader.ask(client(1), 2, Job::Find(lookup("b")));
        assert_eq!(tickets.recv_timeout(LIMIT).unwrap(), 1);
        // Long enough for the other lookup, if its turn came.
        assert!(tickets.recv_timeout(Duration::from_millis(50)).is_err());
        assert_eq!(has_started.try_iter().collect::<Vec<_>>(), ["a"]);
        loader.go_on(1, Some(reading()));
        assert_eq!(tickets.recv_timeout(LIMIT).unwrap(), 1);
        assert_eq!(tickets.recv_timeout(LIMIT).unwrap(), 2);
        loader.go_on(2, None);
        loader.ask(client(0), 3, Job::Find(lookup("c")));
        assert_eq!(tickets.recv_timeout(LIMIT).unwrap(), 3);
        // A stop does not wait to be told how the turn goes on.
    }

    #[test]
    fn a_find_of_which_nobody_could_be_told_keeps_no_turn() {
        let (slow, _, may_go) = Slow::new();
        let (notified, tickets) = crossbeam_channel::unbounded();
        let mut calls = 0;
        let notifier = move |ticket| {
            calls += 1;
            if calls <= 2 {
                panic!("no socket");
            }
            notified.send(ticket).unwrap();
        };
        let loader = Loader::start(slow, move || Ok(notifier)).unwrap();
        drop(may_go);
        loader.ask(client(0), 1, Job::Find(lookup("a")));
        loader.ask(client(0), 2, Job::Check(lookup("a")));
        let told = [(); 2].map(|()| tickets.recv_timeout(LIMIT).unwrap());
        assert_eq!(told, [1, 2]);
        loader.go_on(1, Some(reading()));
        assert_eq!(tickets.recv_timeout(LIMIT).unwrap(), 1);
    }

    #[test]
    fn the_loader_answers_by_ticket_and_survives_a_panic() {
        struct Panics;
        impl Files for Panics {
            fn check(&self, lookup: &Lookup) -> Result<()> {
                assert_ne!(lookup.name(), "bad", "a strange file");
                Ok(())
            }
            fn find(&self, lookup: &Lookup) -> Result<Arc<FoundModel>> {
                Err(Error::not_found(lookup.name()))
            }
            fn read(&self, reading: &Reading) -> Result<Read> {
                Ok(Read::Unchanged(reading.id))
            }
        }
        let (told, tickets) = crossbeam_channel::unbounded();
        let loader = Loader::start(Arc::new(Panics), move || {
            Ok(move |ticket| told.send(ticket).unwrap())
        })
        .unwrap();
        loader.ask(client(1), 7, Job::Check(lookup("bad")));
        loader.ask(client(1), 8, Job::Check(lookup("good")));
        loader.ask(client(1), 9, reading());
        let order = [(); 3].map(|()| tickets.recv_timeout(LIMIT).unwrap());
        assert_eq!(order, [7, 8, 9]);
        let Some(Answer::Checked(Err(e))) = loader.take(7) else {
            panic!("a panic is an answer")
        };
        assert_eq!(e.code(), crate::ErrorCode::Internal);
        assert!(e.message().contains("a strange file"), "{e}");
        assert!(matches!(loader.take(8), Some(Answer::Checked(Ok(())))));
        let read = loader.take(9);
        assert!(matches!(read, Some(Answer::Read(Ok(Read::Unchanged(id)))) if id == ModelId(1)));
        assert!(loader.take(9).is_none());
    }

    #[test]
    fn a_loader_whose_notifier_cannot_be_made_does_not_start() {
        let (slow, _, _) = Slow::new();
        let fail = || Err::<fn(u64), _>(Error::unavailable("no socket"));
        assert!(Loader::start(slow, fail).is_err());
    }

    #[test]
    fn a_loader_that_reads_for_long_is_not_waited_for() {
        let (slow, has_started, go) = Slow::new();
        let loader = Loader::start(slow, || Ok(|_| {})).unwrap();
        loader.ask(client(1), 1, Job::Find(lookup("large")));
        has_started.recv_timeout(LIMIT).expect("it is read");
        // Returns although nobody has let it go on.
        drop(loader);
        drop(go);
    }
}
