//! What a peer may say of itself in a handshake.
//!
//! libzmq 4.3 takes up to the socket's `MAXMSGSIZE` of it. It sorts millions of properties on its only thread, copies a
//! routing id of megabytes with every message, and ends the process when a peer's id is one that it would give to a
//! peer without any: ids that begin with 0 are its own (<https://rfc.zeromq.org/spec/28/>). A socket has no option for
//! these, and no one is asked before the handshake is done. So the linker puts [`checked`] in front of the function
//! that reads the properties (`link.rs`); peers of older protocols, which have none, are refused by the socket
//! (`socket.rs`).
#![allow(unsafe_code)] // it stands between two functions of libzmq's

use std::ffi::{c_int, c_void};

/// Some dozen bytes are usual: a socket's type and a routing id.
const MOST_BYTES: usize = 4096;
/// The most that the protocol allows.
const MOST_ID_BYTES: usize = 255;

unsafe extern "C" {
    /// `int zmq::mechanism_t::parse_metadata (const unsigned char *, size_t, bool)`, itself.
    #[link_name = "__real__ZN3zmq11mechanism_t14parse_metadataEPKhmb"]
    fn parse_metadata(
        mechanism: *mut c_void,
        properties: *const u8,
        size: usize,
        from_zap: bool,
    ) -> c_int;
}

/// What libzmq calls instead of it.
#[unsafe(export_name = "__wrap__ZN3zmq11mechanism_t14parse_metadataEPKhmb")]
unsafe extern "C" fn checked(
    mechanism: *mut c_void,
    properties: *const u8,
    size: usize,
    from_zap: bool,
) -> c_int {
    let said = if size == 0 || properties.is_null() {
        &[]
    } else {
        // SAFETY: libzmq gives the frame that it received: so many bytes, which stay as they are during the call.
        unsafe { std::slice::from_raw_parts(properties, size) }
    };
    if !is_fair(said) {
        // SAFETY: the calling thread's own errno.
        unsafe { *libc::__errno_location() = libc::EPROTO };
        return -1;
    }
    // SAFETY: the arguments are those of a call of this very function.
    unsafe { parse_metadata(mechanism, properties, size, from_zap) }
}

/// Properties follow each other: a byte for the name's length, the name, four for the value's, the value. What is cut
/// short libzmq refuses by itself.
fn is_fair(mut said: &[u8]) -> bool {
    if said.len() > MOST_BYTES {
        return false;
    }
    while let Some((name, rest)) = said
        .split_first()
        .and_then(|(length, rest)| rest.split_at_checked(usize::from(*length)))
    {
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let Some((value, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)
        else {
            break;
        };
        if name.eq_ignore_ascii_case(b"identity")
            && (value.len() > MOST_ID_BYTES || value.first() == Some(&0))
        {
            return false;
        }
        said = rest;
    }
    true
}
