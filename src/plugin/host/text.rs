//! Texts that plugins give, copied and checked.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use crate::error::{Error, Result};
use crate::plugin::abi;

/// Longest text of a plugin's that is read; of messages the beginning.
const MOST_TEXT_BYTES: u64 = 1 << 20;
/// Longest message of a plugin's that a client is sent.
const MOST_MESSAGE_BYTES: usize = 16 << 10;

/// A text of a plugin's, copied. `None` if it is NULL, too long, or not UTF-8.
///
/// # Safety
/// It must be as long as it says.
pub(super) unsafe fn read_text(text: abi::Str) -> Option<String> {
    if text.length == 0 {
        return Some(String::new());
    }
    if text.data.is_null() || text.length > MOST_TEXT_BYTES {
        return None;
    }
    // SAFETY: the caller answers for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data, text.length as usize) };
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// A message of a plugin's: whatever can be read of it.
///
/// # Safety
/// As [`read_text`].
pub(super) unsafe fn read_message(text: abi::Str) -> String {
    if text.data.is_null() {
        return String::new();
    }
    let length = (text.length as usize).min(MOST_MESSAGE_BYTES);
    // SAFETY: the caller answers for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data, length) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// A text that a plugin gives as an argument of that name.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the argument.
pub(super) fn text(what: &str, text: abi::Str) -> Result<String> {
    // SAFETY: a plugin's texts are as long as they say.
    unsafe { read_text(text) }.ok_or_else(|| Error::invalid(format!("{what} is no text")))
}
