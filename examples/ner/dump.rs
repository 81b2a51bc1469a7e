//! Writes a folder that a server can serve: the model's proxy, and the files that it names.
//!
//! ```text
//! $ ner-dump [FOLDER]       target/ner, unless another is given
//! ```

#[allow(dead_code)] // what the bench looks at
mod model;
#[allow(dead_code)] // as above
mod text;
#[allow(dead_code)] // as above
mod viterbi;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use mdm::Batch;
use mdm::plugin::{LoadContext, Model};

use model::{Ner, State};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("examples/ner");
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| root.join("target/ner"));
    fs::create_dir_all(&folder)?;

    // What the proxy names is to lie beside it.
    for file in ["ner.onnx", "word2id.json"] {
        copy(&source.join("models").join(file), &folder.join(file))?;
    }
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = format!("{prefix}ner{suffix}");
    let built = std::env::current_exe()?.with_file_name(&library);
    copy(&built, &folder.join(&library))
        .map_err(|e| format!("{e}; `cargo build --example ner` makes it"))?;

    // The model's object: the transitions that training found, and the names of the files. It is not run here.
    let state = State {
        onnx: "ner.onnx".to_owned(),
        word2id: Some("word2id.json".to_owned()),
        crf: serde_json::from_slice(&fs::read(source.join("crf.json"))?)?,
    };
    let context = LoadContext::of(&folder).with_sessions(|_| {
        Ok(Box::new(|_: &Batch| {
            Err(mdm::Error::precondition("there is no engine here"))
        }))
    });
    let model = Ner::load(&serde_json::to_value(state)?, &context)?;

    let proxy = folder.join("ner_model.proxy");
    mdm::plugin::dump(&model, &library, &proxy)?;
    println!("{}", proxy.display());
    Ok(())
}

/// Copies under another name first: a server may have the old file open.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let passing = to.with_extension("part");
    fs::copy(from, &passing)
        .and_then(|_| fs::rename(&passing, to))
        .map_err(|e| {
            format!(
                "{} cannot be copied to {}: {e}",
                from.display(),
                to.display()
            )
        })
}
