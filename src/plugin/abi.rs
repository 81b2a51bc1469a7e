//! `src/model/mdm_model.h` in Rust: what each thing means is said there. Both sides of the interface use this file.

use std::ffi::c_void;

use crate::error::ErrorCode;
use crate::tensor::DataType;

pub const ABI_VERSION: u32 = 1;
/// The symbol that a plugin exports.
#[cfg(feature = "server")]
pub(crate) const SYMBOL: &str = "mdm_plugin_entry";

pub(crate) const OK: i32 = 0;
pub(crate) const FAILED: i32 = 1;
pub(crate) const BROKEN: i32 = 2;

/// How a line of the log begins by which a plugin in Rust says where it has panicked. The error comes next; a server that
/// knows this line puts the two together.
pub(crate) const PANICKED_AT: &str = "the model panicked at ";

/// Most dimensions of a tensor.
#[cfg(feature = "server")]
pub(crate) const MAX_RANK: u32 = 64;

/// Pointers to dimensions and to offsets are shared between `usize` and `uint64_t`.
const _: () = assert!(size_of::<usize>() == 8);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    pub data: *const u8,
    pub length: u64,
}

impl Str {
    pub const fn of(text: &str) -> Str {
        Str {
            data: text.as_ptr(),
            length: text.len() as u64,
        }
    }
}

/// `mdm_context`, which only the host looks into.
#[repr(C)]
pub struct Context {
    _opaque: [u8; 0],
}

/// `mdm_buffer`.
#[repr(C)]
pub struct Buffer {
    _opaque: [u8; 0],
}

/// `mdm_session`.
#[repr(C)]
pub struct Session {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub name: Str,
    pub datatype: u32,
    pub rank: u32,
    pub shape: *const u64,
    pub data: *const c_void,
    pub data_bytes: u64,
    pub offsets: *const u64,
    pub offset_count: u64,
    pub buffer: *mut Buffer,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub first_row: u64,
    pub rows: u64,
    pub offset: u64,
    pub total: u64,
}

/// Gives lent memory back.
pub type Release = unsafe extern "C" fn(owner: *mut c_void);

#[repr(C)]
pub struct Host {
    pub abi_version: u32,
    pub size: u32,
    pub last_error: unsafe extern "C" fn(code: *mut u32) -> Str,
    pub log: unsafe extern "C" fn(level: u32, message: Str),
    pub fail: unsafe extern "C" fn(*mut Context, code: u32, message: Str, first: u64, count: u64),
    pub signature: unsafe extern "C" fn(*mut Context, json: Str) -> i32,
    pub resolve_path: unsafe extern "C" fn(*mut Context, path: Str, absolute: *mut Str) -> i32,
    pub param_path: unsafe extern "C" fn(*mut Context, key: Str, absolute: *mut Str) -> i32,
    pub params: unsafe extern "C" fn(*mut Context) -> Str,
    pub members: unsafe extern "C" fn(*mut Context, members: *mut *const Member) -> u32,
    pub is_cancelled: unsafe extern "C" fn(*mut Context) -> i32,
    pub device: unsafe extern "C" fn(*mut Context) -> Str,
    pub alloc: unsafe extern "C" fn(bytes: u64, memory: *mut *mut c_void) -> *mut Buffer,
    pub buffer_retain: unsafe extern "C" fn(*mut Buffer),
    pub buffer_release: unsafe extern "C" fn(*mut Buffer),
    pub output: unsafe extern "C" fn(
        *mut Context,
        tensor: *const Tensor,
        owner: *mut c_void,
        release: Option<Release>,
    ) -> i32,
    pub session_open: unsafe extern "C" fn(
        *mut Context,
        path: Str,
        options: Str,
        session: *mut *mut Session,
    ) -> i32,
    pub session_signature: unsafe extern "C" fn(*mut Session) -> Str,
    pub session_run: unsafe extern "C" fn(
        *mut Session,
        inputs: *const Tensor,
        input_count: u32,
        outputs: *mut *const Tensor,
        output_count: *mut u32,
    ) -> i32,
    pub session_close: unsafe extern "C" fn(*mut Session),
}

pub type Describe = unsafe extern "C" fn(*mut Context, state: Str) -> i32;
pub type Load = unsafe extern "C" fn(*mut Context, state: Str, instance: *mut *mut c_void) -> i32;
pub type Infer = unsafe extern "C" fn(
    instance: *mut c_void,
    *mut Context,
    inputs: *const Tensor,
    input_count: u32,
) -> i32;
pub type Unload = unsafe extern "C" fn(instance: *mut c_void);

/// The functions are optional because a plugin may leave them out by mistake.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub name: Str,
    pub describe: Option<Describe>,
    pub load: Option<Load>,
    pub infer: Option<Infer>,
    pub unload: Option<Unload>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    pub abi_version: u32,
    pub size: u32,
    pub entry_size: u32,
    pub entry_count: u32,
    pub entries: *const Entry,
}

/// `mdm_plugin_entry`.
#[cfg(feature = "server")]
pub(crate) type EntryPoint = unsafe extern "C" fn(host: *const Host) -> *const Plugin;

/// The datatypes are numbered from 1 in the order of [`DataType::ALL`].
pub(crate) fn datatype_number(datatype: DataType) -> u32 {
    let place = DataType::ALL.iter().position(|other| *other == datatype);
    place.map_or(0, |place| place as u32 + 1)
}

pub(crate) fn datatype_of(number: u32) -> Option<DataType> {
    let place = (number as usize).checked_sub(1)?;
    DataType::ALL.get(place).copied()
}

/// The error codes are numbered from 1 in the order of [`ErrorCode::ALL`].
pub(crate) fn code_number(code: ErrorCode) -> u32 {
    let place = ErrorCode::ALL.iter().position(|other| *other == code);
    place.map_or(0, |place| place as u32 + 1)
}

/// A number that this version does not know counts as `INTERNAL`.
pub(crate) fn code_of(number: u32) -> ErrorCode {
    let place = (number as usize).checked_sub(1);
    let code = place.and_then(|place| ErrorCode::ALL.get(place));
    code.copied().unwrap_or(ErrorCode::Internal)
}
