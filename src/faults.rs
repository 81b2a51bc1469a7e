//! What went wrong inside, in the log: panics with their places, and `INTERNAL` errors of models with the model, its version
//! and the requests that they were answers to. One line stands for many.
//!
//! The threads that run and read models have one table: the first fault of a model is a line at once; those of the next 10 s
//! are counted, on whichever thread they are, and are one line when it is over.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode};
use crate::message::RequestId;

/// The target of lines that a command prints itself, so that they go to the log file only.
pub const PRINTED: &str = "mdm::printed";
/// How long the faults of a model are counted before they are a line.
const WINDOW: Duration = Duration::from_secs(10);
/// Of panics the log has at most one line in that time.
const BETWEEN_PANICS: Duration = Duration::from_secs(1);
/// Requests that a line names.
const MOST_REQUESTS: usize = 8;

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
/// Whether it has faults that no line says yet. Threads look here before each wait, and take the lock only then.
static COUNTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Where this thread panicked last.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
    /// A plugin, or a thread that worked for this one, has panicked: the error that it is told as is the next fault.
    static PANICKED_ELSEWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Has every panic of this process written into the log, with its place. What panics print on standard error is limited
/// in rate as well. For a program that has a log; called once.
pub fn log_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        if let Some(withheld) = may_tell(Instant::now()) {
            tell(panic, place.as_deref(), withheld);
            print(panic);
        }
        PLACE.set(place);
    }));
}

fn tell(panic: &PanicHookInfo<'_>, place: Option<&str>, withheld: u64) {
    let thread = std::thread::current();
    tracing::error!(
        target: PRINTED,
        thread = thread.name().unwrap_or("?"),
        place = place.unwrap_or("?"),
        withheld,
        error = panic.payload_as_str().unwrap_or("no message"),
        "panicked"
    );
}

/// How many were not told since the last one that was, if another may be.
fn may_tell(now: Instant) -> Option<u64> {
    static TOLD: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    // Whoever waited here could wait for a thread that panics in its turn.
    let mut told = TOLD.try_lock().ok()?;
    let (last, withheld) = &mut *told;
    if last.is_some_and(|last| now.duration_since(last) < BETWEEN_PANICS) {
        *withheld += 1;
        return None;
    }
    *last = Some(now);
    Some(std::mem::take(withheld))
}

/// A panic that no `catch_unwind` of this thread sees is told to it as an error: a plugin's, which has a hook of its own,
/// or that of a thread that worked for this one. `place` is where, if that is known.
pub(crate) fn panicked_elsewhere(place: Option<&str>) {
    PLACE.set(place.map(str::to_owned));
    PANICKED_ELSEWHERE.set(true);
}

/// A model is called, or read, from here on: a panic that was noted before is not that call's.
pub(crate) fn begin_call() {
    PLACE.set(None);
    PANICKED_ELSEWHERE.set(false);
}

/// Where this thread panicked since it was asked last.
pub(crate) fn take_place() -> Option<String> {
    PLACE.take()
}

/// What went wrong with which model.
pub(crate) struct Fault<'a> {
    /// Its name.
    pub(crate) model: &'a str,
    /// Its version; "" where none is known.
    pub(crate) version: &'a str,
    /// Which thread's work it was.
    pub(crate) by: &'a str,
    /// The requests whose rows it had, by their clients' numbers.
    pub(crate) requests: &'a [RequestId],
    pub(crate) kind: FaultKind,
    pub(crate) error: &'a Error,
}

/// How it went wrong, as far as this thread saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// It was caught here.
    Panic,
    /// An error was returned; [`panicked_elsewhere`] knows whether a panic is behind it.
    Error,
}

/// Notes an error that is a model's or our own fault, and nobody's who sent a request: `INTERNAL`.
pub(crate) fn note(fault: &Fault<'_>) {
    if fault.error.code() == ErrorCode::Internal
        && let Some(line) = counted(fault)
    {
        line.write();
    }
}

/// The line to be written now, if the fault is not counted.
fn counted(fault: &Fault<'_>) -> Option<Line> {
    let kind = match PANICKED_ELSEWHERE.take() {
        true => FaultKind::Panic,
        false => fault.kind,
    };
    let line = Line::of(&Fault { kind, ..*fault }, take_place());
    with_table(|table| table.note(line, Instant::now()))
}

/// No line is written under the lock: the log may wait for a disk.
fn with_table<T>(change: impl FnOnce(&mut Table) -> T) -> T {
    let mut table = locked();
    let changed = change(&mut table);
    let counts = table.0.values().any(|window| window.last.is_some());
    COUNTED.store(counts, Ordering::Relaxed);
    changed
}

fn locked() -> MutexGuard<'static, Table> {
    // A panic between two statements leaves nothing that a later fault could not go on with.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a thread that waits is to call [`flush`], if faults were counted that no line says yet.
pub(crate) fn due() -> Option<Duration> {
    if !COUNTED.load(Ordering::Relaxed) {
        return None;
    }
    let table = locked();
    let until = table.0.values().filter(|window| window.last.is_some());
    let first = until.map(|window| window.until).min()?;
    Some(first.saturating_duration_since(Instant::now()))
}

/// Writes the lines whose time has come; all of them at the end.
pub(crate) fn flush(which: Flush) {
    if !COUNTED.load(Ordering::Relaxed) {
        return;
    }
    let lines = with_table(|table| table.flush(which, Instant::now()));
    lines.iter().for_each(Line::write);
}

/// Which lines are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Those whose time has come.
    Due,
    /// All: the thread ends.
    Everything,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    model: String,
    version: String,
    by: String,
    requests: Vec<RequestId>,
    place: Option<String>,
    error: String,
    kind: FaultKind,
    /// Faults that it stands for.
    count: u64,
}

impl Line {
    fn of(fault: &Fault<'_>, place: Option<String>) -> Line {
        Line {
            model: fault.model.to_owned(),
            version: fault.version.to_owned(),
            by: fault.by.to_owned(),
            requests: fault.requests.iter().take(MOST_REQUESTS).copied().collect(),
            place: place.filter(|_| fault.kind == FaultKind::Panic),
            error: fault.error.message().to_owned(),
            kind: fault.kind,
            count: 1,
        }
    }

    fn write(&self) {
        let requests: Vec<String> = self.requests.iter().map(ToString::to_string).collect();
        let requests = requests.join(",");
        let place = match &self.place {
            Some(place) => format!("{}, {place}", self.by),
            None => self.by.clone(),
        };
        let Line {
            model,
            version,
            error,
            count,
            ..
        } = self;
        match self.kind {
            FaultKind::Panic => {
                tracing::error!(
                    model,
                    version,
                    place,
                    request_id = requests,
                    count,
                    error,
                    "a model panicked"
                );
            }
            FaultKind::Error => {
                tracing::warn!(
                    model,
                    version,
                    place,
                    request_id = requests,
                    count,
                    error,
                    "a model failed"
                );
            }
        }
    }
}

/// The models that had faults lately, by name and version.
#[derive(Default)]
struct Table(HashMap<(String, String), Window>);

struct Window {
    until: Instant,
    /// What is said of those that were counted: the latest.
    last: Option<Line>,
}

impl Table {
    /// The line to be written now, if it is not counted.
    fn note(&mut self, line: Line, now: Instant) -> Option<Line> {
        let key = (line.model.clone(), line.version.clone());
        let Some(window) = self.0.get_mut(&key) else {
            // Those that are over, so that the table has no more entries than models had faults lately.
            self.0
                .retain(|_, window| window.last.is_some() || window.until > now);
            let until = now + WINDOW;
            self.0.insert(key, Window { until, last: None });
            return Some(line);
        };
        let before = window.last.take().map_or(0, |last| last.count);
        let line = Line {
            count: before + 1,
            ..line
        };
        if now < window.until {
            window.last = Some(line);
            return None;
        }
        window.until = now + WINDOW;
        Some(line)
    }

    fn flush(&mut self, which: Flush, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        for window in self.0.values_mut() {
            if which == Flush::Everything || window.until <= now {
                let line = window.last.take();
                if line.is_some() {
                    window.until = now + WINDOW;
                }
                lines.extend(line);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(model: &str, request: u64) -> Line {
        let error = Error::internal("the model panicked: ouch");
        let fault = Fault {
            model,
            version: "2",
            by: "worker 0",
            requests: &[RequestId(request)],
            kind: FaultKind::Panic,
            error: &error,
        };
        Line::of(&fault, Some("src/lib.rs:7:5".to_owned()))
    }

    #[test]
    fn many_faults_of_a_model_are_two_lines_with_the_count() {
        let (mut table, start) = (Table::default(), Instant::now());
        let first = table.note(line("a", 1), start).unwrap();
        assert_eq!((first.count, &first.requests[..]), (1, &[RequestId(1)][..]));
        for request in 2..=8_000 {
            assert_eq!(table.note(line("a", request), start), None);
        }
        assert!(
            table.note(line("b", 1), start).is_some(),
            "another model's first is said"
        );
        assert!(table.flush(Flush::Due, start).is_empty());
        let later = start + WINDOW;
        let rest = table.flush(Flush::Due, later);
        let [rest] = &rest[..] else {
            panic!("{rest:?}")
        };
        assert_eq!(
            (rest.count, &rest.requests[..]),
            (7_999, &[RequestId(8_000)][..])
        );
        assert!(table.flush(Flush::Everything, later).is_empty());
    }

    /// With a table for each of them, eight workers wrote eight lines of the same fault.
    #[test]
    fn the_first_fault_of_a_model_is_one_line_whichever_threads_have_it() {
        let error = Error::internal("it failed");
        let fault = Fault {
            model: "of several threads",
            version: "1",
            by: "worker",
            requests: &[],
            kind: FaultKind::Error,
            error: &error,
        };
        let said = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| counted(&fault))).collect();
            let said = threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap());
            said.count()
        });
        assert_eq!(said, 1);
    }

    /// A model whose own text had that word in it was logged as one that panicked, with the place of another panic.
    #[test]
    fn an_error_whose_text_says_panicked_is_no_panic() {
        let error = Error::internal("the operator panicked, says the model");
        let fault = |kind| Fault {
            model: "says that it panicked",
            version: "1",
            by: "worker",
            requests: &[],
            kind,
            error: &error,
        };
        let place = || Some("src/lib.rs:7:5".to_owned());
        let line = Line::of(&fault(FaultKind::Error), place());
        assert_eq!((line.kind, line.place), (FaultKind::Error, None));
        let line = Line::of(&fault(FaultKind::Panic), place());
        assert_eq!((line.kind, line.place), (FaultKind::Panic, place()));
    }

    #[test]
    fn a_panic_of_a_plugin_is_one_although_it_comes_as_an_error() {
        let error = Error::internal("ouch");
        let line = |model: &str| {
            counted(&Fault {
                model,
                version: "1",
                by: "worker",
                requests: &[],
                kind: FaultKind::Error,
                error: &error,
            })
            .unwrap()
        };
        panicked_elsewhere(Some("plugin.rs:3:1"));
        let first = line("a plugin that panicked");
        assert_eq!(first.kind, FaultKind::Panic);
        assert_eq!(first.place.as_deref(), Some("plugin.rs:3:1"));
        let next = line("the model after it");
        assert_eq!((next.kind, next.place), (FaultKind::Error, None));
        panicked_elsewhere(None);
        begin_call();
        assert_eq!(line("a later call").kind, FaultKind::Error);
    }

    #[test]
    fn what_was_counted_is_said_with_the_next_or_at_the_end() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.note(line("a", 1), start);
        table.note(line("a", 2), start);
        let next = table.note(line("a", 3), start + WINDOW).unwrap();
        assert_eq!(next.count, 2);
        table.note(line("a", 4), start + WINDOW);
        assert_eq!(table.flush(Flush::Everything, start + WINDOW)[0].count, 1);
    }

    #[test]
    fn models_that_are_well_again_are_forgotten() {
        let (mut table, start) = (Table::default(), Instant::now());
        for model in 0..100 {
            table.note(line(&model.to_string(), 1), start);
        }
        table.note(line("a", 1), start + 2 * WINDOW);
        assert_eq!(table.0.len(), 1);
    }
}
