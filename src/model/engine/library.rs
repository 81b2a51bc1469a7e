//! Finds the ONNX Runtime library: where it is looked for, in order, and what each place holds.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names that the system's loader is asked for when no folder of ours holds the library.
#[cfg(not(target_os = "macos"))]
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];
#[cfg(target_os = "macos")]
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.dylib", "libonnxruntime.1.dylib"];

/// A library to try, or a place where none is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// This file.
    File(PathBuf),
    /// This name, which the system's loader resolves.
    Name(&'static str),
    /// There is none in this folder.
    Nothing(PathBuf),
}

/// Where the search begins.
#[derive(Debug, Default)]
pub(crate) struct SearchStart {
    /// Where the running program is.
    pub(crate) executable: Option<PathBuf>,
    /// The working directory.
    pub(crate) working_dir: Option<PathBuf>,
    /// The roots of active Python environments. The one that the running program lies in comes before them.
    pub(crate) python: Vec<PathBuf>,
}

impl SearchStart {
    /// Those of this process.
    pub(crate) fn of_process() -> SearchStart {
        SearchStart {
            executable: env::current_exe().ok(),
            working_dir: env::current_dir().ok(),
            python: ["VIRTUAL_ENV", "CONDA_PREFIX"]
                .into_iter()
                .filter_map(env::var_os)
                .filter(|root| !root.is_empty())
                .map(PathBuf::from)
                .collect(),
        }
    }

    /// Every place to look in, in order.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let mut folders = Vec::new();
        if let Some(beside) = self.executable.as_deref().and_then(Path::parent) {
            folders.push(beside.to_owned());
            // Where `make install` puts it.
            if let Some(prefix) = beside.parent() {
                folders.push(prefix.join("lib/mdm"));
            }
        }
        let starts = [
            self.executable.as_deref().and_then(Path::parent),
            self.working_dir.as_deref(),
        ];
        for start in starts.into_iter().flatten() {
            folders.extend(start.ancestors().map(|folder| folder.join(".onnxruntime")));
        }
        // pip puts commands into its environment's bin: started by cron, systemd or an absolute path, nothing else tells
        // of that environment.
        let executable = self.executable.as_deref();
        let own = executable.and_then(|executable| executable.parent()?.parent());
        for root in own
            .into_iter()
            .chain(self.python.iter().map(PathBuf::as_path))
        {
            folders.extend(python_folders(root));
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        for folder in folders {
            let candidate = match library_in(&folder) {
                Some(file) => Candidate::File(file),
                None => Candidate::Nothing(folder),
            };
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        candidates.extend(SYSTEM_NAMES.map(Candidate::Name));
        candidates
    }
}

/// The file that an explicit path means: itself, or the library in that folder.
///
/// # Errors
/// `FAILED_PRECONDITION` if there is none.
pub(crate) fn explicit(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() {
        library_in(path).ok_or_else(|| {
            Error::precondition(format!(
                "ONNX Runtime: {} holds no {}",
                path.display(),
                if cfg!(target_os = "macos") {
                    "libonnxruntime*.dylib"
                } else {
                    "libonnxruntime.so*"
                }
            ))
        })?
    } else {
        path.to_owned()
    };
    // A relative path would be looked for beside the executable first.
    file.canonicalize()
        .map_err(|e| Error::precondition(format!("ONNX Runtime: {}: {e}", path.display())))
}

/// The library in a folder: of several versions the highest.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_library(name))
        .map(|name| (version(&name), folder.join(name)))
        .filter(|(_, path)| path.is_file())
        .max()
        .map(|(_, path)| path)
}

fn is_library(name: &str) -> bool {
    if cfg!(target_os = "macos") {
        name.starts_with("libonnxruntime")
            && name.ends_with(".dylib")
            && !name.contains("_providers")
    } else {
        name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
    }
}

/// The numbers in a file name, for comparison.
fn version(name: &str) -> Vec<u64> {
    name.split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Where Python environments keep their packages; Debian's own Python has dist-packages.
fn python_folders(root: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = ["lib", "lib64"]
        .into_iter()
        .filter_map(|lib| std::fs::read_dir(root.join(lib)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        })
        .collect();
    versions.sort();
    versions
        .into_iter()
        .flat_map(|path| ["site-packages", "dist-packages"].map(|kind| path.join(kind)))
        .map(|packages| packages.join("onnxruntime/capi"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        path
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn the_search_goes_outward_from_the_executable() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let start = SearchStart {
            executable: Some(touch(at("project/bin/mdm"))),
            working_dir: Some(at("elsewhere/deep")),
            python: vec![at("venv")],
        };
        let expected = [
            touch(at("project/bin/libonnxruntime.so.1.17.0")),
            touch(at("project/lib/mdm/libonnxruntime.so.1.18.0")),
            touch(at("project/.onnxruntime/libonnxruntime.so.1.9.0")),
            touch(at("elsewhere/.onnxruntime/libonnxruntime.so")),
            touch(at(
                "venv/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1",
            )),
        ];
        touch(at("project/bin/libonnxruntime_providers_cuda.so"));
        let candidates = start.candidates();
        let files: Vec<&PathBuf> = candidates
            .iter()
            .filter_map(|candidate| match candidate {
                Candidate::File(file) => Some(file),
                _ => None,
            })
            .filter(|file| file.starts_with(root.path()))
            .collect();
        assert_eq!(files, expected.iter().collect::<Vec<_>>());
        assert_eq!(candidates.last(), Some(&Candidate::Name(SYSTEM_NAMES[1])));
        // A higher version beside a lower one wins, by number and not by letter.
        let newer = touch(at("project/.onnxruntime/libonnxruntime.so.1.31.1"));
        assert!(start.candidates().contains(&Candidate::File(newer)));
    }
    #[test]
    #[cfg(not(target_os = "macos"))]
    fn a_command_finds_the_engine_of_the_environment_that_it_lies_in() {
        for packages in [
            "lib/python3.9/site-packages",
            "lib64/python3.13/site-packages",
            "lib/python3/dist-packages",
        ] {
            let root = tempfile::tempdir().unwrap();
            let at = |path: &str| root.path().join(path);
            let capi = format!("own/{packages}/onnxruntime/capi");
            let own = touch(at(&format!("{capi}/libonnxruntime.so.1.31.1")));
            touch(at(&format!("{capi}/libonnxruntime_providers_shared.so")));
            let active = "active/lib/python3.12/site-packages/onnxruntime/capi";
            let active = touch(at(&format!("{active}/libonnxruntime.so.1.30.0")));
            let start = SearchStart {
                executable: Some(touch(at("own/bin/mdm-server-start"))),
                working_dir: Some(at("elsewhere")),
                python: vec![at("active")],
            };
            let candidates = start.candidates();
            let files = candidates.iter().filter_map(|candidate| match candidate {
                Candidate::File(file) if file.starts_with(root.path()) => Some(file),
                _ => None,
            });
            assert_eq!(files.collect::<Vec<_>>(), [&own, &active]);
        }
    }
}
