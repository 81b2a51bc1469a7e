//! From what a request names to a file: how models are looked up, and which paths are allowed.
//!
//! ```text
//! model "digits"      run-script-dir/digits           a file
//!                     run-script-dir/digits.proxy     JSON that says how to serve an ONNX file
//!                     run-script-dir/digits.onnx
//!                     run-script-dir/digits/          VERSION/model.onnx, the highest version
//! model "digits/3"    run-script-dir/digits/3/        model.onnx: that version
//! ```
//! Paths are put together as text first (`.` and `..` taken out), so that nothing outside the roots is ever touched,
//! not even to see whether it is there. Then links are followed, and where they lead is checked again.

use std::fs::{self, FileType};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::source::file_name;
use crate::error::{Error, Result};
use crate::message::Params;

/// The parameter by which the ancestor's clients name a model.
const MODEL_PROXY_PATH: &str = "model_proxy_path";

/// A proxy is a page of JSON.
const MOST_PROXY_BYTES: u64 = 1 << 20;

/// What decides which model a request gets, and whether it may: equal lookups have equal answers as long as no file
/// changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lookup {
    model: Option<String>,
    paths: Vec<(String, Value)>,
}

impl Lookup {
    /// Takes from a request what matters: its model's name, and every parameter whose key ends in `_path`.
    pub fn of(model: Option<&str>, params: &Params) -> Lookup {
        Lookup {
            model: model.map(str::to_owned),
            paths: params
                .iter()
                .filter(|(key, _)| key.ends_with("_path"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// What to call the model in messages.
    pub fn name(&self) -> &str {
        let by_path = || {
            self.paths
                .iter()
                .find(|(key, _)| key == MODEL_PROXY_PATH)
                .and_then(|(_, value)| value.as_str())
        };
        self.model.as_deref().or_else(by_path).unwrap_or_default()
    }
}

/// How a proxy overrules what the file's shapes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Rows {
    /// Requests may be split and put together.
    Independent,
    /// The model gets each request whole.
    Whole,
}

/// A model's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The ONNX file, links followed.
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) rows: Option<Rows>,
}

/// The directories that paths may lead into.
#[derive(Debug)]
pub(super) struct Roots {
    /// As it was given, for messages.
    shown: String,
    /// The run-script directory first; each as given and with links followed.
    roots: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    given: PathBuf,
    real: PathBuf,
}

impl Root {
    fn of(path: &Path, flag: &str) -> Result<Root> {
        let real = path
            .canonicalize()
            .map_err(|e| Error::precondition(format!("{flag} {}: {e}", path.display())))?;
        if !real.is_dir() {
            return Err(Error::precondition(format!(
                "{flag} {}: expected a directory",
                path.display()
            )));
        }
        let given = std::path::absolute(path).unwrap_or_else(|_| real.clone());
        Ok(Root {
            given: normal(&given).unwrap_or_else(|| real.clone()),
            real,
        })
    }
}

impl Roots {
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the flag, if one of them is not a directory.
    pub(super) fn new(run_script_dir: &Path, allowed: &[PathBuf]) -> Result<Roots> {
        let mut roots = vec![Root::of(run_script_dir, "--run-script-dir")?];
        for path in allowed {
            roots.push(Root::of(path, "--allow-path")?);
        }
        Ok(Roots {
            shown: run_script_dir.display().to_string(),
            roots,
        })
    }

    /// The file of the model that a request names. Checks every other path of the request too.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` no model named, or two different ones, or a path that is none · `PERMISSION_DENIED` ·
    /// `NOT_FOUND` · `FAILED_PRECONDITION` something there that is no model.
    pub(super) fn find(&self, lookup: &Lookup) -> Result<Found> {
        let mut by_path = None;
        for (key, value) in &lookup.paths {
            let Value::String(text) = value else {
                return Err(Error::invalid(format!(
                    "parameter {key:?} is {}, expected a path as a string",
                    kind_of(value)
                )));
            };
            let target = self.entry(key, text)?;
            if key == MODEL_PROXY_PATH {
                by_path = Some((text.as_str(), target));
            }
        }
        let by_name = match &lookup.model {
            Some(name) => Some((name.as_str(), self.named(name)?)),
            None => None,
        };
        let (name, target) = match (by_name, by_path) {
            (Some((name, a)), Some((text, b))) if a.path != b.path => {
                return Err(Error::invalid(format!(
                    "model {name:?} and {MODEL_PROXY_PATH} {text:?} are different models; give one of them"
                )));
            }
            (Some(found), _) | (None, Some(found)) => found,
            (None, None) => {
                return Err(Error::invalid(format!(
                    "no model is named: give `model` (or the parameter {MODEL_PROXY_PATH:?}), a file below {} \
                     without its ending",
                    self.shown
                )));
            }
        };
        self.model(name, target)
    }

    /// Where a model's name leads: the first of the places that holds something.
    fn named(&self, name: &str) -> Result<Target> {
        let base = self.inside("model", name)?;
        if self
            .roots
            .iter()
            .any(|root| root.given == base || root.real == base)
        {
            return Err(Error::invalid(format!(
                "model {name:?} is the directory of the models itself; name one of them"
            )));
        }
        let exact = self.real("model", name, &base);
        if let Ok(target) = &exact
            && target.kind.is_file()
        {
            return exact;
        }
        for ending in [".proxy", ".onnx"] {
            let mut with_ending = base.clone().into_os_string();
            with_ending.push(ending);
            match self.real("model", name, Path::new(&with_ending)) {
                Err(e) if e.code() == crate::ErrorCode::NotFound => {}
                result => return result,
            }
        }
        exact.map_err(|e| {
            if e.code() == crate::ErrorCode::NotFound {
                Error::not_found(format!(
                    "model {name:?}: {} has neither that file nor {name}.proxy, {name}.onnx or {name}/",
                    self.shown
                ))
            } else {
                e
            }
        })
    }

    /// What a path parameter leads to.
    fn entry(&self, key: &str, text: &str) -> Result<Target> {
        let path = self.inside(key, text)?;
        self.real(key, text, &path)
    }

    /// A path as text, below one of the roots. Touches no disk.
    fn inside(&self, key: &str, text: &str) -> Result<PathBuf> {
        if text.is_empty() || text.contains('\0') {
            return Err(Error::invalid(format!(
                "{key} is {text:?}, expected the path of a file"
            )));
        }
        let start = self.roots.first().map(|root| root.real.as_path());
        let joined = start.unwrap_or(Path::new("/")).join(text);
        normal(&joined)
            .filter(|path| {
                self.roots
                    .iter()
                    .any(|root| path.starts_with(&root.real) || path.starts_with(&root.given))
            })
            .ok_or_else(|| self.denied(key, text))
    }

    /// What is there, links followed, if it is still below one of the roots.
    fn real(&self, key: &str, text: &str, path: &Path) -> Result<Target> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if is_absence(&e) => {
                return Err(Error::not_found(format!(
                    "{key} {text:?}: there is no such file below {}",
                    self.shown
                )));
            }
            Err(e) => return Err(Error::precondition(format!("{key} {text:?}: {e}"))),
        };
        if !self.roots.iter().any(|root| real.starts_with(&root.real)) {
            return Err(self.denied(key, text));
        }
        let kind = fs::metadata(&real)
            .map_err(|e| Error::precondition(format!("{key} {text:?}: {e}")))?
            .file_type();
        // Opening a FIFO or a device would wait for somebody, or do something.
        if !kind.is_file() && !kind.is_dir() {
            return Err(Error::precondition(format!(
                "{key} {text:?} is neither a file nor a directory"
            )));
        }
        Ok(Target { path: real, kind })
    }

    fn denied(&self, key: &str, text: &str) -> Error {
        Error::denied(format!(
            "{key} {text:?} leads out of {}; the server's --allow-path allows further directories",
            self.shown
        ))
    }

    /// The ONNX file that a target is or stands for.
    fn model(&self, name: &str, target: Target) -> Result<Found> {
        let found = |path, version| Found {
            path,
            name: name.to_owned(),
            version,
            rows: None,
        };
        if target.kind.is_dir() {
            let (path, version) = self.newest(name, &target.path)?;
            return Ok(found(path, version));
        }
        if is_pickle(&target.path)? {
            return Err(Error::precondition(format!(
                "{} is a Python pickle, which would run whatever code is in it and is never loaded; export the model \
                 to ONNX, or write a JSON proxy: {{\"mdm\":1,\"onnx\":\"NAME.onnx\"}}",
                file_name(&target.path)
            )));
        }
        if target
            .path
            .extension()
            .is_some_and(|ending| ending == "proxy")
        {
            let proxy = read_proxy(&target.path)?;
            let folder = target.path.parent().unwrap_or(Path::new("/"));
            let text = folder.join(&proxy.onnx).to_string_lossy().into_owned();
            let place = |e: Error| e.context(file_name(&target.path));
            let onnx = self
                .inside("onnx", &text)
                .map_err(|_| self.denied("onnx", &proxy.onnx))
                .and_then(|path| self.real("onnx", &proxy.onnx, &path))
                .map_err(place)?;
            let (path, version) = if onnx.kind.is_dir() {
                self.newest(&proxy.onnx, &onnx.path)?
            } else {
                (onnx.path, "1".to_owned())
            };
            return Ok(Found {
                rows: proxy.rows,
                ..found(path, version)
            });
        }
        Ok(found(target.path, "1".to_owned()))
    }

    /// The file of a repository folder: `model.onnx` in it, or in the subfolder with the highest number.
    fn newest(&self, name: &str, folder: &Path) -> Result<(PathBuf, String)> {
        let number = |path: &Path| -> Option<u64> { path.file_name()?.to_str()?.parse().ok() };
        let direct = folder.join("model.onnx");
        let path = if direct.exists() {
            Some((number(folder), direct))
        } else {
            fs::read_dir(folder)
                .map_err(|e| Error::precondition(format!("model {name:?}: {e}")))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter_map(|path| Some((number(&path)?, path.join("model.onnx"))))
                .filter(|(_, path)| path.exists())
                .max()
                .map(|(version, path)| (Some(version), path))
        };
        let Some((version, path)) = path else {
            return Err(Error::not_found(format!(
                "model {name:?}: the folder has no VERSION/model.onnx, VERSION a number"
            )));
        };
        let target = self.real("model", name, &path)?;
        if !target.kind.is_file() {
            return Err(Error::precondition(format!(
                "model {name:?}: model.onnx is no file"
            )));
        }
        Ok((target.path, version.unwrap_or(1).to_string()))
    }
}

/// Something that is there and may be used.
struct Target {
    path: PathBuf,
    kind: FileType,
}

/// A proxy file, as far as this version serves it.
#[derive(Debug, Deserialize)]
struct Proxy {
    onnx: String,
    #[serde(default)]
    rows: Option<Rows>,
}

fn read_proxy(path: &Path) -> Result<Proxy> {
    let name = file_name(path);
    let fail = |why: String| Error::precondition(format!("{name}: {why}"));
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MOST_PROXY_BYTES + 1).read_to_end(&mut text))
        .map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > MOST_PROXY_BYTES {
        return Err(fail(format!(
            "a proxy has at most {MOST_PROXY_BYTES} bytes of JSON"
        )));
    }
    let value: Value = serde_json::from_slice(&text).map_err(|e| {
        fail(format!(
            "expected JSON such as {{\"mdm\":1,\"onnx\":\"NAME.onnx\"}}, and it is none ({e}); proxies of \
             Python programs have to be exported anew"
        ))
    })?;
    let Some(object) = value.as_object() else {
        return Err(fail(format!(
            "expected a JSON object, got {}",
            kind_of(&value)
        )));
    };
    if object.get("mdm").and_then(Value::as_u64) != Some(1) {
        return Err(fail(format!(
            "expected \"mdm\":1, the proxy format of this version, got {}",
            object.get("mdm").unwrap_or(&Value::Null)
        )));
    }
    if let Some(key) = object
        .keys()
        .find(|key| !["mdm", "onnx", "rows"].contains(&key.as_str()))
    {
        return Err(fail(format!("{key:?} is not supported by this version")));
    }
    Proxy::deserialize(value).map_err(|e| fail(e.to_string()))
}

/// Pickles of protocol 2 and later start so; no ONNX file and no JSON does.
fn is_pickle(path: &Path) -> Result<bool> {
    let mut first = [0u8; 1];
    let read = fs::File::open(path)
        .and_then(|mut file| file.read(&mut first))
        .map_err(|e| Error::precondition(format!("cannot read {}: {e}", file_name(path))))?;
    Ok(read == 1 && first[0] == 0x80)
}

/// A path without `.` and `..`. `None` where `..` leads above the root.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                normal.push(component);
            }
        }
    }
    Some(normal)
}

fn is_absence(error: &io::Error) -> bool {
    // A file in place of a folder: what is asked for below it is not there either. A name that no file can have too.
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
