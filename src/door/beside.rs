//! What takes its time runs on threads beside a door's: look-ups on one of their own, all else by size, callers in turn.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use foldhash::HashMap;
use tokio::sync::oneshot;

use super::submit::Caller;
use crate::error::{Error, Result};

/// Most threads of a door's thread: one for each kind of work.
pub(super) const THREADS: usize = Kind::ALL.len();
/// Work on at most so many bytes is short: some hundredths of a second.
const SHORT_BYTES: usize = 4 << 20;
/// Work on at most so many bytes is of medium length.
const MEDIUM_BYTES: usize = 32 << 20;

/// What has a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Looks at the models' folder, for which probes and metadata wait.
    LookUp,
    Short,
    Medium,
    Long,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::LookUp, Kind::Short, Kind::Medium, Kind::Long];

    /// That of work on so many bytes.
    fn of(bytes: usize) -> Kind {
        if bytes <= SHORT_BYTES {
            Kind::Short
        } else if bytes <= MEDIUM_BYTES {
            Kind::Medium
        } else {
            Kind::Long
        }
    }

    /// What its thread does, by what comes first. Longer work never has the thread of shorter, which so waits for shorter
    /// work alone; and none starves, since each kind comes first somewhere.
    fn does(self) -> &'static [Kind] {
        match self {
            Kind::LookUp => &[Kind::LookUp],
            Kind::Short => &[Kind::Short],
            Kind::Medium => &[Kind::Medium, Kind::Short],
            Kind::Long => &[Kind::Long, Kind::Medium, Kind::Short],
        }
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// Tasks of one kind: callers take turns, each with its own in their order.
#[derive(Default)]
struct Turns {
    callers: VecDeque<u64>,
    tasks: HashMap<u64, VecDeque<Task>>,
}

impl Turns {
    fn push(&mut self, caller: u64, task: Task) {
        let its = self.tasks.entry(caller).or_default();
        if its.is_empty() {
            self.callers.push_back(caller);
        }
        its.push_back(task);
    }

    fn pop(&mut self) -> Option<Task> {
        let caller = self.callers.pop_front()?;
        let its = self.tasks.get_mut(&caller)?;
        let task = its.pop_front();
        if its.is_empty() {
            self.tasks.remove(&caller);
        } else {
            self.callers.push_back(caller);
        }
        task
    }
}

/// What waits, and which kinds' threads run; both by kind.
#[derive(Default)]
struct Waiting {
    turns: [Turns; Kind::ALL.len()],
    runs: [bool; Kind::ALL.len()],
}

impl Waiting {
    /// What a kind's thread does next. If there is nothing, it counts as ended.
    fn next(&mut self, kind: Kind) -> Option<Task> {
        let mut does = kind.does().iter();
        let task = does.find_map(|kind| self.turns[*kind as usize].pop());
        self.runs[kind as usize] = task.is_some();
        task
    }
}

/// The threads beside one door's thread, and what waits for them. A thread is there while there is work for it.
#[derive(Default)]
pub(crate) struct Beside(Arc<Mutex<Waiting>>);

impl Beside {
    /// Begins work on so many bytes.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        caller: &Caller,
        bytes: usize,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Begun<T> {
        self.begin_of(Kind::of(bytes), caller, what)
    }

    /// Begins to look something up in the models' folder.
    pub(crate) fn look_up<T: Send + 'static>(
        &self,
        caller: &Caller,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Begun<T> {
        self.begin_of(Kind::LookUp, caller, what)
    }

    fn begin_of<T: Send + 'static>(
        &self,
        kind: Kind,
        caller: &Caller,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Begun<T> {
        let (tell, told) = oneshot::channel();
        let task = move || {
            // Nobody waits for it if its client has gone meanwhile.
            if !tell.is_closed() {
                let _ = tell.send(what()); // as above
            }
        };
        let mut waiting = lock(&self.0);
        waiting.turns[kind as usize].push(caller.number(), Box::new(task));
        let idle = Kind::ALL
            .into_iter()
            .find(|thread| thread.does().contains(&kind) && !waiting.runs[*thread as usize]);
        if let Some(thread) = idle {
            waiting.runs[thread as usize] = true;
            let all = self.0.clone();
            tokio::task::spawn_blocking(move || work(thread, &all));
        }
        Begun(told)
    }
}

/// The body of a kind's thread.
fn work(kind: Kind, all: &Mutex<Waiting>) {
    loop {
        // The lock is let go before the task runs.
        let next = lock(all).next(kind);
        let Some(task) = next else {
            return;
        };
        // Whoever waits is told by the channel that it took along; the panic itself was logged by the panic hook.
        let _ = catch_unwind(AssertUnwindSafe(task));
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // Tasks run outside the lock, and no update can be cut in half.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that was begun. Dropped before it runs, it is left out.
pub(crate) struct Begun<T>(oneshot::Receiver<T>);

impl<T> Future for Begun<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let done = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(done.map_err(|_| {
            Error::internal("a request could not be read or answered: what did it has panicked")
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.max_blocking_threads(THREADS).build().unwrap()
    }

    /// Work that goes on until its other end is dropped, and has begun.
    fn busy(beside: &Beside, caller: u64, bytes: usize) -> (mpsc::Sender<()>, Begun<()>) {
        let (go, goes) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let working = beside.begin(&Caller::new(caller), bytes, move || {
            begin.send(()).unwrap();
            let _ = goes.recv(); // it ends when the other end is dropped
        });
        begun.recv().unwrap();
        (go, working)
    }

    #[test]
    fn short_work_and_look_ups_pass_long_work_and_long_work_does_not_starve() {
        let beside = Beside::default();
        runtime().block_on(async {
            let one = Caller::new(1);
            let (long, _working) = busy(&beside, 1, usize::MAX);
            let behind = beside.begin(&one, usize::MAX, || "long");
            assert_eq!(beside.begin(&one, MEDIUM_BYTES, || 1).await.unwrap(), 1);
            let (_medium, _too) = busy(&beside, 1, MEDIUM_BYTES);
            assert_eq!(beside.begin(&one, SHORT_BYTES, || 2).await.unwrap(), 2);
            let (_short, _three) = busy(&beside, 1, SHORT_BYTES);
            let short = beside.begin(&one, 1, || "short");
            assert_eq!(beside.look_up(&one, || 3).await.unwrap(), 3);
            // The thread of what is long does that first, then what waits for others.
            drop(long);
            assert_eq!(behind.await.unwrap(), "long");
            assert_eq!(short.await.unwrap(), "short");
        });
    }

    #[test]
    fn callers_take_turns_and_what_nobody_waits_for_is_left_out() {
        let beside = Beside::default();
        runtime().block_on(async {
            let (go, working) = busy(&beside, 1, usize::MAX);
            let (note, noted) = mpsc::channel();
            let mut last = Vec::new();
            for (caller, name) in [(1, "a"), (1, "b"), (1, "left"), (2, "c"), (3, "d")] {
                let note = note.clone();
                let begun = beside.begin(&Caller::new(caller), usize::MAX, move || {
                    note.send(name).unwrap();
                });
                match name {
                    "left" => drop(begun),
                    _ => last.push(begun),
                }
            }
            drop((go, note));
            working.await.unwrap();
            for begun in last {
                begun.await.unwrap();
            }
            assert_eq!(noted.iter().collect::<String>(), "acdb");
        });
    }

    #[test]
    fn a_panic_is_told_and_the_thread_works_on() {
        let beside = Beside::default();
        runtime().block_on(async {
            let one = Caller::new(1);
            let panics = beside.begin(&one, usize::MAX, || panic!("as it should"));
            let behind = beside.begin(&one, usize::MAX, || 7);
            assert!(panics.await.is_err());
            assert_eq!(behind.await.unwrap(), 7);
        });
    }
}
