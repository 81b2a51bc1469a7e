//! A log whose file gets its name from the port: lines are kept until the port is bound, and then go to that file, or to
//! standard error where it cannot be written.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::NonBlocking;
use tracing_appender::rolling::RollingFileAppender;
use tracing_subscriber::fmt::MakeWriter;

use super::PRINTED;

/// Most bytes of lines that are kept for a file that has no name yet: a start takes a few hundred.
const MOST_KEPT_BYTES: usize = 1 << 20;

/// Stands ahead of a line: whether standard error has it already, from the layer for warnings or from the command.
const TOLD: u8 = b'!';
const NEW: u8 = b' ';

/// Where lines go.
enum Place {
    /// Nowhere yet: they are kept, with what stands ahead of each.
    Kept {
        lines: Vec<Vec<u8>>,
        bytes: usize,
    },
    File(RollingFileAppender),
    /// Lines that are not there already.
    StandardError,
}

/// Where lines go, as it is known now. Only the thread that writes the log and the one that binds the port use it.
#[derive(Clone)]
pub(super) struct Late(Arc<Mutex<Place>>);

impl Late {
    pub(super) fn new() -> Late {
        let (lines, bytes) = (Vec::new(), 0);
        Late(Arc::new(Mutex::new(Place::Kept { lines, bytes })))
    }

    /// From now on lines go to this file, or to standard error if there is none; those that were kept go first.
    pub(super) fn settle(&self, file: Option<RollingFileAppender>) {
        let mut place = self.place();
        let settled = file.map_or(Place::StandardError, Place::File);
        let before = std::mem::replace(&mut *place, settled);
        if let Place::Kept { lines, .. } = before {
            for line in lines {
                place.put(line);
            }
        }
    }

    /// A poisoned lock is used on: a place is whole between any two statements.
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn put(&mut self, line: Vec<u8>) {
        let Some((mark, text)) = line.split_first() else {
            return;
        };
        // A log that cannot be written is no reason to end, and there is nowhere else to say so.
        match self {
            Place::Kept { bytes, .. } if *bytes + line.len() > MOST_KEPT_BYTES => {}
            Place::Kept { lines, bytes } => {
                *bytes += line.len();
                lines.push(line);
            }
            Place::File(file) => drop(file.write_all(text)),
            Place::StandardError if *mark == TOLD => {}
            Place::StandardError => drop(io::stderr().write_all(text)),
        }
    }
}

/// What the log's thread writes to: it is given one line at a time.
impl Write for Late {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.place().put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut *self.place() {
            Place::File(file) => file.flush(),
            Place::StandardError => io::stderr().flush(),
            Place::Kept { .. } => Ok(()),
        }
    }
}

/// Puts what [`Place::put`] takes off ahead of each line on its way to the log's thread.
pub(super) struct Marked(pub(super) NonBlocking);

/// One line.
pub(super) struct MarkedLine {
    mark: u8,
    to: NonBlocking,
}

impl<'a> MakeWriter<'a> for Marked {
    type Writer = MarkedLine;

    fn make_writer(&'a self) -> MarkedLine {
        MarkedLine {
            mark: NEW,
            to: self.0.clone(),
        }
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> MarkedLine {
        let is_told = *of.level() <= Level::WARN || of.target() == PRINTED;
        MarkedLine {
            mark: if is_told { TOLD } else { NEW },
            to: self.0.clone(),
        }
    }
}

impl Write for MarkedLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let marked = [&[self.mark], line].concat();
        self.to.write_all(&marked)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &std::path::Path) -> RollingFileAppender {
        RollingFileAppender::builder()
            .filename_prefix("log")
            .build(dir)
            .unwrap()
    }

    #[test]
    fn lines_of_the_time_before_the_port_are_the_first_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut late = Late::new();
        for line in [" one\n", "!two\n"] {
            late.write_all(line.as_bytes()).unwrap();
        }
        late.settle(Some(file(dir.path())));
        late.write_all(b" three\n").unwrap();
        late.flush().unwrap();
        let written = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(written, "one\ntwo\nthree\n");
    }

    #[test]
    fn lines_that_nobody_takes_are_kept_up_to_a_bound() {
        let mut late = Late::new();
        for _ in 0..3000 {
            late.write_all(&[NEW; 1000]).unwrap();
        }
        let Place::Kept { lines, bytes } = &*late.place() else {
            panic!("they are kept");
        };
        assert!(*bytes <= MOST_KEPT_BYTES && lines.len() > 1000, "{bytes}");
    }
}
