//! What error codes are called in gRPC: each has the status of its own name.

use tonic::{Code, Status};

use super::super::errors::told;
use crate::error::{Error, ErrorCode};

/// Most bytes of a message: it travels in a header, which clients bound.
const MESSAGE_BYTES: usize = 2048;

/// The status of an error.
pub(super) fn status(error: Error) -> Status {
    let error = told(error);
    let message = error.message();
    let message = &message[..message.floor_char_boundary(MESSAGE_BYTES)];
    Status::new(code(error.code()), message)
}

fn code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::FailedPrecondition => Code::FailedPrecondition,
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::Internal => Code::Internal,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
    }
}

/// The status of a call that only waits for its client when the server stops.
pub(super) fn stopped() -> Status {
    Status::unavailable("the server has stopped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_code_has_the_status_of_its_name() {
        for code in ErrorCode::ALL {
            let status = status(Error::new(code, "why"));
            let name = format!("{:?}", status.code()).to_uppercase();
            assert_eq!(name, code.as_str().replace('_', ""));
            assert_eq!(status.message(), "why");
        }
    }
}
