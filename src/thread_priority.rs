//! Who gets a core first where there are more threads than cores.
//!
//! A small request passes the ventilator, a worker and the sink, and where every core is inside a model each of them would
//! wait until a run ends. So workers are nicer than the loops around them, and those ask the system for short slices: a
//! thread with a short slice is put on a core sooner and is given less time on it. Neither takes a privilege.
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // a system call that no crate wraps

/// How long a loop that serves all clients keeps a core while others want it. The system's own slice is some milliseconds.
#[cfg(target_os = "linux")]
const SLICE_NS: u64 = 100_000;

/// The system knows no more.
#[cfg(target_os = "linux")]
const MOST_NICE: i32 = 19;

/// Asks for short slices for this thread. Linux knows them since 6.12; elsewhere nothing changes.
#[cfg(target_os = "linux")]
pub(crate) fn ask_for_short_slices() {
    // SAFETY: asks for the policy of this thread.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return; // whoever started the server chose another
    }
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        // As it is: to lower it would take a privilege.
        sched_nice: rustix::process::getpriority_process(None).unwrap_or(0),
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the call reads the structure, which lives until it returns and says its own size; 0 is this thread, and there
    // are no flags.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if refused != 0 {
        // The loops run as they did.
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the system gives no short slices");
    }
}

/// As above: there is no such thing.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ask_for_short_slices() {}

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
    fn asking_for_short_slices_keeps_policy_and_niceness() {
        let thread = std::thread::spawn(|| {
            ask_for_short_slices();
            // SAFETY: asks for the policy of this thread.
            (
                unsafe { libc::sched_getscheduler(0) },
                nice_of_this_thread(),
            )
        });
        let expected = (libc::SCHED_OTHER, nice_of_this_thread());
        assert_eq!(thread.join().unwrap(), expected);
    }
}
