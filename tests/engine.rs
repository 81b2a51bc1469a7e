//! Libraries that are not the engine: each is refused with a clear error, and the right one still loads afterwards.
//! Alone in its program, because a process loads one engine.

#[path = "common/within.rs"]
mod within;

use std::fs;
use std::path::{Path, PathBuf};

use mdm::ErrorCode::FailedPrecondition;
use mdm::model::{Engine, EngineLog};
use within::{LIMIT, within};

fn refused(library: &Path, why: &str) {
    let e = Engine::load(Some(library), EngineLog::Problems).unwrap_err();
    assert_eq!(e.code(), FailedPrecondition);
    assert!(e.message().contains(why), "{}: {e}", library.display());
    assert!(
        e.message().contains(&*library.to_string_lossy()),
        "the error names {}: {e}",
        library.display()
    );
}

/// A library that this process has mapped and that is not the engine.
#[cfg(target_os = "linux")]
fn another_library() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| path.to_string_lossy().contains("libc.so"))
}

#[cfg(not(target_os = "linux"))]
fn another_library() -> Option<PathBuf> {
    None
}

#[test]
fn what_is_not_the_engine_is_refused_and_the_engine_loads_afterwards() {
    within(LIMIT, || {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        refused(&at("nothing.so"), "No such file");
        refused(&at(""), "holds no libonnxruntime");
        fs::write(at("text.so"), "this is no library").unwrap();
        refused(&at("text.so"), "no library");
        fs::write(at("long.so"), "this is no library. ".repeat(100)).unwrap();
        refused(&at("long.so"), "cannot be used");
        if let Some(other) = another_library() {
            refused(&other, "not ONNX Runtime");
        }

        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".onnxruntime");
        if let Some(library) = library_in(&fetched) {
            let whole = fs::read(&library).unwrap();
            fs::write(at("short.so"), &whole[..whole.len() / 2]).unwrap();
            refused(&at("short.so"), "cut short");
            // A folder is searched.
            let engine = Engine::load(Some(&fetched), EngineLog::Problems).unwrap();
            assert_eq!(engine.library().file_name(), library.file_name());
        }
        let engine = Engine::load(None, EngineLog::Problems).unwrap();
        // One engine is loaded for good: every later call gives it.
        let again = Engine::load(Some(&at("nothing.so")), EngineLog::Problems).unwrap();
        assert_eq!(again.library(), engine.library());
    })
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libonnxruntime") && !name.contains("_providers")
        })
}
