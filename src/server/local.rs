//! The server's files in `--zeromq-sock-tmp-dir`: two local sockets, and a lock that keeps two servers apart.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

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
        let lock = File::create(&path).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(LocalFiles { base, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::precondition(format!(
                "{}: another server holds it; give each its own --zeromq-sock-tmp-dir",
                path.display()
            ))),
            Err(TryLockError::Error(e)) => Err(fail(e)),
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
