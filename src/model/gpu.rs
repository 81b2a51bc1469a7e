//! What can be known of GPUs without linking CUDA: whether the driver has that card, and how much memory it has.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long `nvidia-smi` may take. It wakes cards that sleep, which takes seconds.
const SMI_TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses a card that the driver does not have.
///
/// # Errors
/// `FAILED_PRECONDITION`: no driver, or fewer cards.
pub(crate) fn check_driver(number: u32) -> Result<()> {
    // Under WSL the driver is this device and has no folder.
    if !cfg!(target_os = "linux") || Path::new("/dev/dxg").exists() {
        return Ok(());
    }
    let Ok(cards) = std::fs::read_dir("/proc/driver/nvidia/gpus") else {
        return Err(Error::precondition(format!(
            "device {number}: this machine has no NVIDIA driver; --device-map -1 runs on the processor"
        )));
    };
    let mut count = cards.count();
    // CUDA numbers only the cards that this variable shows.
    if let Some(visible) = visible_devices() {
        count = count.min(visible.len());
    }
    if (number as usize) < count {
        Ok(())
    } else {
        Err(Error::precondition(format!(
            "device {number}: there is no such GPU; expected a number below {count}"
        )))
    }
}

/// The memory of a card in bytes, as `nvidia-smi` reports it.
///
/// # Errors
/// `FAILED_PRECONDITION`: why it is not to be had, and what to do without it.
pub(crate) fn total_memory(number: u32) -> Result<usize> {
    let fail = |why: String| {
        Error::precondition(format!(
            "device {number}: its memory is not known ({why}); --gpu-memory-fraction 0 leaves it to the engine"
        ))
    };
    let card = visible_devices()
        .and_then(|visible| visible.into_iter().nth(number as usize))
        .unwrap_or_else(|| number.to_string());
    let mut child = Command::new("nvidia-smi")
        .args([
            "--query-gpu=memory.total",
            "--format=csv,noheader,nounits",
            "-i",
            &card,
        ])
        // CUDA's own default order is another: by speed. Machines with unlike cards set this for both.
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| fail(format!("nvidia-smi: {e}")))?;
    let (sender, output) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.read_to_string(&mut text);
            // Nobody listens after the time is up.
            let _ = sender.send(read.map(|_| text));
        });
    }
    let text = output.recv_timeout(SMI_TIMEOUT);
    // It has ended, or it never will: neither call can fail in a way that matters.
    let _ = child.kill();
    let _ = child.wait();
    let text = text
        .map_err(|_| fail("nvidia-smi does not answer".to_owned()))?
        .map_err(|e| fail(format!("nvidia-smi: {e}")))?;
    parse_mebibytes(&text)
        .ok_or_else(|| fail(format!("nvidia-smi says {:?}, expected MiB", text.trim())))
}

fn parse_mebibytes(text: &str) -> Option<usize> {
    text.lines()
        .next()?
        .trim()
        .parse::<usize>()
        .ok()?
        .checked_mul(1024 * 1024)
}

fn visible_devices() -> Option<Vec<String>> {
    let list = std::env::var("CUDA_VISIBLE_DEVICES").ok()?;
    Some(
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(parse_mebibytes("143771\n"), Some(143_771 * 1024 * 1024));
        assert_eq!(parse_mebibytes("No devices were found\n"), None);
        assert_eq!(parse_mebibytes(""), None);
    }
}
