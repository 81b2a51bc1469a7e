//! What went wrong, as one line that begins with its code.

use std::io;

use mdm::ErrorCode;

/// `INVALID_ARGUMENT: in.jsonl: line 2: not JSON: …`: the causes, outermost first.
pub fn line(error: &anyhow::Error) -> String {
    let said = error
        .chain()
        .map(|cause| match cause.downcast_ref::<mdm::Error>() {
            Some(error) => error.message().to_owned(),
            None => cause.to_string(),
        });
    let said = said.collect::<Vec<_>>().join(": ").replace('\n', " ");
    format!("{}: {said}", code(error))
}

/// Whether whoever reads the output has read enough, as in `mdm-infer --output - | head -1`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| io_kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// The code of our own error among the causes; what a file or what was typed is to blame for has one of the same codes.
fn code(error: &anyhow::Error) -> ErrorCode {
    let own = |cause: &(dyn std::error::Error + 'static)| {
        let own = cause.downcast_ref::<mdm::Error>();
        own.map(mdm::Error::code)
    };
    let of_system = |cause| {
        Some(match io_kind(cause)? {
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorCode::PermissionDenied
            }
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::OutOfMemory => ErrorCode::ResourceExhausted,
            // A file that is none of its format.
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::Other => ErrorCode::InvalidArgument,
            _ => ErrorCode::Internal,
        })
    };
    error
        .chain()
        .find_map(own)
        .or_else(|| error.chain().find_map(of_system))
        .unwrap_or(ErrorCode::InvalidArgument)
}

fn io_kind(cause: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return Some(error.kind());
    }
    // What writes JSON wraps the error of what it writes to.
    let json = cause.downcast_ref::<serde_json::Error>();
    json.and_then(serde_json::Error::io_error_kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn every_failure_has_a_code() {
        let own: mdm::Result<()> = Err(mdm::Error::exhausted("full"));
        let own = own.context("a.npy").unwrap_err();
        assert_eq!(line(&own), "RESOURCE_EXHAUSTED: a.npy: full");
        let gone = std::fs::read("/no/such/file").context("x").unwrap_err();
        assert!(line(&gone).starts_with("NOT_FOUND: x: No such file"));
        let typed = anyhow::anyhow!("--params is [1],\nexpected an object");
        assert_eq!(
            line(&typed),
            "INVALID_ARGUMENT: --params is [1], expected an object"
        );
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(pipe).context("out")));
        assert!(!is_broken_pipe(&gone));
    }
}
