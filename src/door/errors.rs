//! What error codes are called in the doors' protocols.

use crate::error::{Error, ErrorCode};

/// Seconds after which a client may try again what was refused for now.
const RETRY_SECONDS: u32 = 1;

/// The HTTP status of an error code.
pub(crate) fn http_status(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidArgument => 400,
        ErrorCode::PermissionDenied => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::FailedPrecondition => 422,
        ErrorCode::ResourceExhausted => 429,
        // What other servers and their logs have for a client that has taken its request back.
        ErrorCode::Cancelled => 499,
        ErrorCode::Internal => 500,
        ErrorCode::Unavailable => 503,
        ErrorCode::DeadlineExceeded => 504,
    }
}

/// In how many seconds it may be tried again, if that can help.
pub(crate) fn retry_after(code: ErrorCode) -> Option<u32> {
    let for_now = matches!(code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable);
    for_now.then_some(RETRY_SECONDS)
}

/// The first row of those that an error is about, and how many they are.
pub(crate) type RowNumbers = [usize; 2];

/// The rows that are to blame for an error, where that is known.
pub(crate) fn row_numbers(error: &Error) -> Option<RowNumbers> {
    error.rows().map(|rows| [rows.start, rows.len()])
}

/// An unknown model's message starts as other servers' do, which clients look for.
pub(crate) fn told(error: Error) -> Error {
    // So begin the messages of the lookup; those about a file that a parameter names begin with its key.
    if error.code() == ErrorCode::NotFound && error.message().starts_with("model ") {
        return error.context("Request for unknown model");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_told_as_clients_expect_and_a_missing_file_is_not() {
        let model = told(Error::not_found("model \"x\": there is none"));
        let words = "Request for unknown model: model \"x\": there is none";
        assert_eq!(model.message(), words);
        let file = told(Error::not_found("a_path \"x\": there is no such file"));
        assert_eq!(file.message(), "a_path \"x\": there is no such file");
    }

    #[test]
    fn each_code_has_its_status_and_says_whether_to_try_again() {
        let statuses = [400, 403, 404, 422, 429, 499, 500, 503, 504];
        let mut all = ErrorCode::ALL.map(http_status);
        all.sort_unstable();
        assert_eq!(all, statuses);
        assert_eq!(http_status(ErrorCode::Internal), 500);
        assert_eq!(http_status(ErrorCode::Cancelled), 499);
        for code in ErrorCode::ALL {
            let status = http_status(code);
            let again = status == 429 || status == 503;
            assert_eq!(retry_after(code).is_some(), again, "{code}");
        }
    }
}
