//! Engine sessions for plugins: `mdm_session`.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use bytes::Bytes;

use super::EngineSession;
use super::memory::{Shown, lent};
use super::text::read_text;
use crate::error::{Error, Result};
use crate::plugin::abi;
use crate::tensor::{Batch, Data, Tensor, element_count};

/// Most inputs of a run.
const MOST_INPUTS: u32 = 1024;
/// Most bytes of an input's name.
const MOST_NAME_BYTES: u64 = 4096;

/// What a `mdm_session` points at.
pub(super) struct PluginSession {
    session: Box<dyn EngineSession>,
    signature: String,
    outputs: Shown,
}

impl PluginSession {
    pub(super) fn new(session: Box<dyn EngineSession>) -> PluginSession {
        PluginSession {
            signature: session.signature().to_json(),
            session,
            outputs: Shown::default(),
        }
    }

    pub(super) fn signature(&self) -> &str {
        &self.signature
    }

    /// Runs a batch of a plugin's; the outputs are shown until the next run.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where inputs do not fit, and the engine's.
    ///
    /// # Safety
    /// There must be as many tensors, whose pointers are what the interface says.
    pub(super) unsafe fn run(
        &mut self,
        inputs: *const abi::Tensor,
        count: u32,
    ) -> Result<&[abi::Tensor]> {
        if count > MOST_INPUTS || (inputs.is_null() && count > 0) || !inputs.is_aligned() {
            return Err(Error::invalid(format!(
                "session_run: expected a list of at most {MOST_INPUTS} inputs, got {count} or NULL"
            )));
        }
        let mut batch = Batch::default();
        for index in 0..count as usize {
            // SAFETY: the caller answers for them.
            batch.tensors.push(unsafe { input(&*inputs.add(index))? });
        }
        self.outputs = Shown::default();
        let outputs = self.session.run(batch)?;
        self.outputs = Shown::of(&outputs).map_err(|e| e.context("session_run"))?;
        Ok(self.outputs.views())
    }
}

/// A plugin's tensor, whose memory is read in place until the run is over: see [`EngineSession::run`].
///
/// # Safety
/// As [`PluginSession::run`].
unsafe fn input(raw: &abi::Tensor) -> Result<Tensor> {
    // SAFETY: the caller answers for a text that is as long as it says.
    let name = unsafe { read_text(raw.name, MOST_NAME_BYTES) }
        .map_err(|why| Error::invalid(format!("session_run: an input's name {why}")))?;
    let wrong = |why: String| Error::invalid(format!("session_run: input {name:?}: {why}"));
    let datatype = abi::datatype_of(raw.datatype).ok_or_else(|| {
        wrong(format!(
            "datatype {}, expected one of mdm_model.h",
            raw.datatype
        ))
    })?;
    if raw.rank > abi::MAX_RANK || (raw.rank > 0 && raw.shape.is_null()) {
        return Err(wrong(format!(
            "its shape is NULL or has more than {} dimensions: {}",
            abi::MAX_RANK,
            raw.rank
        )));
    }
    let shape: Vec<usize> = (0..raw.rank as usize)
        // SAFETY: there are `rank` of them; wherever they lie.
        .map(|axis| unsafe { raw.shape.add(axis).read_unaligned() } as usize)
        .collect();
    let elements = element_count(&shape)
        .filter(|&n| n <= isize::MAX as usize / 16)
        .ok_or_else(|| {
            wrong(format!(
                "shape {shape:?} has more elements than memory can hold"
            ))
        })?;
    let bytes = |start: *const u8, length: u64| -> Result<Bytes> {
        if length > isize::MAX as u64 || (start.is_null() && length > 0) {
            return Err(wrong(format!(
                "its data or its offsets are NULL or too long: {length} bytes"
            )));
        }
        // SAFETY: the caller answers for the memory until the run is over, and nothing of the batch outlives it.
        Ok(unsafe { lent(start, length as usize, None) })
    };
    let values = bytes(raw.data.cast(), raw.data_bytes)?;
    let data = if datatype.size().is_some() {
        Data::Fixed(values)
    } else {
        if raw.offset_count != elements as u64 + 1 {
            return Err(wrong(format!(
                "expected {} offsets, got {}",
                elements + 1,
                raw.offset_count
            )));
        }
        Data::Variable {
            offsets: bytes(raw.offsets.cast(), raw.offset_count * 8)?,
            values,
        }
    };
    Tensor::new(name.as_str(), datatype, shape, data).map_err(|e| e.context("session_run"))
}
