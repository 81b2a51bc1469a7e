//! Checks that a shared library's file is complete: opening one that is cut short would end the process.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Refuses a file that ends before its own header says: the loader would map it and die of SIGBUS.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming the file and both lengths.
pub(crate) fn check_whole(file: &Path) -> Result<()> {
    let mut head = [0u8; 64];
    let unreadable = |e| Error::precondition(format!("{}: {e}", file.display()));
    let mut opened = File::open(file).map_err(unreadable)?;
    let length = opened.metadata().map_err(unreadable)?.len();
    if opened.read_exact(&mut head).is_err() {
        return Err(Error::precondition(format!(
            "{} is no library: it has {length} bytes",
            file.display()
        )));
    }
    // Little-endian ELF64; the loader itself refuses what it does not know.
    if head.starts_with(b"\x7fELF\x02\x01") {
        let field = |at: usize, size: usize| {
            head[at..at + size]
                .iter()
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        // The section headers (offset, size of one, how many), which stand last in a file.
        let end = field(0x28, 8).saturating_add(field(0x3a, 2) * field(0x3c, 2));
        if end > length {
            return Err(Error::precondition(format!(
                "{} is cut short: it has {length} bytes of {end}",
                file.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_library_that_was_cut_short_is_refused_before_it_is_mapped() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("libonnxruntime.so");
        let mut head = vec![0u8; 4096];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[0x28..0x30].copy_from_slice(&29_000_000u64.to_le_bytes());
        head[0x3a] = 64;
        head[0x3c] = 30;
        fs::write(&file, &head).unwrap();
        let e = check_whole(&file).unwrap_err();
        assert!(e.message().contains("4096 bytes of 29001920"), "{e}");
        fs::write(&file, b"hello").unwrap();
        let e = check_whole(&file).unwrap_err();
        assert!(e.message().contains("no library"), "{e}");
    }
}
