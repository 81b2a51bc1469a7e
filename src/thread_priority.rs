//! Who gets a core first where there are more threads than cores.
//!
//! A small request passes the ventilator, a worker and the sink, and where every core is inside a model each of them would
//! wait until a run ends. So workers are nicer than the loops around them, and those ask the system for short slices: a
//! thread with a short slice is put on a core sooner and is given less time on it. Neither takes a privilege.
//!
//! The ventilator also asks to come before clients, workers and the sink, the sink before workers and clients, and an express
//! worker, which runs small chunks in the middle of bulk's runs, before all of them ([`come_first`]), which the system grants only
//! to some. What the ventilator gains is room: the system spreads threads by weight, so those of clients leave the core of a heavy
//! one. Where cores are few they stay beside it otherwise, while the sink, awake on the other core, finds nothing to do.
//!
//! A loop that asks for news again and again, and yields its core in between, asks for long slices meanwhile. A yield puts a
//! thread off by one slice: with short ones the loop would be picked again dozens of times before those that have work.
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // a system call that no crate wraps

/// How long a thread keeps a core while others want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slice {
    /// The system's own, of some milliseconds.
    Usual,
    /// For a loop that serves all clients and has work.
    Short,
    /// For a loop that has none and stays awake.
    Long,
}

#[cfg(target_os = "linux")]
impl Slice {
    /// What the system is asked for; 0 is its own. It knows 0.1 to 100 ms.
    fn nanoseconds(self) -> u64 {
        match self {
            Slice::Usual => 0,
            Slice::Short => 100_000,
            Slice::Long => 20_000_000,
        }
    }
}

/// The system knows no more.
#[cfg(target_os = "linux")]
const MOST_NICE: i32 = 19;

/// Asks for such slices for this thread, and returns whether the system gives them: Linux knows them since 6.12, for
/// threads of the usual policies. Elsewhere nothing changes.
#[cfg(target_os = "linux")]
pub(crate) fn ask_for(slice: Slice) -> bool {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        // Whoever started the server may have chosen another; one that knows no slices refuses them.
        sched_flags: libc::SCHED_FLAG_KEEP_POLICY as u64,
        // As it is: to lower it would take a privilege.
        sched_nice: rustix::process::getpriority_process(None).unwrap_or(0),
        sched_priority: 0,
        sched_runtime: slice.nanoseconds(),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the call reads the structure, which lives until it returns and says its own size; 0 is this thread, and there
    // are no flags.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if refused != 0 {
        // The loops run as they did.
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, ?slice, "the system gives no such slices");
    }
    refused == 0
}

/// As above: there is no such thing.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ask_for(_slice: Slice) -> bool {
    false
}

/// How much the ventilator comes before others. With 20 a server answered fewer small requests than with 10.
pub(crate) const VENTILATOR_FIRST: u8 = 10;
/// How much an express worker does. It wakes the sink, which takes its core at once; the less its own run has counted by then, the
/// sooner it is given a core again, ahead of a worker that is inside bulk. Where no more than the ventilator's part is permitted,
/// it has that.
pub(crate) const EXPRESS_FIRST: u8 = 20;
/// How much the sink does. With as much as the ventilator a server answered fewer small requests than with nothing.
pub(crate) const SINK_FIRST: u8 = 4;
/// The system knows no less.
#[cfg(target_os = "linux")]
const LEAST_NICE: i32 = -20;

/// Asks that this thread comes before others by so much, and returns whether it does: the system grants that to who has the
/// capability `CAP_SYS_NICE`, or a limit of niceness that permits it. Without it nothing changes.
///
/// It is granted to all threads or to none: a limit that permits only the sink's part would put it before the ventilator. So each
/// asks for the ventilator's first. To give back a part of that takes no permission; who asks for more, and may not have it,
/// keeps the ventilator's.
#[cfg(target_os = "linux")]
pub(crate) fn come_first(by: u8) -> bool {
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    let set = |by: u8| {
        let first = (now - i32::from(by)).max(LEAST_NICE);
        rustix::process::setpriority_process(None, first)
    };
    let granted = set(VENTILATOR_FIRST).and_then(|()| set(by));
    if let Err(error) = granted {
        tracing::debug!(%error, by, "a thread's niceness stays higher: to lower it takes CAP_SYS_NICE or a limit for it");
    }
    granted.is_ok()
}

/// As [`be_nice`] there.
#[cfg(not(target_os = "linux"))]
pub(crate) fn come_first(_by: u8) -> bool {
    false
}

/// Lets others go first, more than so far: this thread, and those that it starts from now on.
#[cfg(target_os = "linux")]
pub(crate) fn be_nice(by: u8) {
    if by == 0 {
        return;
    }
    // `None` is this thread: niceness is kept for each.
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    let nicer = (now + i32::from(by)).min(MOST_NICE);
    if let Err(error) = rustix::process::setpriority_process(None, nicer) {
        tracing::debug!(%error, by, "a worker cannot let others go first");
    }
}

/// Niceness is the whole process's elsewhere, which would help nobody.
#[cfg(not(target_os = "linux"))]
pub(crate) fn be_nice(_by: u8) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn nice_of_this_thread() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn a_thread_that_is_nice_leaves_others_as_they_were() {
        let before = nice_of_this_thread();
        let inside = std::thread::spawn(|| {
            be_nice(3);
            let child = std::thread::spawn(nice_of_this_thread);
            let nicer = (nice_of_this_thread(), child.join().unwrap());
            be_nice(19);
            (nicer, nice_of_this_thread())
        });
        let nicer = (before + 3).min(MOST_NICE);
        assert_eq!(inside.join().unwrap(), ((nicer, nicer), MOST_NICE));
        assert_eq!(nice_of_this_thread(), before);
    }

    #[test]
    fn a_thread_that_comes_first_does_so_alone_or_not_at_all() {
        let before = nice_of_this_thread();
        let first = (before - i32::from(VENTILATOR_FIRST)).max(LEAST_NICE);
        let permitted = std::thread::spawn(move || {
            let set = rustix::process::setpriority_process(None, first);
            set.is_ok()
        });
        let inside = std::thread::spawn(|| {
            let granted = come_first(VENTILATOR_FIRST);
            (
                granted,
                nice_of_this_thread(),
                ask_for(Slice::Long),
                nice_of_this_thread(),
            )
        });
        let (granted, nice, _, kept) = inside.join().unwrap();
        assert_eq!(granted, permitted.join().unwrap());
        assert_eq!(nice, if granted { first } else { before });
        assert_eq!((kept, nice_of_this_thread()), (nice, before));
    }

    #[test]
    fn asking_for_slices_keeps_policy_and_niceness() {
        let thread = std::thread::spawn(|| {
            be_nice(1);
            let before = nice_of_this_thread();
            for slice in [Slice::Short, Slice::Long, Slice::Usual] {
                ask_for(slice);
                // SAFETY: asks for the policy of this thread.
                let policy = unsafe { libc::sched_getscheduler(0) };
                assert_eq!((policy, nice_of_this_thread()), (libc::SCHED_OTHER, before));
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_has_the_slices_that_it_asked_for() {
        let thread = std::thread::spawn(|| {
            [Slice::Short, Slice::Long].map(|slice| (ask_for(slice), slice_of_this_thread()))
        });
        for ((given, now), asked) in thread
            .join()
            .unwrap()
            .into_iter()
            .zip([100_000, 20_000_000])
        {
            // Before Linux 6.12 the call is taken and says nothing of slices.
            assert!(!given || now == asked || now == 0, "{now} ns");
        }
    }

    fn slice_of_this_thread() -> u64 {
        // SAFETY: a structure of numbers.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::sched_attr>();
        // SAFETY: the call writes the structure, which lives until it returns and is as long as it is told.
        let failed =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
        assert_eq!(failed, 0);
        attributes.sched_runtime
    }
}
