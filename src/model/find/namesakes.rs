//! Models whose names coincide: which of them a name means, and what the others go by.

use std::path::{Path, PathBuf};

use super::roots::Roots;
use super::versions;
use crate::proxy::Proxy;

/// One of several things that one name could mean.
struct Namesake {
    /// What it is, for people.
    what: String,
    /// What requests call it nevertheless.
    by: Option<String>,
}

impl Roots {
    /// What to say of a model's name if others have it too; `method` is the one that the name ends in.
    pub(crate) fn namesakes(&self, name: &str, method: Option<&str>) -> Option<String> {
        let name = self.plain_name(name).ok()?;
        let name = name.as_str();
        let ending = method.and_then(|method| name.strip_suffix(method)?.strip_suffix('.'));
        let version = |name: &str| {
            let (folder, last) = name.rsplit_once('/')?;
            versions::number(last).map(|_| folder.to_owned())
        };
        let whole = ending.unwrap_or(name);
        let without_ending = [".proxy", ".onnx"]
            .iter()
            .find_map(|ending| whole.strip_suffix(ending));
        let names = [
            Some(name.to_owned()),
            ending.map(str::to_owned),
            without_ending.map(str::to_owned),
            version(whole),
        ];
        names.into_iter().flatten().find_map(|name| {
            let path = self.inside("model", &name).ok()?;
            said(&name, &all_of(&name, &path))
        })
    }
}

/// What a name could mean, in the order in which it is looked up: the first has it.
fn all_of(name: &str, path: &Path) -> Vec<Namesake> {
    let mut all = Vec::new();
    if path.is_file() {
        all.push(Namesake {
            what: format!("the file {name}"),
            by: None,
        });
    }
    for ending in ["proxy", "onnx"] {
        let file = format!("{name}.{ending}");
        if with_ending(path, ending).exists() {
            all.push(Namesake {
                what: file.clone(),
                by: Some(file),
            });
        }
    }
    if path.is_dir() && versions::served(path).is_some() {
        let by = match versions::direct(path) {
            Some(file) => file
                .file_name()
                .map(|file| file.to_string_lossy().into_owned()),
            None => Some("VERSION".to_owned()),
        };
        all.push(Namesake {
            what: format!("the folder {name}/"),
            by: by.map(|by| format!("{name}/{by}")),
        });
    }
    if let Some((base, method)) = name.rsplit_once('.')
        && let Some(file) = path
            .to_str()
            .and_then(|path| path.strip_suffix(&format!(".{method}")))
        && let Ok(proxy) = Proxy::read(&with_ending(Path::new(file), "proxy"))
        && proxy.methods().any(|own| own == method)
    {
        all.push(Namesake {
            what: format!("the method {method:?} of {base}.proxy"),
            by: Some(format!("{base}.proxy.{method}")),
        });
    }
    all
}

/// `None` if nothing else has the name.
fn said(name: &str, all: &[Namesake]) -> Option<String> {
    let [first, others @ ..] = all else {
        return None;
    };
    if others.is_empty() {
        return None;
    }
    let others = others.iter().map(|other| match &other.by {
        Some(by) => format!("{} goes by {by:?}", other.what),
        None => format!("{} cannot be asked for", other.what),
    });
    Some(format!(
        "{name:?} means {}, which comes first; {}",
        first.what,
        others.collect::<Vec<_>>().join(", ")
    ))
}

/// Not [`Path::with_extension`], which takes what is behind the last dot of a name for an ending.
pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}
