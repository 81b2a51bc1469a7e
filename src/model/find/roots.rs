//! Finds the file that a request's model name or path means, and checks that the path is allowed.
//!
//! ```text
//! model "digits"      run-script-dir/digits           a file
//!                     run-script-dir/digits.proxy     JSON that says what to serve: src/proxy
//!                     run-script-dir/digits.onnx
//!                     run-script-dir/digits/          VERSION/model.proxy or model.onnx, the highest version
//! model "digits/3"    run-script-dir/digits/3/        model.proxy or model.onnx: that version
//! model "digits.top"  run-script-dir/digits.proxy     the method "top" that it lists
//! ```
//! A method may follow a version, `digits/3.top`; the parameter `model_version` asks for a version as well.
//!
//! Paths are put together as text first (`.` and `..` taken out), so that nothing outside the roots is ever touched,
//! not even to see whether it is there. Then links are followed, and where they lead is checked again.

use std::fs::{self, FileType};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::files::file_name;
use super::found::{Found, Stage, shown};
use super::lookup::{Lookup, MODEL_PROXY_PATH};
use super::namesakes::with_ending;
use super::versions;
use crate::error::{Error, ErrorCode, Result};
use crate::proxy::{EXAMPLES, Proxy, SessionOptions, StageRuns, StageText, kind_of};

/// By what a request names a model, without a look at any file: different spellings of a path are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alias {
    by: By,
    path: PathBuf,
    version: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Name,
    Path,
}

/// The directories that paths may lead into.
#[derive(Debug)]
pub(crate) struct Roots {
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
    pub(crate) fn new(run_script_dir: &Path, allowed: &[PathBuf]) -> Result<Roots> {
        let mut roots = vec![Root::of(run_script_dir, "--run-script-dir")?];
        for path in allowed {
            roots.push(Root::of(path, "--allow-path")?);
        }
        Ok(Roots {
            shown: run_script_dir.display().to_string(),
            roots,
        })
    }

    /// The run-script directory.
    pub(crate) fn first(&self) -> &Path {
        let first = self.roots.first();
        first.map_or(Path::new("/"), |root| &root.real)
    }

    /// The file of the model that a request names. Checks every other path of the request too.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` no model named, or two different ones, or a path that is none · `PERMISSION_DENIED` ·
    /// `NOT_FOUND` no such model, version or method, or no such file that the request names · `FAILED_PRECONDITION`
    /// something there that is no model, or that names a file that is not there.
    pub(crate) fn find(&self, lookup: &Lookup) -> Result<Found> {
        let asked = versions::asked(lookup.version.as_ref())?;
        self.check_parameters(lookup)?;
        let by_path = match lookup.paths.iter().find(|(key, _)| key == MODEL_PROXY_PATH) {
            Some((key, value)) => {
                let text = path_text(key, value)?;
                Some((text, self.entry(key, text)?))
            }
            None => None,
        };
        let mut method = None;
        let by_name = match &lookup.model {
            Some(name) => {
                let (target, named) = self.named_with_method(name)?;
                method = named;
                Some((name.as_str(), target))
            }
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
        let name = self.plain_name(name)?;
        let own_name = self.own_name(&name, method.as_deref(), &target);
        let found = self.model(&name, target, method.as_deref(), asked)?;
        Ok(Found {
            name: own_name,
            ..found
        })
    }

    /// What a model goes by, however it was asked for: `digits` for `digits/3`, whose version is said beside it, and for
    /// `digits.onnx`, unless `digits` is something else.
    fn own_name(&self, name: &str, method: Option<&str>, target: &Target) -> String {
        let ending = method.map_or(0, |method| method.len() + 1);
        let (base, method) = name.split_at(name.len().saturating_sub(ending));
        let own = match target.kind.is_dir() {
            true => base.rsplit_once('/').filter(|(folder, last)| {
                versions::number(last).is_some()
                    && versions::direct(&target.path).is_some()
                    && (self.named(folder))
                        .is_ok_and(|folder| Some(&*folder.path) == target.path.parent())
            }),
            false => base.rsplit_once('.').filter(|(own, ending)| {
                ["proxy", "onnx"].contains(ending)
                    && self.named(own).is_ok_and(|other| other.path == target.path)
            }),
        };
        let own = own.map_or(base, |(own, _)| own);
        format!("{own}{method}")
    }

    /// What a model is called, however its path was spelt: below the run-script directory, without `.` and `..`.
    pub(super) fn plain_name(&self, text: &str) -> Result<String> {
        let path = self.inside("model", text)?;
        let first = self.roots.first().into_iter();
        let below = first
            .flat_map(|root| [&root.real, &root.given])
            .find_map(|root| path.strip_prefix(root).ok());
        Ok(below.unwrap_or(&path).to_string_lossy().into_owned())
    }

    /// Checks the paths of a request that do not name its model.
    ///
    /// # Errors
    /// As [`Roots::find`], naming the key.
    pub(crate) fn check_parameters(&self, lookup: &Lookup) -> Result<()> {
        let own = |(key, _): &&(String, Value)| key != MODEL_PROXY_PATH;
        for (key, value) in lookup.paths.iter().filter(own) {
            self.entry(key, path_text(key, value)?)?;
        }
        Ok(())
    }

    /// By what a request names a model; `None` if [`Roots::find`] has to look at it.
    pub(crate) fn alias(&self, lookup: &Lookup) -> Option<Alias> {
        let by_path = lookup.paths.iter().find(|(key, _)| key == MODEL_PROXY_PATH);
        let (by, text) = match (&lookup.model, by_path) {
            (Some(name), None) => (By::Name, name.as_str()),
            (None, Some((_, value))) => (By::Path, value.as_str()?),
            _ => return None,
        };
        Some(Alias {
            by,
            path: self.inside("model", text).ok()?,
            version: versions::asked(lookup.version.as_ref()).ok()?,
        })
    }

    /// A file that a proxy or its state names, relative to the proxy's folder.
    ///
    /// # Errors
    /// As [`Roots::find`], naming the key; `FAILED_PRECONDITION` if it is not there.
    pub(crate) fn beside(&self, folder: &Path, key: &str, text: &str) -> Result<PathBuf> {
        let target = self.target_beside(folder, key, text).map_err(incomplete)?;
        Ok(target.path)
    }

    fn target_beside(&self, folder: &Path, key: &str, text: &str) -> Result<Target> {
        let joined = folder.join(text).to_string_lossy().into_owned();
        let path = match self.inside(key, if text.is_empty() { text } else { &joined }) {
            Ok(path) => path,
            // The folder is nobody's business who sends requests.
            Err(e) if text.is_empty() => return Err(e),
            Err(_) => return Err(self.denied(key, text)),
        };
        self.real(key, text, &path)
    }

    /// A file that a request's parameter names.
    ///
    /// # Errors
    /// As [`Roots::find`], naming the key.
    pub(crate) fn parameter(&self, key: &str, text: &str) -> Result<PathBuf> {
        Ok(self.entry(key, text)?.path)
    }

    /// As [`Roots::named`]; where nothing has that name, what is behind its last dot is a proxy's method.
    fn named_with_method(&self, name: &str) -> Result<(Target, Option<String>)> {
        let missing = match self.named(name) {
            Err(e) if e.code() == ErrorCode::NotFound => e,
            result => return Ok((result?, None)),
        };
        if let Some((base, method)) = name.rsplit_once('.')
            && !method.is_empty()
            && !method.contains('/')
            && let Ok(target) = self.named(base)
            && (is_proxy(&target) || target.kind.is_dir())
        {
            return Ok((target, Some(method.to_owned())));
        }
        Err(self.missing_version(name).unwrap_or(missing))
    }

    /// A name without the method that it ends in; one that has none as it is.
    #[cfg(feature = "gateway")]
    pub(crate) fn without_method<'a>(&self, name: &'a str) -> &'a str {
        if !name.contains('.') {
            return name;
        }
        let method = self.named_with_method(name).ok().and_then(|found| found.1);
        let ending = method.map_or(0, |method| method.len() + 1);
        &name[..name.len() - ending]
    }

    /// What to say of a name that asks for a version that is not there; `None` if it asks for something else.
    fn missing_version(&self, name: &str) -> Option<Error> {
        let (base, last) = name.rsplit_once('/')?;
        let target = self.named(base).ok()?;
        let number = last.split('.').next().unwrap_or_default();
        let folder = target.kind.is_dir().then_some(target.path)?;
        versions::missing_below(name, base, number, &folder)
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
        for ending in ["proxy", "onnx"] {
            match self.real("model", name, &with_ending(&base, ending)) {
                Err(e) if e.code() == ErrorCode::NotFound => {}
                result => return result,
            }
        }
        exact.map_err(|e| {
            if e.code() == ErrorCode::NotFound {
                Error::not_found(format!(
                    "model {name:?}: {} has neither that file nor {:?}, {:?} or {:?}",
                    self.shown,
                    format!("{name}.proxy"),
                    format!("{name}.onnx"),
                    format!("{name}/")
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
    pub(super) fn inside(&self, key: &str, text: &str) -> Result<PathBuf> {
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

    /// What a target is or stands for.
    fn model(
        &self,
        name: &str,
        target: Target,
        method: Option<&str>,
        asked: Option<u64>,
    ) -> Result<Found> {
        let (target, version) = if target.kind.is_dir() {
            let version = versions::choose(name, &target.path, asked)?;
            let file = self.version_file(name, &version.file)?;
            (file, version.number)
        } else if let Some(asked) = asked.filter(|asked| *asked != 1) {
            return Err(versions::only_version(name, asked));
        } else {
            (target, None)
        };
        let place = |e: Error| match version {
            Some(_) => e.context(format_args!("model {}", shown(name, version))),
            None => e,
        };
        if is_pickle(&target.path).map_err(place)? {
            return Err(place(Error::precondition(format!(
                "{} is a Python pickle, which would run whatever code is in it and is never loaded; export the model \
                 to ONNX, or write it as a plugin, and put a JSON proxy in its place: {EXAMPLES} (mdm::plugin::dump \
                 writes the latter)",
                file_name(&target.path)
            ))));
        }
        if is_proxy(&target) {
            return self
                .proxy(name, &target.path, method, version)
                .map_err(|e| place(e.context(file_name(&target.path))));
        }
        if let Some(method) = method {
            return Err(Error::not_found(format!(
                "model {}: {} is an ONNX file, which has no method {method:?}; a model.proxy lists methods",
                shown(name, version),
                file_name(&target.path)
            )));
        }
        Ok(Found::onnx(name, version, target.path, None))
    }

    fn version_file(&self, name: &str, path: &Path) -> Result<Target> {
        let target = self.real("model", name, path)?;
        if target.kind.is_file() {
            return Ok(target);
        }
        Err(Error::precondition(format!(
            "model {name:?}: {} is not a file",
            file_name(path)
        )))
    }

    /// What a proxy says; `in_folder` is the version whose folder it lies in.
    fn proxy(
        &self,
        name: &str,
        path: &Path,
        method: Option<&str>,
        in_folder: Option<u64>,
    ) -> Result<Found> {
        let (method, chain) = Proxy::read(path)?.method(method)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut version = None;
        let mut stages = Vec::with_capacity(chain.stages.len());
        let alone = chain.stages.len() == 1;
        for text in &chain.stages {
            let (stage, its_version) = self.stage(text, folder).map_err(|e| {
                if alone {
                    e
                } else {
                    e.context(format_args!("stage {:?}", text.shown()))
                }
            })?;
            if alone {
                version = its_version;
            }
            stages.push(stage);
        }
        let versioned = in_folder.is_some();
        let found = Found {
            name: name.to_owned(),
            version: in_folder.or(version),
            origin: path.to_owned(),
            method,
            rows: chain.rows,
            stages,
            warm_up: chain.warm_up,
        };
        // A proxy that adds nothing to its ONNX file is that file under another name. Not so one of several versions,
        // which may share the file.
        match found.stages.as_slice() {
            [only]
                if only.runs == StageRuns::Onnx(SessionOptions::default())
                    && found.method.is_none()
                    && found.warm_up.is_none()
                    && !versioned =>
            {
                let path = only.path.clone();
                Ok(Found::onnx(name, found.version, path, found.rows))
            }
            _ => Ok(found),
        }
    }

    fn stage(&self, text: &StageText, folder: &Path) -> Result<(Stage, Option<u64>)> {
        let (name, file) = (text.shown(), text.file.as_str());
        let stage = |path: PathBuf| Stage {
            name,
            path,
            folder: folder.to_owned(),
            runs: text.runs.clone(),
        };
        match &text.runs {
            StageRuns::Onnx(_) => {
                let target = self
                    .target_beside(folder, "onnx", file)
                    .map_err(incomplete)?;
                let (path, version) = if target.kind.is_dir() {
                    let version = versions::choose(file, &target.path, None).map_err(incomplete)?;
                    let target = self.version_file(file, &version.file).map_err(incomplete)?;
                    if is_proxy(&target) {
                        return Err(Error::precondition(format!(
                            "onnx {file:?} leads to a proxy, expected an ONNX file or versions of one"
                        )));
                    }
                    (target.path, version.number)
                } else {
                    (target.path, None)
                };
                Ok((stage(path), version))
            }
            StageRuns::Plugin { .. } => {
                let target =
                    self.target_beside(folder, "plugin", file)
                        .map_err(|e| match e.code() {
                            ErrorCode::NotFound => {
                                Error::precondition(format!("{}; has it been built?", e.message()))
                            }
                            _ => e,
                        })?;
                if target.kind.is_dir() {
                    return Err(Error::precondition(format!(
                        "plugin {file:?} is a directory, expected a shared library"
                    )));
                }
                Ok((stage(target.path), None))
            }
        }
    }
}

/// The proxy exists, but a file it names does not: FAILED_PRECONDITION, not NOT_FOUND.
fn incomplete(error: Error) -> Error {
    match error.code() {
        ErrorCode::NotFound => Error::precondition(error.message()),
        _ => error,
    }
}

/// Something that is there and may be used.
struct Target {
    path: PathBuf,
    kind: FileType,
}

fn path_text<'a>(key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| {
        Error::invalid(format!(
            "parameter {key:?} is {}, expected a path as a string",
            kind_of(value)
        ))
    })
}

fn is_proxy(target: &Target) -> bool {
    let ending = target.path.extension();
    target.kind.is_file() && ending.is_some_and(|ending| ending == "proxy")
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
