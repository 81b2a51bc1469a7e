//! `mdm-model new`: writes the beginnings of a plugin that builds, tests itself and serves at once.
//!
//! What is written lies as text in `templates/`, with `{{words}}` for what differs.

mod ports;

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use mdm::model::Store;

use ports::Ports;

/// The C interface, which a plugin in C has beside it.
const HEADER: &str = include_str!("../../../model/mdm_model.h");
/// Rows for a first call of a model of texts.
const TEXTS: &str = "hello\nhow are you\n";

/// Names that Rust, cargo or the crate's own parts have taken.
const TAKEN: &str = " abstract alloc as async await become box break const continue core crate do dump dyn else enum \
    extern false final fn for gen if impl in let loop macro match mdm mod move mut override priv proc_macro pub ref \
    return self serde_json static std struct super test trait true try type typeof unsafe unsized use virtual where \
    while yield ";

#[derive(Args, Debug)]
pub struct NewFlags {
    /// The name of the folder that is made, of the library and of the model: a-z, 0-9, - and _
    #[arg(value_parser = name)]
    name: String,

    /// The language that the plugin is written in
    #[arg(long, value_enum)]
    plugin: Language,

    /// An ONNX file for the plugin to run; it is copied
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,

    /// For Rust: where the crate `mdm` lies, a checkout's folder or an address for git [default: the checkout that this
    /// command was built in]
    #[arg(long, value_name = "PATH|ADDRESS")]
    mdm: Option<String>,

    /// With --onnx: the ONNX Runtime library [default: looked for as the server does]
    #[arg(long, value_name = "PATH")]
    pub onnxruntime: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    C,
}

fn name(text: &str) -> Result<String, String> {
    let is_fit = text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'));
    if !is_fit {
        return Err("expected at most 64 of a-z, 0-9, - and _, a letter first".to_owned());
    }
    if TAKEN.contains(&format!(" {} ", text.replace('-', "_"))) {
        return Err("expected a name that Rust or MDM does not use itself".to_owned());
    }
    Ok(text.to_owned())
}

/// The ONNX file that a plugin is written around.
struct Onnx {
    file: String,
    ports: Ports,
    /// What its author may want to know: a way of being served that was perhaps not meant.
    notes: Vec<String>,
}

/// Writes the folder, or nothing: what goes wrong on the way takes it away again. `open` looks at models in a folder.
pub fn run(
    flags: &NewFlags,
    open: impl FnOnce(PathBuf) -> anyhow::Result<Store>,
) -> anyhow::Result<ExitCode> {
    // What can be refused, is refused before there is a folder.
    let source = match flags.plugin {
        Language::Rust => Some(source_of_mdm(flags.mdm.as_deref())?),
        Language::C if flags.mdm.is_some() => {
            bail!(
                "--mdm is for --plugin rust: a plugin in C needs mdm_model.h alone, which is written beside it"
            )
        }
        Language::C => None,
    };
    let folder = Path::new(&flags.name);
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            bail!(
                "{} is there already: take another name, or move it away",
                flags.name
            )
        }
        made => made.with_context(|| format!("cannot make the folder {}", flags.name))?,
    }
    let written = write(flags, source.as_deref(), folder, open);
    if written.is_err() {
        // The error is why; what cannot be taken away stays.
        let _ = fs::remove_dir_all(folder);
    }
    write!(stdout(), "{}", written?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the files, and returns what to type next.
fn write(
    flags: &NewFlags,
    source: Option<&str>,
    folder: &Path,
    open: impl FnOnce(PathBuf) -> anyhow::Result<Store>,
) -> anyhow::Result<String> {
    let onnx = match &flags.onnx {
        Some(from) => Some(copy_onnx(from, &folder.join("models"), open)?),
        None => None,
    };
    let plugin = Plugin {
        folder,
        name: &flags.name,
        onnx: onnx.as_ref(),
    };
    let build = match source {
        Some(source) => plugin.write_rust(source)?,
        None => plugin.write_c()?,
    };
    let rows = plugin.write_rows()?;
    let name = plugin.name;
    let notes = onnx.iter().flat_map(|onnx| &onnx.notes);
    let notes: String = notes.map(|note| format!("note: {note}\n")).collect();
    Ok(format!(
        "{name} is written; from here:\n  cd {name}\n  {build}\n  mdm-server-start --run-script-dir models\n  \
         mdm-infer --model {name} --input {rows}\n{notes}"
    ))
}

/// The plugin that is written.
struct Plugin<'a> {
    folder: &'a Path,
    name: &'a str,
    /// What it is written around.
    onnx: Option<&'a Onnx>,
}

impl Plugin<'_> {
    /// Writes a crate, and returns what builds and tests it. `source` is where the crate `mdm` lies.
    fn write_rust(&self, source: &str) -> anyhow::Result<String> {
        let (signature, model, imports, dump) = match self.onnx {
            None => (
                String::new(),
                include_str!("templates/rust/model.rs.txt"),
                format!("use {}::MyModel;", self.name_in_code()),
                "mdm::plugin::dump(&MyModel { mark: \"!\".to_owned() }, &library, &proxy)?;"
                    .to_owned(),
            ),
            Some(onnx) => (
                onnx.ports.in_rust(),
                include_str!("templates/rust/around.rs.txt"),
                "use mdm::plugin::Proxy;\nuse serde_json::json;".to_owned(),
                format!(
                    "Proxy::of_state(&library, json!({{ \"onnx\": \"{}\" }})).write(&proxy)?;",
                    onnx.file
                ),
            ),
        };
        let mut words = self.words(signature);
        words.extend([
            ("source", source.to_owned()),
            ("imports", imports),
            ("dump", dump),
        ]);
        self.put(
            "Cargo.toml",
            &filled(include_str!("templates/rust/Cargo.toml.txt"), &words),
        )?;
        self.put(".gitignore", include_str!("templates/rust/gitignore.txt"))?;
        self.put("src/lib.rs", &filled(model, &words))?;
        self.put(
            "src/bin/dump.rs",
            &filled(include_str!("templates/rust/dump.rs.txt"), &words),
        )?;
        Ok("cargo test\n  cargo run --release".to_owned())
    }

    /// Writes a plugin in C with its proxy, and returns what builds and tests it.
    fn write_c(&self) -> anyhow::Result<String> {
        let (name, library) = (self.name, self.library());
        let (signature, model, test) = match self.onnx {
            None => (
                String::new(),
                include_str!("templates/c/model.c.txt"),
                include_str!("templates/c/test_model.c.txt"),
            ),
            Some(onnx) => (
                onnx.ports.in_c(),
                include_str!("templates/c/around.c.txt"),
                include_str!("templates/c/test_around.c.txt"),
            ),
        };
        let words = self.words(signature);
        self.put(&format!("{name}.c"), &filled(model, &words))?;
        self.put("test.c", &filled(test, &words))?;
        self.put("mdm_model.h", HEADER)?;
        let proxy = format!("{{\n  \"mdm\": 1,\n  \"plugin\": \"{library}\"\n}}\n");
        self.put(&format!("models/{name}.proxy"), &proxy)?;
        Ok(format!(
            "cc -std=c11 -o test test.c && ./test\n  cc -std=c11 -O2 -shared -fPIC -o models/{library} {name}.c"
        ))
    }

    /// Writes rows for a first call, and returns the file's name.
    fn write_rows(&self) -> anyhow::Result<&'static str> {
        Ok(match self.onnx.map(|onnx| onnx.ports.sample()) {
            None => {
                self.put("texts.txt", TEXTS)?;
                "texts.txt"
            }
            Some(Some(lines)) => {
                self.put("rows.jsonl", &lines)?;
                "rows.jsonl"
            }
            // Too large to be written as text.
            Some(None) => "FILE    # of your own: .npy or .npz",
        })
    }

    /// Writes one file of the folder.
    fn put(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What templates of both languages leave open; `signature` is the model's, as the language writes it.
    fn words(&self, signature: String) -> Vec<(&'static str, String)> {
        let onnx = self.onnx.map(|onnx| onnx.file.clone());
        vec![
            ("name", self.name.to_owned()),
            ("crate", self.name_in_code()),
            ("library", self.library()),
            ("onnx", onnx.unwrap_or_default()),
            ("signature", signature),
        ]
    }

    fn name_in_code(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The file name of the library that it is built to.
    fn library(&self) -> String {
        format!("{DLL_PREFIX}{}{DLL_SUFFIX}", self.name_in_code())
    }
}

/// A template with its words filled in.
fn filled(template: &str, words: &[(&str, String)]) -> String {
    let mut text = template.to_owned();
    for (word, value) in words {
        text = text.replace(&format!("{{{{{word}}}}}"), value);
    }
    text
}

/// Copies an ONNX file into the folder that is to be served, and opens it there.
fn copy_onnx(
    from: &Path,
    models: &Path,
    open: impl FnOnce(PathBuf) -> anyhow::Result<Store>,
) -> anyhow::Result<Onnx> {
    let file = from.file_name().and_then(|file| file.to_str());
    // It goes into sources of Rust and C as it is.
    let is_plain = |file: &&str| !file.contains(|c: char| c.is_control() || "\"\\?{}".contains(c));
    let Some(file) = file.filter(is_plain) else {
        bail!(
            "{}: expected a file's name without quotes and the like; copy it under another",
            from.display()
        );
    };
    fs::create_dir_all(models)?;
    fs::copy(from, models.join(file)).with_context(|| from.display().to_string())?;
    let inspection = open(models.to_owned())?.inspect(file).map_err(|e| {
        let why = format!("{}, copied without what lies beside it", from.display());
        e.context(why)
    })?;
    Ok(Onnx {
        file: file.to_owned(),
        ports: Ports::of(inspection.model)?,
        notes: inspection.notes,
    })
}

/// What a Cargo.toml says of where the crate `mdm` lies.
fn source_of_mdm(typed: Option<&str>) -> anyhow::Result<String> {
    if let Some(address) = typed.filter(|typed| typed.contains("://")) {
        return Ok(format!("git = {}", toml::Value::from(address)));
    }
    if let Some((host, path)) = typed.and_then(|typed| typed.split_once(':'))
        && host.contains('@')
    {
        bail!("--mdm: cargo writes that address as ssh://{host}/{path}");
    }
    let checkout = match typed {
        Some(typed) => {
            let folder = Path::new(typed)
                .canonicalize()
                .with_context(|| format!("--mdm {typed}"))?;
            if !is_checkout(&folder) {
                bail!(
                    "--mdm {typed}: expected a folder with the Cargo.toml of the crate mdm, or an address for git like \
                     https://…/mdm.git"
                );
            }
            folder
        }
        None => {
            let own = std::env::current_exe()?;
            let above = own.ancestors().find(|folder| is_checkout(folder));
            let Some(folder) = above else {
                bail!(
                    "the crate mdm is on no registry: say with --mdm where it lies, a folder that you have cloned it \
                     into, or the address that git clones it from"
                );
            };
            folder.to_owned()
        }
    };
    let path = checkout.to_str();
    let path = path.with_context(|| format!("{} is not UTF-8", checkout.display()))?;
    Ok(format!("path = {}", toml::Value::from(path)))
}

/// Whether a folder has the Cargo.toml of the crate `mdm`.
fn is_checkout(folder: &Path) -> bool {
    let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let manifest: Option<toml::Table> = text.parse().ok();
    manifest.is_some_and(|manifest| {
        let package = manifest.get("package");
        package.and_then(|package| package.get("name")?.as_str()) == Some("mdm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_crates_and_models_can_have() {
        for good in ["shout", "my-model", "a_1"] {
            assert_eq!(name(good).unwrap(), good);
        }
        for bad in [
            "",
            "Shout",
            "1a",
            "a.b",
            "a/b",
            "fn",
            "proc-macro",
            "mdm",
            "é",
        ] {
            assert!(name(bad).unwrap_err().contains("expected"), "{bad}");
        }
    }

    #[test]
    fn what_a_template_leaves_open_is_filled() {
        for template in [
            include_str!("templates/rust/Cargo.toml.txt"),
            include_str!("templates/rust/model.rs.txt"),
            include_str!("templates/rust/around.rs.txt"),
            include_str!("templates/rust/dump.rs.txt"),
            include_str!("templates/c/model.c.txt"),
            include_str!("templates/c/around.c.txt"),
            include_str!("templates/c/test_model.c.txt"),
            include_str!("templates/c/test_around.c.txt"),
        ] {
            let known = [
                "name",
                "crate",
                "library",
                "onnx",
                "signature",
                "source",
                "imports",
                "dump",
            ];
            let words: Vec<_> = known.iter().map(|word| (*word, "X".to_owned())).collect();
            let text = filled(template, &words);
            // `{{` alone is C: a word follows it in what is left open.
            let open = text.split("{{").skip(1);
            let mut open = open.filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
            assert_eq!(open.next(), None, "{text}");
        }
    }
}
