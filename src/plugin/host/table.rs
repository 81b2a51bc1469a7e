//! The functions that plugins call: `mdm_host`.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;

use super::call::{CallContext, CallKind, LAST_ERROR, RUNNING};
use super::memory::Buffer;
use super::session::PluginSession;
use super::text::{read_message, text};
use crate::error::{Error, Result};
use crate::plugin::abi;
use crate::signature::Signature;

/// What every plugin is given.
pub(super) static HOST: abi::Host = abi::Host {
    abi_version: abi::ABI_VERSION,
    size: size_of::<abi::Host>() as u32,
    last_error,
    log,
    fail,
    signature,
    resolve_path,
    param_path,
    params,
    members,
    is_cancelled,
    device,
    alloc,
    buffer_retain,
    buffer_release,
    output,
    session_open,
    session_signature,
    session_run,
    session_close,
};

/// Runs the body of a function of the table, which gets the function's name. No panic leaves it, and an error is kept
/// for `last_error`.
fn guarded<T>(function: &'static str, body: impl FnOnce(&'static str) -> Result<T>) -> Option<T> {
    let caught = catch_unwind(AssertUnwindSafe(|| body(function)));
    let result = caught.unwrap_or_else(|_| {
        Err(Error::internal(format!(
            "{function}: the server panicked in it, which is an error of the server and not of the plugin; its log says \
             where"
        )))
    });
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            LAST_ERROR.set(Some(error));
            None
        }
    }
}

fn status(done: Option<()>) -> i32 {
    match done {
        Some(()) => abi::OK,
        None => abi::FAILED,
    }
}

/// The call that a context belongs to.
///
/// # Errors
/// `INTERNAL` for NULL, and in a call that the function is not for.
///
/// # Safety
/// It must be NULL or a context whose call is not over, and nothing else may look into it meanwhile.
unsafe fn behind<'a>(
    context: *mut abi::Context,
    function: &str,
    allowed: &[CallKind],
) -> Result<&'a mut CallContext<'a>> {
    if context.is_null() {
        return Err(Error::internal(format!("{function}: the context is NULL")));
    }
    // SAFETY: the caller answers for it.
    let context = unsafe { &mut *context.cast::<CallContext<'a>>() };
    if allowed.contains(&context.kind) {
        return Ok(context);
    }
    let allowed: Vec<&str> = allowed.iter().map(|kind| kind.name()).collect();
    Err(Error::internal(format!(
        "{function} was called in {}, expected in {} only",
        context.kind.name(),
        allowed.join(" or ")
    )))
}

const ANY: &[CallKind] = &[CallKind::Describe, CallKind::Load, CallKind::Infer];
const FILES: &[CallKind] = &[CallKind::Describe, CallKind::Load];
const LOAD: &[CallKind] = &[CallKind::Load];
const INFER: &[CallKind] = &[CallKind::Infer];

unsafe extern "C" fn last_error(code: *mut u32) -> abi::Str {
    LAST_ERROR.with_borrow(|error| {
        let (number, message) = match error {
            Some(error) => (abi::code_number(error.code()), error.message()),
            None => (0, ""),
        };
        if !code.is_null() {
            // SAFETY: not NULL, so it is a place for a number.
            unsafe { code.write_unaligned(number) };
        }
        // It stays where it is until the next error replaces it.
        abi::Str::of(message)
    })
}

unsafe extern "C" fn log(level: u32, message: abi::Str) {
    let _ = guarded("log", |_| {
        // SAFETY: a plugin's texts are as long as they say.
        let message = unsafe { read_message(message) };
        if let Some(place) = message.strip_prefix(abi::PANICKED_AT) {
            // The error that follows says the rest, and the log has it with its model and its request.
            crate::faults::panicked_elsewhere(Some(place));
            return Ok(());
        }
        let plugin = RUNNING.with_borrow(Clone::clone);
        match level {
            1 => tracing::error!(target: "plugin", from = &*plugin, "{message}"),
            2 => tracing::warn!(target: "plugin", from = &*plugin, "{message}"),
            3 => tracing::info!(target: "plugin", from = &*plugin, "{message}"),
            4 => tracing::debug!(target: "plugin", from = &*plugin, "{message}"),
            _ => tracing::trace!(target: "plugin", from = &*plugin, "{message}"),
        }
        Ok(())
    });
}

unsafe extern "C" fn fail(
    context: *mut abi::Context,
    code: u32,
    message: abi::Str,
    first: u64,
    count: u64,
) {
    let _ = guarded("fail", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, ANY)? };
        // SAFETY: a plugin's texts are as long as they say.
        let message = unsafe { read_message(message) };
        let message = if message.is_empty() {
            "it failed, and its message is empty".to_owned()
        } else {
            message
        };
        let error = Error::new(abi::code_of(code), message);
        let (first, count) = (first as usize, count as usize);
        context.failure = Some(match count {
            0 => error,
            // Rows that cannot be there are refused by whoever knows how many there are.
            _ => error.at_rows(first..first.saturating_add(count)),
        });
        Ok(())
    });
}

unsafe extern "C" fn signature(context: *mut abi::Context, json: abi::Str) -> i32 {
    status(guarded("signature", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, &[CallKind::Describe])? };
        let result = text("signature", json).and_then(|json| Signature::from_json(&json));
        // A wrong signature fails the call even if the plugin ignores this function's status.
        context.signature = Some(result.inspect_err(|e| context.failure = Some(e.clone()))?);
        Ok(())
    }))
}

fn shown(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::precondition(format!(
            "the path {} is not UTF-8, and plugins get paths as UTF-8 text",
            path.display()
        ))
    })
}

/// Writes a result to where the plugin wants it.
///
/// # Safety
/// The place must be NULL or one for a `T`.
unsafe fn put<T>(place: *mut T, value: T) -> Result<()> {
    if place.is_null() {
        return Err(Error::internal(
            "the pointer to where the result goes is NULL",
        ));
    }
    // SAFETY: the caller answers for it.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

unsafe extern "C" fn resolve_path(
    context: *mut abi::Context,
    path: abi::Str,
    absolute: *mut abi::Str,
) -> i32 {
    status(guarded("resolve_path", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, FILES)? };
        let path = context.services.state_path(&text("path", path)?)?;
        let kept = context.keep(shown(&path)?);
        // SAFETY: the plugin's place for it.
        unsafe { put(absolute, kept) }
    }))
}

unsafe extern "C" fn param_path(
    context: *mut abi::Context,
    key: abi::Str,
    absolute: *mut abi::Str,
) -> i32 {
    status(guarded("param_path", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, INFER)? };
        let key = text("key", key)?;
        if !key.ends_with("_path") {
            return Err(Error::internal(format!(
                "param_path: {key:?} does not end in \"_path\", so the server has not checked it"
            )));
        }
        let value = context.run.and_then(|run| run.params.get(&key));
        let value = value.and_then(serde_json::Value::as_str).ok_or_else(|| {
            Error::invalid(format!(
                "the parameter {key:?} is missing: expected the path of a file"
            ))
        })?;
        let path = context.services.param_path(&key, value)?;
        let kept = context.keep(shown(&path)?);
        // SAFETY: the plugin's place for it.
        unsafe { put(absolute, kept) }
    }))
}

unsafe extern "C" fn params(context: *mut abi::Context) -> abi::Str {
    let found = guarded("params", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, INFER)? };
        match context.run {
            Some(run) if !run.params.is_empty() => {
                let json = serde_json::to_string(run.params);
                let json = json.map_err(|e| Error::internal(e.to_string()))?;
                Ok(context.keep(json))
            }
            _ => Ok(abi::Str::of("{}")),
        }
    });
    found.unwrap_or(abi::Str::of("{}"))
}

unsafe extern "C" fn members(context: *mut abi::Context, members: *mut *const abi::Member) -> u32 {
    let found = guarded("members", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, INFER)? };
        if context.members.is_empty() {
            let mut first_row = 0;
            let all = context.run.map_or(&[][..], |run| run.members);
            context.members = all
                .iter()
                .map(|member| {
                    let shown = abi::Member {
                        first_row,
                        rows: member.rows,
                        offset: member.offset,
                        total: member.total,
                    };
                    first_row += member.rows;
                    shown
                })
                .collect();
        }
        // SAFETY: the plugin's place for it.
        unsafe { put(members, context.members.as_ptr())? };
        Ok(context.members.len() as u32)
    });
    found.unwrap_or(0)
}

unsafe extern "C" fn is_cancelled(context: *mut abi::Context) -> i32 {
    let found = guarded("is_cancelled", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, INFER)? };
        Ok(context.run.is_some_and(|run| (run.cancelled)()))
    });
    i32::from(found == Some(true))
}

unsafe extern "C" fn device(context: *mut abi::Context) -> abi::Str {
    let found = guarded("device", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, &[CallKind::Load, CallKind::Infer])? };
        let device = context.services.device();
        Ok(context.keep(device))
    });
    found.unwrap_or(abi::Str::of(""))
}

unsafe extern "C" fn alloc(bytes: u64, memory: *mut *mut c_void) -> *mut abi::Buffer {
    let made = guarded("alloc", |_| {
        let (buffer, start) = Buffer::block(bytes).ok_or_else(|| {
            Error::exhausted(format!("alloc: there is no memory for {bytes} bytes"))
        })?;
        // SAFETY: the plugin's place for it.
        unsafe { put(memory, start)? };
        Ok(buffer.into_raw())
    });
    made.unwrap_or(ptr::null_mut())
}

unsafe extern "C" fn buffer_retain(buffer: *mut abi::Buffer) {
    if !buffer.is_null() {
        // SAFETY: a buffer that the plugin was shown or holds; its new share is counted and not dropped here.
        std::mem::forget(unsafe { Buffer::share(buffer) });
    }
}

unsafe extern "C" fn buffer_release(buffer: *mut abi::Buffer) {
    if !buffer.is_null() {
        // SAFETY: the plugin is one of its holders, and ends to be.
        let share = unsafe { Buffer::take(buffer) };
        let _ = guarded("buffer_release", |_| {
            drop(share);
            Ok(())
        });
    }
}

unsafe extern "C" fn output(
    context: *mut abi::Context,
    tensor: *const abi::Tensor,
    owner: *mut c_void,
    release: Option<abi::Release>,
) -> i32 {
    status(guarded("output", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = match unsafe { behind(context, function, ANY) } {
            Ok(context) => context,
            Err(error) => {
                if let Some(release) = release {
                    // SAFETY: the plugin gave both together, and this is the one call.
                    unsafe { release(owner) };
                }
                return Err(error);
            }
        };
        // SAFETY: a plugin's pointers are what the interface says.
        let taken = unsafe { context.outputs.take(tensor, owner, release) };
        // A wrong output fails the call even if the plugin ignores this function's status.
        taken.inspect_err(|e| context.failure = Some(e.clone()))
    }))
}

unsafe extern "C" fn session_open(
    context: *mut abi::Context,
    path: abi::Str,
    options: abi::Str,
    session: *mut *mut abi::Session,
) -> i32 {
    status(guarded("session_open", |function| {
        // SAFETY: the plugin's context, in its call and thread.
        let context = unsafe { behind(context, function, LOAD)? };
        let (path, options) = (text("path", path)?, text("options", options)?);
        if session.is_null() {
            return Err(Error::internal(
                "the pointer to where the result goes is NULL",
            ));
        }
        let opened = PluginSession::new(context.services.session(&path, &options)?);
        // SAFETY: the plugin's place for it.
        unsafe { put(session, Box::into_raw(Box::new(opened)).cast()) }
    }))
}

/// The session that a plugin's pointer stands for.
///
/// # Safety
/// It must be NULL or an open session of this thread's.
unsafe fn session<'a>(session: *mut abi::Session) -> Result<&'a mut PluginSession> {
    if session.is_null() {
        return Err(Error::internal("the mdm_session is NULL"));
    }
    // SAFETY: the caller answers for it.
    Ok(unsafe { &mut *session.cast::<PluginSession>() })
}

unsafe extern "C" fn session_signature(raw: *mut abi::Session) -> abi::Str {
    // SAFETY: the plugin's session, in its thread.
    let found = guarded("session_signature", |_| {
        Ok(abi::Str::of(unsafe { session(raw)? }.signature()))
    });
    found.unwrap_or(abi::Str::of(""))
}

unsafe extern "C" fn session_run(
    raw: *mut abi::Session,
    inputs: *const abi::Tensor,
    input_count: u32,
    outputs: *mut *const abi::Tensor,
    output_count: *mut u32,
) -> i32 {
    status(guarded("session_run", |_| {
        // SAFETY: the plugin's session, in its thread; its pointers are what the interface says.
        unsafe {
            let views = session(raw)?.run(inputs, input_count)?;
            put(outputs, views.as_ptr())?;
            put(output_count, views.len() as u32)
        }
    }))
}

unsafe extern "C" fn session_close(session: *mut abi::Session) {
    if session.is_null() {
        return;
    }
    let _ = guarded("session_close", |_| {
        // SAFETY: it came out of Box::into_raw in `session_open`, and the plugin closes it once.
        drop(unsafe { Box::from_raw(session.cast::<PluginSession>()) });
        Ok(())
    });
}
