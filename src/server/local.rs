//! The server's files in `--zeromq-sock-tmp-dir`: two local sockets, and a lock that keeps two servers apart.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long the files of a server that has said that it stopped may still be there: it waits as long for threads that are
/// inside a model.
const LAST_SERVER_WAIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether a file that is open is the one that the path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let same = || {
        let (open, there) = (file.metadata()?, std::fs::metadata(path)?);
        std::io::Result::Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
    };
    same().unwrap_or(false)
}

/// The files of one server. They are removed when it ends; a lock that outlived its server locks nothing.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    base: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl LocalFiles {
    /// Takes the files of that port for this server. The port is bound already, so only a server that is bound to another
    /// address could be using them.
    pub(crate) fn claim(dir: &Path, port: u16) -> Result<LocalFiles> {
        let base = dir.join(format!("mdm-{port}"));
        let path = base.with_extension("lock");
        let fail = |e: std::io::Error| {
            Error::precondition(format!(
                "--zeromq-sock-tmp-dir {dir:?}: {} cannot be made and locked: {e}; name a folder that this user may write to",
                path.display()
            ))
        };
        let until = Instant::now() + LAST_SERVER_WAIT;
        loop {
            let lock = File::create(&path).map_err(fail)?;
            match lock.try_lock() {
                // Whoever had it may have removed it since it was opened here, and what is gone keeps nobody out.
                Ok(()) if is_at(&lock, &path) => return Ok(LocalFiles { base, _lock: lock }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::precondition(format!(
                        "{}: another server holds it; give each its own --zeromq-sock-tmp-dir",
                        path.display()
                    )));
                }
                Err(TryLockError::Error(e)) => return Err(fail(e)),
            }
        }
    }

    /// Where requests arrive.
    pub(crate) fn path_in(&self) -> PathBuf {
        self.base.with_extension("in")
    }

    /// Where results leave.
    pub(crate) fn path_out(&self) -> PathBuf {
        self.base.with_extension("out")
    }

    /// Removes the files; some may be gone already.
    pub(crate) fn remove(&self) {
        for extension in ["in", "out", "lock"] {
            // The lock is still ours here.
            let _ = std::fs::remove_file(self.base.with_extension(extension));
        }
    }
}

impl Drop for LocalFiles {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_server_that_is_about_to_end_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let last = LocalFiles::claim(dir.path(), 5555).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(LOOK_EVERY * 3);
            drop(last);
        });
        let files = LocalFiles::claim(dir.path(), 5555).unwrap();
        ends.join().unwrap();
        assert!(is_at(&files._lock, &files.base.with_extension("lock")));
        let error = LocalFiles::claim(dir.path(), 5555).unwrap_err();
        assert!(
            error.message().contains("another server holds it"),
            "{error}"
        );
    }
}
