//! Where a worker's sessions run, and all that differs from device to device.
//!
//! A further execution provider (ROCm, TensorRT, OpenVINO, CoreML) is a variant of [`Device`] with its line in each of
//! the methods below, and the feature of that name for `ort` in `Cargo.toml`. The compiler points to each of them but
//! [`Device::parse`]; nothing outside this file asks which device it is. The tests add one more provider in this way.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ort::ep::{
    ArbitrarilyConfigurableExecutionProvider, CUDA, ExecutionProvider, ExecutionProviderDispatch,
};

use crate::error::{Error, Result};

/// Where a worker's sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor: `-1` or `cpu` in a device map.
    Cpu,
    /// A GPU of that number, through the CUDA execution provider: `0` or `cuda:0` in a device map.
    Cuda(u32),
    /// Another provider, for tests: `mock:0` in a device map.
    #[cfg(test)]
    Mock(u32),
}

/// The highest number of a device.
const MOST_NUMBER: u32 = u16::MAX as u32;

/// For people and for plugins: `cpu`, `cuda:0`. [`Device::parse`] reads it back.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            #[cfg(test)]
            Device::Mock(number) => write!(f, "mock:{number}"),
        }
    }
}

impl Device {
    /// An entry of a device map: `-1` or `cpu`, a GPU's number such as `0`, or a provider and a number, such as `cuda:0`.
    ///
    /// # Errors
    /// What is accepted.
    pub fn parse(text: &str) -> std::result::Result<Device, String> {
        let unknown = || {
            format!(
                "{text:?} is no device: expected -1 or cpu for the processor, or a GPU such as 0 or cuda:0; several are \
                 joined by commas, as in 0,1"
            )
        };
        let (provider, digits) = match text {
            "-1" | "cpu" => return Ok(Device::Cpu),
            // A bare number has always been one of CUDA's.
            text => text.split_once(':').unwrap_or(("cuda", text)),
        };
        let device = match provider {
            "cuda" => Device::Cuda,
            #[cfg(test)]
            "mock" => Device::Mock,
            _ => return Err(unknown()),
        };
        // Digits only: `u32::from_str` would take "+1" too.
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(unknown());
        }
        let number = digits.parse().ok().filter(|n| *n <= MOST_NUMBER);
        let number =
            number.ok_or_else(|| format!("{digits} is no GPU's number: at most {MOST_NUMBER}"))?;
        Ok(device(number))
    }

    /// Its shortest entry in a device map, as settings and errors show it.
    pub(crate) fn entry(self) -> String {
        match self {
            Device::Cpu => "-1".to_owned(),
            Device::Cuda(number) => number.to_string(),
            #[cfg(test)]
            Device::Mock(_) => self.to_string(),
        }
    }

    /// Whether it is there, as far as that can be told without a session on it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming what is missing: the provider in the engine's `library`, a driver, that number.
    pub(super) fn check(self, library: &Path) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(number) => {
                if !CUDA::is_available().unwrap_or(false) {
                    return Err(self.unusable(format_args!(
                        "{} has no CUDA; `make onnxruntime DEVICE=cuda` fetches one that has",
                        library.display()
                    )));
                }
                check_driver(number)
            }
            #[cfg(test)]
            Device::Mock(0) => Ok(()),
            #[cfg(test)]
            Device::Mock(_) => Err(self.unusable(format_args!(
                "there is only mock:0, as {} knows",
                library.display()
            ))),
        }
    }

    /// The execution provider for a session on it, with `limit_bytes` of its memory for the session's arena (0: the
    /// engine's own default) and the options that a proxy wants; none for the processor, on which every session can run.
    /// It fails rather than fall back to the processor.
    pub(super) fn provider(
        self,
        limit_bytes: usize,
        wanted: &BTreeMap<String, String>,
    ) -> Option<ExecutionProviderDispatch> {
        let provider = match self {
            Device::Cpu => return None,
            Device::Cuda(number) => {
                let number = i32::try_from(number).unwrap_or(i32::MAX);
                let mut provider = CUDA::default().with_device_id(number);
                if limit_bytes > 0 {
                    provider = provider.with_memory_limit(limit_bytes);
                }
                for (key, value) in wanted {
                    // The device map says which card a worker has, and not the proxy.
                    if key != "device_id" {
                        provider = provider.with_arbitrary_config(key, value);
                    }
                }
                provider.build()
            }
            #[cfg(test)]
            Device::Mock(_) => ort::ep::CPU::default().build(),
        };
        Some(provider.error_on_failure())
    }

    /// How many bytes of its memory a session's arena may take, if it may take that share of it; 0 is the engine's own
    /// choice.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if its memory is not known while a share of it is asked for.
    pub(crate) fn limit_bytes(self, share: f64) -> Result<usize> {
        let total = match self {
            Device::Cuda(number) if share > 0.0 => total_memory(number)?,
            Device::Cuda(_) | Device::Cpu => 0,
            #[cfg(test)]
            Device::Mock(_) => 1000,
        };
        Ok((total as f64 * share) as usize)
    }

    /// Whether its sessions can use weights that lie in the processor's memory.
    ///
    /// # Errors
    /// Why not, for the log.
    pub(super) fn shares_weights(self) -> std::result::Result<(), &'static str> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(_) => Err("it runs on a GPU"),
            #[cfg(test)]
            Device::Mock(_) => Err("it runs on a mock"),
        }
    }

    /// Whether a worker may have a second session of one thread, for short runs: where the worker's own threads compute.
    pub(super) fn has_short_runs(self) -> bool {
        match self {
            Device::Cpu => true,
            Device::Cuda(_) => false,
            #[cfg(test)]
            Device::Mock(_) => false,
        }
    }

    /// The error of a device that cannot be used.
    pub(super) fn unusable(self, why: impl fmt::Display) -> Error {
        Error::precondition(format!("device {}: {why}", self.entry()))
    }
}

/// How long `nvidia-smi` may take. It may have to power cards up, which takes seconds.
const SMI_TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses a card that the driver does not have.
///
/// # Errors
/// `FAILED_PRECONDITION`: no driver, or fewer cards.
fn check_driver(number: u32) -> Result<()> {
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
fn total_memory(number: u32) -> Result<usize> {
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
        // CUDA orders cards by speed unless this is set; on machines with different cards it has to be set for both.
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
    // The process has ended or hangs: a failure of either call would change nothing.
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
    use crate::config::DeviceMap;

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(parse_mebibytes("143771\n"), Some(143_771 * 1024 * 1024));
        assert_eq!(parse_mebibytes("No devices were found\n"), None);
        assert_eq!(parse_mebibytes(""), None);
    }

    #[test]
    fn a_device_has_a_name_and_keeps_its_number() {
        for (texts, device) in [
            (["-1", "cpu"], Device::Cpu),
            (["0", "cuda:0"], Device::Cuda(0)),
            (["65535", "cuda:65535"], Device::Cuda(65535)),
        ] {
            for text in texts {
                assert_eq!(Device::parse(text), Ok(device), "{text}");
            }
            assert_eq!(device.entry(), texts[0]);
            assert_eq!(device.to_string(), texts[1]);
        }
    }

    #[test]
    fn what_is_no_device_is_told_what_is_accepted() {
        for bad in [
            "", "a", "-2", "+1", "1.5", "CPU", "cpu:0", "cuda", "cuda:", "cuda:-1", "cuda:+1",
            "cuda:0:1", ":0", "rocm:0", "cuda: 0",
        ] {
            let e = Device::parse(bad).unwrap_err();
            for part in ["-1 or cpu", "0 or cuda:0"] {
                assert!(e.contains(part), "{bad:?}: {e}");
            }
        }
        for bad in ["70000", "cuda:70000", "99999999999999999999"] {
            let e = Device::parse(bad).unwrap_err();
            assert!(e.contains("at most 65535"), "{bad:?}: {e}");
        }
    }

    /// All that a further provider needs is in this file: the rest of the server serves it as it is.
    #[test]
    fn a_further_provider_is_this_file_alone() {
        let map: DeviceMap = "mock:0,cpu,mock:7".parse().unwrap();
        assert_eq!(map.0, [Device::Mock(0), Device::Cpu, Device::Mock(7)]);
        assert_eq!(map.to_string(), "mock:0,-1,mock:7");
        let [mock, cpu, missing] = map.0[..] else {
            panic!("{map:?}");
        };
        let library = Path::new("libonnxruntime.so");
        mock.check(library).unwrap();
        let e = missing.check(library).unwrap_err();
        assert!(
            e.message().starts_with("device mock:7: there is only"),
            "{e}"
        );
        assert!(mock.provider(0, &BTreeMap::new()).is_some());
        assert!(cpu.provider(0, &BTreeMap::new()).is_none());
        assert_eq!(
            (mock.limit_bytes(0.5), cpu.limit_bytes(0.5)),
            (Ok(500), Ok(0))
        );
        assert_eq!(mock.shares_weights(), Err("it runs on a mock"));
        assert!(!mock.has_short_runs() && cpu.has_short_runs());
    }
}
