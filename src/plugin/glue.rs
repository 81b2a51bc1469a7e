//! The author's side of the C interface: a [`Model`] as a table of C functions, and the host's functions as methods.
//!
//! One of the files in which `unsafe` is allowed.
#![allow(unsafe_code)] // the interface is C: pointers in, pointers out

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

use super::{Context, LoadContext, Model, Params, Port, Signature, abi, panics};
use crate::error::{Error, Result, panic_message};
use crate::tensor::{Batch, Data, Tensor};

/// Outputs up to this many bytes are copied: cheaper than the bookkeeping of lending.
const COPY_BYTES: usize = 1024;

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Level {
    /// An operator must act.
    Error = 1,
    /// Something is worse than it should be.
    Warn = 2,
    /// Life cycle.
    Info = 3,
    /// Each request.
    Debug = 4,
    /// More than that.
    Trace = 5,
}

/// The server's table, once it has opened this library.
static HOST: OnceLock<&'static abi::Host> = OnceLock::new();

/// A line for the server's log; for standard error where there is no server.
pub fn log(level: Level, message: &str) {
    match HOST.get() {
        // SAFETY: the text lives until the call returns.
        Some(host) => unsafe { (host.log)(level as u32, abi::Str::of(message)) },
        None => eprintln!("{level:?}: {message}"),
    }
}

/// `mdm_entry`, in a static.
#[repr(transparent)]
pub struct Entry(abi::Entry);

// SAFETY: it holds function pointers and a pointer to a text that never changes.
unsafe impl Sync for Entry {}

impl Entry {
    #[doc(hidden)]
    pub const fn of<T: Model>(name: &'static str) -> Entry {
        Entry(abi::Entry {
            name: abi::Str::of(name),
            describe: Some(describe::<T>),
            load: Some(load::<T>),
            infer: Some(infer::<T>),
            unload: Some(unload::<T>),
        })
    }
}

/// `mdm_plugin`, in a static.
#[repr(transparent)]
pub struct Table(abi::Plugin);

// SAFETY: it holds numbers and a pointer to entries that never change.
unsafe impl Sync for Table {}

impl Table {
    #[doc(hidden)]
    pub const fn of(entries: &'static [Entry]) -> Table {
        Table(abi::Plugin {
            abi_version: abi::ABI_VERSION,
            size: size_of::<abi::Plugin>() as u32,
            entry_size: size_of::<abi::Entry>() as u32,
            entry_count: entries.len() as u32,
            entries: entries.as_ptr().cast(),
        })
    }
}

/// What the host gives `mdm_plugin_entry`; nothing else can make one.
#[repr(transparent)]
pub struct HostPointer(*const abi::Host);
/// What `mdm_plugin_entry` returns.
#[repr(transparent)]
pub struct TablePointer(#[allow(dead_code)] *const abi::Plugin); // the host reads it

/// The body of `mdm_plugin_entry`.
#[doc(hidden)]
pub fn enter(host: HostPointer, table: &'static Table) -> TablePointer {
    let refused = TablePointer(ptr::null());
    if host.0.is_null() {
        return refused;
    }
    // SAFETY: a HostPointer comes from a host only, whose table lives as long as the process and begins with these
    // two numbers; the rest is looked at once they say that it is there.
    let (version, size) = unsafe { ((*host.0).abi_version, (*host.0).size) };
    if version != abi::ABI_VERSION || (size as usize) < size_of::<abi::Host>() {
        return refused;
    }
    // SAFETY: as above, and it is as long as this version's.
    HOST.get_or_init(|| unsafe { &*host.0 });
    TablePointer(&raw const table.0)
}

#[expect(
    clippy::expect_used,
    reason = "a plugin that runs without its host has no other way to say so"
)]
fn host() -> &'static abi::Host {
    HOST.get()
        .expect("the host enters a library before it calls into it, and contexts are its own")
}

/// A text of the host's.
///
/// # Safety
/// It must be valid for `'a`.
unsafe fn text<'a>(text: abi::Str) -> &'a str {
    if text.length == 0 {
        return "";
    }
    // SAFETY: the host's texts are UTF-8 and as long as they say; the caller answers for their life.
    unsafe {
        std::str::from_utf8_unchecked(std::slice::from_raw_parts(text.data, text.length as usize))
    }
}

/// Why the host's last function failed.
fn last_error() -> Error {
    let mut code = 0;
    // SAFETY: the text is valid until the next failure in this thread, and copied before that.
    let message = unsafe { text((host().last_error)(&raw mut code)).to_owned() };
    Error::new(abi::code_of(code), message)
}

fn done(status: i32) -> Result<()> {
    if status == abi::OK {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// A context of the host's, for as long as the call lasts that it was given to: models get it by reference only.
#[derive(Clone, Copy)]
pub(super) struct HostContext(*mut abi::Context);

impl HostContext {
    fn fail(self, error: &Error) {
        let rows = error.rows().unwrap_or(0..0);
        let code = abi::code_number(error.code());
        let message = abi::Str::of(error.message());
        let (first, count) = (rows.start as u64, rows.len() as u64);
        // SAFETY: the context is live, see the type; the text lives until the call returns.
        unsafe { (host().fail)(self.0, code, message, first, count) }
    }

    fn signature(self, json: &str) -> Result<()> {
        // SAFETY: as in `fail`.
        done(unsafe { (host().signature)(self.0, abi::Str::of(json)) })
    }

    pub(super) fn resolve_path(self, path: &str) -> Result<PathBuf> {
        let mut absolute = abi::Str::of("");
        // SAFETY: as in `fail`; the answer is copied while the context lives.
        unsafe {
            done((host().resolve_path)(
                self.0,
                abi::Str::of(path),
                &raw mut absolute,
            ))?;
            Ok(PathBuf::from(text(absolute)))
        }
    }

    pub(super) fn param_path(self, key: &str) -> Result<PathBuf> {
        let mut absolute = abi::Str::of("");
        // SAFETY: as in `resolve_path`.
        unsafe {
            done((host().param_path)(
                self.0,
                abi::Str::of(key),
                &raw mut absolute,
            ))?;
            Ok(PathBuf::from(text(absolute)))
        }
    }

    fn params(self) -> Result<Params> {
        // SAFETY: the text is valid until the call returns that the context was given to.
        let json = unsafe { text((host().params)(self.0)) };
        // Most requests have none.
        if json == "{}" {
            return Ok(Params::new());
        }
        serde_json::from_str(json).map_err(|e| {
            Error::internal(format!(
                "the parameters that the server gave are not JSON: {e}"
            ))
        })
    }

    pub(super) fn is_cancelled(self) -> bool {
        // SAFETY: the context is live.
        unsafe { (host().is_cancelled)(self.0) != 0 }
    }

    pub(super) fn requests(self) -> usize {
        let mut members = ptr::null();
        // SAFETY: the context is live; the members themselves are not looked at.
        unsafe { (host().members)(self.0, &raw mut members) as usize }
    }

    pub(super) fn device(self) -> String {
        // SAFETY: the text is copied while the context lives.
        unsafe { text((host().device)(self.0)).to_owned() }
    }

    pub(super) fn open_session(self, path: &str, options: &Value) -> Result<HostSession> {
        let options = if options.is_null() {
            String::new()
        } else {
            options.to_string()
        };
        let mut raw = ptr::null_mut();
        // SAFETY: as in `fail`.
        done(unsafe {
            (host().session_open)(
                self.0,
                abi::Str::of(path),
                abi::Str::of(&options),
                &raw mut raw,
            )
        })?;
        let mut session = HostSession {
            raw,
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        // SAFETY: the text is valid until the session is closed.
        let signature = Signature::from_json(unsafe { text((host().session_signature)(raw)) })?;
        session.inputs = signature.inputs.unwrap_or_default();
        session.outputs = signature.outputs.unwrap_or_default();
        Ok(session)
    }
}

/// A session of the host's; closed when it is dropped. Not Send: it belongs to the worker's thread.
pub(super) struct HostSession {
    raw: *mut abi::Session,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

impl HostSession {
    pub(super) fn run(&mut self, batch: &Batch) -> Result<Batch> {
        let inputs: Vec<abi::Tensor> = batch.tensors.iter().map(view).collect();
        let mut outputs = ptr::null();
        let mut count = 0;
        // SAFETY: the session is open, and this is its thread. The views are of tensors that live until it returns.
        done(unsafe {
            (host().session_run)(
                self.raw,
                inputs.as_ptr(),
                inputs.len() as u32,
                &raw mut outputs,
                &raw mut count,
            )
        })?;
        // SAFETY: the outputs are valid until the next run; their buffers are retained.
        unsafe { batch_of(outputs, count) }
    }
}

impl Drop for HostSession {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed only here.
        unsafe { (host().session_close)(self.raw) }
    }
}

/// A tensor as the interface shows it, for as long as it lives and is not moved out of.
fn view(tensor: &Tensor) -> abi::Tensor {
    let (data, offsets): (&[u8], &[u8]) = match tensor.data() {
        Data::Fixed(bytes) => (bytes, &[]),
        Data::Variable { offsets, values } => (values, offsets),
    };
    abi::Tensor {
        name: abi::Str::of(tensor.name()),
        datatype: abi::datatype_number(tensor.datatype()),
        rank: tensor.shape().len() as u32,
        // usize is u64 here, see abi.rs.
        shape: tensor.shape().as_ptr().cast(),
        data: data.as_ptr().cast(),
        data_bytes: data.len() as u64,
        offsets: if offsets.is_empty() {
            ptr::null()
        } else {
            offsets.as_ptr().cast()
        },
        offset_count: (offsets.len() / 8) as u64,
        buffer: ptr::null_mut(),
    }
}

/// A share of a buffer of the host's.
struct Held(*mut abi::Buffer);

// SAFETY: buffers are counted and released from any thread, the interface says.
unsafe impl Send for Held {}
// SAFETY: as above; nothing is changed through it.
unsafe impl Sync for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: it was retained once for this.
        unsafe { (host().buffer_release)(self.0) }
    }
}

/// Memory of a buffer that is held.
struct Lent {
    data: *const u8,
    bytes: usize,
    _held: Arc<Held>,
}

// SAFETY: the memory is the host's, which does not change it while somebody holds it.
unsafe impl Send for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the memory is there as long as the buffer is held; the host says how long it is, and never NULL.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

/// Tensors that the host shows, without a copy of their elements.
///
/// # Safety
/// They must be valid, and each must have a buffer.
unsafe fn batch_of(tensors: *const abi::Tensor, count: u32) -> Result<Batch> {
    let mut batch = Batch::default();
    for index in 0..count as usize {
        // SAFETY: there are as many tensors, whose shapes are as long as they say.
        let (raw, shape) = unsafe {
            let raw = *tensors.add(index);
            let shape = match raw.rank {
                0 => Vec::new(),
                rank => {
                    std::slice::from_raw_parts(raw.shape.cast::<usize>(), rank as usize).to_vec()
                }
            };
            (raw, shape)
        };
        let datatype = abi::datatype_of(raw.datatype).ok_or_else(|| {
            Error::internal(format!(
                "the server gave datatype {}, which this plugin's version of the crate does not know",
                raw.datatype
            ))
        })?;
        // SAFETY: the buffer is the host's, and live while it is shown.
        unsafe { (host().buffer_retain)(raw.buffer) };
        let held = Arc::new(Held(raw.buffer));
        let lend = |data: *const u8, bytes: u64| {
            let lent = Lent {
                data,
                bytes: bytes as usize,
                _held: held.clone(),
            };
            if bytes == 0 {
                Bytes::new()
            } else {
                Bytes::from_owner(lent)
            }
        };
        let values = lend(raw.data.cast(), raw.data_bytes);
        let data = if datatype.size().is_some() {
            Data::Fixed(values)
        } else {
            Data::Variable {
                offsets: lend(raw.offsets.cast(), raw.offset_count * 8),
                values,
            }
        };
        // SAFETY: the name is valid while the tensor is shown.
        let name = Arc::from(unsafe { text(raw.name) });
        batch
            .tensors
            .push(Tensor::trusted(name, datatype, shape, data));
    }
    Ok(batch)
}

/// Gives outputs to the host: inputs by their buffers, the rest lent. Nothing big is copied but what is given twice.
fn give(context: HostContext, outputs: &Batch, inputs: &[abi::Tensor]) -> Result<()> {
    let mut lent: Vec<(usize, usize)> = Vec::new();
    for tensor in &outputs.tensors {
        let mut shown = view(tensor);
        let start = shown.data.addr();
        let end = start + shown.data_bytes as usize;
        let first_offset = shown.offsets.addr();
        let own = [
            (start, end),
            (first_offset, first_offset + shown.offset_count as usize * 8),
        ];
        let own = own.into_iter().filter(|(from, to)| from < to);
        let mut again = own.clone().flat_map(|(from, to)| {
            let lent = lent.iter();
            lent.map(move |&(first, last)| from < last && first < to)
        });
        let input = inputs.iter().find(|input| {
            let first = input.data.addr();
            start >= first && end <= first + input.data_bytes as usize
        });
        let mut owner = ptr::null_mut();
        let mut release: Option<abi::Release> = None;
        if tensor.payload_bytes() <= COPY_BYTES {
            // Copied by the host.
        } else if let Some(input) = input {
            shown.buffer = input.buffer;
        } else if again.any(|overlaps| overlaps) {
            // Copied by the host: the same memory in two outputs would have two owners.
        } else {
            drop(again);
            lent.extend(own);
            owner = Box::into_raw(Box::new(tensor.data().clone())).cast();
            release = Some(release_data);
        }
        // SAFETY: the context is live, the view is of a tensor that lives until the call returns, and what is lent
        // stays in place until `release_data` drops its owner: Bytes never move what they refer to.
        done(unsafe { (host().output)(context.0, &raw const shown, owner, release) })?;
    }
    Ok(())
}

unsafe extern "C" fn release_data(owner: *mut c_void) {
    // A panic in an owner's destructor must not leave this function, and it has no caller that could handle it.
    let _ = catch_unwind(|| {
        // SAFETY: it came out of Box::into_raw in `give`, and the host calls this once. Data is Send.
        drop(unsafe { Box::from_raw(owner.cast::<Data>()) });
    });
}

/// Runs the author's code. An error or a panic is reported to the host.
fn caught(context: HostContext, body: impl FnOnce() -> Result<()>) -> i32 {
    panics::note_places();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => abi::OK,
        Ok(Err(error)) => {
            context.fail(&error);
            abi::FAILED
        }
        Err(panic) => {
            let why = panic_message(&*panic);
            if let Some(place) = panics::take_place() {
                log(Level::Error, &format!("{}{place}", abi::PANICKED_AT));
            }
            context.fail(&Error::internal(format!("the model panicked: {why}")));
            // Dropping the panic's payload could panic again.
            std::mem::forget(panic);
            abi::BROKEN
        }
    }
}

fn state_of(json: &str) -> Result<Value> {
    serde_json::from_str(json)
        .map_err(|e| Error::internal(format!("the state that the server gave is not JSON: {e}")))
}

unsafe extern "C" fn describe<T: Model>(context: *mut abi::Context, state: abi::Str) -> i32 {
    let context = HostContext(context);
    caught(context, || {
        // SAFETY: the host's text is valid until this function returns.
        let signature = T::signature(&state_of(unsafe { text(state) })?)?;
        signature.check()?;
        context.signature(&signature.to_json())
    })
}

unsafe extern "C" fn load<T: Model>(
    context: *mut abi::Context,
    state: abi::Str,
    instance: *mut *mut c_void,
) -> i32 {
    let context = HostContext(context);
    caught(context, || {
        // SAFETY: the host's text is valid until this function returns.
        let state = state_of(unsafe { text(state) })?;
        let model = T::load(&state, &LoadContext::in_server(context))?;
        // SAFETY: the host gives a place for the instance.
        unsafe { *instance = Box::into_raw(Box::new(model)).cast() };
        Ok(())
    })
}

unsafe extern "C" fn infer<T: Model>(
    instance: *mut c_void,
    context: *mut abi::Context,
    inputs: *const abi::Tensor,
    input_count: u32,
) -> i32 {
    let context = HostContext(context);
    caught(context, || {
        // SAFETY: the instance is what `load` made, and no other thread and no other call has it.
        let model = unsafe { &mut *instance.cast::<T>() };
        // SAFETY: the host's inputs are valid until this function returns, and have buffers.
        let batch = unsafe { batch_of(inputs, input_count)? };
        let params = context.params()?;
        let outputs = model.inference(&batch, &params, &Context::in_server(context))?;
        let shown: &[abi::Tensor] = match input_count {
            0 => &[],
            // SAFETY: as above.
            count => unsafe { std::slice::from_raw_parts(inputs, count as usize) },
        };
        give(context, &outputs, shown)
    })
}

unsafe extern "C" fn unload<T: Model>(instance: *mut c_void) {
    let dropped = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: it came out of Box::into_raw in `load`, and the host calls this once.
        drop(unsafe { Box::from_raw(instance.cast::<T>()) });
    }));
    if let Err(panic) = dropped {
        let why = panic_message(&*panic);
        log(Level::Error, &format!("dropping the model panicked: {why}"));
        std::mem::forget(panic);
    }
}
