//! Gives memory back to the system after a model was opened.
//!
//! Opening a session parses the whole file, weights included, and throws that away. Pieces of up to 32 MiB come from
//! malloc's heaps, which keep what is freed: measured with 25 weights of 4 MB each, every session left 60 MB behind
//! that nobody used (8 sessions: 666 MB; trimmed: 232 MB). malloc gives such pages back when it is asked to.
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // malloc_trim is a foreign function, and no crate we use wraps it

/// Returns free pages of malloc's heaps to the system. Takes milliseconds; call it after loading, not per request.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn trim() {
    // SAFETY: malloc_trim has no preconditions; it locks each heap while it looks for free pages.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return free pages by themselves, or have no way to be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn trim() {}
