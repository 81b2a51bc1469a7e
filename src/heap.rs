//! Returns free pages of malloc's heaps to the system; `model/engine/memory.rs` says when.
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // a function of the C library that no crate wraps

/// Returns free pages to the system. It takes milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn trim() {
    // SAFETY: malloc_trim has no preconditions; it locks each heap while it looks for free pages.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries return free pages by themselves, or have no way to be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn trim() {}
