//! An ONNX file from which sessions are opened: its signature, and the weights that its sessions share.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ort::session::Session;
use prost::Message;

use super::onnx::OnnxModel;
use super::proto::{ModelProto, NodeProto};
use super::session::{Options, Signature, builder, signature};
use super::weights::{Weights, subgraphs};
use super::{Device, Engine, memory};
use crate::error::{Error, Result};
use crate::model::find::{Files, Stamp, file_name};
use crate::model::interface::{BatchKind, Description, Empty};

/// Most bytes of a message of Protocol Buffers, which an ONNX file is.
const MAX_ONNX_BYTES: u64 = i32::MAX as u64;
/// A file of up to so many bytes may be open twice in one worker without weights to share.
const SMALL_MODEL_BYTES: u64 = 1 << 20;

/// A model file that was opened once.
pub(crate) struct OnnxSource {
    engine: Engine,
    path: PathBuf,
    /// Open, so that it can still be read when another one was moved into its place.
    file: fs::File,
    stamp: Stamp,
    /// The files that hold its weights, where they are not inside.
    external: Files,
    signature: Signature,
    weights: Option<Weights>,
    /// The session that the signature was read from: the first worker on that device that wants it so gets it.
    spare: Mutex<Option<(Device, Options, Session)>>,
}

impl OnnxSource {
    /// Opens the file on a device, reads its signature and takes its weights out, where sessions can share them.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: the engine refuses it (its message follows), or an input or output is of a type that
    /// is not served.
    pub(crate) fn load(
        engine: &Engine,
        path: &Path,
        device: Device,
        options: &Options,
    ) -> Result<OnnxSource> {
        let file = fs::File::open(path).map_err(|e| unreadable(path, &e))?;
        let stamp = Stamp::from(&file.metadata().map_err(|e| unreadable(path, &e))?);
        check_size(path, stamp)?;
        let Content {
            model,
            weights,
            empty,
        } = read(path, &file, device)?;
        let mut source = OnnxSource {
            engine: engine.clone(),
            path: path.to_owned(),
            file,
            stamp,
            external: external(path, model.as_ref()),
            signature: Signature {
                kind: BatchKind::Whole,
                inputs: Vec::new(),
                outputs: Vec::new(),
                empty,
            },
            weights,
            spare: Mutex::new(None),
        };
        let session = match source.session(device, options) {
            Err(error) if source.weights.is_some() => {
                tracing::info!(model = %path.display(), %error, "weights are not shared");
                source.weights = None;
                source.session(device, options)?
            }
            result => result?,
        };
        source.signature = signature(&session, model.as_ref(), empty)?;
        drop(model);
        source.spare = Mutex::new(Some((device, options.clone(), session)));
        memory::trim();
        Ok(source)
    }

    pub(crate) fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The file, links followed.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file that was read.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Whether the files that hold its weights, if any do, are those that were read.
    pub(crate) fn has_its_weights(&self) -> bool {
        self.external.are_unchanged()
    }

    /// The file, and those that hold its weights.
    pub(crate) fn add_files(&self, files: &mut Files) {
        files.add_as(&self.path, self.stamp);
        files.extend(&self.external);
    }

    /// A session for one worker.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: the engine refuses it, or the file is not the one that was described.
    pub(crate) fn open(
        self: &Arc<OnnxSource>,
        description: Arc<Description>,
        device: Device,
        options: &Options,
    ) -> Result<OnnxModel> {
        let spare = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.take_if(|(on, made, _)| *on == device && made == options)
        };
        let session = match spare {
            Some((_, _, session)) => session,
            None => {
                let session = self.session(device, options)?;
                memory::trim();
                session
            }
        };
        let mut model = OnnxModel::new(session, description);
        if device.has_short_runs() && options.threads() > 1 && self.is_cheap_to_repeat() {
            let (source, options) = (self.clone(), options.of_one_thread());
            model.set_single(move || source.single(device, &options));
        }
        Ok(model)
    }

    /// Whether another session takes little memory.
    fn is_cheap_to_repeat(&self) -> bool {
        self.weights.is_some()
            || (self.stamp.bytes() <= SMALL_MODEL_BYTES && self.external.len() == 0)
    }

    /// A session of one thread for short runs (`short_runs.rs`); without it they go as others do.
    fn single(&self, device: Device, options: &Options) -> Option<Session> {
        let session = self.session(device, options);
        memory::trim();
        session
            .inspect_err(|error| {
                tracing::debug!(model = %self.path.display(), %error, "no session for short runs");
            })
            .ok()
    }

    fn session(&self, device: Device, options: &Options) -> Result<Session> {
        let path = self.readable()?;
        let attempt = || -> ort::Result<Session> {
            let mut builder = builder(&self.engine, device, options)?;
            if let (Ok(()), Some(weights)) = (device.shares_weights(), &self.weights) {
                builder = weights.give(builder)?;
            }
            builder.commit_from_file(&path)
        };
        let session = memory::in_passing(attempt)?.map_err(|e| {
            let name = file_name(&self.path);
            let why = without_folder(
                &e.to_string().replace(&*path.to_string_lossy(), &name),
                &path,
            );
            // All that it says of a file that lacks its end.
            let cut = if why.contains("Protobuf parsing failed") {
                let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
                format!(" It has {bytes} bytes: it is cut short, or no ONNX file; copy or export it again.")
            } else {
                String::new()
            };
            let why = why.trim_end();
            Error::precondition(format!("the engine cannot open {name}: {why}{cut}"))
        });
        // The shared weights belong to the file as it was: a session of another graph must not get them.
        self.readable()?;
        session
    }

    /// Where the file can be read as it was.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it was written over.
    fn readable(&self) -> Result<PathBuf> {
        let changed = |path: &Path| {
            Error::precondition(format!(
                "{} was changed since the model was loaded; load the model again",
                file_name(path)
            ))
        };
        if let Some(path) = self.external.changed() {
            return Err(changed(path));
        }
        if Stamp::of(&self.path).ok() == Some(self.stamp) {
            return Ok(self.path.clone());
        }
        // Another file was moved into its place, or it was removed: what is open is still the old one. Weights
        // outside of the file are looked for beside it, so it has to have its own name for them.
        let open = self.file.metadata().ok();
        let unchanged = open.is_some_and(|open| Stamp::from(&open) == self.stamp);
        if cfg!(target_os = "linux") && unchanged && self.external.len() == 0 {
            return Ok(format!("/proc/self/fd/{}", self.file.as_raw_fd()).into());
        }
        Err(changed(&self.path))
    }
}

/// The engine's message without a file's folder: clients are not to learn where the server's files lie.
fn without_folder(text: &str, path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new("")).to_string_lossy();
    if matches!(&*folder, "" | "/") {
        return text.to_owned();
    }
    text.replace(&format!("{folder}/"), "")
        .replace(&*folder, "its folder")
}

/// # Errors
/// `FAILED_PRECONDITION` if there is more than an ONNX file can hold, before it is read.
fn check_size(path: &Path, stamp: Stamp) -> Result<()> {
    if stamp.bytes() <= MAX_ONNX_BYTES {
        return Ok(());
    }
    Err(Error::precondition(format!(
        "{} has {} bytes, and an ONNX file has at most {MAX_ONNX_BYTES} (2 GiB); save the model with its weights in a \
         file of their own (external data)",
        file_name(path),
        stamp.bytes()
    )))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::precondition(format!("cannot read {}: {error}", file_name(path)))
}

/// What we ourselves read of the file.
struct Content {
    /// Its ports; `None` where we cannot read it, which the engine may still be able to.
    model: Option<ModelProto>,
    weights: Option<Weights>,
    empty: Empty,
}

fn read(path: &Path, mut file: &fs::File, device: Device) -> Result<Content> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, &e))?;
    let bytes = Bytes::from(bytes);
    if bytes.is_empty() {
        return Err(Error::precondition(format!("{} is empty", file_name(path))));
    }
    let Ok(mut model) = ModelProto::decode(bytes) else {
        return Ok(Content {
            model: None,
            weights: None,
            // What operators it has is not known.
            empty: Empty::Refused,
        });
    };
    let weights = match device.shares_weights().and_then(|()| Weights::of(&model)) {
        Ok(weights) => {
            tracing::debug!(model = %path.display(), bytes = weights.bytes(), "weights are shared");
            Some(weights)
        }
        Err(reason) => {
            tracing::info!(model = %path.display(), reason, "weights are not shared");
            None
        }
    };
    let functions = model.functions.iter().flat_map(|function| &function.node);
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    let empty = match nodes.chain(functions).any(is_recurrent) {
        true => Empty::Refused,
        false => Empty::Allowed,
    };
    model.functions = Vec::new();
    // The signature needs the ports only, and the names of files; the rest keeps the whole file in memory.
    if let Some(graph) = &mut model.graph {
        graph.initializer.retain(|tensor| tensor.data_location != 0);
        graph.node = Vec::new();
    }
    Ok(Content {
        model: Some(model),
        weights,
        empty,
    })
}

/// Operators that end the whole process when the batch has size 0: the engine's threads let an exception out of a place
/// where none may leave (seen with ONNX Runtime 1.31.1). By name alone: some are in more than one domain.
const RECURRENT: [&str; 5] = ["LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "AttnLSTM"];

/// Whether an operator, or one in a graph inside it, is recurrent.
fn is_recurrent(node: &NodeProto) -> bool {
    let attributes = node.attribute.iter();
    let mut inner = attributes.flat_map(subgraphs).flat_map(|graph| &graph.node);
    RECURRENT.contains(&node.op_type.as_str()) || inner.any(is_recurrent)
}

/// The files that hold a model's weights, where they are not inside it.
fn external(path: &Path, model: Option<&ModelProto>) -> Files {
    let mut files = Files::default();
    let folder = path.parent().unwrap_or(Path::new("/"));
    let graph = model.and_then(|model| model.graph.as_ref());
    for tensor in graph.iter().flat_map(|graph| &graph.initializer) {
        let location = tensor.external_data.iter();
        for entry in location.filter(|entry| entry.key == "location") {
            files.add(&folder.join(&entry.value));
        }
    }
    files
}
