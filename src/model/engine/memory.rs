//! Gives memory back to the system after a model was opened.
//!
//! Opening a session parses the whole file, weights included, and throws that away. Pieces of up to 32 MiB come from
//! malloc's heaps, which keep what is freed. Measured with 25 weights of 4 MB each, eight sessions in eight threads:
//!
//! ```text
//! as it comes                         707 MB     each session leaves 60 MB behind
//! malloc_trim after each              295 MB     8 MB each: the top of a thread's own heap is never trimmed
//! and each opened in a passing thread 240 MB     the next such thread inherits that heap
//! ```

use crate::error::{Error, Result, panic_message};
use crate::faults;
pub(crate) use crate::heap::trim;

/// Runs a job that needs much memory for a moment in a thread of its own, and waits for it. When the thread ends, its
/// heap goes to the next one: so all such jobs use one heap, and not each worker's.
///
/// # Errors
/// `UNAVAILABLE` if there is no thread to be had, `INTERNAL` if the job panics.
pub(crate) fn in_passing<T: Send>(job: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("mdm-opening".to_owned())
            .spawn_scoped(scope, job)
            .map_err(|e| Error::unavailable(format!("no thread to open a model in: {e}")))?
            .join()
            .map_err(|panic| {
                faults::panicked_elsewhere(None);
                Error::internal(format!("opening panicked: {}", panic_message(&*panic)))
            })
    })
}
