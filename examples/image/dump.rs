//! Writes a folder that a server can be started over: `image-dump [--resnet50] [FOLDER]`.
//!
//! The folder is `target/image` unless told; `folder.rs` says what is in it. `--resnet50` adds the net for timing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

mod folder;
mod resnet50;
mod stages;

fn main() -> Result<()> {
    let mut target: Option<PathBuf> = None;
    let mut with_resnet50 = false;
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--resnet50") => with_resnet50 = true,
            Some(flag) if flag.starts_with('-') => {
                bail!("{flag:?} is unknown; usage: image-dump [--resnet50] [FOLDER]")
            }
            _ => target = Some(argument.into()),
        }
    }
    // target/PROFILE/examples/image-dump
    let program = std::env::current_exe()?;
    let usual = program.ancestors().nth(3).map(|root| root.join("image"));
    let target = target.or(usual).context("which folder?")?;
    let library = folder::built_library()?;
    folder::write_digits(&target, &library)?;
    if with_resnet50 {
        folder::write_resnet50(&target, &library, &resnet50::resnet50(1))?;
    }
    report(&target)
}

fn report(target: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(target)? {
        let entry = entry?;
        files.push((entry.path(), entry.metadata()?.len()));
    }
    files.sort();
    for (path, bytes) in files {
        println!("{:>11} bytes  {}", bytes, path.display());
    }
    Ok(())
}
