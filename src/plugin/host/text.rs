//! Copies and checks the texts that plugins give.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use std::fmt;

use crate::error::{Error, Result};
use crate::plugin::abi;

/// Longest text of a plugin's that is read.
const MOST_TEXT_BYTES: u64 = 1 << 20;
/// Longest message of a plugin's that is passed on; of a longer one the beginning.
const MOST_MESSAGE_BYTES: usize = 16 << 10;

/// What is wrong with a text; it completes a sentence that begins with what the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotText {
    Null { bytes: u64 },
    TooLong { bytes: u64, most: u64 },
    NotUtf8,
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotText::Null { bytes } => write!(f, "is NULL, expected {bytes} bytes of UTF-8"),
            NotText::TooLong { bytes, most } => {
                write!(f, "has {bytes} bytes, and {most} is the most")
            }
            NotText::NotUtf8 => write!(f, "is not UTF-8"),
        }
    }
}

/// A copy of a plugin's text of at most so many bytes.
///
/// # Safety
/// It must be as long as it says.
pub(super) unsafe fn read_text(text: abi::Str, most: u64) -> Result<String, NotText> {
    let bytes = text.length;
    if bytes == 0 {
        return Ok(String::new());
    }
    if bytes > most {
        return Err(NotText::TooLong { bytes, most });
    }
    if text.data.is_null() {
        return Err(NotText::Null { bytes });
    }
    // SAFETY: the caller answers for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data, text.length as usize) };
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(NotText::NotUtf8),
    }
}

/// A copy of a plugin's message: what of it is text.
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
    unsafe { read_text(text, MOST_TEXT_BYTES) }
        .map_err(|why| Error::invalid(format!("the argument `{what}` {why}")))
}
