//! ONNX files that are open, so that whoever opens one again shares its weights: models, stages, and the sessions that
//! plugins ask for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::session::Options;
use super::source::OnnxSource;
use super::{Device, Engine};
use crate::error::{Error, Result};
use crate::model::find::{Stamp, file_name};

/// What is open, for as long as somebody uses it.
pub(crate) struct Shared {
    engine: Engine,
    open: Mutex<Vec<Known>>,
}

struct Known {
    path: PathBuf,
    stamp: Stamp,
    /// Not every device can share weights.
    shares_weights: bool,
    source: Weak<OnnxSource>,
}

impl Shared {
    pub(crate) fn new(engine: Engine) -> Shared {
        Shared {
            engine,
            open: Mutex::default(),
        }
    }

    /// The file as it is now, opened once. Files are opened one after the other.
    ///
    /// # Errors
    /// As [`OnnxSource::load`].
    pub(crate) fn open(
        &self,
        path: &Path,
        device: Device,
        options: &Options,
    ) -> Result<Arc<OnnxSource>> {
        let stamp = Stamp::of(path)
            .map_err(|e| Error::precondition(format!("cannot read {}: {e}", file_name(path))))?;
        let shares_weights = device.shares_weights().is_ok();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|known| known.source.strong_count() > 0);
        let known = open
            .iter()
            .filter(|known| known.shares_weights == shares_weights)
            .filter(|known| known.stamp == stamp && known.path == path)
            .filter_map(|known| known.source.upgrade())
            .find(|source| source.has_its_weights());
        if let Some(source) = known {
            return Ok(source);
        }
        let source = Arc::new(OnnxSource::load(&self.engine, path, device, options)?);
        open.push(Known {
            path: path.to_owned(),
            stamp: source.stamp(),
            shares_weights,
            source: Arc::downgrade(&source),
        });
        Ok(source)
    }
}
