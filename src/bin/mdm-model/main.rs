//! `mdm-model`: begins plugins, checks models before they are served, and loads and unloads them in a running server.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[path = "../shared/mod.rs"]
mod shared;

mod new;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use mdm::ErrorCode;
use mdm::client::Client;
use mdm::model::{Device, Engine, EngineLog, Inspection, Store, StoreConfig};
use mdm::wire::server::{LoadOutcome, ModelInfo, PortInfo};

const NAME: &str = "mdm-model";

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 a model is broken or the server refused, 2 wrong usage.
Every flag is read from the environment too (MDM_PORT=5555); what is typed wins, and an empty variable is not set.
The older spelling works too: -port=5555 -run_script_dir=models";

/// Begins plugins, looks at models before they are served, and loads and unloads them in a server that runs.
#[derive(Parser, Debug)]
#[command(name = "mdm-model", version, after_help = AFTER_HELP)]
struct CommandLine {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Writes the beginnings of a plugin: a crate or a C file that builds, tests itself and serves at once
    New(new::NewFlags),
    /// Opens a proxy or an ONNX file as a worker would; shows inputs, outputs, kind of batch and stages
    Check {
        /// NAME.proxy, NAME.onnx, or a folder with VERSION/model.onnx or VERSION/model.proxy
        file: PathBuf,
        /// Where its paths may lead [default: the file's folder]
        #[arg(long, value_name = "DIR")]
        run_script_dir: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Shows what a run-script directory offers, and what of it is broken and why
    List {
        /// The run-script directory [default: that of --run-script-dir]
        dir: Option<PathBuf>,
        /// The run-script directory, where DIR does not say it
        #[arg(long, value_name = "DIR", default_value = ".")]
        run_script_dir: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Has a server load a model as its files are now: read, described, opened on every worker and warmed. What was
    /// served under that name goes when its last request has ended; if this one cannot be opened, it stays
    #[command(visible_alias = "reload")]
    Load(Remote),
    /// Has a server forget a model
    Unload(Remote),
}

#[derive(Args, Debug)]
struct Place {
    /// A further directory that paths may lead into; can be repeated
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
    /// The ONNX Runtime library [default: looked for as the server does]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
}

const TIMEOUT: &str =
    "The longest to wait for its word, in milliseconds: loading takes what it takes. At least 1";

#[derive(Args, Debug)]
#[command(mut_arg("timeout", |timeout| timeout.default_value("600000").help(TIMEOUT)))]
struct Remote {
    /// The model, as requests name it; NAME/VERSION is one version of it
    name: String,
    #[command(flatten)]
    ask: shared::AskFlags,
}

fn main() -> ExitCode {
    mdm::model::without_telemetry();
    let typed: CommandLine = shared::parse(NAME);
    shared::run(NAME, || match typed.action {
        Action::New(flags) => new::run(&flags, |folder| {
            let place = Place {
                allow_path: Vec::new(),
                onnxruntime: flags.onnxruntime.clone(),
            };
            store(folder, place)
        }),
        Action::Check {
            file,
            run_script_dir,
            place,
        } => check(&file, run_script_dir, place),
        Action::List {
            dir,
            run_script_dir,
            place,
        } => list(dir.unwrap_or(run_script_dir), place),
        Action::Load(remote) => {
            let (model, outcome) = client(&remote)?.reload(&remote.name)?;
            let ModelInfo {
                name,
                version,
                kind,
                ..
            } = model;
            let said = match outcome {
                Some(LoadOutcome::Unchanged) => "unchanged:",
                Some(outcome) => outcome.as_str(),
                None => "loaded",
            };
            writeln!(stdout(), "{said} {name}, version {version} ({kind})")?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Unload(remote) => {
            let unloaded = client(&remote)?.unload_versions(&remote.name)?;
            let mut out = stdout().lock();
            if unloaded.is_empty() {
                writeln!(out, "unloaded {}", remote.name)?; // an older server
            }
            for ModelInfo { name, version, .. } in unloaded {
                writeln!(out, "unloaded {name}, version {version}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
    })
}

fn client(remote: &Remote) -> anyhow::Result<Client> {
    let timeout = remote.ask.timeout();
    let address = remote.ask.address();
    Ok(Client::builder()
        .connect_timeout(timeout.min(Duration::from_secs(5)))
        .timeout(timeout)
        .connect_later(&address)?)
}

fn store(run_script_dir: PathBuf, place: Place) -> anyhow::Result<Store> {
    let engine = Engine::load(place.onnxruntime.as_deref(), EngineLog::Problems)?;
    Ok(Store::new(
        engine,
        StoreConfig {
            run_script_dir,
            allow_paths: place.allow_path,
            devices: vec![Device::Cpu],
            intra_op_threads: 1,
            gpu_memory_fraction: 0.0,
            extra_workers: false,
            express_workers: 0,
            max_model_bytes: None,
        },
    )?)
}

fn check(file: &Path, dir: Option<PathBuf>, place: Place) -> anyhow::Result<ExitCode> {
    let full = file
        .canonicalize()
        .with_context(|| file.display().to_string())?;
    let folder = full.parent().unwrap_or(Path::new("/")).to_owned();
    let store = store(dir.unwrap_or(folder), place)?;
    let mut code = ExitCode::SUCCESS;
    for name in store.names_of(&full.to_string_lossy(), &full)? {
        let method = name
            .strip_prefix(&*full.to_string_lossy())
            .unwrap_or_default();
        let shown = format!("{}{method}", file.display());
        match store.inspect(&name) {
            Ok(inspection) => show(&shown, &inspection)?,
            Err(e) => {
                let mut why = e.message().replace(&name, &shown);
                if full.is_dir() && e.code() == ErrorCode::NotFound {
                    why += &format!("; mdm-model list {shown} shows a folder of models");
                }
                shared::complain(NAME, format_args!("error: {why}"));
                code = ExitCode::from(shared::FAILED);
            }
        }
    }
    Ok(code)
}

fn show(name: &str, inspection: &Inspection) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{name}: {}", inspection.model.kind)?;
    ports(&mut out, "  ", &inspection.model)?;
    for (index, stage) in inspection.stages.iter().enumerate() {
        let file = stage.file.file_name().unwrap_or_default();
        writeln!(
            out,
            "  stage {}: {} {}: {}",
            index + 1,
            stage.runs,
            file.to_string_lossy(),
            stage.model.kind
        )?;
        if inspection.stages.len() > 1 {
            ports(&mut out, "    ", &stage.model)?;
        }
    }
    if !inspection.warm_up.is_empty() {
        writeln!(out, "  warm-up: {}", inspection.warm_up.join(", "))?;
    }
    if let Some(versions) = versions(inspection) {
        writeln!(out, "  {versions}")?;
    }
    notes(&mut out, inspection)
}

/// `ver: 1, 2, 10; serves 10`.
fn versions(inspection: &Inspection) -> Option<String> {
    let all: Vec<String> = inspection.versions.iter().map(u64::to_string).collect();
    let serves = &inspection.model.version;
    (!all.is_empty()).then(|| format!("ver: {}; serves {serves}", all.join(", ")))
}

fn notes(out: &mut impl Write, inspection: &Inspection) -> anyhow::Result<()> {
    for note in &inspection.notes {
        writeln!(out, "  note: {note}")?;
    }
    Ok(())
}

fn ports(out: &mut impl Write, indent: &str, model: &ModelInfo) -> anyhow::Result<()> {
    for (side, ports) in [("inputs", &model.inputs), ("outputs", &model.outputs)] {
        let said: Vec<String> = ports.iter().map(PortInfo::to_string).collect();
        let said = if said.is_empty() {
            "anything".to_owned()
        } else {
            said.join(", ")
        };
        writeln!(out, "{indent}{side}: {said}")?;
    }
    Ok(())
}

fn list(dir: PathBuf, place: Place) -> anyhow::Result<ExitCode> {
    let shown = dir.display().to_string();
    let store = store(dir, place)?;
    let (names, empty) = (store.names()?, store.empty_versions());
    if names.is_empty() && empty.is_empty() {
        writeln!(
            stdout(),
            "{shown} has no NAME.proxy, NAME.onnx, NAME/VERSION/model.onnx or NAME/VERSION/model.proxy"
        )?;
    }
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match store.inspect(&name) {
            Ok(inspection) => {
                let model = &inspection.model;
                let stages: Vec<String> =
                    inspection.stages.iter().map(|s| s.runs.clone()).collect();
                let versions = versions(&inspection).map(|said| format!(", {said}"));
                writeln!(
                    stdout(),
                    "{name}: {} ({}){}",
                    model.kind,
                    stages.join(" -> "),
                    versions.unwrap_or_default()
                )?;
                notes(&mut stdout(), &inspection)?;
            }
            Err(e) => {
                writeln!(
                    stdout(),
                    "{name}: broken: {}",
                    e.message().replace('\n', " ")
                )?;
                if let Some(note) = store.namesakes(&name, None) {
                    writeln!(stdout(), "  note: {note}")?;
                }
                code = ExitCode::from(shared::FAILED);
            }
        }
    }
    for folder in empty {
        writeln!(
            stdout(),
            "{folder}: broken: this version's folder has no model.proxy and no model.onnx"
        )?;
        code = ExitCode::from(shared::FAILED);
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_in_both_spellings_and_from_the_environment() {
        let sample = |flag: &str| match flag {
            "run-script-dir" => ("my_models", None),
            "allow-path" => ("my_files", None),
            "onnxruntime" => ("my_lib/libonnxruntime.so", None),
            "port" => ("7001", Some("x")),
            "ip" => ("10.0.0.1", None),
            "timeout" => ("70", Some("0")),
            "plugin" => ("c", Some("python")),
            "onnx" => ("my_models/a.onnx", None),
            "mdm" => ("../mdm", None),
            other => panic!("no value for --{other}: add one"),
        };
        for start in [
            &[NAME, "new", "shout", "--plugin", "rust"][..],
            &[NAME, "check", "a.onnx"],
            &[NAME, "list"],
            &[NAME, "list", "some_dir"],
            &[NAME, "load", "digits"],
            &[NAME, "reload", "digits"],
            &[NAME, "unload", "digits"],
        ] {
            let shown = |typed: &CommandLine| format!("{:?}", typed.action);
            shared::every_flag::reads(start, sample, shown);
        }
        let e = mdm::config::parse_flags::<CommandLine>([NAME.into()], |_| None).unwrap_err();
        assert!(e.message().contains("check, list, load, unload"), "{e}");
    }

    #[test]
    fn allowed_paths_are_split_like_path() {
        let start = [NAME, "check", "a.onnx"].map(Into::into);
        let read = mdm::config::parse_flags::<CommandLine>(start, |name| {
            (name == "MDM_ALLOW_PATH").then(|| "a:b".into())
        });
        let Ok(mdm::config::Asked::Run(typed)) = read else {
            panic!("not read");
        };
        let Action::Check { place, .. } = typed.action else {
            panic!("another action");
        };
        assert_eq!(place.allow_path, [PathBuf::from("a"), PathBuf::from("b")]);
    }
}
