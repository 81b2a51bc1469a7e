//! Calls into a plugin: describe, load, infer, unload, each with the context that it may call back with.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use super::memory::Shown;
use super::output::Outputs;
use super::{Library, Services};
use crate::error::{Error, Result};
use crate::message::Run;
use crate::plugin::abi;
use crate::signature::Signature;
use crate::tensor::Batch;

/// Which of a plugin's functions is called: it decides which functions of the host that may call back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Describe,
    Load,
    Infer,
}

impl CallKind {
    /// As `mdm_model.h` names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            CallKind::Describe => "describe",
            CallKind::Load => "load",
            CallKind::Infer => "infer",
        }
    }
}

/// One call of a plugin's function: what a `mdm_context` points at.
pub(super) struct CallContext<'a> {
    pub(super) kind: CallKind,
    pub(super) services: &'a dyn Services,
    pub(super) failure: Option<Error>,
    pub(super) signature: Option<Signature>,
    /// Texts that the plugin was given: they must not move until the call is over.
    pub(super) texts: Vec<Box<str>>,
    pub(super) run: Option<&'a Run<'a>>,
    pub(super) members: Vec<abi::Member>,
    pub(super) outputs: Outputs<'a>,
}

impl CallContext<'_> {
    /// Keeps a text, for a plugin to read until the call is over.
    pub(super) fn keep(&mut self, text: String) -> abi::Str {
        self.texts.push(text.into_boxed_str());
        self.texts
            .last()
            .map_or(abi::Str::of(""), |text| abi::Str::of(text))
    }
}

thread_local! {
    /// The plugin that is running in this thread, for its lines in the log.
    pub(super) static RUNNING: RefCell<Arc<str>> = RefCell::new(Arc::from(""));
    /// Why the last failing function of the host failed, for `last_error`.
    pub(super) static LAST_ERROR: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// An entry of an open plugin.
#[derive(Clone)]
pub(crate) struct Plugin {
    library: Arc<Library>,
    entry: abi::Entry,
    /// `plugin "libner.so"`, and the entry where there are several: what errors begin with.
    label: Arc<str>,
}

// SAFETY: the entry is functions, which may be called as the methods below do.
unsafe impl Send for Plugin {}
// SAFETY: as above; `describe` and `load` may run in several threads at once.
unsafe impl Sync for Plugin {}

impl Plugin {
    /// # Errors
    /// `FAILED_PRECONDITION` if there is no such entry.
    pub(crate) fn of(library: Arc<Library>, entry: Option<&str>) -> Result<Plugin> {
        let (name, raw) = library.entry(entry)?;
        let label = if name == "model" {
            format!("plugin {:?}", library.name)
        } else {
            format!("plugin {:?} ({name})", library.name)
        };
        let entry = *raw;
        Ok(Plugin {
            library,
            entry,
            label: label.into(),
        })
    }

    /// What errors begin with.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// What a model of this state takes and gives.
    ///
    /// # Errors
    /// The plugin's own, or what is wrong with its signature.
    pub(crate) fn describe(&self, state: &str, services: &dyn Services) -> Result<Signature> {
        let Some(describe) = self.entry.describe else {
            return Ok(Signature::new());
        };
        let mut context = self.context(CallKind::Describe, services);
        let status = self.running(&mut context, |context| {
            // SAFETY: the entry's function, with a context and a text that live until it returns.
            unsafe { describe(context, abi::Str::of(state)) }
        });
        self.outcome(status, &mut context)?;
        Ok(context.signature.unwrap_or_default())
    }

    /// An instance for the thread that this is called in.
    ///
    /// # Errors
    /// The plugin's own, `FAILED_PRECONDITION` where it gives no code.
    pub(crate) fn load(&self, state: &str, services: &dyn Services) -> Result<Instance> {
        let Some(load) = self.entry.load else {
            return Err(Error::precondition(format!(
                "{}: its `load` is NULL",
                self.label
            )));
        };
        let mut raw = ptr::null_mut();
        let mut context = self.context(CallKind::Load, services);
        let status = self.running(&mut context, |context| {
            // SAFETY: as in `describe`, with a place for the instance.
            unsafe { load(context, abi::Str::of(state), &raw mut raw) }
        });
        if status == abi::OK {
            // From here on dropping it calls `unload`, whatever fails.
            let instance = Instance {
                plugin: self.clone(),
                raw,
            };
            self.outcome(status, &mut context)?;
            return Ok(instance);
        }
        Err(self.outcome(status, &mut context).err().unwrap_or_else(|| {
            Error::precondition(format!(
                "{}: its `load` failed and did not say why",
                self.label
            ))
        }))
    }

    fn context<'a>(&'a self, kind: CallKind, services: &'a dyn Services) -> CallContext<'a> {
        CallContext {
            kind,
            services,
            failure: None,
            signature: None,
            texts: Vec::new(),
            run: None,
            members: Vec::new(),
            outputs: Outputs::none(&self.library),
        }
    }

    fn running(
        &self,
        context: &mut CallContext<'_>,
        call: impl FnOnce(*mut abi::Context) -> i32,
    ) -> i32 {
        let before = RUNNING.replace(self.label.clone());
        LAST_ERROR.set(None);
        let status = call(ptr::from_mut(context).cast());
        RUNNING.set(before);
        status
    }

    /// The result of a call: what the plugin reported, what the host found wrong, or how a function of the host had failed.
    fn outcome(&self, status: i32, context: &mut CallContext<'_>) -> Result<()> {
        if status == abi::OK && context.failure.is_none() {
            return Ok(());
        }
        let last = LAST_ERROR.take();
        // A plugin hands on what the host had said as an error of its own: across the interface go code, text and rows.
        let is_about_row_count = last.as_ref().is_some_and(Error::is_about_row_count);
        let failure = context.failure.take().or(last);
        let failure = failure.unwrap_or_else(|| {
            let why = format!("it returned status {status} and did not say why");
            match context.kind {
                CallKind::Infer => Error::internal(why),
                CallKind::Describe | CallKind::Load => Error::precondition(why),
            }
        });
        let failure = match is_about_row_count && failure.rows().is_none() {
            true => failure.about_row_count(),
            false => failure,
        };
        Err(failure.context(&self.label))
    }
}

/// One worker's instance of a plugin's model. Not Send: it lives and ends in the thread that loaded it.
pub(crate) struct Instance {
    plugin: Plugin,
    raw: *mut c_void,
}

/// What an instance is called with.
pub(crate) struct InferCall<'a> {
    pub(crate) inputs: &'a Batch,
    /// What the outputs are checked against.
    pub(crate) signature: &'a Signature,
    /// How many rows each output must have; `None` if rows are not counted.
    pub(crate) rows: Option<usize>,
    pub(crate) run: &'a Run<'a>,
    pub(crate) services: &'a dyn Services,
}

/// Why a run failed, and whether the instance may be used again.
#[derive(Debug)]
pub(crate) struct InferFailure {
    pub(crate) error: Error,
    pub(crate) instance_lost: bool,
}

impl Instance {
    /// Runs a batch. The outputs were checked.
    ///
    /// # Errors
    /// What the plugin reports, with the rows that it names; or `INTERNAL`, naming what it returned that does not fit.
    pub(crate) fn infer(&mut self, call: &InferCall<'_>) -> Result<Batch, InferFailure> {
        let plugin = &self.plugin;
        let lost = |error: Error| InferFailure {
            error,
            instance_lost: true,
        };
        let Some(infer) = plugin.entry.infer else {
            return Err(lost(Error::internal(format!(
                "{}: its `infer` is NULL",
                plugin.label
            ))));
        };
        let shown = Shown::of(call.inputs).map_err(|e| InferFailure {
            error: e.context(&plugin.label),
            instance_lost: false,
        })?;
        let mut context = plugin.context(CallKind::Infer, call.services);
        context.run = Some(call.run);
        context.outputs = Outputs::expected(&plugin.library, &shown, call.signature, call.rows);
        let status = plugin.running(&mut context, |context| {
            let views = shown.views();
            // SAFETY: the instance is what `load` made, in this thread, and not yet unloaded; the context and the
            // views live until the call returns.
            unsafe { infer(self.raw, context, views.as_ptr(), views.len() as u32) }
        });
        let outcome = plugin.outcome(status, &mut context);
        let outputs = outcome.and_then(|()| {
            let outputs = context.outputs.finish();
            outputs.map_err(|e| e.context(&plugin.label))
        });
        outputs.map_err(|error| InferFailure {
            error,
            instance_lost: status == abi::BROKEN,
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let Some(unload) = self.plugin.entry.unload else {
            return;
        };
        let before = RUNNING.replace(self.plugin.label.clone());
        // SAFETY: `load` made it in this thread, and this is the one call; the library is open as long as `plugin`.
        unsafe { unload(self.raw) };
        RUNNING.set(before);
    }
}
