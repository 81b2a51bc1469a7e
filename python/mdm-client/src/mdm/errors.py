"""The errors of a call: one class for each code of the protocol, each also what Python programs catch for it."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple, Type


class Error(Exception):
    """What went wrong with a call. ``code`` is the protocol's word for it, ``message`` says what, where and what to do.

    ``rows`` is the range of rows that are to blame, where the server says so.
    """

    code = "INTERNAL"

    def __init__(self, message: str, rows: Optional[range] = None) -> None:
        super().__init__(message)
        self.message = message
        self.rows = rows

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> Tuple[Any, ...]:
        return (type(self), (self.message, self.rows))


class InvalidArgument(Error, ValueError):
    """Malformed or mismatching input: the same call can never succeed."""

    code = "INVALID_ARGUMENT"


class NotFound(Error, LookupError):
    """No such model, version or file."""

    code = "NOT_FOUND"


class PermissionDenied(Error, PermissionError):
    """A path leads out of the directories that the server allows."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(Error):
    """A bound on queue or memory is reached: later, or less at once."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(Error, TimeoutError):
    """The time was over before the result was complete."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(Error):
    """The request was taken back."""

    code = "CANCELLED"


class Unavailable(Error, ConnectionError):
    """There is no server, it shuts down, or the session was lost. The next call opens another session."""

    code = "UNAVAILABLE"


class FailedPrecondition(Error):
    """The model cannot be loaded, or the server is of another kind or version."""

    code = "FAILED_PRECONDITION"


class Internal(Error):
    """The model failed, or an answer cannot be read."""

    code = "INTERNAL"


_BY_CODE: Dict[str, Type[Error]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unavailable,
        FailedPrecondition,
        Internal,
    )
}


def from_code(code: str, message: str, rows: Optional[range] = None) -> Error:
    """The error of that code. One that this client does not know is treated as INTERNAL, and named."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return Internal(f"{code}: {message}", rows)
    return kind(message, rows)


def again(error: Error) -> Error:
    """The same error to raise anew: one instance raised in several threads would mix their tracebacks."""
    return type(error)(error.message, error.rows)
