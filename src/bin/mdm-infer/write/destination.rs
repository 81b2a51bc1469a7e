//! The file that is being written: a temporary one beside the one it becomes, or standard output.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Seek, SeekFrom, Stdout, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::read::is_standard;

const BUFFER: usize = 256 << 10;

/// Where bytes go.
pub enum Destination {
    /// A new file, which gets its name once it is whole.
    File(Partial),
    /// A pipe or a device, which has its name.
    Pipe(BufWriter<File>),
    StandardOutput(BufWriter<Stdout>),
}

/// A file that is not whole yet. It is removed if it never is.
pub struct Partial {
    file: BufWriter<File>,
    partial: PathBuf,
    path: PathBuf,
    is_whole: bool,
}

impl Destination {
    /// Begins a file of that name.
    pub fn create(path: &Path) -> Result<Destination> {
        let place = || path.display().to_string();
        if is_standard(path) {
            let out = BufWriter::with_capacity(BUFFER, stdout());
            return Ok(Destination::StandardOutput(out));
        }
        // Nothing takes the name of a pipe or a device.
        let is_special = |metadata: Metadata| !metadata.is_file() && !metadata.is_dir();
        if fs::metadata(path).is_ok_and(is_special) {
            let file = File::options().write(true).open(path);
            let file = BufWriter::with_capacity(BUFFER, file.with_context(place)?);
            return Ok(Destination::Pipe(file));
        }
        // Two that write the same file at once do not write into one.
        let mut partial = path.to_owned().into_os_string();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create_new(&partial).with_context(place)?;
        remove_at_signal(partial.clone());
        Ok(Destination::File(Partial {
            file: BufWriter::with_capacity(BUFFER, file),
            partial,
            path: path.to_owned(),
            is_whole: false,
        }))
    }

    /// Whether what was written can be gone back to.
    pub fn can_seek(&self) -> bool {
        matches!(self, Destination::File(_))
    }

    /// The file, where it can be sought in.
    pub fn file(&mut self) -> Option<&mut BufWriter<File>> {
        match self {
            Destination::File(partial) => Some(&mut partial.file),
            Destination::Pipe(_) | Destination::StandardOutput(_) => None,
        }
    }

    /// Writes over the beginning, as the last thing.
    pub fn write_at_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file().ok_or(io::ErrorKind::NotSeekable)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(bytes)
    }

    /// The file is whole: it gets its name.
    pub fn commit(mut self) -> Result<()> {
        self.flush()?;
        if let Destination::File(partial) = &mut self {
            fs::rename(&partial.partial, &partial.path)?;
            partial.is_whole = true;
        }
        Ok(())
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Destination::File(partial) => partial.file.write(bytes),
            Destination::Pipe(pipe) => pipe.write(bytes),
            Destination::StandardOutput(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Destination::File(partial) => partial.file.flush(),
            Destination::Pipe(pipe) => pipe.flush(),
            Destination::StandardOutput(out) => out.flush(),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_whole {
            // Nothing can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// A signal that ends the program takes the file with it, as long as it has this name.
fn remove_at_signal(partial: PathBuf) {
    // Without it the file stays where it is, under a name that says what it is.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else {
        return;
    };
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _ = fs::remove_file(&partial);
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
}

/// Whether output and input are one file, whatever they are called; `-` is standard output and input.
pub fn is_same_file(output: &Path, input: &Path) -> bool {
    let output = match is_standard(output) {
        true => standard(stdout().as_fd()),
        false => fs::metadata(output).ok(),
    };
    let input = match is_standard(input) {
        true => standard(stdin().as_fd()),
        false => fs::metadata(input).ok(),
    };
    match (output, input) {
        // A terminal may well be both.
        (Some(output), Some(input)) => {
            output.is_file() && (output.dev(), output.ino()) == (input.dev(), input.ino())
        }
        _ => false,
    }
}

fn standard(end: BorrowedFd<'_>) -> Option<Metadata> {
    File::from(end.try_clone_to_owned().ok()?).metadata().ok()
}
