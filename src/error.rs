//! Errors: a stable code for programs, and a message for people.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The stable error codes of the wire (a client may match on them; they never change meaning).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// Malformed or mismatching input: the same request can never succeed.
    InvalidArgument,
    /// No such model or file.
    NotFound,
    /// Outside the allowed roots, or no right to do this.
    PermissionDenied,
    /// A bound on queue or memory was reached: try later, or ask for less.
    ResourceExhausted,
    /// The deadline passed before the result was complete.
    DeadlineExceeded,
    /// The client took the request back.
    Cancelled,
    /// Shutting down, session lost, or no worker.
    Unavailable,
    /// The model cannot be loaded.
    FailedPrecondition,
    /// The model failed; its own message follows.
    Internal,
}

impl ErrorCode {
    /// Every code, in the order of the table in the guide's page about errors.
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::InvalidArgument,
        ErrorCode::NotFound,
        ErrorCode::PermissionDenied,
        ErrorCode::ResourceExhausted,
        ErrorCode::DeadlineExceeded,
        ErrorCode::Cancelled,
        ErrorCode::Unavailable,
        ErrorCode::FailedPrecondition,
        ErrorCode::Internal,
    ];

    /// The name on the wire, such as `INVALID_ARGUMENT`.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidArgument => "INVALID_ARGUMENT",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::PermissionDenied => "PERMISSION_DENIED",
            ErrorCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
            ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
            ErrorCode::Cancelled => "CANCELLED",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::FailedPrecondition => "FAILED_PRECONDITION",
            ErrorCode::Internal => "INTERNAL",
        }
    }

    /// Reads a code off the wire; one that this version does not know counts as `INTERNAL`.
    pub fn parse(name: &str) -> ErrorCode {
        ErrorCode::ALL
            .into_iter()
            .find(|code| code.as_str() == name)
            .unwrap_or(ErrorCode::Internal)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Between two loops: its name.
impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ErrorCode, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Ok(ErrorCode::parse(&name))
    }
}

/// What went wrong: a code and a message that names the thing, what was expected and what came.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    code: ErrorCode,
    message: String,
    concerns: Concerns,
}

/// What an error is about, of the rows that a model was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Concerns {
    /// Nothing that is known.
    Unknown,
    Rows(Range<usize>),
    /// An output has another number of rows: whose results they are cannot be told, so no row of it is good.
    #[cfg(feature = "server")]
    RowCount,
}

/// As [`fmt::Display`], with the rows: a `main` that returns an error prints it so.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        match self.rows() {
            Some(rows) => write!(f, " (rows {rows:?})"),
            None => Ok(()),
        }
    }
}

/// Between two loops: the code's name, the message and the rows.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.code, &self.message, self.rows()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        let (code, message, rows): (_, _, Option<Range<usize>>) =
            Deserialize::deserialize(deserializer)?;
        Ok(Error {
            code,
            message,
            concerns: rows.map_or(Concerns::Unknown, Concerns::Rows),
        })
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of any code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            concerns: Concerns::Unknown,
        }
    }

    /// `INVALID_ARGUMENT`.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::InvalidArgument, message)
    }

    /// `NOT_FOUND`.
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::NotFound, message)
    }

    /// `PERMISSION_DENIED`.
    pub fn denied(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::PermissionDenied, message)
    }

    /// `RESOURCE_EXHAUSTED`.
    pub fn exhausted(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::ResourceExhausted, message)
    }

    /// `UNAVAILABLE`.
    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::Unavailable, message)
    }

    /// `FAILED_PRECONDITION`.
    pub fn precondition(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::FailedPrecondition, message)
    }

    /// `INTERNAL`.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::Internal, message)
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What a person reads.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error, with words in front that say where it happened.
    #[must_use]
    pub fn context(self, place: impl fmt::Display) -> Error {
        Error {
            message: format!("{place}: {}", self.message),
            ..self
        }
    }

    /// The same error, which concerns these rows: of the batch that a model was given, where a model says it, and of the
    /// request, where its client is told it.
    #[must_use]
    pub fn at_rows(self, rows: Range<usize>) -> Error {
        Error {
            concerns: Concerns::Rows(rows),
            ..self
        }
    }

    /// The same error, which says that an output has another number of rows than the inputs. Inside one loop: it is not
    /// kept between two.
    #[cfg(feature = "server")]
    #[must_use]
    pub(crate) fn about_row_count(self) -> Error {
        Error {
            concerns: Concerns::RowCount,
            ..self
        }
    }

    /// Whether it says that.
    #[cfg(feature = "server")]
    pub(crate) fn is_about_row_count(&self) -> bool {
        self.concerns == Concerns::RowCount
    }

    /// The rows that are to blame, where that is known. For a client they are counted in its request, from 0; for a model
    /// in the batch that it was given.
    pub fn rows(&self) -> Option<Range<usize>> {
        match &self.concerns {
            Concerns::Rows(rows) => Some(rows.clone()),
            _ => None,
        }
    }
}

#[cfg(feature = "server")]
impl From<zmq::Error> for Error {
    fn from(error: zmq::Error) -> Error {
        Error::unavailable(format!("ZeroMQ: {error}"))
    }
}

/// What a panic said.
#[cfg(any(feature = "plugin", feature = "server"))]
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_unknown_ones_are_internal() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), code);
        }
        assert_eq!(ErrorCode::parse("SOMETHING_NEW"), ErrorCode::Internal);
    }

    #[test]
    fn a_main_that_returns_an_error_prints_it_for_people() {
        let error = Error::invalid("no date").at_rows(7..9);
        assert_eq!(
            format!("{error:?}"),
            "INVALID_ARGUMENT: no date (rows 7..9)"
        );
        assert_eq!(format!("{:?}", Error::not_found("x")), "NOT_FOUND: x");
    }

    #[test]
    fn an_error_keeps_its_rows_between_the_loops() {
        for error in [
            Error::invalid("no date").at_rows(7..9),
            Error::internal("broke"),
        ] {
            let bytes = rmp_serde::to_vec(&error).unwrap();
            assert_eq!(rmp_serde::from_slice::<Error>(&bytes).unwrap(), error);
        }
    }
}
