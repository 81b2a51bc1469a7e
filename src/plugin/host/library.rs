//! Opens a plugin's file as a library, and checks its table.
//!
//! The system's loader maps a file, and knows it by its path and inode. So a file that is written over (as `cp` does)
//! changes under code that is running, and one that is replaced would still be the old one when it is opened again.
//! Therefore a private copy of the file is opened, in memory: whatever happens to the file, who uses it goes on, and
//! who opens it again gets the new one. A plugin's own dependencies are found as any program's, but not by `$ORIGIN`.
//!
//! Some libraries cannot be unloaded, such as one that has thread-local values to drop in a thread that lives. They are
//! kept, and used again where the same state of the file is opened: otherwise each load would take their memory once more.
#![allow(unsafe_code)] // opening a library runs its code, and its table is C

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use super::table;
use super::text::read_text;
use crate::error::{Error, Result};
use crate::plugin::abi;

/// Most entries of a plugin.
const MOST_ENTRIES: u32 = 64;
/// Most bytes of an entry's name.
const MOST_NAME_BYTES: u64 = 256;

/// An open library. It is closed when the last instance, and the last memory that it lent, is gone.
pub(crate) struct Library {
    /// The file's name, for messages.
    pub(super) name: String,
    entries: Vec<(String, abi::Entry)>,
    state: State,
    /// Until it is closed. Last: what is above refers into it.
    open: Option<Open>,
}

impl Drop for Library {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            end(self.state.clone(), open);
        }
    }
}

/// What the system's loader opened. The loader knows it by its path, which must not name another file meanwhile.
struct Open {
    handle: Handle,
    copy: PrivateCopy,
}

/// Closes what was opened, and keeps it if the system's loader does all the same: its path must never name another copy.
fn end(state: State, open: Open) {
    let Open { handle, copy } = open;
    drop(handle);
    // SAFETY: with NOLOAD no code is run; the handle only takes back the count that it added.
    let resident =
        unsafe { Handle::open(Some(copy.path.as_os_str()), libc::RTLD_NOLOAD | RTLD_NOW) };
    if let Ok(handle) = resident {
        let mut kept = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((state, Open { handle, copy }));
    }
}

/// A copy of a file that nobody else can change.
struct PrivateCopy {
    path: PathBuf,
    _file: File,
}

impl PrivateCopy {
    #[cfg(target_os = "linux")]
    fn of(file: &mut File, name: &str) -> io::Result<PrivateCopy> {
        use std::os::fd::{AsRawFd, FromRawFd};

        let name = std::ffi::CString::new(name)?;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let mut copy = unsafe { File::from_raw_fd(fd) };
        io::copy(file, &mut copy)?;
        Ok(PrivateCopy {
            path: format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
            _file: copy,
        })
    }

    /// In the folder for temporary files; removed as soon as it is open.
    #[cfg(not(target_os = "linux"))]
    fn of(file: &mut File, name: &str) -> io::Result<PrivateCopy> {
        use std::sync::atomic::{AtomicU64, Ordering};

        static COPIES: AtomicU64 = AtomicU64::new(0);
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let path = std::env::temp_dir().join(format!("mdm-{process}-{number}-{name}"));
        let mut copy = File::create_new(&path)?;
        io::copy(file, &mut copy)?;
        Ok(PrivateCopy { path, _file: copy })
    }
}

// SAFETY: the entries are functions and texts that the library promises not to change; which thread may call which
// function is kept by `call.rs`.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// One state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// What this process has opened, as long as it is in use.
static OPENED: Mutex<Vec<(State, Weak<Library>)>> = Mutex::new(Vec::new());

/// What nobody uses and the system's loader keeps.
static RESIDENT: Mutex<Vec<(State, Open)>> = Mutex::new(Vec::new());

impl Library {
    /// Opens a plugin's file, which runs its constructors and `mdm_plugin_entry`. A file that is open, and has not
    /// changed since, is shared.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the file: it is no library, it has no such symbol, its table is of another
    /// version or cut short.
    pub(crate) fn open(path: &Path) -> Result<Arc<Library>> {
        let name = file_name(path);
        let failed = |why: String| Error::precondition(format!("plugin {name:?}: {why}"));
        let unreadable = |e: io::Error| failed(e.to_string());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|(_, library)| library.strong_count() > 0);
        let mut file = File::open(path).map_err(unreadable)?;
        let state = State::of(&file).map_err(unreadable)?;
        let known = opened.iter().filter(|(known, _)| *known == state);
        if let Some(library) = known.filter_map(|(_, library)| library.upgrade()).next() {
            return Ok(library);
        }
        let open = match resident(&state) {
            Some(open) => open,
            None => load(&mut file, &name)?,
        };
        let entries = match entries(&name, &open.handle) {
            Ok(entries) => entries,
            Err(e) => {
                end(state, open);
                return Err(e);
            }
        };
        let library = Arc::new(Library {
            name,
            entries,
            state: state.clone(),
            open: Some(open),
        });
        opened.push((state, Arc::downgrade(&library)));
        Ok(library)
    }

    /// The entry of that name; without one the only entry, or "model".
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the entries that there are.
    pub(super) fn entry(&self, name: Option<&str>) -> Result<&(String, abi::Entry)> {
        let found = match name {
            Some(name) => self.entries.iter().find(|(other, _)| other == name),
            None => match self.entries.as_slice() {
                [only] => Some(only),
                several => several.iter().find(|(other, _)| other == "model"),
            },
        };
        found.ok_or_else(|| {
            let names: Vec<String> = self.entries.iter().map(|(n, _)| format!("{n:?}")).collect();
            let asked = match name {
                Some(name) => format!("it has no entry {name:?}"),
                None => "it has several entries, and the proxy's \"entry\" does not say which"
                    .to_owned(),
            };
            // Who wrote the proxy by a program needs to hear of the function that names an entry.
            let mends = match name {
                Some(_) => "",
                None => " (mdm::plugin::dump_entry writes a proxy that names one)",
            };
            Error::precondition(format!(
                "plugin {:?}: {asked}; expected one of {}{mends}",
                self.name,
                names.join(", ")
            ))
        })
    }
}

/// Has the system's loader open a copy of the file.
fn load(file: &mut File, name: &str) -> Result<Open> {
    let failed = |why: String| Error::precondition(format!("plugin {name:?}: {why}"));
    let copy = PrivateCopy::of(file, name).map_err(|e| failed(e.to_string()))?;
    // The copy's own path would mean nothing to a reader of the error.
    let shown = copy.path.to_string_lossy().into_owned();
    let named = |why: &str| why.replace(&shown, &format!("{name:?}"));
    crate::elf::check_whole(&copy.path).map_err(|e| failed(named(e.message())))?;
    // SAFETY: whoever may write into the server's directories may run code in it, the guide says (`guide/plugins.md`).
    let handle = unsafe { Handle::open(Some(copy.path.as_os_str()), RTLD_NOW | RTLD_LOCAL) };
    #[cfg(not(target_os = "linux"))]
    let _ = std::fs::remove_file(&copy.path); // it is open, or will not be
    let handle =
        handle.map_err(|e| failed(format!("the system cannot open it: {}", named(&causes(&e)))))?;
    Ok(Open { handle, copy })
}

/// The entries of a plugin's table.
fn entries(name: &str, handle: &Handle) -> Result<Vec<(String, abi::Entry)>> {
    let failed = |why: String| Error::precondition(format!("plugin {name:?}: {why}"));
    // SAFETY: a library that exports this name means this function by it; the pointer is used while it is open.
    let entry_point = unsafe { handle.get::<abi::EntryPoint>(abi::SYMBOL) }.map_err(|_| {
        failed(format!(
            "it does not export {}: it is not a plugin of this server (a Rust plugin says mdm::export_model!, a C \
             plugin defines that function, as mdm_model.h says)",
            abi::SYMBOL
        ))
    })?;
    // SAFETY: as above; our table lives as long as the process.
    let plugin = unsafe { entry_point(&raw const table::HOST) };
    if plugin.is_null() || !plugin.is_aligned() {
        return Err(failed(format!(
            "{} returned {}: it was built for another version of the interface than {}",
            abi::SYMBOL,
            if plugin.is_null() { "NULL" } else { "no table" },
            abi::ABI_VERSION
        )));
    }
    // SAFETY: every version's table begins with these two numbers.
    let (version, size) = unsafe { ((*plugin).abi_version, (*plugin).size as usize) };
    if version != abi::ABI_VERSION {
        return Err(failed(format!(
            "its table is of version {version} of the interface, expected {}; build it again against this \
             server's version",
            abi::ABI_VERSION
        )));
    }
    let expected = size_of::<abi::Plugin>();
    if size < expected {
        return Err(failed(format!(
            "its table is truncated: it has {size} bytes, expected at least {expected}"
        )));
    }
    // SAFETY: the table says that it is as long.
    let plugin = unsafe { *plugin };
    let stride = plugin.entry_size as usize;
    let least = size_of::<abi::Entry>();
    if stride < least || !stride.is_multiple_of(align_of::<abi::Entry>()) {
        return Err(failed(format!(
            "the entries of its table are truncated: they have {stride} bytes each, expected at least {least}"
        )));
    }
    if plugin.entry_count == 0 || plugin.entry_count > MOST_ENTRIES {
        return Err(failed(format!(
            "its table has {} entries, expected 1 to {MOST_ENTRIES}",
            plugin.entry_count
        )));
    }
    if plugin.entries.is_null() || !plugin.entries.is_aligned() {
        return Err(failed("its table's entries are NULL".to_owned()));
    }
    let mut entries: Vec<(String, abi::Entry)> = Vec::new();
    for index in 0..plugin.entry_count as usize {
        // SAFETY: the table says that so many entries of this size are there.
        let entry = unsafe { *plugin.entries.byte_add(index * stride) };
        // SAFETY: a plugin's texts are as long as they say.
        let entry_name = unsafe { read_text(entry.name, MOST_NAME_BYTES) }
            .map_err(|why| failed(format!("the name of entry {index} {why}")))?;
        if entry_name.is_empty() {
            return Err(failed(format!("the name of entry {index} is empty")));
        }
        for (function, missing) in [
            ("load", entry.load.is_none()),
            ("infer", entry.infer.is_none()),
        ] {
            if missing {
                return Err(failed(format!(
                    "entry {entry_name:?}: `{function}` is NULL"
                )));
            }
        }
        if entries.iter().any(|(other, _)| *other == entry_name) {
            return Err(failed(format!("it has two entries {entry_name:?}")));
        }
        entries.push((entry_name, entry));
    }
    Ok(entries)
}

/// A library of that state of a file, which could not be unloaded.
fn resident(state: &State) -> Option<Open> {
    let mut kept = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
    let index = kept.iter().position(|(known, _)| known == state)?;
    Some(kept.swap_remove(index).1)
}

impl State {
    fn of(file: &File) -> io::Result<State> {
        let metadata = file.metadata()?;
        Ok(State {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// An error with its causes: libloading keeps the loader's own words there.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        said = format!("{said}: {one}");
        cause = one.source();
    }
    said
}
