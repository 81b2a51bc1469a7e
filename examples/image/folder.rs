//! What the server reads: proxies, their nets and the plugin, in one folder.
//!
//! ```text
//! digits.proxy     digits.predict: preprocess -> digits_cnn.onnx -> postprocess
//! resnet50.proxy   resnet50.predict: preprocess -> resnet50.onnx -> postprocess (if asked for: 102 MB)
//! libimage.so      both stages
//! ```
#![allow(dead_code)] // each example and benchmark uses some of it

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mdm::plugin::{LoadContext, Model};
use serde_json::{Value, json};

use super::stages::{Postprocess, PostprocessState, Preprocess, PreprocessState};

/// The net for pictures of digits.
pub const DIGITS_CNN: &[u8] = include_bytes!("models/digits_cnn.onnx");
/// The side of what it takes, in pixels.
pub const DIGITS_SIDE: u32 = 32;
/// The side of what a ResNet-50 takes, in pixels.
pub const RESNET_SIDE: u32 = 224;

/// The name of the plugin's file.
pub fn library_name() -> String {
    let (before, after) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{before}image{after}")
}

/// The plugin as cargo built it: in the `examples` folder of this program's profile.
pub fn built_library() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folders = program.ancestors().skip(1);
    let file = folders
        .map(|folder| folder.join("examples").join(library_name()))
        .find(|file| file.is_file());
    file.with_context(|| {
        format!(
            "{} is not built for {}: `cargo build --example image`, with --release where that is",
            library_name(),
            program.display()
        )
    })
}

/// Writes `digits.proxy`, its net and the plugin.
pub fn write_digits(folder: &Path, library: &Path) -> Result<()> {
    let digits = (0..10).map(|digit| digit.to_string()).collect();
    write(folder, library, "digits_cnn.onnx", DIGITS_CNN)?;
    write_proxy(
        folder,
        "digits",
        "digits_cnn.onnx",
        DIGITS_SIDE,
        Some(digits),
    )
}

/// Writes `resnet50.proxy`, its net and the plugin. The net's weights are generated: its labels are numbers, and mean
/// nothing.
pub fn write_resnet50(folder: &Path, library: &Path, onnx: &[u8]) -> Result<()> {
    write(folder, library, "resnet50.onnx", onnx)?;
    write_proxy(folder, "resnet50", "resnet50.onnx", RESNET_SIDE, None)
}

fn write(folder: &Path, library: &Path, net: &str, onnx: &[u8]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let net = folder.join(net);
    std::fs::write(&net, onnx).with_context(|| net.display().to_string())?;
    let to = folder.join(library_name());
    std::fs::copy(library, &to)
        .with_context(|| format!("{} to {}", library.display(), to.display()))?;
    Ok(())
}

fn write_proxy(
    folder: &Path,
    name: &str,
    net: &str,
    side: u32,
    labels: Option<Vec<String>>,
) -> Result<()> {
    let path = folder.join(format!("{name}.proxy"));
    let text = serde_json::to_string_pretty(&proxy(net, side, labels)?)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// A chain of three stages, as the method "predict". Models dump the states, so that these are what they read.
fn proxy(net: &str, side: u32, labels: Option<Vec<String>>) -> Result<Value> {
    let here = LoadContext::of(".");
    let state = serde_json::to_value(PreprocessState::of(side))?;
    let before = Preprocess::load(&state, &here)?.dump()?;
    let state = serde_json::to_value(PostprocessState { labels, top: 1 })?;
    let behind = Postprocess::load(&state, &here)?.dump()?;
    let plugin = library_name();
    let stages = json!([
        {"name": "preprocess", "plugin": plugin, "entry": "preprocess", "state": before},
        {"name": "net", "onnx": net},
        {"name": "postprocess", "plugin": plugin, "entry": "postprocess", "state": behind},
    ]);
    Ok(json!({"mdm": 1, "methods": {"predict": {"stages": stages}}}))
}
